"""`lookback bench ram`: recorded questions replayed through the policies of the RAM tier."""

from __future__ import annotations

import json
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from kvstore.arena import GUARANTEED_FRACTION
from kvstore.eviction import EvictionPolicy, FairShare, Fifo, Lru, NewestFirst, Place
from kvstore.s3fifo import S3Fifo
from svc.cli.bench.ram_trace import ENDED, EVENT, LEFT_HOT, READ, Recorder, Trace

TRACES = Path(__file__).parent / "traces"
SIZES = (0.05, 0.10, 0.25, 0.50)
"""Of the arena, as a share of all slices that left a hot tail."""
POLICIES: dict[str, Callable[[], EvictionPolicy]] = {
    "FIFO": Fifo,
    "LRU": Lru,
    "S3-FIFO": S3Fifo,
    "fair LRU": lambda: FairShare(Lru),
    "fair S3-FIFO": lambda: FairShare(S3Fifo),
}


def bench_ram(json_file: Path | None) -> None:
    """Replays every trace through every policy and prints the table."""
    console = Console()
    table = Table(
        title="hits of the RAM tier, by the share of all slices that fits: all reads / those of "
        "the session that fares worst"
    )
    table.add_column("trace")
    table.add_column("policy")
    for size in SIZES:
        table.add_column(f"{size:.0%}", justify="right")
    results = []
    for name, trace in all_traces():
        for policy, make in POLICIES.items():
            rates = [hit_rates(trace, make(), size) for size in SIZES]
            table.add_row(name, policy, *(f"{hits.all:.2f} / {hits.worst:.2f}" for hits in rates))
            by_size = {str(size): hits._asdict() for size, hits in zip(SIZES, rates, strict=True)}
            results.append({"trace": name, "policy": policy, "hit_rate": by_size})
        table.add_section()
    console.print(table)
    if json_file:
        json_file.write_text(json.dumps({"name": "ram", "results": results}, indent=1) + "\n")


def record_trace(root: Path, shm_dir: Path | None, path: Path) -> None:
    """Records what happens to the slices of a running service, until it is interrupted."""
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    trace = Recorder(root, shm_dir=shm_dir).record(stopping.is_set)
    trace.save(path)
    reads = int((trace.events["what"] == READ).sum())
    Console().print(f"{len(trace.events)} events, {reads} of them reads, to {path}")


def all_traces() -> Iterator[tuple[str, Trace]]:
    """The recorded traces, and what is made of them: (name, trace)."""
    for path in sorted(TRACES.glob("*.npz")):
        trace = Trace.load(path)
        yield path.stem, trace
        yield f"{path.stem} + scans (made)", with_scans(trace, every=100)
        yield f"{path.stem} + one asked most (made)", with_favourite(trace, session=0, times=4)


class HitRates(NamedTuple):
    """Shares of reads whose slice is in memory."""

    all: float
    worst: float
    """Of the session for which it is least."""


def hit_rates(trace: Trace, policy: EvictionPolicy, size: float) -> HitRates:
    """Replay a trace.

    What is read from the disk is in memory when the next question comes.

    Args:
        policy: for all but the newest units of live sessions.
        size: of the arena, as a share of all slices.
    """
    left = trace.events[trace.events["what"] == LEFT_HOT]
    capacity = int(len(np.unique(left[["session", "unit"]])) * trace.layer_count * size)
    arena = NewestFirst(policy, guaranteed_fraction=GUARANTEED_FRACTION)
    arena.resize(capacity)
    held: set[Place] = set()
    waiting: dict[Place, None] = {}
    question = 0
    hits: Counter[int] = Counter()
    reads: Counter[int] = Counter()

    def insert(place: Place, *, newest: bool) -> None:
        if place in held:
            return
        if len(held) >= capacity:
            held.discard(arena.evict())
        held.add(place)
        (arena.insert_newest if newest else arena.insert)(place)

    for what, session, unit, layer, asked in trace.events.tolist():
        if asked != question or what != READ:
            for place in waiting:
                insert(place, newest=False)
            waiting = {}
            question = asked
        if what == LEFT_HOT:
            for each in range(trace.layer_count):
                insert(Place(session, unit, each), newest=True)
        elif what == ENDED:
            arena.end(session)
        else:
            place = Place(session, unit, layer)
            reads[session] += 1
            if place in held:
                hits[session] += 1
                arena.touch(place)
            else:
                waiting[place] = None
    worst = min((hits[session] / count for session, count in reads.items()), default=0.0)
    return HitRates(hits.total() / max(1, reads.total()), worst)


def with_scans(trace: Trace, *, every: int) -> Trace:
    """The trace with a question after every so many that reads all units of a session once."""
    parts, start = [], 0
    questions = trace.events["question"]
    serial = int(questions.max()) + 1
    seen: dict[int, int] = {}
    boundaries = np.flatnonzero(np.diff(questions)) + 1
    for count, stop in enumerate(boundaries.tolist()):
        for event in trace.events[start:stop]:
            if event["what"] == LEFT_HOT:
                seen[int(event["session"])] = int(event["unit"]) + 1
        parts.append(trace.events[start:stop])
        start = stop
        if count % every == every - 1 and seen:
            session = sorted(seen)[count // every % len(seen)]
            scan = np.zeros(seen[session] * trace.layer_count, EVENT)
            scan["what"], scan["session"], scan["question"] = READ, session, serial
            scan["layer"], scan["unit"] = np.divmod(np.arange(len(scan)), seen[session])
            parts.append(scan)
            serial += 1
    return Trace(np.concatenate([*parts, trace.events[start:]]), trace.layer_count)


def with_favourite(trace: Trace, *, session: int, times: int) -> Trace:
    """The trace with every question about one session followed by others about random units.

    Nobody asks about the others any less, but they have to stand beside it.
    """
    rng = np.random.default_rng(0)
    parts, start = [], 0
    questions = trace.events["question"]
    serial = int(questions.max()) + 1
    newest = 0
    for stop in [*(np.flatnonzero(np.diff(questions)) + 1).tolist(), len(questions)]:
        part = trace.events[start:stop]
        parts.append(part)
        start = stop
        of_session = part[part["session"] == session]
        left = of_session[of_session["what"] == LEFT_HOT]
        newest = max(newest, int(left["unit"].max(initial=0)))
        reads = of_session[of_session["what"] == READ]
        for _ in range(times if len(reads) and newest else 0):
            more = reads.copy()
            more["unit"] = rng.integers(0, newest, len(more))
            more["question"] = serial
            parts.append(more)
            serial += 1
    return Trace(np.concatenate(parts), trace.layer_count)
