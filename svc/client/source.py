"""What can be pushed."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from svc.video.frames import ImageItem, ImageMedia, Item, Media


class Source(Protocol):
    """Video that can be read again; `svc.video.sources.open_source` gives one for a file.

    Read by blocking calls, on a thread of the push's own, one at a time. Only the bytes of a
    container (`ContainerMedia`) are read once, from their start: they are what standard input is.
    """

    @property
    def media(self) -> Media:
        """The form of all its items."""
        ...

    def items(self, from_pts_s: float | None = None) -> Iterator[Item]:
        """Returns the items in decoding order, from the key frame at or before `from_pts_s`.

        Closing the iterator ends it. Container bytes are asked for once, with None.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSource:
    """Items as they come to be: a camera, a screen. They cannot be asked for again."""

    items: AsyncIterable[Item] | Iterable[Item]
    """Times rise from image to image; packets are in decoding order. What is not asynchronous
    may block: it is read on a thread."""
    media: Media = field(default_factory=ImageMedia)


AnySource: TypeAlias = Source | LiveSource | AsyncIterable[ImageItem]
"""A source, or simply images (encoded) as they come to be."""
