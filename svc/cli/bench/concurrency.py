"""`lookback bench concurrency`: what questions and live sessions gain by sharing passes."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from kvstore.limits import BlockLimits
from svc.cli.bench.stream import PushedStream, frame_pixels
from svc.client import DecodingOptions, LookbackClient, SessionSettings, TextDelta
from svc.config import Settings, read_settings
from svc.engine.ingest_session import FrameUnit, StoreOptions, StreamIngest
from svc.engine.ingest_together import encode_streams
from svc.engine.model import LoadedModel, load_model
from svc.engine.reduction.spec import NO_REDUCTION
from svc.engine.serving import ServingDefaults, model_config, serving_defaults
from svc.engine.window import WindowConfig
from svc.report import Row, print_rows, write_rows
from svc.supervisor import Supervisor

_SESSION = "bench"
_QUESTION = "what colour was the star ?"
_AGE_S = 600
_AT_ONCE = 8
_ANSWER_TOKENS = 64
_LONG_TOKENS = 512
_WARM_UNITS = 20


def bench_concurrency(rounds: int, questions: int, units: int, json_file: Path | None) -> None:
    """Runs the benchmark and prints its table."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="lookback-bench-") as name:
        settings = read_settings(
            data_dir=Path(name) / "data", ingest_port=0, qa_port=0, log_level="WARNING"
        )
        rows = asyncio.run(_answer_rows(settings, rounds, questions, console))
        rows.append(_ingest_row(settings, Path(name), rounds, units, console))
    print_rows("bench concurrency", rows, console)
    if json_file:
        write_rows(json_file, "concurrency", rows)


async def _answer_rows(
    settings: Settings, rounds: int, questions: int, console: Console
) -> list[Row]:
    async with (
        Supervisor(settings) as service,
        LookbackClient(service.ingest_address, service.qa_address) as client,
    ):
        await client.create_session(_SESSION, settings=SessionSettings(sample_fps=1.0))
        async with PushedStream(client, _SESSION) as stream:
            console.print(f"pushing {_AGE_S} s of stream ...")
            await stream.reach(_AGE_S)
            return [
                await _throughput_row(client, rounds, console),
                await _first_token_row(client, questions, console),
            ]


async def _throughput_row(client: LookbackClient, rounds: int, console: Console) -> Row:
    """Answers of equal length, all at once and one after the other, in turns."""
    ratios, together, singly = [], [], []
    await _answer(client, _ANSWER_TOKENS)
    for number in range(rounds):
        console.print(f"{_AT_ONCE} questions, round {number + 1} of {rounds} ...")
        started = time.perf_counter()
        for _ in range(_AT_ONCE):
            await _answer(client, _ANSWER_TOKENS)
        between = time.perf_counter()
        await asyncio.gather(*(_answer(client, _ANSWER_TOKENS) for _ in range(_AT_ONCE)))
        ended = time.perf_counter()
        token_count = _AT_ONCE * _ANSWER_TOKENS
        singly.append(token_count / (between - started))
        together.append(token_count / (ended - between))
        ratios.append(together[-1] / singly[-1])
    return Row(
        name=f"answer tokens per second, {_AT_ONCE} questions of {_ANSWER_TOKENS} tokens at once; "
        "ratio to one after another",
        value=statistics.median(together),
        unit="tokens/s",
        baseline=statistics.median(singly),
        ratio=statistics.median(ratios),
        ratio_span=(min(ratios), max(ratios)),
        target=">= 2.5",
    )


async def _first_token_row(client: LookbackClient, questions: int, console: Console) -> Row:
    """A short question's first token, alone and beside a long answer that is being decoded."""
    console.print(f"{questions} short questions, alone and beside an answer of {_LONG_TOKENS} ...")
    alone = [await _first_token_s(client) for _ in range(questions)]
    beside: list[float] = []
    while len(beside) < questions:
        long = asyncio.create_task(_answer(client, _LONG_TOKENS))
        await asyncio.sleep(0)
        while not long.done() and len(beside) < questions:
            seconds = await _first_token_s(client)
            if not long.done():
                beside.append(seconds)
        await long
    base, value = (1000 * float(np.percentile(times, 95)) for times in (alone, beside))
    return Row(
        name=f"TTFT of a short question beside an answer of {_LONG_TOKENS} tokens, 95th "
        "percentile; ratio to alone",
        value=value,
        unit="ms",
        baseline=base,
        ratio=value / base,
        target="<= 2",
    )


