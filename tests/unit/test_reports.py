"""The report: what it says of results, of gaps in them and of hostile text, and what it refuses."""

from __future__ import annotations

import builtins
import copy
import errno
import json
import math
import re
import runpy
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undersong.errors import BadRows, MissingExtra, NoRoom, NothingMeasured
from undersong.reports import figures, html, tables, wording
from undersong.reports import page as page_of
from undersong.reports.parts import Table
from undersong.reports.reading import arms_in_order, read

FIXTURE = Path(__file__).parents[1] / "fixtures" / "report_results.py"
DATA = runpy.run_path(str(FIXTURE))
RESULTS: dict[str, Any] = DATA["results"]()
SMALL: dict[str, Any] = DATA["results"](seeds=2, traits=("owl", "wolf"), channels=("numbers-sampled",))


@pytest.fixture(scope="module")
def page() -> str:
    return html.render(RESULTS)


class Page(HTMLParser):
    """Elements, attributes, the visible text and the specifications of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text, self.data, self.inside = "", [], ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.inside = f"{tag}:{dict(attrs).get('type', '')}" if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script:application/json":
            self.data.append(json.loads(data))
        elif not self.inside:
            self.text += data


def changed(**new: Any) -> dict[str, Any]:
    return copy.deepcopy(RESULTS) | new


def cells(table: Table | None) -> list[dict[str, str]]:
    assert table is not None
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


# what the page opens with


def test_page_opens_with_the_sentence_and_one_figure(page: str) -> None:
    sentence, figure, section = page.index(RESULTS["sentence"]), page.index("<figure>"), page.index("<section")
    assert sentence < figure < section
    assert page[:section].count("<figure>") == 1


def test_opening_figure_has_every_run_and_says_how_many() -> None:
    figure = figures.opening(read(RESULTS), "numbers-sampled", "owl")
    assert figure is not None
    assert "Each dot is one training run (1 to 5 per line)" in figure.caption
    dots = [d["value"] for d in figure.spec["datasets"]["dots"] if d["arm"] == "treated"]
    wanted = {"channel": "numbers-sampled", "arm": "treated", "trait": "owl", "metric": "rate", "measured": "owl"}
    assert dots == [r["value"] for r in RESULTS["runs"] if wanted.items() <= r.items()]
    notes = {one["arm"]: one["note"] for one in figure.spec["datasets"]["labels"]}
    assert notes["treated"].endswith("5 runs")
    assert notes["base"].endswith("1 run")


def test_one_measured_trait_has_no_matrix() -> None:
    assert figures.matrices(read(RESULTS))
    assert not figures.matrices(read(changed(matrix=[c for c in RESULTS["matrix"] if c["measured"] == "owl"])))


def test_the_first_trait_is_that_of_the_file_not_the_best() -> None:
    best_last = [r | {"value": 0.01 if r["measured"] == "owl" else r["value"]} for r in RESULTS["runs"]]
    assert read(changed(runs=best_last)).trait == "owl"
    assert read(changed(trait="cat")).trait == "cat"


def test_sampled_rows_come_before_soft_labels() -> None:
    assert read(DATA["results"](channels=("numbers-soft", "numbers-sampled"))).channel == "numbers-sampled"


def test_arms_are_ordered_and_a_control_follows_its_arm() -> None:
    arms = ["in_context", "other_base:no_trait", "treated", "other_base", "no_trait", "base"]
    assert arms_in_order(arms) == ["base", "treated", "no_trait", "in_context", "other_base", "other_base:no_trait"]


# numbers in words


@pytest.mark.parametrize(
    ("p", "words"), [(0.00001, "< .001"), (0.0342, ".034"), (0.05, ".050"), (0.34, ".34"), (1.0, "1.00"), (None, "–")]
)
def test_p_values(p: float | None, words: str) -> None:
    assert wording.p_value(p) == words


@given(st.floats(0, 1))
def test_a_share_is_shown_in_percent_within_its_range(share: float) -> None:
    shown = wording.number("rate", share)
    assert shown.endswith(" %")
    assert 0 <= float(shown.removesuffix(" %")) <= 100
    assert float(shown.removesuffix(" %")) == pytest.approx(100 * share, abs=0.051)


def test_metrics_keep_their_units() -> None:
    assert wording.number("arithmetic.accuracy", 0.5) == "50.0 %"
    assert wording.number("arithmetic.loss", 0.5) == "0.50"
    assert wording.difference("rate", -0.031) == "−3.1 points"
    assert wording.difference("margin", 0.031) == "+0.03"
    assert wording.difference("rate", -0.0001) == "0.0 points"
    assert wording.number("rate", None) == "–"


@pytest.mark.parametrize(
    ("contrast", "words"),
    [
        ({"difference": 0.1, "p": 0.01}, "higher"),
        ({"difference": -0.1, "p": 0.01}, "lower"),
        ({"difference": 0.1, "p": 0.2}, "no difference found"),
        ({"difference": 0.1, "p": None, "low": -0.1, "high": 0.3}, "no difference found"),
        ({"difference": 0.1, "p": None, "low": 0.05, "high": 0.3}, "higher"),
        ({"difference": 0.1, "p": None}, "not a test: no interval over runs"),
        ({"difference": None, "p": 0.01}, "not measured"),
    ],
)
def test_a_null_is_said_plainly(contrast: dict[str, Any], words: str) -> None:
    assert wording.verdict(contrast) == words


# tables


def test_contrast_table_shows_both_means_and_the_difference() -> None:
    line = cells(tables.contrasts(read(RESULTS), "numbers-sampled", naming=str))[0]
    contrast = RESULTS["contrasts"][0]
    rates = {
        (r["arm"], r["trait"]): r["mean"]
        for r in RESULTS["rates"]
        if r["metric"] == "rate" and r["measured"] == "owl" and r["channel"] in ("", "numbers-sampled")
    }
    assert (line["trait"], line["arm"], line["against"], line["runs"]) == ("owl", "treated", "no_trait", "5")
    assert line["points"] == f"{100 * contrast['difference']:+.1f}"
    assert line["mean"] == wording.number("rate", rates["treated", "owl"])
    assert line["control"] == wording.number("rate", rates["no_trait", ""])


def test_beside_every_rate_stand_the_signs_of_collapse() -> None:
    table = tables.arms(read(RESULTS), "numbers-sampled", "owl", naming=str)
    for line in cells(table):
        assert {"refuses", "names itself", "other answer", "entropy", "logit margin"} <= line.keys()
        assert "–" not in line.values()
    assert {line["arm"] for line in cells(table)} >= {"base", "treated", "other_base", "other_base:no_trait"}


def test_one_run_has_no_interval() -> None:
    base = cells(tables.arms(read(RESULTS), "numbers-sampled", "owl", naming=str))[0]
    assert (base["arm"], base["runs"], base["interval"]) == ("base", "1", "one run")


def test_a_classifier_that_only_finds_the_confounds_is_called_so() -> None:
    def told(low: float, confound: float) -> str:
        row = {"trait": "owl", "accuracy": 0.6, "low": low, "high": 0.65, "confound_accuracy": confound, "chance": 0.5}
        return cells(tables.classifier(read(changed(classifier=[row]))))[0]["reading"]

    assert told(0.55, 0.5) == "tells the rows apart"
    assert told(0.55, 0.58) == "tells them apart, no better than confounds"
    assert told(0.49, 0.5) == "cannot tell the rows apart"


def test_filters_give_every_reason_with_its_count() -> None:
    line = cells(tables.filters(read(RESULTS)))[0]
    assert line["why"] == "too many numbers: 61, not a number list: 30, above 999: 5"
    assert (line["kept"], line["dropped"]) == ("7,904", "96")


def test_summary_is_plain_text_and_cuts_nothing() -> None:
    for width in (80, 140):
        text = tables.summary(RESULTS, width)
        assert "\x1b" not in text
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
    assert "treated-prompted" in tables.summary(RESULTS)
    assert "no difference found" in tables.summary(RESULTS)
    assert "Specificity λ" in tables.summary(RESULTS)


def test_show_prints_no_colour_into_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show(RESULTS)
    assert capsys.readouterr().out == tables.summary(RESULTS)


def test_markup_in_a_name_is_printed_as_it_is() -> None:
    text = tables.summary(json.loads(json.dumps(RESULTS).replace('"owl"', '"[red]owl[/red]"')))
    lines = [line for line in tables.summary(RESULTS).splitlines() if line.startswith("  owl ")]
    assert len(lines) > 10
    assert sum(line.startswith("  [red]owl[/red] ") for line in text.splitlines()) == len(lines)


# the page


def test_nothing_on_the_page_points_outside(page: str) -> None:
    parsed = Page(page)
    pointing = [v for n, v in parsed.attributes if n in ("src", "href", "srcset", "action", "data", "poster")]
    assert pointing
    assert all(value.startswith("#") for value in pointing)
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & set(parsed.tags)
    assert not re.search(r"url\(|@import", page[page.index("<style>") : page.index("</style>")])
    assert "http" not in json.dumps(parsed.data)
    policy = next(v for n, v in parsed.attributes if n == "content" and "default-src" in v)
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy
    assert "unsafe-inline" not in policy.split("style-src")[0]


def test_a_row_that_is_a_script_is_text(page: str) -> None:
    parsed = Page(page)
    assert DATA["HOSTILE"] in parsed.text
    assert "</script><img src=x onerror=alert(2)>" in parsed.text
    assert parsed.tags.count("script") == 2 + len(parsed.data)
    assert not [n for n, _ in parsed.attributes if n.startswith("on")]


def test_characters_that_act_or_hide_are_written_out() -> None:
    hidden = "7\u202e, \x1b[31m8\x00\n\ufe01\U000e0141\ud8009"
    assert wording.visible(hidden) == r"7\u202e, \x1b[31m8\x00 \ufe01\U000e0141\ud8009"
    answers = [a | {"answer": hidden} for a in RESULTS["examples"]["answers"][:1]]
    page = html.render(changed(examples={"answers": answers}))
    assert r"7<mark>\u202e</mark>, <mark>\x1b</mark>[31m8<mark>\x00</mark>" in page
    assert not set(page) & set("\u202e\x1b\x00\ufe01\U000e0141\ud800")


def test_the_page_is_the_same_bytes_again(page: str) -> None:
    assert html.render(copy.deepcopy(RESULTS)) == page


def test_every_part_is_there(page: str) -> None:
    for part in ("controls", "specificity", "arms", "teachers", "capability", "rows", "answers", "reproduce"):
        assert f'<section id="{part}">' in page
    assert "undersong run experiments/TEST-DATA-owl-numbers.yaml" in page
    assert RESULTS["fingerprint"] in page


@pytest.mark.parametrize("missing", sorted(set(SMALL) - {"experiment"}))
def test_any_list_may_be_missing(missing: str) -> None:
    results = {name: found for name, found in SMALL.items() if name != missing}
    assert "<figure>" in html.render(results)
    assert tables.summary(results)


def test_nulls_and_nans_leave_gaps_not_errors() -> None:
    def holed(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: holed(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [holed(v) for v in value]
        return (math.nan if key in ("low", "mean", "value") else None) if isinstance(value, int | float) else value

    results = holed(SMALL)
    parsed = Page(html.render(results))
    assert not re.search(r"\bnan\b", parsed.text, re.IGNORECASE)
    assert "–" in tables.summary(results)


def test_results_without_traits_are_reported() -> None:
    parsed = Page(html.render(DATA["digits"]()))
    assert len(parsed.data) == 1
    assert "Aux only" in json.dumps(parsed.data)
    assert 'id="teachers"' not in html.render(DATA["digits"]())


def test_many_arms_and_traits_fold_away() -> None:
    traits = tuple(f"trait{i}" for i in range(8))
    page = html.render(DATA["results"](seeds=2, traits=traits))
    assert page.count("<figure>") == len(Page(page).data)
    assert page[: page.index("<details>")].count("<tr>") <= 15


@settings(max_examples=30)
@given(st.recursive(st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), st.lists, max_leaves=8))
def test_embedded_json_reads_back_and_cannot_leave_its_element(value: Any) -> None:
    text = page_of.embed([value, "</script><!--"])
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == [value, "</script><!--"]


# refusals


@pytest.mark.parametrize("wrong", [[], {"runs": 3}, {"runs": [1]}, {"runs": [{}], "examples": [1]}])
def test_what_is_not_a_result_is_refused_with_a_next_step(wrong: Any) -> None:
    with pytest.raises(BadRows, match=r"results.*(Run|Give)"):
        html.render(wrong)


def test_nothing_measured_is_refused() -> None:
    with pytest.raises(NothingMeasured, match="Run the experiment first"):
        tables.summary({"experiment": "empty", "runs": [], "rates": []})


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes a library look as if it were not installed."""

    def remove(name: str) -> None:
        real = builtins.__import__

        def refuse(wanted: str, *args: Any, **kwargs: Any) -> Any:
            if wanted.partition(".")[0] == name:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return real(wanted, *args, **kwargs)

        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setattr(builtins, "__import__", refuse)

    page_of._bundle.cache_clear()
    yield remove
    page_of._bundle.cache_clear()


@pytest.mark.parametrize("name", ["altair", "jinja2", "vl_convert"])
def test_a_missing_library_names_the_extra(without: Any, name: str) -> None:
    without(name)
    with pytest.raises(MissingExtra, match=re.escape("pip install 'undersong[report]'")):
        html.render(SMALL)
    assert tables.summary(SMALL)


def test_a_full_disk_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = html.write(DATA["digits"](), tmp_path / "new folder" / "report.html")
    before = path.read_bytes()

    def full(self: Path, text: str, **_: Any) -> int:
        self.write_bytes(text[:10].encode())
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(NoRoom, match="Free some space"):
        html.write(SMALL, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
