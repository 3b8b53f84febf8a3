"""`lookback bench encoding`: what int8 and int4 save, cost and lose, at the sizes of a 7B model."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from kvstore.aligned import aligned_empty
from kvstore.encoding import Encoding, Layout
from kvstore.encoding_codec import decode_extent, encode_extent
from kvstore.geometry import Geometry
from kvstore.limits import BlockLimits
from kvstore.reader import SessionReader
from svc.cli.bench.encoding_error import HEAVY, PLAIN, Material, attention_errors, from_bfloat16
from svc.cli.bench.encoding_size import (
    SESSION,
    UNIT_S,
    SessionPlan,
    segment_bytes_an_hour,
    size_rows,
    write_session,
)
from svc.engine.stored_codec import decode_units
from svc.report import Row, print_rows, write_rows

SHAPE = Geometry(layer_count=28, kv_head_count=4, head_dim=128, element="bfloat16")
"""LLaVA-OneVision on Qwen2-7B."""
UNIT_TOKENS = 196
_SLICES = 112  # 45 MB: more than a core's caches
_UNITS_A_BLOCK = 20
_QUANTISED: tuple[Encoding, ...] = ("int8", "int4")
_ENCODINGS: tuple[Encoding, ...] = ("model", *_QUANTISED)
_MIN_RATIO = {"int8": ">= 1.9", "int4": ">= 3.6"}
_MOST_ERROR = {"int8": "<= 0.02", "int4": "<= 0.25"}
_GIB = 2**30
_GB = 1e9


def bench_encoding(unit_count: int, rounds: int, json_file: Path | None) -> None:
    """Measures, prints and, with `json_file`, writes the figures."""
    console = Console()
    material = Material.make(PLAIN, SHAPE, UNIT_TOKENS, unit_count=1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="lookback-bench-") as folder:
        roots = {name: Path(folder) / name for name in _ENCODINGS}
        for encoding, root in roots.items():
            console.print(f"writing {unit_count} units as {encoding} ...")
            _write(root, encoding, material, unit_count)
        rows += _size_rows(roots, unit_count)
        console.print("reading them ...")
        rows += _read_rows(roots, unit_count, rounds)
        console.print("writing sessions of fewer tokens ...")
        rows += size_rows(Path(folder), SHAPE, material, unit_count)
    console.print("encoding, decoding, attending ...")
    rows += _speed_rows(material, rounds)
    rows += _error_rows()
    print_rows("keys and values in 8 and 4 bits", rows, console)
    if json_file is not None:
        write_rows(json_file, "encoding", rows)


def _write(root: Path, encoding: Encoding, material: Material, unit_count: int) -> None:
    limits = BlockLimits(block_tokens=_UNITS_A_BLOCK * UNIT_TOKENS, block_span_s=1e9)
    plan = SessionPlan(
        encoding=encoding, kept_count=UNIT_TOKENS, unit_count=unit_count, limits=limits
    )
    write_session(root, SHAPE, material, plan)


def _size_rows(roots: dict[Encoding, Path], unit_count: int) -> list[Row]:
    model_bytes = segment_bytes_an_hour(roots["model"], unit_count)
    note = f"GiB per stream hour at 0.5 fps, scaled from {unit_count} units (model / it)"
    rows = [Row(name=f"model: {note}", value=model_bytes / _GIB, unit="GiB")]
    for encoding in _QUANTISED:
        it_bytes = segment_bytes_an_hour(roots[encoding], unit_count)
        rows.append(
            Row(
                name=f"{encoding}: {note}",
                value=it_bytes / _GIB,
                unit="GiB",
                baseline=model_bytes / _GIB,
                ratio=model_bytes / it_bytes,
                target=_MIN_RATIO[encoding],
            )
        )
    return rows


def _best_s(rounds: int, *works: Callable[[], object]) -> list[float]:
    """The shortest time of each; they take turns, so that what else runs disturbs all alike."""
    best = [float("inf")] * len(works)
    for _ in range(rounds):
        for place, work in enumerate(works):
            start_s = time.perf_counter()
            work()
            best[place] = min(best[place], time.perf_counter() - start_s)
    return best


def _read_rows(roots: dict[Encoding, Path], unit_count: int, rounds: int) -> list[Row]:
    readers = {name: SessionReader.open(root, SESSION) for name, root in roots.items()}
    token_count = unit_count * UNIT_TOKENS
    shape = (token_count, SHAPE.kv_head_count, SHAPE.head_dim)
    keys, values = np.empty(shape, np.uint16), np.empty(shape, np.uint16)

    def reading(reader: SessionReader) -> Callable[[], object]:
        snapshot = reader.snapshot()

        def read() -> None:
            for layer in range(0, SHAPE.layer_count, 7):
                reader.read(snapshot, layer, range(unit_count), keys, values)

        return read

    def reading_stored(encoding: Encoding) -> Callable[[], object]:
        reader = readers[encoding]
        snapshot = reader.snapshot()
        out = aligned_empty((Layout(SHAPE, encoding).extent_bytes(token_count, unit_count),), "u1")

        def read() -> None:
            for layer in range(0, SHAPE.layer_count, 7):
                reader.read_stored(snapshot, layer, range(unit_count), out)

        return read

    try:
        works = {
            ("read, verified and decoded", name): reading(reader)
            for name, reader in readers.items()
        }
        works |= {
            ("read and verified, as stored", name): reading_stored(name) for name in _QUANTISED
        }
        times_s = _best_s(rounds, *works.values())
    finally:
        for reader in readers.values():
            reader.close()
    read_bytes = 4 * (keys.nbytes + values.nbytes)
    rates = {work: read_bytes / time_s / _GB for work, time_s in zip(works, times_s, strict=True)}
    model_rate = rates["read, verified and decoded", "model"]
    return [
        Row(
            name=f"{encoding}: {how}, one thread, from the page cache, "
            "GB/s of elements (it / model)",
            value=rates[how, encoding],
            unit="GB/s",
            baseline=model_rate,
            ratio=rates[how, encoding] / model_rate,
        )
        for how in ("read, verified and decoded", "read and verified, as stored")
        for encoding in _QUANTISED
    ]


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Has torch calculate on one thread meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _speed_rows(material: Material, rounds: int) -> list[Row]:
    """A layer of a unit at a time, as a writer encodes and a reader decodes, over fresh memory."""
    keys, values = (np.stack([half] * _SLICES) for half in (material.keys, material.values))
    outs = np.empty_like(keys), np.empty_like(values)
    element_bytes = keys.nbytes + values.nbytes
    rows = []

    def copy() -> None:
        for place in range(_SLICES):
            np.copyto(outs[0][place], keys[place])
            np.copyto(outs[1][place], values[place])

    for encoding in _QUANTISED:
        layout = Layout(SHAPE, encoding)
        data: np.ndarray[Any, Any]
        data = np.empty((_SLICES, layout.extent_bytes(UNIT_TOKENS)), np.uint8)

        def encode(layout: Layout = layout, data: np.ndarray[Any, Any] = data) -> None:
            for place in range(_SLICES):
                encode_extent(layout, keys[place], values[place], data[place])

        def decode(layout: Layout = layout, data: np.ndarray[Any, Any] = data) -> None:
            for place in range(_SLICES):
                decode_extent(layout, data[place], outs[0][place], outs[1][place])

        def decode_all(layout: Layout = layout, data: np.ndarray[Any, Any] = data) -> None:
            counts = np.full(_SLICES, UNIT_TOKENS, np.int64)
            decode_units(layout, torch.from_numpy(data.reshape(-1)), counts)

        encode()
        with _one_torch_thread():
            times_s = _best_s(rounds, encode, decode, decode_all, copy)
        *others, copied = (element_bytes / time_s / _GB for time_s in times_s)
        names = ("encode", "decode", "decode with torch, all units at once")
        for name, rate in zip(names, others, strict=True):
            rows.append(
                Row(
                    name=f"{encoding}: {name}, one thread, GB/s of elements (it / memcpy)",
                    value=rate,
                    unit="GB/s",
                    baseline=copied,
                    ratio=rate / copied,
                )
            )
        rows.append(
            Row(
                name=f"{encoding}: encoding a unit of 28 layers, share of the 2 s it stands for",
                value=times_s[0] / _SLICES * SHAPE.layer_count / UNIT_S,
                unit="",
                target="<= 0.02",
            )
        )
    return rows


def _error_rows() -> list[Row]:
    rows = []
    for kind in (PLAIN, HEAVY):
        material = Material.make(kind, SHAPE, UNIT_TOKENS, unit_count=8)
        exact = from_bfloat16(material.keys), from_bfloat16(material.values)
        for encoding in _QUANTISED:
            layout = Layout(SHAPE, encoding)
            ours, per_token = attention_errors(layout, material, exact)
            rows.append(
                Row(
                    name=f"{encoding}: relative error of the attention output, {kind.name} keys "
                    "(baseline: keys ranged per token)",
                    value=ours,
                    unit="",
                    baseline=per_token,
                    target=_MOST_ERROR[encoding],
                )
            )
    return rows
