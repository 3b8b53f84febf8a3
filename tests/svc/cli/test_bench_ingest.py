"""The stages of ingest: all frames go through, nothing is counted twice, and drops are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from kvstore.encoding import Encoding
from kvstore.limits import BlockLimits
from kvstore.reader import SessionReader
from svc.cli.bench.drop_share import policy_dropping
from svc.cli.bench.ingest_stages import DROP_FRACTIONS, STAGES, coded, run
from svc.cli.bench.stream import frame_pixels
from svc.engine.ingest_session import StoreOptions
from svc.engine.model import LoadedModel
from svc.engine.reduction.base import ReductionState, UnitFeatures
from svc.engine.reduction.key_norm import KeyNorm
from svc.engine.window import WindowConfig
from svc.video.frames import Frame, PacketItem, PacketMedia
from svc.video.limits import VideoLimits
from svc.video.packets import PacketDecoder
from tests.svc.engine.conftest import _one_thread, tiny_model, tiny_path

__all__ = ["_one_thread", "tiny_model", "tiny_path"]

FRAMES = 203
"""After a warm-up of 160; the last pass is not full."""


@pytest.fixture(scope="module")
def packets() -> list[PacketItem]:
    return coded(FRAMES)


def decoded(packets: list[PacketItem]) -> Iterator[Frame]:
    decoder = PacketDecoder(PacketMedia(codec="h264"), VideoLimits())
    for packet in packets:
        yield from decoder.push(packet)


def test_each_packet_gives_its_own_frame_at_once(packets: list[PacketItem]) -> None:
    frames = list(decoded(packets))
    assert [frame.pts_s for frame in frames] == [float(index) for index in range(FRAMES)]
    for index in (0, 57, FRAMES - 1):
        difference = frames[index].rgb.astype(int) - frame_pixels(index)
        assert np.abs(difference).mean() < 16  # what the codec loses


@pytest.mark.parametrize(
    ("drop_fraction", "encoding"), [(Fraction(0), "model"), (Fraction(1, 2), "int4")]
)
def test_all_frames_are_stored_and_the_stages_add_up(
    tiny_model: Callable[[str], LoadedModel],
    tmp_path: Path,
    packets: list[PacketItem],
    drop_fraction: Fraction,
    encoding: Encoding,
) -> None:
    model = tiny_model("float32")
    window = WindowConfig(window_tokens=64, window_positions=64)
    policy = policy_dropping(drop_fraction, model.adapter.tokens_per_unit)
    store = StoreOptions(root=tmp_path, limits=BlockLimits(), encoding=encoding)
    found = run(model, window, store, policy, packets, 8)
    assert set(found.shares) == set(STAGES)
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert all(share >= 0 for share in found.shares.values())
    reader = SessionReader.open(tmp_path, "stages")
    try:
        counts = reader.snapshot().token_counts
    finally:
        reader.close()
    assert len(counts) == FRAMES
    timed = counts[160:]
    dropped = 1 - timed.sum() / (len(timed) * model.adapter.tokens_per_unit)
    assert found.dropped_fraction == pytest.approx(dropped)
    assert found.dropped_fraction == pytest.approx(float(drop_fraction), abs=0.02)


def test_a_policy_without_a_stage_of_its_own_is_refused(
    tiny_model: Callable[[str], LoadedModel], tmp_path: Path, packets: list[PacketItem]
) -> None:
    window = WindowConfig(window_tokens=64, window_positions=64)
    store = StoreOptions(root=tmp_path, limits=BlockLimits())
    with pytest.raises(ValueError, match="chooses by keys"):
        run(tiny_model("float32"), window, store, KeyNorm(0.5), packets, 8)


def units(count: int, tokens: int) -> Iterator[UnitFeatures]:
    rng = torch.Generator().manual_seed(3)
    for _ in range(count):
        yield UnitFeatures(
            embeds=torch.randn(tokens, 8, generator=rng),
            pixels=lambda: torch.zeros(1, 3, 4, 4),
            grid=(1, tokens),
            gap_before=False,
        )


@pytest.mark.parametrize("tokens", [9, 10, 196])
@pytest.mark.parametrize("drop_fraction", DROP_FRACTIONS)
def test_as_much_is_dropped_as_is_asked_for(tokens: int, drop_fraction: Fraction) -> None:
    policy, state, kept_count, count = (
        policy_dropping(drop_fraction, tokens),
        ReductionState(),
        0,
        0,
    )
    for unit in units(990, tokens):  # nothing repeats: the hardest stream to drop of
        kept, state = policy.choose(unit, state)
        kept_count, count = kept_count + len(kept), count + tokens
    assert 1 - kept_count / count == pytest.approx(float(drop_fraction), abs=0.003)


def test_more_than_all_but_one_token_cannot_be_dropped() -> None:
    with pytest.raises(ValueError, match=r"less than 0.75 can be dropped of units of 4 tokens"):
        policy_dropping(Fraction(3, 4), 4)
