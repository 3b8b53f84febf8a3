"""Figures of the curve `selection`, from its rows: what the ways to choose the units come to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from eval.streamworld.modes import Mode
from eval.streamworld.results_file import Row
from eval.streamworld.row_groups import Difference, by_question, difference, mean, median
from eval.streamworld.scenarios import PAST_KINDS
from eval.streamworld.summary import Share, share
from eval.streamworld.wording import NOW_KINDS, Kind

GROUPS: Mapping[str, tuple[Kind, ...]] = {
    "past": PAST_KINDS,
    "now": NOW_KINDS,
    "count": ("count",),
    "order": ("order",),
    "motion": ("motion",),
    "not seen": ("not_seen",),
}
"""Of questions; of those about what is not on screen, nothing is in the window any more."""
LENGTHS = (0, 128, 256, 512)
"""Least numbers of units that full attention is told apart by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeFigure:
    """Accuracy of one mode in one group."""

    mode: str
    group: str
    right: Share
    difference: Difference
    """Retrieval less this mode, over the questions that both answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthFigure:
    """Accuracy about the past by the number of units there were, where all are attended to."""

    least_units: int
    right: Share
    retrieval: Share
    """Of retrieval, on the same questions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFigure:
    """Share of the known spans of evidence that each layer read a unit of."""

    mode: str
    group: str
    layers: tuple[float, ...]
    """First to last."""
    any_layer: float
    asked: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WayFigure:
    """What one mode takes."""

    mode: str
    context_tokens: float
    """Mean tokens in context per layer."""
    ttft_s: float
    """Median time to the first token, with several questions asked together; nan: none."""
    quiet_ttft_s: float
    """The same of one question at a time, nothing else being done; nan: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """All of it; empty where the curve was not measured."""

    modes: tuple[ModeFigure, ...]
    lengths: tuple[LengthFigure, ...]
    layers: tuple[LayerFigure, ...]
    ways: tuple[WayFigure, ...]
    question_count: int
    stream_count: int

    def figure(self, mode: Mode, group: str) -> ModeFigure | None:
        """The accuracy of a mode in a group; None: not measured."""
        return next((f for f in self.modes if (f.mode, f.group) == (mode.value, group)), None)

    def as_json(self) -> dict[str, Any]:
        """Returns plain values; what was not measured is None."""
        groups = ("modes", "lengths", "layers", "ways")
        found = {name: [_json(figure) for figure in getattr(self, name)] for name in groups}
        return {"questions": self.question_count, "streams": self.stream_count, **found}


def selection_of(answers: Sequence[Row], alone: Sequence[Row]) -> Selection:
    """The figures of the curve's answers, and of the reference's questions that were alone."""
    return Selection(
        modes=tuple(_mode_figures(answers)),
        lengths=tuple(_length_figures(answers)),
        layers=tuple(_layer_figures(answers)),
        ways=tuple(_way_figures(answers, alone)),
        question_count=len(by_question(answers)),
        stream_count=len({row["stream"] for row in answers}),
    )


def _of(answers: Iterable[Row], mode: Mode, group: str) -> list[Row]:
    return [r for r in answers if r["mode"] == mode.value and r["kind"] in GROUPS[group]]


def _mode_figures(answers: Sequence[Row]) -> Iterable[ModeFigure]:
    for group in GROUPS:
        retrieval = _of(answers, Mode.RETRIEVAL, group)
        for mode in Mode:
            own = _of(answers, mode, group)
            if own:
                yield ModeFigure(
                    mode=mode.value,
                    group=group,
                    right=share(own),
                    difference=difference(retrieval, own),
                )


def _length_figures(answers: Sequence[Row]) -> Iterable[LengthFigure]:
    whole, retrieval = _of(answers, Mode.ALL, "past"), _of(answers, Mode.RETRIEVAL, "past")
    for least, most in zip(LENGTHS, (*LENGTHS[1:], math.inf), strict=True):
        own = [row for row in whole if least <= row["snapshot_units"] < most]
        asked = by_question(own)
        if own:
            same = (row for row in retrieval if (row["stream"], row["number"]) in asked)
            yield LengthFigure(least_units=least, right=share(own), retrieval=share(same))


def _layer_figures(answers: Sequence[Row]) -> Iterable[LayerFigure]:
    for group in GROUPS:
        for mode in (Mode.RETRIEVAL, Mode.UNIFORM):
            found = [r["layer_recall"] for r in _of(answers, mode, group) if r["layer_recall"]]
            # What is on screen is read by every layer: that tells nothing.
            if found and group != "now":
                *layers, any_layer = (mean(column) for column in zip(*found, strict=True))
                yield LayerFigure(
                    mode=mode.value,
                    group=group,
                    layers=tuple(layers),
                    any_layer=any_layer,
                    asked=len(found),
                )


def _way_figures(answers: Sequence[Row], alone: Sequence[Row]) -> Iterable[WayFigure]:
    for mode in Mode:
        own = [row for row in answers if row["mode"] == mode.value]
        quiet = [row for row in alone if row["mode"] == mode.value]
        if own or quiet:
            yield WayFigure(
                mode=mode.value,
                context_tokens=mean([row["tokens"] for row in own or quiet]),
                ttft_s=median([row["ttft_s"] for row in own]),
                quiet_ttft_s=median([row["ttft_s"] for row in quiet]),
            )


def _json(figure: Any) -> dict[str, Any]:
    found = {field.name: getattr(figure, field.name) for field in fields(figure)}
    for name, value in found.items():
        if isinstance(value, Share | Difference):
            found[name] = value.as_json()
        elif isinstance(value, float) and math.isnan(value):
            found[name] = None
    return found
