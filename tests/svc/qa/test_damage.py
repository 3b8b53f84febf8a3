"""A byte turned over anywhere in a session: the answer is the same, says what it lost, or fails."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore.copies import StoreCopies
from kvstore.format import PAGE_BYTES
from kvstore.paths import session_hash
from kvstore.quarantine import quarantine_path, quarantined
from kvstore.reader import SessionReader
from kvstore.scan import scan_log
from lookback.v1 import question_pb2 as pb
from svc.engine.answer_request import AnswerRequest
from svc.engine.model import LoadedModel
from svc.qa.answerer import Answerer
from svc.qa.convert import Answered, Question, answer_message
from svc.qa.errors import translate
from svc.qa.sessions import SessionCache
from svc.rpc.errors import Reason
from tests.kvstore.damaging import AnyChecksum
from tests.svc.qa.service import LiveSession
from tests.svc.qa.test_answerer import Bench

SESSION = "door"
UNIT_COUNT = 6
UNIT, LAYER = 2, 1


@dataclass
class Damaged:
    """A finished session whose bytes can be turned over, and questions about it."""

    store: Path
    bench: Bench
    places: dict[str, tuple[Path, int]]
    copies: tuple[Path, ...] = ()
    """What is asked for what the store's disk cannot give."""

    def flip(self, place: str) -> None:
        path, offset = self.places[place]
        with path.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 0x20]))

    def ask(self, **fields: Any) -> pb.Answer | Reason:
        """Asks with nothing known of the session: the answer, or why there is none."""
        sessions = SessionCache(self.store, capacity=1, location=StoreCopies(self.copies))
        answerer = Answerer(
            model=self.bench.model,
            sessions=sessions,
            runner=self.bench.runner,
            threads=self.bench.threads,
        )
        options: dict[str, Any] = {
            "question": "What?",
            "max_new_tokens": 4,
            "temperature": 0.0,
            "ignore_eos": True,
            "unit_count": 4,
        }
        question = Question(
            session_id=SESSION,
            asked_at_s=None,
            cut="at_or_before",
            request=AnswerRequest(**(options | fields)),
        )

        async def answered() -> Answered:
            now_s = time.perf_counter()
            async for event in answerer.answer(question, arrived_s=now_s, deadline_s=now_s + 60.0):
                last = event
            assert isinstance(last, Answered)
            return last

        try:
            return answer_message(asyncio.run(answered())).answer
        except Exception as error:
            refusal = translate(error)
            if refusal is None:
                raise
            return refusal.reason
        finally:
            sessions.close()


@pytest.fixture
def damaged(tmp_path: Path, model: LoadedModel) -> Iterator[Damaged]:
    session = LiveSession(tmp_path, model, SESSION)
    session.push([float(second) for second in range(UNIT_COUNT)])
    session.finish()
    bench = Bench(tmp_path, model)
    yield Damaged(store=tmp_path, bench=bench, places=places(tmp_path))
    bench.runner.stop()
    bench.thread.join(20.0)
    bench.sessions.close()


def places(store: Path) -> dict[str, tuple[Path, int]]:
    """One byte of every kind of region."""
    folder = store / "sessions" / SESSION
    segment = folder / "seg-000000.kvs"
    block = scan_log(folder, SESSION, session_hash(SESSION)).blocks[0]
    assert block.header.first_unit <= UNIT < block.header.first_unit + block.header.unit_count
    table_stop = PAGE_BYTES + block.header.table_bytes
    reader = SessionReader.open(store, SESSION)
    snapshot, geometry = reader.snapshot(), reader.geometry
    assert geometry is not None
    shape = (int(snapshot.token_counts[UNIT]), geometry.kv_head_count, geometry.head_dim)
    keys, values = np.empty(shape, geometry.storage_dtype), np.empty(shape, geometry.storage_dtype)
    reader.read(snapshot, LAYER, [UNIT], keys, values)
    reader.close()
    data = segment.read_bytes()
    return {
        "segment header": (segment, 24),
        "block header": (segment, block.offset + 24),
        "unit table": (segment, block.offset + PAGE_BYTES + 8),
        "resume blob": (segment, block.offset + table_stop + block.header.thumbnail_bytes),
        "keys": (segment, data.index(keys.tobytes()) + 5),
        "values": (segment, data.index(values.tobytes()) + 5),
        "padding": (segment, block.stop - 1),
        "index row": (folder / "index.rows", PAGE_BYTES + 40),
        "record": (folder / "session.json", 40),
    }


