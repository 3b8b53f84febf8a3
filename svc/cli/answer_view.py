"""What is shown of an answer beside its text."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from svc.cli.times import format_time

if TYPE_CHECKING:
    from svc.client import Answer

_SHOWN_LOSSES = 5


def answer_json(session: str, question: str, answer: Answer) -> dict[str, Any]:
    """Returns the object that `--json` prints."""
    fields: dict[str, Any] = {
        "session": session,
        "question": question,
        "asked_at_s": answer.asked_at_s,
        "answer": answer.text,
        "evidence": [
            {
                "start_s": moment.start_s,
                "end_s": moment.end_s,
                "score": moment.score,
                "tier": moment.tier.value,
                "coarsened": moment.coarsened,
            }
            for moment in answer.evidence
        ],
        "evidence_lost": [
            {
                "start_s": lost.start_s,
                "end_s": lost.end_s,
                "first_unit_index": lost.first_unit_index,
                "unit_count": lost.unit_count,
                "reason": lost.reason.value,
                "first_layer_index": lost.first_layer_index,
            }
            for lost in answer.evidence_lost
        ],
        "evidence_coarsened": [dataclasses.asdict(each) for each in answer.evidence_coarsened],
        "evidence_until_s": answer.evidence_until_s,
        "remembers_from_s": answer.remembers_from_s,
        "retrieved_unit_count": answer.retrieved_unit_count,
        "retrieved_token_count": answer.retrieved_token_count,
        "prompt_token_count": answer.prompt_token_count,
        "history_turn_count": answer.history_turn_count,
        "ttft_s": answer.ttft_s,
        "total_s": answer.total_s,
        "model": answer.model,
    }
    if answer.choice_index is not None:
        fields["choice_index"] = answer.choice_index
        fields["choice_log_likelihoods"] = list(answer.choice_log_likelihoods)
    return fields


def moments(answer: Answer, choices: list[str]) -> str:
    """Returns what follows the text for people: choices, moments, how much was seen."""
    lines = [""]
    if answer.remembers_from_s is not None:
        lines.append(f"(the session remembers from {format_time(answer.remembers_from_s)} on)")
    if answer.choice_index is not None:
        for index, choice in enumerate(choices):
            mark = "*" if index == answer.choice_index else " "
            likelihood = answer.choice_log_likelihoods[index]
            lines.append(f" {mark} {choice}  (log-likelihood {likelihood:.3f})")
        lines.append("")
    lines.append("rests on" if answer.evidence else "rests on no moment in particular")
    for moment in answer.evidence:
        span = f"{format_time(moment.start_s)} - {format_time(moment.end_s)}"
        thinned = "  thinned since" if moment.coarsened else ""
        lines.append(f"  {span:<21} score {moment.score:.3f}  {moment.tier.value}{thinned}")
    lines += _coarsened(answer)
    lines.append(
        f"{_turns(answer)}seen up to {format_time(answer.evidence_until_s)}; "
        f"{answer.retrieved_unit_count} of {answer.snapshot_unit_count} units; "
        f"first token after {answer.ttft_s:.2f} s, all after {answer.total_s:.2f} s"
    )
    return "\n".join(lines) + "\n"


def _turns(answer: Answer) -> str:
    """Returns the words that say how much of the conversation the answer knew."""
    count = answer.history_turn_count
    return f"with {count} earlier turn{'s' if count > 1 else ''}; " if count else ""


def _coarsened(answer: Answer) -> list[str]:
    """Returns the lines that say what the answer saw only in part; none where all was whole."""
    if not answer.evidence_coarsened:
        return []
    lines = ["seen only in part, for it was thinned since, to make room"]
    for each in answer.evidence_coarsened[:_SHOWN_LOSSES]:
        span = f"{format_time(each.start_s)} - {format_time(each.end_s)}"
        lines.append(f"  {span:<21} {each.token_count} of {each.whole_token_count} tokens left")
    more = len(answer.evidence_coarsened) - _SHOWN_LOSSES
    if more > 0:
        lines.append(f"  and {more} more moments")
    return lines


def warning(answer: Answer) -> str:
    """Returns the line that says what the answer had to do without; empty where nothing."""
    if not answer.evidence_lost:
        return ""
    units = sum(lost.unit_count for lost in answer.evidence_lost)
    spans = ", ".join(
        f"{format_time(lost.start_s)} - {format_time(lost.end_s)} ({lost.reason.value})"
        for lost in answer.evidence_lost[:_SHOWN_LOSSES]
    )
    more = len(answer.evidence_lost) - _SHOWN_LOSSES
    rest = f" and {more} more" if more > 0 else ""
    return f"warning: {units} damaged units were left out of this answer: {spans}{rest}\n"
