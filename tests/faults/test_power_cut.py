"""A real file system that loses its power: ext4 on a loop device, shut down under a writer."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from kvstore.diskio import DiskIO
from kvstore.errors import KVStoreError
from kvstore.limits import BlockLimits
from kvstore.reader import SessionReader
from tests.faults.content import THINNING, append_if_room, is_right, open_for
from tests.faults.killed import DROPPING, FORK
from tests.faults.ledger import Ledger, Line
from tests.kvstore.samples import LIMITS, SESSION

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
_EXT4_IOC_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = struct.pack("I", 2)


class Loop:
    """An ext4 in a file."""

    def __init__(self, folder: Path) -> None:
        self.image = folder / "image"
        self.mounted = folder / "mounted"
        self.mounted.mkdir()
        with self.image.open("wb") as file:
            file.truncate(96 << 20)
        _run("mkfs.ext4", "-q", "-F", str(self.image))

    @contextmanager
    def mount(self) -> Iterator[Path]:
        """Mounted while the block lasts."""
        _run("mount", "-o", "loop", str(self.image), str(self.mounted))
        try:
            yield self.mounted
        finally:
            _run("umount", str(self.mounted))

    def cut_power(self) -> None:
        """What is not on the device by now, the journal included, will never be."""
        fd = os.open(self.mounted, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _EXT4_IOC_SHUTDOWN, _NO_LOG_FLUSH)
        finally:
            os.close(fd)


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError as error:
        pytest.skip(f"{command[0]} is not installed: {error}")
    except subprocess.CalledProcessError as error:
        if command[0] == "umount":
            raise
        pytest.skip(f"{' '.join(command)}: {error.stderr.decode().strip()}")


@pytest.fixture
def loop(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Loop:
    """An empty one; the test is skipped where this cannot be had."""
    (root / "boot-id").write_text("boot 0")
    monkeypatch.setattr("kvstore.control._BOOT_ID_PATH", root / "boot-id")
    if os.geteuid() != 0:
        pytest.skip("mounting a loop device needs root")
    loop = Loop(tmp_path)
    with loop.mount():
        try:
            loop.cut_power()
        except OSError as error:
            pytest.skip(f"this kernel does not shut an ext4 down: {error}")
    return loop


class _NeverSyncs(DiskIO):
    def fdatasync(self, fd: int) -> None:
        """Leaves it out."""

    def fsync(self, fd: int) -> None:
        """Leaves it out."""

    def fsync_folder(self, folder: Path) -> None:
        """Leaves it out."""


def _write(
    told: Connection, root: Path, shm: Path, life: int, limits: BlockLimits, io: DiskIO
) -> None:
    writer = open_for(root, limits, io=io, shm_dir=shm)
    told.send(writer.durable_unit_count)
    while True:
        append_if_room(writer, life)
        told.send(writer.durable_unit_count)


class _Losing:
    """A session over power cuts."""

    def __init__(
        self, loop: Loop, shm: Path, limits: BlockLimits, line: Line, io: DiskIO | None = None
    ) -> None:
        self._loop, self._shm, self._limits, self._line = loop, shm, limits, line
        self._io = io or DiskIO()
        self._salts: list[int] = []
        self._acknowledged = 0
        self._boot_id = shm / "boot-id"

    def _boot(self, life: int) -> None:
        """A machine that comes back has another boot id, and nothing is left in its memory."""
        for path in self._shm.iterdir():
            path.unlink()
        self._boot_id.write_text(f"boot {life}")

    def cut(self, life: int, rng: random.Random) -> None:
        """Write, lose power, come back and look."""
        with self._loop.mount() as root:
            self._lose_power(root, life, rng)
        self._boot(life)
        with self._loop.mount() as root:
            self._check(root, life)

    def _lose_power(self, root: Path, life: int, rng: random.Random) -> None:
        ours, theirs = FORK.Pipe(duplex=False)
        arguments = (theirs, root, self._shm, life, self._limits, self._io)
        process = FORK.Process(target=_write, args=arguments, daemon=True)
        process.start()
        assert process.pid is not None
        theirs.close()
        told = [ours.recv() for _ in range(rng.randrange(1, 60))]
        # Stopped before the cut: a sync that races with the shutdown may return as if it was done.
        os.kill(process.pid, signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        self._loop.cut_power()
        process.kill()
        process.join()
        try:
            while True:
                told.append(ours.recv())
        except EOFError:
            ours.close()
        assert self._acknowledged <= told[0] <= len(self._salts), "an acknowledged unit was lost"
        self._line.acknowledged_count += told[-1] - self._acknowledged
        self._acknowledged = told[-1]
        self._salts[told[0] :] = [life] * (told[-1] + 200 - told[0])

    def _check(self, root: Path, life: int) -> None:
        reader = SessionReader.open(root, SESSION)
        try:
            snapshot = reader.snapshot()
            lost = self._acknowledged - snapshot.durable_unit_count
            assert lost <= 0, f"{lost} acknowledged units were lost"
            for index in range(snapshot.first_unit, snapshot.unit_count):
                assert is_right(reader, snapshot, index, salt=self._salts[index])
                self._line.checked_count += 1
        finally:
            reader.close()
        self._line.fault_count += 1


@pytest.mark.parametrize(
    ("what", "limits"), [("plain", LIMITS), ("dropping", DROPPING), ("thinning", THINNING)]
)
def test_a_power_cut_of_a_real_file_system_loses_nothing_acknowledged(
    ledger: Ledger, loop: Loop, root: Path, what: str, limits: BlockLimits
) -> None:
    with ledger.line(f"power cut of an ext4 ({what})") as line:
        session = _Losing(loop, root, limits, line)
        for life in range(1, 51):
            session.cut(life, random.Random(life))


def test_a_store_that_never_syncs_loses_what_it_acknowledged(loop: Loop, root: Path) -> None:
    session = _Losing(loop, root, LIMITS, Line("mutant"), _NeverSyncs())

    def live() -> None:
        for life in range(1, 10):
            session.cut(life, random.Random(life))

    with pytest.raises((AssertionError, KVStoreError)):
        live()
