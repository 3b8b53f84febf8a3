"""A synthetic camera for measurements: raw frames one second apart, as many as are let through."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

import numpy as np

from svc.client import LiveSource, LookbackClient, PushFinished, PushProgress
from svc.video.frames import ImageItem, ImageMedia

FRAME_PX = 96
_SCENES = 64

Pixels = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]


def frame_pixels(index: int) -> Pixels:
    """Frame `index`: a block that moves over a texture which changes now and then. (H, W, 3)."""
    rng = np.random.default_rng(index // 20 % _SCENES)
    base: Any = rng.integers(0, 200, (12, 12, 3), dtype=np.uint8)
    pixels = np.kron(base, np.ones((8, 8, 1), dtype=np.uint8))
    place = index * 7 % (FRAME_PX - 32)
    pixels[32:64, place : place + 32] = rng.integers(100, 255, 3, dtype=np.uint8)
    return pixels


class PushedStream:
    """A session that grows to the length it is told, while the block lasts."""

    def __init__(self, client: LookbackClient, session_id: str) -> None:
        """The session must exist."""
        self._client = client
        self._session_id = session_id
        self._state = asyncio.Condition()
        self._wanted = 0
        self._ended = False
        self.visible_count = 0
        """Frames that questions can use."""
        self._pushing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> PushedStream:
        self._pushing = asyncio.create_task(self._push())
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        async with self._state:
            self._ended = True
            self._state.notify_all()
        assert self._pushing is not None
        if error is not None:
            self._pushing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._pushing

    async def let(self, count: int) -> None:
        """Lets the stream grow to `count` frames; returns at once."""
        async with self._state:
            self._wanted = max(self._wanted, count)
            self._state.notify_all()

    async def reach(self, count: int) -> None:
        """Returns when `count` frames are visible."""
        await self.let(count)
        async with self._state:
            await self._state.wait_for(lambda: self.visible_count >= count or self._is_over())
        if self.visible_count < count:
            assert self._pushing is not None
            self._pushing.result()
            raise RuntimeError(f"the push ended at {self.visible_count} of {count} frames")

    def _is_over(self) -> bool:
        return self._pushing is not None and self._pushing.done()

    async def _frames(self) -> AsyncIterator[ImageItem]:
        index = 0
        while True:
            async with self._state:
                await self._state.wait_for(lambda: index < self._wanted or self._ended)  # noqa: B023
                if self._ended:
                    return
            yield ImageItem(pts_s=float(index), data=frame_pixels(index).tobytes())
            index += 1

    async def _push(self) -> None:
        source = LiveSource(
            items=self._frames(), media=ImageMedia(raw_width=FRAME_PX, raw_height=FRAME_PX)
        )
        try:
            async for event in self._client.push(self._session_id, source):
                if isinstance(event, PushProgress):
                    await self._heard(event.visible_unit_count)
                elif isinstance(event, PushFinished):
                    await self._heard(event.progress.visible_unit_count)
        finally:
            async with self._state:
                self._state.notify_all()

    async def _heard(self, visible_count: int) -> None:
        async with self._state:
            self.visible_count = visible_count
            self._state.notify_all()
