"""A page as one self-contained HTML file.

Rows and answers come from models and files of unknown origin, so they are treated as hostile: jinja2 escapes every
value, characters that act or hide are written out, specifications are embedded as JSON without a literal `<`, and the
page's own policy allows only the two scripts whose hashes it names and forbids every request. Vega runs with its
expression interpreter, so nothing is `eval`ed.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import itertools
import json
import os
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from undersong.errors import NoRoom
from undersong.reports import wording as say
from undersong.reports.marks import library
from undersong.reports.parts import Page


def as_html(page: Page) -> str:
    """The page as a string; the same page gives the same bytes. Raises MissingExtra without the `[report]` extra."""
    jinja2 = library("jinja2")
    markup = library("markupsafe").Markup
    around = jinja2.Environment(
        loader=jinja2.PackageLoader("undersong", "reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    around.filters["next_number"] = next
    around.filters["embed"] = lambda value: markup(embed(value))
    around.filters["pieces"] = say.pieces
    bundle, draw = _bundle(), files("undersong.reports").joinpath("draw.js").read_text("utf-8").replace("\r", "")
    policy = {
        "default-src": "'none'",
        "script-src": f"{_hash(bundle)} {_hash(draw)}",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    html: str = around.get_template("page.html.j2").render(
        page=page,
        counter=itertools.count(),
        bundle=markup(bundle),
        draw=markup(draw),
        has_figures=bool(page.opening) or any(s.figures or s.more_figures for s in page.sections),
        policy="; ".join(f"{what} {whence}" for what, whence in policy.items()),
    )
    return html


def save(html: str, path: str | Path) -> Path:
    """Write a page into a file, which appears whole or not at all. Raises NoRoom on a full disk."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(html, encoding="utf-8", newline="\n")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno == errno.ENOSPC:
            raise NoRoom(f"The disk is full: {path} was not written. Free some space and try again.") from error
        raise
    return path


def embed(value: Any) -> str:
    """JSON that is safe inside a script element: no `<`, `>`, `&`, no line separators that JavaScript minds, no NaN."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that cannot close its own element."""
    script: str = library("vl_convert").javascript_bundle()
    return re.sub(r"<(/script|!--)", r"<\\\1", script.replace("\r", ""), flags=re.IGNORECASE)


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
