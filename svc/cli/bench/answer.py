"""`lookback bench answer`: time to the first token against the age of the stream."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from retrieval.index import KeyIndexReader
from retrieval.index_writer import KeyIndexWriter
from svc.cli.bench.stock import StockModel
from svc.cli.bench.stream import PushedStream
from svc.client import DecodingOptions, LookbackClient, SessionSettings, TextDelta
from svc.config import Settings, read_settings
from svc.engine.serving import model_config
from svc.report import Row, print_rows, write_rows
from svc.supervisor import Supervisor

_QUESTION = "what colour was the star ?"
_SESSION = "bench"
_WARM_UP = 5
_STOCK_LONGEST_S = 3600
"""Beyond this the stock model has no trained positions left."""
_FASTER_THAN_STOCK = {600: ">= 10", 3600: ">= 100"}
_GEOMETRY_7B = (28, 512)
"""Layers, and kv heads * head dimension, of LLaVA-OneVision 7B."""


def bench_answer(ages_s: list[int], questions: int, stock: bool, json_file: Path | None) -> None:
    """Runs the benchmark and prints its table."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="lookback-bench-") as name:
        folder = Path(name)
        settings = read_settings(
            data_dir=folder / "data", ingest_port=0, qa_port=0, log_level="WARNING"
        )
        idle, busy = asyncio.run(_serve_and_ask(settings, ages_s, questions, console))
        rows = _age_rows("idle", idle) + _age_rows("while pushed at full speed", busy)
        if stock:
            rows += _stock_rows(settings, idle, console)
        console.print("scoring a synthetic index of a 7B model's geometry ...")
        rows += [_top_k_row(folder / f"index-{count}", count) for count in (3600, 14400)]
    print_rows("bench answer", rows, console)
    if json_file:
        write_rows(json_file, "answer", rows)


async def _serve_and_ask(
    settings: Settings, ages_s: list[int], questions: int, console: Console
) -> tuple[dict[int, float], dict[int, float]]:
    """Median seconds to the first token by age: with nothing else to do, and while it is pushed."""
    idle: dict[int, float] = {}
    busy: dict[int, float] = {}
    async with (
        Supervisor(settings) as service,
        LookbackClient(service.ingest_address, service.qa_address) as client,
    ):
        await client.create_session(_SESSION, settings=SessionSettings(sample_fps=1.0))
        async with PushedStream(client, _SESSION) as stream:
            for age_s in ages_s:
                console.print(f"pushing up to {age_s} s of stream ...")
                # The last stretch is pushed while questions are asked, so that both are of one age.
                await stream.reach(age_s - 1)
                idle[age_s] = await _median_ttft_s(client, questions)
                await stream.let(age_s * 2)
                busy[age_s] = await _median_ttft_s(client, questions)
    return idle, busy


async def _median_ttft_s(client: LookbackClient, questions: int) -> float:
    """As the client sees it: from the call to the first text."""
    times = []
    for _ in range(_WARM_UP + questions):
        started = time.perf_counter()
        parts = client.ask(
            _SESSION, _QUESTION, decoding=DecodingOptions(max_new_token_count=1, ignore_eos=True)
        )
        async with contextlib.aclosing(parts):
            async for part in parts:
                if isinstance(part, TextDelta):
                    times.append(time.perf_counter() - started)
                    break
    return statistics.median(times[_WARM_UP:])


def _age_rows(state: str, ttft_s: dict[int, float]) -> list[Row]:
    """A row an age; all but the first are compared with the first."""
    (first, base), *_ = ttft_s.items()
    return [
        Row(
            name=f"TTFT at {_age(age_s)}, {state}; ratio to {_age(first)}",
            value=1000 * seconds,
            unit="ms",
            baseline=1000 * base,
            ratio=seconds / base,
            target="<= 1.2" if age_s != first else "",
        )
        for age_s, seconds in ttft_s.items()
    ]


def _stock_rows(settings: Settings, idle: dict[int, float], console: Console) -> list[Row]:
    config = model_config(settings.model, settings.dtype, settings.device)
    model = StockModel(config, settings.threads_of("qa"))
    rows = []
    for age_s, seconds in idle.items():
        if age_s > _STOCK_LONGEST_S:
            continue
        console.print(f"stock model over {age_s} frames ...")
        baseline = model.first_token_s(age_s, _QUESTION)
        rows.append(
            Row(
                name=f"TTFT at {_age(age_s)} against re-encoding the stream; ratio stock/ours",
                value=1000 * seconds,
                unit="ms",
                baseline=1000 * baseline,
                ratio=baseline / seconds,
                target=_FASTER_THAN_STOCK.get(age_s, ""),
            )
        )
    return rows


def _top_k_row(path: Path, unit_count: int) -> Row:
    """Scores and top 64 in all layers, beside copying the same bytes once."""
    layers, dim = _GEOMETRY_7B
    rng = np.random.default_rng(0)
    writer = KeyIndexWriter.create(path, layer_count=layers, dim=dim, epoch=1)
    for _ in range(unit_count):
        writer.append(rng.standard_normal((layers, dim), dtype=np.float32))
    reader = KeyIndexReader.open(path)
    query = rng.standard_normal(dim, dtype=np.float32)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        for layer in range(layers):
            reader.top_k(layer, query, unit_count, 64)
        times.append(time.perf_counter() - started)
    source = np.ones((unit_count, dim), dtype=np.float32)
    target = np.empty_like(source)
    started = time.perf_counter()
    for _ in range(layers):
        np.copyto(target, source)
    copied = time.perf_counter() - started
    writer.close()
    reader.close()
    path.unlink()
    return Row(
        name=f"top 64 of {unit_count} units in 28 layers (7B); ratio to one copy of the rows",
        value=1000 * min(times),
        unit="ms",
        baseline=1000 * copied,
        ratio=min(times) / copied,
    )


def _age(age_s: int) -> str:
    return f"{age_s // 3600} h" if age_s % 3600 == 0 else f"{age_s // 60} min"
