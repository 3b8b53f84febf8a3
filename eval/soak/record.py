"""What came back for one question, as it is kept in a file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.soak.plan import Scheduled
from svc.client import Answer, LookbackError

Spans = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One question put to one store, and the answer or the refusal."""

    session: str
    number: int
    kind: str
    question: str
    expected: str
    asked_at_s: float
    visible_s: float
    """How far the stream had come when the question was put."""
    evidence_s: Spans
    """When the world showed the answer."""
    text: str | None = None
    """None: it was refused, or failed."""
    log_likelihoods: tuple[float, ...] = ()
    """Of the choices, where there were any."""
    cited_s: Spans = ()
    """Best first."""
    tiers: tuple[str, ...] = ()
    lost_count: int = 0
    """Moments that were chosen and are damaged."""
    coarsened_s: Spans = ()
    """Moments that were used and had lost tokens."""
    tokens_left: int = 0
    """Of those moments."""
    tokens_whole: int = 0
    """That they had before."""
    remembers_from_s: float | None = None
    """What lies before it was dropped: as the answer, or the refusal, says."""
    ttft_s: float | None = None
    failure: str | None = None
    """Reason of a refusal or a fault."""

    @property
    def key(self) -> tuple[str, int]:
        """Names the question within a plan."""
        return (self.session, self.number)

    @property
    def right(self) -> bool:
        """Whether it is the world's answer."""
        return self.text == self.expected


def answered(session: str, asked: Scheduled, visible_s: float, answer: Answer) -> Record:
    """The record of an answer."""
    thinned = answer.evidence_coarsened
    return Record(
        **_asked(session, asked, visible_s),
        text=answer.text.strip(),
        log_likelihoods=answer.choice_log_likelihoods,
        cited_s=tuple((moment.start_s, moment.end_s) for moment in answer.evidence),
        tiers=tuple(moment.tier.value for moment in answer.evidence),
        lost_count=len(answer.evidence_lost),
        coarsened_s=tuple((moment.start_s, moment.end_s) for moment in thinned),
        tokens_left=sum(moment.token_count for moment in thinned),
        tokens_whole=sum(moment.whole_token_count for moment in thinned),
        remembers_from_s=answer.remembers_from_s,
        ttft_s=answer.ttft_s,
    )


def refused(session: str, asked: Scheduled, visible_s: float, error: LookbackError) -> Record:
    """The record of a question that got no answer."""
    first_s = error.metadata.get("first_pts_s")
    return Record(
        **_asked(session, asked, visible_s),
        remembers_from_s=None if first_s is None else float(first_s),
        failure=error.reason,
    )


def _asked(session: str, asked: Scheduled, visible_s: float) -> dict[str, Any]:
    question = asked.question
    return {
        "session": session,
        "number": asked.number,
        "kind": question.kind,
        "question": question.text,
        "expected": question.answer,
        "asked_at_s": question.asked_at_s,
        "visible_s": visible_s,
        "evidence_s": question.evidence_s,
    }


def as_json(record: Record) -> str:
    """A line of a file."""
    return json.dumps(asdict(record))


def read_records(path: Path) -> list[Record]:
    """The records of a file that a finished run has written."""
    return [_record(json.loads(line)) for line in path.read_text().splitlines()]


def _record(fields: dict[str, Any]) -> Record:
    for name in ("evidence_s", "cited_s", "coarsened_s"):
        fields[name] = _spans(fields[name])
    for name in ("log_likelihoods", "tiers"):
        fields[name] = tuple(fields[name])
    return Record(**fields)


def _spans(pairs: Iterable[list[float]]) -> Spans:
    return tuple((start, end) for start, end in pairs)
