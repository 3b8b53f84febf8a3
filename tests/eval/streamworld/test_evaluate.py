"""What is asked in an evaluation, and how its shares are told."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from eval.streamworld.evaluate import Plan, read_records, tasks_of
from eval.streamworld.exam import Question
from eval.streamworld.modes import Mode, options_for
from eval.streamworld.summary import Share, age_of, rows

PLAN = Plan(
    seed=3,
    stream_count=1,
    durations_s=(300,),
    questions_per_kind=1,
    budget=8,
    window_units=16,
    grid_px=1,
)
QUESTION = Question(
    kind="past_colour",
    asked_as="past_colour",
    text="what colour was the star ?",
    answer="red",
    options=("red", "blue", "green", "cyan"),
    asked_at_s=200.0,
    evidence_s=((20.0, 23.0), (40.0, 41.0)),
)


def chosen(mode: Mode) -> tuple[int, ...]:
    rng = np.random.default_rng(0)
    options = options_for(mode, QUESTION, fps=Fraction(1), budget=8, window_units=16, rng=rng)
    if options.unit_indices:
        return options.unit_indices
    assert options.recent_unit_count == options.unit_count
    assert options.unit_count is not None
    return tuple(range(201 - options.unit_count, 201))


@pytest.mark.parametrize("mode", [mode for mode in Mode if mode is not Mode.RETRIEVAL])
def test_no_mode_asks_for_a_unit_after_the_question(mode: Mode) -> None:
    units = chosen(mode)
    assert list(units) == sorted(set(units))
    assert units[0] >= 0
    assert units[-1] <= 200


@pytest.mark.parametrize("mode", [Mode.RECENT, Mode.UNIFORM, Mode.RANDOM])
def test_limited_modes_have_the_budget_of_retrieval(mode: Mode) -> None:
    assert len(chosen(mode)) == 8


def test_evidence_is_exactly_the_units_that_show_it() -> None:
    assert chosen(Mode.EVIDENCE) == (20, 21, 22, 40)


def test_full_attention_sees_every_unit_so_far() -> None:
    assert chosen(Mode.ALL) == tuple(range(201))


def test_equal_plans_ask_the_same_and_other_seeds_ask_otherwise() -> None:
    first, again = PLAN.exam(0).questions, PLAN.exam(0).questions
    assert first == again
    other = Plan(**{**{f: getattr(PLAN, f) for f in PLAN.__slots__}, "seed": 4})
    assert other.digest != PLAN.digest
    assert other.exam(0).questions != first


def test_every_question_is_asked_freely_and_as_a_choice_by_retrieval() -> None:
    exam = PLAN.exam(0)
    tasks = list(tasks_of(PLAN, 0, exam))
    assert len({task.key for task in tasks}) == len(tasks)
    for form in ("free", "choice"):
        asked = [t for t in tasks if t.mode is Mode.RETRIEVAL and t.form == form]
        assert [task.question for task in asked] == list(exam.questions)


def test_a_run_goes_on_from_whole_lines_of_its_own_plan(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    mine = {"plan": PLAN.digest, "key": [0, 0, "retrieval", "free"]}
    path.write_text(json.dumps(mine) + "\n" + json.dumps({"plan": "x"}) + "\n" + '{"plan": "')
    assert read_records(path, PLAN) == [mine]


@pytest.mark.parametrize(
    ("right", "asked", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)],
)
def test_intervals_are_wilsons(right: int, asked: int, low: float, high: float) -> None:
    # Expected values worked out by hand from Wilson's formula.
    assert Share(right, asked).interval == pytest.approx((low, high), abs=1e-4)


def record(kind: str, right: bool, age_s: float | None, **more: object) -> dict[str, object]:
    base = {"kind": kind, "mode": "retrieval", "form": "free", "right": right, "age_s": age_s}
    return {**base, "cited": right, **more}


def test_ages_are_told_in_words() -> None:
    ages = [record("past_colour", True, age) for age in (59.0, 60.0, 899.0, 900.0)]
    assert [age_of(r) for r in ages] == ["< 1 min", "1-5 min", "5-15 min", "15-60 min"]
    assert age_of(record("now_object", True, 0.0)) == "now"
    assert age_of(record("not_seen", True, None)) == "never seen"


def test_a_wrong_answer_does_not_count_as_a_citation() -> None:
    records = [record("past_colour", True, 90.0), record("past_colour", False, 90.0, cited=True)]
    figures = {row.name.split(" (")[0]: row for row in rows(records)}
    assert figures["past object, colour, scene"].value == 0.5
    assert figures["right past answers that cite a true moment"].value == 1.0
    assert "n=1," in figures["right past answers that cite a true moment"].name
