"""Whether a port can be listened on: asked before models are loaded, which takes long."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Iterator
from typing import Any

from svc.config import ConfigError

_WHY = {
    errno.EADDRINUSE: "another program listens there",
    errno.EACCES: "this user may not listen there",
    errno.EADDRNOTAVAIL: "this machine has no such address",
}
_OF_ONE_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""What says nothing of the other addresses that a name has."""
_LEAVING_S = 1.0
"""How long a service may keep a port after it was told to stop, or killed, where nobody uses it."""
_POLL_S = 0.05


class PortInUseError(ConfigError):
    """The address cannot be listened on."""


def check_port(setting: str, host: str, port: int) -> None:
    """Listens for a moment where a server is to; waits shortly for one that is leaving.

    Args:
        setting: the name of the setting that says the port.
        host: a name or an address; IPv6 with or without brackets.
        port: 0: any that is free, so nothing is looked at.

    Raises:
        PortInUseError: it cannot be listened on.
    """
    for _ in _tries(setting, host, port):
        time.sleep(_POLL_S)


async def wait_port(setting: str, host: str, port: int) -> None:
    """Does what `check_port` does; others of the event loop run while it waits.

    Raises:
        PortInUseError: as `check_port`.
    """
    for _ in _tries(setting, host, port):
        await asyncio.sleep(_POLL_S)


def _tries(setting: str, host: str, port: int) -> Iterator[None]:
    """Ends when the port can be listened on; gives a pause to make after each try that failed."""
    if port == 0:
        return
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise PortInUseError(f"cannot listen on {host}: {error.strerror or error}") from error
    until_s = time.monotonic() + _LEAVING_S
    while True:
        failures = [failure for each in found if (failure := _failure(each)) is not None]
        other = [failure for failure in failures if failure.errno not in _OF_ONE_ADDRESS]
        if not other and len(failures) < len(found):
            return
        first = (other or failures)[0]
        if first.errno != errno.EADDRINUSE or time.monotonic() > until_s:
            raise _refusal(setting, host, port, first)
        yield


def _failure(found: tuple[Any, ...]) -> OSError | None:
    """Returns why one of a host's addresses cannot be listened on; None where it can."""
    family, kind, protocol, _, address = found
    with socket.socket(family, kind, protocol) as probe:
        # As the server will: connections that have ended are not in its way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            return error
    return None


def _refusal(setting: str, host: str, port: int, error: OSError) -> PortInUseError:
    why = _WHY.get(error.errno or 0) or error.strerror or str(error)
    if error.errno in _OF_ONE_ADDRESS:
        return PortInUseError(f"cannot listen on {host}:{port}: {why}; choose another host")
    return PortInUseError(
        f"cannot listen on {host}:{port}: {why}; choose another {setting} "
        f"(LOOKBACK_{setting.upper()}), or 0 for one that is free"
    )
