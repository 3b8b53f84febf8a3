"""The protocol's table of reasons says what the server sends."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from google.rpc import error_details_pb2

from svc.rpc.errors import Reason, RequestError

ROOT = Path(__file__).parents[3]
PROTOCOL = ROOT / "proto/lookback/v1/question.proto"
ROW = re.compile(r"^  //   ([A-Z_]+)  +([A-Z_]+)( \+)?  +\S", re.MULTILINE)
ROWS = ROW.findall(PROTOCOL.read_text())


@pytest.mark.parametrize(("code", "reason", "mark"), ROWS, ids=[row[1] for row in ROWS])
def test_a_documented_reason_travels_as_documented(code: str, reason: str, mark: str) -> None:
    refusal = RequestError(Reason[reason], "x")
    assert refusal.reason.code.name == code
    details = refusal.to_status().trailing_metadata[0][1]
    retry_url = error_details_pb2.RetryInfo.DESCRIPTOR.full_name.encode()
    assert (retry_url in details) == bool(mark)


def test_every_reason_that_the_qa_process_names_is_documented() -> None:
    sources = [*(ROOT / "svc/qa").glob("*.py"), ROOT / "svc/rpc/interceptor.py"]
    named = set(re.findall(r"Reason\.([A-Z_]+)", "".join(path.read_text() for path in sources)))
    assert named <= {row[1] for row in ROWS}
    assert "QUESTION_TIMED_OUT" in named
