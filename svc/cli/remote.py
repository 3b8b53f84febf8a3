"""What all commands share that talk to a running service: its addresses."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from svc.client import LookbackClient


ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="HOST",
        help="Machine that runs the service, at the ports of LOOKBACK_INGEST_PORT and "
        "LOOKBACK_QA_PORT (50551 and 50552).",
        show_default="LOOKBACK_HOST, or 127.0.0.1",
    ),
]
IngestAddressOption = Annotated[
    str | None,
    typer.Option(
        "--ingest-address",
        metavar="HOST:PORT",
        help="Address of the ingest process, where it is not the one of --server.",
    ),
]
QaAddressOption = Annotated[
    str | None,
    typer.Option(
        "--qa-address",
        metavar="HOST:PORT",
        help="Address of the process that answers, where it is not the one of --server.",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """Where the service is, as far as the command line said; None: as the settings say."""

    server: str | None = None
    ingest_address: str | None = None
    qa_address: str | None = None

    def client(self) -> LookbackClient:
        """Returns a client of the service; the settings fill in what was not said."""
        from svc.client import LookbackClient
        from svc.config import read_settings

        settings = read_settings()
        host = self.server or settings.host
        if ":" in host and not host.startswith("["):
            host = f"[{host}]"
        return LookbackClient(
            self.ingest_address or f"{host}:{settings.ingest_port}",
            self.qa_address or f"{host}:{settings.qa_port}",
            on_waiting=_say_on_terminal,
        )


def _say_on_terminal(sentence: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"{sentence}\n")
        sys.stderr.flush()


def endpoints(
    context: typer.Context, server: str | None, ingest_address: str | None, qa_address: str | None
) -> Endpoints:
    """Returns where the service is: what follows the command wins over what precedes it."""
    before = context.find_object(Endpoints) or Endpoints()
    for name, address in (("--ingest-address", ingest_address), ("--qa-address", qa_address)):
        if address is not None and not address.rpartition(":")[2].isdecimal():
            raise typer.BadParameter(f"{address!r} is not HOST:PORT", param_hint=name)
    if server is not None:
        # A machine named after the command means its ports, not an address named before it.
        return Endpoints(server=server, ingest_address=ingest_address, qa_address=qa_address)
    return Endpoints(
        server=before.server,
        ingest_address=ingest_address or before.ingest_address,
        qa_address=qa_address or before.qa_address,
    )
