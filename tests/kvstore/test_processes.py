"""What readers in other processes see, and what a kill leaves."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from kvstore.errors import SessionLockedError, SnapshotExpiredError
from kvstore.geometry import Tier
from kvstore.reader import SessionReader
from tests.kvstore.samples import SESSION, append, kill, open_writer, read_unit, sample, unit_is

FORK = multiprocessing.get_context("fork")


def in_process(target: Callable[..., None], *arguments: object) -> tuple[object, Connection]:
    """Start a process that talks over a connection."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def reader_process(connection: Connection, root: Path) -> None:
    """Answer each message with what a reader of this process sees."""
    reader = SessionReader.open(root, SESSION)
    while connection.recv() == "look":
        snapshot = reader.snapshot()
        count = snapshot.unit_count
        right = all(unit_is(reader, snapshot, index) for index in range(count))
        tiers = [read_unit(reader, snapshot, index, 0)[2].value for index in range(count)]
        connection.send((count, snapshot.durable_unit_count, right, tiers))


def test_another_process_sees_a_unit_when_it_is_visible_and_a_block_when_it_is_durable(
    root: Path,
) -> None:
    writer = open_writer(root)
    _, connection = in_process(reader_process, root)

    def look() -> tuple[int, int, bool, list[str]]:
        connection.send("look")
        assert connection.poll(30)
        seen: tuple[int, int, bool, list[str]] = connection.recv()
        return seen

    assert look() == (0, 0, True, [])
    append(writer, 1)
    assert look() == (1, 0, True, ["hot"])
    writer.flush()
    assert look() == (1, 1, True, ["hot"])
    append(writer, 80)
    count, durable, right, tiers = look()
    assert (count, durable, right) == (81, writer.durable_unit_count, True)
    assert set(tiers) == {"hot", "disk"}
    writer.close()
    # What was mapped stays readable; what never became durable is not shown any more.
    count, durable, right, tiers = look()
    assert (count, durable, right) == (writer.durable_unit_count,) * 2 + (True,)
    writer = open_writer(root)
    assert look()[:3] == (writer.durable_unit_count, writer.durable_unit_count, True)
    append(writer, 1)
    assert look()[0] == writer.durable_unit_count + 1
    connection.send("stop")
    writer.close()


def test_a_unit_that_was_appended_but_not_published_is_not_seen(root: Path) -> None:
    writer = open_writer(root)
    reader = SessionReader.open(root, SESSION)
    writer.append(*sample(0), resume=b"")
    assert reader.snapshot().unit_count == 0
    writer.publish()
    assert reader.snapshot().unit_count == 1
    writer.close()


def writing_process(connection: Connection, root: Path, life: int) -> None:
    """Append for ever; tell what was found, then every acknowledgement."""
    rng = random.Random(life)
    writer = open_writer(root)
    connection.send(writer.durable_unit_count)
    while True:
        append(writer, 1, salt=life)
        if rng.random() < 0.3:
            writer.flush()
        connection.send(writer.durable_unit_count)


def kill_again_and_again(root: Path, kill_count: int) -> int:
    """Kill writers at random moments and check what is left; return what was acknowledged."""
    rng = random.Random(kill_count)
    acknowledged = 0
    salts: list[int] = []
    for life in range(1, kill_count + 1):
        process, connection = in_process(writing_process, root, life)
        found = connection.recv()
        assert found >= acknowledged, "an acknowledged unit was lost"
        assert found <= len(salts) or life == 1
        del salts[found:]
        acknowledged = found
        for _ in range(rng.randrange(1, 40)):
            acknowledged = connection.recv()
        os.kill(process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        process.join()  # type: ignore[attr-defined]
        try:
            while True:
                acknowledged = connection.recv()
        except EOFError:
            pass
        reader = SessionReader.open(root, SESSION)
        snapshot = reader.snapshot()
        assert snapshot.durable_unit_count >= acknowledged
        salts.extend([life] * (snapshot.unit_count + 50 - len(salts)))
        first = 0 if life == kill_count else max(0, snapshot.unit_count - 100)
        for index in range(first, snapshot.unit_count):
            assert unit_is(reader, snapshot, index, salt=salts[index])
        reader.close()
    return acknowledged


def test_kill_9_loses_nothing_acknowledged(root: Path) -> None:
    assert kill_again_and_again(root, 15) > 50


@pytest.mark.slow
def test_kill_9_on_a_real_disk_loses_nothing_acknowledged(tmp_path: Path) -> None:
    assert kill_again_and_again(tmp_path, 160) > 500


def test_a_second_writer_is_refused_until_the_first_has_ended(root: Path) -> None:
    def second(connection: Connection) -> None:
        connection.recv()
        try:
            open_writer(root)
        except SessionLockedError:
            connection.send("refused")

    # Forked before the writer is there: a child that inherits the lock would share it.
    _, connection = in_process(second)
    writer = open_writer(root)
    connection.send("try")
    assert connection.poll(30)
    assert connection.recv() == "refused"
    with pytest.raises(SessionLockedError):
        open_writer(root)
    writer.close()
    open_writer(root).close()


def test_a_killed_writers_visible_units_stay_readable_until_the_next_writer(root: Path) -> None:
    writer = open_writer(root)
    append(writer, 3)
    writer.flush()
    append(writer, 1)
    kill(writer)
    reader = SessionReader.open(root, SESSION)
    old = reader.snapshot()
    assert (old.unit_count, old.durable_unit_count) == (4, 3)
    assert read_unit(reader, old, 3, 0)[2] is Tier.HOT
    successor = open_writer(root)
    new = reader.snapshot()
    assert (new.epoch, new.unit_count) == (old.epoch + 1, 3)
    append(successor, 1, salt=9)
    successor.flush()
    # The old snapshot still shows the old unit 3, never the new one.
    assert unit_is(reader, old, 3)
    assert unit_is(reader, reader.snapshot(), 3, salt=9)
    late = SessionReader.open(root, SESSION)
    late.snapshot()
    with pytest.raises(SnapshotExpiredError):
        # As a reader has it that could not map the dead writer's memory.
        read_unit(late, dataclasses.replace(old, hot_tail=None), 3, 0)
    successor.close()
