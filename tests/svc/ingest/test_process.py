"""The process as its users run it, and how it refuses to start."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from svc.ingest.process import EXIT_CONFIG, EXIT_CRASH, main
from tests.svc.ingest.calls import Client, images, open_images
from tests.svc.ingest.conftest import StartServer
from tests.svc.ingest.processes import IngestProcess


async def test_it_serves_when_it_says_so_and_a_signal_drains_it(values: dict[str, Any]) -> None:
    process = await IngestProcess.start({**values, "block_span_s": 1000})
    try:
        await process.ready()
        async with grpc.aio.insecure_channel(process.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for name in ("", "lookback.v1.IngestService", "lookback.v1.SessionService"):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
        client = Client(process.address)
        await client.create("cam")
        call = await client.open(open_images("cam"))
        await call.send(images([0.0, 1.0, 2.0]))
        await call.until_visible(3)
        assert call.progress.durable_unit_count == 0
        process.terminate()
        await call.until_durable(3)
        assert call.draining is not None
        await call.half_close()
        await call.rest()
        await client.close()
        status, errors = await process.ended()
    finally:
        await process.stop()
    assert status == 0, errors
    assert {json.loads(line)["process"] for line in errors.splitlines()} == {"ingest"}


HANGS_AFTER_TWO_FRAMES = """
import sys, threading
from svc.ingest import media_worker, process
take = media_worker.MediaWorker._take
def hang(worker, frames):
    if worker._unit_count == 2:
        threading.Event().wait()
    take(worker, frames)
media_worker.MediaWorker._take = hang
sys.exit(process.main())
"""


async def test_a_decoder_that_hangs_keeps_no_process_from_its_end(
    values: dict[str, Any], start: StartServer
) -> None:
    values |= {"drain_s": 0.5, "block_span_s": 1000}
    process = await IngestProcess.start(values, arguments=("-c", HANGS_AFTER_TWO_FRAMES))
    try:
        await process.ready()
        client = Client(process.address)
        await client.create("cam")
        call = await client.open(open_images("cam"))
        for time_s in (0.0, 1.0, 2.0):
            await call.send(images([time_s]))
        await call.until_visible(2)
        process.terminate()
        status, errors = await process.ended()
        await client.close()
    finally:
        await process.stop()
    assert status == EXIT_CRASH
    assert "a thread hangs" in errors
    stats = (await (await start()).sessions("GetSession", session_id="cam")).session.stats
    assert stats.durable_unit_count == 2


async def test_a_setting_that_does_not_exist_stops_the_process(values: dict[str, Any]) -> None:
    process = await IngestProcess.start({**values, "sampel_fps": 1})
    status, errors = await process.ended()
    assert status == EXIT_CONFIG
    (line,) = errors.splitlines()
    assert line.startswith("lookback ingest cannot start: ")
    assert "LOOKBACK_SAMPEL_FPS" in line


@pytest.fixture
def refuse(
    values: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Iterator[Callable[..., str]]:
    """Runs `main` with settings that cannot be served; returns the last line it wrote."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level

    def run(**changes: Any) -> str:
        for name, value in {**values, **changes}.items():
            monkeypatch.setenv(f"LOOKBACK_{name.upper()}", str(value))
        assert main() == EXIT_CONFIG
        errors = capfd.readouterr().err
        assert "Traceback" not in errors
        last = errors.splitlines()[-1]
        assert last.startswith("lookback ingest cannot start: ")
        return last

    yield run
    root.handlers, root.level = handlers, level
    logging.captureWarnings(False)


def test_a_model_that_is_not_there(refuse: Callable[..., str], tmp_path: Path) -> None:
    assert "nothing-here" in refuse(model=tmp_path / "nothing-here")


def test_a_port_in_use(refuse: Callable[..., str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert str(port) in refuse(ingest_port=port)


def test_a_window_that_the_model_cannot_have(refuse: Callable[..., str]) -> None:
    line = refuse(window_tokens=900_000)
    assert "window_tokens" in line
    assert "900000" in line


def test_a_folder_that_cannot_be_made(refuse: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "data_dir" in refuse(data_dir=tmp_path / "file" / "store")


def test_a_folder_that_cannot_be_written(refuse: Callable[..., str]) -> None:
    assert "data_dir /proc" in refuse(data_dir="/proc")
