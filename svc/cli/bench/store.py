"""`lookback bench store`: the store beside bare memory and the bare disk of the same minute.

Every figure and its yardstick take turns; the median of the turns' ratios counts. What is called
cold has left this machine's page cache; a virtual disk may keep a cache of its own below.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from kvstore.geometry import Geometry
from kvstore.paths import segment_numbers, segment_path, session_folder
from kvstore.readpool import ReadPool
from retrieval.index import KeyIndexReader
from retrieval.index_writer import KeyIndexWriter
from svc.cli.bench.rates import GB, paired_row, rate_row
from svc.cli.bench.store_appends import append_rows
from svc.cli.bench.store_open import open_rows
from svc.cli.bench.store_ram import ram_rows
from svc.cli.bench.store_session import (
    SEVEN_B,
    SLICE_BYTES,
    UNIT_TOKENS,
    Noise,
    Question,
    write_session,
)
from svc.cli.bench.store_sizes import Sizes
from svc.cli.bench.store_visible import measure_delays
from svc.cli.bench.store_yardsticks import (
    BareReads,
    CheckedReads,
    DirectReads,
    Memcpy,
    copy_seconds,
    drop_cached,
    seconds,
    warm_up,
)
from svc.cli.failures import CommandError
from svc.report import Row, print_rows, write_rows

_TOP = 64
_READ_THREADS = 8
_INDEX_ROWS = 3600
_SMALL = Geometry(layer_count=28, kv_head_count=1, head_dim=8, element="float16")
_SMALL_UNITS = 2048


def bench_store(folder: Path | None, sizes: Sizes, json_file: Path | None) -> None:
    """Runs the benchmark in a folder of its own, which goes at the end, and prints its table."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="lookback-bench-", dir=folder) as name:
        root = Path(name)
        _check_room(root, sizes)
        console.print(
            f"writing {sizes.written_bytes / GB:.1f} GB to {root.parent}, removed at the end; "
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
            f"{root.parent} has {free_bytes / GB:.1f} GB free, "
            f"{sizes.needed_bytes / GB:.1f} are needed; try fewer --units, or another --dir",
        )


def _measure(root: Path, sizes: Sizes, console: Console) -> list[Row]:
    steps: tuple[Callable[[Path, Sizes], list[Row]], ...] = (
        _read_rows,
        append_rows,
        _visible_rows,
        _index_rows,
        _overhead_rows,
        _open_rows,
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


def _segments(root: Path, session_id: str) -> list[Path]:
    folder = session_folder(root, session_id)
    return [segment_path(folder, number) for number in segment_numbers(folder)]


def _read_rows(root: Path, sizes: Sizes) -> list[Row]:
    write_session(root, "read", Noise(SEVEN_B, UNIT_TOKENS), sizes.units, sizes.disk_io)
    paths = _segments(root, "read")
    warm_up(paths)
    with closing(_question(root, sizes)) as question:
        what = f"{question.slice_count} slices of {SLICE_BYTES // 1024} KiB"
        rows = _warm_rows(question, paths, what, sizes.rounds)
    return rows + _cold_rows(root, paths, sizes)


def _question(root: Path, sizes: Sizes) -> Question:
    return Question(root, "read", _TOP, UNIT_TOKENS, sizes.disk_io)


def _warm_rows(question: Question, paths: list[Path], what: str, rounds: int) -> list[Row]:
    """Everything lies in the page cache."""
    rng = np.random.default_rng(1)
    memcpy = Memcpy(SLICE_BYTES, question.slice_count)
    warm: list[float] = []
    shared: list[float] = []
    bare: list[float] = []
    copied: dict[str, list[float]] = {"warm": [], "shared": [], "bare": []}
    with closing(ReadPool(_READ_THREADS)) as pool, closing(CheckedReads(paths, SLICE_BYTES)) as raw:
        for _ in range(rounds):
            picks = list(question.picks(rng))
            for name, rates, threads in (("warm", warm, None), ("shared", shared, pool)):
                read = partial(question.read, picks, threads)
                rates.append(question.byte_count / seconds(read))
                copied[name].append(memcpy.bytes_per_s(question.byte_count))
            bare.append(raw.bytes_per_s(question.byte_count, rng))
            copied["bare"].append(memcpy.bytes_per_s(question.byte_count))
    return [
        rate_row(
            f"warm read of a question, {what}, verified, 1 thread; ratio to memcpy",
            warm,
            copied["warm"],
            ">= 0.6",
        ),
        rate_row(
            "what a bare loop of preadv and XXH3 reaches; ratio to memcpy",
            bare,
            copied["bare"],
            "",
        ),
        rate_row(f"the question in {_READ_THREADS} threads", shared, copied["shared"], ""),
    ]


def _cold_rows(root: Path, paths: list[Path], sizes: Sizes) -> list[Row]:
    """Nothing lies in the page cache, and no slice was asked for before."""
    rng = np.random.default_rng(2)
    cold: list[float] = []
    again: list[float] = []
    thrice: list[float] = []
    raw = []
    with (
        closing(ReadPool(_READ_THREADS)) as pool,
        closing(DirectReads(paths, SLICE_BYTES, threads=_READ_THREADS)) as direct,
    ):
        for _ in range(sizes.rounds):
            drop_cached(paths)
            with closing(_question(root, sizes)) as question:
                read = partial(question.read, list(question.picks(rng)), pool)
                cold.append(question.byte_count / seconds(read))
                raw.append(direct.bytes_per_s(question.byte_count, rng))
                for rates in (again, thrice):
                    rates.append(question.byte_count / seconds(read))
    return [
        rate_row(
            f"guest-cold read of a question, verified, {_READ_THREADS} threads; "
            "ratio to O_DIRECT random reads of that size",
            cold,
            raw,
            ">= 0.85",
        ),
        rate_row("the same question once more", again, raw, ""),
        rate_row("and a third time", thrice, raw, ""),
    ]


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
        ours.append(1000 * seconds(search))
        base.append(1000 * copy())
    reader.close()
    writer.close()
    path.unlink()
    return [
        paired_row(
            f"top {_TOP} of {_INDEX_ROWS} units in {SEVEN_B.layer_count} layers; "
            "ratio to memcpy of the bytes scanned",
            ours,
            base,
            "ms",
            "<= 1.2",
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


def _open_rows(root: Path, sizes: Sizes) -> list[Row]:
    return open_rows(root)


def _ram_rows(root: Path, sizes: Sizes) -> list[Row]:
    return ram_rows(root, sizes.units, sizes.rounds)
