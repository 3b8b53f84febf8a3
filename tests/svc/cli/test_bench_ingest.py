"""The stages of ingest: all frames go through, nothing is counted twice, and drops are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from kvstore.reader import SessionReader
from svc.cli.bench.ingest_stages import REDUCTIONS, STAGES, coded, run
from svc.cli.bench.stream import frame_pixels
from svc.engine.model import LoadedModel
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


@pytest.mark.parametrize("reduction", [REDUCTIONS[0], REDUCTIONS[-1]])
def test_all_frames_are_stored_and_the_stages_add_up(
    tiny_model: Callable[[str], LoadedModel],
    tmp_path: Path,
    packets: list[PacketItem],
    reduction: str,
) -> None:
    model = tiny_model("float32")
    window = WindowConfig(window_tokens=64, window_positions=64)
    found = run(model, window, tmp_path, reduction, packets, 8)
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
    assert (found.dropped_fraction > 0.3) == (reduction != "none")


def test_a_policy_without_a_stage_of_its_own_is_refused(
    tiny_model: Callable[[str], LoadedModel], tmp_path: Path, packets: list[PacketItem]
) -> None:
    window = WindowConfig(window_tokens=64, window_positions=64)
    with pytest.raises(ValueError, match="chooses by keys"):
        run(tiny_model("float32"), window, tmp_path, "key_norm:0.5", packets, 8)
