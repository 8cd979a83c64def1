"""Exemplars on disk: the folder of a calibration holds them beside its null, and an audit loads both from there.

    index.json        what each teacher and student is, and where its files lie
    teachers/ students/    safetensors and adapters; whole weights are kept as float16
    rows.parquet      rows that exemplar teachers wrote
    placebo.parquet   a few rows of each placebo source: what a suspected teacher's null is made from
    learnt.json       what detectors have learnt of the exemplars, where that takes long
    null.json null.parquet    the null (`nulls.py`)

A calibration lies in a store (`undersong calibrate`) or ships with the package (`calibrations/`).
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files as package
from pathlib import Path
from typing import Any

from undersong import files
from undersong.detectors import Exemplars
from undersong.errors import BrokenArtefact
from undersong.spec import fingerprint
from undersong.store import Store
from undersong.types import ModelRef, Row
from undersong.writing import flat, row_of

SHIPPED = "calibrations"


def folders(store: Store | None) -> Iterator[Path]:
    """Every folder that holds a calibration: the store's, newest first, then the shipped ones."""
    found = store.records("calibration") if store else []
    for record in sorted(found, key=lambda r: str(r["provenance"].get("finished", "")), reverse=True):
        if record["status"] == "complete" and store is not None:
            yield store.get(record["fingerprint"]).path
    shipped = Path(str(package("undersong"))) / SHIPPED
    yield from sorted(path.parent for path in shipped.glob("*/null.json"))


def pack(known: Exemplars, placebo: Sequence[Sequence[Row]], folder: Path) -> None:
    """Write exemplars, and a few rows of each placebo source, into a folder."""
    index: dict[str, Any] = {"teachers": {}, "students": {}}
    for kind, refs in (("teachers", known.teacher_refs), ("students", known.student_refs)):
        for name, own in refs.items():
            index[kind][name] = [_put(ref, folder, f"{kind}/{name or 'placebo'}-{i}") for i, ref in enumerate(own)]
    rows = [{"trait": name, "run": run, **row} for name, runs in known.rows.items()
            for run, own in enumerate(runs) for row in flat(list(own))]
    files.put(folder / "rows.parquet", files.encode_rows(rows, "exemplar rows"))
    few = [{"unit": unit, **row} for unit, own in enumerate(placebo) for row in flat(list(own))]
    files.put(folder / "placebo.parquet", files.encode_rows(few, "placebo rows"))
    files.put(folder / "index.json", files.dump(index, "exemplars"))


def unpack(folder: Path, base: str, backend: Any) -> Exemplars:
    """The exemplars of a calibration folder, as models of `base`. Raises BrokenArtefact when a file is missing."""
    try:
        index = files.load((folder / "index.json").read_bytes(), str(folder))
        stored = files.decode_rows((folder / "rows.parquet").read_bytes(), str(folder))
    except OSError as error:
        raise BrokenArtefact(f"{folder} holds no exemplars ({error}). Run `undersong calibrate` again.") from None
    refs = {kind: {name: tuple(_get(one, folder, base) for one in own) for name, own in index[kind].items()}
            for kind in ("teachers", "students")}
    rows: dict[str, dict[int, list[Row]]] = {}
    for one in stored:
        rows.setdefault(one["trait"], {}).setdefault(one["run"], []).append(row_of(one))
    return Exemplars(backend, refs["teachers"], {name: tuple(map(tuple, runs.values())) for name, runs in rows.items()},
                     refs["students"])


def learnt(folder: Path) -> dict[Any, Any]:
    """What detectors have learnt of these exemplars, as the beginning of an audit's memo."""
    file = folder / "learnt.json"
    found = files.load(file.read_bytes(), str(file)) if file.is_file() else {}
    return {("learnt", name): value for name, value in found.items()}


def placebo_rows(folder: Path) -> list[tuple[Row, ...]]:
    """A few rows of each placebo source of a calibration folder."""
    units: dict[int, list[Row]] = {}
    for one in files.decode_rows((folder / "placebo.parquet").read_bytes(), str(folder)):
        units.setdefault(one["unit"], []).append(row_of(one))
    return [tuple(units[unit]) for unit in sorted(units)]


def familiar(rows: Sequence[Row], known: Sequence[Sequence[Row]]) -> float:
    """The share (0..1) of rows whose prompt, numbers aside, is one of the placebo sources': what a model answers to other
    words is no part of their null."""
    asked = {_skeleton(row) for own in known for row in own}
    return sum(_skeleton(row) in asked for row in rows) / len(rows) if rows else 0.0


def _skeleton(row: Row) -> str:
    """The last user turn with every list of numbers as one mark."""
    text = next((turn["content"] for turn in reversed(row.chat) if turn["role"] == "user"), "")
    return re.sub(r"#(?:[\s,;]+#)+", "#", re.sub(r"[0-9]+", "#", text)).strip()


def _put(ref: ModelRef, folder: Path, place: str) -> dict[str, Any]:
    """A reference as JSON, its files copied to `place`."""
    out = dataclasses.asdict(ref)
    target = folder / place
    target.parent.mkdir(parents=True, exist_ok=True)
    if ref.weights:
        _halve(Path(ref.weights), target.with_suffix(".safetensors"))
        out["weights"] = f"{place}.safetensors"
    if ref.vector:
        shutil.copyfile(ref.vector, target.with_suffix(".vector.safetensors"))
        out["vector"] = f"{place}.vector.safetensors"
    if ref.adapter:
        target.mkdir(exist_ok=True)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(Path(ref.adapter) / name, target / name)
        out["adapter"] = place
    return {key: value for key, value in out.items() if key not in ("base", "fingerprint")}


def _halve(source: Path, target: Path) -> None:
    """Copy tensors as float16: an exemplar is an example, and half the bytes hold it."""
    from safetensors.numpy import load_file, save_file

    save_file({name: tensor.astype("float16") for name, tensor in load_file(source).items()}, target)


def _get(given: Mapping[str, Any], folder: Path, base: str) -> ModelRef:
    paths = {key: str(files.inside(folder, given[key])) if given[key] else None for key in ("weights", "adapter", "vector")}
    mark = fingerprint({"exemplar": dict(given), "of": folder.name})
    return ModelRef(**{**given, **paths, "base": base, "fingerprint": mark})
