"""Sessions, questions, errors and readiness, against a real server."""

from __future__ import annotations

import asyncio
import datetime
import math
import threading
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest

from lookback.v1 import question_pb2
from svc.client import (
    Answer,
    DecodingOptions,
    FinishReason,
    KeepingRules,
    LookbackClient,
    LookbackError,
    OnFull,
    PinnedSpan,
    RetrievalMode,
    RetrievalOptions,
    RulesInForce,
    SessionState,
    TextDelta,
    Tier,
    Turn,
    wait_ready,
)
from svc.client.events import progress_of
from svc.client.feed import TaskFeed, ThreadFeed
from svc.client.pacing import Pacer
from svc.rpc.errors import Reason, RequestError
from svc.video.frames import ChunkItem, ImageItem, Item
from tests.svc.client.protocol_server import ProtocolServer, StoredSession, connected, served

NOBODY = "127.0.0.1:1"


async def test_sessions_are_created_read_changed_and_deleted() -> None:
    async with connected(ProtocolServer()) as client:
        created = await client.create_session("a")
        assert created.session_id == "a"
        assert created.state is SessionState.LIVE
        assert created.create_time == datetime.datetime.fromtimestamp(
            1_700_000_000, tz=datetime.UTC
        )
        assert created.stats is not None
        assert created.stats.last_visible_pts_s is None
        assert await client.get_session("a") == created
        assert (await client.update_session("a", display_name="hall")).display_name == "hall"
        await client.delete_session("a")
        with pytest.raises(LookbackError, match="SESSION_NOT_FOUND"):
            await client.get_session("a")


async def test_what_is_kept_is_said_changed_and_pinned() -> None:
    server = ProtocolServer()
    server.thinned_unit_count = 3
    rules = KeepingRules(session_budget_bytes=2**21, on_full=OnFull.THIN, retain_s=math.inf)
    async with connected(server) as client:
        created = await client.create_session("a", keeping=rules)
        assert created.keeping == rules
        changed = await client.update_session("a", on_full="default", retain_s=60.0)
        assert changed.keeping == KeepingRules(session_budget_bytes=2**21, retain_s=60.0)
        assert changed.keeping_in_force == RulesInForce(
            session_budget_bytes=2**21, on_full=OnFull.REFUSE, retain_s=60.0
        )
        assert changed.display_name == "A"
        changed = await client.update_session("a", display_name="", session_budget_bytes=0)
        assert (changed.display_name, changed.keeping) == ("", KeepingRules(retain_s=60.0))
        with pytest.raises(ValueError, match="nothing"):
            await client.update_session("a")
        pinned = await client.pin_span("a", 1.5, 4.0)
        assert pinned.thinned_unit_count == 3
        assert pinned.session.pinned_spans == (PinnedSpan(start_s=1.5, end_s=4.0),)
        assert (await client.unpin_span("a", 1.5, 4.0)).pinned_spans == ()


@pytest.mark.parametrize("page_size", [0, 1, 3, 100])
async def test_a_list_goes_over_all_pages(page_size: int) -> None:
    server = ProtocolServer()
    names = [f"s{i}" for i in range(7)]
    server.sessions = {name: StoredSession(durable=[1.0]) for name in names}
    async with connected(server) as client:
        found = [session async for session in client.list_sessions(page_size=page_size)]
    assert [session.session_id for session in found] == names
    assert found[0].stats is not None
    assert found[0].stats.last_durable_pts_s == 1.0


async def test_a_session_that_comes_without_stats_has_none_and_not_zeros() -> None:
    server = ProtocolServer()
    server.sessions = {"bad": StoredSession(damaged=True), "empty": StoredSession()}
    async with connected(server) as client:
        bad, empty = [session async for session in client.list_sessions()]
    assert bad.stats is None
    assert empty.stats is not None
    assert empty.stats.visible_unit_count == 0
    with pytest.raises(LookbackError, match="PROTOCOL_VIOLATED"):
        progress_of(bad)


@pytest.mark.parametrize("reason", list(Reason))
async def test_every_reason_arrives_with_message_values_and_code(reason: Reason) -> None:
    server = ProtocolServer()
    refusal = RequestError(reason, "it is so", session_id="a", limit=3)
    server.refuse = refusal
    async with connected(server, ready_within_s=0) as client:
        with pytest.raises(LookbackError) as caught:
            await client.create_session("a")
        with pytest.raises(LookbackError) as asked:
            await client.answer("a", "What?")
    for error in (caught.value, asked.value):
        assert error.reason == reason.name
        assert error.message == "it is so"
        assert error.metadata == {"session_id": "a", "limit": "3"}
        assert error.code is reason.code
        has_retry = any("RetryInfo" in str(detail) for detail in _details(refusal))
        assert (error.retry_after_s == 1.0) is has_retry


def _details(refusal: RequestError) -> list[object]:
    from google.rpc import status_pb2

    trailing = dict(refusal.to_status().trailing_metadata)
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    return [detail.type_url for detail in status.details]


async def test_nobody_there_is_said_with_the_address() -> None:
    async with LookbackClient(NOBODY, NOBODY) as client:
        with pytest.raises(LookbackError) as caught:
            await client.get_session("a")
        assert caught.value.reason == "UNREACHABLE"
        assert caught.value.metadata["address"] == NOBODY
        with pytest.raises(LookbackError, match="UNREACHABLE"):
            await client.answer("a", "What?")


