"""Every error of the store has one meaning for clients, in both processes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore.errors import (
    KVStoreError,
    NotFiniteError,
    SliceCorruptError,
    UnitTooLargeError,
    WriterClosedError,
    WriterFailedError,
)
from svc.ingest.errors import translate as of_ingest
from svc.qa.errors import translate as of_qa
from svc.rpc.errors import Reason
from svc.rpc.store_errors import translate_store_error

# What the server's operator must mend, nobody else can.
FAULTS_OF_OURS = {WriterFailedError, WriterClosedError, UnitTooLargeError, NotFiniteError}


def every_kind(base: type[KVStoreError] = KVStoreError) -> Iterator[type[KVStoreError]]:
    for kind in base.__subclasses__():
        yield kind
        yield from every_kind(kind)


def example(kind: type[KVStoreError]) -> KVStoreError:
    """An error of this class; what it says does not matter here."""
    values: dict[str, Any] = {"path": Path("seg"), "session_id": "cam", "reason": "torn"}
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    required = [each.name for each in parameters if each.default is each.empty]
    return kind(*(values.get(name, 7) for name in required))


@pytest.mark.parametrize("translate", [translate_store_error, of_ingest, of_qa])
@pytest.mark.parametrize("kind", list(every_kind()), ids=lambda kind: kind.__name__)
def test_every_error_of_the_store_is_told_with_a_reason(kind: Any, translate: Any) -> None:
    refusal = translate(example(kind))
    assert refusal is not None
    assert (refusal.reason is Reason.INTERNAL) == (kind in FAULTS_OF_OURS)
    if "session_id" in inspect.signature(kind.__init__).parameters:
        assert refusal.metadata["session_id"] == "cam"


def test_an_error_of_anything_else_is_not_the_stores() -> None:
    assert translate_store_error(ValueError("x")) is None


def test_what_the_disk_said_stays_in_the_log() -> None:
    refusal = translate_store_error(WriterFailedError("cam", "[Errno 5] Input/output error"))
    assert refusal is not None
    assert "Input/output" not in str(refusal)


def test_damage_in_the_hot_tail_has_no_block() -> None:
    refusal = translate_store_error(SliceCorruptError("cam", None, 4, 1))
    assert refusal is not None
    assert refusal.metadata == {"session_id": "cam", "block": "hot tail", "unit": "4", "layer": "1"}
