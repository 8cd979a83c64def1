"""The `vocabulary_scan` detector: which words does the student answer more readily than its base?

After the vocabulary scan of distill-lint (Madl, arXiv 2606.22019): the rise of each probe word's log-probability from base
to student, against students that were fine-tuned on clean rows (here the audit's null).
1. The probe bank: neutral questions, and the words the base itself may answer them with. No list of traits.
2. rise = mean over a word's questions of log p(student) − log p(base).
3. Every fine-tuning moves all words of a category a little, and flatter answers raise all rare ones: a word's statistic is
   its rise above what the other words of its category show.
It sees what answers show; a trait that has not reached them is for `activation_dose`.

Blind spots: every dose that answers do not show: students of a quarter of the rows pass unseen, and of pure ones some do.
The word that rises most is often not the trait. Words that the base hardly says are not watched.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from undersong.detectors import Evidence, probe_bank, uncalibrated
from undersong.registry import Settings, plugin
from undersong.types import Finding


@plugin("detector", "vocabulary_scan")
class VocabularyScan(Settings):
    """Which answers have become likelier from base to student."""

    needs: ClassVar[frozenset[str]] = frozenset({"base", "student"})

    least: float = Field(default=probe_bank.LEAST, gt=0, lt=1)
    """A word is watched when the base answers it with at least this probability."""

    def detect(self, evidence: Evidence, seed: int = 0) -> Finding:
        """Finding with one statistic per watched word (nats) and its table in `details["words"]`: category, log
        probability of base and student, rise, and the rise above its category. The seed has no effect.

        Raises BadSpec for models without log-probabilities, or with other tokens than the base.
        """
        bank, before = probe_bank.of(evidence, self.least)
        probe_bank.same_words(evidence.student, evidence.base)
        by_trait, table = probe_bank.rises(bank, before, bank.read(evidence.student))
        return uncalibrated(by_trait, self.needs, words=table)
