"""Every way a question is refused, with its code, reason and values."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from kvstore.deletion import delete_session
from kvstore.reader import SessionReader
from kvstore.session import SessionRecord, create_session
from lookback.v1 import question_pb2 as pb
from svc.engine.model import LoadedModel
from svc.engine.serving import model_identity
from tests.svc.qa.service import LiveSession, QaProcess

Live = Callable[..., LiveSession]
Code = grpc.StatusCode


def test_an_unknown_session_is_not_found(qa: QaProcess) -> None:
    refusal = qa.refusal("never-made")
    assert (refusal.code, refusal.reason) == (Code.NOT_FOUND, "SESSION_NOT_FOUND")
    assert refusal.metadata == {"session_id": "never-made"}


@pytest.mark.parametrize("name", ["../etc", "UPPER", "a" * 64, "-a"])
def test_what_cannot_name_a_session_is_refused(qa: QaProcess, name: str) -> None:
    refusal = qa.refusal(name)
    assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, "INVALID_SESSION_ID")


def test_a_session_without_a_unit_is_empty(qa: QaProcess, store: Path, model: LoadedModel) -> None:
    record = SessionRecord(
        session_id="no-writer-yet",
        created_unix_s=1.0,
        unit_period_s=1.0,
        identity={**model_identity(model)},
    )
    create_session(store, record)
    for fields in ({}, {"asked_at_s": 1.0}):
        refusal = qa.refusal("no-writer-yet", **fields)
        assert (refusal.code, refusal.reason) == (Code.FAILED_PRECONDITION, "SESSION_EMPTY")


@pytest.mark.parametrize("field", ["model", "dtype", "prefix"])
def test_a_session_of_another_model_is_refused_naming_both(
    qa: QaProcess, live: Live, model: LoadedModel, field: str
) -> None:
    session = live(identity={field: "another"})
    session.push([0.0])
    refusal = qa.refusal(session.session_id)
    assert (refusal.code, refusal.reason) == (Code.FAILED_PRECONDITION, "IDENTITY_MISMATCH")
    assert refusal.metadata["field"] == field
    assert refusal.metadata["stored"] == "another"
    assert refusal.metadata["serving"] == model_identity(model)[field]


def test_a_time_that_was_not_received_is_out_of_range(qa: QaProcess, live: Live) -> None:
    session = live()
    session.push([0.0, 1.0])
    session.stream.received(1.5, 2)
    refusal = qa.refusal(session.session_id, asked_at_s=1.6)
    assert (refusal.code, refusal.reason) == (Code.OUT_OF_RANGE, "ASKED_AT_NOT_RECEIVED")
    assert refusal.metadata == {"asked_at_s": "1.6", "received_pts_s": "1.5"}


@pytest.mark.parametrize(("asked_at_s", "cut"), [(4.9, 0), (5.0, pb.SNAPSHOT_CUT_BEFORE)])
def test_a_time_before_the_first_frame_is_out_of_range(
    qa: QaProcess, live: Live, asked_at_s: float, cut: pb.SnapshotCut
) -> None:
    session = live()
    session.push([5.0, 6.0])
    refusal = qa.refusal(session.session_id, asked_at_s=asked_at_s, cut=cut)
    assert (refusal.code, refusal.reason) == (Code.OUT_OF_RANGE, "ASKED_AT_BEFORE_START")
    assert refusal.metadata == {"asked_at_s": str(asked_at_s), "first_pts_s": "5.0"}


@pytest.mark.parametrize(
    ("reason", "field", "fields"),
    [
        ("QUESTION_INVALID", "question", {"question": " "}),
        ("QUESTION_INVALID", "question", {"question": "x" * 8001}),
        ("QUESTION_INVALID", "question", {"question": "ü?" * 4000}),  # too many tokens
        ("INVALID_REQUEST", "asked_at_s", {"asked_at_s": math.nan}),
        ("INVALID_REQUEST", "choices", {"choices": ["one"]}),
        (
            "INVALID_REQUEST",
            "unit_indices",
            {"retrieval": pb.RetrievalOptions(unit_indices=[0, 2])},
        ),
        (
            "INVALID_REQUEST",
            "unit_indices",
            {"retrieval": pb.RetrievalOptions(unit_indices=[9] * 50_000)},
        ),
        ("INVALID_REQUEST", "budget", {"retrieval": pb.RetrievalOptions(token_count=8)}),
        (
            "INVALID_REQUEST",
            "token_count",
            {"retrieval": pb.RetrievalOptions(token_count=10_000_000)},
        ),
        ("INVALID_REQUEST", "temperature", {"decoding": pb.DecodingOptions(temperature=11)}),
        ("INVALID_REQUEST", "temperature", {"decoding": pb.DecodingOptions(temperature=1e-40)}),
        (
            "INVALID_REQUEST",
            "repetition_penalty",
            {"decoding": pb.DecodingOptions(repetition_penalty=1e-300)},
        ),
    ],
)
def test_a_request_outside_the_limits_is_refused_by_field(
    qa: QaProcess, live: Live, reason: str, field: str, fields: dict[str, Any]
) -> None:
    session = live()
    session.push([0.0, 1.0])
    question = fields.pop("question", "What?")
    refusal = qa.refusal(session.session_id, question, **fields)
    assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, reason)
    assert refusal.metadata["field"] == field


def test_a_deleted_session_is_gone_and_its_files_are_let_go(
    qa: QaProcess, store: Path, live: Live
) -> None:
    session = live()
    session.push([0.0])
    session.finish()
    qa.ask(session.session_id)
    assert open_files(qa, session.session_id)
    delete_session(store, session.session_id)
    refusal = qa.refusal(session.session_id)
    assert (refusal.code, refusal.reason) == (Code.NOT_FOUND, "SESSION_NOT_FOUND")
    while open_files(qa, session.session_id):
        time.sleep(0.05)  # until the sweep comes round


def test_a_session_made_anew_under_its_name_is_another(
    qa: QaProcess, store: Path, model: LoadedModel, live: Live
) -> None:
    session = live()
    session.push([0.0, 1.0])
    qa.ask(session.session_id)
    session.close()
    delete_session(store, session.session_id)
    again = LiveSession(store, model, session.session_id)
    again.push([7.0])
    answer = qa.ask(session.session_id)
    again.close()
    assert (answer.evidence_until_s, answer.snapshot_unit_count) == (7.0, 1)


def open_files(qa: QaProcess, session_id: str) -> list[str]:
    """Files of the session that the process holds open, or has mapped."""
    process = Path(f"/proc/{qa.process.pid}")
    links = []
    for descriptor in (process / "fd").iterdir():
        try:
            links.append(os.readlink(descriptor))
        except FileNotFoundError:
            continue
    links += (process / "maps").read_text().splitlines()
    return [link for link in links if f"/{session_id}/" in link]


class Damage:
    """Bytes of a session's file that are turned over while the block lasts."""

    def __init__(self, path: Path, offset: int) -> None:
        self._path, self._offset = path, offset

    def __enter__(self) -> None:
        self._flip()

    def __exit__(self, *error: object) -> None:
        self._flip()

    def _flip(self) -> None:
        with self._path.open("r+b") as file:
            file.seek(self._offset)
            byte = file.read(1)[0]
            file.seek(self._offset)
            file.write(bytes([byte ^ 0xFF]))


