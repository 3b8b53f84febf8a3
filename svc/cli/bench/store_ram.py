"""Rows of `lookback bench store` about the RAM tier: a question whose slices are all in memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np

from kvstore.arena import Arena
from kvstore.geometry import Geometry, Tier
from kvstore.limits import BlockLimits
from kvstore.ramtier import RamTier
from kvstore.sharedfile import shared_folder
from kvstore.writer import SessionWriter
from svc.cli.bench.rates import GB, rate_row
from svc.cli.bench.store_session import (
    SEVEN_B,
    SLICE_BYTES,
    UNIT_TOKENS,
    Noise,
    Question,
    fill,
)
from svc.cli.bench.store_yardsticks import BareReads, Memcpy, seconds
from svc.cli.failures import CommandError
from svc.report import Row

_TOP = 64
_SMALL = Geometry(layer_count=28, kv_head_count=1, head_dim=8, element="float16")
_SMALL_UNITS = 512
_HEADROOM = 1.1
_RESERVE_BYTES = 256 << 20


def ram_rows(root: Path, unit_count: int, rounds: int) -> list[Row]:
    """Reads a question whose slices are all in the RAM tier, in one thread, beside memcpy."""
    rng = np.random.default_rng(4)
    with _remembered(root, "ram", Noise(SEVEN_B, UNIT_TOKENS), unit_count) as ram:
        question = Question(root, "ram", _TOP, UNIT_TOKENS, ram=ram)
        memcpy = Memcpy(SLICE_BYTES, question.slice_count)
        question.read_all()  # no page is met for the first time later, as in the yardstick
        ours, base = [], []
        for _ in range(2 * rounds):
            picks = list(question.picks(rng))
            ours.append(question.byte_count / seconds(partial(question.read, picks)))
            base.append(memcpy.bytes_per_s(question.byte_count))
        tiers = question.tiers
        question.close()
    if tiers != {Tier.RAM}:
        raise CommandError("NOT_REMEMBERED", f"slices came from {tiers}, not the RAM tier alone")
    return [
        rate_row(
            f"read of a question from the RAM tier, {question.slice_count} slices of "
            f"{SLICE_BYTES // 1024} KiB, 1 thread; ratio to memcpy",
            ours,
            base,
            ">= 0.9",
        ),
        _overhead_row(root, rounds, rng),
    ]


def _collapse(arena: Arena) -> None:
    """Does at once what the arena's owner does bit by bit, where the kernel has huge pages."""
    with suppress(OSError):
        while arena.collapse(arena.file_bytes):
            pass


def _overhead_row(root: Path, rounds: int, rng: np.random.Generator) -> Row:
    """Slices so small that all of the time is the store's own."""
    with _remembered(root, "ram-small", Noise(_SMALL, 1), _SMALL_UNITS) as ram:
        question = Question(root, "ram-small", _TOP, 1, ram=ram)
        small = BareReads(Path("/proc/self/exe"), question.slice_count)
        ours, base = [], []
        for _ in range(3 * rounds):
            picks = list(question.picks(rng))
            ours.append(seconds(partial(question.read, picks)))
            base.append(seconds(small.read))
        question.close()
        small.close()
    scale = 1e6 / question.slice_count
    return Row(
        name="store's own time per slice, from the RAM tier; beside a loop of bare preadv",
        value=scale * min(ours),
        unit="us",
        baseline=scale * min(base),
        target="<= 15",
    )


@contextmanager
def _remembered(root: Path, session_id: str, noise: Noise, unit_count: int) -> Iterator[RamTier]:
    """A session whose units are all in the RAM tier."""
    geometry = noise.geometry
    limits = BlockLimits(block_tokens=4 * noise.token_count, block_span_s=1e9)
    slot_bytes = 2 * noise.token_count * geometry.token_bytes
    needed_bytes = int(geometry.layer_count * unit_count * (slot_bytes + 256) * _HEADROOM)
    needed_bytes += _RESERVE_BYTES
    free_bytes = shutil.disk_usage(shared_folder(None)).free
    if free_bytes * 7 // 8 < needed_bytes:
        raise CommandError(
            "NO_ROOM",
            f"{shared_folder(None)} has {free_bytes / GB:.1f} GB free, the RAM tier of "
            f"{unit_count} units needs {needed_bytes * 8 / 7 / GB:.1f}; try fewer --units",
        )
    arena = Arena.create(root, budget_bytes=needed_bytes, slot_bytes=slot_bytes)
    with ExitStack() as stack:
        stack.callback(arena.close)
        writer = SessionWriter.open(root, session_id, geometry=geometry, limits=limits, arena=arena)
        with closing(writer):
            fill(writer, noise, unit_count)
        _collapse(arena)
        yield RamTier(root)