async def test_an_answer_comes_as_text_and_then_whole() -> None:
    server = ProtocolServer()
    server.sessions["a"] = StoredSession()
    async with connected(server) as client:
        parts = [part async for part in client.ask("a", "What?")]
        whole = await client.answer("a", "What?")
    assert parts[:-1] == [TextDelta(text="A red "), TextDelta(text="circle.")]
    answer = parts[-1]
    assert isinstance(answer, Answer)
    assert answer == whole
    assert answer.finish_reason is FinishReason.STOP
    assert answer.choice_index is None
    assert [moment.tier for moment in answer.evidence] == [Tier.DISK, Tier.HOT]


async def test_absent_options_stay_unset_and_given_ones_arrive() -> None:
    server = ProtocolServer()
    server.sessions["a"] = StoredSession()
    async with connected(server) as client:
        await client.answer("a", "What?")
        await client.answer(
            "a",
            "And?",
            asked_at_s=0.0,
            before=True,
            choices=("x", "y"),
            history=[Turn(question="What?", answer="A circle.")],
            retrieval=RetrievalOptions(mode=RetrievalMode.SHARED, recent_unit_count=0),
            decoding=DecodingOptions(temperature=0.0, max_new_token_count=3, stop=("\n",)),
        )
    assert server.asked[0] == question_pb2.AskRequest(
        session_id="a",
        question="What?",
        retrieval=question_pb2.RetrievalOptions(),
        decoding=question_pb2.DecodingOptions(),
    )
    full = server.asked[1]
    assert full.HasField("asked_at_s")
    assert full.cut == question_pb2.SNAPSHOT_CUT_BEFORE
    assert full.history[0].answer == "A circle."
    assert full.retrieval.HasField("recent_unit_count")
    assert full.retrieval.mode == question_pb2.RETRIEVAL_MODE_SHARED
    assert full.decoding.HasField("temperature")
    assert not full.decoding.HasField("top_p")


def test_a_zero_that_would_mean_the_default_is_refused() -> None:
    with pytest.raises(ValueError, match="unit_count must be >= 1"):
        RetrievalOptions(unit_count=0)
    with pytest.raises(ValueError, match="max_new_token_count must be >= 1"):
        DecodingOptions(max_new_token_count=0)


async def test_a_call_that_ends_without_an_answer_is_a_lost_connection() -> None:
    def half(request: question_pb2.AskRequest) -> Iterator[question_pb2.AskResponse]:
        yield question_pb2.AskResponse(delta=question_pb2.TextDelta(text="A"))

    server = ProtocolServer()
    server.sessions["a"] = StoredSession()
    server.answer = half
    async with connected(server) as client:
        with pytest.raises(LookbackError, match="CONNECTION_LOST"):
            await client.answer("a", "What?")


async def test_a_value_of_a_newer_protocol_is_named() -> None:
    def newer(request: question_pb2.AskRequest) -> Iterator[question_pb2.AskResponse]:
        yield question_pb2.AskResponse(answer=question_pb2.Answer(finish_reason=99))  # type: ignore[arg-type]

    server = ProtocolServer()
    server.sessions["a"] = StoredSession()
    server.answer = newer
    async with connected(server) as client:
        with pytest.raises(LookbackError, match=r"Answer\.finish_reason = 99"):
            await client.answer("a", "What?")


async def test_ready_means_serving() -> None:
    async with served(ProtocolServer()) as address:
        await wait_ready(address, 5.0)


async def test_a_server_that_loads_is_told_from_one_that_is_not_there() -> None:
    async with served(ProtocolServer(), serving=False) as address:
        with pytest.raises(LookbackError, match="TIMED_OUT"):
            await wait_ready(address, 0.3)
    with pytest.raises(LookbackError, match="UNREACHABLE") as caught:
        await wait_ready(NOBODY, 0.3)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


def test_items_are_due_at_the_pace_of_the_video_and_late_ones_at_once() -> None:
    clock = [100.0]
    pacer = Pacer(2.0, now=lambda: clock[0])
    assert pacer.due_in_s(ImageItem(pts_s=30.0, data=b"")) == 0.0
    assert pacer.due_in_s(ImageItem(pts_s=34.0, data=b"")) == 2.0
    clock[0] = 110.0
    assert pacer.due_in_s(ImageItem(pts_s=34.0, data=b"")) == 0.0
    assert pacer.due_in_s(ChunkItem(data=b"")) == 0.0
    assert Pacer(0.0).due_in_s(ImageItem(pts_s=1e9, data=b"")) == 0.0


def test_a_resumed_video_is_paced_from_where_it_is_resumed() -> None:
    pacer = Pacer(1.0, now=lambda: 0.0)
    pacer.start(50.0)
    assert pacer.due_in_s(ImageItem(pts_s=48.0, data=b"")) == 0.0
    assert pacer.due_in_s(ImageItem(pts_s=51.0, data=b"")) == 1.0


async def test_a_blocking_source_is_read_a_bounded_number_ahead_and_closed_after_use() -> None:
    read: list[int] = []
    closed = threading.Event()

    def items() -> Iterator[Item]:
        try:
            for number in range(1000):
                read.append(number)
                yield ChunkItem(data=b"x")
        finally:
            closed.set()

    feed = ThreadFeed(items)
    for _ in range(5):
        assert await feed.head() is not None
        feed.pop()
    await feed.close()
    assert closed.is_set()
    assert len(read) <= 5 + 18


async def test_a_fault_comes_after_the_items_before_it() -> None:
    async def items() -> AsyncIterator[Item]:
        yield ChunkItem(data=b"x")
        raise OSError("gone")

    feed = TaskFeed(items())
    assert await feed.head() == ChunkItem(data=b"x")
    feed.pop()
    with pytest.raises(OSError, match="gone"):
        await feed.head()
    await asyncio.wait_for(feed.close(), 5)
