"""A service of this machine's own for the time of an evaluation, or one that is already there."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

ProcessName = Literal["ingest", "qa"]
_PROCESSES: tuple[ProcessName, ...] = ("ingest", "qa")


class ServiceFailedError(Exception):
    """The service did not come up; its own log says why."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the two processes listen, "host:port"."""

    ingest: str
    qa: str


@dataclass(frozen=True, slots=True)
class OwnService:
    """A service that runs as a child of this process."""

    addresses: Addresses
    supervisor_pid: int

    def process_ids(self) -> dict[ProcessName, int]:
        """The two processes as they run at this moment; one that is being restarted is left out."""
        found: dict[ProcessName, int] = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.supervisor_pid).children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    command = child.cmdline()
                    found |= {name: child.pid for name in _PROCESSES if f"svc.{name}" in command}
        return found


@contextlib.contextmanager
def own_service(
    data: Path, log: Path, model: str, settings: Mapping[str, object] | None = None
) -> Iterator[OwnService]:
    """Runs `lookback serve` on free ports while the block lasts.

    Args:
        data: folder of the store.
        log: where the service's log goes.
        model: model to serve, as `--model` takes it.
        settings: names and values of settings; those of the environment then do not count. None:
            as the environment says.

    Raises:
        ServiceFailedError: it ended before it served.
    """
    command = [sys.executable, "-m", "svc.cli.main", "serve", "--data", str(data), "--json"]
    command += ["--model", model, "--ingest-port", "0", "--qa-port", "0"]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=None if settings is None else _environment(settings),
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                process.wait()
                tail = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise ServiceFailedError(f"lookback serve ended: {' '.join(tail)}")
            ready = json.loads(line)
            addresses = Addresses(ready["ingest_address"], ready["qa_address"])
            yield OwnService(addresses, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def _environment(settings: Mapping[str, object]) -> dict[str, str]:
    """Ours, with these settings of the service and no others."""
    inherited = {name: value for name, value in os.environ.items() if "LOOKBACK_" not in name}
    return inherited | {f"LOOKBACK_{name.upper()}": str(value) for name, value in settings.items()}
