"""The ingest process: settings in, exit status out, SIGTERM and SIGINT in between."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys

from svc.config import ConfigError, Settings, read_settings
from svc.engine.errors import EngineError
from svc.logs import configure_logs
from svc.rpc.server import Address, PortInUseError, stop_event_on_signals

logger = logging.getLogger(__name__)

EXIT_CLEAN, EXIT_CRASH, EXIT_CONFIG = 0, 1, 2


def main() -> int:
    """Runs the process with settings from the environment; returns its exit status."""
    try:
        settings = read_settings()
        configure_logs("ingest", settings.log_level)
        status, threads_ended = asyncio.run(serve(settings))
    except (ConfigError, PortInUseError, EngineError) as error:
        sys.stderr.write(f"lookback ingest cannot start: {error}\n")
        return EXIT_CONFIG
    if not threads_ended:
        # A model is being loaded, or a thread hangs. What was acknowledged is on the disk.
        logging.shutdown()
        os._exit(status)
    return status


async def serve(settings: Settings) -> tuple[int, bool]:
    """Serves until SIGTERM or SIGINT; returns the exit status, and whether all threads ended.

    Raises:
        PortInUseError: the address cannot be listened on.
        EngineError, ConfigError: the model or the store cannot be served.
    """
    # Brings torch and transformers, which takes seconds: not before the settings are read.
    from svc.ingest.server import IngestServer

    stop_asked = asyncio.create_task(stop_event_on_signals().wait())
    server = IngestServer(settings)
    try:
        address = await server.start()
        loading = asyncio.create_task(server.load())
        await asyncio.wait({stop_asked, loading}, return_when=asyncio.FIRST_COMPLETED)
        was_loaded = loading.done()
        if was_loaded:
            loading.result()
            _announce(address)
            await stop_asked
        else:
            loading.cancel()
    finally:
        stop_asked.cancel()
        threads_ended = await server.stop()
    if was_loaded and not threads_ended:
        logger.error("a thread hangs and is left behind")
        return EXIT_CRASH, False
    return EXIT_CLEAN, threads_ended


def _announce(address: Address) -> None:
    """Tells the parent, on standard output, that and where the process serves."""
    event = {"event": "ready", "process": "ingest", "address": str(address)}
    logger.info("serving", extra={"address": str(address)})
    with contextlib.suppress(BrokenPipeError):  # nobody listens: then nobody needs to know
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()
