"""`lookback serve`, `ingest`, `qa`: the service, or one process of it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from svc.cli.failures import CommandError
from svc.cli.flags import named, naming

if TYPE_CHECKING:
    from svc.supervisor import Supervisor

_DataOption = Annotated[
    Path,
    typer.Option(
        "--data",
        metavar="DIR",
        file_okay=False,
        help="Folder in which the memory is kept; made if it is not there.",
    ),
]
_ModelOption = Annotated[
    str | None,
    typer.Option(
        help="`builtin`, a folder, or a hub name of a supported model. ",
        show_default="LOOKBACK_MODEL, or builtin",
    ),
]
_HostOption = Annotated[
    str | None,
    typer.Option(
        help="Address to listen on. There is no authentication: keep it on a trusted network. ",
        show_default="LOOKBACK_HOST, or 127.0.0.1",
    ),
]
_IngestPortOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=65535,
        help="Port of sessions and video; 0: a free one.",
        show_default="LOOKBACK_INGEST_PORT, or 50551",
    ),
]
_QaPortOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=65535,
        help="Port of questions; 0: a free one.",
        show_default="LOOKBACK_QA_PORT, or 50552",
    ),
]
_DeviceOption = Annotated[
    str | None,
    typer.Option(help="Torch device.", show_default="LOOKBACK_DEVICE, or cpu"),
]
_DtypeOption = Annotated[
    str | None,
    typer.Option(
        help="auto, float32, float16 or bfloat16.", show_default="LOOKBACK_DTYPE, or auto"
    ),
]
_LogLevelOption = Annotated[
    str | None,
    typer.Option(help="DEBUG, INFO, WARNING or ERROR.", show_default="LOOKBACK_LOG_LEVEL, or INFO"),
]

_PORT_FLAGS = {"ingest_port": "--ingest-port", "qa_port": "--qa-port"}
"""What is to be changed where a port is in use, whoever chose it."""


def serve(
    data: _DataOption,
    model: _ModelOption = None,
    host: _HostOption = None,
    ingest_port: _IngestPortOption = None,
    qa_port: _QaPortOption = None,
    device: _DeviceOption = None,
    dtype: _DtypeOption = None,
    log_level: _LogLevelOption = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object with both addresses when both serve."),
    ] = False,
) -> None:
    """Runs the service: the process that watches and the process that answers.

    Every other setting is read from the environment (LOOKBACK_...). Ctrl-C stops both.
    """
    from svc.cli.model_path import check_model
    from svc.config import read_settings
    from svc.logs import configure_logs
    from svc.supervisor import StartError
    from svc.supervisor import serve as serve_both

    given = {
        "data_dir": data,
        "model": model,
        "host": host,
        "ingest_port": ingest_port,
        "qa_port": qa_port,
        "device": device,
        "dtype": dtype,
        "log_level": log_level,
    }
    announce = _announce_json if as_json else _announce
    try:
        with naming(_flags(given)):
            settings = read_settings(**given)
            check_model(settings.model)
            configure_logs("supervisor", settings.log_level)
            with naming(_PORT_FLAGS):
                status = asyncio.run(serve_both(settings, on_ready=announce))
    except StartError as error:
        message = named(str(error), _flags(given))
        raise CommandError("CANNOT_START", message, exit_status=error.exit_status) from error
    raise typer.Exit(status)


def _flags(given: Mapping[str, object], **other: str) -> dict[str, str]:
    """Returns the options by the settings they give; the rest comes from the environment."""
    flags = {name: f"--{name.replace('_', '-')}" for name in given} | {"data_dir": "--data"} | other
    return {name: flags[name] for name, value in given.items() if value is not None}


def _announce(service: Supervisor) -> None:
    sys.stdout.write(
        f"serving: sessions and video at {service.ingest_address}, "
        f"questions at {service.qa_address}; Ctrl-C stops\n"
    )
    sys.stdout.flush()


def _announce_json(service: Supervisor) -> None:
    event = {
        "event": "ready",
        "ingest_address": service.ingest_address,
        "qa_address": service.qa_address,
    }
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def ingest(
    data: _DataOption,
    model: _ModelOption = None,
    host: _HostOption = None,
    port: _IngestPortOption = None,
    device: _DeviceOption = None,
    dtype: _DtypeOption = None,
    log_level: _LogLevelOption = None,
) -> None:
    """Runs the process that watches: sessions and video. It says on standard output when ready."""
    _become(
        "svc.ingest",
        data_dir=data.absolute(),
        model=model,
        host=host,
        ingest_port=port,
        device=device,
        dtype=dtype,
        log_level=log_level,
    )


def qa(
    data: _DataOption,
    model: _ModelOption = None,
    host: _HostOption = None,
    port: _QaPortOption = None,
    device: _DeviceOption = None,
    dtype: _DtypeOption = None,
    log_level: _LogLevelOption = None,
) -> None:
    """Runs the process that answers. It says on standard output when it is ready."""
    _become(
        "svc.qa",
        data_dir=data.absolute(),
        model=model,
        host=host,
        qa_port=port,
        device=device,
        dtype=dtype,
        log_level=log_level,
    )


def _become(module: str, **settings: object) -> None:
    """Replaces this process by one of the service: signals and exit status are then its own."""
    from svc.cli.model_path import check_model
    from svc.config import ENV_PREFIX, read_settings
    from svc.data_dir import make_data_dir
    from svc.folder_owner import check_free
    from svc.rpc.ports import check_port

    ports = {"ingest_port": "--port", "qa_port": "--port"}
    with naming(_flags(settings, **ports)):  # a wrong one is said here, at once
        read = read_settings(**settings)
        check_model(read.model)
        if module == "svc.ingest":  # the other process reads what is there, and writes nothing
            make_data_dir(read.data_dir)
            check_free(read)
        with naming(ports):
            if module == "svc.ingest":
                check_port("ingest_port", read.host, read.ingest_port)
            else:
                check_port("qa_port", read.host, read.qa_port)
    given = {
        f"{ENV_PREFIX}{name.upper()}": str(value)
        for name, value in settings.items()
        if value is not None
    }
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", module], {**os.environ, **given})
