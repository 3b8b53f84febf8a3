"""Whatever bytes come, decoding ends, with frames or with an error of svc.video."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svc.video.decoder import open_decoder
from svc.video.errors import VideoError
from svc.video.frames import (
    CODECS,
    ChunkItem,
    ContainerMedia,
    Item,
    Media,
    PacketItem,
    PacketMedia,
)
from svc.video.limits import VideoLimits
from svc.video.sources import open_source
from tests.svc.video.media import AV1, AVI, HEVC, LATE_START, VP9, chunks, video

LIMITS = VideoLimits(max_pixels=2_000_000, stall_timeout_s=20)
TOLERANCES = st.sampled_from(
    [LIMITS, VideoLimits(max_pixels=2_000_000, stall_timeout_s=20, max_corrupt_packets=10**6)]
)


def survive(media: Media, items: list[Item], limits: VideoLimits = LIMITS) -> None:
    """Decode; asserts that only errors of svc.video come, and no frame above the limit."""
    try:
        decoder = open_decoder(media, limits)
    except VideoError:
        return
    try:
        for item in items:
            for frame in decoder.push(item):
                assert frame.width * frame.height <= limits.max_pixels
        for frame in decoder.finish():
            assert frame.rgb.shape == (frame.height, frame.width, 3)
    except VideoError:
        pass
    finally:
        decoder.close()


SEEDS = st.integers(0, 2**32)


def spoiled(data: bytes, seed: int, *, head_bytes: int = 0) -> bytes:
    """The data with bytes changed (the first ones more often), cut, or a piece left out or doubled.

    From a seed, not drawn: a failure then prints a number, not a file.
    """
    dice = random.Random(seed)
    out = bytearray(data)
    last = len(out) - 1
    for _ in range(dice.randint(0, 12)):
        out[dice.randint(0, dice.choice([last, min(last, head_bytes)]))] = dice.randrange(256)
    start = dice.randint(0, last)
    end = min(len(out), start + dice.randint(1, 3000))
    match dice.choice(["whole", "cut", "hole", "double"]):
        case "cut":
            out = out[: start + 1]
        case "hole":
            out = out[:start] + out[end:] or out
        case "double":
            out[start:start] = out[start:end]
    return bytes(out)


@cache
def file_bytes(name: str) -> bytes:
    return Path(video(name)).read_bytes()[:120_000]


@cache
def packets(name: str) -> tuple[PacketMedia, list[PacketItem]]:
    source = open_source(video(name))
    assert isinstance(source.media, PacketMedia)
    return source.media, [i for i in source.items() if isinstance(i, PacketItem)][:12]


@pytest.mark.parametrize("name", [HEVC, AV1, VP9, AVI, LATE_START])
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, size=st.integers(50, 20_000), limits=TOLERANCES)
def test_spoiled_containers(name: str, seed: int, size: int, limits: VideoLimits) -> None:
    spoilt = spoiled(file_bytes(name), seed, head_bytes=1000)
    survive(ContainerMedia(), chunks(spoilt, size), limits)


@settings(max_examples=25, deadline=None)
@given(
    pieces=st.lists(st.binary(min_size=1, max_size=3000), min_size=1, max_size=6),
    name=st.sampled_from(["", "mp4", "matroska", "mpegts", "avi", "flv", "mpeg"]),
    magic=st.sampled_from(
        [b"", b"\0\0\0\x18ftypisom", b"\x1aE\xdf\xa3", b"RIFF\0\0\1\0AVI LIST", b"G", b"FLV\1\5"]
    ),
)
def test_noise_as_a_container(pieces: list[bytes], name: str, magic: bytes) -> None:
    items: list[Item] = [ChunkItem(data=piece) for piece in [magic + pieces[0], *pieces[1:]]]
    survive(ContainerMedia(format=name), items)


@pytest.mark.parametrize("name", [HEVC, AV1, VP9, LATE_START])
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, extradata_too=st.booleans(), limits=TOLERANCES)
def test_spoiled_packets(name: str, seed: int, extradata_too: bool, limits: VideoLimits) -> None:
    media, whole = packets(name)
    extradata = media.extradata
    if extradata and extradata_too:
        extradata = spoiled(extradata, seed)
    items: list[Item] = []
    for number, item in enumerate(whole):
        spoil = (seed >> number) % 3 == 0
        payload = spoiled(item.data, seed + number, head_bytes=20) if spoil else item.data
        items.append(PacketItem(pts_s=item.pts_s, data=payload, key_frame=item.key_frame))
    survive(PacketMedia(codec=media.codec, extradata=extradata), items, limits)


@settings(max_examples=25, deadline=None)
@given(
    codec=st.sampled_from(CODECS),
    extradata=st.binary(max_size=100),
    payloads=st.lists(st.binary(min_size=1, max_size=500), min_size=1, max_size=8),
)
def test_noise_as_packets(codec: str, extradata: bytes, payloads: list[bytes]) -> None:
    items: list[Item] = [
        PacketItem(pts_s=float(number), data=payload, key_frame=True)
        for number, payload in enumerate(payloads)
    ]
    survive(PacketMedia(codec=codec, extradata=extradata), items)  # type: ignore[arg-type]
