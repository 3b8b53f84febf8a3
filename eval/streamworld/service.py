"""A service of this machine's own for the time of an evaluation, or one that is already there."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


class ServiceFailedError(Exception):
    """The service did not come up; its own log says why."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the two processes listen, "host:port"."""

    ingest: str
    qa: str


@contextlib.contextmanager
def own_service(data: Path, log: Path, model: str) -> Iterator[Addresses]:
    """Runs `lookback serve` on free ports while the block lasts.

    Args:
        data: folder of the store.
        log: where the service's log goes.
        model: model to serve, as `--model` takes it.

    Raises:
        ServiceFailedError: it ended before it served.
    """
    command = [sys.executable, "-m", "svc.cli.main", "serve", "--data", str(data), "--json"]
    command += ["--model", model, "--ingest-port", "0", "--qa-port", "0"]
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                process.wait()
                tail = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise ServiceFailedError(f"lookback serve ended: {' '.join(tail)}")
            ready = json.loads(line)
            yield Addresses(ready["ingest_address"], ready["qa_address"])
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
