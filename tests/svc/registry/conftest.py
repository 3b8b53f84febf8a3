"""A real server, and processes of the service as it sees them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from svc.registry.connection import Connection
from svc.registry.leases import Leases
from svc.registry.process import ProcessInfo
from tests.svc.registry.redis_server import RedisServer

MakeLeases = Callable[..., Leases]
Connect = Callable[..., Connection]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """An empty Redis."""
    with RedisServer(tmp_path) as running:
        yield running


@pytest_asyncio.fixture
async def connect(server: RedisServer) -> AsyncIterator[Connect]:
    """Makes connections, to the server or to what stands before it."""
    made: list[Connection] = []

    def make(url: str | None = None, *, timeout_s: float = 20.0) -> Connection:
        made.append(Connection(url or server.url, timeout_s=timeout_s))
        return made[-1]

    yield make
    for connection in made:
        await connection.close()


async def until(condition: Callable[[], object]) -> None:
    """Returns when the condition holds: of a server's state, of which no event tells."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def process(name: str, *, root: str = "root-a") -> ProcessInfo:
    """An ingest process of that name."""
    return ProcessInfo(
        process_id=name,
        kind="ingest",
        root_id=root,
        address=f"{name}.example:50551",
        host=f"{name}.example",
        pid=1,
    )


@pytest.fixture
def leases_of(connect: Connect) -> MakeLeases:
    """Makes the leases of a process, over a connection of its own."""

    def make(
        name: str, *, root: str = "root-a", lease_s: float = 60.0, url: str | None = None
    ) -> Leases:
        return Leases(connect(url), process(name, root=root), lease_s=lease_s)

    return make
