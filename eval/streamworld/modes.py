"""What an answer may see, mode by mode: the service's retrieval and what it is compared with."""

from __future__ import annotations

from enum import Enum
from fractions import Fraction

import numpy as np

from eval.streamworld.exam import Question
from svc.client import RetrievalOptions


class Mode(Enum):
    """One way to choose the units in context; the value is the name in rows and tables."""

    RETRIEVAL = "retrieval"
    """What the service does: the newest unit, and the best units of every layer."""
    WINDOW = "window only"
    """The sliding window, as if nothing else had been kept."""
    RECENT = "recent frames only"
    """The newest units, as many as retrieval may have."""
    UNIFORM = "uniform"
    """Units spread evenly over the stream so far, the same number."""
    RANDOM = "random"
    """Units drawn at random, the same number."""
    ALL = "full attention"
    """Every unit so far."""
    EVIDENCE = "evidence only"
    """The units that hold the evidence: what retrieval could reach at best."""


def options_for(
    mode: Mode,
    question: Question,
    *,
    fps: Fraction,
    budget: int,
    window_units: int,
    rng: np.random.Generator,
) -> RetrievalOptions:
    """What a mode asks of the service for one question; unit k is the frame at k/fps.

    Args:
        mode: The mode.
        question: The question.
        fps: Frames and units a second.
        budget: Units in context for the modes that are limited.
        window_units: Units that the sliding window holds.
        rng: Source of the random mode's draws.
    """
    seen = int(question.asked_at_s * fps) + 1
    if mode is Mode.RETRIEVAL:
        return RetrievalOptions(unit_count=budget)
    if mode in (Mode.WINDOW, Mode.RECENT, Mode.ALL):
        count = {Mode.WINDOW: window_units, Mode.RECENT: budget, Mode.ALL: seen}[mode]
        return RetrievalOptions(unit_count=count, recent_unit_count=count)
    if mode is Mode.UNIFORM:
        units = np.unique(np.linspace(0, seen - 1, min(budget, seen)).round().astype(int))
    elif mode is Mode.RANDOM:
        units = np.sort(rng.choice(seen, min(budget, seen), replace=False))
    else:
        units = _evidence_units(question, fps)
    return RetrievalOptions(unit_indices=tuple(int(unit) for unit in units))


def _evidence_units(
    question: Question, fps: Fraction
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The units of the evidence; where nothing was seen, the newest one."""
    spans = question.evidence_s or ((question.asked_at_s, question.asked_at_s + float(1 / fps)),)
    return np.concatenate([np.arange(round(a * fps), round(b * fps)) for a, b in spans])
