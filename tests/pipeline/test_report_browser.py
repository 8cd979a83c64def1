"""The report in a real browser: it renders, the console is silent, nothing is asked of the network, no row runs."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import runpy
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("altair", reason="the report extra is not installed")

from undersong.reports import audit, html

pytestmark = pytest.mark.browser
FIXTURE = Path(__file__).parents[1] / "fixtures" / "report_results.py"
AUDITS = FIXTURE.with_name("audit_results.py")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--proxy-server=127.0.0.1:9",
    "--remote-debugging-pipe",
)
# The browser reads commands on descriptor 3 and writes answers on 4; this wrapper puts our pipes there.
WRAPPER = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execvp(sys.argv[3], sys.argv[3:])"
)
IN_SIGHT = "[...document.querySelectorAll('.chart')].filter(c => !c.closest('details:not([open])'))"
INK = "getComputedStyle(document.body).color"
READABLE = (  # every label of a figure in the ink of the page, ink and paper far apart
    "[...document.querySelectorAll('.chart .role-axis-label text')].every(t => getComputedStyle(t).fill === " + INK + ")"
)
BRIGHTER = (
    "(([ink, paper]) => ink > paper + 100)([" + INK + ", getComputedStyle(document.body).backgroundColor]"
    ".map(c => +c.match(/\\d+/)[0]))"
)
DRAWN = f"{IN_SIGHT}.every(c => c.querySelector('svg'))"


class Browser:
    """Headless Chromium over its debugging pipe: commands and events are JSON texts that end with a zero byte."""

    def __init__(self, program: str, profile: Path) -> None:
        commands, self._write = _pipe()
        self._read, events = _pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", WRAPPER, str(commands), str(events), program, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(commands, events),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(events)
        self._buffer, self._count = b"", 0
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session: str | None = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    _session: str | None = None

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and return its result; events that come meanwhile are kept in `events`."""
        self._count += 1
        session = {"sessionId": self._session} if self._session else {}
        os.write(
            self._write, json.dumps({"id": self._count, "method": method, "params": params} | session).encode() + b"\0"
        )
        while (message := self._next()).get("id") != self._count:
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    def open(self, page: Path, width: int = 1200, dark: bool = False) -> None:
        """Load a file at a window width and wait until every figure in sight is drawn."""
        self.events.clear()
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Page.navigate", url=page.as_uri())
        end = time.monotonic() + 30
        while time.monotonic() < end and not self.value(f"document.readyState === 'complete' && {DRAWN}"):
            time.sleep(0.1)
        time.sleep(0.2)

    def value(self, expression: str) -> Any:
        """Evaluate an expression in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)[
            "result"
        ].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        height = self.value("document.documentElement.scrollHeight")
        width = self.value("document.documentElement.clientWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """Everything on the console: messages, uncaught exceptions, refusals of the page's policy."""
        self.value("0")
        wanted = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(e["params"])[:600] for e in self.events if e.get("method") in wanted]

    def requests(self) -> list[str]:
        """Every address that the page asked for."""
        self.value("0")
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]

    def close(self) -> None:
        """End the browser that this object started."""
        with contextlib.suppress(OSError, AssertionError):
            self._session = None
            self.call("Browser.close")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], 60)
            more = os.read(self._read, 1 << 20) if ready else b""
            assert more, "The browser ended or did not answer within a minute."
            self._buffer += more
        text, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(text)


def _pipe() -> tuple[int, int]:
    """A pipe whose descriptors are above those that the browser needs."""
    import fcntl

    made = []
    for end in os.pipe():
        made.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10))
        os.close(end)
    return made[0], made[1]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail("CI has no Chromium, so the report was not looked at. Install it: apt-get install -y chromium")
        pytest.skip("No Chromium here. To open the report in a browser: apt-get install -y chromium")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return runpy.run_path(str(FIXTURE))


