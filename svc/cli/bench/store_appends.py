"""Durable appends, through the page cache and past it, beside bare writes of the same minute."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

from kvstore.directio import DiskMode
from svc.cli.bench.rates import rate_row
from svc.cli.bench.store_session import (
    BLOCK_BYTES,
    SEVEN_B,
    SLICE_BYTES,
    UNIT_BYTES,
    UNIT_TOKENS,
    UNITS_PER_BLOCK,
    Noise,
    fill,
    open_writer,
)
from svc.cli.bench.store_sizes import SESSIONS_AT_ONCE, Sizes
from svc.cli.bench.store_yardsticks import (
    bare_append_bytes_per_s,
    raw_append_bytes_per_s,
    seconds,
)
from svc.report import Row


def append_rows(root: Path, sizes: Sizes) -> list[Row]:
    """Returns the rows of one session and of many, written in both ways."""
    noise = Noise(SEVEN_B, UNIT_TOKENS)
    many = [f"many-{index}" for index in range(SESSIONS_AT_ONCE)]
    modes: tuple[DiskMode, ...] = ("buffered", "direct")
    alone: dict[DiskMode, list[float]] = {mode: [] for mode in modes}
    together: dict[DiskMode, list[float]] = {mode: [] for mode in modes}
    alone_raw: list[float] = []
    together_raw: list[float] = []
    bare: list[float] = []
    huge: list[float] = []
    for _ in range(sizes.append_rounds):
        for names, blocks, rates, yardstick in (
            (["one"], sizes.append_blocks, alone, alone_raw),
            (many, sizes.session_blocks, together, together_raw),
        ):
            raw = []
            for mode in modes:  # each beside the bare writes of its kind
                rates[mode].append(_append_bytes_per_s(root, names, noise, blocks, mode))
                bare_rate = raw_append_bytes_per_s(
                    root, BLOCK_BYTES, blocks, writers=len(names), direct=mode == "direct"
                )
                raw.append(bare_rate)
            yardstick.append(max(raw))
        blocks = sizes.append_blocks
        bare.append(bare_append_bytes_per_s(root, BLOCK_BYTES, SLICE_BYTES, blocks))
        huge_rate = raw_append_bytes_per_s(
            root, BLOCK_BYTES, blocks, writers=1, direct=True, huge=True
        )
        huge.append(huge_rate)
    rows = []
    for mode in modes:
        how = {"buffered": "through the page cache", "direct": "past the page cache"}[mode]
        block = f"blocks of {BLOCK_BYTES / 2**20:.0f} MiB"
        rows += [
            rate_row(
                f"durable append {how}, {block}; ratio to sequential write and fdatasync "
                "(the faster of buffered and O_DIRECT)",
                alone[mode],
                alone_raw,
                ">= 0.75",
            ),
            rate_row(
                f"durable append of {SESSIONS_AT_ONCE} sessions at once {how}; "
                f"ratio to {SESSIONS_AT_ONCE} such writers",
                together[mode],
                together_raw,
                ">= 0.9",
            ),
        ]
    rows += [
        rate_row(
            "what a bare loop of copy, XXH3, O_DIRECT write and fdatasync reaches; ratio as of one",
            bare,
            alone_raw,
            "",
        ),
        rate_row(
            "bare O_DIRECT writes from huge pages, as the store's are; ratio as of one",
            huge,
            alone_raw,
            "",
        ),
    ]
    return rows


def _append_bytes_per_s(
    root: Path, names: list[str], noise: Noise, block_count: int, disk_io: DiskMode
) -> float:
    """Returns the rate of durable appends to new sessions, each in a thread; they are removed.

    Opening and closing are not in it: a session is opened once for hours.
    """
    units = block_count * UNITS_PER_BLOCK
    with ExitStack() as stack:
        writers = [
            stack.enter_context(closing(open_writer(root, name, disk_io=disk_io))) for name in names
        ]
        pool = stack.enter_context(ThreadPoolExecutor(len(names)))
        taken_s = seconds(lambda: list(pool.map(lambda each: fill(each, noise, units), writers)))
    shutil.rmtree(root / "sessions")
    return len(names) * units * UNIT_BYTES / taken_s
