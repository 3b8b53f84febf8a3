"""`python -m svc.ingest` as its users run it: environment in, ready line out, signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
START_TIMEOUT_S = 120.0


class IngestProcess:
    """One run of the process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.address = ""

    @classmethod
    async def start(
        cls, values: Mapping[str, Any], *, arguments: Sequence[str] = ("-m", "svc.ingest")
    ) -> IngestProcess:
        """Starts the process with these settings; use `ready` or `ended` next.

        `arguments` are what Python is started with.
        """
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LOOKBACK_")}
        environment |= {f"LOOKBACK_{name.upper()}": str(value) for name, value in values.items()}
        environment |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "OMP_NUM_THREADS": "1"}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            cwd=ROOT,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        return cls(process)

    async def ready(self) -> IngestProcess:
        """Waits for the ready line."""
        assert self._process.stdout is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            line = await self._process.stdout.readline()
        if not line:
            raise AssertionError((await self.ended())[1])
        event = json.loads(line)
        assert (event["event"], event["process"]) == ("ready", "ingest")
        self.address = event["address"]
        return self

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Sends SIGKILL."""
        self._process.kill()

    async def ended(self) -> tuple[int, str]:
        """Returns exit status and what was written to standard error."""
        async with asyncio.timeout(START_TIMEOUT_S):
            _, errors = await self._process.communicate()
        assert self._process.returncode is not None
        return self._process.returncode, errors.decode()

    async def stop(self) -> None:
        """Kills what is left."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.communicate()
