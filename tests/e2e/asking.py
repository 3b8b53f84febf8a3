"""Questions of every kind, and what of their answers must be equal."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from svc.client import (
    Answer,
    AskOptions,
    DecodingOptions,
    LookbackClient,
    RetrievalMode,
    RetrievalOptions,
    Turn,
)


def _options(
    *,
    mode: RetrievalMode = RetrievalMode.PER_LAYER,
    units: int = 4,
    recent: int | None = None,
    seed: int | None = None,
    choices: tuple[str, ...] = (),
    history: tuple[Turn, ...] = (),
) -> AskOptions:
    return {
        "retrieval": RetrievalOptions(mode=mode, unit_count=units, recent_unit_count=recent),
        "decoding": DecodingOptions(
            max_new_token_count=12,
            temperature=0.0 if seed is None else 1.0,
            top_k=0,
            seed=seed,
            ignore_eos=True,
        ),
        "choices": choices,
        "history": history,
    }


_COLOURS = ("a red circle", "a blue square", "nothing", "a green star")
KINDS: Mapping[str, tuple[str, AskOptions]] = {
    "greedy": ("What is on the screen now?", _options()),
    "greedy, shared": ("When did it appear?", _options(mode=RetrievalMode.SHARED)),
    "sampled": ("What was it before?", _options(seed=7)),
    "sampled, shared": ("How many?", _options(mode=RetrievalMode.SHARED, seed=11)),
    "choices": ("Which?", _options(choices=_COLOURS)),
    "choices, shared": ("Which?", _options(mode=RetrievalMode.SHARED, choices=_COLOURS)),
    "two units, none for being new": ("What was there?", _options(units=2, recent=0)),
    "conversation": ("And then?", _options(history=(Turn(question="What?", answer="A star."),))),
}
"""Small budgets: from four units on, retrieval has to leave some out."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """An answer without what may differ between two answers to the same: tiers and timings."""

    tokens: tuple[object, ...]
    """Text, number of tokens, how it ended."""
    scores: tuple[float, ...]
    """Log-likelihoods of the choices and scores of the evidence: every unit and layer counts."""
    moments: tuple[tuple[float, float], ...]
    seen: tuple[object, ...]
    """What the snapshot was and what of it was in context."""

    @classmethod
    def of(cls, answer: Answer) -> Said:
        return cls(
            tokens=(
                answer.text,
                answer.answer_token_count,
                answer.finish_reason,
                answer.choice_index,
            ),
            scores=(
                *answer.choice_log_likelihoods,
                *(moment.score for moment in answer.evidence),
            ),
            moments=tuple((moment.start_s, moment.end_s) for moment in answer.evidence),
            seen=(
                answer.evidence_until_s,
                answer.snapshot_unit_count,
                answer.retrieved_unit_count,
                answer.retrieved_token_count,
                answer.prompt_token_count,
            ),
        )

    def assert_near(self, other: Said) -> None:
        """Asserts that another answer is the same but for rounding in the scores."""
        assert self.tokens == other.tokens
        assert self.seen == other.seen
        if len(set(self.scores)) == len(self.scores):  # else their order is a matter of rounding
            assert self.moments == other.moments
        assert self.scores == pytest.approx(other.scores, rel=1e-4, abs=1e-5)


Answers = dict[str, Said]


async def ask_all(client: LookbackClient, session_id: str, **when: Any) -> Answers:
    """Asks one question of every kind, one after the other.

    Args:
        client: of the service.
        session_id: whom to ask about.
        **when: `asked_at_s` and `before`; absent: now.
    """
    answers: Answers = {}
    for kind, (question, options) in KINDS.items():
        answer = await client.answer(session_id, question, **{**options, **when})
        if "asked_at_s" in when:
            assert answer.asked_at_s == when["asked_at_s"]
        for moment in answer.evidence:
            assert moment.start_s <= answer.evidence_until_s
        answers[kind] = Said.of(answer)
    return answers


_numbers = itertools.count()


def fresh_name(what: str) -> str:
    """Returns a name that no session has yet."""
    return f"{what}-{next(_numbers)}"
