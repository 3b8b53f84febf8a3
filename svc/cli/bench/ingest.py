"""`lookback bench ingest`: frames per second beside the bare model, memory over hours, stages."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from rich.console import Console

from svc.child import ProcessName
from svc.cli.bench.ingest_stages import stage_rows
from svc.cli.bench.stock import StockModel
from svc.cli.bench.stream import PushedStream
from svc.client import LookbackClient, SessionSettings, TextDelta
from svc.config import Settings, read_settings
from svc.engine.model import load_model
from svc.engine.serving import model_config, serving_defaults
from svc.engine.window import WindowConfig
from svc.memory import Memory, read_memory
from svc.report import Row, print_rows, write_rows
from svc.supervisor import Supervisor

_WARM_UP_FRAMES = 160
_ROUNDS = 3
_YOUNG_S = 600
_PROCESSES: tuple[ProcessName, ...] = ("ingest", "qa")


def bench_ingest(frames: int, hours: float, json_file: Path | None) -> None:
    """Runs the benchmark and prints its table."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="lookback-bench-") as name:
        settings = read_settings(
            data_dir=Path(name) / "data", ingest_port=0, qa_port=0, log_level="WARNING"
        )
        rows = asyncio.run(_measure(settings, frames, int(hours * 3600), console))
        rows += _stage_rows(settings, frames, Path(name), console)
    print_rows("bench ingest", rows, console)
    if json_file:
        write_rows(json_file, "ingest", rows)


async def _measure(settings: Settings, frames: int, length_s: int, console: Console) -> list[Row]:
    config = model_config(settings.model, settings.dtype, settings.device)
    bare = StockModel(config, settings.threads_of("ingest"))
    window_tokens = serving_defaults(config).window_tokens
    async with (
        Supervisor(settings) as service,
        LookbackClient(service.ingest_address, service.qa_address) as client,
    ):
        ours, dropping, theirs = [], [], []
        for round_number in range(_ROUNDS):
            console.print(f"throughput, round {round_number + 1} of {_ROUNDS} ...")
            ours.append(await _service_frames_per_s(client, f"rate-{round_number}", frames, "none"))
            default_id = f"default-{round_number}"
            dropping.append(await _service_frames_per_s(client, default_id, frames, ""))
            theirs.append(
                bare.frames_per_s(frames, settings.units_per_pass, window_tokens=window_tokens)
            )
        default = await client.get_session(default_id)
        console.print(f"pushing {length_s} s of stream for its memory ...")
        young, old = await _memory_over_time(client, service, length_s)
    base = statistics.median(theirs)
    dropped = "" if default.stats is None else f", {default.stats.drop_fraction:.0%} dropped"
    as_default = f"as by default ({default.settings.reduction}, {default.kv_encoding}{dropped})"
    rows = [
        Row(
            name=f"frames per second, {what}; ratio to the bare model, "
            f"{settings.units_per_pass} a pass",
            value=rate,
            unit="frames/s",
            baseline=base,
            ratio=rate / base,
            target=target,
        )
        for what, rate, target in (
            (f"every token kept, {default.kv_encoding}", statistics.median(ours), ">= 0.7"),
            (as_default, statistics.median(dropping), ""),
        )
    ]
    for name in _PROCESSES:
        rows += _memory_rows(name, young[name], old[name], length_s)
    return rows


def _stage_rows(settings: Settings, frames: int, folder: Path, console: Console) -> list[Row]:
    config = model_config(settings.model, settings.dtype, settings.device)
    defaults = serving_defaults(config)
    window = WindowConfig(
        window_tokens=defaults.window_tokens, window_positions=defaults.window_positions
    )
    return stage_rows(
        load_model(config, vision=True),
        StockModel(config, settings.threads_of("ingest")),
        window,
        folder,
        frames=frames,
        units_per_pass=settings.units_per_pass,
        encoding=(defaults.kv_encoding if settings.kv_encoding == "auto" else settings.kv_encoding),
        console=console,
    )


async def _service_frames_per_s(
    client: LookbackClient, session_id: str, frames: int, reduction: str
) -> float:
    """From the first frame that is let through after a warm-up to the last one visible."""
    settings = SessionSettings(sample_fps=1.0, reduction=reduction)
    await client.create_session(session_id, settings=settings)
    async with PushedStream(client, session_id) as stream:
        await stream.reach(_WARM_UP_FRAMES)
        started = time.perf_counter()
        await stream.reach(_WARM_UP_FRAMES + frames)
        return frames / (time.perf_counter() - started)


async def _memory_over_time(
    client: LookbackClient, service: Supervisor, length_s: int
) -> tuple[dict[ProcessName, Memory], dict[ProcessName, Memory]]:
    """Memory of both processes after ten minutes of stream, and after all of it."""
    await client.create_session("memory", settings=SessionSettings(sample_fps=1.0))
    async with PushedStream(client, "memory") as stream:
        found = []
        for age_s in (_YOUNG_S, length_s):
            await stream.reach(age_s)
            for _ in range(20):
                async for part in client.ask("memory", "what colour was the star ?"):
                    assert isinstance(part, TextDelta) or part.snapshot_unit_count == age_s
            found.append({name: read_memory(service.pids[name]) for name in _PROCESSES})
    return found[0], found[1]


def _memory_rows(name: ProcessName, young: Memory, old: Memory, length_s: int) -> list[Row]:
    hours = f"{length_s / 3600:g} h"
    mib = 2**20
    return [
        Row(
            name=f"{name} process, anonymous memory after {hours}; ratio to that after 10 min",
            value=old.anonymous / mib,
            unit="MiB",
            baseline=young.anonymous / mib,
            ratio=old.anonymous / young.anonymous,
            target="<= 1.1",
        ),
        Row(
            name=f"{name} process, index pages after {hours}",
            value=old.index_mapped / mib,
            unit="MiB",
            baseline=young.index_mapped / mib,
        ),
        Row(
            name=f"{name} process, shared hot tail after {hours}",
            value=old.hot_mapped / mib,
            unit="MiB",
            baseline=young.hot_mapped / mib,
        ),
    ]