def assert_said(answer: pb.Answer | Reason, reason: pb.LostEvidence.Reason) -> None:
    assert isinstance(answer, pb.Answer)
    (lost,) = answer.evidence_lost
    assert (lost.first_unit_index, lost.unit_count) == (UNIT, 1)
    assert (lost.start_s, lost.end_s) == (float(UNIT), float(UNIT + 1))
    assert (lost.reason, lost.first_layer_index) == (reason, LAYER)


def everything(**fields: Any) -> dict[str, Any]:
    """A question that every layer reads all units for."""
    return {"unit_count": UNIT_COUNT, **fields}


@pytest.mark.parametrize("place", ["keys", "values"])
def test_a_damaged_slice_is_left_out_and_said_once_and_again(damaged: Damaged, place: str) -> None:
    whole = damaged.ask(**everything())
    assert isinstance(whole, pb.Answer)
    assert not whole.evidence_lost
    damaged.flip(place)
    first = damaged.ask(**everything())
    assert_said(first, pb.LostEvidence.REASON_CHECKSUM)
    (known,) = quarantined(damaged.store, SESSION)
    assert (known.unit_index, known.layer_index) == (UNIT, LAYER)
    before = quarantine_path(damaged.store, SESSION).read_bytes()
    again = damaged.ask(**everything())
    assert isinstance(first, pb.Answer)
    assert isinstance(again, pb.Answer)
    assert (again.text, again.evidence_lost) == (first.text, first.evidence_lost)
    assert quarantine_path(damaged.store, SESSION).read_bytes() == before
    damaged.flip(place)
    healed = damaged.ask(**everything())
    assert isinstance(healed, pb.Answer)
    assert (healed.text, len(healed.evidence_lost)) == (whole.text, 0)


