"""A process that behaves like one of ours towards its supervisor, in milliseconds.

STAND_IN names a folder; a file in it named after the process says how the process is to behave:
"config": exits 2; "refuse": says why, and exits 2; "crash": exits 3 before it is ready; "deaf":
ignores SIGTERM. Each start appends its process id and environment to `<process>.starts`.
"""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from svc.refusal import tell_refusal


def main(process: str) -> int:
    folder = Path(os.environ["STAND_IN"])
    with (folder / f"{process}.starts").open("a") as starts:
        settings = {k: v for k, v in os.environ.items() if k.startswith("LOOKBACK_")}
        starts.write(json.dumps({"pid": os.getpid(), "settings": settings}) + "\n")
    behaviour_file = folder / process
    behaviour = behaviour_file.read_text() if behaviour_file.exists() else ""
    if behaviour == "config":
        return 2
    if behaviour == "refuse":
        tell_refusal(process, ValueError("'x' is not a model"))
        return 2
    if behaviour == "crash":
        return 3
    # Not an Event: a handler that sets one while its own thread takes its lock hangs for ever.
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: None if behaviour == "deaf" else told.append(got))
    listener = socket.create_server(
        ("127.0.0.1", int(os.environ[f"LOOKBACK_{process.upper()}_PORT"]))
    )
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    print("a line that is no event", flush=True)
    print(json.dumps({"event": "ready", "process": process, "address": address}), flush=True)
    while not told:
        time.sleep(0.05)
    (folder / f"{process}.stopped").touch()
    return 0


def run(process: str) -> None:
    sys.exit(main(process))
