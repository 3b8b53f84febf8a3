"""One supervised process: started, heard, restarted with growing pauses, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from typing import Any, Literal

from svc.config import ENV_PREFIX, Settings, as_environment
from svc.refusal import UNDER_SUPERVISOR

logger = logging.getLogger(__name__)

ProcessName = Literal["ingest", "qa"]

EXIT_CONFIG = 2
"""Exit status where a restart cannot help: a setting, the model or the store is wrong."""
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_HEALTHY_S = 60.0
_MAX_FAILED_STARTS = 5
STOP_MARGIN_S = 10.0
"""How long beyond its drain a process may take to stop before it is killed."""


class ChildFailedError(Exception):
    """A process will not be started again; the message says why, its own log says more."""

    def __init__(self, name: ProcessName, reason: str, exit_status: int) -> None:
        super().__init__(f"the {name} process {reason}")
        self.name = name
        self.exit_status = exit_status


class Child:
    """Keeps `python -m <module>` running; one owner task calls `run`."""

    def __init__(self, name: ProcessName, module: str, settings: Settings) -> None:
        """Nothing starts before `run`."""
        self.name: ProcessName = name
        self.address: str | None = None
        """`host:port`, from the first ready line on; a restart listens there again."""
        self.pid: int | None = None
        self.refusal: str | None = None
        """Why it cannot start, in its own words."""
        self.restart_count = 0
        self.ready = asyncio.Event()
        """Set while the process that runs now has said that it serves."""
        self._module = module
        self._settings = settings
        self._stopping = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None

    async def run(self) -> None:
        """Returns after `stop`; the process is gone then.

        Raises:
            ChildFailedError: it ended in a way that a restart cannot help.
        """
        pause_s, failed_starts = _FIRST_PAUSE_S, 0
        while not self._stopping.is_set():
            started = time.monotonic()
            status, was_ready = await self._run_once()
            if self._stopping.is_set():
                return
            ran_s = time.monotonic() - started
            failed_starts = 0 if was_ready else failed_starts + 1
            if was_ready and ran_s >= _HEALTHY_S:
                pause_s = _FIRST_PAUSE_S
            how = _spoken(status)
            if status == EXIT_CONFIG:
                why = how if self.refusal is None else self.refusal
                raise ChildFailedError(
                    self.name, f"cannot serve as configured ({why})", EXIT_CONFIG
                )
            if failed_starts == _MAX_FAILED_STARTS:
                reason = f"ended {failed_starts} times before it was ready (last: {how})"
                raise ChildFailedError(self.name, reason, 1)
            logger.warning(
                "the %s process ended (%s) after %.1f s; it starts again in %.1f s",
                self.name,
                how,
                ran_s,
                pause_s,
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            self.restart_count += 1

    def stop(self) -> None:
        """Asks the process to drain and end; `run` returns when it has, or is killed late."""
        self._stopping.set()
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)

    async def _run_once(self) -> tuple[int, bool]:
        """Runs the process to its end; returns the exit status, and whether it was ever ready."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "svc.tether", str(os.getpid()), self._module, UNDER_SUPERVISOR),
            env=self._environment(),
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C reaches it through us, once
        )
        self._process, self.pid = process, process.pid
        if self._stopping.is_set():
            process.send_signal(signal.SIGTERM)
        listening = asyncio.create_task(self._listen(process))
        killing = asyncio.create_task(self._kill_when_late(process))
        try:
            status = await process.wait()
            await listening
        finally:
            listening.cancel()
            killing.cancel()
            was_ready = self.ready.is_set()
            self.ready.clear()
            self.pid = None
            if process.returncode is None:  # we are cancelled: leave nothing behind
                process.kill()
        return status, was_ready

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Reads standard output: the ready line, then whatever comes, so that it never blocks."""
        if process.stdout is None:
            raise RuntimeError("standard output was asked for as a pipe")
        async for line in process.stdout:
            event = _event(line)
            match event.get("event"):
                case "ready":
                    self.address = str(event["address"])
                    self.ready.set()
                case "refused":
                    self.refusal = str(event["reason"])
                case _:
                    logger.info("%s: %s", self.name, line.decode(errors="replace").rstrip())

    async def _kill_when_late(self, process: asyncio.subprocess.Process) -> None:
        await self._stopping.wait()
        grace_s = self._settings.drain_s + STOP_MARGIN_S
        await asyncio.sleep(grace_s)
        logger.error("the %s process did not stop in %.0f s and is killed", self.name, grace_s)
        process.kill()

    def _environment(self) -> dict[str, str]:
        """Returns our environment with the settings written out, and the port that was taken."""
        settings = self._settings
        if self.address is not None:
            port = int(self.address.rpartition(":")[2])
            settings = settings.model_copy(update={f"{self.name}_port": port})
        ours = as_environment(settings)
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)
        }
        return inherited | ours


def _event(line: bytes) -> dict[str, Any]:
    """Returns the event that a line tells; none is in a line that is something else."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _spoken(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
