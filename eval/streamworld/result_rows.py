"""What a benchmark run writes down of a stream that was stored, and of an answer."""

from __future__ import annotations

from collections.abc import Sequence

from eval.streamworld.curves import EXAM_FPS, Arm, Stream, Task
from eval.streamworld.results_file import ResultsError, Row
from svc.client import Answer, Evidence, Session


def stream_row(stream: Stream, arm: Arm, session: Session, push_s: float) -> Row:
    """Returns the row of a stream as it was stored.

    Raises:
        ResultsError: The service does not know what it stored.
    """
    stats = session.stats
    if stats is None:
        raise ResultsError(f"the service does not know what it stored of {session.session_id}")
    return {
        "row": "stream",
        "key": (stream.name, str(arm)),
        "stream": stream.name,
        "arm": str(arm),
        "scenario": stream.scenario,
        "duration_s": stream.duration_s,
        "reduction_in_force": session.settings.reduction,
        "encoding_in_force": session.kv_encoding,
        "units": stats.visible_unit_count,
        "tokens": stats.token_count,
        "disk_bytes": stats.disk_bytes,
        "push_s": push_s,
        "model": session.model,
    }


def answer_row(task: Task, answer: Answer) -> Row:
    """Returns the row of one question put in one way."""
    question, said = task.question, answer.text.strip()
    spans = question.evidence_s
    return {
        "row": "answer",
        "key": task.key,
        "stream": task.stream.name,
        "scenario": task.stream.scenario,
        "arm": str(task.arm),
        "number": task.number,
        "mode": task.asking.mode.value,
        "budget": task.asking.budget,
        "form": task.asking.form,
        "alone": task.asking.alone,
        "kind": question.kind,
        "drift": question.drift,
        "question": question.text,
        "expected": question.answer,
        "answer": said,
        "right": said == question.answer,
        "asked_at_s": question.asked_at_s,
        "age_s": question.asked_at_s - spans[-1][1] if spans else None,
        "evidence_s": spans,
        "recall": _recall(spans, answer.evidence),
        "layer_recall": layer_recall(spans, answer.units_read),
        "seen_until_s": answer.evidence_until_s,
        "units": answer.retrieved_unit_count,
        "tokens": answer.retrieved_token_count,
        "snapshot_units": answer.snapshot_unit_count,
        "ttft_s": answer.ttft_s,
    }


def _recall(spans: Sequence[tuple[float, float]], cited: Sequence[Evidence]) -> float | None:
    """Share of the spans that hold the answer of which something is cited."""
    if not spans:
        return None
    found = [any(a < e.end_s and e.start_s < b for e in cited) for a, b in spans]
    return sum(found) / len(found)


def layer_recall(
    spans: Sequence[tuple[float, float]], units_read: Sequence[Sequence[int]]
) -> list[float] | None:
    """Per layer the share of the spans that hold the answer of which it read a unit; last, of all
    layers together. None: there are no spans, or the service did not say what was read.

    Args:
        spans: half-open, in seconds.
        units_read: per layer; unit k is the frame at k / EXAM_FPS.
    """
    if not spans or not units_read:
        return None
    of_spans = [set(range(round(a * EXAM_FPS), round(b * EXAM_FPS))) for a, b in spans]
    readers = [*(set(units) for units in units_read), set[int]().union(*units_read)]
    return [sum(not span.isdisjoint(read) for span in of_spans) / len(spans) for read in readers]
