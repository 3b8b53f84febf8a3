"""What the demo prints fits in 80 columns, whole."""

from __future__ import annotations

import io

from rich.console import Console

from svc.cli.demo_run import DemoQuestion, Outcome, answers_table
from svc.client import Answer, Evidence, FinishReason, Tier


def outcome(question: str, expected: str, given: str, *, as_of_s: float) -> Outcome:
    cited = Evidence(start_s=100.0, end_s=124.0, score=0.5, tier=Tier.DISK)
    return Outcome(
        question=DemoQuestion(
            kind="past_colour",
            text=question,
            expected=expected,
            put_at_s=359.0,
            asked_at_s=as_of_s,
            evidence_s=((100.0, 124.0),),
        ),
        answer=Answer(
            text=given,
            finish_reason=FinishReason.STOP,
            choice_index=None,
            choice_log_likelihoods=(),
            evidence=(cited, cited),
            evidence_lost=(),
            evidence_until_s=as_of_s,
            remembers_from_s=None,
            asked_at_s=as_of_s,
            retrieved_unit_count=8,
            retrieved_token_count=72,
            prompt_token_count=90,
            answer_token_count=2,
            ttft_s=0.012,
            total_s=0.1,
            model="tiny",
            snapshot_unit_count=300,
        ),
    )


def test_the_demos_answers_are_read_at_80_columns() -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    question = "what colour was the triangle on the meadow ?"
    console.print(
        answers_table(
            [
                outcome(question, "magenta", "magenta", as_of_s=359.0),
                outcome("was there a pentagon ?", "not seen", "[red] circle", as_of_s=23.0),
            ]
        )
    )
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    words = text.split()
    assert [word for word in words if word in {"right", "wrong"}] == ["right", "wrong"]
    for word in [*question.split(), "[red]", "circle", "expected:", "1:40-2:04", "5:59", "12"]:
        assert word in words, text
    assert "as of 0:23" in text
    assert len(text.splitlines()) <= 12, text
