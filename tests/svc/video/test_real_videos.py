"""Every real video, every way in: the right frames at the right times."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from svc.video.errors import NoVideoStreamError
from svc.video.frames import ContainerMedia, PacketMedia, Rgb
from svc.video.sources import ImageSource, PacketSource, open_source
from tests.svc.video.media import (
    ALL_FILES,
    AUDIO,
    AV1,
    AVI,
    HEVC,
    LATE_START,
    NASA,
    PACKET_FILES,
    VARIABLE,
    VP9,
    Timed,
    assert_same,
    container_frames,
    decoded_directly,
    frames_directly,
    pushed,
    remuxed,
    video,
)


@pytest.mark.parametrize("name", PACKET_FILES)
def test_packets_decode_on_the_server_to_what_pyav_makes_of_the_file(name: str) -> None:
    source = open_source(video(name))
    assert isinstance(source, PacketSource)
    assert_same(pushed(source), decoded_directly(video(name)))


@pytest.mark.parametrize("name", ALL_FILES)
def test_container_bytes_decode_to_what_pyav_makes_of_the_file(name: str) -> None:
    data = Path(video(name)).read_bytes()
    assert_same(container_frames(data), decoded_directly(video(name)))


@pytest.mark.parametrize(
    ("name", "suffix", "mux"),
    [
        (VARIABLE, ".mp4", {"movflags": "frag_keyframe+empty_moov"}),
        (VARIABLE, ".mp4", {"movflags": "faststart"}),
        (LATE_START, ".mov", {}),
        (VARIABLE, ".ts", {}),
        (VARIABLE, ".mkv", {}),
        (LATE_START, ".mkv", {"live": "1"}),
        (LATE_START, ".flv", {}),
        (HEVC, ".ts", {}),
        (HEVC, ".mkv", {}),
        (LATE_START, ".ts", {}),
    ],
)
def test_every_container_can_arrive_in_pieces(
    tmp_path: Path, name: str, suffix: str, mux: dict[str, str]
) -> None:
    path = remuxed(video(name), tmp_path / f"video{suffix}", **mux)
    expected = decoded_directly(str(path))
    assert_same(container_frames(path.read_bytes(), size=999), expected)
    named = ContainerMedia(format=suffix[1:])
    assert_same(container_frames(path.read_bytes(), media=named, size=100_000), expected)


def test_mpeg4_in_an_avi_is_sent_as_images_with_the_right_times() -> None:
    source = open_source(video(AVI))
    assert isinstance(source, ImageSource)
    assert source.description.transcoded
    ours, theirs = pushed(source), list(frames_directly(video(AVI)))
    assert [pts for pts, _ in ours] == [pts for pts, _ in theirs]
    for (_, our_rgb), (_, their_rgb) in zip(ours, theirs, strict=True):
        difference = np.abs(our_rgb.astype(int) - their_rgb)
        assert difference.mean() < 2  # JPEG at quality 95


def times(name: str) -> list[float]:
    return [pts for pts, _ in pushed(open_source(video(name)))]


def test_times_of_29_97_fps_and_the_larger_of_two_video_streams() -> None:
    frames = pushed(open_source(video(NASA)))
    assert len(frames) == 390
    assert {rgb.shape for _, rgb in frames} == {(270, 480, 3)}
    assert [pts for pts, _ in frames] == pytest.approx([i * 1001 / 30000 for i in range(390)])


def test_times_of_a_video_that_starts_at_8_333_s() -> None:
    assert times(LATE_START) == pytest.approx([8.333 + i / 30 for i in range(12)], abs=1e-3)


def test_times_of_a_variable_rate() -> None:
    steps = [later - earlier for earlier, later in pairwise(times(VARIABLE))]
    assert steps == pytest.approx([0.033] * 40 + [0.1] * 40 + [1.5] + [0.02] * 68)


def test_times_of_av1_without_a_frame_count() -> None:
    assert times(AV1) == pytest.approx([i * 0.04 for i in range(125)])


def test_times_in_milliseconds() -> None:
    assert times(VP9) == pytest.approx([round(i / 30, 3) for i in range(30)])


@pytest.mark.parametrize("way", ["packets", "container"])
def test_the_number_burnt_into_a_frame_is_the_frame_at_its_time(way: str) -> None:
    path = video(HEVC)
    frames: Timed = (
        pushed(open_source(path)) if way == "packets" else container_frames(Path(path).read_bytes())
    )
    assert [pts for pts, _ in frames] == pytest.approx([i / 10 for i in range(10)])
    # enclosed areas in the digits 0 to 9: no shifted or swapped order gives the same
    assert [holes(rgb[50:80, 104:126]) for _, rgb in frames] == [1, 0, 0, 0, 1, 0, 1, 0, 2, 1]


def test_audio_alone_is_refused_on_both_sides() -> None:
    with pytest.raises(NoVideoStreamError) as client:
        open_source(video(AUDIO))
    assert client.value.stream_types == ("audio",)
    with pytest.raises(NoVideoStreamError):
        container_frames(Path(video(AUDIO)).read_bytes())


def test_a_description_says_what_the_file_holds() -> None:
    source = open_source(video(LATE_START))
    assert isinstance(source.media, PacketMedia)
    assert source.media.codec == "h264"
    description = source.description
    assert (description.codec, description.width, description.height) == ("h264", 200, 112)
    assert description.start_pts_s == pytest.approx(8.333, abs=1e-3)
    assert description.duration_s == pytest.approx(0.4)


def holes(rgb: Rgb) -> int:
    """Number of dark areas that bright writing encloses."""
    dark = rgb[:, :, 0] < 100  # white on blue
    dark = np.pad(dark, 1, constant_values=True)
    area_count = 0
    while dark.any():
        area_count += 1
        stack = [tuple(np.argwhere(dark)[0])]
        while stack:
            row, column = stack.pop()
            inside = 0 <= row < dark.shape[0] and 0 <= column < dark.shape[1]
            if inside and dark[row, column]:
                dark[row, column] = False
                stack += [
                    (row + 1, column),
                    (row - 1, column),
                    (row, column + 1),
                    (row, column - 1),
                ]
    return area_count - 1
