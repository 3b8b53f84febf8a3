"""A store that holds sessions of another model: they are refused, and nothing else is."""

from __future__ import annotations

import logging
from pathlib import Path

import grpc
import pytest

from lookback.v1 import session_pb2
from tests.svc.engine.tiny import build_tiny_checkpoint
from tests.svc.ingest.calls import FINISH, Refused, images, open_images
from tests.svc.ingest.conftest import StartServer


@pytest.fixture
def other_model(tmp_path: Path) -> str:
    rope = {"rope_type": "default", "rope_theta": 5e5}
    return str(build_tiny_checkpoint(tmp_path / "other", rope=rope))


async def test_sessions_of_another_model_are_refused_one_by_one(
    start: StartServer, other_model: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = await start()
    for name in ("cam", "yard"):
        created = await client.create(name)
    made_with = created.session.model.split()[-1]
    call = await client.open(open_images("cam"))
    await call.send(images([0.0, 1.0]), FINISH)
    await call.rest()
    await client.close()
    with caplog.at_level(logging.WARNING):
        client = await start(model=other_model)
    (warning,) = [r for r in caplog.records if "served model" in r.message]
    served_with = (await client.create("new")).session.model.split()[-1]
    told = warning.__dict__
    assert (told["session_count"], told["sessions"]) == (2, "cam, yard")
    assert made_with in told["made_with"]
    assert served_with in told["serving"]

    with pytest.raises(Refused) as caught:
        await client.open(open_images("yard"))
    with pytest.raises(Refused) as caught_again:
        await client.sessions("CreateSession", session_id="yard", exist_ok=True)
    for refusal in (caught.value, caught_again.value):
        assert refusal.reason == "IDENTITY_MISMATCH"
        assert refusal.code == grpc.StatusCode.FAILED_PRECONDITION
        assert made_with in refusal.message
        assert served_with in refusal.message

    ended = (await client.sessions("FinishSession", session_id="yard")).session
    assert ended.state == session_pb2.Session.STATE_FINISHED
    listed = (await client.sessions("ListSessions")).sessions
    assert [session.session_id for session in listed] == ["cam", "new", "yard"]
    call = await client.open(open_images("new"))
    await call.send(images([0.0]), FINISH)
    await call.rest()
    for name in ("cam", "yard"):
        await client.sessions("DeleteSession", session_id=name)
