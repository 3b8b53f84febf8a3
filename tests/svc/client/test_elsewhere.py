"""A session that is elsewhere: the client follows, a bounded number of times, and comes back."""

from __future__ import annotations

import pytest

from svc.client import LookbackClient, LookbackError, PushFinished, PushReconnecting
from svc.rpc.errors import Reason, RequestError
from tests.svc.client.material import ListSource, images
from tests.svc.client.protocol_server import ProtocolServer, StoredSession, served


def _elsewhere(address: str = "") -> RequestError:
    where = {"address": address} if address else {}
    return RequestError(Reason.SESSION_ELSEWHERE, "not here", session_id="s", **where)


async def test_every_call_about_a_session_goes_where_it_is() -> None:
    home, there = ProtocolServer(), ProtocolServer()
    there.sessions["s"] = StoredSession()
    async with served(home) as first, served(there) as second:
        home.refuse = _elsewhere(second)
        async with LookbackClient(first, first) as client:
            assert (await client.get_session("s")).session_id == "s"
            answer = await client.answer("s", "What was it?")
            assert answer.text == "A red circle."
            events = [event async for event in client.push("s", ListSource(images(5)))]
            assert isinstance(events[0], PushReconnecting)
            assert events[0].error.metadata["address"] == second
            assert isinstance(events[-1], PushFinished)
            await client.delete_session("s")
    assert there.sessions == {}


async def test_two_servers_that_name_each_other_are_not_asked_for_ever() -> None:
    one, other = ProtocolServer(), ProtocolServer()
    async with served(one) as first, served(other) as second:
        one.refuse, other.refuse = _elsewhere(second), _elsewhere(first)
        async with LookbackClient(first, first) as client:
            with pytest.raises(LookbackError, match="SESSION_ELSEWHERE"):
                await client.get_session("s")
            with pytest.raises(LookbackError, match="SESSION_ELSEWHERE"):
                await client.answer("s", "What was it?")
            with pytest.raises(LookbackError, match="SESSION_ELSEWHERE"):
                async for _ in client.push("s", ListSource(images(5)), give_up_after_s=0.2):
                    pass


async def test_a_server_that_names_nobody_or_itself_is_believed_to_refuse() -> None:
    home = ProtocolServer()
    async with served(home) as first:
        for refusal in (_elsewhere(), _elsewhere(first)):
            home.refuse = refusal
            async with LookbackClient(first, first) as client:
                with pytest.raises(LookbackError, match="SESSION_ELSEWHERE"):
                    await client.get_session("s")
                with pytest.raises(LookbackError, match="SESSION_ELSEWHERE"):
                    async for _ in client.push("s", ListSource(images(5))):
                        pass


async def test_a_push_comes_home_when_the_owner_it_was_sent_to_is_gone() -> None:
    home = ProtocolServer()
    home.sessions["s"] = StoredSession()
    home.refuse_opens = [_elsewhere("127.0.0.1:9")]
    async with served(home) as first, LookbackClient(first, first) as client:
        events = [event async for event in client.push("s", ListSource(images(5)))]
    assert isinstance(events[-1], PushFinished)
    reasons = [event.error.reason for event in events if isinstance(event, PushReconnecting)]
    assert reasons == ["SESSION_ELSEWHERE", "UNREACHABLE"]
