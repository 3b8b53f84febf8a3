"""`lookback sessions timeline`: when a stream showed something new."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from svc.cli.remote import (
    Endpoints,
    IngestAddressOption,
    QaAddressOption,
    ServerOption,
    endpoints,
)
from svc.cli.session_options import JsonOption, SessionArgument, print_json
from svc.cli.times import format_time, parse_time_s

if TYPE_CHECKING:
    from svc.client import Unit

_BAR_CHARS = 40


def timeline(
    context: typer.Context,
    session: SessionArgument,
    start: Annotated[
        float | None,
        typer.Option("--from", parser=parse_time_s, metavar="TIME", help="Begin here."),
    ] = None,
    end: Annotated[
        float | None,
        typer.Option("--to", parser=parse_time_s, metavar="TIME", help="End before this."),
    ] = None,
    as_json: JsonOption = False,
    server: ServerOption = None,
    ingest_address: IngestAddressOption = None,
    qa_address: QaAddressOption = None,
) -> None:
    """Shows how much of each unit was kept: much where something new was seen.

    With --json one object a line.
    """
    where = endpoints(context, server, ingest_address, qa_address)
    asyncio.run(_show(where, session, start, end, as_json))


async def _show(
    where: Endpoints, session: str, start_s: float | None, end_s: float | None, as_json: bool
) -> None:
    async with where.client() as client:
        async for unit in client.list_units(session, start_s=start_s, end_s=end_s):
            if as_json:
                print_json(dataclasses.asdict(unit))
            else:
                sys.stdout.write(_line(unit))


def _line(unit: Unit) -> str:
    kept = 1 - unit.drop_fraction
    bar = "#" * max(1, round(kept * _BAR_CHARS))
    said = [
        f"{format_time(unit.first_pts_s):>10}",
        f"{kept:>4.0%}",
        f"{unit.token_count:>5} tokens",
        f"{bar:<{_BAR_CHARS}}",
        *(["after a gap"] if unit.gap_before else []),
        *(["coarsened"] if unit.coarsened else []),
    ]
    return "  ".join(said).rstrip() + "\n"