@pytest.fixture(scope="module")
def page(data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return html.write(data["results"](), tmp_path_factory.mktemp("report") / "report.html")


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (400, True)])
def test_report_renders_in_silence_and_asks_for_nothing(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width, dark)
    assert browser.value("document.querySelectorAll('.chart svg').length") >= 4
    assert browser.value(DRAWN)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    assert browser.value("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    assert browser.value(BRIGHTER) is dark, "not the palette that was asked for"
    assert browser.value(READABLE)


def test_figures_follow_a_change_between_light_and_dark(browser: Browser, page: Path) -> None:
    browser.open(page)
    before = browser.value(INK)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    end = time.monotonic() + 10
    while time.monotonic() < end and not browser.value(f"{INK} !== '{before}' && {READABLE}"):
        time.sleep(0.1)
    assert browser.value(INK) != before
    assert browser.value(READABLE)


def test_opening_figure_has_a_dot_for_each_run(browser: Browser, page: Path, data: dict[str, Any]) -> None:
    browser.open(page)
    runs = [
        r
        for r in data["results"]()["runs"]
        if r["metric"] == "rate"
        and r["measured"] == "owl"
        and r["trait"] in ("", "owl")
        and r["channel"] in ("", "numbers-sampled")
        and not r["arm"].endswith(":no_trait")
    ]
    dots = "document.querySelector('.chart').querySelectorAll('.mark-symbol path').length"
    assert browser.value(dots) == len(runs)


def test_what_is_folded_away_is_drawn_when_opened(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
    end = time.monotonic() + 20
    while time.monotonic() < end and not browser.value(DRAWN):
        time.sleep(0.1)
    assert browser.value(DRAWN)
    assert browser.value(
        "[...document.querySelectorAll('.chart svg')].every(s => s.getBoundingClientRect().width > 300)"
    )
    assert browser.complaints() == []


def test_a_row_that_is_a_script_stays_text(browser: Browser, page: Path, data: dict[str, Any]) -> None:
    browser.open(page)
    assert data["HOSTILE"] in browser.value("document.body.textContent")
    assert browser.value("[...document.scripts].filter(s => s.textContent.trim() === 'alert(1)').length") == 0
    assert browser.value("document.querySelectorAll('img').length") == 0
    assert not [e for e in browser.events if e.get("method") == "Page.javascriptDialogOpening"]


def test_hostile_names_everywhere_stay_text(browser: Browser, data: dict[str, Any], tmp_path: Path) -> None:
    text = json.dumps(data["results"](seeds=2))
    evil = "</script><script>window.hit=1</script><img src=x onerror=window.hit=2>"
    for name in ("owl", "numbers-sampled", "shuffled_within", "numbers_only"):
        text = text.replace(f'"{name}"', json.dumps(name + evil))
    page = html.write(
        json.loads(text) | {"sentence": evil, "experiment": evil, "fingerprint": evil}, tmp_path / "evil.html"
    )
    browser.open(page)
    assert browser.value("window.hit") is None
    assert browser.value("document.querySelectorAll('img').length") == 0
    assert browser.value(DRAWN)
    assert browser.complaints() == []


def test_results_without_traits_render(browser: Browser, data: dict[str, Any], tmp_path: Path) -> None:
    browser.open(html.write(data["digits"](), tmp_path / "digits.html"), 400)
    assert browser.value("document.querySelectorAll('.chart svg').length") == 1
    assert browser.complaints() == []


@pytest.mark.parametrize(
    ("planted", "seen"),
    [
        ("<img src='http://127.0.0.1:9/x.png'>", "Content Security Policy"),
        ("<script>window.hit = 1</script>", "Content Security Policy"),
    ],
)
def test_the_page_policy_refuses_what_slips_through(
    browser: Browser, page: Path, tmp_path: Path, planted: str, seen: str
) -> None:
    """The checks above can fail: what is planted into the finished page is refused, and the console says so."""
    text = page.read_text("utf-8")
    spoilt = tmp_path / "spoilt.html"
    spoilt.write_text(text.replace("<main>", f"<main>{planted}", 1), "utf-8")
    browser.open(spoilt)
    assert any(seen in complaint for complaint in browser.complaints())
    assert browser.value("window.hit") is None


def test_a_request_would_be_noticed(browser: Browser, page: Path, tmp_path: Path) -> None:
    """Without its policy, a page that asks for something is seen to ask."""
    text = page.read_text("utf-8").replace("Content-Security-Policy", "x-nothing", 1)
    open_page = tmp_path / "open.html"
    open_page.write_text(text.replace("<main>", "<main><img src='http://127.0.0.1:9/x.png'>", 1), "utf-8")
    browser.open(open_page)
    assert "http://127.0.0.1:9/x.png" in browser.requests()


@pytest.fixture(scope="module")
def audits() -> dict[str, Any]:
    return runpy.run_path(str(AUDITS))


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (400, True)])
@pytest.mark.parametrize("verdict", ["found", "clean", "unknown"])
def test_audit_renders_in_silence_and_asks_for_nothing(
    browser: Browser, audits: dict[str, Any], tmp_path: Path, verdict: str, width: int, dark: bool
) -> None:
    page = audit.write(audits[verdict](), tmp_path / "audit.html")
    browser.open(page, width, dark)
    assert browser.value("document.querySelectorAll('.chart svg').length") == 4
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    assert browser.value("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    assert browser.value(BRIGHTER) is dark
    assert browser.value(READABLE)
    found = audits[verdict]()
    assert found["sentence"] == browser.value("document.querySelector('header.verdict h1').innerText")
    # one dot for each placebo, in the row of each family and detector with a null of its own
    tests = [*found["families"], *(f for f in found["findings"] if f["null_values"])]
    dots = "[...document.querySelector('.chart').querySelectorAll('.mark-symbol')].map(m => m.children.length)"
    assert browser.value(dots) == [sum(len(t["null_values"]) for t in tests), len(tests)]


def test_the_colour_of_a_verdict_is_its_own(browser: Browser, audits: dict[str, Any], tmp_path: Path) -> None:
    tones = []
    for verdict in ("found", "clean", "unknown"):
        browser.open(audit.write(audits[verdict](), tmp_path / f"{verdict}.html"))
        tones.append(browser.value("getComputedStyle(document.querySelector('.verdict .word')).color"))
    assert len(set(tones)) == 3


def test_hostile_text_in_an_audit_stays_text(browser: Browser, audits: dict[str, Any], tmp_path: Path) -> None:
    evil = "</script><script>window.hit=1</script><img src=x onerror=window.hit=2>\u202e"

    def spoil(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: spoil(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [spoil(v) for v in value]
        return value + evil if isinstance(value, str) and key != "verdict" else value

    browser.open(audit.write(spoil(audits["found"]()), tmp_path / "evil.html"), 400)
    browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.value("window.hit") is None
    assert browser.value("document.querySelectorAll('img').length") == 0
    assert browser.value("document.body.textContent.includes('\\u202e')") is False
    assert browser.value(DRAWN)
    assert browser.value("document.documentElement.scrollWidth") <= 400
    assert browser.complaints() == []
