"""Faults of the disk, of the model and of the machine: told once, nothing acknowledged is lost."""

from __future__ import annotations

import errno
import os
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from kvstore.diskio import DiskIO
from lookback.v1 import ingest_pb2
from svc.engine.adapters.llava_onevision import LlavaOnevisionAdapter
from tests.svc.ingest.calls import FINISH, Client, Refused, images, open_images
from tests.svc.ingest.conftest import StartServer
from tests.svc.ingest.stored import read_stored

_Usage = namedtuple("_Usage", ["total", "used", "free"])


async def push_until_refused(client: Client, times_s: list[float]) -> Refused:
    call = await client.open(open_images("cam"))
    await call.send(images(times_s))
    await call.half_close()
    with pytest.raises(Refused) as caught:
        await call.rest()
    return caught.value


async def assert_whole(client: Client, values: dict[str, Any], unit_count: int) -> None:
    """The session goes on, and in the end holds every picture once."""
    call = await client.open(open_images("cam"))
    await call.send(images([float(i) for i in range(unit_count)]), FINISH)
    await call.rest()
    assert call.finished is not None
    stored = read_stored(values["data_dir"], "cam")
    assert stored.last_pts_s == [float(i) for i in range(unit_count)]
    assert stored.row_count == stored.durable_unit_count == unit_count


async def test_a_disk_that_fills_up_under_a_push(
    start: StartServer, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await start(block_span_s=2.0)
    await client.create("cam")
    call = await client.open(open_images("cam"))
    await call.send(images([0.0, 1.0, 2.0, 3.0]))
    await call.until_durable(3)
    with monkeypatch.context() as patch:

        def full(io: DiskIO, folder: Path) -> int:
            return 0

        def fallocate(io: DiskIO, fd: int, offset: int, length: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(DiskIO, "free_bytes", full)
        patch.setattr(DiskIO, "fallocate", fallocate)
        patch.setattr(DiskIO, "pwritev", lambda io, fd, buffers, offset: fallocate(io, fd, 0, 0))
        await call.send(images([4.0, 5.0, 6.0, 7.0]))
        with pytest.raises(Refused) as caught:
            await call.rest()
    assert caught.value.reason == "STORE_FULL"
    assert call.progress.durable_unit_count == 3
    await assert_whole(client, values, 9)


async def test_a_disk_that_is_full_when_the_push_begins(
    start: StartServer, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await start(min_free_bytes=1000)
    await client.create("cam")
    with monkeypatch.context() as patch:
        patch.setattr(DiskIO, "free_bytes", lambda io, folder: 10)
        with pytest.raises(Refused) as caught:
            await client.open(open_images("cam"))
    assert caught.value.reason == "STORE_FULL"
    assert "10 are free" in caught.value.message
    await assert_whole(client, values, 3)


async def test_a_disk_without_room_for_a_file_that_must_be_held_back(
    start: StartServer, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await start(min_free_bytes=1000)
    await client.create("cam")
    media = ingest_pb2.ContainerMedia(format="mp4")
    call = await client.open(
        ingest_pb2.IngestRequest(open=ingest_pb2.Open(session_id="cam", container=media))
    )
    index_last = bytes.fromhex("0000000c") + b"ftypisom" + bytes.fromhex("00100000") + b"mdat"
    with monkeypatch.context() as patch:
        patch.setattr("svc.video.spool.shutil.disk_usage", lambda path: _Usage(10**6, 10**6, 10))
        chunk = ingest_pb2.Chunk(data=index_last + bytes(1000))
        await call.send(ingest_pb2.IngestRequest(chunk=chunk))
        with pytest.raises(Refused) as caught:
            await call.rest()
    assert caught.value.reason == "STORE_FULL"
    assert str(values["data_dir"] / "spool") in caught.value.message
    await assert_whole(client, values, 3)


async def test_a_disk_that_cannot_sync(
    start: StartServer, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await start()
    await client.create("cam")
    call = await client.open(open_images("cam"))
    await call.send(images([0.0, 1.0]))
    await call.half_close()
    await call.rest()
    with monkeypatch.context() as patch:

        def fail(io: DiskIO, fd: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        patch.setattr(DiskIO, "fdatasync", fail)
        refusal = await push_until_refused(client, [2.0, 3.0, 4.0])
    assert refusal.reason == "INTERNAL"
    assert "Input/output" not in refusal.message
    stats = (await client.sessions("GetSession", session_id="cam")).session.stats
    assert stats.visible_unit_count == stats.durable_unit_count == 2
    await assert_whole(client, values, 6)


async def test_a_model_that_fails(
    start: StartServer, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await start(units_per_pass=1)
    for name in ("cam", "other"):
        await client.create(name)
    other = await client.open(open_images("other"))
    await other.send(images([0.0]))
    await other.until_visible(1)
    call = await client.open(open_images("cam"))
    await call.send(images([0.0, 1.0]))
    await call.until_visible(2)
    with monkeypatch.context() as patch:

        def fail(adapter: LlavaOnevisionAdapter, pixels: Tensor) -> Tensor:
            raise RuntimeError("out of memory")

        patch.setattr(LlavaOnevisionAdapter, "encode", fail)
        await call.send(images([2.0, 3.0]))
        with pytest.raises(Refused) as caught:
            await call.rest()
    assert caught.value.reason == "INTERNAL"
    assert "memory" not in caught.value.message
    assert call.progress.durable_unit_count == 2
    await assert_whole(client, values, 5)
    await other.send(images([1.0]), FINISH)
    await other.rest()
    assert other.progress.durable_unit_count == 2
