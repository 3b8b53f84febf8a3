"""Answers of a store that forgets, beside those of one that keeps all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from eval.soak.record import Record

_BEFORE_START = "ASKED_AT_BEFORE_START"


class Verdict(Enum):
    """How an answer stands to the one of the store that keeps all."""

    EQUAL = "equal"
    """The same text."""
    COARSENED = "coarsened"
    """Another, and it says that something it rests on had lost tokens."""
    FORGOTTEN = "forgotten"
    """Another, and it says that what one of them rests on was dropped; or refused for that."""
    DIFFERENT = "different"
    """Another, without a word of why."""
    FAILED = "failed"
    """None, in one of the two."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One question, as both stores answered it."""

    bounded: Record
    whole: Record

    @property
    def verdict(self) -> Verdict:
        """How the two stand to each other."""
        bounded, whole = self.bounded, self.whole
        if whole.text is None:
            return Verdict.FAILED
        if bounded.text is None:
            forgotten = bounded.failure == _BEFORE_START and self._floor_s > bounded.asked_at_s
            return Verdict.FORGOTTEN if forgotten else Verdict.FAILED
        if bounded.text == whole.text:
            return Verdict.EQUAL
        if bounded.coarsened_s:
            return Verdict.COARSENED
        return Verdict.FORGOTTEN if self._about_what_was_dropped() else Verdict.DIFFERENT

    @property
    def complete(self) -> bool:
        """Whether nothing that the answer used, or could have used, was dropped or thinned."""
        return self.bounded.remembers_from_s is None and not self.bounded.coarsened_s

    @property
    def likelihood_difference(self) -> float | None:
        """The largest between the log-likelihoods of a choice; None where there were none."""
        pairs = zip(self.bounded.log_likelihoods, self.whole.log_likelihoods, strict=False)
        return max((abs(ours - theirs) for ours, theirs in pairs), default=None)

    @property
    def _floor_s(self) -> float:
        floor_s = self.bounded.remembers_from_s
        return -1.0 if floor_s is None else floor_s

    def _about_what_was_dropped(self) -> bool:
        """Whether the world's evidence, or a moment that the whole store cites, lies before what is
        remembered."""
        spans = (*self.bounded.evidence_s, *self.whole.cited_s)
        return any(start_s < self._floor_s for start_s, _ in spans)


def pair_up(bounded: Sequence[Record], whole: Sequence[Record]) -> Iterator[Pair]:
    """Yields the questions that were put to both."""
    others = {record.key: record for record in whole}
    for record in bounded:
        if record.key in others:
            yield Pair(record, others[record.key])
