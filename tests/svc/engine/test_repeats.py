"""Units that repeat what is before them stand behind the others in a search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from svc.engine.answer_request import AnswerRequest
from svc.engine.encoder import UnitEmbeds
from svc.engine.model import LoadedModel
from tests.svc.engine import streams
from tests.svc.engine.answer_world import QUESTION, ListMemory, answer, encode
from tests.svc.engine.test_answer_store import stored

LoadTiny = Callable[[str], LoadedModel]
KEPT = [9, 1, 1, 4, 1, 1, 2, 1, 1, 1]
"""Tokens of each unit; those of one repeat what is before them."""


def memory_of(model: LoadedModel, first_unit: int = 0) -> ListMemory:
    whole = streams.full_units(model, len(KEPT))
    units = [
        UnitEmbeds(
            embeds=unit.embeds[:count],
            positions=unit.positions[:count],
            position_span=unit.position_span,
        )
        for unit, count in zip(whole, KEPT, strict=True)
    ]
    return ListMemory(encode(model, units), first_unit=first_unit)


def request(**fields: Any) -> AnswerRequest:
    defaults: dict[str, Any] = {
        "question": QUESTION, "max_new_tokens": 1, "temperature": 0.0, "ignore_eos": True,
    }  # fmt: skip
    return AnswerRequest(**(defaults | fields))


@pytest.mark.parametrize("retrieval", ["per_layer", "shared", "agreed"])
def test_what_repeats_is_read_after_all_others(retrieval: str, tiny_model: LoadTiny) -> None:
    model = tiny_model("float32")
    asked = request(unit_count=4, retrieval=retrieval)
    result = answer(model, asked, memory_of(model))
    assert [units.tolist() for units in result.layer_units] == [[0, 3, 6, 9]] * model.layer_count
    more = answer(model, request(unit_count=6, retrieval=retrieval), memory_of(model))
    for units in more.layer_units:
        assert len(units) == 6  # the budget is used where there is nothing better
        assert {0, 3, 6, 9} < set(units.tolist())


def test_the_turns_of_a_conversation_search_for_no_repeats_either(tiny_model: LoadTiny) -> None:
    model = tiny_model("float32")
    asked = request(unit_count=4, history=(("A?", "B."), ("C?", "D.")))
    for units in answer(model, asked, memory_of(model)).layer_units:
        assert units.tolist() == [0, 3, 6, 9]


def test_the_newest_is_read_and_may_be_cited_though_it_repeats(tiny_model: LoadTiny) -> None:
    model = tiny_model("float32")
    result = answer(model, request(unit_count=4), memory_of(model))
    shares = result.unit_scores
    assert shares[9] > 0
    assert (shares[[1, 2, 4, 5, 7, 8]] == 0).all()
    assert shares.sum() == pytest.approx(1)


def test_where_all_that_is_left_repeats_it_is_read(tiny_model: LoadTiny) -> None:
    model = tiny_model("float32")
    result = answer(model, request(unit_count=3), memory_of(model, first_unit=7))
    assert all(units.tolist() == [7, 8, 9] for units in result.layer_units)
    assert np.isfinite(result.unit_scores).all()


def test_it_can_be_asked_that_all_are_searched(tiny_model: LoadTiny) -> None:
    model = tiny_model("float32")
    everywhere = answer(model, request(unit_count=4, repeats_searched=True), memory_of(model))
    by_scores = np.concatenate([np.argsort(-s[:-1])[:3] for s in everywhere.layer_scores])
    assert {u for units in everywhere.layer_units for u in units[:-1].tolist()} == set(
        by_scores.tolist()
    )
    assert not {1, 2, 4, 5, 7, 8}.isdisjoint(by_scores.tolist())


def test_units_that_are_asked_for_by_name_keep_their_scores(tiny_model: LoadTiny) -> None:
    model = tiny_model("float32")
    result = answer(model, request(unit_indices=(1, 4)), memory_of(model))
    assert (result.unit_scores[[1, 4]] > 0).all()


def test_a_unit_that_was_thinned_to_one_token_is_no_repeat(
    tiny_model: LoadTiny, tmp_path: Path
) -> None:
    model = tiny_model("float32")
    with stored(tmp_path, model) as session:
        whole = streams.full_units(model, 3)
        one = UnitEmbeds(
            embeds=whole[1].embeds[:1],
            positions=whole[1].positions[:1],
            position_span=whole[1].position_span,
        )
        session.push([whole[0], one, whole[2]])
        thinned = session.reader.snapshot().thinned([0], [1])
        assert session.memory(thinned).repeats.tolist() == [False, True, False]
