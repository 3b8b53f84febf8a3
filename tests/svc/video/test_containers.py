"""Container bytes as they arrive: spooling, truncation, refusals, bounds, threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svc.video.containers import ContainerDecoder
from svc.video.decoder import open_decoder
from svc.video.errors import (
    CorruptMediaError,
    EmptyMediaError,
    MediaFormError,
    NotStreamableError,
    ResolutionLimitError,
    SizeLimitError,
    SourceOpenError,
    TruncatedMediaError,
    UnsupportedMediaError,
    VideoError,
)
from svc.video.frames import ChunkItem, ContainerMedia, PacketItem
from svc.video.limits import VideoLimits
from svc.video.sources import open_source
from tests.svc.video.media import (
    AV1,
    AVI,
    HEVC,
    LATE_START,
    NASA,
    VARIABLE,
    VP9,
    Timed,
    assert_same,
    chunks,
    container_frames,
    decoded_directly,
    encoded,
    remuxed,
    timed,
    video,
)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    left = [thread for thread in threading.enumerate() if thread.name == "container-decoder"]
    assert left == []


def file_bytes(name: str) -> bytes:
    return Path(video(name)).read_bytes()


def frames_then_error(data: bytes, **limits: int) -> tuple[Timed, VideoError]:
    decoder = open_decoder(ContainerMedia(), VideoLimits(**limits))
    out: Timed = []
    try:
        for item in chunks(data):
            out.extend((frame.pts_s, frame.rgb) for frame in decoder.push(item))
        out.extend((frame.pts_s, frame.rgb) for frame in decoder.finish())
    except VideoError as error:
        return out, error
    finally:
        decoder.close()
    pytest.fail(f"no error, {len(out)} frames")


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 4000), min_size=1, max_size=5))
def test_the_frames_do_not_depend_on_how_the_bytes_are_cut(sizes: list[int]) -> None:
    data = file_bytes(HEVC)
    decoder = ContainerDecoder(ContainerMedia(), VideoLimits(frame_queue_count=1))
    out: Timed = []
    position = turn = 0
    try:
        while position < len(data):
            piece = data[position : position + sizes[turn % len(sizes)]]
            out += timed(decoder.push(ChunkItem(data=piece)))
            position, turn = position + len(piece), turn + 1
        out += timed(decoder.finish())
    finally:
        decoder.close()
    assert_same(out, decoded_directly(video(HEVC)))
    assert decoder.counters.frames == 10


def test_a_push_gives_every_frame_that_its_bytes_complete_each_time_the_same() -> None:
    def frame_counts() -> list[int]:
        decoder = ContainerDecoder(ContainerMedia(), VideoLimits())
        try:
            return [len(list(decoder.push(item))) for item in chunks(file_bytes(AV1), 500)]
        finally:
            decoder.close()

    counts = frame_counts()
    assert sum(counts) > 100  # of 125: the last few come at the end
    assert all(frame_counts() == counts for _ in range(5))


def test_an_mp4_with_its_index_last_is_held_back_up_to_the_limit() -> None:
    data = file_bytes(NASA)
    assert data.index(b"moov") > data.index(b"mdat")
    assert len(container_frames(data, spool_limit_bytes=len(data))) == 390
    _, error = frames_then_error(data, spool_limit_bytes=len(data) - 1)
    assert isinstance(error, NotStreamableError)
    assert error.allowed_bytes == len(data) - 1
    assert "faststart" in str(error)
    assert str(error.allowed_bytes) in str(error)


def test_an_mp4_with_its_index_last_leaves_no_file_when_it_is_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    data = file_bytes(VARIABLE)[:30_000]
    decoder = ContainerDecoder(ContainerMedia(), VideoLimits())
    assert list(decoder.push(ChunkItem(data=data))) == []
    decoder.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "suffix", "mux"),
    [
        (VARIABLE, ".mp4", {}),
        (VARIABLE, ".mp4", {"movflags": "faststart"}),
        (VARIABLE, ".mp4", {"movflags": "frag_keyframe+empty_moov"}),
        (VARIABLE, ".mkv", {}),
        (VARIABLE, ".flv", {}),
    ],
)
def test_a_container_that_is_cut_off_gives_its_frames_and_then_says_so(
    tmp_path: Path, name: str, suffix: str, mux: dict[str, str]
) -> None:
    path = remuxed(video(name), tmp_path / f"video{suffix}", **mux)
    data = path.read_bytes()
    cut = len(data) * 7 // 10 + 11
    out, error = frames_then_error(data[:cut])
    assert isinstance(error, TruncatedMediaError)
    whole = decoded_directly(str(path))
    assert_same(out, whole[: len(out)])
    index_last = suffix == ".mp4" and not mux
    assert index_last or len(whole) // 3 < len(out) < len(whole)


@pytest.mark.parametrize("name", [AV1, VP9, AVI, HEVC, LATE_START])
def test_every_real_video_cut_in_half_is_an_error(name: str) -> None:
    data = file_bytes(name)
    _, error = frames_then_error(data[: len(data) // 2])
    assert isinstance(error, TruncatedMediaError)


def test_damage_up_to_the_limit_is_left_out_and_counted(tmp_path: Path) -> None:
    path = encoded(tmp_path / "video.mkv", options={"g": "5", "bf": "0"}, sizes=[(64, 48)] * 30)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 300] = bytes(300)
    decoder = open_decoder(ContainerMedia(), VideoLimits(max_corrupt_packets=10))
    out: Timed = []
    try:
        for item in chunks(bytes(data)):
            out += timed(decoder.push(item))
        out += timed(decoder.finish())
    finally:
        decoder.close()
    assert 0 < decoder.counters.corrupt_packets <= 10
    whole = decoded_directly(str(path))
    assert 10 < len(out) < 30
    assert out[-1][0] == whole[-1][0]


@pytest.mark.parametrize("format_name", ["", "matroska", "mp4", "mpegts", "avi", "flv", "mpeg"])
def test_noise_is_refused(format_name: str) -> None:
    noise = bytes(range(1, 256)) * 400
    with pytest.raises(VideoError):
        container_frames(noise, media=ContainerMedia(format=format_name))


def test_playlists_are_refused_for_they_name_other_files(tmp_path: Path) -> None:
    target = encoded(tmp_path / "secret.ts")
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n"
    for text in (playlist, f"ffconcat version 1.0\nfile '{target}'\n"):
        with pytest.raises(CorruptMediaError, match="none of mp4"):
            container_frames(text.encode())


def test_a_bare_codec_stream_is_refused_for_it_carries_no_times(tmp_path: Path) -> None:
    path = encoded(tmp_path / "video.h264")
    with pytest.raises(CorruptMediaError, match="none of mp4"):
        container_frames(path.read_bytes())
    with pytest.raises(SourceOpenError):
        open_source(str(path))


def test_a_stream_that_appears_on_the_way_does_no_harm(tmp_path: Path) -> None:
    path = remuxed(video(VARIABLE), tmp_path / "video.flv")
    audio = bytes.fromhex("08 000003 000000 00 000000 2f0000 0000000e")  # an audio tag at the end
    assert_same(container_frames(path.read_bytes() + audio), decoded_directly(str(path)))


def test_no_bytes_at_all_is_an_error() -> None:
    with pytest.raises(EmptyMediaError):
        container_frames(b"")


def test_items_that_are_no_acceptable_chunks_are_refused() -> None:
    decoder = ContainerDecoder(ContainerMedia(), VideoLimits(max_chunk_bytes=10))
    try:
        with pytest.raises(EmptyMediaError):
            decoder.push(ChunkItem(data=b""))
        with pytest.raises(SizeLimitError, match="given 11 bytes, allowed: at most 10"):
            decoder.push(ChunkItem(data=bytes(11)))
        with pytest.raises(MediaFormError):
            decoder.push(PacketItem(pts_s=0, data=b"x", key_frame=True))
    finally:
        decoder.close()


def test_an_unknown_format_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(UnsupportedMediaError, match="matroska"):
        ContainerDecoder(ContainerMedia(format="hls"), VideoLimits())


def test_a_codec_that_is_not_read_is_refused_with_what_is_allowed(tmp_path: Path) -> None:
    path = encoded(tmp_path / "video.mkv", codec="ffv1")
    with pytest.raises(UnsupportedMediaError, match="given ffv1, allowed: h264"):
        container_frames(path.read_bytes())


def test_a_picture_above_the_limit_is_refused() -> None:
    with pytest.raises(ResolutionLimitError, match="given 640 x 360 pixels"):
        container_frames(file_bytes(AV1), max_pixels=640 * 359)


def test_closing_in_the_middle_ends_the_thread_and_twice_does_no_harm() -> None:
    data = file_bytes(AV1)[:12_000]
    decoder = ContainerDecoder(ContainerMedia(), VideoLimits())
    for _ in decoder.push(ChunkItem(data=data)):
        break
    decoder.close()
    decoder.close()


def test_a_pushed_chunk_is_taken_even_if_its_iterator_is_not_started() -> None:
    data = file_bytes(HEVC)
    decoder = ContainerDecoder(ContainerMedia(), VideoLimits())
    try:
        for item in chunks(data):
            decoder.push(item)
        assert len(list(decoder.finish())) == 10
    finally:
        decoder.close()


def test_one_chunk_with_thousands_of_frames_is_decoded_as_they_are_taken(tmp_path: Path) -> None:
    path = encoded(tmp_path / "video.mkv", sizes=[(64, 48)] * 400)
    decoder = ContainerDecoder(
        ContainerMedia(), VideoLimits(frame_queue_count=2, max_chunk_bytes=10**7)
    )
    try:
        frames = decoder.push(ChunkItem(data=path.read_bytes()))
        waiting = [len(decoder._exchange._frames) for _ in frames]
        waiting += [len(decoder._exchange._frames) for _ in decoder.finish()]
    finally:
        decoder.close()
    assert len(waiting) == 400
    assert max(waiting) <= 2
