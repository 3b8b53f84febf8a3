"""Messages to the client's types and back. Generated types stop here."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import TypeVar

from lookback.v1 import question_pb2, session_pb2
from svc.client.errors import PROTOCOL_VIOLATED, LookbackError
from svc.client.types import (
    Answer,
    CoarsenedEvidence,
    DecodingOptions,
    Evidence,
    FinishReason,
    KeepingRules,
    LossReason,
    LostEvidence,
    OnFull,
    PinnedSpan,
    RetrievalMode,
    RetrievalOptions,
    RulesInForce,
    Session,
    SessionSettings,
    SessionState,
    SessionStats,
    Tier,
    Turn,
    Unit,
)

_Value = TypeVar("_Value")

_STATES: Mapping[int, SessionState] = {
    session_pb2.Session.STATE_LIVE: SessionState.LIVE,
    session_pb2.Session.STATE_FINISHED: SessionState.FINISHED,
}
_FINISH_REASONS: Mapping[int, FinishReason] = {
    question_pb2.Answer.FINISH_REASON_STOP: FinishReason.STOP,
    question_pb2.Answer.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    question_pb2.Answer.FINISH_REASON_CHOICE: FinishReason.CHOICE,
}
_TIERS: Mapping[int, Tier] = {
    question_pb2.Evidence.TIER_HOT: Tier.HOT,
    question_pb2.Evidence.TIER_RAM: Tier.RAM,
    question_pb2.Evidence.TIER_DISK: Tier.DISK,
}
_LOSS_REASONS: Mapping[int, LossReason] = {
    question_pb2.LostEvidence.REASON_CHECKSUM: LossReason.CHECKSUM,
    question_pb2.LostEvidence.REASON_UNREADABLE: LossReason.UNREADABLE,
}
_ON_FULL: Mapping[int, OnFull] = {
    session_pb2.KeepingRules.ON_FULL_REFUSE: OnFull.REFUSE,
    session_pb2.KeepingRules.ON_FULL_DROP_OLDEST: OnFull.DROP_OLDEST,
    session_pb2.KeepingRules.ON_FULL_THIN: OnFull.THIN,
}
_ON_FULL_NUMBERS = {
    OnFull.REFUSE: session_pb2.KeepingRules.ON_FULL_REFUSE,
    OnFull.DROP_OLDEST: session_pb2.KeepingRules.ON_FULL_DROP_OLDEST,
    OnFull.THIN: session_pb2.KeepingRules.ON_FULL_THIN,
}
_MODES = {
    RetrievalMode.PER_LAYER: question_pb2.RETRIEVAL_MODE_PER_LAYER,
    RetrievalMode.SHARED: question_pb2.RETRIEVAL_MODE_SHARED,
    RetrievalMode.AGREED: question_pb2.RETRIEVAL_MODE_AGREED,
}


def session_from(message: session_pb2.Session) -> Session:
    """Returns the session.

    Raises:
        LookbackError: PROTOCOL_VIOLATED, the state is one of a newer protocol.
    """
    return Session(
        session_id=message.session_id,
        display_name=message.display_name,
        state=_known(_STATES, message.state, "Session.state"),
        create_time=message.create_time.ToDatetime(tzinfo=datetime.UTC),
        settings=SessionSettings(
            sample_fps=message.settings.sample_fps,
            window_token_count=message.settings.window_token_count,
            reduction=message.settings.reduction,
            frame_width=message.settings.frame_width,
            frame_height=message.settings.frame_height,
            unit_token_count=message.settings.unit_token_count,
        ),
        stats=_stats_from(message.stats) if message.HasField("stats") else None,
        model=message.model,
        kv_encoding=message.kv_encoding,
        keeping=_keeping_from(message.keeping),
        keeping_in_force=(
            _in_force_from(message.keeping_in_force)
            if message.HasField("keeping_in_force")
            else None
        ),
        pinned_spans=tuple(
            PinnedSpan(start_s=span.start_s, end_s=span.end_s) for span in message.pinned_spans
        ),
    )


def unit_from(message: session_pb2.Unit) -> Unit:
    """Returns the unit."""
    return Unit(
        first_pts_s=message.first_pts_s,
        last_pts_s=message.last_pts_s,
        token_count=message.token_count,
        drop_fraction=message.drop_fraction,
        gap_before=message.gap_before,
        coarsened=message.coarsened,
    )


def _keeping_from(message: session_pb2.KeepingRules) -> KeepingRules:
    return KeepingRules(
        session_budget_bytes=message.session_budget_bytes,
        on_full=(
            _known(_ON_FULL, message.on_full, "KeepingRules.on_full") if message.on_full else None
        ),
        retain_s=message.retain_s,
    )


def _in_force_from(message: session_pb2.KeepingRules) -> RulesInForce:
    return RulesInForce(
        session_budget_bytes=message.session_budget_bytes,
        on_full=_known(_ON_FULL, message.on_full, "KeepingRules.on_full"),
        retain_s=message.retain_s,
    )


def keeping_to(rules: KeepingRules) -> session_pb2.KeepingRules:
    """Returns the message for rules."""
    return session_pb2.KeepingRules(
        session_budget_bytes=rules.session_budget_bytes,
        on_full=_ON_FULL_NUMBERS[rules.on_full]
        if rules.on_full
        else session_pb2.KeepingRules.ON_FULL_UNSPECIFIED,
        retain_s=rules.retain_s,
    )


def _stats_from(message: session_pb2.SessionStats) -> SessionStats:
    return SessionStats(
        visible_unit_count=message.visible_unit_count,
        durable_unit_count=message.durable_unit_count,
        first_pts_s=message.first_pts_s if message.HasField("first_pts_s") else None,
        last_visible_pts_s=(
            message.last_visible_pts_s if message.HasField("last_visible_pts_s") else None
        ),
        last_durable_pts_s=(
            message.last_durable_pts_s if message.HasField("last_durable_pts_s") else None
        ),
        token_count=message.token_count,
        disk_bytes=message.disk_bytes,
        gap_count=message.gap_count,
        dropped_unit_count=message.dropped_unit_count,
        drop_fraction=message.drop_fraction,
    )


def settings_to(settings: SessionSettings) -> session_pb2.SessionSettings:
    """Returns the message for the settings."""
    return session_pb2.SessionSettings(
        sample_fps=settings.sample_fps,
        window_token_count=settings.window_token_count,
        reduction=settings.reduction,
        frame_width=settings.frame_width,
        frame_height=settings.frame_height,
        unit_token_count=settings.unit_token_count,
    )


def turn_to(turn: Turn) -> question_pb2.Turn:
    """Returns the message for an earlier turn."""
    return question_pb2.Turn(
        question=turn.question, answer=turn.answer, evidence_until_s=turn.evidence_until_s
    )


def retrieval_to(options: RetrievalOptions) -> question_pb2.RetrievalOptions:
    """Returns the message; what is None stays unset."""
    return question_pb2.RetrievalOptions(
        mode=question_pb2.RETRIEVAL_MODE_UNSPECIFIED
        if options.mode is None
        else _MODES[options.mode],
        unit_count=options.unit_count or 0,
        token_count=options.token_count or 0,
        recent_unit_count=options.recent_unit_count,
        unit_indices=options.unit_indices,
        search_each_token=options.search_each_token,
    )


def decoding_to(options: DecodingOptions) -> question_pb2.DecodingOptions:
    """Returns the message; what is None stays unset."""
    return question_pb2.DecodingOptions(
        max_new_token_count=options.max_new_token_count or 0,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
        stop=options.stop,
        ignore_eos=options.ignore_eos,
    )


def answer_from(message: question_pb2.Answer) -> Answer:
    """Returns the answer.

    Raises:
        LookbackError: PROTOCOL_VIOLATED, a value is one of a newer protocol.
    """
    return Answer(
        text=message.text,
        finish_reason=_known(_FINISH_REASONS, message.finish_reason, "Answer.finish_reason"),
        choice_index=message.choice_index if message.HasField("choice_index") else None,
        choice_log_likelihoods=tuple(message.choice_log_likelihoods),
        evidence=tuple(
            Evidence(
                start_s=each.start_s,
                end_s=each.end_s,
                score=each.score,
                tier=_known(_TIERS, each.tier, "Evidence.tier"),
                coarsened=each.coarsened,
            )
            for each in message.evidence
        ),
        evidence_until_s=message.evidence_until_s,
        asked_at_s=message.asked_at_s,
        retrieved_unit_count=message.retrieved_unit_count,
        retrieved_token_count=message.retrieved_token_count,
        prompt_token_count=message.prompt_token_count,
        answer_token_count=message.answer_token_count,
        ttft_s=message.ttft_s,
        total_s=message.total_s,
        model=message.model,
        snapshot_unit_count=message.snapshot_unit_count,
        evidence_lost=tuple(
            LostEvidence(
                start_s=each.start_s,
                end_s=each.end_s,
                first_unit_index=each.first_unit_index,
                unit_count=each.unit_count,
                reason=_known(_LOSS_REASONS, each.reason, "LostEvidence.reason"),
                first_layer_index=each.first_layer_index,
            )
            for each in message.evidence_lost
        ),
        remembers_from_s=(
            message.remembers_from_s if message.HasField("remembers_from_s") else None
        ),
        history_turn_count=message.history_turn_count,
        units_read=tuple(tuple(layer.unit_indices) for layer in message.units_read),
        evidence_coarsened=tuple(
            CoarsenedEvidence(
                start_s=each.start_s,
                end_s=each.end_s,
                first_unit_index=each.first_unit_index,
                unit_count=each.unit_count,
                token_count=each.token_count,
                whole_token_count=each.whole_token_count,
            )
            for each in message.evidence_coarsened
        ),
    )


def _known(table: Mapping[int, _Value], number: int, field: str) -> _Value:
    if number not in table:
        raise LookbackError(
            reason=PROTOCOL_VIOLATED,
            message=f"the server sent {field} = {number}, which this client does not know",
            metadata={"field": field, "value": str(number)},
        )
    return table[number]