async def _answer(client: LookbackClient, token_count: int) -> None:
    decoding = DecodingOptions(max_new_token_count=token_count, ignore_eos=True)
    answer = await client.answer(_SESSION, _QUESTION, decoding=decoding)
    if answer.answer_token_count != token_count:
        raise RuntimeError(f"{answer.answer_token_count} tokens came, asked for {token_count}")


async def _first_token_s(client: LookbackClient) -> float:
    started = time.perf_counter()
    first = 0.0
    decoding = DecodingOptions(max_new_token_count=1, ignore_eos=True)
    async for part in client.ask(_SESSION, _QUESTION, decoding=decoding):
        if isinstance(part, TextDelta) and not first:
            first = time.perf_counter() - started
    return first


def _ingest_row(settings: Settings, folder: Path, rounds: int, units: int, console: Console) -> Row:
    """Live sessions with a unit each: in one pass, and each in a pass of its own, in turns."""
    config = model_config(settings.model, settings.dtype, settings.device)
    torch.set_num_threads(settings.threads_of("ingest"))
    model, defaults = load_model(config, vision=True), serving_defaults(config)
    frames = [_unit(model, index) for index in range(_WARM_UNITS + units)]
    ratios, together, singly = [], [], []
    for number in range(rounds):
        console.print(f"{_AT_ONCE} live sessions, round {number + 1} of {rounds} ...")
        rates = [
            _frames_per_s(model, defaults, folder / f"{encode.__name__}-{number}", frames, encode)
            for encode in (_one_by_one, _in_one_pass)
        ]
        singly.append(rates[0])
        together.append(rates[1])
        ratios.append(rates[1] / rates[0])
    return Row(
        name=f"frames per second of {_AT_ONCE} live sessions, a unit of each in one pass, every "
        f"token kept, {defaults.kv_encoding}; ratio to a pass each",
        value=statistics.median(together),
        unit="frames/s",
        baseline=statistics.median(singly),
        ratio=statistics.median(ratios),
        ratio_span=(min(ratios), max(ratios)),
        target=">= 2",
    )


def _unit(model: LoadedModel, index: int) -> FrameUnit:
    pixels = model.adapter.preprocess([frame_pixels(index)] * model.adapter.frames_per_unit)
    return FrameUnit(
        pixels=pixels,
        first_pts_s=float(index),
        last_pts_s=float(index),
        gap_before=False,
        thumbnail_jpeg=b"",
        resume=b"",
    )


def _frames_per_s(
    model: LoadedModel,
    defaults: ServingDefaults,
    root: Path,
    frames: Sequence[FrameUnit],
    encode: Callable[[Sequence[StreamIngest], FrameUnit], None],
) -> float:
    window = WindowConfig(
        window_tokens=defaults.window_tokens, window_positions=defaults.window_positions
    )
    store = StoreOptions(root=root, limits=BlockLimits(), encoding=defaults.kv_encoding)
    streams = [
        StreamIngest.open(model, window, f"live-{index}", store, NO_REDUCTION)
        for index in range(_AT_ONCE)
    ]
    try:
        for unit in frames[:_WARM_UNITS]:
            encode(streams, unit)
        started = time.perf_counter()
        for unit in frames[_WARM_UNITS:]:
            encode(streams, unit)
        passed_s = time.perf_counter() - started
    finally:
        for stream in streams:
            stream.close()
    return _AT_ONCE * (len(frames) - _WARM_UNITS) / passed_s


def _one_by_one(streams: Sequence[StreamIngest], unit: FrameUnit) -> None:
    for stream in streams:
        stream.encode([unit])


def _in_one_pass(streams: Sequence[StreamIngest], unit: FrameUnit) -> None:
    for error in encode_streams([(stream, [unit]) for stream in streams]):
        if error is not None:
            raise error
