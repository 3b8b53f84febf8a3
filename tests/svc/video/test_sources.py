"""What the client reads: where it starts, what it refuses, standard input, thumbnails."""

from __future__ import annotations

import io
import math
import os
import sys
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from svc.video.errors import (
    BackendMissingError,
    CorruptMediaError,
    PtsError,
    SourceNotSeekableError,
    SourceOpenError,
    TruncatedMediaError,
)
from svc.video.file_frames import read_frames
from svc.video.frames import ChunkItem, ContainerMedia, Frame, ImageItem, Item, PacketItem
from svc.video.sources import StreamSource, open_source
from svc.video.thumbnails import thumbnail_jpeg
from tests.svc.video.media import (
    ALL_FILES,
    AV1,
    AVI,
    HEVC,
    LATE_START,
    NASA,
    PACKET_FILES,
    VARIABLE,
    VP9,
    decoded_directly,
    fingerprints,
    picture,
    pushed,
    remuxed,
    video,
)


def first_pts_s(item: Item) -> float:
    assert not isinstance(item, ChunkItem)
    return item.pts_s


def test_a_folder_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(SourceOpenError, match="folder"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("name", PACKET_FILES)
@pytest.mark.parametrize("share", [0.31, 0.77, 3.0])
def test_a_source_can_start_anywhere_and_gives_every_frame_from_there(
    name: str, share: float
) -> None:
    whole = decoded_directly(video(name))
    from_pts_s = whole[0][0] + share * (whole[-1][0] - whole[0][0])
    source = open_source(video(name))
    first = next(iter(source.items(from_pts_s)))
    assert isinstance(first, PacketItem)
    assert first.key_frame
    assert first.pts_s <= from_pts_s
    got = [entry for entry in fingerprints(pushed(source, from_pts_s)) if entry[0] >= from_pts_s]
    assert got == [entry for entry in whole if entry[0] >= from_pts_s]


def test_the_start_is_a_key_frame_close_before_the_time() -> None:
    source = open_source(video(HEVC))
    keys = [i.pts_s for i in source.items() if isinstance(i, PacketItem) and i.key_frame]
    assert len(keys) > 3
    for from_pts_s in (keys[2], keys[2] + 0.05, keys[3] - 0.001):
        # containers look for decoding times, so it may be one key frame too early
        assert first_pts_s(next(iter(source.items(from_pts_s)))) in keys[1:3]


@pytest.mark.parametrize("suffix", [".ts", ".mkv", ".flv"])
def test_containers_that_seek_by_guess_start_early_enough_too(tmp_path: Path, suffix: str) -> None:
    path = str(remuxed(video(VARIABLE), tmp_path / f"video{suffix}"))
    whole = decoded_directly(path)
    source = open_source(path)
    for from_pts_s in (whole[0][0], whole[70][0], whole[100][0], whole[-1][0]):
        got = [e for e in fingerprints(pushed(source, from_pts_s)) if e[0] >= from_pts_s]
        assert got == [entry for entry in whole if entry[0] >= from_pts_s]


def test_images_start_at_the_very_time() -> None:
    source = open_source(video(AVI))
    items = list(source.items(0.5))
    assert all(isinstance(item, ImageItem) for item in items)
    assert [first_pts_s(item) for item in items] == pytest.approx([i / 30 for i in range(15, 30)])


def test_a_time_that_is_none_is_refused() -> None:
    with pytest.raises(PtsError):
        next(iter(open_source(video(HEVC)).items(math.nan)))


@pytest.mark.parametrize("name", ALL_FILES)
def test_no_file_stays_open(name: str) -> None:
    process = psutil.Process()
    before = process.num_fds()
    with closing(open_source(video(name)).items()) as items:  # type: ignore[type-var]
        next(iter(items))
    assert process.num_fds() == before


def test_what_is_no_file_or_no_video_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no video " * 100)
    (tmp_path / "empty.mp4").touch()
    for path in (tmp_path / "absent.mp4", text, tmp_path / "empty.mp4"):
        with pytest.raises(SourceOpenError, match=path.name):
            open_source(str(path))


def test_a_file_that_is_cut_off_says_so_on_the_client(tmp_path: Path) -> None:
    whole = remuxed(video(VARIABLE), tmp_path / "whole.mp4", movflags="faststart").read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(TruncatedMediaError):
        list(open_source(str(path)).items())


def test_a_file_whose_first_frame_is_damaged_is_refused(tmp_path: Path) -> None:
    path = remuxed(video(LATE_START), tmp_path / "video.mp4", movflags="faststart")
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    data[start:] = bytes(len(data) - start)
    path.write_bytes(data)
    with pytest.raises(CorruptMediaError):
        open_source(str(path))


def test_standard_input_is_sent_as_it_comes() -> None:
    data = Path(video(AV1)).read_bytes()
    source = open_source("-", stdin=io.BytesIO(data))
    assert source.media == ContainerMedia()
    assert fingerprints(pushed(source)) == decoded_directly(video(AV1))


def test_bytes_of_a_pipe_are_passed_on_before_the_pipe_ends(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    written, wait = threading.Event(), threading.Event()

    def write() -> None:
        with path.open("wb", buffering=0) as pipe:
            pipe.write(b"early")
            written.set()
            wait.wait(60)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        source = open_source(str(path))
        assert isinstance(source, StreamSource)
        items = source.items()
        assert next(items) == ChunkItem(data=b"early")
        assert written.wait(60)
        wait.set()
        assert list(items) == []
    finally:
        wait.set()
        thread.join()


def test_standard_input_cannot_start_later() -> None:
    with pytest.raises(SourceNotSeekableError, match=r"1\.5 s"):
        next(open_source("-", stdin=io.BytesIO(b"x")).items(1.5))


@pytest.mark.parametrize("name", [NASA, HEVC, VARIABLE, LATE_START, VP9])
def test_decord_gives_the_frames_and_times_of_pyav(name: str) -> None:
    pytest.importorskip("decord", reason="optional extra 'decord' is not installed")
    frames = [(f.pts_s, f.rgb) for f in read_frames(video(name), backend="decord")]
    assert fingerprints(frames) == decoded_directly(video(name))


def test_decord_can_start_later_and_feed_images() -> None:
    pytest.importorskip("decord", reason="optional extra 'decord' is not installed")
    source = open_source(video(LATE_START), decode_with="decord")
    whole = decoded_directly(video(LATE_START))
    sent = [first_pts_s(item) for item in source.items(whole[5][0])]
    assert sent == [pts for pts, _, _ in whole[5:]]


def test_what_decord_cannot_read_is_an_error_not_a_crash() -> None:
    pytest.importorskip("decord", reason="optional extra 'decord' is not installed")
    with pytest.raises(SourceOpenError, match="decord"):
        next(read_frames(video(AV1), backend="decord"))


def test_without_decord_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(BackendMissingError, match=r"pip install 'lookback\[decord\]'"):
        next(read_frames(video(HEVC), backend="decord"))


@pytest.mark.parametrize(
    ("size", "expected"), [((1280, 720), (96, 54)), ((90, 1000), (9, 96)), ((5, 3), (5, 3))]
)
def test_a_thumbnail_is_a_small_jpeg_of_the_same_shape(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    data = thumbnail_jpeg(np.full((size[1], size[0], 3), (200, 30, 90), np.uint8))
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("JPEG", expected)
        assert np.abs(np.asarray(image).astype(int) - (200, 30, 90)).max() < 12
    assert len(thumbnail_jpeg(picture(0, 640, 360))) < 6000


def test_a_thumbnail_of_no_size_is_refused() -> None:
    with pytest.raises(ValueError, match="max_side"):
        thumbnail_jpeg(picture(0), max_side=0)


def test_a_frame_takes_only_rgb_of_bytes() -> None:
    for wrong in (np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            Frame.from_rgb(0.0, wrong)
