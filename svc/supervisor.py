"""Both processes of one service as children of one: started, restarted, stopped together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType

import psutil

from svc.child import Child, ChildFailedError, ProcessName
from svc.config import ConfigError, Settings
from svc.folder_owner import wait_free
from svc.rpc.ports import wait_port
from svc.rpc.server import stop_event_on_signals

logger = logging.getLogger(__name__)

_MODULES: Mapping[ProcessName, str] = {"ingest": "svc.ingest", "qa": "svc.qa"}


class StartError(Exception):
    """The service cannot start; the message says every reason once."""

    def __init__(self, reasons: Iterable[str], exit_status: int) -> None:
        super().__init__("; ".join(dict.fromkeys(reasons)))
        self.exit_status = exit_status


class Supervisor:
    """Runs the ingest and the QA process while its `async with` block lasts.

    Entering returns when both serve. Addresses stay the same over restarts, also where the port
    was left to be chosen. A child that dies is started again; one that cannot serve as configured
    takes the service down, and `wait` returns. The children end with this process, however it
    ends. Enter on the main thread: the kernel ties children to the thread that started them.
    """

    def __init__(
        self, settings: Settings, *, modules: Mapping[ProcessName, str] = _MODULES
    ) -> None:
        """Nothing starts before the block is entered; `modules` are what the children run.

        Raises:
            ConfigError: both are to listen on one port.
        """
        if settings.ingest_port == settings.qa_port != 0:
            raise ConfigError(f"ingest_port and qa_port must differ, both are {settings.qa_port}")
        self._settings = settings
        self._children = {name: Child(name, module, settings) for name, module in modules.items()}
        self._looking: asyncio.Task[None] | None = None
        self._running: asyncio.Task[None] | None = None
        self._failure: ChildFailedError | None = None
        self._entered = False

    async def __aenter__(self) -> Supervisor:
        """Starts both processes; returns when both serve, or when `stop` came first.

        Raises:
            FolderInUseError, PortInUseError: another process has the folder, or one of the ports.
            ChildFailedError: one of them cannot; neither is left running.
        """
        # Said at once, by one process, and on the thread to which the children are tied.
        self._looking = asyncio.create_task(_wait_free(self._settings))
        try:
            await asyncio.wait({self._looking})
        finally:
            self._looking.cancel()
        if not self._looking.cancelled():
            self._looking.result()
        self._running = asyncio.create_task(self._run())  # it ends at once where `stop` came first
        both_ready = asyncio.create_task(self._wait_ready())
        try:
            await asyncio.wait({self._running, both_ready}, return_when=asyncio.FIRST_COMPLETED)
            if self._failure is not None:
                raise self._failure
        except BaseException:
            await self.stop()
            raise
        finally:
            both_ready.cancel()
        self._entered = True
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops both processes: they drain, then end."""
        await self.stop()

    @property
    def ingest_address(self) -> str:
        """`host:port` of SessionService and IngestService."""
        return self._address_of("ingest")

    @property
    def qa_address(self) -> str:
        """`host:port` of QuestionService."""
        return self._address_of("qa")

    @property
    def pids(self) -> dict[ProcessName, int]:
        """Process ids of the children that run at this moment."""
        return {name: child.pid for name, child in self._children.items() if child.pid is not None}

    @property
    def restart_counts(self) -> dict[ProcessName, int]:
        """How often each child was started again."""
        return {name: child.restart_count for name, child in self._children.items()}

    @property
    def refusals(self) -> list[str]:
        """Why processes cannot start, in their own words."""
        return [child.refusal for child in self._children.values() if child.refusal is not None]

    async def wait_ready(self, name: ProcessName) -> None:
        """Returns when the child that runs now has said that it serves."""
        await self._children[name].ready.wait()

    def rss_bytes(self) -> dict[str, int]:
        """Returns resident bytes of each process, ours included; shared pages count in each."""
        figures = {"supervisor": psutil.Process().memory_info().rss}
        for name, pid in self.pids.items():
            with contextlib.suppress(psutil.NoSuchProcess):  # it may end at any moment
                figures[name] = psutil.Process(pid).memory_info().rss
        return figures

    async def wait(self) -> int:
        """Returns an exit status when the service has ended.

        0: it was stopped; 1: a process kept crashing; 2: it cannot serve as configured.
        """
        if self._running is None:
            raise RuntimeError("enter the block first")
        await asyncio.wait({self._running})
        return 0 if self._failure is None else self._failure.exit_status

    async def stop(self) -> None:
        """Lets both processes drain and end; returns when they have. Safe to call again."""
        for child in self._children.values():
            child.stop()
        if self._looking is not None:
            self._looking.cancel()
        if self._running is not None:
            await self._running

    async def _run(self) -> None:
        """Runs both children; the first that fails for good takes the other down."""
        tasks = [asyncio.create_task(child.run()) for child in self._children.values()]
        try:
            for finished in asyncio.as_completed(tasks):
                try:
                    await finished
                except ChildFailedError as failure:
                    self._failure = self._failure or failure
                    if self._entered:  # else it is raised, and told by who started us
                        logger.error("%s; the service stops", failure)
                    for child in self._children.values():
                        child.stop()
        finally:
            for task in tasks:
                task.cancel()

    async def _wait_ready(self) -> None:
        for name in self._children:
            await self.wait_ready(name)
        logger.info(
            "serving: sessions and video at %s, questions at %s",
            self.ingest_address,
            self.qa_address,
        )

    def _address_of(self, name: ProcessName) -> str:
        address = self._children[name].address
        if address is None:
            raise RuntimeError("addresses are known once the block is entered")
        return address


async def _wait_free(settings: Settings) -> None:
    await wait_free(settings)
    await wait_port("ingest_port", settings.host, settings.ingest_port)
    await wait_port("qa_port", settings.host, settings.qa_port)


async def serve(
    settings: Settings,
    *,
    on_ready: Callable[[Supervisor], None] = lambda service: None,
    modules: Mapping[ProcessName, str] = _MODULES,
) -> int:
    """Runs the service until SIGTERM or SIGINT, or until it fails later; returns the exit status.

    Args:
        settings: of both processes.
        on_ready: called once, when both serve.
        modules: what the children run.

    Raises:
        StartError: it cannot start.
        ConfigError: both processes are to listen on one port.
        FolderInUseError, PortInUseError: another process has the folder, or one of the ports.
    """
    stopping = stop_event_on_signals()
    supervisor = Supervisor(settings, modules=modules)

    async def stop_when_asked() -> None:
        await stopping.wait()
        await supervisor.stop()

    watching = asyncio.create_task(stop_when_asked())
    try:
        async with supervisor:
            if not stopping.is_set():
                on_ready(supervisor)
            return await supervisor.wait()
    except ChildFailedError as failure:
        reasons = supervisor.refusals or [str(failure)]
        raise StartError(reasons, failure.exit_status) from failure
    finally:
        watching.cancel()
