"""The newest unit is answered from whole, with what was last kept at the places it lacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from kvstore.errors import SliceCorruptError, joined
from svc.engine.answer_request import AnswerRequest
from svc.engine.encoder import UnitEmbeds
from svc.engine.model import LoadedModel
from svc.engine.whole_newest import MAX_LOOKBACK_UNITS, WholeNewest
from svc.engine.window_cache import UnitKV
from tests.svc.engine import streams
from tests.svc.engine.answer_world import (
    DTYPES,
    QUESTION,
    TOLERANCE,
    ListMemory,
    LogitsTap,
    StoredUnit,
    answer,
    cells_of,
    encode,
)

LoadTiny = Callable[[str], LoadedModel]


def request(**fields: Any) -> AnswerRequest:
    defaults: dict[str, Any] = {
        "question": QUESTION,
        "unit_count": 4,
        "max_new_tokens": 6,
        "temperature": 0.0,
        "ignore_eos": True,
    }
    return AnswerRequest(**(defaults | fields))


def made_whole(units: Sequence[StoredUnit], first_unit: int = 0) -> StoredUnit:
    """Return the newest unit with, at every place, the newest token that was kept there."""
    newest: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for unit in units[first_unit:]:
        for token, position in enumerate(unit.positions.tolist()):
            newest[position] = (unit.kv.keys[:, token], unit.kv.values[:, token])
    positions = sorted(newest)
    return StoredUnit(
        UnitKV(
            keys=torch.stack([newest[p][0] for p in positions], dim=1),
            values=torch.stack([newest[p][1] for p in positions], dim=1),
        ),
        np.array(positions, np.int64),
        units[-1].span,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("unit_count", [1, 4, 100])
def test_an_answer_rests_on_the_newest_unit_made_whole(
    dtype: str, unit_count: int, tiny_model: LoadTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(dtype)
    units = encode(model, streams.ragged_units(model, 9))
    assert len(units[-1].positions) < model.adapter.tokens_per_unit
    by_hand = [*units[:-1], made_whole(units)]
    rows = []
    for memory, whole in ((ListMemory(units), True), (ListMemory(by_hand), False)):
        with monkeypatch.context() as patch:
            tap = LogitsTap(model, patch)
            result = answer(model, request(unit_count=unit_count, newest_whole=whole), memory)
            rows.append(tap.rows)
        assert result.layer_units[0][-1] == 8
    assert float((rows[0] - rows[1]).abs().max()) < TOLERANCE[dtype]
    with monkeypatch.context() as patch:
        tap = LogitsTap(model, patch)
        answer(model, request(unit_count=unit_count, newest_whole=False), ListMemory(units))
        assert float((rows[0] - tap.rows).abs().max()) > 1e-2  # the rule changes something


def test_the_newest_unit_is_charged_with_the_tokens_it_borrows(tiny_model: LoadTiny) -> None:
    model = tiny_model("float32")
    units = encode(model, streams.ragged_units(model, 9))
    whole = len(made_whole(units).positions)
    result = answer(model, request(unit_count=1), ListMemory(units))
    assert result.context_token_count == whole


def memory_of(kept: Sequence[Sequence[int]], *, first_unit: int = 0) -> ListMemory:
    """Return units with tokens at the given places; key and value say unit and place."""
    units = []
    for index, places in enumerate(kept):
        marks = torch.tensor([[index * 100.0 + place] for place in places])
        kv = UnitKV(keys=marks[None, :, None], values=-marks[None, :, None])
        units.append(StoredUnit(kv, np.array(places, np.int64), 4))
    return ListMemory(units, first_unit=first_unit, side=2)


def tokens_of(memory: WholeNewest, units: Sequence[int]) -> list[float]:
    keys, values = memory.load(0, np.array(units))
    assert torch.equal(keys, -values)
    return keys.flatten().tolist()


def test_each_place_shows_what_was_last_kept_there() -> None:
    memory = WholeNewest(memory_of([[0, 1, 2, 3], [1, 2], [0], [2]]))
    assert tokens_of(memory, [3]) == [200.0, 101.0, 302.0, 3.0]
    assert tokens_of(memory, [1, 3]) == [101.0, 102.0, 200.0, 101.0, 302.0, 3.0]
    assert memory.token_counts.tolist() == [4, 2, 1, 4]
    assert (
        memory.cells(np.array([1, 3])).tolist()
        == cells_of(np.array([1, 2, 0, 1, 2, 3]), 2).tolist()
    )
    assert tokens_of(memory, [0, 2]) == [0.0, 1.0, 2.0, 3.0, 200.0]


def test_dropped_units_and_those_too_far_back_lend_nothing() -> None:
    dropped = WholeNewest(memory_of([[0, 1, 2, 3], [1], [2]], first_unit=1))
    assert tokens_of(dropped, [2]) == [101.0, 202.0]
    far = [[0, 1, 2, 3], *([[1]] * MAX_LOOKBACK_UNITS), [2]]
    newest = len(far) - 1
    assert tokens_of(WholeNewest(memory_of(far)), [newest]) == [
        (newest - 1) * 100.0 + 1,
        newest * 100.0 + 2,
    ]


def test_a_unit_that_cannot_be_read_is_told_and_then_lends_no_more() -> None:
    inner = memory_of([[0, 1, 2, 3], [1, 2], [0]])
    read = inner.load

    def load(layer: int, units: Any) -> Any:
        if 1 in units:
            raise SliceCorruptError("s", 0, 1, layer)
        return read(layer, units)

    inner.load = load  # type: ignore[method-assign]
    memory = WholeNewest(inner)
    with pytest.raises(SliceCorruptError) as told:
        memory.load(0, np.array([2]))
    assert told.value.unit_index == 1
    assert tokens_of(memory, [2]) == [200.0, 3.0]  # nothing older stands in for what it showed
    assert memory.token_counts.tolist() == [4, 2, 2]


def lending(model: LoadedModel) -> ListMemory:
    """Units of which the newest has one token, and each of eight before it another."""
    places = [list(range(9))] * 6 + [[place] for place in range(9)]
    whole = streams.full_units(model, len(places))
    return ListMemory(
        encode(
            model,
            [
                UnitEmbeds(
                    embeds=unit.embeds[own],
                    positions=unit.positions[own],
                    position_span=unit.position_span,
                )
                for unit, own in zip(whole, places, strict=True)
            ],
        )
    )


@pytest.mark.parametrize("unit_count", [1, 2, 4])
def test_lenders_that_cannot_be_read_are_no_share_of_what_was_chosen(
    unit_count: int, tiny_model: LoadTiny
) -> None:
    model = tiny_model("float32")
    memory = lending(model)
    read, bad = memory.load, {7, 8, 9, 10}

    def load(layer: int, units: Any) -> Any:
        damaged = [SliceCorruptError("s", 0, int(unit), layer) for unit in units if unit in bad]
        if damaged:
            raise joined(damaged)
        return read(layer, units)

    memory.load = load  # type: ignore[method-assign]
    result = answer(model, request(unit_count=unit_count), memory)
    assert {each.unit_index for each in result.lost} == bad
    assert all(len(units) == unit_count and 14 in units for units in result.layer_units)


def test_units_that_are_asked_for_by_name_are_shown_as_they_are(tiny_model: LoadTiny) -> None:
    model = tiny_model("float32")
    memory = lending(model)
    newest = answer(model, request(unit_indices=(14,)), memory)
    assert newest.context_token_count == 1
    assert answer(model, request(unit_count=1), memory).context_token_count == 9


@pytest.mark.parametrize(("token_count", "shown"), [(1, 1), (8, 1), (9, 9)])
def test_what_is_lent_fits_the_tokens_that_are_asked_for_or_is_left_out(
    token_count: int, shown: int, tiny_model: LoadTiny
) -> None:
    model = tiny_model("float32")
    asked = request(unit_count=1, token_count=token_count)
    assert answer(model, asked, lending(model)).context_token_count == shown
