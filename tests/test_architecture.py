"""The shape of the house, as tests: which way imports point, how long things are, what is never used, what ships.

Every rule is a function from source text to a list of complaints, and has a test that the rule can fail.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "undersong"
FILES = sorted(PACKAGE.rglob("*.py"))
IDS = [str(f.relative_to(PACKAGE)) for f in FILES]

PLUGINS = (
    "teachers",
    "channels",
    "filters",
    "recipes",
    "probes",
    "detectors",
    "kinship",
    "explainers",
    "mitigations",
    "backends",
    "executors",
    "provenance",
)
LAYERS = (  # bottom first; a module imports only from layers below its own
    ("errors",),
    ("types",),
    ("registry", "environment", "evidence"),
    ("spec", "stats", "shares", "traits", "files", "digits", "row_forms"),
    ("artefact", "bucket", "perceptrons", "experiment_file", "row_files"),
    ("journal",),
    (*PLUGINS, "store", "pocket", "simulated"),
    ("fetched", "writing"),
    ("bases", "shared_store"),
    ("lab", "nulls"),
    ("models",),
    ("exemplars", "verdict", "relation"),
    ("lineage",),
    ("ruling",),
    ("calibration",),
    ("audit", "explanation", "authorship"),
    ("comparison", "readings"),
    ("risk", "trial", "guarding"),
    ("experiment", "reports", "logits", "theorem", "evaluation"),
    ("results",),
    ("grid",),
    ("doctor", "laboratory", "seals"),
    ("screen",),
    ("auditing", "experimenting", "tracing", "explaining", "preventing", "sealing"),
    ("cli",),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
PLUGIN_MAY = {"errors", "evidence", "types", "registry", "spec", "stats", "traits", "pocket", "bases"}
HEAVY = {
    "lm_eval",
    "tinker",
    "torch",
    "transformers",
    "trl",
    "peft",
    "sklearn",
    "statsmodels",
    "altair",
    "jinja2",
    "duckdb",
    "mlxtend",
    "datasets",
    "accelerate",
    "inspect_ai",
    "ray",
    "pandas",
    "scipy",
    "cryptography",
    "cyclonedx",
    "fsspec",
    "google",
    "huggingface_hub",
    "in_toto_attestation",
    "mlcroissant",
    "model_signing",
    "prov",
    "s3fs",
    "securesystemslib",
    "vllm",
}
DOORS = {"evaluation.py"}
"""Modules that only a framework imports, by entry point: they may import it. Nothing of ours imports them."""
JUNK = {"utils", "util", "core", "common", "helpers", "services", "managers", "misc"}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
UNSAFE_CALLS = {("torch", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load"), ("os", "system")}
MODULE_LINES, FUNCTION_LINES = 400, 80


def modules(tree: ast.Module, inside_functions: bool = True) -> Iterator[tuple[str, int]]:
    """Every imported module with its line; imports for type checkers are left out."""
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            todo += node.orelse
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not inside_functions:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        todo += list(ast.iter_child_nodes(node))


def direction(source: str, file: str) -> list[str]:
    """Imports that point up, or from one kind of plug-in to another. `file` is relative to the package."""
    parts = file.removesuffix(".py").split("/")
    mine = parts[0]
    if mine == "__init__":
        return [
            f"{file}:{line} imports {name}: the front door stays empty or lazy"
            for name, line in modules(ast.parse(source), inside_functions=False)
            if name.startswith("undersong.")
        ]
    if mine not in RANK:
        return [f"{file}: a new root module; give it a place in LAYERS"]
    out = []
    for name, line in modules(ast.parse(source)):
        if not name.startswith("undersong."):
            continue
        target = name.split(".")[1]
        if target == mine or target not in RANK:
            continue
        fine = RANK[target] < RANK[mine]
        if mine in PLUGINS:
            fine = target in PLUGIN_MAY or (target in PLUGINS and not _registers(name))
        elif mine in ("pocket", "simulated"):
            fine = RANK[target] < RANK[mine] or (target in (*PLUGINS, "pocket") and not _registers(name))
        if not fine:
            out.append(f"{file}:{line} imports {name}")
    return out


def _registers(name: str) -> bool:
    """Whether an imported name belongs to a module that registers a plug-in (a kind's contract does not)."""
    parts = name.split(".")[1:3]
    module = PACKAGE / parts[0] / f"{parts[-1]}.py"
    return len(parts) == 2 and module.is_file() and "@plugin(" in module.read_text("utf-8")


def heavy(source: str) -> list[str]:
    """Frameworks imported when the module is imported."""
    return [
        f"line {line}: {name}"
        for name, line in modules(ast.parse(source), inside_functions=False)
        if name.split(".")[0] in HEAVY
    ]


def lengths(source: str) -> list[str]:
    """A module or function beyond its limit."""
    out = [f"{n} lines in a module (limit {MODULE_LINES})"] if (n := len(source.splitlines())) > MODULE_LINES else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            out += [f"{node.name}: {size} lines (limit {FUNCTION_LINES})"] if size > FUNCTION_LINES else []
    return out


def unsafe(source: str) -> list[str]:
    """Pickle in any form, torch.load, remote code, eval and exec."""
    tree = ast.parse(source)
    out = [f"line {line}: {name}" for name, line in modules(tree) if name.split(".")[0] in UNSAFE_MODULES]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        f = node.func
        if isinstance(f, ast.Attribute) and isinstance(f.value, ast.Name) and (f.value.id, f.attr) in UNSAFE_CALLS:
            out.append(f"line {node.lineno}: {f.value.id}.{f.attr}")
        if isinstance(f, ast.Name) and f.id in ("eval", "exec", "__import__"):
            out.append(f"line {node.lineno}: {f.id}")
        out += [
            f"line {node.lineno}: {k.arg}"
            for k in node.keywords
            if k.arg in ("trust_remote_code", "allow_pickle")
            and not (isinstance(k.value, ast.Constant) and k.value.value is False)
        ]
    return out


def undocumented(source: str) -> list[str]:
    """Public modules, classes and functions without a docstring."""
    tree = ast.parse(source)
    out = [] if ast.get_docstring(tree) else ["the module"]
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            out += [] if ast.get_docstring(node) else [node.name]
            inner = node.body if isinstance(node, ast.ClassDef) else []
            out += [
                f"{node.name}.{m.name}"
                for m in inner
                if isinstance(m, ast.FunctionDef) and not m.name.startswith("_") and not ast.get_docstring(m)
            ]
    return out


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_every_module_keeps_the_rules(file: Path) -> None:
    source = file.read_text("utf-8")
    relative = str(file.relative_to(PACKAGE))
    complaints = {
        "imports point the wrong way": direction(source, relative),
        "a framework is imported at module level": [] if relative in DOORS else heavy(source),
        "too long": lengths(source),
        "unsafe": unsafe(source),
        "no docstring": undocumented(source),
    }
    assert not {rule: found for rule, found in complaints.items() if found}


def test_nothing_of_ours_imports_a_door() -> None:
    doors = {f"undersong.{d.removesuffix('.py')}" for d in DOORS}
    assert not [f for f in FILES for name, _ in modules(ast.parse(f.read_text("utf-8"))) if name in doors]


def test_no_file_is_a_junk_drawer() -> None:
    assert not [str(p.relative_to(ROOT)) for p in PACKAGE.rglob("*") if p.stem in JUNK]


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        (heavy, "import torch", "def f():\n    import torch"),
        (
            heavy,
            "class A:\n    from scipy import stats",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
        ),
        (unsafe, "import pickle", "import json"),
        (unsafe, "def f():\n    from joblib import load", "from json import loads"),
        (unsafe, "import torch\ntorch.load('x')", "import torch\ntorch.save({}, 'x')"),
        (unsafe, "f(trust_remote_code=True)", "f(trust_remote_code=False)"),
        (unsafe, "f(trust_remote_code=flag)", "f(other=True)"),
        (unsafe, "np.load('x', allow_pickle=True)", "np.load('x')"),
        (unsafe, "eval('1')", "model.eval()"),
        (lengths, "x = 1\n" * 401, "x = 1\n" * 400),
        (lengths, "def f():\n" + "    x = 1\n" * 80, "def f():\n" + "    x = 1\n" * 79),
        (undocumented, '"""M."""\ndef f(): ...', '"""M."""\ndef _f(): ...'),
        (undocumented, '"""M."""\nclass A:\n    """A."""\n    def f(self): ...', '"""M."""\nclass A:\n    """A."""'),
    ],
)
def test_each_rule_can_fail(rule, bad: str, good: str) -> None:
    assert rule(bad)
    assert not rule(good)


