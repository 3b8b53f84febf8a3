"""Where a push is in its source, over calls that come and go."""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import Protocol

from svc.client.errors import REPLAY_OVERRUN, LookbackError
from svc.client.events import PushGap
from svc.client.feed import Feed, TaskFeed, ThreadFeed
from svc.client.replay import ReplayBuffer
from svc.client.source import AnySource, LiveSource, Source
from svc.video.frames import ContainerMedia, Item, Media


class Cursor(Protocol):
    """The items of the current call, one after another."""

    media: Media

    async def start(self, durable_pts_s: float | None) -> PushGap | None:
        """Goes to where a call must begin when the server has what is up to the durable time.

        Returns what is lost on the way, if anything is.

        Raises:
            LookbackError: REPLAY_OVERRUN, the call cannot begin where it must.
        """
        ...

    async def head(self) -> Item | None:
        """Waits for the next item; None at the end of the source; raises what the source did."""
        ...

    def peek(self) -> Item | None:
        """Returns the next item if it is there already."""
        ...

    def pop(self) -> None:
        """Takes the next item, which must be there: it is about to be sent."""
        ...

    def acknowledge(self, durable_pts_s: float) -> None:
        """Says that the server will not ask for what is needed only before this time."""
        ...

    async def close(self) -> None:
        """Ends the reading of the source."""
        ...


class SeekingCursor:
    """Over a source that can be read again from any key frame."""

    def __init__(self, source: Source) -> None:
        self.media = source.media
        self._source = source
        self._feed: ThreadFeed | None = None

    async def start(self, durable_pts_s: float | None) -> PushGap | None:
        await self.close()
        self._feed = ThreadFeed(lambda: self._source.items(durable_pts_s))
        return None

    async def head(self) -> Item | None:
        return await self._open_feed.head()

    def peek(self) -> Item | None:
        return self._open_feed.peek()

    def pop(self) -> None:
        self._open_feed.pop()

    def acknowledge(self, durable_pts_s: float) -> None:
        """Nothing is held: the source is."""

    async def close(self) -> None:
        feed, self._feed = self._feed, None
        if feed is not None:
            await feed.close()

    @property
    def _open_feed(self) -> ThreadFeed:
        if self._feed is None:
            raise AssertionError("start comes first")
        return self._feed


class ReplayCursor:
    """Over a source that goes by once: what may be asked for again is held."""

    def __init__(self, source: AnySource, replay_limit_bytes: int) -> None:
        self._feed: Feed
        if isinstance(source, AsyncIterable):
            source = LiveSource(items=source)
        self.media = source.media
        if not isinstance(source, LiveSource):
            self._feed = ThreadFeed(source.items)
        elif isinstance(source.items, AsyncIterable):
            self._feed = TaskFeed(source.items)
        else:
            live_items = source.items
            self._feed = ThreadFeed(lambda: iter(live_items))
        self._replay = ReplayBuffer(replay_limit_bytes)
        self._again: list[Item] = []  # newest first

    async def start(self, durable_pts_s: float | None) -> PushGap | None:
        if self._replay.chunks_lost:
            raise LookbackError(
                reason=REPLAY_OVERRUN,
                message="the container's bytes can only be sent again from the first, and more "
                "have gone by than are held; push a file, or images or packets, to be resumed",
            )
        if durable_pts_s is not None:
            self._replay.trim(durable_pts_s)
        self._again = list(reversed(self._replay.held()))
        gap_s = self._replay.gap_s(durable_pts_s)
        return None if gap_s is None else PushGap(start_s=gap_s[0], end_s=gap_s[1])

    async def head(self) -> Item | None:
        return self._again[-1] if self._again else await self._feed.head()

    def peek(self) -> Item | None:
        return self._again[-1] if self._again else self._feed.peek()

    def pop(self) -> None:
        if self._again:
            self._again.pop()  # is held already
            return
        item = self._feed.peek()
        if item is None:
            raise AssertionError("pop follows head")
        self._replay.add(item)
        self._feed.pop()

    def acknowledge(self, durable_pts_s: float) -> None:
        self._replay.trim(durable_pts_s)

    async def close(self) -> None:
        if isinstance(self._feed, ThreadFeed):
            self._feed.abandon()  # its read may never return
        else:
            await self._feed.close()


def open_cursor(source: AnySource, replay_limit_bytes: int) -> Cursor:
    """Returns the cursor that suits the source."""
    if isinstance(source, LiveSource | AsyncIterable) or isinstance(source.media, ContainerMedia):
        return ReplayCursor(source, replay_limit_bytes)
    return SeekingCursor(source)
