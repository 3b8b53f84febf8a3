"""A service that runs beside the commands, in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest

from svc.cli.main import main
from tests.svc.client.protocol_server import ProtocolServer, served


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command left behind."""

    status: int
    out: str
    err: str


@dataclass(kw_only=True)
class Service:
    """A running protocol server, and the options that lead to it."""

    server: ProtocolServer
    address: str

    @property
    def options(self) -> list[str]:
        return ["--ingest-address", self.address, "--qa-address", self.address]


@pytest.fixture
def service() -> Iterator[Service]:
    server = ProtocolServer()
    address: list[str] = []
    started, over = threading.Event(), threading.Event()

    async def serve() -> None:
        async with served(server) as at:
            address.append(at)
            started.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    started.wait()
    try:
        yield Service(server=server, address=address[0])
    finally:
        over.set()
        thread.join()


@pytest.fixture
def lookback(capfd: pytest.CaptureFixture[str]) -> type[Lookback]:
    Lookback.capture = capfd
    return Lookback


class Lookback:
    """Runs the command line in this process."""

    capture: pytest.CaptureFixture[str]

    @classmethod
    def run(cls, *arguments: str) -> Outcome:
        cls.capture.readouterr()
        root = logging.getLogger()
        handlers, level = root.handlers, root.level
        try:
            with pytest.raises(SystemExit) as caught:
                main(arguments)
        finally:  # a command sends the logs of its process to an output that ends with the test
            root.handlers, root.level = handlers, level
            logging.captureWarnings(False)
        out, err = cls.capture.readouterr()
        assert isinstance(caught.value.code, int)
        own = [line for line in err.splitlines(keepends=True) if "chttp2_transport" not in line]
        return Outcome(status=caught.value.code, out=out, err="".join(own))


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames of noise, one a second, H.264 with a key frame every 5."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    noise = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1, options={"bf": "2"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 5
        for _ in range(40):
            pixels = noise.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path
