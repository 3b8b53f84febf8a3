"""The media side of one ingest call: decodes items, samples frames, makes units.

Runs on a thread of its own, from a queue that the credit of the call bounds, into the session's
lane of the encode thread, which makes it wait when the model is behind.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from svc.engine.ingest_session import FrameUnit
from svc.ingest.unit_builder import UnitBuilder
from svc.video.decoder import Decoder
from svc.video.frames import ChunkItem, Frame, ImageItem, Item, PacketItem
from svc.video.sampler import Sampler


class _End(Enum):
    FINISH = "finish"
    CUT = "cut"


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaReport:
    """What the media side of a call has done so far. Counts are of this call."""

    consumed_item_count: int = 0
    consumed_bytes: int = 0
    received_pts_s: float | None = None
    """Latest presentation time of a decoded frame, in seconds."""
    unit_count: int = 0
    """Units handed to the encode thread."""
    received_frame_count: int = 0
    sampled_frame_count: int = 0
    late_frame_count: int = 0
    known_frame_count: int = 0
    duplicate_frame_count: int = 0
    undecodable_packet_count: int = 0


class MediaWorker:
    """Turns items into units, in order. `run` on one thread; everything else from any."""

    def __init__(
        self,
        *,
        decoder: Decoder,
        sampler: Sampler,
        units: UnitBuilder,
        put: Callable[[FrameUnit], None],
        report: Callable[[MediaReport], None],
    ) -> None:
        """`put` takes the units and may block; `report` is told whenever something changed."""
        self._decoder = decoder
        self._sampler = sampler
        self._units = units
        self._put = put
        self._tell = report
        self._inbox: queue.SimpleQueue[Item | _End] = queue.SimpleQueue()
        self._abandoned = False
        self._consumed_item_count = 0
        self._consumed_bytes = 0
        self._unit_count = 0
        self._received_pts_s: float | None = None

    def offer(self, item: Item) -> None:
        """Queues an item; never blocks, for the credit bounds what can wait."""
        self._inbox.put(item)

    def finish(self) -> None:
        """After what is queued, the video is over: what decoder and sampler hold is used."""
        self._inbox.put(_End.FINISH)

    def cut(self) -> None:
        """After what is queued, no more comes, though the video is not over.

        What the decoder holds is left: a frame it has not given out may lack earlier ones that
        are still to come, and taking it would leave a hole when the session is resumed.
        """
        self._inbox.put(_End.CUT)

    def abandon(self) -> None:
        """Stops before the next frame; what is queued is left."""
        self._abandoned = True
        self._inbox.put(_End.CUT)

    def run(self) -> bool:
        """Works until the end; returns whether the video is over.

        Raises:
            VideoError: the media is at fault; every unit before the fault was handed on.
            LaneFailedError: units cannot be encoded any more.
        """
        try:
            while True:
                item = self._inbox.get()
                if self._abandoned or item is _End.CUT:
                    return False
                if isinstance(item, _End):
                    self._take(self._decoder.finish())
                    self._put_last()
                    return not self._abandoned
                self._take(self._decoder.push(item))
                self._consumed_item_count += 1
                self._consumed_bytes += size_bytes(item)
                self._report()
        finally:
            self._decoder.close()
            self._report()

    def _take(self, frames: Iterator[Frame]) -> None:
        for frame in frames:
            if self._abandoned:
                return
            sample = self._sampler.push(frame)
            latest = self._received_pts_s
            self._received_pts_s = frame.pts_s if latest is None else max(latest, frame.pts_s)
            if sample is None:
                continue
            unit = self._units.add(sample)
            if unit is not None:
                self._hand_on(unit)

    def _put_last(self) -> None:
        unit = None if self._abandoned else self._units.finish()
        if unit is not None:
            self._hand_on(unit)

    def _hand_on(self, unit: FrameUnit) -> None:
        self._put(unit)
        self._unit_count += 1
        self._report()

    def _report(self) -> None:
        sampler, decoder = self._sampler.counters, self._decoder.counters
        self._tell(
            MediaReport(
                consumed_item_count=self._consumed_item_count,
                consumed_bytes=self._consumed_bytes,
                received_pts_s=self._received_pts_s,
                unit_count=self._unit_count,
                received_frame_count=decoder.frames,
                sampled_frame_count=sampler.sampled,
                late_frame_count=sampler.discarded_late,
                known_frame_count=sampler.already_had,
                duplicate_frame_count=sampler.discarded_duplicate,
                undecodable_packet_count=decoder.packets_before_key_frame,
            )
        )


def size_bytes(item: Item) -> int:
    """Returns the bytes of media in an item."""
    match item:
        case ImageItem() | PacketItem() | ChunkItem():
            return len(item.data)
