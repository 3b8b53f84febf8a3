"""A process is listed while it says that it is there."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from svc.registry.processes import ProcessDirectory
from tests.svc.registry.conftest import Connect, process
from tests.svc.registry.redis_server import RedisServer


async def test_processes_are_listed_by_root_and_kind_until_they_leave(connect: Connect) -> None:
    directory = ProcessDirectory(connect())
    first, second = process("a"), process("b")
    qa = replace(process("q"), kind="qa")
    for each in (second, first, qa, process("c", root="root-b")):
        await directory.beat(each)
    assert await directory.serving("root-a", "ingest") == [first, second]
    assert await directory.serving("root-a", "qa") == [qa]
    await directory.leave(first)
    assert await directory.serving("root-a", "ingest") == [second]


async def test_a_process_that_says_nothing_any_more_is_not_listed(connect: Connect) -> None:
    directory = ProcessDirectory(connect(), gone_after_s=0.05)
    await directory.beat(process("a"))
    await asyncio.sleep(0.1)
    assert await directory.serving("root-a", "ingest") == []


async def test_a_process_learns_that_redis_has_forgotten_it(
    server: RedisServer, connect: Connect
) -> None:
    directory = ProcessDirectory(connect())
    assert not await directory.beat(process("a"))
    assert await directory.beat(process("a"))
    server.admin().flushall()
    assert not await directory.beat(process("a"))
