"""Server side: the one way from pushed items to frames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from svc.video.containers import ContainerDecoder
from svc.video.counters import DecoderCounters
from svc.video.frames import Frame, ImageMedia, Item, Media, PacketMedia
from svc.video.images import ImageDecoder
from svc.video.limits import VideoLimits
from svc.video.packets import PacketDecoder
from svc.video.spool import Spool


class Decoder(Protocol):
    """Turns items into frames. One owner at a time; the calls block, so keep them off event loops.

    A VideoError is final: close the decoder. Frames come in order of presentation as far as the
    media has one; the sampler deals with the rest.
    """

    counters: DecoderCounters

    def push(self, item: Item) -> Iterator[Frame]:
        """Take an item at once and return the frames that are ready.

        Exhaust the iterator before the next call: a chunk of a container can hold thousands of
        frames, which are decoded as they are taken.

        Raises:
            VideoError: the item, or what came before it, cannot be decoded; also from the iterator.
        """
        ...

    def finish(self) -> Iterator[Frame]:
        """Say that no more items come and return the remaining frames; exhaust the iterator.

        Raises:
            VideoError: as `push`; also that something is missing at the end.
        """
        ...

    def close(self) -> None:
        """Let go of everything, threads and files included; at any time, any number of times."""
        ...


def open_decoder(
    media: Media, limits: VideoLimits | None = None, spool: Spool | None = None
) -> Decoder:
    """Return a decoder for the form of media; close it when done.

    `spool` is where a container is held that must be complete before it can be decoded.

    Raises:
        VideoError: the media's description is not acceptable.
    """
    limits = limits or VideoLimits()
    if isinstance(media, ImageMedia):
        return ImageDecoder(media, limits)
    if isinstance(media, PacketMedia):
        return PacketDecoder(media, limits)
    return ContainerDecoder(media, limits, spool)
