"""Life of the QA process: listening, loading, serving, draining, gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from typing import Any

from kvstore.copies import StoreCopies
from kvstore.ramtier import RamTier
from kvstore.readpool import ReadPool
from kvstore.readtrace import ReadTrace
from kvstore.sharedfile import clean_stale_files
from lookback.v1 import question_pb2_grpc
from svc.config import Settings
from svc.daemon_threads import DaemonThreads
from svc.qa.answerer import Answerer
from svc.qa.directory import open_directory
from svc.qa.disk_threads import DiskThreads
from svc.qa.errors import translate
from svc.qa.model_thread import ModelThread
from svc.qa.runner import Runner
from svc.qa.service import SERVICE_NAME, QuestionService
from svc.qa.sessions import SessionCache
from svc.rpc.server import Address, RpcServer, stop_event_on_signals

logger = logging.getLogger(__name__)

_OPEN_SESSIONS = 32
_DISK_THREADS_PER_SESSION = 4
_HELD_DISK_THREADS = 32
"""Threads that may hang on disks while every open question still has one."""
_SWEEP_EVERY_S = 5.0
_STOP_CALLS_S = 1.0
_STOP_STEP_S = 5.0
STOP_AFTER_DRAIN_S = _STOP_CALLS_S + _STOP_STEP_S
"""The longest that a stop takes beyond the drain; the parent kills what takes longer."""


async def serve(settings: Settings) -> bool:
    """Serves until SIGTERM or SIGINT; returns whether it ended as it was asked to.

    Raises:
        PortInUseError: the address cannot be listened on.
        EngineError: the model cannot be served, or there is none.
    """
    stopping = stop_event_on_signals()
    directory = open_directory(settings)
    service = QuestionService(
        max_open_questions=settings.max_open_questions,
        default_timeout_s=settings.question_timeout_s,
        directory=directory,
    )
    server = RpcServer(
        address=Address(host=settings.host, port=settings.qa_port),
        service_names=[SERVICE_NAME],
        translate=translate,
    )
    question_pb2_grpc.add_QuestionServiceServicer_to_server(service, server.grpc)
    address = await server.start()
    runner = Runner(packed_count=settings.packed_questions)
    model_thread = ModelThread(settings, runner)
    pool = ReadPool(settings.reader_thread_count(), ahead_thread_count=settings.read_ahead_threads)
    ram = RamTier(settings.data_dir, shm_dir=settings.shm_dir)
    copies = StoreCopies(settings.store_copies)
    sessions = SessionCache(
        settings.data_dir,
        capacity=_OPEN_SESSIONS,
        ram=ram,
        disk_io=settings.disk_io,
        location=copies,
    )
    follower = directory.follower(sessions)
    trace = _open_trace(settings)
    stop_asked: asyncio.Future[Any] = asyncio.create_task(stopping.wait())
    sweeping = asyncio.create_task(_sweep(sessions))
    looking = asyncio.create_task(_look_at_copies(copies))
    try:
        model_thread.start()
        await _first_of(stop_asked, model_thread.loaded)
        if model_thread.loaded.done():
            loaded = model_thread.loaded.result()
            threads = DiskThreads(
                max_count=settings.max_open_questions + _HELD_DISK_THREADS,
                max_count_per_session=_DISK_THREADS_PER_SESSION,
            )
            answerer = Answerer(
                model=loaded.model,
                sessions=sessions,
                runner=runner,
                threads=threads,
                pool=pool,
                follower=follower,
                trace=trace,
            )
            service.begin(
                answerer,
                limits=loaded.engine.limits,
                default_unit_count=loaded.defaults.retrieved_units,
            )
            await server.set_serving()
            directory.start(address)
            _announce(address)
            await _first_of(stop_asked, model_thread.ended)
        if model_thread.ended.done():
            logger.critical("the model thread broke", exc_info=model_thread.ended.exception())
            return False
        await server.set_leaving()
        await service.drain(settings.drain_s)
        return True
    finally:
        sweeping.cancel()
        looking.cancel()
        stop_asked.cancel()
        if follower is not None:
            await follower.stop()
        await directory.stop()
        await server.stop(_STOP_CALLS_S)
        await model_thread.stop(_STOP_STEP_S)
        pool.close()
        sessions.close()
        if trace is not None:
            trace.close()


def _open_trace(settings: Settings) -> ReadTrace | None:
    """Returns what tells the owner of the RAM tier what is read; None where there is none.

    Answers do without it.
    """
    if settings.ram_budget_bytes == 0:
        return None
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)  # both processes start at once
        clean_stale_files(settings.data_dir, "use", shm_dir=settings.shm_dir)
        return ReadTrace.create(settings.data_dir, shm_dir=settings.shm_dir)
    except OSError as error:
        logger.warning(
            "the RAM tier will not hear what questions read", extra={"reason": str(error)}
        )
        return None


def _announce(address: Address) -> None:
    """Tells the parent, on standard output, that and where the process serves."""
    event = {"event": "ready", "process": "qa", "address": str(address)}
    logger.info("serving", extra={"address": str(address)})
    with contextlib.suppress(BrokenPipeError):  # nobody listens: then nobody needs to know
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()


async def _first_of(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


async def _look_at_copies(copies: StoreCopies) -> None:
    """Says which copies of the store cannot be read; answers need none, so nothing waits for it."""
    threads = DaemonThreads("copies")  # it may hang on a disk
    for fault in await asyncio.get_running_loop().run_in_executor(threads, copies.faults):
        logger.warning(
            "a copy of the store cannot stand in for damage: it is tried again when it is needed",
            extra={"reason": fault},
        )


async def _sweep(sessions: SessionCache) -> None:
    threads = DaemonThreads("sweep")  # one at a time; it may hang on a disk
    while True:
        await asyncio.sleep(_SWEEP_EVERY_S)
        try:
            await asyncio.get_running_loop().run_in_executor(threads, sessions.sweep)
        except Exception:
            logger.exception("open sessions could not be looked over")
