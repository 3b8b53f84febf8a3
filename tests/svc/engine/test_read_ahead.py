"""Reading ahead changes no bit of an answer; it only reads some of it earlier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from kvstore.guarded import GuardedReader
from kvstore.readahead import ReadAhead
from kvstore.readpool import Reading, ReadPool
from svc.engine.answer_result import AnswerResult
from svc.engine.model import LoadedModel
from svc.engine.store_memory import StoreMemory
from tests.kvstore.damaging import flip_byte_of
from tests.svc.engine import streams
from tests.svc.engine.test_answer_store import (
    SESSION,
    StoredSession,
    answer_with_logits,
    assert_same_to_the_bit,
    request,
    stored,
)

LoadTiny = Callable[[str], LoadedModel]
MIX = [
    request(),
    request(unit_count=6),
    request(retrieval="shared"),
    request(unit_indices=(0, 2, 5), recent_unit_count=0),
    request(choices=("a red circle", "blue", "yellow triangle")),
]


@pytest.fixture
def session(tiny_model: LoadTiny, tmp_path: Path) -> Iterator[StoredSession]:
    """Eleven units on disk, and three that are in shared memory still."""
    model = tiny_model("float32")
    units = streams.ragged_units(model, 14)
    with stored(tmp_path, model) as session:
        session.push(units[:11])
        session.flush()
        session.close()
        session.open()
        session.push(units[11:])
        yield session


def read_ahead(session: StoredSession, own: Any) -> tuple[tuple[AnswerResult, Tensor], ReadAhead]:
    pool = ReadPool(2, ahead_thread_count=2, least_part_bytes=1)
    reader = GuardedReader(session.reader, pool, Reading())
    memory = StoreMemory(session._model, reader, session.index, session.reader.snapshot())
    try:
        answered = answer_with_logits(session._model, own, memory)
    finally:
        reader.end()
        pool.close()
    assert reader.ahead is not None
    return answered, reader.ahead


@pytest.mark.parametrize("own", MIX)
def test_an_answer_is_the_same_to_the_bit_with_and_without(
    session: StoredSession, own: Any
) -> None:
    plain = answer_with_logits(session._model, own, session.memory())
    ahead, reads = read_ahead(session, own)
    assert_same_to_the_bit(plain, ahead)
    assert plain[0].tiers == ahead[0].tiers
    assert reads.begun_count > 0


def test_layers_that_share_a_choice_use_what_was_read_ahead(
    session: StoredSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where no thread has begun by then, the asking one reads: here it waits for them.
    take = ReadAhead.take

    def patient(self: ReadAhead, *arguments: Any) -> Any:
        for future in self._slices.values():
            future.exception()
        return take(self, *arguments)

    monkeypatch.setattr(ReadAhead, "take", patient)
    _, reads = read_ahead(session, request(retrieval="shared"))
    assert reads.used_count == reads.begun_count > 0
    _, reads = read_ahead(session, request(unit_count=10))
    assert 0 < reads.used_count <= reads.begun_count


def test_the_test_sees_slices_of_another_layer(
    session: StoredSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ReadAhead._read

    def late(self: ReadAhead, snapshot: Any, layer: int, *rest: Any) -> Any:
        return read(self, snapshot, layer - 1, *rest)

    def patient(self: ReadAhead, *arguments: Any) -> Any:
        for future in self._slices.values():
            future.exception()
        return take(self, *arguments)

    take = ReadAhead.take
    monkeypatch.setattr(ReadAhead, "take", patient)
    own = request(unit_count=6)
    plain = answer_with_logits(session._model, own, session.memory())
    monkeypatch.setattr(ReadAhead, "_read", late)
    with pytest.raises(AssertionError):
        assert_same_to_the_bit(plain, read_ahead(session, own)[0])


def test_damage_found_ahead_is_judged_where_it_is_wanted(
    session: StoredSession, tmp_path: Path
) -> None:
    own = request(unit_indices=(0, 2, 5), recent_unit_count=0)
    flip_byte_of(tmp_path, SESSION, session.units[2].kv.keys[1].numpy().tobytes())
    plain = answer_with_logits(session._model, own, session.memory())
    ahead, _ = read_ahead(session, own)
    assert_same_to_the_bit(plain, ahead)
    assert [lost.unit_index for lost in plain[0].lost] == [2]
    assert ahead[0].lost == plain[0].lost