@pytest.mark.parametrize(
    ("file", "bad", "good"),
    [
        ("store.py", "from undersong.lab import Lab", "from undersong.spec import diff"),
        ("spec.py", "def f():\n    from undersong.store import Store", "from undersong import registry"),
        ("probes/favourite.py", "from undersong.channels import numbers", "from undersong.backends import Model"),
        ("probes/favourite.py", "from undersong.store import Store", "from undersong.probes.questions import asked"),
        ("teachers/tuned.py", "from undersong.backends.transformers import x", "from undersong.backends import tokens"),
        ("recipes/sft.py", "from undersong.experiment import Experiment", "from undersong.recipes import Job"),
        ("lab.py", "import undersong.experiment", "import undersong.store"),
        ("errors.py", "from undersong import types", "import difflib"),
        ("reports/html.py", "from undersong.cli import app", "from undersong import spec"),
        ("__init__.py", "from undersong import lab", "def __getattr__(name):\n    import undersong.lab"),
    ],
)
def test_the_import_rule_can_fail(file: str, bad: str, good: str) -> None:
    assert direction(bad, file)
    assert not direction(good, file)


def test_a_new_root_module_needs_a_place() -> None:
    assert direction("import json", "newcomer.py")


def loaded_by(code: str) -> tuple[set[str], float]:
    """The frameworks that `code` loads in a fresh interpreter, and the processor seconds it took."""
    script = (
        f"import sys, time\nbefore = time.process_time()\n{code}\n"
        "import json\nprint(json.dumps([sorted({m.split('.')[0] for m in sys.modules}), time.process_time() - before]))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=True)
    names, seconds = json.loads(done.stdout.splitlines()[-1])
    return set(names) & (HEAVY - {"scipy", "duckdb", "pandas"}), seconds


@pytest.mark.parametrize(
    "code", ["import undersong", "import undersong.cli", "import undersong.experiment, undersong.lab"]
)
def test_importing_loads_no_framework(code: str) -> None:
    assert loaded_by(code)[0] == set()


def test_importing_is_instant() -> None:
    assert min(loaded_by("import undersong")[1] for _ in range(3)) < 0.2


def test_the_import_check_can_fail() -> None:
    assert "jinja2" in loaded_by("import undersong, jinja2")[0]
    assert loaded_by("end = time.process_time() + 0.25\nwhile time.process_time() < end: pass")[1] > 0.2


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT],
        capture_output=True,
        text=True,
        check=True,
    )
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_every_file(wheel: Path) -> None:
    ships = set(zipfile.ZipFile(wheel).namelist())
    ours = {
        f"undersong/{f.relative_to(PACKAGE)}"
        for f in PACKAGE.rglob("*")
        if f.is_file() and "__pycache__" not in f.parts
    }
    assert ours - ships == set()
    assert any(n.endswith("licenses/LICENSE") for n in ships)


@pytest.mark.slow
def test_everything_imports_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import importlib, pkgutil, undersong\n"
        f"assert undersong.__file__.startswith({str(tmp_path)!r}), undersong.__file__\n"
        "names = [m.name for m in pkgutil.walk_packages(undersong.__path__, 'undersong.')]\n"
        "[importlib.import_module(n) for n in names]\n"
        "print(len(names))"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=env, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len([f for f in FILES if f != PACKAGE / "__init__.py"])
