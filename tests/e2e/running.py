"""A service that runs as people start it, and what a test does to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil

from svc.client import LookbackClient

ROOT = Path(__file__).resolve().parents[2]
Name = Literal["ingest", "qa"]

SMALL: dict[str, object] = {
    "ingest_threads": 1,
    "qa_threads": 1,
    "hot_tail_bytes": 2**20,
    "min_free_bytes": 0,
    "block_span_s": 2.0,
    "credit_items": 16,
    "drain_s": 2.0,
}
"""Settings of a service for tests: blocks close every two seconds of video."""


def environment(**settings: object) -> dict[str, str]:
    """Ours, with these settings and no others."""
    inherited = {name: value for name, value in os.environ.items() if "LOOKBACK_" not in name}
    ours = {f"LOOKBACK_{name.upper()}": str(value) for name, value in settings.items()}
    return {**inherited, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **ours}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        """What a person sees last."""
        lines = self.err.splitlines()
        return lines[-1] if lines else ""


@dataclass(kw_only=True)
class Service:
    """`lookback serve` in a process of its own; use in a `with` block."""

    folder: Path
    """Holds the store (`data`), shared memory (`shm`) and the log."""
    model: Path
    module: str = "svc.cli"
    """What is run with `serve`."""
    settings: dict[str, object] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    """A command that runs the service."""
    ingest_address: str = ""
    qa_address: str = ""

    def __post_init__(self) -> None:
        self.data = self.folder / "data"
        self.shm = self.folder / "shm"
        self.shm.mkdir(parents=True, exist_ok=True)
        self._log = self.folder / "log"

    def __enter__(self) -> Service:
        self.data.mkdir(parents=True, exist_ok=True)
        command = [*self.prefix, sys.executable, "-m", self.module, "serve", "--json"]
        command += ["--data", str(self.data)]
        command += ["--model", str(self.model), "--ingest-port", "0", "--qa-port", "0"]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env=environment(**{**SMALL, "shm_dir": self.shm, **self.settings}),
            )
        assert self.process.stdout is not None
        ready = json.loads(self.process.stdout.readline() or "{}")
        assert ready, self.log
        self.ingest_address, self.qa_address = ready["ingest_address"], ready["qa_address"]
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.stop()
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def log(self) -> str:
        """Everything that the processes have logged."""
        return self._log.read_text()

    def faults(self) -> str:
        """The lines of the log that tell of faults of ours."""
        lines = self.log.splitlines(keepends=True)
        return "".join(line for line in lines if '"ERROR"' in line or '"CRITICAL"' in line)

    def client(self) -> LookbackClient:
        """Returns a client of it; use in an `async with` block."""
        return LookbackClient(self.ingest_address, self.qa_address)

    def child(self, name: Name) -> psutil.Process | None:
        """The process of this name that runs now, also while it is still loading."""
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if f"svc.{name}" in child.cmdline():
                    return child
        return None

    def pid(self, name: Name) -> int:
        """Process id of the child of this name."""
        child = self.child(name)
        assert child is not None, f"no {name} process runs"
        return child.pid

    def kill(self, name: Name) -> bool:
        """Ends a child with SIGKILL; False if there is none at this moment."""
        child = self.child(name)
        if child is None:
            return False
        child.kill()
        return True

    def stop(self) -> int:
        """Ends the service as Ctrl-C does; returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait()

    def lookback(self, *arguments: str, stdin: bytes | None = None) -> Outcome:
        """Runs a command that talks to this service."""
        where = ["--ingest-address", self.ingest_address, "--qa-address", self.qa_address]
        return lookback(*where, *arguments, stdin=stdin)


def start_lookback(*arguments: str, **settings: object) -> subprocess.Popen[str]:
    """Starts a command with its outputs as pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", "svc.cli", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(**settings),
    )


def lookback(*arguments: str, stdin: bytes | None = None, **settings: object) -> Outcome:
    """Runs a command to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "svc.cli", *arguments],
        input=b"" if stdin is None else stdin,
        capture_output=True,
        cwd=ROOT,
        env=environment(**settings),
    )
    out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    return Outcome(status=done.returncode, out=out, err=err)
