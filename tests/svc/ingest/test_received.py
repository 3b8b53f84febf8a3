"""What readers of other processes learn of video that is still on its way."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from kvstore.reader import SessionReader
from svc.engine.adapters.base import WholeUnit
from svc.engine.adapters.llava_onevision import LlavaOnevisionAdapter
from tests.svc.ingest.calls import FINISH, images, open_images
from tests.svc.ingest.conftest import StartServer


class Gate:
    """Holds the vision tower until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._open = threading.Event()
        encode = LlavaOnevisionAdapter.encode

        def held(
            adapter: LlavaOnevisionAdapter, pixels: Tensor, times_s: Sequence[float]
        ) -> list[WholeUnit]:
            assert self._open.wait(30)
            return encode(adapter, pixels, times_s)

        monkeypatch.setattr(LlavaOnevisionAdapter, "encode", held)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open()


def marks(values: dict[str, Any]) -> tuple[float | None, float | None]:
    reader = SessionReader.open(Path(values["data_dir"]), "cam")
    try:
        watermarks = reader.watermarks()
        assert watermarks.epoch == reader.snapshot().epoch
        return watermarks.received_pts_s, watermarks.settled_pts_s
    finally:
        reader.close()


async def test_frames_are_received_before_they_are_visible(
    start: StartServer, values: dict[str, Any], gate: Gate
) -> None:
    client = await start()
    await client.create("cam")
    call = await client.open(open_images("cam"))
    assert marks(values) == (None, None)
    await call.send(images([0.0, 0.7, 1.0, 1.8]))
    while call.progress.received_pts_s < 1.8:
        assert await call.receive()
    assert not call.progress.HasField("visible_pts_s")
    assert marks(values) == (1.8, None)
    gate.open()
    await call.until_visible(2)
    assert marks(values) == (1.8, 1.8)


async def test_a_client_never_hears_of_frames_that_readers_do_not_know(
    start: StartServer, values: dict[str, Any]
) -> None:
    client = await start()
    await client.create("cam")
    call = await client.open(open_images("cam"))
    for i in range(20):
        await call.send(images([0.3 * i]))
        while call.progress.received_frame_count <= i:
            assert await call.receive()
        received_s, settled_s = marks(values)
        assert received_s is not None
        assert received_s >= call.progress.received_pts_s
        assert settled_s is not None or call.progress.visible_unit_count == 0


@pytest.mark.parametrize("finish", [True, False])
async def test_after_a_push_everything_received_is_settled(
    start: StartServer, values: dict[str, Any], finish: bool
) -> None:
    client = await start()
    await client.create("cam")
    call = await client.open(open_images("cam"))
    await call.send(images([0.0, 1.0, 1.9]), *([FINISH] if finish else []))
    await call.half_close()
    await call.rest()
    assert marks(values) == (1.9, 1.9)
