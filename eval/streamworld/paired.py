"""Tables of an ablation: each variant beside the base, paired by question.

Intervals are of the streams, from which questions come several at once: streams are drawn again,
not questions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DRAWS = 2000
_GROUPS = {
    "now_what": "now", "now_object": "now", "now_colour": "now", "now_scene": "now",
    "past_object": "past", "past_colour": "past", "past_scene": "past", "past_text": "past",
}  # fmt: skip
KINDS = ("now", "past", "motion", "count", "order", "not_seen")

Cells = dict[tuple[str, float, str], dict[int, list[tuple[str, float, float | None, float]]]]
"""(reduction, duration, variant) -> seed -> (kind, right, found, units) of each question."""


def cells(lines: Sequence[Mapping[str, Any]]) -> Cells:
    """Return the questions by what they were answered with."""
    found: Cells = defaultdict(dict)
    for line in lines:
        found[line["reduction"], line["duration_s"], line["variant"]][line["seed"]] = [
            (_GROUPS.get(q["kind"], q["kind"]), float(q["right"]), q["found"], q["units"])
            for q in line["questions"]
        ]
    return found


def paired_interval(
    differences: Sequence[NDArray[np.float64]], *, seed: int = 0
) -> tuple[float, float, float]:
    """Return mean, and the ends of its 95 % interval, of differences that come by stream."""
    sums = np.array([part.sum() for part in differences])
    counts = np.array([len(part) for part in differences])
    drawn = np.random.default_rng(seed).integers(len(sums), size=(_DRAWS, len(sums)))
    means = sums[drawn].sum(axis=1) / np.maximum(counts[drawn].sum(axis=1), 1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(sums.sum() / counts.sum()), float(low), float(high)


def table(lines: Sequence[Mapping[str, Any]], base: str) -> str:
    """Return text: for each reduction and duration a row a variant, a column a kind.

    A cell is the accuracy, and for others than the base the difference to it with its interval;
    `found` is the share of the evidence's spans that a layer read, for count and order.
    """
    found = cells(lines)
    text: list[str] = []
    for reduction, duration_s in dict.fromkeys(key[:2] for key in found):
        first = found[reduction, duration_s, base]
        counts = {kind: sum(q[0] == kind for qs in first.values() for q in qs) for kind in KINDS}
        head = " | ".join(f"{kind} ({counts[kind]})" for kind in KINDS)
        text.append(f"\n{reduction}, {duration_s:g} s, {len(first)} streams\n")
        text.append(f"| variant | {head} | found: count, order | units |")
        text.append("|---" * (len(KINDS) + 3) + "|")
        for (own_reduction, own_duration_s, variant), seeds in found.items():
            if (own_reduction, own_duration_s) != (reduction, duration_s):
                continue
            both = [seed for seed in seeds if seed in first]
            row = [
                _cell([(seeds[s], first[s]) for s in both], kind, variant == base) for kind in KINDS
            ]
            every = [q for seed in both for q in seeds[seed]]
            row.append(", ".join(_mean([q[2] for q in every if q[0] == k]) for k in KINDS[3:5]))
            row.append(_mean([q[3] for q in every]))
            text.append(f"| {variant} | " + " | ".join(row) + " |")
    return "\n".join(text)


def _cell(pairs: Sequence[tuple[Any, Any]], kind: str, is_base: bool) -> str:
    own = [np.array([q[1] for q in mine if q[0] == kind]) for mine, _ in pairs]
    accuracy = float(np.concatenate(own).mean())
    if is_base:
        return f"{accuracy:.3f}"
    theirs = [np.array([q[1] for q in other if q[0] == kind]) for _, other in pairs]
    mean, low, high = paired_interval([a - b for a, b in zip(own, theirs, strict=True)])
    return f"{accuracy:.3f} {mean:+.3f} [{low:+.2f}, {high:+.2f}]"


def _mean(values: Sequence[float | None]) -> str:
    given = [value for value in values if value is not None]
    return f"{np.mean(given):.2f}" if given else "-"
