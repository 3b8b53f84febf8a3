"""What a soak asks: the same in both runs, never before it can be answered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from eval.soak.plan import Plan
from eval.soak.record import Record, as_json, read_records

PLAN = Plan(seed=3, session_count=2, stream_s=600, question_every_s=5.0)


def test_two_runs_of_a_plan_ask_the_same_and_make_a_clip_once(tmp_path: Path) -> None:
    first = list(PLAN.streams(tmp_path))
    stamps = [stream.clip.stat().st_mtime_ns for stream in first]
    again = list(PLAN.streams(tmp_path))
    assert again == first
    assert [stream.clip.stat().st_mtime_ns for stream in again] == stamps
    assert replace(PLAN, seed=4).digest != PLAN.digest


def test_questions_come_in_order_and_never_before_their_time(tmp_path: Path) -> None:
    for stream in PLAN.streams(tmp_path):
        asked = stream.questions
        assert len(asked) == 120
        assert [one.when_s for one in asked] == sorted(one.when_s for one in asked)
        assert all(one.question.asked_at_s <= one.when_s <= 599 for one in asked)
        assert any(one.when_s > one.question.asked_at_s + 60 for one in asked)
        assert any(one.question.kind.startswith("past") for one in asked)
        shown = [end for one in asked for _, end in one.question.evidence_s]
        assert shown
        assert {one.as_choice for one in asked} == {True, False}
        for one in asked:
            assert one.question.answer in one.question.options
            ends = [end for _, end in one.question.evidence_s]
            assert max(ends, default=0.0) <= one.question.asked_at_s + 1


def test_a_record_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    record = Record(
        session="soak-0",
        number=1,
        kind="motion",
        question="which way did the star move ?",
        expected="left",
        asked_at_s=9.0,
        visible_s=12.0,
        evidence_s=((1.0, 4.0),),
        text="left",
        log_likelihoods=(-1.0, -2.0),
        cited_s=((1.0, 2.0), (8.0, 9.0)),
        tiers=("ram", "hot"),
        coarsened_s=((1.0, 2.0),),
        tokens_left=3,
        tokens_whole=9,
        remembers_from_s=0.5,
        ttft_s=0.01,
    )
    path = tmp_path / "answers.jsonl"
    path.write_text(f"{as_json(record)}\n" * 2)
    assert read_records(path) == [record, record]
