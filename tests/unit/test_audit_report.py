"""The report of an audit: every number comes from the file, hostile text stays text, gaps do not break it."""

from __future__ import annotations

import copy
import json
import math
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from undersong.errors import BadSpec
from undersong.reports import audit, audit_figures, wording
from undersong.reports.audit_reading import read

DATA = runpy.run_path(str(Path(__file__).parents[1] / "fixtures" / "audit_results.py"))
FOUND, CLEAN, UNKNOWN = (DATA[name]() for name in ("found", "clean", "unknown"))
EVIL = "</script><script>hit()</script><img src=x onerror=hit()>\x1b[2J\x00\u202e\ud800\r\n"
Change = Callable[[dict[str, Any]], None]


def changed(change: Change, of: dict[str, Any] = FOUND) -> dict[str, Any]:
    new = copy.deepcopy(of)
    change(new)
    return new


def shown(of: dict[str, Any]) -> str:
    """The page without scripts and styles that are the same on every page; specifications of figures stay."""
    page = audit.render(of)
    page = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    return re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every field of the file, of a list only the first entry."""
    if path:
        yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, one in inside:
        yield from places(one, (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def said(of: dict[str, Any]) -> str:
    """What the terminal prints of a file, or why it is refused; any other error is one of ours."""
    try:
        return audit.summary(of)
    except BadSpec as refusal:
        return f"refused: {refusal}"


# the verdict


WORDS = [(FOUND, "Found", "!"), (CLEAN, "Clean", "✓"), (UNKNOWN, "Cannot tell", "?")]


@pytest.mark.parametrize(("of", "word", "sign"), WORDS)
def test_the_verdict_is_said_in_word_sign_and_colour(of: dict[str, Any], word: str, sign: str) -> None:
    page = shown(of)
    assert f'<header class="verdict {of["verdict"]}">' in page
    assert f'<span class="sign" aria-hidden="true">{sign}</span> {word}</p>' in page
    assert page.index(of["sentence"]) < page.index("<figure>")
    text = audit.summary(of).splitlines()
    assert text[0] == word.upper()
    assert " ".join(text[1:3]).startswith(of["sentence"][:80])


def test_reasons_and_next_steps_come_before_the_figures_and_on_the_terminal() -> None:
    for of in (FOUND, CLEAN, UNKNOWN):
        page, text = shown(of), " ".join(audit.summary(of).split())
        for line in (*of["reasons"], *of["next"]):
            assert page.index(f"<li>{line}</li>") < page.index("<figure>")
            assert f"- {line}" in text
        assert text.index(of["reasons"][0]) < text.index("The tests") < text.index(of["next"][0])


def test_a_p_at_its_floor_is_said_to_be_one() -> None:
    text = audit.summary(FOUND)
    assert "p: .040 (floor), limit .05" in text
    assert re.search(r"likelihood panel +found +9\.3 +\.020 \(floor\)", text)
    assert re.search(r"marginals +nothing found +2\.4 +\.10 ", text)
    assert "(floor)" not in audit.summary(CLEAN)
    more = changed(lambda a: [f.update(floor=0.001) for f in a["families"]])
    assert "p: .040, limit .05" in audit.summary(more)


def test_an_uncalibrated_detector_has_that_word_instead_of_a_p() -> None:
    assert re.search(r"judge +cannot tell +– +uncalibrated", audit.summary(UNKNOWN))
    assert "Uncalibrated, and so no part of the verdict: judge." in shown(UNKNOWN)


def test_power_is_a_statement_about_shares() -> None:
    assert "The smallest share found at least 80 % of the time is 5 %." in shown(CLEAN)
    assert "No share that was tried is found at least 80 % of the time." in shown(UNKNOWN)
    assert wording.percent(0.00001) == "< 0.1 %"


# every number comes from the file


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda a: a["share"].update(estimate=0.437), "43.7 % (24 to 38 %)"),
        (lambda a: a.update(p=0.0123), ".012"),
        (lambda a: a.update(alpha=0.017), "limit .017"),
        (lambda a: a["rows"].update(read=77_777), "9,812 of 77,777"),
        (lambda a: a["rows"].update(used=6_543), "6,543"),
        (lambda a: a["rows"].update(duplicates=4_321), "4,321"),
        (lambda a: a["rows"]["refused"][0].update(count=3_456), "3,456"),
        (lambda a: a["rows"]["refused"][0].update(lines=[8_765]), "8,765"),
        (lambda a: a["rows"]["forms"].update(messages=5_432), "5,432"),
        (lambda a: a["rows"].update(belongs=0.613), "61.3 %"),
        (lambda a: a["power"].update(smallest_share=0.073), "smallest seen: 7.3 %"),
        (lambda a: a["power"]["curve"][0].update(power=0.037), "3.7 %"),
        (lambda a: a["power"].update(target=0.83), "target 83 %"),
        (lambda a: a["families"][0].update(adjusted=0.0456), ">.046<"),
        (lambda a: a["families"][0].update(observed=7.77), '"z":7.77'),
        (lambda a: a["families"][0]["null_values"].append(1.23456), '"z":1.23456'),
        (lambda a: a["findings"][1].update(observed=8.88), '"z":8.88'),
        (lambda a: a["findings"][1]["by_trait"][2].update(z=3.21), '"z":"3.2"'),
        (lambda a: a["findings"][1]["by_trait"][2].update(share=0.123), "12.3 %"),
        (lambda a: a["findings"][1].update(p=0.0321), ">.032<"),
        (lambda a: a["findings"][1].update(seconds=1_234.5), "1,234.5"),
        (lambda a: a["findings"][2]["confounds"].update(p_confounds_alone=0.87654), "0.87654"),
        (lambda a: a["evidence"]["null"].update(units=4_949), "4949"),
        (lambda a: a["evidence"]["base"].update(revision="feedc0de"), "pocket/a@feedc0de"),
    ],
)
def test_a_figure_of_the_file_is_the_figure_on_the_page(change: Change, text: str) -> None:
    assert text not in shown(FOUND)
    assert text in shown(changed(change))


def test_the_audited_set_stands_among_its_placebos() -> None:
    figure = audit_figures.placebos(read(FOUND))
    assert figure is not None
    data = figure.spec["datasets"]
    assert len(data["dots"]) == sum(len(t["null_values"]) for t in (*FOUND["families"], *FOUND["findings"]))
    assert [mark["z"] for mark in data["audited"]] == [t.observed for t in audit_figures.grouped(read(FOUND))]
    kinds = {mark["name"]: mark["kind"] for mark in data["audited"]}
    assert kinds["marginals"] != kinds["likelihood panel"] == kinds["Rows: all detectors"]


def test_a_large_null_is_thinned_and_keeps_its_extremes() -> None:
    values = [i / 100 for i in range(1000)]
    figure = audit_figures.placebos(read(changed(lambda a: a["families"][0].update(null_values=values))))
    assert figure is not None
    drawn = [dot["z"] for dot in figure.spec["datasets"]["dots"] if dot["name"] == "placebo, Rows: all detectors"]
    assert (len(drawn), min(drawn), max(drawn)) == (audit_figures.MANY, 0, 9.99)
    assert "thinned" in figure.caption


def test_the_found_trait_is_marked_and_many_traits_keep_it() -> None:
    many = changed(lambda a: a["findings"][0]["by_trait"].extend(
        {"trait": f"t{i}", "statistic": 0.1, "z": 20.0 + i, "p": 0.5, "share": None} for i in range(60)))
    for of in (FOUND, many):
        figure = audit_figures.heat(read(of))
        assert figure is not None
        assert {mark["trait"] for mark in figure.spec["datasets"]["marked"]} == {"◆ owl"}
        assert len({cell["trait"] for cell in figure.spec["datasets"]["cells"]}) <= audit_figures.TRAITS
    assert "24 of 68 traits" in figure.caption
    clean = audit_figures.heat(read(CLEAN))
    assert clean is not None
    assert "marked" not in clean.spec["datasets"]


# hostile text


def spoiled(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {k + (EVIL if key in ("forms", "settings", "null") else ""): spoiled(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [spoiled(v) for v in value]
    return value + EVIL if isinstance(value, str) and key != "verdict" else value


@pytest.mark.parametrize("of", [FOUND, CLEAN, UNKNOWN])
def test_hostile_text_everywhere_is_escaped_on_the_page(of: dict[str, Any]) -> None:
    page, plain = audit.render(spoiled(of)), audit.render(of)
    assert page.count("<script") == plain.count("<script")
    assert page.count("</script") == plain.count("</script")
    assert not re.search(r"<img", shown(spoiled(of)))
    assert not set(page) & set("\x1b\x00\u202e\ud800\r")
    specs = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert len(specs) == 4
    assert "<script>hit()" in json.dumps([json.loads(spec) for spec in specs])


def test_hostile_text_cannot_drive_the_terminal() -> None:
    for of in (FOUND, CLEAN, UNKNOWN):
        for width in (60, 100, 160):
            text = audit.summary(spoiled(of), width)
            assert all(c.isprintable() or c == "\n" for c in text)
            assert max(map(len, text.splitlines())) <= width
    assert r"\x1b[2J\x00\u202e" in audit.summary(spoiled(FOUND), 400)
    assert "[bold]" in audit.summary(changed(lambda a: a.update(sentence="[bold]not markup[/bold]")))


def test_a_quoted_row_is_marked_where_it_hides_something() -> None:
    page = shown(FOUND)
    assert r"12, <mark>\u202e</mark>34, <mark>\x1b</mark>[31m56" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    huge = changed(lambda a: a["rows"]["examples"][0].update(completion="7" * 5_000_000))
    assert len(audit.render(huge)) < len(audit.render(FOUND)) + 2_000
    assert "(4,999,400 more characters)" in shown(huge)


# gaps and refusals


@pytest.mark.parametrize("of", [FOUND, UNKNOWN], ids=["found", "unknown"])
def test_any_field_may_be_missing_or_null(of: dict[str, Any]) -> None:
    for path in places(of):
        for gone in (False, True):
            new = copy.deepcopy(of)
            home = at(new, path[:-1])
            if gone and isinstance(home, dict):
                del home[path[-1]]
            else:
                home[path[-1]] = None
            text = said(new)
            # only null in place of an entry of a list of mappings is no file of ours
            assert not text.startswith("refused: ") or isinstance(home, list), path
            assert not re.search(r"\b(nan|None)\b", text), path


@pytest.mark.parametrize("field", sorted(FOUND))
def test_the_page_of_a_file_without_a_field(field: str) -> None:
    page = shown({k: v for k, v in FOUND.items() if k != field})
    assert "</html>" in page
    assert "verdict unknown" in page if field == "verdict" else "verdict found" in page


def test_a_verdict_alone_is_a_page() -> None:
    for verdict in ("found", "clean", "unknown"):
        assert f'class="verdict {verdict}"' in shown({"verdict": verdict})
        assert audit.summary({"verdict": verdict}).strip()


def test_numbers_that_are_none_leave_gaps() -> None:
    def holed(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: holed(v) for k, v in value.items() if k != "format"}
        if isinstance(value, list):
            return [holed(v) for v in value]
        return math.nan if isinstance(value, float) else None if isinstance(value, int) else value

    assert not re.search(r"\b(nan|NaN|None)\b", shown(holed(FOUND)))


@pytest.mark.parametrize(
    "wrong",
    [
        [], {}, {"format": 1}, {"experiment": "x", "runs": [], "rates": []}, {"verdict": "maybe"}, {"verdict": 3},
        {"verdict": "found", "format": 99}, {"verdict": "found", "findings": "x"}, {"verdict": "found", "findings": [3]},
        {"verdict": "found", "p": 3.0}, {"verdict": "found", "p": "small"}, {"verdict": "found", "rows": [1]},
        {"verdict": "found", "families": [{"null_values": ["x"]}]}, {"verdict": "clean", "reasons": "because"},
    ],
)
def test_what_is_no_audit_is_refused_in_words(wrong: Any, tmp_path: Path) -> None:
    for call in (audit.summary, lambda a: audit.write(a, tmp_path / "page.html")):
        with pytest.raises(BadSpec, match=r"audit.*(Give|Run|Upgrade)|says one of"):
            call(wrong)
    assert not list(tmp_path.iterdir())


def test_every_field_of_the_wrong_kind_is_refused_or_shown() -> None:
    for path in places(FOUND):
        for wrong in ("x", 7, [], {}, True, [[]]):
            new = copy.deepcopy(FOUND)
            at(new, path[:-1])[path[-1]] = wrong
            assert re.search(r"^refused: .*[Rr]un `undersong audit` again|^[A-Z ]+\n", said(new)), path


def test_the_page_is_the_same_bytes_again(tmp_path: Path) -> None:
    path = audit.write(FOUND, tmp_path / "new" / "audit.html")
    assert path.read_text("utf-8") == audit.render(copy.deepcopy(FOUND))
    assert not re.search(r'(?:src|href)="(?!#)', shown(FOUND))
