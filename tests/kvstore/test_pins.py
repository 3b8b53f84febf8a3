"""Pinned spans: a set of times, whatever the order in which spans come and go."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import threading
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from kvstore.errors import InvalidSpanError, SessionNotFoundError, TooManySpansError
from kvstore.pins import MAX_PINNED_SPANS, Span, pin, unpin
from kvstore.session import SessionRecord, change_session, create_session, load_session
from tests.kvstore.samples import SESSION

RECORD = SessionRecord(session_id=SESSION, created_unix_s=1.0, unit_period_s=1.0)
SPANS = st.tuples(st.integers(0, 40), st.integers(1, 8)).map(
    lambda each: (float(each[0]), float(each[0] + each[1]))
)
STEPS = st.lists(st.tuples(st.booleans(), SPANS), max_size=30)


@given(STEPS)
def test_what_is_pinned_is_what_was_pinned_and_not_unpinned_since(
    steps: list[tuple[bool, Span]],
) -> None:
    spans: tuple[Span, ...] = ()
    expected: set[int] = set()
    for pinning, span in steps:
        times = set(range(int(span[0]), int(span[1])))
        spans = pin(spans, span) if pinning else unpin(spans, span)
        expected = expected | times if pinning else expected - times
        held = {time for start, end in spans for time in range(int(start), int(end))}
        assert held == expected
        assert all(start < end for start, end in spans)
        assert all(one[1] < other[0] for one, other in itertools.pairwise(spans))


@pytest.mark.parametrize(
    "span",
    [
        (1.0, 1.0),
        (2.0, 1.0),
        (math.nan, 1.0),
        (0.0, math.nan),
        (-math.inf, 0.0),
        (0.0, math.inf),
        (0.0, 1.1e10),
        (-1.1e10, 0.0),
    ],
)
def test_a_span_that_cannot_be_is_refused(span: Span) -> None:
    for change in (pin, unpin):
        with pytest.raises(InvalidSpanError):
            change((), span)


def test_there_are_so_many_spans_and_no_more() -> None:
    spans: tuple[Span, ...] = ()
    for number in range(MAX_PINNED_SPANS):
        spans = pin(spans, (2.0 * number, 2.0 * number + 1))
    with pytest.raises(TooManySpansError):
        pin(spans, (-5.0, -4.0))
    with pytest.raises(TooManySpansError):
        unpin(spans, (0.25, 0.5))  # it cuts one into two
    assert len(pin(spans, (0.5, 2.5))) == MAX_PINNED_SPANS - 1
    assert len(unpin(spans, (0.0, 0.5))) == MAX_PINNED_SPANS


def test_pins_are_in_the_record_and_a_record_of_before_there_were_any_has_none(
    root: Path,
) -> None:
    create_session(root, dataclasses.replace(RECORD, pinned_spans=((1.0, 2.5),)))
    assert load_session(root, SESSION).pinned_spans == ((1.0, 2.5),)
    path = root / "sessions" / SESSION / "session.json"
    fields = json.loads(json.loads(path.read_bytes())["record"])
    del fields["pinned_spans"]
    content = json.dumps(fields)
    checksum = xxhash.xxh3_64_hexdigest(content.encode())
    path.write_text(json.dumps({"record": content, "xxh3": checksum}))
    assert load_session(root, SESSION).pinned_spans == ()


def test_changes_of_one_record_at_the_same_time_are_all_kept(root: Path) -> None:
    create_session(root, RECORD)

    def pin_some(number: int) -> None:
        for step in range(10):
            span = (100.0 * number + 2 * step, 100.0 * number + 2 * step + 1)
            change_session(
                root,
                SESSION,
                lambda record, span=span: dataclasses.replace(  # type: ignore[misc]
                    record, pinned_spans=pin(record.pinned_spans, span)
                ),
            )

    threads = [threading.Thread(target=pin_some, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(load_session(root, SESSION).pinned_spans) == 80
    with pytest.raises(SessionNotFoundError):
        change_session(root, "nobody", lambda record: record)
