"""Start-up time: `import undersong`, `undersong --help` and `undersong plugins`, each in a fresh interpreter.

Prints the best and the median of some runs, in seconds, and which frameworks were loaded (none should be).
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS = 7
FRAMEWORKS = ("torch", "transformers", "trl", "peft", "sklearn", "statsmodels", "altair", "jinja2")
CASES = {
    "python -c pass": "pass",
    "import undersong": "import undersong",
    "undersong --help": "from undersong.cli import app; app(['--help'], standalone_mode=False)",
    "undersong plugins": "from undersong.cli import app; app(['plugins'], standalone_mode=False)",
}


def seconds(code: str) -> float:
    """Wall seconds of one fresh interpreter that runs `code`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def loaded(code: str) -> str:
    """The frameworks that `code` loads."""
    report = f"\nimport sys; print('|', *[m for m in {FRAMEWORKS!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + report], check=True, capture_output=True, text=True)
    return done.stdout.rsplit("|", 1)[1].strip() or "none"


def main() -> None:
    """Print the table."""
    print(f"{'case':20} {'best':>7} {'median':>7}  frameworks loaded")
    for name, code in CASES.items():
        found = [seconds(code) for _ in range(RUNS)]
        print(f"{name:20} {min(found):6.3f}s {statistics.median(found):6.3f}s  {loaded(code)}")


if __name__ == "__main__":
    main()
