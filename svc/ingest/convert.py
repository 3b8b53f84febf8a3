"""The ingest protocol to the data of svc.video, and what a push says back to the protocol.

Generated types stop here. What is wrong with a message is said here, by field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf import duration_pb2

from lookback.v1 import ingest_pb2
from svc.engine.ingest_session import StreamStatus
from svc.ingest.events import Draining, Event, Finished, Progress
from svc.ingest.sources import SourceLabel
from svc.rpc.errors import Reason, RequestError
from svc.rpc.server import MAX_MESSAGE_BYTES
from svc.video.frames import (
    ChunkItem,
    Codec,
    ContainerMedia,
    ImageItem,
    ImageMedia,
    Item,
    Media,
    PacketItem,
    PacketMedia,
)

MAX_FINGERPRINT_CHARS = 200
MAX_SOURCE_NAME_CHARS = 255

_CODECS: dict[int, Codec] = {
    ingest_pb2.PacketMedia.CODEC_H264: "h264",
    ingest_pb2.PacketMedia.CODEC_HEVC: "hevc",
    ingest_pb2.PacketMedia.CODEC_VP9: "vp9",
    ingest_pb2.PacketMedia.CODEC_AV1: "av1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What the first message of a call asks for."""

    session_id: str
    media: Media
    source: SourceLabel | None
    """None: the client cannot tell its source from another."""
    join_source: bool


def read_open(request: ingest_pb2.IngestRequest | None) -> Opening:
    """Returns what the first message asks for.

    Raises:
        RequestError: OPEN_EXPECTED or INVALID_REQUEST.
        VideoError: the media is not of a kind that is decoded.
    """
    given = None if request is None else request.WhichOneof("request")
    if request is None or given != "open":
        raise RequestError(
            Reason.OPEN_EXPECTED,
            f"the first message must be `open`, got {given or 'none that is known'}",
            given=given,
        )
    return Opening(
        session_id=request.open.session_id,
        media=_read_media(request.open),
        source=_read_source(request.open),
        join_source=request.open.join_source,
    )


def _read_source(opening: ingest_pb2.Open) -> SourceLabel | None:
    if not opening.HasField("source"):
        return None
    label = opening.source
    if not 0 < len(label.fingerprint) <= MAX_FINGERPRINT_CHARS:
        raise _bad_length("open.source.fingerprint", label.fingerprint, 1, MAX_FINGERPRINT_CHARS)
    if len(label.name) > MAX_SOURCE_NAME_CHARS:
        raise _bad_length("open.source.name", label.name, 0, MAX_SOURCE_NAME_CHARS)
    return SourceLabel(fingerprint=label.fingerprint, name=label.name)


def _bad_length(field: str, given: str, low: int, high: int) -> RequestError:
    return RequestError(
        Reason.INVALID_REQUEST,
        f"{field} must have {low} to {high} characters, got {len(given)}",
        field=field,
        given=len(given),
    )


def _read_media(opening: ingest_pb2.Open) -> Media:
    form = opening.WhichOneof("media")
    match form:
        case "images":
            images = opening.images
            return ImageMedia(raw_width=images.raw_width, raw_height=images.raw_height)
        case "packets":
            packets = opening.packets
            codec = _CODECS.get(packets.codec)
            if codec is None:
                raise RequestError(
                    Reason.MEDIA_UNSUPPORTED,
                    f"open.packets.codec must be one of {', '.join(_CODECS.values())}, "
                    f"got {packets.codec}",
                    codec=packets.codec,
                )
            return PacketMedia(
                codec=codec,
                extradata=packets.extradata,
                rotation_degrees=packets.rotation_degrees,
            )
        case "container":
            return ContainerMedia(format=opening.container.format)
        case None:
            raise RequestError(
                Reason.INVALID_REQUEST,
                "open.media must be one of images, packets, container, got none",
            )


def read_items(request: ingest_pb2.IngestRequest) -> Sequence[Item] | None:
    """Returns the items of a later message, or None for `finish`.

    Raises:
        RequestError: INVALID_REQUEST: another `open`, or a message that is not known.
    """
    given = request.WhichOneof("request")
    match given:
        case "images":
            return [ImageItem(pts_s=i.pts_s, data=i.data) for i in request.images.images]
        case "packets":
            return [
                PacketItem(pts_s=p.pts_s, data=p.data, key_frame=p.key_frame, discard=p.discard)
                for p in request.packets.packets
            ]
        case "chunk":
            return [ChunkItem(data=request.chunk.data)]
        case "finish":
            return None
        case "open" | None:
            raise RequestError(
                Reason.INVALID_REQUEST,
                "after `open` come images, packets, chunks or `finish`, "
                f"got {given or 'a message that is not known'}",
                given=given,
            )


def opened_message(
    status: StreamStatus, *, credit_items: int, target_fps: float, joined: bool
) -> ingest_pb2.IngestResponse:
    """Returns the answer to `open`."""
    return ingest_pb2.IngestResponse(
        opened=ingest_pb2.Opened(
            durable_pts_s=status.durable_pts_s,
            credit_item_count=credit_items,
            target_fps=target_fps,
            max_message_bytes=MAX_MESSAGE_BYTES,
            window_rounded=status.window_rounded,
            joined=joined,
        )
    )


def event_message(event: Event) -> ingest_pb2.IngestResponse:
    """Returns the message that tells an event."""
    match event:
        case Progress():
            return ingest_pb2.IngestResponse(progress=_progress(event))
        case Draining():
            grace = duration_pb2.Duration()
            grace.FromMilliseconds(int(event.grace_s * 1000))
            return ingest_pb2.IngestResponse(draining=ingest_pb2.Draining(grace=grace))
        case Finished():
            return ingest_pb2.IngestResponse(
                finished=ingest_pb2.Finished(progress=_progress(event.progress))
            )


def _progress(progress: Progress) -> ingest_pb2.Progress:
    media, stream = progress.media, progress.stream
    return ingest_pb2.Progress(
        received_pts_s=media.received_pts_s,
        visible_pts_s=stream.visible_pts_s,
        durable_pts_s=stream.durable_pts_s,
        visible_unit_count=stream.visible_unit_count,
        durable_unit_count=stream.durable_unit_count,
        credit_item_count=progress.credit_item_count,
        received_frame_count=media.received_frame_count,
        sampled_frame_count=media.sampled_frame_count,
        late_frame_count=media.late_frame_count,
        known_frame_count=media.known_frame_count,
        duplicate_frame_count=media.duplicate_frame_count,
        undecodable_packet_count=media.undecodable_packet_count,
    )