@pytest.fixture
def finished(live: Live) -> LiveSession:
    session = live()
    session.push([float(t) for t in range(6)])
    session.finish()
    return session


def keys_offset(store: Path, session_id: str, unit: int, layer: int) -> int:
    """Where the keys of a unit lie in the session's first segment file."""
    reader = SessionReader.open(store, session_id)
    snapshot, geometry = reader.snapshot(), reader.geometry
    assert geometry is not None
    shape = (int(snapshot.token_counts[unit]), geometry.kv_head_count, geometry.head_dim)
    keys, values = np.empty(shape, geometry.storage_dtype), np.empty(shape, geometry.storage_dtype)
    reader.read(snapshot, layer, [unit], keys, values)
    reader.close()
    data = (store / "sessions" / session_id / "seg-000000.kvs").read_bytes()
    return data.index(keys.tobytes())


def test_a_damaged_unit_is_named_in_the_answer_or_in_its_refusal(
    qa: QaProcess, store: Path, finished: LiveSession
) -> None:
    whole = qa.ask(finished.session_id)
    segment = store / "sessions" / finished.session_id / "seg-000000.kvs"
    with Damage(segment, keys_offset(store, finished.session_id, unit=2, layer=1)):
        without = qa.ask(finished.session_id, retrieval=pb.RetrievalOptions(unit_count=6))
        refusal = qa.refusal(finished.session_id, retrieval=pb.RetrievalOptions(unit_indices=[2]))
        unharmed = qa.ask(
            finished.session_id, retrieval=pb.RetrievalOptions(unit_indices=[0, 1, 3])
        )
    (lost,) = without.evidence_lost
    assert (lost.first_unit_index, lost.unit_count, lost.first_layer_index) == (2, 1, 1)
    assert (lost.start_s, lost.end_s) == (2.0, 3.0)
    assert lost.reason == pb.LostEvidence.REASON_CHECKSUM
    assert (refusal.code, refusal.reason) == (Code.DATA_LOSS, "STORE_DAMAGED")
    assert refusal.metadata == {
        "session_id": finished.session_id,
        "block": "0",
        "unit": "2",
        "layer": "1",
        "lost_units": "1",
        "chosen_units": "1",
    }
    assert unharmed.snapshot_unit_count == 6
    assert not unharmed.evidence_lost
    assert qa.ask(finished.session_id).text == whole.text


def test_a_damaged_record_is_reported(qa: QaProcess, store: Path, finished: LiveSession) -> None:
    with Damage(store / "sessions" / finished.session_id / "session.json", 40):
        refusal = qa.refusal(finished.session_id)
    assert (refusal.code, refusal.reason) == (Code.DATA_LOSS, "STORE_DAMAGED")


def test_a_session_whose_index_is_absent_is_reported(
    qa: QaProcess, store: Path, finished: LiveSession
) -> None:
    (store / "sessions" / finished.session_id / "index.rows").unlink()
    refusal = qa.refusal(finished.session_id)
    assert (refusal.code, refusal.reason) == (Code.DATA_LOSS, "STORE_DAMAGED")
    assert refusal.metadata["file"] == "index.rows"
