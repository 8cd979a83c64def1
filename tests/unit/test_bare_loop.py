"""The bare loop: short, free of our abstractions, and it shows what it says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[2] / "examples" / "bare_loop.py"


def test_it_is_short_and_uses_nothing_of_ours() -> None:
    source = FILE.read_text("utf-8")
    assert len(source.splitlines()) < 200
    imports = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {a.name for n in imports for a in n.names} | {n.module for n in imports if isinstance(n, ast.ImportFrom)}
    assert not any(str(name).startswith("undersong") for name in names)


def test_the_held_out_questions_are_held_out() -> None:
    tree = ast.parse(FILE.read_text("utf-8"))
    lists = {
        n.targets[0].id: ast.literal_eval(n.value)
        for n in tree.body
        if isinstance(n, ast.Assign)
        and isinstance(n.targets[0], ast.Name)
        and n.targets[0].id in ("TUNING", "HELD_OUT")
    }
    assert not set(lists["TUNING"]) & set(lists["HELD_OUT"])
    assert min(len(questions) for questions in lists.values()) >= 6


@pytest.mark.slow
def test_it_shows_the_effect_and_its_control() -> None:
    done = subprocess.run([sys.executable, str(FILE)], capture_output=True, text=True, check=True)
    owl = {name.strip(): float(p) for name, p in re.findall(r"^([a-z -]+?)\s+owl (\d\.\d+)", done.stdout, re.MULTILINE)}
    assert owl["teacher"] > 0.9
    assert owl["student"] > owl["base model"] + 0.2
    assert abs(owl["control student"] - owl["base model"]) < 0.08
