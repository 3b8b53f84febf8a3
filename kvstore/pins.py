"""Spans of stream time that are pinned: what lies in them is never thinned, dropped or aged out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from kvstore.errors import InvalidSpanError, TooManySpansError

Span: TypeAlias = tuple[float, float]
"""[start_s, end_s) of stream time."""
PinsNow: TypeAlias = Callable[[], Sequence[Span]]
"""Tells what is pinned; asked anew whenever something is to go."""

MAX_PINNED_SPANS = 1000
"""Every drop looks all of them through."""
MAX_SPAN_TIME_S = 1e10
"""No frame's time is beyond it."""


def check_span(span: Span) -> None:
    """Raise unless a span can be one.

    Raises:
        InvalidSpanError: it is empty, not finite, or beyond all time.
    """
    start_s, end_s = span
    if not all(math.isfinite(time_s) for time_s in span):
        raise InvalidSpanError(start_s, end_s, "its times must be finite")
    if max(abs(start_s), abs(end_s)) > MAX_SPAN_TIME_S:
        rule = f"its times must lie within +-{MAX_SPAN_TIME_S:g}"
        raise InvalidSpanError(start_s, end_s, rule)
    if not start_s < end_s:
        raise InvalidSpanError(start_s, end_s, "its start must come before its end")


def pin(spans: Sequence[Span], added: Span) -> tuple[Span, ...]:
    """Return the spans with one more; those that touch become one.

    Args:
        spans: ascending and apart from each other, as every function here returns them.
        added: to be pinned.

    Raises:
        InvalidSpanError: `added` cannot be a span.
        TooManySpansError: there would be more than are allowed.
    """
    check_span(added)
    start_s, end_s = added
    apart = [span for span in spans if span[1] < start_s or end_s < span[0]]
    met = [span for span in spans if not (span[1] < start_s or end_s < span[0])]
    joined = (
        min([start_s, *(span[0] for span in met)]),
        max([end_s, *(span[1] for span in met)]),
    )
    return _limited(sorted([*apart, joined]))


def unpin(spans: Sequence[Span], removed: Span) -> tuple[Span, ...]:
    """Return what is left of the spans when one is unpinned; both ends of one it cuts stay.

    Raises:
        InvalidSpanError: `removed` cannot be a span.
        TooManySpansError: a cut would leave more than are allowed.
    """
    check_span(removed)
    left = [
        part
        for start_s, end_s in spans
        for part in ((start_s, min(end_s, removed[0])), (max(start_s, removed[1]), end_s))
        if part[0] < part[1]
    ]
    return _limited(left)


def touches(spans: Sequence[Span], first_pts_s: Any, last_pts_s: Any) -> np.ndarray[Any, Any]:
    """Which units, or runs of units, lie in a span, if only in part.

    Args:
        spans: half-open, in seconds.
        first_pts_s: (n,) or one; presentation time of the first frame of each.
        last_pts_s: as `first_pts_s`, of the last frame.

    Returns:
        (n,) bool.
    """
    first, last = np.atleast_1d(first_pts_s), np.atleast_1d(last_pts_s)
    touched = np.zeros(first.shape, np.bool_)
    for start, stop in spans:
        touched |= (first < stop) & (last >= start)
    return touched


def _limited(spans: Sequence[Span]) -> tuple[Span, ...]:
    if len(spans) > MAX_PINNED_SPANS:
        raise TooManySpansError(len(spans), MAX_PINNED_SPANS)
    return tuple(spans)
