"""Processes that are killed with kill -9, and what must be left of a session afterwards."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path

from kvstore.budget import DiskBudget
from kvstore.limits import BlockLimits
from kvstore.reader import SessionReader
from tests.faults.content import append_if_room, is_right, open_for
from tests.faults.ledger import Line
from tests.kvstore.samples import LIMITS, SESSION

FORK = multiprocessing.get_context("fork")
DROPPING = replace(
    LIMITS,
    budget=DiskBudget(session_bytes=600 * 1024, on_full="drop_oldest"),
    preallocate_bytes=4096,
)
ONE_BLOCK_SEGMENTS = replace(LIMITS, segment_bytes=4096, preallocate_bytes=4096)
"""Every commit makes a file."""
_OF_THE_SYSTEM = ("open", "os.", "fcntl.", "mmap.", "shutil.")


def die_at_call(number: int) -> None:
    """Kill this process at its so many-th call that opens, makes, renames or removes something.

    By Python's audit events, which come right before the call.
    """
    left = number

    def look(event: str, _: object) -> None:
        nonlocal left
        if event.startswith(_OF_THE_SYSTEM):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


class Child:
    """A process that tells counts until it is killed or has ended."""

    def __init__(self, target: Callable[..., None], *arguments: object) -> None:
        ours, theirs = FORK.Pipe(duplex=False)
        self._process = FORK.Process(target=target, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._told = ours

    def tells(self) -> int:
        """The next count. Raises EOFError when it has died."""
        count: int = self._told.recv()
        return count

    def end(self, *, by_kill: bool = True) -> list[int]:
        """Kill it (or wait for its end), and return what it had told and nobody heard yet."""
        if by_kill:
            self._process.kill()
        self._process.join()
        rest = []
        try:
            while True:
                rest.append(self.tells())
        except EOFError:
            self._told.close()
            return rest

    @property
    def was_killed(self) -> bool:
        """Whether it died by the signal."""
        return self._process.exitcode == -signal.SIGKILL


def _write(told: Connection, root: Path, life: int, limits: BlockLimits, dies_at: int) -> None:
    if dies_at:
        die_at_call(dies_at)
    rng = random.Random(life)
    writer = open_for(root, limits)
    told.send(writer.durable_unit_count)
    while True:
        append_if_room(writer, life, flushes=rng.random() < 0.3)
        told.send(writer.durable_unit_count)


@dataclass
class KilledSession:
    """A session whose writers are killed; knows what was acknowledged, and who wrote each unit."""

    root: Path
    limits: BlockLimits
    line: Line
    acknowledged: int = 0
    first_unit: int = 0
    salts: list[int] = field(default_factory=list)

    def kill_while_it_writes(self, life: int, rng: random.Random) -> None:
        """Let a writer append, and kill it from outside at any moment."""
        child = Child(_write, self.root, life, self.limits, 0)
        told = [child.tells() for _ in range(rng.randrange(1, 40))]
        self._check(life, told + child.end())

    def kill_at_a_call(self, life: int, number: int) -> None:
        """Kill a writer at a call: the first of them belong to its recovery."""
        child = Child(_write, self.root, life, self.limits, number)
        told = child.end(by_kill=False)
        assert child.was_killed
        self._check(life, told)

    def _check(self, life: int, told: list[int]) -> None:
        if told:
            assert self.acknowledged <= told[0] <= len(self.salts), "an acknowledged unit was lost"
            del self.salts[told[0] :]
            self.line.acknowledged_count += told[-1] - self.acknowledged
            self.acknowledged = told[-1]
        reader = SessionReader.open(self.root, SESSION)
        try:
            snapshot = reader.snapshot()
            assert snapshot.durable_unit_count >= self.acknowledged, "an acknowledged unit is lost"
            assert snapshot.first_unit >= self.first_unit, "a dropped unit came back"
            if not told:
                assert snapshot.unit_count <= len(self.salts), "units that nobody wrote"
            self.first_unit = snapshot.first_unit
            self.salts.extend([life] * (snapshot.unit_count - len(self.salts)))
            for index in range(snapshot.first_unit, snapshot.unit_count):
                right = is_right(reader, snapshot, index, salt=self.salts[index])
                assert right, f"unit {index} is not the one that was written"
                self.line.checked_count += 1
        finally:
            reader.close()
        # What this life wrote and did not tell may be there the next time, or not.
        self.salts.extend([life] * 200)
        self.line.fault_count += 1
