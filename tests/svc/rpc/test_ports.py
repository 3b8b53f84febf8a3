"""A port that cannot be listened on is told before anything that takes long."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from svc.rpc.ports import PortInUseError, check_port


def test_a_port_on_which_another_listens_is_refused_by_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError, match=rf":{port}: .*another ingest_port"):
            check_port("ingest_port", "127.0.0.1", port)
    check_port("ingest_port", "127.0.0.1", port)


def test_a_port_is_free_although_connections_to_it_have_just_ended() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            server.accept()[0].close()  # ours ends first, and is remembered by the kernel
    check_port("qa_port", "127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_that_is_not_of_this_machine_is_named(host: str) -> None:
    with pytest.raises(PortInUseError, match=host):
        check_port("qa_port", host, 50552)


@pytest.mark.parametrize("process", ["ingest", "qa"])
def test_a_process_whose_port_is_taken_says_so_before_it_loads_anything(
    process: str, tmp_path: Path
) -> None:
    """The import of torch takes seconds, so it must not have begun."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        script = (
            "import runpy, sys\n"
            "sys.modules['torch'] = None\n"  # an import of it raises
            f"runpy.run_module('svc.{process}', run_name='__main__')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={
                "PATH": "/usr/bin",
                "LOOKBACK_DATA_DIR": str(tmp_path),
                f"LOOKBACK_{process.upper()}_PORT": str(port),
            },
            capture_output=True,
            text=True,
        )
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr


def test_a_listener_that_leaves_is_waited_for() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    leaving = threading.Timer(0.2, taken.close)
    leaving.start()
    check_port("qa_port", "127.0.0.1", taken.getsockname()[1])
    leaving.join()
