"""What can be asked, and the limits of it: the one place where they are stated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from retrieval.query import Pooling
from svc.engine.errors import EngineError

Retrieval = Literal["per_layer", "shared", "agreed"]


class RequestError(EngineError):
    """A field of the question is outside what is allowed; asking differently may work."""

    def __init__(self, field: str, given: object, allowed: str) -> None:
        super().__init__(f"{field} must be {allowed}, got {given!r}")
        self.field = field
        self.given = given
        self.allowed = allowed


class NothingVisibleError(EngineError):
    """The snapshot holds no unit, so there is nothing to answer from yet."""

    def __init__(self) -> None:
        super().__init__("the snapshot holds no unit: nothing of the stream is visible yet")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLimits:
    """What one question may ask for. Beyond the model's own limit on positions."""

    max_question_tokens: int = 4096
    """Tokens of the question segment: template, history and question. A question that takes more
    by itself is refused; turns that do not fit before it are left out, the oldest first."""
    max_history_turns: int = 32
    max_history_chars: int = 64_000
    """Characters of all turns together."""
    max_choices: int = 26
    max_choice_tokens: int = 256
    max_new_tokens: int = 4096
    max_units: int = 65_536
    max_lost_fraction: float = 0.5
    """Share of the units that a layer chose which an answer may go on without when they are
    damaged; beyond that it fails."""
    max_stop_strings: int = 16
    max_stop_string_chars: int = 200
    min_temperature: float = 0.01
    """Of sampling; 0 is allowed too, and greedy. Far below, logits divided by it overflow."""
    max_temperature: float = 10.0
    min_repetition_penalty: float = 0.01
    max_repetition_penalty: float = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRequest:
    """One question about a snapshot. None takes the model's own generation settings."""

    question: str
    history: tuple[tuple[str, str], ...] = ()
    """Earlier (question, answer) turns of the conversation, oldest first. None may tell of what the
    snapshot does not hold."""
    choices: tuple[str, ...] = ()
    """Where given, the answer is the most likely of these, and nothing is decoded."""

    retrieval: Retrieval = "per_layer"
    """Who chooses: every layer as the question passes it; or all together, from a first pass over
    the recent units; or all together, from a first pass in which every layer chose."""
    pooling: Pooling = "mean"
    """How the question's tokens search."""
    unit_count: int = 8
    """Units in each layer's context, the recent ones included."""
    recent_unit_count: int = 1
    """Newest units, taken first and charged to the budget."""
    newest_whole: bool = True
    """Whether places that the newest unit lacks show what was last kept there; not where
    `unit_indices` say what is shown, nor where that is more than `token_count`."""
    repeats_searched: bool = False
    """Whether a past unit that kept a single token is searched for like the others. By default it
    stands behind them: it shows what the unit before it shows, and ten of one still moment would
    take the places of nine others."""
    token_count: int | None = None
    """Tokens of units in each layer's context; None: as many as the positions have room for."""
    unit_indices: tuple[int, ...] = ()
    """Where given, exactly these units in every layer, in place of retrieval; ascending."""

    max_new_tokens: int = 64
    temperature: float | None = None
    """0 is greedy; above, sampled."""
    top_k: int | None = None
    """0 considers all tokens."""
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    """Of sampling; None draws a fresh one."""
    stop: tuple[str, ...] = ()
    """The answer ends with the token that completes one of these; the text includes it."""
    ignore_eos: bool = False

    def check(self, limits: AnswerLimits) -> None:
        """Raise RequestError at the first field that is outside what is allowed."""
        _check_count("history", len(self.history), 0, limits.max_history_turns)
        chars = sum(len(text) for turn in self.history for text in turn)
        _check_count("characters of history", chars, 0, limits.max_history_chars)
        _check_count("choices", len(self.choices), 0, limits.max_choices)
        _check_count("unit_count", self.unit_count, 1, limits.max_units)
        _check_count("recent_unit_count", self.recent_unit_count, 0, self.unit_count)
        _check_count("max_new_tokens", self.max_new_tokens, 1, limits.max_new_tokens)
        _check_count("stop", len(self.stop), 0, limits.max_stop_strings)
        for text in self.stop:
            _check_count("length of a stop string", len(text), 1, limits.max_stop_string_chars)
        if self.retrieval not in get_args(Retrieval):
            raise RequestError("retrieval", self.retrieval, f"one of {get_args(Retrieval)}")
        if self.token_count is not None and self.token_count < 1:
            raise RequestError("token_count", self.token_count, ">= 1")
        if self.top_k is not None and self.top_k < 0:
            raise RequestError("top_k", self.top_k, ">= 0")
        if self.temperature != 0.0:
            lowest, highest = limits.min_temperature, limits.max_temperature
            _check_number("temperature", self.temperature, lowest, highest, also="0, or ")
        _check_number("top_p", self.top_p, math.ulp(0.0), 1.0)
        _check_number(
            "repetition_penalty",
            self.repetition_penalty,
            limits.min_repetition_penalty,
            limits.max_repetition_penalty,
        )
        self._check_unit_indices(limits)

    def _check_unit_indices(self, limits: AnswerLimits) -> None:
        _check_count("unit_indices", len(self.unit_indices), 0, limits.max_units)
        if any(b <= a for a, b in zip(self.unit_indices, self.unit_indices[1:], strict=False)):
            raise RequestError("unit_indices", self.unit_indices, "ascending, none twice")


def _check_count(field: str, given: int, lowest: int, highest: int) -> None:
    if not lowest <= given <= highest:
        raise RequestError(field, given, f"in [{lowest}, {highest}]")


def _check_number(
    field: str, given: float | None, lowest: float, highest: float, *, also: str = ""
) -> None:
    if given is not None and not lowest <= given <= highest:
        raise RequestError(field, given, f"{also}in [{lowest:g}, {highest:g}]")
