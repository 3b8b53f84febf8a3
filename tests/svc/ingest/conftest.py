"""A real ingest server in the test's own process, with a tiny model and a store of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch

from svc.config import Settings
from svc.ingest.server import IngestServer
from tests.svc.engine.tiny import build_tiny_checkpoint
from tests.svc.ingest.calls import Client

StartServer = Callable[..., Awaitable[Client]]

VIDEOS = Path(__file__).resolve().parents[4] / "shared" / "data" / "videos"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny checkpoint."""
    return build_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def videos() -> Path:
    """Folder of the real sample videos."""
    if not VIDEOS.is_dir():
        pytest.skip(f"sample videos are not at {VIDEOS}")
    return VIDEOS


@pytest.fixture
def values(tiny_path: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings of a small server; `start` takes changes to them."""
    shm_dir = tmp_path / "shm"
    shm_dir.mkdir()
    return {
        "model": str(tiny_path),
        "data_dir": tmp_path / "store",
        "shm_dir": shm_dir,
        "ingest_port": 0,
        "ingest_threads": 1,
        "hot_tail_bytes": 2**20,
        "min_free_bytes": 0,
        "block_span_s": 3.0,
        "credit_items": 16,
        "drain_s": 4.0,
    }


@pytest_asyncio.fixture
async def start(values: dict[str, Any]) -> AsyncIterator[StartServer]:
    """Starts servers, one after the other or side by side; they are stopped after the test."""
    started: list[Client] = []

    async def start_server(**changes: Any) -> Client:
        server = IngestServer(Settings(**{**values, **changes}))
        address = await server.start()
        await server.load()
        client = Client(str(address), server)
        started.append(client)
        return client

    yield start_server
    for client in started:
        await client.close()
