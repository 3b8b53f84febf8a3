"""A conversation keeps its turns, sends what a question may see, and stays within its bounds."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from lookback.v1 import question_pb2
from svc.client import Answer, Conversation, LookbackError, TextDelta, Turn
from svc.client.conversation import MAX_CHARS, MAX_TURNS
from svc.engine.answer_request import AnswerLimits
from svc.rpc.errors import Reason, RequestError
from tests.svc.client.protocol_server import ProtocolServer, StoredSession, connected

LIVE_UNTIL_S = 60.0


def as_of(request: question_pb2.AskRequest) -> Iterator[question_pb2.AskResponse]:
    """Answers of a session that has come to 60 s, a frame a second."""
    until_s = request.asked_at_s if request.HasField("asked_at_s") else LIVE_UNTIL_S
    if request.cut == question_pb2.SNAPSHOT_CUT_BEFORE:
        until_s -= 1.0
    yield question_pb2.AskResponse(delta=question_pb2.TextDelta(text="It was "))
    answer = question_pb2.Answer(
        text=f"It was {request.question}",
        finish_reason=question_pb2.Answer.FINISH_REASON_STOP,
        evidence_until_s=until_s,
        history_turn_count=len(request.history),
    )
    yield question_pb2.AskResponse(answer=answer)


@pytest.fixture
def server() -> ProtocolServer:
    server = ProtocolServer()
    server.sessions["a"] = StoredSession()
    server.answer = as_of
    return server


@contextlib.asynccontextmanager
async def talking(server: ProtocolServer, *turns: Turn) -> AsyncIterator[Conversation]:
    async with connected(server) as client:
        yield Conversation(client, "a", turns)


def sent(server: ProtocolServer) -> list[str]:
    """The questions of the turns that came with the last question."""
    return [turn.question for turn in server.asked[-1].history]


async def test_each_question_is_sent_with_the_turns_before_it(server: ProtocolServer) -> None:
    async with talking(server) as talk:
        parts = [part async for part in talk.ask("1")]
        assert parts[0] == TextDelta(text="It was ")
        assert isinstance(parts[-1], Answer)
        await talk.answer("2")
        answer = await talk.answer("3")
    assert answer.history_turn_count == 2
    assert sent(server) == ["1", "2"]
    assert talk.turns[0] == Turn(question="1", answer="It was 1", evidence_until_s=60.0)
    assert server.asked[-1].history[1].evidence_until_s == 60.0


async def test_a_question_as_of_an_earlier_time_goes_without_turns_that_saw_later_video(
    server: ProtocolServer,
) -> None:
    async with talking(server) as talk:
        await talk.answer("at 10", asked_at_s=10.0)
        await talk.answer("now")
        assert sent(server) == ["at 10"]
        await talk.answer("at 20", asked_at_s=20.0)
        assert sent(server) == ["at 10"]
        await talk.answer("at 10 again", asked_at_s=10.0)
        assert sent(server) == ["at 10"]
        await talk.answer("before 10", asked_at_s=10.0, before=True)
        assert sent(server) == []
        await talk.answer("now again")
        assert sent(server) == ["at 10", "now", "at 20", "at 10 again", "before 10"]


async def test_what_was_asked_as_of_any_times_never_reaches_an_earlier_one(
    server: ProtocolServer,
) -> None:
    times_s = (5.0, 30.0, None, 12.0)
    async with talking(server) as talk:
        for asked_at_s in itertools.chain.from_iterable(itertools.permutations(times_s)):
            await talk.answer("?", asked_at_s=asked_at_s)
    for request in server.asked:
        may_see_s = request.asked_at_s if request.HasField("asked_at_s") else LIVE_UNTIL_S
        assert all(turn.evidence_until_s <= may_see_s for turn in request.history)


async def test_a_question_that_failed_or_was_given_up_leaves_no_turn(
    server: ProtocolServer,
) -> None:
    async with talking(server) as talk:
        server.refuse = RequestError(Reason.SESSION_EMPTY, "nothing yet")
        with pytest.raises(LookbackError):
            await talk.answer("refused")
        server.refuse = None
        async with contextlib.aclosing(talk.ask("given up")) as parts:
            assert isinstance(await anext(parts), TextDelta)
        assert list(talk.turns) == []
        await talk.answer("whole")
    assert [turn.question for turn in talk.turns] == ["whole"]


async def test_the_oldest_turns_go_beyond_the_bounds(server: ProtocolServer) -> None:
    turns = [Turn(question=str(number), answer="") for number in range(MAX_TURNS + 8)]
    async with talking(server, *turns) as talk:
        await talk.answer("next")
        assert sent(server) == [str(number) for number in range(8, MAX_TURNS + 8)]
        assert len(talk.turns) == MAX_TURNS
    third = "x" * (MAX_CHARS // 3)
    turns = [Turn(question=f"{number}", answer=third[1:]) for number in range(4)]
    async with talking(server, *turns) as talk:
        await talk.answer("next")
    assert sent(server) == ["1", "2", "3"]


def test_a_conversation_may_keep_fewer_turns_and_not_more() -> None:
    client = ProtocolServer  # never called
    assert Conversation(client, "a", [Turn(question="1", answer="")], max_turn_count=0).turns == ()  # type: ignore[arg-type]
    for count in (-1, MAX_TURNS + 1):
        with pytest.raises(ValueError, match="max_turn_count must be in"):
            Conversation(client, "a", max_turn_count=count)  # type: ignore[arg-type]


def test_the_bounds_are_those_of_the_server() -> None:
    limits = AnswerLimits()
    assert (limits.max_history_turns, limits.max_history_chars) == (MAX_TURNS, MAX_CHARS)
