"""How soon a unit that was appended is seen by another process."""

from __future__ import annotations

import mmap
import multiprocessing
import statistics
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from kvstore.reader import SessionReader
from svc.cli.bench.store_session import SEVEN_B, UNIT_TOKENS, Noise, open_writer

_LOOK_EVERY_S = 0.0002
_PAUSE_S = 0.02
_WAIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Delays:
    """Medians over units, in ms, until another process has a snapshot with the unit."""

    appended_ms: float
    """From the end of `append`: `publish` comes next."""
    called_ms: float
    """From the call of `append`, which copies the unit, and first writes a block that is full."""
    word_ms: float
    """The same process, looking as often, sees a word in shared memory change."""


def measure_delays(root: Path, session_id: str, unit_count: int) -> Delays:
    """Appends units, 20 ms apart, while another process looks for them."""
    noise = Noise(SEVEN_B, UNIT_TOKENS)
    word_path = root / "word"
    word_path.write_bytes(bytes(mmap.PAGESIZE))
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    writer = open_writer(root, session_id)
    watcher = context.Process(target=_watch, args=(theirs, root, session_id, word_path, unit_count))
    watcher.start()
    theirs.close()
    try:
        _receive(ours)  # it is looking
        called_s, appended_s, stored_s = [], [], []
        with open(word_path, "r+b") as file, mmap.mmap(file.fileno(), mmap.PAGESIZE) as word:
            for index in range(unit_count):
                time.sleep(_PAUSE_S)
                stored_s.append(time.monotonic())
                word[:8] = (index + 1).to_bytes(8, "little")
                time.sleep(_PAUSE_S)
                called_s.append(time.monotonic())
                noise.append(writer, index)
                appended_s.append(time.monotonic())
                writer.publish()
        word_seen_s, unit_seen_s = _receive(ours)
    finally:
        writer.close()
        watcher.join(_WAIT_S)
        watcher.kill()
        word_path.unlink()
    return Delays(
        appended_ms=_median_ms(appended_s, unit_seen_s),
        called_ms=_median_ms(called_s, unit_seen_s),
        word_ms=_median_ms(stored_s, word_seen_s),
    )


def _median_ms(from_s: list[float], until_s: list[float]) -> float:
    delays_s = [until - start for start, until in zip(from_s, until_s, strict=True)]
    return 1000 * statistics.median(delays_s)


def _receive(connection: Connection) -> tuple[list[float], list[float]]:
    if not connection.poll(_WAIT_S):
        raise TimeoutError(f"the watching process said nothing for {_WAIT_S:g} s")
    received: tuple[list[float], list[float]] = connection.recv()
    return received


def _watch(
    connection: Connection, root: Path, session_id: str, word_path: Path, unit_count: int
) -> None:
    """The other process: notes when it first sees each word and each unit."""
    reader = SessionReader.open(root, session_id)
    word_seen_s: list[float] = []
    unit_seen_s: list[float] = []
    with open(word_path, "rb") as file:
        word = mmap.mmap(file.fileno(), mmap.PAGESIZE, prot=mmap.PROT_READ)
    reader.snapshot()
    connection.send(([], []))
    give_up_s = time.monotonic() + _WAIT_S
    while len(unit_seen_s) < unit_count and time.monotonic() < give_up_s:
        _note(word_seen_s, int.from_bytes(word[:8], "little"))
        _note(unit_seen_s, reader.snapshot().unit_count)
        time.sleep(_LOOK_EVERY_S)
    connection.send((word_seen_s, unit_seen_s))
    reader.close()


def _note(seen_s: list[float], count: int) -> None:
    while len(seen_s) < count:
        seen_s.append(time.monotonic())
