"""A process that was paused for longer than its lease touches its sessions no more."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore.paths import CONTROL_NAME, segment_numbers, segment_path, session_folder
from svc.registry.connection import Connection
from svc.registry.errors import LeaseHeldError
from svc.registry.leases import Lease, Leases
from svc.registry.process import this_process
from svc.registry.root import read_root_id
from tests.svc.ingest.calls import FINISH, Client, Refused, images, open_images
from tests.svc.ingest.processes import IngestProcess
from tests.svc.registry.redis_server import RedisServer

_SHORT_LEASES = """
import sys
import svc.registry.leases
svc.registry.leases.LEASE_S = 3.0
{mutation}
from svc.ingest.process import main
sys.exit(main())
"""
_BELIEVES_IT_ALL = """
from svc.registry.kept import KeptLease
KeptLease.held = lambda kept: True
async def _never_renews(kept):
    pass
KeptLease._renew = _never_renews
"""


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """An empty Redis."""
    folder = tmp_path / "redis"
    folder.mkdir()
    with RedisServer(folder) as running:
        yield running


async def _taken_over(redis: RedisServer, root: Path) -> Lease:
    """Takes the session's lease as another process of the same root, once it has run out."""
    root_id = read_root_id(root)
    assert root_id is not None
    connection = Connection(redis.url, timeout_s=20.0)
    other = this_process("ingest", root_id=root_id, address="other.example:1")
    leases = Leases(connection, other, lease_s=600.0)
    try:
        while True:
            try:
                return await leases.acquire("cam", floor_epoch=0)
            except LeaseHeldError as error:
                await asyncio.sleep(error.wait_s)
    finally:
        await connection.close()


def _files(root: Path) -> list[bytes]:
    folder = session_folder(root, "cam")
    paths = [folder / CONTROL_NAME]
    paths += [segment_path(folder, number) for number in segment_numbers(folder)]
    return [path.read_bytes() for path in paths]


async def _a_paused_owner_stays_quiet(
    values: dict[str, Any], redis: RedisServer, mutation: str
) -> None:
    values = {**values, "redis_url": redis.url, "credit_items": 64}
    root = Path(values["data_dir"])
    process = await IngestProcess.start(
        values, arguments=("-c", _SHORT_LEASES.format(mutation=mutation))
    )
    try:
        await process.ready()
        client = Client(process.address)
        await client.create("cam")
        call = await client.open(open_images("cam"))
        await call.send(images([0.0, 1.0, 2.0, 3.0, 4.0]))
        await call.until_durable(4)
        await call.until_visible(5)
        acknowledged = call.progress.durable_unit_count
        os.kill(process.pid, signal.SIGSTOP)
        lease = await _taken_over(redis, root)
        before = _files(root)
        published = redis.admin().hget("lookback:{cam}:session", "next")
        os.kill(process.pid, signal.SIGCONT)
        await call.send(images([float(t) for t in range(5, 12)]), FINISH)
        with pytest.raises(Refused) as refused:
            await call.rest()
        assert refused.value.reason == "LEASE_LOST"
        assert call.progress.durable_unit_count == acknowledged
        assert _files(root) == before
        held = redis.admin().hgetall("lookback:{cam}:session")
        assert (int(held["epoch"]), held["next"]) == (lease.epoch, published)
        await client.close()
    finally:
        await process.stop()


async def test_a_process_paused_beyond_its_lease_appends_publishes_and_acknowledges_nothing(
    values: dict[str, Any], redis: RedisServer
) -> None:
    await _a_paused_owner_stays_quiet(values, redis, mutation="")


async def test_a_process_that_believes_in_its_lease_for_ever_is_caught(
    values: dict[str, Any], redis: RedisServer
) -> None:
    with pytest.raises(pytest.fail.Exception):
        await _a_paused_owner_stays_quiet(values, redis, mutation=_BELIEVES_IT_ALL)
