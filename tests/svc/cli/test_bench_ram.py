"""The replay of reads: what is counted as a hit, and that the recorded trace is whole."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from kvstore.eviction import Fifo, Lru
from kvstore.geometry import Tier
from kvstore.readtrace import ReadTrace
from kvstore.s3fifo import S3Fifo
from svc.cli.bench.ram import TRACES, hit_rates, with_favourite, with_scans
from svc.cli.bench.ram_trace import ENDED, EVENT, LEFT_HOT, READ, Recorder, Trace
from tests.kvstore.samples import SESSION, append, open_writer


def made(reads: list[tuple[int, int]], units: int = 40) -> Trace:
    """One session of a layer, of which (question, unit) are read after it ended."""
    rows = [(LEFT_HOT, 0, unit, 0, 0) for unit in range(units)]
    rows += [(ENDED, 0, 0, 0, 0)]
    rows += [(READ, 0, unit, 0, question) for question, unit in reads]
    return Trace(np.array(rows, EVENT), 1)


def test_a_read_hits_when_its_slice_is_there_and_what_was_read_is_there_for_the_next() -> None:
    trace = made([(1, 39), (1, 0), (2, 0), (3, 1), (3, 1)])
    assert hit_rates(trace, Fifo(), 0.5) == (2 / 5, 2 / 5)
    assert hit_rates(trace, Lru(), 1.0) == (1, 1)


def test_scans_and_a_favourite_are_added_to_what_was_recorded() -> None:
    trace = made([(question, question % 5) for question in range(1, 30)])
    scanned = with_scans(trace, every=10)
    assert len(scanned.events) == len(trace.events) + 2 * 40
    again = with_favourite(trace, session=0, times=3)
    assert (again.events["what"] == READ).sum() == 4 * 29
    assert len(set(again.events["question"].tolist())) == 1 + 4 * 29


def test_the_recorded_trace_is_small_and_says_what_the_choice_of_the_policy_rests_on() -> None:
    (path,) = TRACES.glob("*.npz")
    assert path.stat().st_size < 500_000
    trace = Trace.load(path)
    assert len(np.unique(trace.events["session"])) >= 5
    assert len(np.unique(trace.events["question"])) > 1000
    ours, plain = hit_rates(trace, S3Fifo(), 0.05), hit_rates(trace, Fifo(), 0.05)
    assert ours.all > plain.all


def test_the_recorder_follows_what_readers_and_writers_put_into_shared_memory(
    tmp_path: Path,
) -> None:
    stopping = threading.Event()
    writer = open_writer(tmp_path)
    append(writer, 20)
    writer.flush()
    trace = ReadTrace.create(tmp_path, shm_dir=tmp_path)
    question = trace.question(SESSION)
    recorder = Recorder(tmp_path, shm_dir=tmp_path)
    found: list[Trace] = []
    thread = threading.Thread(target=lambda: found.append(recorder.record(stopping.is_set)))
    thread.start()
    writer.close()
    question.note(1, [3, 19], [Tier.DISK, Tier.HOT])
    stopping.set()
    thread.join()
    events = found[0].events
    assert events[events["what"] == READ][["unit", "layer"]].tolist() == [(3, 1)]
    assert events[events["what"] == LEFT_HOT]["unit"].tolist() == list(range(20))
    assert (events["what"] == ENDED).sum() == 1
    trace.close()
