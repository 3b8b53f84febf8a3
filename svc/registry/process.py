"""What a process says of itself."""

from __future__ import annotations

import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass
from typing import Literal

ProcessKind = Literal["ingest", "qa"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessInfo:
    """One process of the service, from its start to its end."""

    process_id: str
    """Unique: a restarted process has another, and never takes itself for the one before."""
    kind: ProcessKind
    root_id: str
    """Of the store that it serves."""
    address: str
    """`host:port` at which clients reach it."""
    host: str
    pid: int

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ProcessInfo:
        """What `to_json` wrote; what a later version added is left out."""
        fields = json.loads(text)
        return cls(**{name: fields[name] for name in cls.__dataclass_fields__})


def this_process(kind: ProcessKind, *, root_id: str, address: str) -> ProcessInfo:
    """Returns what this process says of itself."""
    host, pid = socket.gethostname(), os.getpid()
    return ProcessInfo(
        process_id=f"{kind}-{host}-{pid}-{secrets.token_hex(4)}",
        kind=kind,
        root_id=root_id,
        address=address,
        host=host,
        pid=pid,
    )