@pytest.mark.parametrize(
    "place", ["segment header", "block header", "unit table", "keys", "values", "segment"]
)
def test_with_a_good_copy_the_answer_is_that_of_the_undamaged_store(
    damaged: Damaged, place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = damaged.ask(**everything())
    copy = tmp_path / "copy"
    shutil.copytree(damaged.store / "sessions", copy / "sessions")
    if place == "segment":
        damaged.places["keys"][0].unlink()
    else:
        damaged.flip(place)
    without = damaged.ask(**everything())
    assert isinstance(without, Reason) or without.evidence_lost
    shutil.rmtree(damaged.store / "quarantine", ignore_errors=True)
    damaged.copies = (tmp_path / "absent", copy)
    caplog.clear()
    for _ in range(2):
        answer = damaged.ask(**everything())
        assert isinstance(whole, pb.Answer)
        assert isinstance(answer, pb.Answer)
        assert not answer.evidence_lost
        assert (answer.text, answer.evidence) == (whole.text, whole.evidence)
    assert any(record.levelno == logging.ERROR for record in caplog.records)  # told all the same
    if place in ("keys", "values"):
        assert [each.unit_index for each in quarantined(damaged.store, SESSION)] == [UNIT]


def test_with_a_copy_that_is_damaged_too_the_answer_says_what_it_lost(
    damaged: Damaged, tmp_path: Path
) -> None:
    damaged.flip("keys")
    copy = tmp_path / "copy"
    shutil.copytree(damaged.store / "sessions", copy / "sessions")
    damaged.copies = (copy,)
    assert_said(damaged.ask(**everything()), pb.LostEvidence.REASON_CHECKSUM)


@pytest.mark.parametrize("mode", ["per_layer", "shared"])
def test_an_answer_from_elsewhere_is_as_it_was(damaged: Damaged, mode: str) -> None:
    damaged.flip("keys")
    fields: dict[str, Any] = {"retrieval": mode, "unit_count": 1, "recent_unit_count": 1}
    answer = damaged.ask(**fields)
    assert isinstance(answer, pb.Answer)
    assert not answer.evidence_lost


def test_without_checksums_the_damage_would_be_served(
    damaged: Damaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged.flip("keys")
    monkeypatch.setattr("kvstore.extents.kv_checksum", lambda *arrays: AnyChecksum())
    with pytest.raises((AssertionError, ValueError)):
        assert_said(damaged.ask(**everything()), pb.LostEvidence.REASON_CHECKSUM)


def test_a_slice_that_the_disk_refuses_is_left_out_and_said(
    damaged: Damaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, bad = damaged.places["values"]
    preadv = os.preadv

    def failing(fd: int, buffers: Any, offset: int) -> int:
        stop = offset + sum(memoryview(buffer).nbytes for buffer in buffers)
        if offset <= bad < stop and os.readlink(f"/proc/self/fd/{fd}") == str(path):
            raise OSError(errno.EIO, "Input/output error")
        return preadv(fd, buffers, offset)

    monkeypatch.setattr("os.preadv", failing)
    assert_said(damaged.ask(**everything()), pb.LostEvidence.REASON_UNREADABLE)


@pytest.mark.parametrize("place", ["resume blob", "padding"])
def test_what_no_answer_reads_changes_no_answer(damaged: Damaged, place: str) -> None:
    whole = damaged.ask(**everything())
    damaged.flip(place)
    answer = damaged.ask(**everything())
    assert isinstance(whole, pb.Answer)
    assert isinstance(answer, pb.Answer)
    assert (answer.text, len(answer.evidence_lost)) == (whole.text, 0)


@pytest.mark.parametrize(
    "place", ["segment header", "block header", "unit table", "index row", "record"]
)
def test_damage_to_what_tells_units_apart_refuses_the_question(
    damaged: Damaged, place: str
) -> None:
    damaged.flip(place)
    assert damaged.ask() is Reason.STORE_DAMAGED


def test_a_question_that_would_rest_on_nothing_but_damage_is_refused(damaged: Damaged) -> None:
    damaged.flip("keys")
    assert damaged.ask(unit_indices=(UNIT,)) is Reason.STORE_DAMAGED
    assert_said(damaged.ask(unit_indices=(0, UNIT)), pb.LostEvidence.REASON_CHECKSUM)


def test_a_unit_damaged_in_shared_memory_is_left_out_and_comes_back(
    tmp_path: Path, model: LoadedModel
) -> None:
    session = LiveSession(tmp_path, model, SESSION)
    session.push([0.0, 1.0])
    bench = Bench(tmp_path, model)
    subject = Damaged(store=tmp_path, bench=bench, places={})
    whole = subject.ask(unit_indices=(0, 1))
    reader = SessionReader.open(tmp_path, SESSION)
    snapshot, geometry = reader.snapshot(), reader.geometry
    assert geometry is not None
    shape = (int(snapshot.token_counts[1]), geometry.kv_head_count, geometry.head_dim)
    keys, values = np.empty(shape, geometry.storage_dtype), np.empty(shape, geometry.storage_dtype)
    reader.read(snapshot, LAYER, [1], keys, values)
    hot = session.hot_tail_path
    subject.places["hot"] = (hot, hot.read_bytes().index(keys.tobytes()) + 5)
    subject.flip("hot")
    answer = subject.ask(unit_indices=(0, 1))
    assert isinstance(answer, pb.Answer)
    assert [lost.first_unit_index for lost in answer.evidence_lost] == [1]
    assert quarantined(tmp_path, SESSION) == []  # shared memory is not the disk
    subject.flip("hot")
    healed = subject.ask(unit_indices=(0, 1))
    assert isinstance(healed, pb.Answer)
    assert isinstance(whole, pb.Answer)
    assert (healed.text, len(healed.evidence_lost)) == (whole.text, 0)
    reader.close()
    bench.runner.stop()
    bench.thread.join(20.0)
    bench.sessions.close()
    session.close()
