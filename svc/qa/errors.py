"""Which errors of the lower packages are refusals, and how clients see them."""

from __future__ import annotations

from kvstore import errors as store
from retrieval import errors as retrieval
from svc.engine import answer_request
from svc.engine import errors as engine
from svc.engine.losses import EvidenceLostError
from svc.rpc.errors import Reason, RequestError
from svc.rpc.store_errors import translate_store_error

_SHOWN_CHARS = 100

SNAPSHOT_LOST_ERRORS = (
    store.SnapshotExpiredError,
    store.UnitDroppedError,
    store.UnitsThinnedError,
    retrieval.EpochChangedError,
    retrieval.IndexShortError,
)
"""The ingest process came back from a crash meanwhile, or dropped or thinned units: take a new
snapshot."""


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
    if isinstance(error, EvidenceLostError):
        return _of_loss(error)
    return translate_store_error(error) or _of_retrieval(error) or _of_request(error)


def _of_loss(error: EvidenceLostError) -> RequestError:
    first = error.first
    return RequestError(
        Reason.STORE_DAMAGED,
        str(error),
        session_id=first.session_id,
        block="hot tail" if first.block_index is None else first.block_index,
        unit=first.unit_index,
        layer=first.layer_index,
        lost_units=error.lost_count,
        chosen_units=error.wanted_count,
    )


def _of_retrieval(error: Exception) -> RequestError | None:
    match error:
        case retrieval.IndexDamagedError():
            return RequestError(Reason.STORE_DAMAGED, str(error), file=error.path.name)
        case retrieval.EpochChangedError() | retrieval.IndexShortError():
            return RequestError(
                Reason.SNAPSHOT_LOST, f"the ingest process was restarted meanwhile: {error}"
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
