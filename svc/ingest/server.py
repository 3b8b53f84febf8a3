"""The ingest server: listening, loading, serving, draining, gone."""

from __future__ import annotations

import asyncio
import logging

from lookback.v1 import ingest_pb2_grpc, session_pb2_grpc
from svc.config import Settings
from svc.daemon_threads import DaemonThreads
from svc.engine.ingest_together import encode_streams
from svc.ingest import service, session_service
from svc.ingest.app import App
from svc.ingest.encode_thread import EncodeThread
from svc.ingest.errors import translate
from svc.ingest.owners import open_ownership
from svc.ingest.ownership import Ownership, SoleOwner
from svc.ingest.ram import RamKeeper
from svc.ingest.scrubber import Scrubber
from svc.ingest.stream import StreamThread
from svc.rpc.errors import Reason, RequestError
from svc.rpc.server import Address, RpcServer

logger = logging.getLogger(__name__)

INDEX_REPAIR_WAIT_S = 20.0
"""How long serving waits for what headers tell of; the rest, and all rows, go on beside it."""
_STOP_CALLS_S = 1.0
_STOP_THREADS_S = 2.0


class IngestServer:
    """Everything of the process but signals and exit status. Use: start, load, stop."""

    def __init__(self, settings: Settings) -> None:
        """Nothing listens or loads yet; call it on the event loop."""
        self._settings = settings
        self._app: App | None = None
        self._address: Address | None = None
        self._ownership: Ownership = SoleOwner()
        self._repairing: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._ram_keeper: RamKeeper | None = None
        self._scrubber = Scrubber(settings.data_dir, bytes_per_s=settings.scrub_bytes_per_s)
        self._encode_thread: StreamThread = EncodeThread(
            encode_streams, units_per_pass=settings.units_per_pass
        )
        self._media_threads = DaemonThreads("media")
        self._server = RpcServer(
            address=Address(host=settings.host, port=settings.ingest_port),
            service_names=[session_service.SERVICE_NAME, service.SERVICE_NAME],
            translate=translate,
        )
        session_pb2_grpc.add_SessionServiceServicer_to_server(
            session_service.SessionService(self._ready_app), self._server.grpc
        )
        ingest_pb2_grpc.add_IngestServiceServicer_to_server(
            service.IngestService(self._ready_app), self._server.grpc
        )

    async def start(self) -> Address:
        """Listens, and refuses calls until the model is loaded; returns the address.

        Raises:
            PortInUseError: the address cannot be listened on.
        """
        self._address = await self._server.start()
        return self._address

    async def load(self) -> None:
        """Loads the model on the thread that will use it, then serves.

        Raises:
            EngineError, ConfigError, KVStoreError: why it cannot.
        """
        settings, threads = self._settings, self._media_threads
        loading = self._encode_thread.submit(
            lambda: App.load(settings, self._encode_thread, threads)
        )
        app = await asyncio.wrap_future(loading)
        assert self._address is not None
        app.ownership = self._ownership = open_ownership(settings, app.sessions, self._address)
        await self._ownership.start()
        repairs = app.index_repairs
        self._repairing = asyncio.create_task(repairs.run(DaemonThreads("index repair")))
        headers_whole = asyncio.create_task(repairs.headers_whole.wait())
        try:
            done, _ = await asyncio.wait(
                {self._repairing, headers_whole},
                timeout=INDEX_REPAIR_WAIT_S,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            headers_whole.cancel()
        if self._repairing in done:
            self._repairing.result()
        elif not done:
            logger.warning("serving while key indexes are still being made whole")
        self._app = app
        self._scrubber.start()
        self._sweeping = asyncio.create_task(app.sweeper.run(DaemonThreads("sweep")))
        if app.arena is not None:
            self._ram_keeper = RamKeeper(app.arena, settings.data_dir, shm_dir=settings.shm_dir)
            self._ram_keeper.start()
        await self._server.set_serving()

    async def stop(self) -> bool:
        """Drains within `drain_s`; returns whether all threads let go in time."""
        released = True
        drain_s = self._settings.drain_s
        for task in (self._repairing, self._sweeping):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self._app is None:
            await self._server.stop(0)
        else:
            stopping = asyncio.create_task(self._server.stop(drain_s + _STOP_CALLS_S))
            released = await self._app.pushes.drain(drain_s)
            await stopping
        await self._ownership.stop()
        await asyncio.to_thread(self._scrubber.stop)
        if self._ram_keeper is not None:
            await asyncio.to_thread(self._ram_keeper.stop)
        ended = await asyncio.to_thread(self._encode_thread.stop, _STOP_THREADS_S)
        if ended and self._app is not None and self._app.arena is not None:
            self._app.arena.close()
        return released and ended

    def _ready_app(self) -> App:
        if self._app is None:
            raise RequestError(Reason.NOT_READY, "the server is still loading its model")
        return self._app
