"""Real videos in every form: the same frames are kept, whatever carried them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from lookback.v1 import ingest_pb2
from svc.client.messages import items_request, open_request
from svc.video.frames import ChunkItem, ContainerMedia, Item, Media, PacketItem
from svc.video.sources import open_source
from tests.svc.ingest.calls import FINISH, Client, IngestCall, Refused
from tests.svc.ingest.conftest import StartServer
from tests.svc.ingest.stored import assert_same, read_stored


def packets_of(path: Path, from_pts_s: float | None = None) -> tuple[Media, list[Item]]:
    source = open_source(str(path))
    return source.media, list(source.items(from_pts_s))


def chunks_of(path: Path, size: int = 7001) -> tuple[Media, list[Item]]:
    data = path.read_bytes()
    chunks = [ChunkItem(data=data[i : i + size]) for i in range(0, len(data), size)]
    return ContainerMedia(), list(chunks)


async def open_push(client: Client, session_id: str, media: Media) -> IngestCall:
    return await client.open(open_request(session_id, media))


async def push(
    client: Client, session_id: str, media: Media, items: list[Item], *, finish: bool = True
) -> IngestCall:
    call = await open_push(client, session_id, media)
    await call.send_all(items_request([item]) for item in items)
    if finish:
        await call.send(FINISH)
    await call.half_close()
    return await call.rest()


@pytest.mark.parametrize(
    ("name", "unit_count", "first_pts_s"),
    [
        ("nasa_13013.mp4", 26, 0.0),
        ("h265_video.mp4", 2, 0.0),
        ("av1_video.mkv", 10, 0.0),
        ("testsrc2_vp9.webm", 2, 0.0),
        ("test_non_zero_start.mp4", None, None),
        ("generated_vfr_bframes.mp4", None, None),
        ("testsrc2_mpeg4.avi", 2, 0.0),
    ],
)
async def test_a_file_gives_the_same_units_as_packets_and_as_a_container(
    start: StartServer,
    values: dict[str, Any],
    videos: Path,
    name: str,
    unit_count: int | None,
    first_pts_s: float | None,
) -> None:
    client = await start()
    for session_id in ("packets", "container"):
        await client.create(session_id, sample_fps=2.0)
    call = await push(client, "packets", *packets_of(videos / name))
    assert call.finished is not None
    call = await push(client, "container", *chunks_of(videos / name))
    assert call.finished is not None
    by_packets = read_stored(values["data_dir"], "packets")
    by_container = read_stored(values["data_dir"], "container")
    assert by_packets.last_pts_s == pytest.approx(by_container.last_pts_s, abs=0.0011)
    if unit_count is not None:
        assert len(by_packets.last_pts_s) == unit_count
        assert by_packets.last_pts_s[0] == pytest.approx(first_pts_s)


async def test_packets_resumed_from_the_key_frame_before_give_no_hole_and_no_double(
    start: StartServer, values: dict[str, Any], videos: Path
) -> None:
    path = videos / "nasa_13013.mp4"
    client = await start()
    for session_id in ("whole", "pieces"):
        await client.create(session_id, sample_fps=2.0)
    media, items = packets_of(path)
    await push(client, "whole", media, items)
    for stop in (3, 60, 61, 200, 301):
        call = await open_push(client, "pieces", media)
        resume_s = call.opened.durable_pts_s if call.opened.HasField("durable_pts_s") else None
        again = packets_of(path, resume_s)[1]
        count = stop - (len(items) - len(again))
        await call.send_all(items_request([item]) for item in again[: max(0, count)])
        call.cancel()
    call = await open_push(client, "pieces", media)
    again = packets_of(path, call.opened.durable_pts_s)[1]
    assert len(again) < len(items)
    await call.send_all(items_request([item]) for item in again)
    await call.send(FINISH)
    await call.rest()
    assert call.progress.known_frame_count > 0
    whole, pieces = (read_stored(values["data_dir"], name) for name in ("whole", "pieces"))
    assert_same(pieces, whole)


async def test_a_container_resumed_from_its_start_gives_no_hole_and_no_double(
    start: StartServer, values: dict[str, Any], videos: Path
) -> None:
    client = await start()
    for session_id in ("whole", "pieces"):
        await client.create(session_id, sample_fps=2.0)
    media, chunks = chunks_of(videos / "av1_video.mkv", 1500)
    await push(client, "whole", media, chunks)
    await push(client, "pieces", media, chunks[:8], finish=False)
    call = await push(client, "pieces", media, chunks)
    assert call.progress.known_frame_count > 0
    whole, pieces = (read_stored(values["data_dir"], name) for name in ("whole", "pieces"))
    assert_same(pieces, whole)


async def test_a_corrupt_packet_ends_the_call_and_keeps_what_came_before(
    start: StartServer, videos: Path
) -> None:
    client = await start()
    await client.create("cam", sample_fps=2.0)
    media, items = packets_of(videos / "nasa_13013.mp4")
    bad = [
        PacketItem(pts_s=item.pts_s, data=b"\0\0\0\x30" + b"\xa5" * 48, key_frame=item.key_frame)
        for item in items[200:202]
        if isinstance(item, PacketItem)
    ]
    with pytest.raises(Refused) as caught:
        await push(client, "cam", media, [*items[:200], *bad, *items[202:]])
    assert caught.value.reason == "MEDIA_CORRUPT"
    session = (await client.sessions("GetSession", session_id="cam")).session
    assert session.stats.durable_unit_count == session.stats.visible_unit_count > 5
    call = await push(client, "cam", media, items)
    assert call.finished is not None
    assert call.progress.durable_unit_count == 26


async def test_a_file_without_video_is_refused_by_name(start: StartServer, videos: Path) -> None:
    client = await start()
    await client.create("cam")
    with pytest.raises(Refused) as caught:
        await push(client, "cam", *chunks_of(videos / "nasa_13013.mp4.audio.mp3"))
    assert caught.value.reason == "NO_VIDEO_STREAM"


async def test_bytes_that_are_no_container_are_refused(start: StartServer) -> None:
    client = await start()
    await client.create("cam")
    noise = list(itertools.repeat(ChunkItem(data=b"lorem ipsum dolor " * 400), 4))
    with pytest.raises(Refused) as caught:
        await push(client, "cam", ContainerMedia(), list[Item](noise))
    assert caught.value.reason in {"MEDIA_CORRUPT", "MEDIA_UNSUPPORTED"}


async def test_a_container_cut_short_keeps_the_frames_that_were_whole(
    start: StartServer, videos: Path
) -> None:
    client = await start()
    await client.create("cam", sample_fps=2.0)
    media, chunks = chunks_of(videos / "av1_video.mkv", 1500)
    with pytest.raises(Refused) as caught:
        await push(client, "cam", media, chunks[:6])
    assert caught.value.reason == "MEDIA_CORRUPT"
    session = (await client.sessions("GetSession", session_id="cam")).session
    assert session.stats.durable_unit_count == session.stats.visible_unit_count > 0


async def test_raw_pictures_are_frames(start: StartServer, values: dict[str, Any]) -> None:
    client = await start()
    await client.create("cam")
    call = await client.open(
        ingest_pb2.IngestRequest(
            open=ingest_pb2.Open(
                session_id="cam", images=ingest_pb2.ImageMedia(raw_width=4, raw_height=2)
            )
        )
    )
    frames = [ingest_pb2.Image(pts_s=float(i), data=bytes([i] * 24)) for i in range(3)]
    await call.send(ingest_pb2.IngestRequest(images=ingest_pb2.Images(images=frames)), FINISH)
    await call.rest()
    assert read_stored(values["data_dir"], "cam").last_pts_s == [0.0, 1.0, 2.0]


async def test_a_hole_in_the_stream_is_recorded_as_a_gap(
    start: StartServer, values: dict[str, Any], videos: Path
) -> None:
    client = await start(gap_max_s=1.0)
    await client.create("cam", sample_fps=4.0)
    await push(client, "cam", *packets_of(videos / "generated_vfr_bframes.mp4"))
    assert sum(read_stored(values["data_dir"], "cam").gaps_before) == 1
    session = (await client.sessions("GetSession", session_id="cam")).session
    assert session.stats.gap_count == 1
