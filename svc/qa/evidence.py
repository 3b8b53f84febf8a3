"""The moments an answer rests on, or did without: spans of units made spans of the stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvstore.geometry import Tier
from kvstore.snapshot import Snapshot
from retrieval import fusion
from svc.engine.answer_result import AnswerResult
from svc.engine.losses import LostUnit


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceSpan:
    """One moment, [start_s, end_s)."""

    start_s: float
    end_s: float
    score: float
    """Share of all relevance that its units hold, in [0, 1]."""
    tier: Tier
    """The slowest tier its units were read from."""
    coarsened: bool
    """Whether a unit of it that was read had been thinned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LostSpan:
    """One moment that was chosen and could not be read, [start_s, end_s)."""

    start_s: float
    end_s: float
    first_unit_index: int
    unit_count: int
    unreadable: bool
    """Whether the disk refused; otherwise the bytes were not those that were written."""
    first_layer_index: int
    """The first layer that did without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoarsenedSpan:
    """One moment in the answer's context that had been thinned, [start_s, end_s)."""

    start_s: float
    end_s: float
    first_unit_index: int
    unit_count: int
    token_count: int
    """That were left of its units."""
    whole_token_count: int
    """Of as many whole units."""


def coarsened_spans(
    result: AnswerResult,
    snapshot: Snapshot,
    *,
    token_counts: NDArray[np.int64],
    frame_period_s: float,
    tokens_per_unit: int,
) -> list[CoarsenedSpan]:
    """Returns what an answer used that had been thinned, in order of time; neighbours are one span.

    Args:
        result: the answer.
        snapshot: what it could see.
        token_counts: (snapshot units,): tokens of each unit as it was read last.
        frame_period_s: time between two sampled frames of the stream.
        tokens_per_unit: of a whole unit.
    """
    used = np.array(result.coarsened, np.int64)
    runs = np.split(used, np.flatnonzero(np.diff(used) > 1) + 1) if len(used) else []
    return [
        CoarsenedSpan(
            start_s=float(snapshot.first_pts_s[run[0]]),
            end_s=_end_s(snapshot, int(run[-1]) + 1, frame_period_s),
            first_unit_index=int(run[0]),
            unit_count=len(run),
            token_count=int(token_counts[run].sum()),
            whole_token_count=tokens_per_unit * len(run),
        )
        for run in runs
    ]


def lost_spans(
    lost: Sequence[LostUnit], snapshot: Snapshot, *, frame_period_s: float
) -> list[LostSpan]:
    """Returns what an answer lost, in order of time; neighbours lost alike are one span.

    Args:
        lost: ascending by unit.
        snapshot: what the answer could see.
        frame_period_s: time between two sampled frames of the stream.
    """
    runs: list[list[LostUnit]] = []
    for unit in lost:
        if runs and _lost_alike(runs[-1][-1], unit):
            runs[-1].append(unit)
        else:
            runs.append([unit])
    return [
        LostSpan(
            start_s=float(snapshot.first_pts_s[run[0].unit_index]),
            end_s=_end_s(snapshot, run[-1].unit_index + 1, frame_period_s),
            first_unit_index=run[0].unit_index,
            unit_count=len(run),
            unreadable=run[0].unreadable,
            first_layer_index=run[0].layer_index,
        )
        for run in runs
    ]


def _lost_alike(one: LostUnit, following: LostUnit) -> bool:
    return (
        one.unit_index + 1 == following.unit_index
        and one.unreadable == following.unreadable
        and one.layer_index == following.layer_index
    )


def evidence_spans(
    result: AnswerResult, snapshot: Snapshot, *, frame_period_s: float
) -> list[EvidenceSpan]:
    """Returns the answer's evidence, best first, at most five spans.

    A span ends one sampling period after its last frame, for so long that frame stood for the
    stream, but not after the next unit's first frame, where the snapshot has one.

    Args:
        result: the answer.
        snapshot: what it could see.
        frame_period_s: time between two sampled frames of the stream.
    """
    spans = fusion.spans(result.unit_scores, result.loaded, ~snapshot.gaps_before)
    coarsened = set(result.coarsened)
    return [
        EvidenceSpan(
            start_s=float(snapshot.first_pts_s[span.first_unit]),
            end_s=_end_s(snapshot, span.stop_unit, frame_period_s),
            score=span.score,
            tier=Tier.slowest([result.tiers[unit] for unit in _loaded_of(result, span)]),
            coarsened=not coarsened.isdisjoint(range(span.first_unit, span.stop_unit)),
        )
        for span in spans
    ]


def _loaded_of(result: AnswerResult, span: fusion.Span) -> Sequence[int]:
    units = np.arange(span.first_unit, span.stop_unit)
    loaded: list[int] = units[result.loaded[units]].tolist()
    return loaded


def _end_s(snapshot: Snapshot, stop_unit: int, frame_period_s: float) -> float:
    end_s = float(snapshot.last_pts_s[stop_unit - 1]) + frame_period_s
    if stop_unit < len(snapshot.first_pts_s):
        end_s = min(end_s, float(snapshot.first_pts_s[stop_unit]))
    return end_s
