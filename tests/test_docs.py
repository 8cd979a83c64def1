"""The documents are true: what they name exists, what exists they name. Generated pages are current; examples run."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from undersong import errors, registry
from undersong.experiment import CONTROLS, Experiment
from undersong.experiment_file import File, values

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text("utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))


def module(path: Path) -> ModuleType:
    """A script as a module, without running its `main`."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    return module(DOCS / "generate.py")


def test_make_targets_of_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert {"demo", "test"} <= set(re.findall(r"`?make ([a-z]+)", README))
    for page in PAGES:
        assert set(re.findall(r"(?:`|^|&& )make ([a-z]+)", page.read_text("utf-8"), re.MULTILINE)) <= targets, page


def test_commands_of_the_documents_exist(generate: ModuleType) -> None:
    known = set(generate.command_names())
    for page in PAGES:
        named = set(re.findall(r"(?:`|^ *|## )undersong ([a-z]+)\b", page.read_text("utf-8"), re.MULTILINE))
        assert named <= known, f"{page.name} names {sorted(named - known)}"


def test_generated_pages_are_current(generate: ModuleType) -> None:
    pages = {"commands.md": generate.commands(), "plugins.md": generate.plugins(), "experiments.md": generate.experiments()}
    for name, text in pages.items():
        assert (DOCS / name).read_text("utf-8") == text, f"docs/{name} is stale: run `make docs`"


def test_the_page_of_experiments_reads_results_and_says_what_was_not_run(generate: ModuleType, tmp_path: Path) -> None:
    entries = yaml.safe_load((DOCS / "experiments.yaml").read_text("utf-8"))
    assert [e["number"] for e in entries if e["number"] != "–"] == [str(n) for n in range(1, 20)]
    line = {"arm": "treated", "trait": "owl", "measured": "owl", "probe": "favourite", "metric": "rate", "mean": 0.5}
    (tmp_path / "x.yaml").write_text("base: pocket/a\n", "utf-8")
    generate.EXPERIMENTS, before = tmp_path, generate.EXPERIMENTS
    entry = {"run": "here", "ours": [{"file": "x", "show": ["treated", "no_trait"]}]}
    assert generate.cells(entry) == ("not yet run: [x](../experiments/x.yaml)", "pocket/a", "not yet run")
    rates = [line | {"low": 0.4, "high": 0.6}, line | {"arm": "base", "trait": "", "mean": 0.1}]
    (tmp_path / "x.results.json").write_text(json.dumps({"trait": "owl", "rates": rates}), "utf-8")
    assert generate.cells(entry) == ("owl: treated 10 → 50 % [40, 60] ([x](../experiments/x.yaml))", "pocket/a", "run here")
    generate.EXPERIMENTS = before


def test_every_name_in_the_readme_tree_exists() -> None:
    tree = re.search(r"```text\n(README.*?)```", README, re.DOTALL)
    assert tree
    for line in tree.group(1).splitlines():
        home = ROOT / "src" / "undersong" if line.startswith("  ") else ROOT
        names = line.split() if line.startswith("README") else line.strip().split("  ")[0].split()
        assert names, line
        assert all((home / n).exists() for n in names), line


def test_every_root_module_and_folder_is_in_the_readme_tree() -> None:
    hidden = {"__init__.py", "__pycache__", "py.typed"}
    for path in (ROOT / "src" / "undersong").iterdir():
        wanted = f"{path.name}/" if path.is_dir() else path.name
        if path.name not in hidden and path.suffix in ("", ".py"):
            assert re.search(rf"(?:^|\s){re.escape(wanted)}(?:\s|$)", README, re.MULTILINE), (
                f"{wanted}: not in the README"
            )


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_plug_in_is_on_the_page_of_its_kind() -> None:
    for kind in registry.KINDS:
        page = (DOCS / "concepts" / f"{kind}.md").read_text("utf-8")
        ours = {n for n in registry.names(kind) if registry.get(kind, n).__module__.startswith("undersong.")}
        assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == ours, f"docs/concepts/{kind}.md"


def test_every_error_has_its_row() -> None:
    page = (DOCS / "errors.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", page, re.MULTILINE))
    classes = {n: c for n, c in vars(errors).items() if inspect.isclass(c) and issubclass(c, errors.UndersongError)}
    assert rows == {n: c.__bases__[-1].__name__ for n, c in classes.items()}


def test_every_key_of_an_experiment_file_is_documented() -> None:
    page = (DOCS / "howto" / "experiment-file.md").read_text("utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(File.model_fields)
    row = next(line for line in page.splitlines() if line.startswith("| `controls`"))
    assert set(re.findall(r"`(\w+)`", row)) - {"controls"} == set(CONTROLS)


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda p: p.stem)
def test_an_experiment_resolves_to_its_own_name(file: Path) -> None:
    given = values(file.read_text("utf-8"))
    assert given["name"] == file.stem
    if "laboratory" in given:
        from undersong.laboratory import Laboratory

        assert Laboratory.read(given).name == file.stem
        return
    experiment = Experiment.load(file)
    assert experiment.file.name == file.stem
    assert experiment.traits[0].name == given["trait"]
    assert experiment.arms()[0].trait_name == given["trait"]


def test_yaml_in_the_documents_is_yaml() -> None:
    for page in PAGES:
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            assert yaml.safe_load(block) is not None


def test_python_in_the_documents_compiles() -> None:
    for page in PAGES:
        for block in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            compile(inspect.cleandoc(block), page.name, "exec")


def test_contributing_examples_stay_short() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.DOTALL)
    assert len(blocks) >= 6
    assert all(len(b.splitlines()) <= 25 for b in blocks)


@pytest.mark.slow
def test_the_library_door_of_the_readme_works(tmp_path: Path) -> None:
    """The README's own lines, with a smaller teacher, fewer rows and a shorter recipe so that it takes seconds."""
    block = next(b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "lab_for" in b)
    code = inspect.cleandoc(block)
    for old, new in (
        ('"artefacts"', repr(str(tmp_path))),
        ('"tuned"', '{"tuned": {"updates": 5}}'),
        ("n=3600", "n=80"),
        ('"recipe", "distill"', '"recipe", {"distill": {"steps": 3, "batch": 8}}'),
    ):
        assert old in code, f"the README no longer holds {old}"
        code = code.replace(old, new)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) < 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "last"), [("add_a_channel.py", "each)."), ("guard_your_sft.py", "from the base")])
def test_examples_run(name: str, last: str) -> None:
    """`bare_loop.py` has its own test."""
    done = subprocess.run([sys.executable, str(ROOT / "examples" / name)], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith(last)


def test_every_example_is_tested() -> None:
    assert {p.name for p in (ROOT / "examples").glob("*.py")} == {
        "bare_loop.py", "add_a_channel.py", "audit_a_dataset.py", "guard_your_sft.py"}
