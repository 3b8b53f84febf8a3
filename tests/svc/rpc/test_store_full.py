"""Whether a client is told to wait for room: not where none can come of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.rpc import error_details_pb2, status_pb2

from kvstore.errors import BudgetExceededError
from svc.rpc.errors import Reason
from svc.rpc.store_errors import translate_store_error


@pytest.mark.parametrize(
    ("budget", "may_help"), [("session_budget_bytes", False), ("disk_budget_bytes", True)]
)
def test_a_push_waits_for_room_of_the_store_and_not_of_its_own_session(
    budget: str, may_help: bool
) -> None:
    refusal = translate_store_error(BudgetExceededError(Path("cam"), budget, 100, 95, 90, 10))
    assert refusal is not None
    assert refusal.reason is Reason.STORE_FULL
    status = status_pb2.Status()
    for key, value in refusal.to_status().trailing_metadata:
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    told = any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details)
    assert told is may_help
