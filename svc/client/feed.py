"""Takes items from a source as they come, a bounded number ahead of the sender."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterator
from typing import Protocol

from svc.client.waiting import cancelled
from svc.video.frames import Item

_AHEAD_COUNT = 16


class Feed(Protocol):
    """A queue of items with an end. One task at a time."""

    async def head(self) -> Item | None:
        """Waits for the next item and returns it without taking it; None at the end.

        Raises:
            Exception: what the source raised, after everything that came before it was taken.
        """
        ...

    def peek(self) -> Item | None:
        """Returns the next item if it is there already."""
        ...

    def pop(self) -> None:
        """Takes the next item, which must be there."""
        ...

    async def close(self) -> None:
        """Stops reading."""
        ...


class _Queue:
    """What both feeds share: items, an end, an error. Used on the event loop only."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._changed = asyncio.Event()
        self._ended = False
        self._error: BaseException | None = None

    async def head(self) -> Item | None:
        while not self._items:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._items[0]

    def peek(self) -> Item | None:
        return self._items[0] if self._items else None

    def _add(self, item: Item) -> None:
        self._items.append(item)
        self._changed.set()

    def _end(self, error: BaseException | None) -> None:
        self._ended, self._error = True, error
        self._changed.set()


class ThreadFeed(_Queue):
    """Items of a blocking iterator, read on a thread.

    The thread is a daemon: a read of standard input may never return, and must not keep the
    process from ending.
    """

    def __init__(self, open_items: Callable[[], Iterator[Item]]) -> None:
        super().__init__()
        self._open_items = open_items
        self._loop = asyncio.get_running_loop()
        self._room = threading.Semaphore(_AHEAD_COUNT)
        self._closed = False
        self._gone = asyncio.Event()
        threading.Thread(target=self._read, name="lookback-source", daemon=True).start()

    def pop(self) -> None:
        self._items.popleft()
        self._room.release()

    async def close(self) -> None:
        """Stops reading; returns when the source is no longer in use."""
        self.abandon()
        await self._gone.wait()

    def abandon(self) -> None:
        """Stops reading, as soon as the read that is under way returns."""
        self._closed = True
        self._room.release()

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            with contextlib.ExitStack() as stack:
                items = self._open_items()
                close = getattr(items, "close", None)
                if close is not None:
                    stack.callback(close)
                for item in items:
                    self._room.acquire()
                    if self._closed:
                        break
                    self._call(self._add, item)
        except BaseException as caught:  # noqa: BLE001 - carried over to the sender
            error = caught
        self._call(self._end, error)
        self._call(self._gone.set)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        # The loop may be gone when a read returns after the end of the program.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)


class TaskFeed(_Queue):
    """Items of an asynchronous iterable, read by a task."""

    def __init__(self, items: AsyncIterable[Item]) -> None:
        super().__init__()
        self._room = asyncio.Semaphore(_AHEAD_COUNT)
        self._task = asyncio.create_task(self._read(items))

    def pop(self) -> None:
        self._items.popleft()
        self._room.release()

    async def close(self) -> None:
        await cancelled(self._task)

    async def _read(self, items: AsyncIterable[Item]) -> None:
        error: BaseException | None = None
        try:
            async for item in items:
                await self._room.acquire()
                self._add(item)
        except Exception as caught:  # noqa: BLE001 - carried over to the sender
            error = caught
        self._end(error)
