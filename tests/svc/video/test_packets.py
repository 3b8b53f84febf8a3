"""Codec packets: key frames, damage, wrong codecs, limits, changes of size, turned and unshown."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from svc.video.errors import (
    CorruptMediaError,
    EmptyMediaError,
    MediaFormError,
    NoKeyFrameError,
    PtsError,
    ResolutionLimitError,
    SizeLimitError,
    UnsupportedMediaError,
    VideoError,
)
from svc.video.frames import ChunkItem, Item, PacketItem, PacketMedia
from svc.video.limits import VideoLimits
from svc.video.packets import PacketDecoder
from svc.video.sources import open_source
from tests.svc.video.media import (
    AV1,
    HEVC,
    LATE_START,
    PACKET_FILES,
    VARIABLE,
    VP9,
    Timed,
    drained,
    encoded,
    frames_directly,
    picture,
    pushed,
    video,
)


def packets(name: str) -> tuple[PacketMedia, list[PacketItem]]:
    source = open_source(video(name))
    assert isinstance(source.media, PacketMedia)
    items = [item for item in source.items() if isinstance(item, PacketItem)]
    return source.media, items


def decode(media: PacketMedia, items: Iterable[Item], **limits: int) -> Timed:
    return drained(PacketDecoder(media, VideoLimits(**limits)), items)


def damaged(item: PacketItem) -> PacketItem:
    """The same packet with its middle overwritten by noise."""
    data = bytearray(item.data)
    noise = random.Random(1)
    for index in range(len(data) // 4, len(data)):
        data[index] = noise.randrange(256)
    return replace(item, data=bytes(data))


def test_b_frames_sent_in_decoding_order_leave_in_order_of_presentation() -> None:
    media, items = packets(VARIABLE)
    sent = [item.pts_s for item in items]
    assert sent != sorted(sent)
    assert [pts for pts, _ in decode(media, items)] == sorted(sent)


def test_times_come_back_bit_by_bit_whatever_they_are() -> None:
    media, items = packets(VARIABLE)
    odd = [replace(item, pts_s=item.pts_s * math.pi + 1e9) for item in items]
    assert [pts for pts, _ in decode(media, odd)] == sorted(item.pts_s for item in odd)


def test_packets_before_the_first_key_frame_are_counted_and_left_out() -> None:
    media, items = packets(HEVC)
    second_key = [index for index, item in enumerate(items) if item.key_frame][1]
    decoder = PacketDecoder(media, VideoLimits())
    out = drained(decoder, items[1:])
    assert decoder.counters.packets_before_key_frame == second_key - 1
    assert [pts for pts, _ in out] == sorted(item.pts_s for item in items[second_key:])


def test_a_stream_without_any_key_frame_is_an_error() -> None:
    media, items = packets(HEVC)
    never = [replace(item, key_frame=False) for item in items]
    with pytest.raises(NoKeyFrameError) as at_the_end:
        decode(media, never)
    assert at_the_end.value.packet_count == 10
    with pytest.raises(NoKeyFrameError) as while_waiting:
        decode(media, never, max_packets_before_key_frame=4)
    assert while_waiting.value.packet_count == 5


def test_nothing_pushed_is_nothing_and_no_error() -> None:
    media, _ = packets(HEVC)
    assert decode(media, []) == []


@pytest.mark.parametrize("name", [VARIABLE, VP9, AV1])
def test_a_damaged_packet_is_an_error_that_names_its_time(name: str) -> None:
    media, items = packets(name)
    number = max(range(5, len(items)), key=lambda index: len(items[index].data))
    broken = [*items[:number], damaged(items[number]), *items[number + 1 :]]
    with pytest.raises(CorruptMediaError) as caught:
        decode(media, broken)
    assert caught.value.pts_s is not None
    # the packet itself, or a picture near it that the damage reached
    assert abs(caught.value.pts_s - items[number].pts_s) < 0.5
    assert repr(caught.value.pts_s) in str(caught.value)


def test_tolerated_damage_is_counted_and_decoding_goes_on_at_the_next_key_frame() -> None:
    media, items = packets(VARIABLE)
    keys = [index for index, item in enumerate(items) if item.key_frame]
    broken = [*items[:10], damaged(items[10]), *items[11:]]
    decoder = PacketDecoder(media, VideoLimits(max_corrupt_packets=1))
    out = drained(decoder, broken)
    assert decoder.counters.corrupt_packets == 1
    assert decoder.counters.packets_before_key_frame > 0
    whole = decode(media, items)
    after = [frame for frame in whole if frame[0] >= items[keys[1]].pts_s]
    got = [frame for frame in out if frame[0] >= items[keys[1]].pts_s]
    assert [pts for pts, _ in got] == [pts for pts, _ in after]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(got, after, strict=True))


@pytest.mark.parametrize(("wrong", "right"), [("hevc", "h264"), ("vp9", "h264"), ("av1", "vp9")])
def test_packets_of_another_codec_are_an_error(wrong: str, right: str) -> None:
    files = {"h264": LATE_START, "vp9": VP9}
    _, items = packets(files[right])
    media = PacketMedia(codec=wrong)  # type: ignore[arg-type]
    with pytest.raises(CorruptMediaError):
        decode(media, items)


def test_extradata_of_another_codec_is_an_error() -> None:
    h264, items = packets(LATE_START)
    hevc, _ = packets(HEVC)
    with pytest.raises(CorruptMediaError):
        decode(replace(h264, extradata=hevc.extradata), items)


def test_an_unknown_codec_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(UnsupportedMediaError, match="h264, hevc, vp9, av1"):
        PacketMedia(codec="mpeg4")  # type: ignore[arg-type]


def test_start_codes_without_extradata_decode_too(tmp_path: Path) -> None:
    path = encoded(tmp_path / "video.ts", options={"bf": "2"})
    source = open_source(str(path))
    items = list(source.items())
    ours = drained(PacketDecoder(PacketMedia(codec="h264"), VideoLimits()), items)
    assert len(ours) == 20
    assert [pts for pts, _ in ours] == [pts for pts, _ in frames_directly(str(path))]


def test_a_change_of_resolution_is_followed(tmp_path: Path) -> None:
    sizes = [(64, 48), (96, 80)]
    items: list[Item] = []
    for number, size in enumerate(sizes):
        source = open_source(str(encoded(tmp_path / f"{number}.ts", sizes=[size] * 10)))
        shifted = (item for item in source.items() if isinstance(item, PacketItem))
        items += [replace(item, pts_s=item.pts_s + number) for item in shifted]
    out = decode(PacketMedia(codec="h264"), items)
    assert [rgb.shape for _, rgb in out] == [(48, 64, 3)] * 10 + [(80, 96, 3)] * 10
    assert [pts for pts, _ in out] == sorted(pts for pts, _ in out)


@pytest.mark.parametrize("name", PACKET_FILES)
def test_a_picture_above_the_limit_is_refused_and_not_decoded(name: str) -> None:
    media, items = packets(name)
    if media.codec == "av1":  # its extradata tells the size and is refused earlier
        media = replace(media, extradata=b"")
    decoder = PacketDecoder(media, VideoLimits(max_pixels=10_000))
    with pytest.raises((ResolutionLimitError, CorruptMediaError), match="pixels"):
        drained(decoder, items)
    assert not decoder._run._picture_seen


@pytest.mark.parametrize(
    ("item", "error"),
    [
        (PacketItem(pts_s=math.nan, data=b"x", key_frame=True), PtsError),
        (PacketItem(pts_s=-math.inf, data=b"x", key_frame=True), PtsError),
        (PacketItem(pts_s=1e300, data=b"x", key_frame=True), PtsError),
        (PacketItem(pts_s=0.0, data=b"", key_frame=True), EmptyMediaError),
        (PacketItem(pts_s=0.0, data=bytes(101), key_frame=True), SizeLimitError),
        (ChunkItem(data=b"x"), MediaFormError),
    ],
)
def test_an_item_that_cannot_be_a_packet_is_refused(item: Item, error: type[VideoError]) -> None:
    with pytest.raises(error):
        decode(PacketMedia(codec="h264"), [item], max_packet_bytes=100)


def test_too_much_extradata_is_refused() -> None:
    with pytest.raises(SizeLimitError, match="given 11 bytes, allowed: at most 10"):
        PacketDecoder(
            PacketMedia(codec="h264", extradata=bytes(11)), VideoLimits(max_extradata_bytes=10)
        )


@pytest.mark.parametrize(("anticlockwise", "turn"), [(90, 1), (180, 2), (270, 3)])
def test_a_turned_video_is_turned_on_the_server(
    tmp_path: Path, anticlockwise: int, turn: int
) -> None:
    path = str(encoded(tmp_path / "video.mp4", rotation_degrees=anticlockwise))
    expected = [(pts, np.rot90(rgb, turn)) for pts, rgb in frames_directly(path)]
    source = open_source(path)
    assert source.description.height == (64 if turn % 2 else 48)
    out = pushed(source)
    assert [pts for pts, _ in out] == [pts for pts, _ in expected]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(out, expected, strict=True))


def test_what_an_edit_list_hides_is_decoded_but_not_shown(tmp_path: Path) -> None:
    whole = encoded(tmp_path / "whole.mp4", options={"bf": "0", "g": "100"})
    cut = tmp_path / "cut.mp4"
    with av.open(str(whole)) as old, av.open(str(cut), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        for packet in old.demux(stream):
            if packet.dts is not None and packet.pts is not None and stream.time_base is not None:
                shift = round(0.5 / stream.time_base)  # five frames now start before zero
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = copy
                new.mux(packet)
    source = open_source(str(cut))
    items = [item for item in source.items() if isinstance(item, PacketItem)]
    assert any(item.discard for item in items)
    out = pushed(source)
    expected = list(frames_directly(str(cut)))
    assert len(out) < 20
    assert [pts for pts, _ in out] == [pts for pts, _ in expected]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(out, expected, strict=True))


def test_pixels_are_converted_only_when_asked_for_and_once(tmp_path: Path) -> None:
    source = open_source(str(encoded(tmp_path / "video.mp4")))
    assert isinstance(source.media, PacketMedia)
    decoder = PacketDecoder(source.media, VideoLimits())
    frames = [frame for item in source.items() for frame in decoder.push(item)]
    frames += decoder.finish()
    decoder.close()
    assert len(frames) == 20
    assert frames[3].rgb is frames[3].rgb
    assert frames[3].rgb.flags.c_contiguous
    differences = [np.abs(frames[3].rgb.astype(int) - picture(i)).mean() for i in range(20)]
    assert int(np.argmin(differences)) == 3


def test_an_open_group_of_pictures_can_be_started_at_its_key_frame(tmp_path: Path) -> None:
    params = "open-gop=1:keyint=10:min-keyint=10:bframes=3:scenecut=0"
    path = encoded(tmp_path / "video.mp4", options={"x264-params": params}, sizes=[(64, 48)] * 30)
    source = open_source(str(path))
    out = pushed(source, 1.55)
    whole = list(frames_directly(str(path)))
    tail = [frame for frame in whole if frame[0] >= 1.55]
    got = [frame for frame in out if frame[0] >= 1.55]
    assert got[0][0] == tail[0][0]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(got, tail, strict=True))
