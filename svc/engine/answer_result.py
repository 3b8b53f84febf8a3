"""What an answer consists of, and what its evidence is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kvstore.geometry import Tier
from retrieval.fusion import softmax_mean
from svc.engine.losses import LostUnit

FinishReason = Literal["stop", "length", "choice", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerTimings:
    """Where the time went, in seconds, all from `AnswerEngine.start`."""

    ttft_s: float | None
    """To the first token, or to the chosen option; None when cancelled before."""
    total_s: float
    retrieval_s: float
    """Of the total: scoring, selecting and loading units, over all layers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AnswerResult:
    """A finished answer."""

    text: str
    token_ids: tuple[int, ...]
    """Every token that was decoded, an end-of-sequence token included; () for a choice."""
    finish_reason: FinishReason
    choice_index: int | None
    choice_log_likelihoods: tuple[float, ...]
    """Per choice: log-probability of all its tokens and of the end after them. Not divided by
    length: these are probabilities of complete answers, so they compare as they are."""

    layer_units: tuple[NDArray[np.int64], ...]
    """Per layer the units in its context, ascending; fewer layers when cancelled early."""
    layer_scores: tuple[NDArray[np.floating], ...]
    """Per layer (snapshot units,): the retrieval scores, in a conversation of all its searches
    together; fewer layers when cancelled early."""
    score_scale: float
    """What they are multiplied by before a softmax."""
    tiers: Mapping[int, Tier]
    """Slowest tier each loaded unit was read from."""
    coarsened: tuple[int, ...]
    """Units that some layer read after they had lost tokens to make room, ascending."""
    lost: tuple[LostUnit, ...]
    """Units that were chosen and could not be read, in order of time."""
    context_unit_count: int
    """Units of the layer that has most."""
    context_token_count: int
    """Tokens of units of the layer that has most."""
    prompt_token_count: int
    """Tokens of prefix, units and question segment, in the layer that has most."""
    history_turn_count: int
    """Earlier turns of the conversation that were before the question: of those asked with, the
    newest that fit."""
    snapshot_unit_count: int
    timings: AnswerTimings

    @cached_property
    def unit_scores(self) -> NDArray[np.float64]:
        """(snapshot units,): mean over the layers of the softmax retrieval score; sums to 1.
        Empty when cancelled early.

        Worked out when it is asked for, by whoever does: it takes the longer the older the stream,
        and neither the first token nor others in the same row are to wait for it.
        """
        if not self.layer_scores:
            return np.empty(0, np.float64)
        return softmax_mean(self.layer_scores, self.score_scale)

    @property
    def loaded(self) -> NDArray[np.bool_]:
        """(snapshot units,): whether some layer read the unit; what evidence may name."""
        loaded = np.zeros(self.snapshot_unit_count, np.bool_)
        for units in self.layer_units:
            loaded[units] = True
        return loaded

    def __repr__(self) -> str:
        return (
            f"AnswerResult(text={self.text!r}, finish_reason={self.finish_reason!r}, "
            f"tokens={len(self.token_ids)}, context_units={self.context_unit_count})"
        )
