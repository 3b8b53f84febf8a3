"""Tables of an ablation: each variant beside the base, paired by question.

Intervals are of streams, from which questions come several at once: streams are drawn again, not
questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

KINDS = ("now", "past", "motion", "count", "order", "not_seen")
_FOUND_KINDS = ("motion", "count", "order")
_DRAWS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one question."""

    kind: str
    """One of KINDS."""
    right: bool
    found: float | None
    """Share of the evidence's spans that a layer read a unit of; None without evidence."""
    units: float
    """In a layer's context."""


Streams = dict[tuple[float, int], list[Outcome]]
"""(duration, seed) -> outcomes, in the same order for every variant."""


def paired_interval(
    differences: Sequence[NDArray[np.float64]], *, seed: int = 0
) -> tuple[float, float, float]:
    """Return the mean of differences that come by stream, and the ends of its 95 % interval."""
    sums = np.array([part.sum() for part in differences])
    counts = np.array([len(part) for part in differences])
    drawn = np.random.default_rng(seed).integers(len(sums), size=(_DRAWS, len(sums)))
    means = sums[drawn].sum(axis=1) / np.maximum(counts[drawn].sum(axis=1), 1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(sums.sum() / counts.sum()), float(low), float(high)


def table(lines: Sequence[Mapping[str, Any]], base: str) -> str:
    """Return Markdown: for each reduction, by duration and over all, a row a variant.

    A cell is the accuracy; for others than the base also the difference to it, over the streams
    that both answered, and its interval.
    """
    text: list[str] = []
    for reduction in dict.fromkeys(line["reduction"] for line in lines):
        own = [line for line in lines if line["reduction"] == reduction]
        durations = sorted({float(line["duration_s"]) for line in own})
        text += [
            part
            for duration_s in durations
            for part in _rows(
                f"{reduction}, {duration_s:g} s",
                [line for line in own if line["duration_s"] == duration_s],
                base,
            )
        ]
        if len(durations) > 1:
            text += _rows(f"{reduction}, all", own, base)
    return "\n".join(text)


def _rows(title: str, lines: Sequence[Mapping[str, Any]], base: str) -> list[str]:
    variants = _by_variant(lines)
    first = variants.pop(base)
    head = " | ".join(f"{kind} ({len(_of(first, kind))})" for kind in KINDS)
    return [
        "",
        f"{title}, {len(first)} streams",
        "",
        f"| variant | {head} | found: {', '.join(_FOUND_KINDS)} | units |",
        "|---" * (len(KINDS) + 3) + "|",
        _row(base, first, None),
        *(_row(name, streams, first) for name, streams in variants.items()),
    ]


def _row(name: str, streams: Streams, base: Streams | None) -> str:
    cells = [_cell(streams, kind, base) for kind in KINDS]
    found = [
        [one.found for one in _of(streams, kind) if one.found is not None] for kind in _FOUND_KINDS
    ]
    cells.append(", ".join(f"{np.mean(values):.2f}" if values else "-" for values in found))
    cells.append(f"{np.mean([one.units for ones in streams.values() for one in ones]):.1f}")
    return f"| {name} | {' | '.join(cells)} |"


def _cell(streams: Streams, kind: str, base: Streams | None) -> str:
    ones = _of(streams, kind)
    if not ones:
        return "-"
    accuracy = f"{np.mean([one.right for one in ones]):.3f}"
    both = [] if base is None else [stream for stream in streams if stream in base]
    if base is None or not both:
        return accuracy
    differences = [_right(streams, each, kind) - _right(base, each, kind) for each in both]
    mean, low, high = paired_interval(differences)
    return f"{accuracy} {mean:+.3f} [{low:+.2f}, {high:+.2f}]"


def _right(streams: Streams, stream: tuple[float, int], kind: str) -> NDArray[np.float64]:
    return np.array([float(one.right) for one in streams[stream] if one.kind == kind])


def _of(streams: Streams, kind: str) -> list[Outcome]:
    return [one for ones in streams.values() for one in ones if one.kind == kind]


def _by_variant(lines: Sequence[Mapping[str, Any]]) -> dict[str, Streams]:
    variants: dict[str, Streams] = {}
    for line in lines:
        streams = variants.setdefault(line["variant"], {})
        streams[line["duration_s"], line["seed"]] = [
            Outcome(
                kind=_group(question["kind"]), right=question["right"],
                found=question["found"], units=question["units"],
            )
            for question in line["questions"]
        ]  # fmt: skip
    return variants


def _group(kind: str) -> str:
    return next((group for group in ("now", "past") if kind.startswith(group)), kind)
