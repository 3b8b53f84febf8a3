"""Sessions that die again and again, and the promises that are checked after every death."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvstore.diskuse import used_bytes
from kvstore.errors import KVStoreError, StoreFullError, WriterFailedError
from kvstore.limits import BlockLimits
from kvstore.paths import session_folder
from kvstore.reader import SessionReader
from kvstore.snapshot import Snapshot
from kvstore.writer import SessionWriter
from tests.kvstore.samples import FAST_FOLDER, SESSION, append, kill, open_writer, unit_is
from tests.kvstore.simulated_disk import ProcessKilled, SimulatedDisk, SimulatedIO

PLAIN_LIMITS = BlockLimits(
    block_tokens=16,
    block_span_s=1e9,
    segment_bytes=100 * 1024,
    preallocate_bytes=16 * 1024,
    min_free_bytes=0,
)
MakeIO = Callable[[SimulatedDisk, random.Random], SimulatedIO]


class PromiseBrokenError(AssertionError):
    """The store lost, changed or resurrected something."""


@dataclass
class Tally:
    """What happened, so that a test can see that its faults were met."""

    lives: int = 0
    acknowledged: int = 0
    torn_tails: int = 0
    kept_unacknowledged: int = 0
    failed_writers: int = 0
    full_disks: int = 0
    dropped: int = 0
    thinned: int = 0


def faulty_io(disk: SimulatedDisk, rng: random.Random) -> SimulatedIO:
    """The faults of one life: death at some call, sometimes a failing sync or a full disk."""
    return SimulatedIO(
        disk,
        killed_at=rng.randrange(1, 60),
        sync_fails_at=rng.randrange(1, 40) if rng.random() < 0.2 else None,
        full_fraction=0.3 if rng.random() < 0.2 else 0.0,
    )


class SessionLives:
    """One session on one simulated disk."""

    def __init__(
        self,
        root: Path,
        seed: int,
        tally: Tally,
        make_io: MakeIO,
        limits: BlockLimits = PLAIN_LIMITS,
    ) -> None:
        self._limits = limits
        self._first_unit = 0
        self._root = root
        self._rng = random.Random(seed)
        self._disk = SimulatedDisk(self._rng)
        self._tally = tally
        self._make_io = make_io
        self._acknowledged = 0
        self._salts: list[int] = []
        """Which life wrote the last version of each unit."""

    def open(self, io: SimulatedIO) -> SessionWriter:
        """Open the writer of a life."""
        return open_writer(self._root, limits=self._limits, io=io)

    def append(self, writer: SessionWriter, life: int) -> None:
        """Append the next unit."""
        append(writer, 1, salt=life)

    def is_right(self, reader: SessionReader, snapshot: Snapshot, index: int, life: int) -> bool:
        """Whether a unit is what that life appended."""
        return unit_is(reader, snapshot, index, salt=life)

    def live(self, life: int) -> None:
        """Open, append until something kills the writer, lose power or not."""
        io = self._make_io(self._disk, self._rng)
        writer: SessionWriter | None = None
        try:
            writer = self.open(io)
            control = self._control()
            self._meet_recovery(writer)
            while True:
                self._append_some(writer, life)
        except ProcessKilled:
            pass
        except WriterFailedError:
            self._tally.failed_writers += 1
        except StoreFullError:
            # No room for the hot tail: not opened in this life, and nothing was touched.
            self._tally.full_disks += 1
        except OSError:
            # The disk failed during recovery: the session could not be opened in this life.
            self._tally.failed_writers += 1
        if writer is not None:
            kill(writer)
        if self._rng.random() < 0.6:
            self._disk.cut_power()
            if writer is not None and self._rng.random() < 0.5:
                # CTL is synced when a writer opens; later changes may not have reached the disk.
                self._control_path().write_bytes(control)
        self._tally.lives += 1

    def _append_some(self, writer: SessionWriter, life: int) -> None:
        try:
            index = writer.visible_unit_count
            # Units of one life differ from those of another: a resurrected one is recognised.
            self._salts[index:] = [life]
            self.append(writer, life)
            if self._rng.random() < 0.4:
                writer.flush()
        except StoreFullError:
            self._tally.full_disks += 1
        finally:
            self._acknowledge(writer.durable_unit_count)

    def _acknowledge(self, count: int) -> None:
        self._tally.acknowledged += max(count - self._acknowledged, 0)
        self._acknowledged = max(self._acknowledged, count)

    def _meet_recovery(self, writer: SessionWriter) -> None:
        recovery = writer.recovery
        self._tally.torn_tails += recovery.torn_bytes > 0
        count = recovery.durable_unit_count
        if count < self._acknowledged:
            raise PromiseBrokenError(f"{self._acknowledged} were acknowledged, {count} are left")
        if count > len(self._salts):
            raise PromiseBrokenError(f"{count} units, only {len(self._salts)} were ever written")
        self._tally.kept_unacknowledged += count - self._acknowledged
        del self._salts[count:]
        self._acknowledge(count)
        reader = SessionReader.open(self._root, SESSION)
        try:
            snapshot = reader.snapshot()
            if snapshot.unit_count != count:
                raise PromiseBrokenError(f"a reader sees {snapshot.unit_count} of {count} units")
            if snapshot.first_unit < self._first_unit:
                raise PromiseBrokenError(f"units came back that were dropped: {snapshot}")
            self._tally.dropped += snapshot.first_unit - self._first_unit
            self._first_unit = snapshot.first_unit
            self._tally.thinned += int(snapshot.coarsened.sum())
            used = used_bytes(session_folder(self._root, SESSION))
            if 0 < self._limits.budget.session_bytes < used:
                raise PromiseBrokenError(f"{used} bytes are used")
            for index in range(snapshot.first_unit, count):
                if not self.is_right(reader, snapshot, index, self._salts[index]):
                    raise PromiseBrokenError(f"unit {index} is not the one last written")
        finally:
            reader.close()

    def _control_path(self) -> Path:
        return self._root / "sessions" / SESSION / "CTL"

    def _control(self) -> bytes:
        return self._control_path().read_bytes()

    def end(self) -> None:
        """Open the session once more on a disk without faults."""
        writer = self.open(SimulatedIO(self._disk))
        self._meet_recovery(writer)
        writer.close()


def live_and_die(
    session_count: int,
    lives_each: int,
    *,
    first_seed: int = 0,
    make_io: MakeIO = faulty_io,
    limits: BlockLimits = PLAIN_LIMITS,
    kind: type[SessionLives] = SessionLives,
) -> Tally:
    """Run sessions through lives.

    Raises:
        PromiseBrokenError: the store broke a promise (also: it refuses to open its own leavings).
    """
    tally = Tally()
    for seed in range(first_seed, first_seed + session_count):
        with tempfile.TemporaryDirectory(dir=FAST_FOLDER) as folder:
            lives = kind(Path(folder), seed, tally, make_io, limits)
            try:
                for life in range(1, lives_each + 1):
                    lives.live(life)
                lives.end()
            except KVStoreError as error:
                raise PromiseBrokenError(f"seed {seed}: {error}") from error
            except PromiseBrokenError as error:
                raise PromiseBrokenError(f"seed {seed}: {error}") from error
    return tally
