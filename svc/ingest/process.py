"""The ingest process: settings in, exit status out, SIGTERM and SIGINT in between."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from typing import NoReturn

from svc.config import ConfigError, Settings, read_settings
from svc.data_dir import make_data_dir
from svc.engine.errors import EngineError
from svc.folder_owner import FolderOwner, folder_owner
from svc.logs import configure_logs
from svc.refusal import tell_refusal
from svc.rpc.ports import check_port
from svc.rpc.server import Address, stop_event_on_signals

logger = logging.getLogger(__name__)

EXIT_CLEAN, EXIT_CRASH, EXIT_CONFIG = 0, 1, 2


def main() -> int:
    """Runs the process with settings from the environment; returns its exit status."""
    try:
        settings = read_settings()
        configure_logs("ingest", settings.log_level)
        make_data_dir(settings.data_dir)
        with folder_owner(settings) as owner:
            check_port("ingest_port", settings.host, settings.ingest_port)
            return asyncio.run(serve(settings, owner))
    except (ConfigError, EngineError) as error:
        tell_refusal("ingest", error)
        return EXIT_CONFIG


async def serve(settings: Settings, owner: FolderOwner) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit status, or ends the process if a thread
    hangs. `owner` holds the store's folder for it.

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
        owner.serves_at(str(address))
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
        owner.leaves()
        threads_ended = await server.stop()
    if not threads_ended:
        _leave(EXIT_CRASH if was_loaded else EXIT_CLEAN)
    return EXIT_CLEAN


def _leave(status: int) -> NoReturn:
    """Ends the process here: the event loop would wait for what a thread that hangs still owes.

    A model is being loaded, or a thread hangs. What was visible when the drain began is on the
    disk.
    """
    if status != EXIT_CLEAN:
        logger.error("a thread hangs and is left behind")
    logging.shutdown()
    os._exit(status)


def _announce(address: Address) -> None:
    """Tells the parent, on standard output, that and where the process serves."""
    event = {"event": "ready", "process": "ingest", "address": str(address)}
    logger.info("serving", extra={"address": str(address)})
    with contextlib.suppress(BrokenPipeError):  # nobody listens: then nobody needs to know
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()
