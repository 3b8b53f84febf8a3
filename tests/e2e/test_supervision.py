"""`lookback serve` as its owner sees it: started, looked at, stopped in the middle of work."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from svc.client import (
    Answer,
    DecodingOptions,
    LookbackClient,
    LookbackError,
    PushProgress,
    wait_ready,
)
from tests.e2e.running import Name, Service
from tests.e2e.videos import Pictures
from tests.svc.ingest.stored import read_stored

NAMES = {
    "ingest": ("", "lookback.v1.IngestService", "lookback.v1.SessionService"),
    "qa": ("", "lookback.v1.QuestionService"),
}
FRAMES = [(0.5 * i, i) for i in range(100_000)]
"""More than is pushed before the end comes."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, tiny_path: Path) -> Iterator[Service]:
    with Service(folder=tmp_path_factory.mktemp("supervised"), model=tiny_path) as service:
        yield service


@pytest.mark.parametrize("name", NAMES)
def test_each_process_says_that_it_serves(service: Service, name: str) -> None:
    address = service.ingest_address if name == "ingest" else service.qa_address
    with grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for served in NAMES[name]:
            status = health.Check(health_pb2.HealthCheckRequest(service=served)).status
            assert status == health_pb2.HealthCheckResponse.SERVING


async def test_a_killed_process_is_back_at_its_address_and_the_other_stays(
    service: Service,
) -> None:
    """Kills of the ingest process are in test_kill."""
    ingest_pid, qa_pid = service.pid("ingest"), service.pid("qa")
    service.kill("qa")
    await wait_ready(service.qa_address, 240)
    assert service.pid("qa") != qa_pid
    assert service.pid("ingest") == ingest_pid
    assert "killed by SIGKILL" in service.log


@pytest.mark.parametrize("name", NAMES)
async def test_a_process_that_is_too_busy_to_greet_is_waited_for(
    service: Service, name: Name
) -> None:
    """A connection is taken by the kernel at once, and greeted when the process gets to run."""
    process = service.child(name)
    assert process is not None
    async with service.client() as client:
        process.suspend()
        call = (
            client.get_session("nobody") if name == "ingest" else client.answer("nobody", "What?")
        )
        calling = asyncio.create_task(call)
        _, pending = await asyncio.wait({calling}, timeout=1.0)
        process.resume()
        assert pending, calling.exception()
        with pytest.raises(LookbackError) as caught:
            await calling
    assert caught.value.reason == "SESSION_NOT_FOUND"


@dataclass(kw_only=True)
class Work:
    """What goes on when the service is told to stop."""

    acknowledged_count: int = 0
    answer: asyncio.Task[Answer] | None = None
    exit_status: asyncio.Task[int] | None = None


async def push_ask_and_stop(service: Service, client: LookbackClient, work: Work) -> None:
    """Pushes as a camera would; asks, and stops the service, once something is acknowledged."""
    long = DecodingOptions(max_new_token_count=4096, temperature=0.0, ignore_eos=True)
    async for event in client.push(
        "door", Pictures(frames=FRAMES), speed=20.0, give_up_after_s=0.0
    ):
        if not isinstance(event, PushProgress):
            continue
        work.acknowledged_count = event.durable_unit_count
        if work.acknowledged_count and work.exit_status is None:
            assert list(service.shm.iterdir())
            work.answer = asyncio.create_task(client.answer("door", "What?", decoding=long))
            await asyncio.sleep(0)
            work.exit_status = asyncio.create_task(asyncio.to_thread(service.stop))


async def test_stopped_in_the_middle_of_a_push_and_an_answer_it_leaves_nothing_behind(
    service: Service,
) -> None:
    """The last of this module: the push keeps what it was told, the answer comes or is refused."""
    children = psutil.Process(service.process.pid).children(recursive=True)
    assert len(children) == 2
    work = Work()
    async with service.client() as client:
        await client.create_session("door")
        with pytest.raises(LookbackError) as caught:
            await push_ask_and_stop(service, client, work)
        assert caught.value.reason == "GAVE_UP"
        assert work.exit_status is not None
        assert work.answer is not None
        assert await work.exit_status == 0
        await asyncio.wait({work.answer})
    if (error := work.answer.exception()) is not None:
        assert isinstance(error, LookbackError)
        assert error.reason in {"CONNECTION_LOST", "UNREACHABLE", "DRAINING"}
    _, alive = psutil.wait_procs(children, timeout=0)
    assert alive == []
    assert list(service.shm.iterdir()) == []
    assert "Traceback" not in service.log
    stored = read_stored(service.data, "door")
    assert stored.durable_unit_count >= work.acknowledged_count > 0
