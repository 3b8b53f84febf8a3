"""What can be pushed."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from svc.video.frames import ImageItem, ImageMedia, Item, Media


class Source(Protocol):
    """Video that is read by blocking calls, on a thread of the push's own, one at a time."""

    @property
    def media(self) -> Media:
        """The form of all its items."""
        ...

    @property
    def seekable(self) -> bool:
        """Whether `items` can be called again, with a time to start from."""
        ...

    def items(self, from_pts_s: float | None = None) -> Iterator[Item]:
        """Returns the items in decoding order, from the key frame at or before `from_pts_s`.

        Closing the iterator ends it; a source that is not seekable is asked once, with None.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSource:
    """Items as they come to be: a camera, a screen. They cannot be asked for again."""

    items: AsyncIterable[Item]
    """Times rise from image to image; packets are in decoding order."""
    media: Media = field(default_factory=ImageMedia)


AnySource: TypeAlias = Source | LiveSource | AsyncIterable[ImageItem]
"""A source, or simply images (encoded) as they come to be."""
