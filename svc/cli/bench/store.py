"""`lookback bench store`: the store beside bare memory and the bare disk of the same minute.

Every figure and its yardstick take turns; the best of their rounds are compared. What is called
cold has left this machine's page cache; a virtual disk may keep a cache of its own below.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from kvstore.directio import DiskMode
from kvstore.geometry import Geometry
from kvstore.paths import segment_numbers, segment_path, session_folder
from kvstore.readpool import ReadPool
from retrieval.index import KeyIndexReader
from retrieval.index_writer import KeyIndexWriter
from svc.cli.bench.store_ram import ram_rows
from svc.cli.bench.store_session import (
    BLOCK_BYTES,
    SEVEN_B,
    SLICE_BYTES,
    UNIT_BYTES,
    UNIT_TOKENS,
    UNITS_PER_BLOCK,
    Noise,
    Question,
    fill,
    open_writer,
    write_session,
)
from svc.cli.bench.store_visible import measure_delays
from svc.cli.bench.store_yardsticks import (
    BareReads,
    DirectReads,
    Memcpy,
    copy_seconds,
    drop_cached,
    raw_append_bytes_per_s,
    seconds,
    warm_up,
)
from svc.cli.failures import CommandError
from svc.report import Row, print_rows, write_rows

_TOP = 64
_READ_THREADS = 8
_SESSIONS_AT_ONCE = 8
_INDEX_ROWS = 3600
_SMALL = Geometry(layer_count=28, kv_head_count=1, head_dim=8, element="float16")
_SMALL_UNITS = 2048
_GB = 1e9
_RESERVE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is written and how often it is measured."""

    units: int
    """Units of the session that is read, and of each append run (in whole blocks)."""
    rounds: int
    disk_io: DiskMode = "auto"
    visible_units: int = 100

    @property
    def append_blocks(self) -> int:
        """Blocks of one append run."""
        return max(1, self.units // 2 // UNITS_PER_BLOCK)

    @property
    def session_blocks(self) -> int:
        """Blocks of each of the sessions that are written at once."""
        return max(1, self.append_blocks // _SESSIONS_AT_ONCE)

    @property
    def append_rounds(self) -> int:
        """Rounds of what writes most."""
        return min(self.rounds, 3)

    @property
    def round_bytes(self) -> int:
        """Bytes of sessions that one round of appends writes; as many lie there at most."""
        return BLOCK_BYTES * (self.append_blocks + _SESSIONS_AT_ONCE * self.session_blocks)

    @property
    def written_bytes(self) -> int:
        """Bytes that the benchmark writes in all: each append beside two yardsticks."""
        return self.units * UNIT_BYTES + 3 * self.append_rounds * self.round_bytes

    @property
    def needed_bytes(self) -> int:
        """Bytes of disk that it takes at any time, and a reserve."""
        return max(self.units * UNIT_BYTES, 2 * self.round_bytes) + _RESERVE_BYTES


def bench_store(folder: Path | None, sizes: Sizes, json_file: Path | None) -> None:
    """Runs the benchmark in a folder of its own, which goes at the end, and prints its table."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="lookback-bench-", dir=folder) as name:
        root = Path(name)
        _check_room(root, sizes)
        console.print(
            f"writing {sizes.written_bytes / _GB:.1f} GB to {root.parent}, removed at the end; "
            "cold means: not in this machine's page cache"
        )
        rows = _measure(root, sizes, console)
    print_rows("bench store", rows, console)
    if json_file:
        write_rows(json_file, "store", rows)


def _check_room(root: Path, sizes: Sizes) -> None:
    free_bytes = shutil.disk_usage(root).free
    if free_bytes < sizes.needed_bytes:
        raise CommandError(
            "NO_ROOM",
            f"{root.parent} has {free_bytes / _GB:.1f} GB free, "
            f"{sizes.needed_bytes / _GB:.1f} are needed; try fewer --units, or another --dir",
        )


def _measure(root: Path, sizes: Sizes, console: Console) -> list[Row]:
    steps: tuple[Callable[[Path, Sizes], list[Row]], ...] = (
        _read_rows,
        _append_rows,
        _visible_rows,
        _index_rows,
        _overhead_rows,
        _ram_rows,
    )
    rows: list[Row] = []
    for step in steps:
        console.print(f"{step.__name__.strip('_').removesuffix('_rows')} ...")
        rows += step(root, sizes)
        for place in ("sessions", "trash"):
            shutil.rmtree(root / place, ignore_errors=True)
        gc.collect()  # let go of arrays before the next yardstick is laid out
    return rows


def _rate_row(name: str, ours: list[float], base: list[float], target: str) -> Row:
    best, best_base = max(ours), max(base)
    return Row(
        name=name,
        value=best / _GB,
        unit="GB/s",
        baseline=best_base / _GB,
        ratio=best / best_base,
        target=target,
    )


def _segments(root: Path, session_id: str) -> list[Path]:
    folder = session_folder(root, session_id)
    return [segment_path(folder, number) for number in segment_numbers(folder)]


def _read_rows(root: Path, sizes: Sizes) -> list[Row]:
    write_session(root, "read", Noise(SEVEN_B, UNIT_TOKENS), sizes.units, sizes.disk_io)
    question = Question(root, "read", _TOP, UNIT_TOKENS, sizes.disk_io)
    rng = np.random.default_rng(1)
    paths = _segments(root, "read")
    memcpy = Memcpy(SLICE_BYTES, question.slice_count)
    pool = ReadPool(_READ_THREADS)
    direct = DirectReads(paths, SLICE_BYTES, threads=_READ_THREADS)
    warm: list[float] = []
    shared: list[float] = []
    copied, cold, again, raw = [], [], [], []
    try:
        # First what is warm, whole in the page cache; then all of it is dropped.
        warm_up(paths)
        for _ in range(sizes.rounds):
            picks = list(question.picks(rng))
            for rates, threads in ((warm, None), (shared, pool)):
                read = partial(question.read, picks, threads)
                rates.append(question.byte_count / seconds(read))
                copied.append(memcpy.bytes_per_s(question.byte_count))
        for _ in range(sizes.rounds):
            drop_cached(paths)
            read = partial(question.read, list(question.picks(rng)), pool)
            cold.append(question.byte_count / seconds(read))
            again.append(question.byte_count / seconds(read))
            raw.append(direct.bytes_per_s(question.byte_count, rng))
    finally:
        pool.close()
        direct.close()
        question.close()
    what = f"{question.slice_count} slices of {SLICE_BYTES // 1024} KiB"
    return [
        _rate_row(
            f"warm read of a question, {what}, verified, 1 thread; ratio to memcpy",
            warm,
            copied,
            ">= 0.6",
        ),
        _rate_row(f"the same in {_READ_THREADS} threads", shared, copied, ""),
        _rate_row(
            f"guest-cold read of a question, verified, {_READ_THREADS} threads; "
            "ratio to O_DIRECT random reads of that size",
            cold,
            raw,
            ">= 0.85",
        ),
        _rate_row("the same question once more", again, raw, ""),
    ]


def _append_rows(root: Path, sizes: Sizes) -> list[Row]:
    noise = Noise(SEVEN_B, UNIT_TOKENS)
    many = [f"many-{index}" for index in range(_SESSIONS_AT_ONCE)]
    alone, alone_raw, together, together_raw = [], [], [], []
    for _ in range(sizes.append_rounds):
        alone.append(_append_bytes_per_s(root, ["one"], noise, sizes.append_blocks, sizes))
        alone_raw.append(_raw(root, sizes.append_blocks, writers=1))
        together.append(_append_bytes_per_s(root, many, noise, sizes.session_blocks, sizes))
        together_raw.append(_raw(root, sizes.session_blocks, writers=len(many)))
    block = f"blocks of {BLOCK_BYTES / 2**20:.0f} MiB"
    return [
        _rate_row(
            f"durable append, {block}; ratio to sequential write and fdatasync "
            "(the faster of buffered and O_DIRECT)",
            alone,
            alone_raw,
            ">= 0.75",
        ),
        _rate_row(
            f"durable append of {_SESSIONS_AT_ONCE} sessions at once; "
            f"ratio to {_SESSIONS_AT_ONCE} such writers",
            together,
            together_raw,
            ">= 0.9",
        ),
    ]


def _raw(root: Path, block_count: int, *, writers: int) -> float:
    return max(
        raw_append_bytes_per_s(root, BLOCK_BYTES, block_count, writers=writers, direct=direct)
        for direct in (False, True)
    )


def _append_bytes_per_s(
    root: Path, names: list[str], noise: Noise, block_count: int, sizes: Sizes
) -> float:
    """Returns the rate of durable appends to new sessions, each in a thread; they are removed.

    Opening and closing are not in it: a session is opened once for hours.
    """
    units = block_count * UNITS_PER_BLOCK
    with ExitStack() as stack:
        writers = [
            stack.enter_context(closing(open_writer(root, name, disk_io=sizes.disk_io)))
            for name in names
        ]
        pool = stack.enter_context(ThreadPoolExecutor(len(names)))
        taken_s = seconds(lambda: list(pool.map(lambda each: fill(each, noise, units), writers)))
    shutil.rmtree(root / "sessions")
    return len(names) * units * UNIT_BYTES / taken_s


def _visible_rows(root: Path, sizes: Sizes) -> list[Row]:
    delays = measure_delays(root, "visible", sizes.visible_units)
    return [
        Row(
            name="visible in another process after append, median; beside a word of shared memory",
            value=delays.appended_ms,
            unit="ms",
            baseline=delays.word_ms,
            target="<= 5",
        ),
        Row(
            name="the same from the call of append on",
            value=delays.called_ms,
            unit="ms",
            baseline=delays.word_ms,
        ),
    ]


def _index_rows(root: Path, sizes: Sizes) -> list[Row]:
    dim = SEVEN_B.kv_head_count * SEVEN_B.head_dim
    path = root / "index.rows"
    rng = np.random.default_rng(2)
    writer = KeyIndexWriter.create(path, layer_count=SEVEN_B.layer_count, dim=dim, epoch=1)
    for _ in range(_INDEX_ROWS):
        writer.append(rng.standard_normal((SEVEN_B.layer_count, dim), np.float32))
    reader = KeyIndexReader.open(path)
    reader.check(_INDEX_ROWS)
    queries = rng.standard_normal((SEVEN_B.layer_count, dim), np.float32)
    copy = copy_seconds(SEVEN_B.layer_count * _INDEX_ROWS * dim * 4)

    def search() -> None:
        for layer, query in enumerate(queries):
            reader.top_k(layer, query, _INDEX_ROWS, _TOP)

    ours, base = [], []
    for _ in range(3 * sizes.rounds):
        ours.append(seconds(search))
        base.append(copy())
    reader.close()
    writer.close()
    path.unlink()
    return [
        Row(
            name=f"top {_TOP} of {_INDEX_ROWS} units in {SEVEN_B.layer_count} layers; "
            "ratio to memcpy of the bytes scanned",
            value=1000 * min(ours),
            unit="ms",
            baseline=1000 * min(base),
            ratio=min(ours) / min(base),
            target="<= 1.2",
        )
    ]


def _overhead_rows(root: Path, sizes: Sizes) -> list[Row]:
    """Slices so small that all of the time is the store's own."""
    write_session(root, "small", Noise(_SMALL, 1), _SMALL_UNITS)
    question = Question(root, "small", _TOP, 1)
    small = BareReads(_segments(root, "small")[0], question.slice_count)
    rng = np.random.default_rng(3)
    ours, base = [], []
    for _ in range(3 * sizes.rounds):
        picks = list(question.picks(rng))
        ours.append(seconds(partial(question.read, picks)))
        base.append(seconds(small.read))
    question.close()
    small.close()
    scale = 1e6 / question.slice_count
    return [
        Row(
            name="store's own time per slice, from the page cache; beside a loop of bare preadv",
            value=scale * min(ours),
            unit="us",
            baseline=scale * min(base),
            target="<= 15",
        )
    ]


def _ram_rows(root: Path, sizes: Sizes) -> list[Row]:
    return ram_rows(root, sizes.units, sizes.rounds)
