"""Which refusal every error of the store stands for; both processes tell clients the same."""

from __future__ import annotations

from kvstore import errors as store
from svc.rpc.errors import Reason, RequestError


def translate_store_error(error: Exception) -> RequestError | None:
    """Returns the refusal that an error of kvstore stands for; None for any other error."""
    if not isinstance(error, store.KVStoreError):
        return None
    return _of_session(error) or _of_damage(error) or _of_writer(error)


def _of_session(error: store.KVStoreError) -> RequestError | None:
    text = str(error)
    match error:
        case store.InvalidSessionIdError():
            return RequestError(Reason.INVALID_SESSION_ID, text, session_id=error.session_id)
        case store.SessionNotFoundError():
            return RequestError(Reason.SESSION_NOT_FOUND, text, session_id=error.session_id)
        case store.SessionExistsError():
            return RequestError(Reason.SESSION_EXISTS, text, session_id=error.session_id)
        case store.SessionLockedError():
            return RequestError(Reason.SESSION_IN_USE, text, session_id=error.session_id)
        case store.InvalidSpanError():
            return RequestError(
                Reason.INVALID_REQUEST,
                text,
                field="span",
                start_s=error.start_s,
                end_s=error.end_s,
                allowed=error.rule,
            )
        case store.TooManySpansError():
            return RequestError(
                Reason.TOO_MANY_SPANS,
                text,
                span_count=error.span_count,
                max_span_count=error.max_span_count,
            )
        case store.SnapshotExpiredError():
            return RequestError(
                Reason.SNAPSHOT_LOST,
                f"the ingest process was restarted meanwhile: {text}",
                session_id=error.session_id,
            )
        case store.ReadGivenUpError():
            return RequestError(Reason.QUESTION_TIMED_OUT, text)
        case store.UnitDroppedError():
            return RequestError(
                Reason.SNAPSHOT_LOST,
                text,
                session_id=error.session_id,
                unit=error.unit_index,
                first_unit=error.first_unit,
            )
        case store.UnitsThinnedError():
            return RequestError(Reason.SNAPSHOT_LOST, text, session_id=error.session_id)
        case store.GeometryMismatchError():
            return RequestError(
                Reason.IDENTITY_MISMATCH,
                text,
                session_id=error.session_id,
                field="geometry",
                stored=error.stored,
                serving=error.given,
            )
        case store.FormatVersionError():
            return RequestError(
                Reason.IDENTITY_MISMATCH,
                text,
                field="format",
                stored=error.version,
                serving=error.supported,
            )
    return None


def _of_damage(error: store.KVStoreError) -> RequestError | None:
    text = str(error)
    match error:
        case store.SliceCorruptError():
            return RequestError(
                Reason.STORE_DAMAGED,
                text,
                session_id=error.session_id,
                block="hot tail" if error.block_index is None else error.block_index,
                unit=error.unit_index,
                layer=error.layer_index,
            )
        case store.BlockCorruptError():
            return RequestError(
                Reason.STORE_DAMAGED, text, session_id=error.session_id, block=error.block_index
            )
        case store.HotTailCorruptError():
            return RequestError(
                Reason.STORE_DAMAGED, text, session_id=error.session_id, unit=error.unit_index
            )
        case store.SessionRecordCorruptError():
            return RequestError(Reason.STORE_DAMAGED, text, session_id=error.session_id)
        case store.ControlCorruptError():
            return RequestError(Reason.STORE_DAMAGED, text)
    return None


def _of_writer(error: store.KVStoreError) -> RequestError | None:
    text = str(error)
    match error:
        case store.BudgetExceededError():
            refusal = RequestError(
                Reason.STORE_FULL,
                text,
                budget=error.budget,
                budget_bytes=error.budget_bytes,
                used_bytes=error.used_bytes,
                needed_bytes=error.needed_bytes,
            )
            # Of a session's own budget nothing becomes free while its push waits.
            refusal.retryable = error.budget != "session_budget_bytes"
            return refusal
        case store.StoreFullError():
            return RequestError(
                Reason.STORE_FULL,
                text,
                needed_bytes=error.needed_bytes,
                free_bytes=error.free_bytes,
                reserve_bytes=error.reserve_bytes,
            )
        case store.WriterFencedError():
            return RequestError(
                Reason.LEASE_LOST,
                f"session {error.session_id!r} may belong to another process by now; what was "
                "acknowledged is safe",
                session_id=error.session_id,
            )
        case store.WriterFailedError() | store.WriterClosedError():
            return RequestError(
                Reason.INTERNAL,
                f"the writer of session {error.session_id!r} has ended, by a fault of the disk or "
                "a stop; what was acknowledged is safe, and a new call opens a new writer",
                session_id=error.session_id,
            )
        case store.UnitTooLargeError():
            # Of the server's settings: nothing that the client sends differently helps.
            return RequestError(
                Reason.INTERNAL,
                text,
                session_id=error.session_id,
                given_bytes=error.unit_bytes,
                allowed_bytes=error.hot_tail_bytes,
            )
        case store.NotFiniteError():
            # The model made them so: nothing that the client sends differently helps.
            return RequestError(
                Reason.INTERNAL,
                text,
                session_id=error.session_id,
                unit=error.unit_index,
                layer=error.layer_index,
            )
    return None
