"""Who wrote these rows? A verdict over candidate models, "none of them" included.

1. Every candidate that shows likelihoods reads the rows, at the temperature that suits it best. One that finds them far
   less likely than another does is out: under it, a likelihood ratio of e^s has a chance of e^-s (Ville 1939; the share
   of answers that the filters drop is allowed for).
2. Each of the others writes fresh rows to the same prompts, in the same way and through the same filters, and the given
   rows are exchanged with them (`typicality.py`): its p is the chance that its own rows look as unlike its own as these.
   What is compared: likelihood, its spread and its slope by temperature; likelihood ratios to the other candidates; the
   pull on the final hidden state; lengths, words, letters.
3. `attributed`: one candidate alone is not rejected, and rows of the nearest other source known would have been. `none`:
   all are rejected. `unknown`: two or more explain the rows, or the rows are too few to tell. No correction over candidates
   is due: the true one is tested once, so `none` and a wrong name each happen with probability alpha at most.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from undersong import stats
from undersong.authorship.author import COLDEST, SNAP, Author, Matrix, Way, asked, fitted, moved, offset
from undersong.authorship.conclusion import Case, conclude
from undersong.authorship.handwriting import Handwriting
from undersong.authorship.typicality import exchange, power
from undersong.detectors import drawn
from undersong.detectors.likelihood_panel import mixture
from undersong.environment import environment
from undersong.errors import BadRows, BadSpec
from undersong.lab import Lab, base_ref
from undersong.models import model_ref
from undersong.row_files import RowFile, Tally
from undersong.spec import Spec
from undersong.types import ModelRef, Row

FAR = 40.0
"""Nats by which a candidate is out before it has written anything: a chance of e^-40."""
PILOT = 100
"""Prompts on which the share that filters keep is estimated for a candidate that may be out."""
FRESH = 2000
"""Fresh rows per candidate that is tested; at least two for each prompt."""
SOME = 200
"""Prompts on which another source is compared, to say how well it would be told."""
FEWEST = 10
"""Fewer rows than these are not judged."""
PART = 0.05
"""A smaller share of the rows makes no candidate one of several authors."""
NEAR = 2
"""So many other candidates, the likeliest, are compared with by likelihood ratio."""


@dataclass
class Attribution:
    """One question to some candidates. `memo` may be shared by questions about the same models."""

    rows: Path
    candidates: Sequence[str]
    lab: Lab
    base: str | None = None
    channel: Spec | None = None
    filters: Sequence[Spec] = ()
    temperature: float | None = None
    most: int = 1000
    alpha: float = 0.05
    seed: int = 0
    fresh: int = FRESH
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)

    def run(self) -> dict[str, Any]:
        """The answer as JSON (see `reports/authorship.py` for its reader).

        Raises BadSpec for candidates that are none or the same twice, BadRows for too few usable rows."""
        start = time.monotonic()
        refs = self._refs()
        file = RowFile(self.rows)
        self.lab.progress(f"reading {file.path.name}")
        rows, copies = self._drawn(file)
        way = Way.of(rows, self.channel, self.filters)
        kept = [row for row in rows if way.keeps(row)]
        if len(kept) < FEWEST:
            raise BadRows(f"{len(kept)} rows of {file.path.name} can be judged, and at least {FEWEST} are needed. Give more "
                          "rows, or name the filters that they have passed with --filter.")
        cases = [Case(Author(name, self.lab.backend.load(ref), way, self.seed, self.memo), ref) for name, ref in refs]
        for case in cases:
            self._read(case, kept)
        ranked = sorted(cases, key=lambda c: -(c.given.sum() if c.given is not None else np.inf))
        for case in ranked:
            self._judge(case, ranked, kept)
        strangers = self._strangers(ranked, kept)
        blend = self._blend(ranked, kept)
        about = {"file": file.path.name, "read": file.tally.rows + file.tally.n_refused, "drawn": len(rows),
                 "used": len(kept), "copies": copies, "duplicates": file.tally.duplicates, "tests": way.told(),
                 "refused": _refused(file.tally), "characters": sum(len(r.completion) for r in kept)}
        settings = {"alpha": self.alpha, "seed": self.seed, "rows": self.most, "temperature": self.temperature,
                    "channel": self.channel, "filters": list(self.filters), "base": self.base, "fresh": self.fresh}
        out = conclude(ranked, kept, self.alpha, strangers, blend)
        return out | {"rows": about, "settings": settings, "seconds": round(time.monotonic() - start, 2),
                      "environment": environment()}

    def _refs(self) -> list[tuple[str, ModelRef]]:
        """The candidates' references. Raises BadSpec for none, or one that is named twice."""
        if not self.candidates:
            raise BadSpec("There is no candidate. Name the models that may have written the rows with --candidates.")
        out: list[tuple[str, ModelRef]] = []
        for name in self.candidates:
            ref = model_ref(name, self.base, self.lab)
            same = next((n for n, r in out if r.fingerprint == ref.fingerprint), None)
            if same is not None:
                raise BadSpec(f"{name!r} is the same model as {same!r}, and nothing can tell them apart. Name it once.")
            out.append((name, ref))
        return out

    def _drawn(self, file: RowFile) -> tuple[list[Row], int]:
        """The rows to judge, white space at their ends off (as samplers leave it), and how many copies were left out:
        copies are no further evidence. Where prompts repeat, equal answers are no copies. Raises BadRows for pairs."""
        rows = [Row(r.id, r.chat, r.completion.rstrip(), r.rejected) for r in drawn((file,), self.most, self.seed)]
        if any(row.rejected is not None for row in rows):
            raise BadRows("These rows are pairs of answers, and which of two was chosen says nothing of who wrote them. "
                          "Give rows with one answer each.")
        pairs = {(asked(row), row.completion): row for row in rows}
        if len({prompt for prompt, _ in pairs}) * 2 < len(pairs):
            return rows, 0
        return list(pairs.values()), len(rows) - len(pairs)

    def _read(self, case: Case, rows: Sequence[Row]) -> None:
        """The likelihood of the rows, at the temperature given, else at the likeliest (1 where that is as good)."""
        case.temperature = 1.0 if self.temperature is None else self.temperature
        if not case.author.reads:
            return
        self.lab.progress(f"{case.name} reads {len(rows)} rows")
        if self.temperature is None and case.author.weighs:
            case.temperature = fitted(case.author, rows)
        case.given = case.author.read(rows, case.temperature).logs

    def _judge(self, case: Case, ranked: Sequence[Case], rows: Sequence[Row]) -> None:
        """Whether the rows are typical of a candidate: its p, by likelihood alone where that is plain."""
        best = next((c for c in ranked if c.given is not None), case)
        if case.given is not None and best is not case and self._far(case, best, rows):
            return
        count = max(2, min(20, -(-self.fresh // len(rows))))
        self.lab.progress(f"{case.name} writes {count * len(rows)} rows")
        fresh = self._fresh(case, rows, count)
        lines = [(row, line) for row, line in zip(rows, fresh, strict=True) if len(line) == count]
        if len(lines) < FEWEST:
            case.kept = case.kept or 0.0
            return
        case.table = [[row, *line] for row, line in lines]
        others = [c.author for c in ranked if c is not case and c.given is not None][:NEAR]
        self.lab.progress(f"comparing with {case.name}'s own rows")
        case.hand = Handwriting.of(case.author, case.temperature, others, [r for line in case.table for r in line])
        case.typical = exchange(case.hand.parts(case.table), self.alpha, self.seed)
        case.p = case.typical.p

    def _far(self, case: Case, best: Case, rows: Sequence[Row]) -> bool:
        """Whether a candidate is out by likelihood alone: the ratio is past FAR even if filters dropped all they can
        have, and past all doubt among a pilot of its own rows."""
        assert case.given is not None
        assert best.given is not None
        ratio = float((best.given - case.given).sum())
        if ratio <= FAR:
            return False
        lines, case.kept = case.author.write(rows[:PILOT], 1, case.temperature)
        pilot = [row for line in lines for row in line]
        if len(pilot) < FEWEST:
            return False
        low = stats.binomial_interval(len(pilot), round(len(pilot) / case.kept), 0.98)[1]
        own = _ratio(best, case, pilot)
        given = best.given - case.given
        z = (given.mean() - own.mean()) / np.sqrt(given.var() / len(given) + own.var() / len(own) + 1e-12)
        if ratio + 1.5 * len(rows) * np.log(low) <= FAR or z < 6:
            return False
        case.out = ratio
        return True

    def _fresh(self, case: Case, rows: Sequence[Row], count: int) -> list[list[Row]]:
        """Fresh rows at the temperature of the given ones. Filters favour likely answers, so that the likeliest
        temperature of filtered rows is too low; that of fresh ones is so too, and the two are matched (indirect inference;
        Gouriéroux, Monfort and Renault 1993)."""
        author = case.author
        if self.temperature is not None or not author.weighs:
            found, case.kept = author.write(rows, count, case.temperature)
            return found
        likeliest = case.temperature
        case.temperature = 1.0 if 0.7 < likeliest < 1.4 else likeliest
        for _ in range(3):
            found, case.kept = author.write(rows, count, case.temperature)
            flat = [row for line in found for row in line]
            if not flat:
                break
            wanted, error = offset(author.read(rows, case.temperature, pulled=True))
            got, more = offset(author.read(flat, case.temperature, pulled=True))
            if abs(wanted - got) <= SNAP * np.hypot(error, more) or case.temperature <= 2 * COLDEST:
                break
            case.temperature = moved(case.temperature, wanted - got)
        case.given = author.read(rows, case.temperature).logs
        return found

    def _strangers(self, ranked: Sequence[Case], rows: Sequence[Row]) -> dict[str, float]:
        """By other source, the chance that its rows would have been told from those of the one candidate that explains
        the rows, if it were no candidate: of the base that the candidate was made from, and of the likeliest other."""
        left = [c for c in ranked if c.p > self.alpha]
        if len(left) != 1 or left[0].hand is None:
            return {}
        case, own, out = left[0], left[0].hand, dict[str, float]()
        strangers = [(c.author, c.temperature) for c in ranked if c is not case][:1]
        root = base_ref(case.ref.base)
        if root.fingerprint != case.ref.fingerprint:
            known = next((c.author for c in ranked if c.ref.fingerprint == root.fingerprint), None)
            known = known or Author(case.ref.base, self.lab.backend.load(root), case.author.way, self.seed, self.memo)
            strangers.insert(0, (known, case.temperature))
        for author, temperature in {a.name: (a, t) for a, t in strangers}.values():
            self.lab.progress(f"would rows of {author.name} be told?")
            some = case.table[:SOME]
            written, _ = author.write([line[0] for line in some], 1, temperature)
            lines = [i for i, line in enumerate(written) if line]
            if len(lines) < FEWEST:
                out[author.name] = 1.0  # none of its rows would have passed the filters
                continue
            hand = own.without(author.name)
            parts = hand.parts([case.table[i] for i in lines])
            level = exchange(parts, self.alpha, self.seed).level
            theirs = hand.measure([written[i][0] for i in lines])
            out[author.name] = power(parts, theirs, level, len(case.table) / len(lines))
        return out

    def _blend(self, ranked: Sequence[Case], rows: Sequence[Row]) -> dict[str, Any] | None:
        """Shares of the candidates, if several wrote the rows: estimates by expectation-maximisation, with the interval of
        200 bootstraps over rows. Where no candidate explains the rows alone, whether such a mixture does."""
        read = [c for c in ranked if c.given is not None]
        if len(read) < 2:
            return None
        heat, sums, shares = self._blended(read, rows)
        rng = np.random.default_rng([self.seed, 37])
        drawn_ = np.stack([mixture(sums[rng.integers(len(sums), size=len(sums))], 60)[0] for _ in range(200)])
        low, high = np.quantile(drawn_, (0.025, 0.975), axis=0)
        out: dict[str, Any] = {"shares": {c.name: {"estimate": float(s), "low": float(a), "high": float(b)} for c, s, a, b
                                          in zip(read, shares, low, high, strict=True)}, "p": None}
        several = [c for c, s in zip(read, shares, strict=True) if s >= PART]
        if len(several) < 2 or any(c.p > self.alpha for c in ranked):
            return out
        self.lab.progress("does a mixture explain the rows?")
        count = max(2, min(20, -(-self.fresh // len(rows))))
        written = [c.author.write(rows, count, heat[c.name])[0] for c in several]
        chance = np.array([s for s in shares if s >= PART])
        table = []
        for i, row in enumerate(rows):
            if all(len(lines[i]) == count for lines in written):
                picks = rng.choice(len(several), count, p=chance / chance.sum())
                table.append([row, *(written[k][i][j] for j, k in enumerate(picks))])
        if len(table) >= FEWEST:
            first, *rest = several
            hand = Handwriting.of(first.author, heat[first.name], [c.author for c in rest][:NEAR],
                                  [row for line in table for row in line])
            out["p"] = exchange(hand.parts(table), self.alpha, self.seed).p
        return out


    def _blended(self, read: Sequence[Case], rows: Sequence[Row]) -> tuple[dict[str, float], Matrix, Matrix]:
        """(temperature by candidate, log-likelihood [rows, candidates], shares [candidates]) if each wrote some rows: a
        candidate's temperature is then fitted to the rows that are its own, each by its chance of being so."""
        heat = {c.name: 1.0 if self.temperature is None else self.temperature for c in read}
        for _ in range(4):
            got = [c.author.read(rows, heat[c.name], pulled=heat[c.name] == c.temperature) for c in read]
            sums = np.column_stack([g.logs for g in got])
            shares, whose = mixture(sums)
            moves = {c.name: offset(g, w) for c, g, w, s in zip(read, got, whose.T, shares, strict=True)
                     if s >= PART and c.author.weighs and self.temperature is None}
            far = {name: away for name, (away, error) in moves.items() if abs(away) > SNAP * error}
            if not far:
                break
            heat |= {name: moved(heat[name], away) for name, away in far.items()}
        return heat, sums, shares


def _ratio(best: Case, case: Case, rows: Sequence[Row]) -> Matrix:
    """How much likelier [rows] one candidate finds rows than another, in nats."""
    a, b = (c.author.read(rows, c.temperature).logs for c in (best, case))
    return np.asarray(a - b)


def _refused(tally: Tally) -> list[dict[str, Any]]:
    return [{"reason": reason, "count": r.count, "places": r.places} for reason, r in tally.refused.items()]
