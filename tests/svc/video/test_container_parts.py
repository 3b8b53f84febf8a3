"""What container decoding is made of: queues with bounds, and what files say of themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from svc.video.errors import DecoderStalledError
from svc.video.exchange import Exchange
from svc.video.isobmff import read_to_index
from svc.video.matroska import said_size
from tests.svc.video.media import AV1, HEVC, VARIABLE, VP9, remuxed, video


def file_bytes(name: str) -> bytes:
    return Path(video(name)).read_bytes()


def test_at_most_the_allowed_bytes_and_frames_wait() -> None:
    exchange = Exchange(byte_limit=10, frame_limit=1, stall_timeout_s=0.01)
    exchange.offer(bytes(11))
    with pytest.raises(DecoderStalledError):
        list(exchange.frames_until_taken())  # nobody reads
    with pytest.raises(RuntimeError, match="exhaust"):
        exchange.offer(b"x")


@pytest.mark.parametrize(
    ("boxes", "index_last"),
    [
        ([(b"ftyp", 24), (b"moov", 100), (b"mdat", 50)], False),
        ([(b"ftyp", 24), (b"free", 8), (b"mdat", 50), (b"moov", 100)], True),
        ([(b"ftyp", 24), (b"moov", 100), (b"moof", 20), (b"mdat", 50)], False),
        ([(b"ftyp", 24), (b"free", 3_000_000), (b"moov", 100)], True),
        ([(b"mdat", 50), (b"moov", 100)], True),
        ([(b"\x1aE\xdf\xa3", 24), (b"mdat", 50)], False),
        ([(b"ftyp", 24)], False),
    ],
)
def test_where_the_index_of_an_mp4_lies(boxes: list[tuple[bytes, int]], index_last: bool) -> None:
    data = b"".join(size.to_bytes(4, "big") + kind + bytes(size - 8) for kind, size in boxes)
    position = 0

    def read(byte_count: int) -> bytes:
        nonlocal position
        piece = data[position : position + min(byte_count, 7)]
        position += len(piece)
        return piece

    prefix, last = read_to_index(read)
    assert last == index_last
    assert prefix == data[:position]


@pytest.mark.parametrize("name", [AV1, VP9])
def test_a_matroska_file_says_its_own_size(name: str) -> None:
    data = file_bytes(name)
    assert said_size(data[:256]) == len(data)


def test_what_is_no_sized_matroska_says_no_size(tmp_path: Path) -> None:
    live = remuxed(video(VARIABLE), tmp_path / "live.mkv", live="1").read_bytes()
    for head in (live[:256], b"", b"\x1aE\xdf\xa3", b"\x1aE\xdf\xa3\x00", file_bytes(HEVC)[:256]):
        assert said_size(head) is None
