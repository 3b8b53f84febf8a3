"""What we rely on of grpc.aio and found nowhere promised; a new version has to show it again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest

from svc.client.errors import CONNECTION_LOST, UNREACHABLE, error_from_call

METHOD = "/facts.Facts/Stream"
Handler = Callable[[AsyncIterator[bytes], Any], AsyncIterator[bytes]]


class Facts:
    """A server of one bidirectional method of bytes, and a channel to it."""

    def __init__(self, handler: Handler, options: list[tuple[str, int]]) -> None:
        self.server = grpc.aio.server(options=options)
        behaviours: dict[str, Any] = {"Stream": grpc.stream_stream_rpc_method_handler(handler)}
        self.server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("facts.Facts", behaviours),)
        )
        port = self.server.add_insecure_port("127.0.0.1:0")
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self.call: Any = self.channel.stream_stream(METHOD)


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[Facts]]]:
    running: list[Facts] = []

    async def start(handler: Handler, *options: tuple[str, int]) -> Facts:
        facts = Facts(handler, list(options))
        await facts.server.start()
        running.append(facts)
        return facts

    yield start
    for facts in running:
        await facts.channel.close()
        await facts.server.stop(0)


@pytest.mark.parametrize("ending", ["half-close", "cancel", "channel closed"])
async def test_every_end_of_a_call_ends_the_request_iterator_or_cancels(
    serve: Callable[..., Awaitable[Facts]], ending: str
) -> None:
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def handler(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        yield b"opened"
        try:
            async for _ in requests:
                pass
            seen.put_nowait("ended")
        except asyncio.CancelledError:
            seen.put_nowait("cancelled")
            raise

    facts = await serve(handler)
    call = facts.call()
    await call.write(b"first")
    assert await call.read() == b"opened"
    match ending:
        case "half-close":
            await call.done_writing()
        case "cancel":
            call.cancel()
        case "channel closed":
            await facts.channel.close()
    async with asyncio.timeout(10):
        assert await seen.get() in ({"ended"} if ending == "half-close" else {"ended", "cancelled"})


async def test_a_dropped_call_cancels_a_handler_that_waits_for_something_else(
    serve: Callable[..., Awaitable[Facts]],
) -> None:
    cleaned_up = asyncio.Event()

    async def handler(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        try:
            yield b"opened"
            await asyncio.Event().wait()
        finally:
            cleaned_up.set()

    facts = await serve(handler)
    call = facts.call()
    assert await call.read() == b"opened"
    call.cancel()
    async with asyncio.timeout(10):
        await cleaned_up.wait()


async def written_ahead(facts: Facts, message: bytes) -> int:
    """Returns how many messages a client can write that the server does not read."""
    call = facts.call()
    assert await call.read() == b"opened"
    count = 0
    try:
        while count < 200:
            async with asyncio.timeout(0.5):
                await call.write(message)
            count += 1
    except TimeoutError:
        pass
    return count


async def test_without_the_bandwidth_probe_a_client_cannot_run_far_ahead(
    serve: Callable[..., Awaitable[Facts]],
) -> None:
    async def handler(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        yield b"opened"
        await asyncio.Event().wait()

    message = bytes(256 * 1024)
    bounded = await written_ahead(await serve(handler, ("grpc.http2.bdp_probe", 0)), message)
    assert bounded <= 3


async def write_to_new_calls(facts: Facts) -> None:
    while True:  # a stop takes a moment to be known
        await facts.call().write(b"new")


async def test_a_stop_with_grace_serves_open_calls_and_refuses_new_ones(
    serve: Callable[..., Awaitable[Facts]],
) -> None:
    async def handler(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    facts = await serve(handler)
    call = facts.call()
    await call.write(b"before")
    assert await call.read() == b"before"
    stopping = asyncio.create_task(facts.server.stop(30))
    await asyncio.sleep(0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await write_to_new_calls(facts)
    # A call that meets the stop on its way may be cancelled, or lose its status, in place of a
    # refusal: all of it is a lost connection to the client.
    assert error_from_call(caught.value, "there").reason in (CONNECTION_LOST, UNREACHABLE)
    await call.write(b"after")
    assert await call.read() == b"after"
    await call.done_writing()
    assert await call.read() == grpc.aio.EOF
    async with asyncio.timeout(10):
        await stopping


async def test_a_message_beyond_the_limit_ends_the_call_as_resource_exhausted(
    serve: Callable[..., Awaitable[Facts]],
) -> None:
    async def handler(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    facts = await serve(handler, ("grpc.max_receive_message_length", 1000))
    call = facts.call()
    await call.write(bytes(1001))
    assert await call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_abort_raises_an_exception_that_a_catch_all_would_swallow() -> None:
    assert issubclass(grpc.aio.AbortError, Exception)
