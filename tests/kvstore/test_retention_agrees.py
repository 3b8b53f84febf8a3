"""What goes of a session is the same, whether its writer lets it go or a sweep once it is idle."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore import freeing, trimming
from kvstore.budget import DiskBudget
from kvstore.errors import StoreFullError
from kvstore.paths import session_folder
from kvstore.retention import aged, counts_to_free, droppable, pin_check
from kvstore.space import Shortage
from kvstore.trimming import drop_front, stored_segments
from tests.kvstore.samples import FAST_FOLDER, LIMITS, SESSION, open_writer, sample

_LIMITS = replace(
    LIMITS,
    block_tokens=8,
    segment_bytes=16 * 1024,
    preallocate_bytes=4096,
    budget=DiskBudget(session_bytes=1 << 30, on_full="drop_oldest"),
)
_NOW_S = 1.7e9
TIMES = st.floats(0, 400)


@st.composite
def _streams(draw: st.DrawFn) -> list[tuple[float, float, float]]:
    """Per unit its first and last time, and when it was written: with holes, and a wild clock."""
    time_s, units = 0.0, []
    for _ in range(draw(st.integers(4, 16))):
        time_s += draw(st.sampled_from([1.0, 5.0, 40.0]))
        units.append((time_s, time_s + 0.5, _NOW_S - 400 + draw(TIMES)))
        time_s += 0.5
    return units


class _Case:
    """A stored session, the rules, and both ways to let go of something of it."""

    def __init__(
        self, root: Path, pins: list[tuple[float, float]], keep_tokens: int, retain_s: float
    ) -> None:
        self._root = root
        self._pins = pins
        self._limits = replace(_LIMITS, keep_tokens=keep_tokens, retain_s=retain_s)

    def fill(self, units: list[tuple[float, float, float]]) -> None:
        """Write the session."""
        writer = open_writer(self._root, limits=_LIMITS)
        for index, (first_s, last_s, written_s) in enumerate(units):
            unit, keys, values = sample(index)
            with mock.patch("kvstore.blocklog.time.time", return_value=written_s):
                writer.append(
                    replace(unit, first_pts_s=first_s, last_pts_s=last_s), keys, values, resume=b""
                )
                writer.publish()
                writer.flush()
        writer.close()

    @contextmanager
    def _copy(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=FAST_FOLDER) as folder:
            shutil.copytree(self._root, folder, dirs_exist_ok=True)
            yield Path(folder)

    def live(self, let_go: Callable[[freeing.Freeing], object]) -> list[int]:
        """The segments that are left after a writer let go."""
        with self._copy() as root:
            writer = open_writer(root, limits=self._limits, pinned=lambda: self._pins)
            with mock.patch("kvstore.freeing.time.time", return_value=_NOW_S):
                let_go(writer._log._freeing)
            writer.close()
            return [segment.number for segment in stored_segments(root, SESSION)]

    def swept(
        self,
        decide: Callable[[list[trimming.StoredSegment], Callable[..., bool]], int],
    ) -> list[int]:
        """The segments that are left after a sweep let go of as many as were decided on."""
        with self._copy() as root:
            segments = stored_segments(root, SESSION)
            folder = session_folder(root, SESSION)
            is_pinned = pin_check(folder, lambda: self._pins, on_damage=lambda *damage: None)
            count = decide(segments, is_pinned)
            before = segments[count].number if count else segments[0].number
            drop_front(
                root,
                SESSION,
                before_segment=before,
                keep_tokens=self._limits.keep_tokens,
                pinned=lambda: self._pins,
            )
            return [segment.number for segment in stored_segments(root, SESSION)]

    def by_age(self) -> tuple[list[int], list[int]]:
        """What is left, live and swept, of what is not too old."""
        newest_s = stored_segments(self._root, SESSION)[-1].last_pts_s
        return (
            self.live(lambda each: each.drop_expired(newest_s)),
            self.swept(
                lambda segments, is_pinned: len(
                    aged(
                        segments,
                        is_pinned=is_pinned,
                        newest_pts_s=newest_s,
                        now_unix_s=_NOW_S,
                        keep_tokens=self._limits.keep_tokens,
                        retain_s=self._limits.retain_s,
                    )
                )
            ),
        )

    def by_room(self, wanted_bytes: int) -> tuple[list[int], list[int]]:
        """What is left, live and swept, when so many bytes are short."""
        shortage = Shortage(
            error=StoreFullError(self._root, 0, 0, 0), excess_bytes=wanted_bytes, spare_bytes=0
        )

        def decide(segments: list[trimming.StoredSegment], is_pinned: Callable[..., bool]) -> int:
            may_go = droppable(segments, keep_tokens=self._limits.keep_tokens, is_pinned=is_pinned)
            return counts_to_free([may_go], wanted_bytes, lambda each: each.disk_bytes)[0]

        return self.live(lambda each: each._drop_oldest(shortage)), self.swept(decide)


STATES = {
    "units": _streams(),
    "pins": st.lists(st.tuples(TIMES, st.floats(0.01, 30)), max_size=2),
    "keep_tokens": st.integers(0, 60),
    "retain_s": st.sampled_from([1.0, 60.0, 300.0]),
    "wanted_bytes": st.integers(1, 200_000),
}


def _agree(
    units: list[tuple[float, float, float]],
    pins: list[tuple[float, float]],
    keep_tokens: int,
    retain_s: float,
    wanted_bytes: int,
) -> None:
    with tempfile.TemporaryDirectory(dir=FAST_FOLDER) as folder:
        spans = [(start_s, start_s + length_s) for start_s, length_s in pins]
        case = _Case(Path(folder), spans, keep_tokens, retain_s)
        case.fill(units)
        live, swept = case.by_age()
        assert live == swept
        live, swept = case.by_room(wanted_bytes)
        assert live == swept
        live, _ = case.by_room(1 << 40)
        assert live == case.swept(lambda segments, _: len(segments) - 1)


@given(**STATES)
@settings(max_examples=40, deadline=None)
def test_a_writer_and_a_sweep_let_go_of_the_same(**state: object) -> None:
    _agree(**state)  # type: ignore[arg-type]
