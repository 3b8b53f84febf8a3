"""Which errors of the lower packages are refusals, and how clients see them."""

from __future__ import annotations

from kvstore import errors as store
from retrieval import errors as retrieval
from svc.engine import answer_request
from svc.engine import errors as engine
from svc.rpc.errors import Reason, RequestError

_SHOWN_CHARS = 100

SNAPSHOT_LOST_ERRORS = (
    store.SnapshotExpiredError,
    retrieval.EpochChangedError,
    retrieval.IndexShortError,
)
"""The ingest process came back from a crash meanwhile: a new snapshot may do."""


def invalid_field(field: str, given: object, allowed: str) -> RequestError:
    """Returns the refusal of a field's value; a long value is shown by its beginning."""
    # Errors travel in HTTP headers: a few kilobytes, and the call fails with no reason at all.
    shown = repr(given)
    if len(shown) > _SHOWN_CHARS:
        shown = f"{shown[:_SHOWN_CHARS]}... ({len(shown)} characters)"
    return RequestError(
        Reason.INVALID_REQUEST,
        f"{field} must be {allowed}, got {shown}",
        field=field,
        given=shown,
        allowed=allowed,
    )


def translate(error: Exception) -> RequestError | None:
    """Returns the refusal that an error of kvstore, retrieval or the engine stands for."""
    return _of_store(error) or _of_request(error)


def _of_store(error: Exception) -> RequestError | None:
    text = str(error)
    match error:
        case store.SessionNotFoundError():
            return RequestError(Reason.SESSION_NOT_FOUND, text, session_id=error.session_id)
        case store.InvalidSessionIdError():
            return RequestError(Reason.INVALID_SESSION_ID, text, session_id=error.session_id)
        case store.SliceCorruptError():
            return RequestError(
                Reason.STORE_DAMAGED,
                text,
                session_id=error.session_id,
                block=error.block_index,
                unit=error.unit_index,
                layer=error.layer_index,
            )
        case store.BlockCorruptError():
            return RequestError(
                Reason.STORE_DAMAGED, text, session_id=error.session_id, block=error.block_index
            )
        case store.SessionRecordCorruptError() | store.HotTailCorruptError():
            return RequestError(Reason.STORE_DAMAGED, text, session_id=error.session_id)
        case store.FormatVersionError():
            return RequestError(
                Reason.IDENTITY_MISMATCH,
                text,
                field="format",
                stored=error.version,
                serving=error.supported,
            )
        case retrieval.IndexDamagedError():
            return RequestError(Reason.STORE_DAMAGED, text, file=error.path.name)
        case _ if isinstance(error, SNAPSHOT_LOST_ERRORS):
            return RequestError(
                Reason.SNAPSHOT_LOST, f"the ingest process was restarted meanwhile: {text}"
            )
    return None


def _of_request(error: Exception) -> RequestError | None:
    text = str(error)
    match error:
        case engine.EmptyQuestionError():
            return RequestError(Reason.QUESTION_INVALID, text, field="question")
        case engine.QuestionTooLongError():
            return RequestError(
                Reason.QUESTION_INVALID,
                text,
                field="question",
                given=error.token_count,
                allowed=error.allowed_token_count,
            )
        case answer_request.RequestError():
            return invalid_field(error.field, error.given, error.allowed)
        case answer_request.NothingVisibleError():
            return RequestError(Reason.SESSION_EMPTY, text)
        case retrieval.BudgetTooSmallError():
            return RequestError(
                Reason.INVALID_REQUEST,
                f"the newest unit takes {error.token_count} tokens and {error.position_span} "
                "positions, more than token_count allows or the question leaves room for",
                field="budget",
                token_count=error.token_count,
                position_span=error.position_span,
            )
    return None
