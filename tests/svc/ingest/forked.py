"""A server in a process of its own that starts in no time: forked from one that has the imports."""

from __future__ import annotations

import asyncio
import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

import torch

from svc.config import Settings
from svc.ingest.server import IngestServer

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.svc.ingest.forked"])


def _serve(values: dict[str, Any], told: Connection) -> None:
    torch.set_num_threads(1)
    asyncio.run(_serve_until_killed(values, told))


async def _serve_until_killed(values: dict[str, Any], told: Connection) -> None:
    server = IngestServer(Settings(**values))
    address = await server.start()
    await server.load()
    told.send(str(address))
    await asyncio.Event().wait()


class ForkedServer:
    """Serves until it is killed."""

    def __init__(self, values: dict[str, Any]) -> None:
        """Starts the process and waits until it serves."""
        receiving, sending = _CONTEXT.Pipe(duplex=False)
        self._process = _CONTEXT.Process(target=_serve, args=(values, sending), daemon=True)
        self._process.start()
        sending.close()
        if not receiving.poll(120):
            raise AssertionError("the server did not start")
        self.address: str = receiving.recv()

    def kill(self) -> None:
        """Ends the process as a power cut ends it: at once, wherever it is."""
        self._process.kill()
        self._process.join()
