"""A QA process that does not have a session says who has it, and the client goes there."""

from __future__ import annotations

from pathlib import Path

import grpc

from svc.client import LookbackClient
from svc.engine.model import LoadedModel
from svc.registry.connection import Connection
from svc.registry.processes import ProcessDirectory
from svc.registry.root import make_root_id
from svc.registry.sessions import SessionDirectory
from tests.svc.qa.service import LiveSession, QaProcess
from tests.svc.registry.conftest import until
from tests.svc.registry.redis_server import RedisServer


async def test_a_question_finds_its_session_from_any_process(
    tmp_path: Path, tiny_path: Path, model: LoadedModel
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    session = LiveSession(here, model, "door")
    session.push([float(t) for t in range(4)])
    root_id = make_root_id(here)
    make_root_id(there)
    with (
        RedisServer(tmp_path) as redis,
        QaProcess(data_dir=here, model=tiny_path, redis_url=redis.url) as first,
        QaProcess(data_dir=here, model=tiny_path, redis_url=redis.url) as second,
        QaProcess(data_dir=there, model=tiny_path, redis_url=redis.url) as other,
    ):
        connection = Connection(redis.url, timeout_s=20.0)
        await SessionDirectory(connection).restore(
            "door", root_id=root_id, state="live", durable_unit_count=0, durable_pts_s=None
        )
        processes_key = f"lookback:{{root-{root_id}}}:processes"
        await until(lambda: redis.admin().hlen(processes_key) == 2)
        serving = await ProcessDirectory(connection).serving(root_id, "qa")
        addresses = {first.address, second.address}
        assert {process.address for process in serving} == addresses
        await connection.close()

        assert first.ask("door").snapshot_unit_count == 4
        assert second.ask("door").snapshot_unit_count == 4
        refusal = other.refusal("door")
        assert refusal.reason == "SESSION_ELSEWHERE"
        assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
        assert refusal.metadata["address"] in addresses
        assert other.refusal("nobody").reason == "SESSION_NOT_FOUND"
        async with LookbackClient(other.address, other.address) as client:
            answer = await client.answer("door", "What was it?")
        assert answer.snapshot_unit_count == 4

        redis.kill()
        refusal = other.refusal("door")
        assert (refusal.reason, refusal.code) == (
            "REGISTRY_UNAVAILABLE",
            grpc.StatusCode.UNAVAILABLE,
        )
        assert refusal.retry_after_s
        assert first.ask("door").snapshot_unit_count == 4
    session.close()
