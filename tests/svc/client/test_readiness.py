"""Calls wait for a server that is still loading: so long, and for nothing else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from svc.client import LookbackClient, LookbackError, PushFinished, readiness
from tests.svc.client.material import ListSource, images
from tests.svc.client.protocol_server import ProtocolServer, StoredSession, served

Call = Callable[[LookbackClient], Awaitable[object]]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "_POLL_S", 0.01)


async def _push(client: LookbackClient) -> object:
    events = [event async for event in client.push("s", ListSource(images(5)))]
    return events[-1]


CALLS: dict[str, Call] = {
    "sessions": lambda client: client.get_session("s"),
    "ask": lambda client: client.answer("s", "what ?"),
    "push": _push,
}


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_is_made_again_until_the_model_is_loaded(name: str) -> None:
    server, told = ProtocolServer(), list[str]()
    server.sessions["s"] = StoredSession()
    server.loading_call_count = 3
    async with (
        served(server) as address,
        LookbackClient(address, address, on_waiting=told.append) as client,
    ):
        result = await CALLS[name](client)
    assert server.loading_call_count == 0
    if name == "push":  # tells by its own events
        assert isinstance(result, PushFinished)
    else:
        assert told == ["the server is still loading its model; waiting for it up to 60 s"]


@pytest.mark.parametrize("name", CALLS)
async def test_a_model_that_takes_too_long_is_told(name: str) -> None:
    server = ProtocolServer()
    server.sessions["s"] = StoredSession()
    server.loading_call_count = 10**9
    async with (
        served(server) as address,
        LookbackClient(address, address, ready_within_s=0.1) as client,
    ):
        with pytest.raises(LookbackError, match="still loading its model") as caught:
            await CALLS[name](client)
    assert caught.value.reason == "NOT_READY"
    assert server.loading_call_count < 10**9 - 1


async def test_a_question_waits_no_longer_than_its_answer_may_take() -> None:
    server = ProtocolServer()
    server.loading_call_count = 10**9
    async with served(server) as address, LookbackClient(address, address) as client:
        with pytest.raises(LookbackError, match="was not ready within"):
            await client.answer("s", "what ?", timeout_s=0.5)


async def test_a_client_that_is_not_to_wait_is_told_at_once() -> None:
    server = ProtocolServer()
    server.loading_call_count = 1
    async with (
        served(server) as address,
        LookbackClient(address, address, ready_within_s=0) as client,
    ):
        with pytest.raises(LookbackError, match="loading") as caught:
            await client.get_session("s")
        assert caught.value.reason == "NOT_READY"
        with pytest.raises(LookbackError, match="no session") as caught:
            await client.get_session("s")
    assert caught.value.reason == "SESSION_NOT_FOUND"
