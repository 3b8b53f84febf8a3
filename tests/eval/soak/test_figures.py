"""When a soak says that memory and descriptors stay flat."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from eval.soak.figures import _process_rows
from eval.soak.sampling import Process, Sample
from svc.memory import Memory

_MIB = 2**20


def samples(
    anonymous_mib: Callable[[float], float], descriptors: Callable[[float], int]
) -> list[Sample]:
    """A hundred looks at an ingest process, by the fraction that was pushed."""
    return [
        Sample(
            at_s=2.0 * number,
            disk_bytes=0,
            shared_bytes=0,
            all_pushed=True,
            pushed_fraction=number / 100,
            processes={
                "ingest": Process(
                    pid=1,
                    memory=Memory(
                        anonymous=int(anonymous_mib(number / 100) * _MIB),
                        index_mapped=0,
                        hot_mapped=0,
                        ram_mapped=0,
                    ),
                    descriptor_count=descriptors(number / 100),
                    thread_count=9,
                )
            },
        )
        for number in range(101)
    ]


@pytest.mark.parametrize(
    ("anonymous_mib", "flat"),
    [
        (lambda _: 400.0, True),
        (lambda pushed: 300 + 200 * min(pushed, 0.5), True),  # full when the budgets are
        (lambda pushed: 300 + 200 * pushed, False),
        (lambda pushed: 400 + 100 * max(0.0, pushed - 0.5), False),
    ],
)
def test_memory_that_grows_behind_the_half_of_the_streams_is_told(
    anonymous_mib: Callable[[float], float], flat: bool
) -> None:
    memory = _process_rows("ingest", samples(anonymous_mib, lambda _: 80))[0]
    assert "anonymous memory" in memory.name
    assert memory.met is flat


@pytest.mark.parametrize(
    ("descriptors", "median_met", "most_met"),
    [
        (lambda pushed: 80 + int(pushed * 100) % 2, True, True),
        (lambda pushed: 88 if pushed == 0.9 else 80, True, True),  # open for a moment
        (lambda pushed: 180 if pushed == 0.9 else 80, True, False),
        (lambda pushed: 80 + int(pushed * 20), False, True),
    ],
)
def test_descriptors_that_stay_open_count_and_leaps_do(
    descriptors: Callable[[float], int], median_met: bool, most_met: bool
) -> None:
    rows = _process_rows("ingest", samples(lambda _: 400.0, descriptors))
    assert ["descriptors" in row.name for row in rows[:4]] == [False, True, True, False]
    assert (rows[1].met, rows[2].met) == (median_met, most_met)


def test_of_a_run_that_was_stopped_nothing_is_said() -> None:
    assert _process_rows("ingest", samples(lambda _: 400.0, lambda _: 80)[:70]) == []
