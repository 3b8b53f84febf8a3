"""Items to the messages of an ingest call."""

from __future__ import annotations

from collections.abc import Sequence

from lookback.v1 import ingest_pb2
from svc.client.source_label import SourceLabel
from svc.video.frames import (
    ChunkItem,
    Codec,
    ContainerMedia,
    ImageItem,
    ImageMedia,
    Item,
    Media,
    PacketItem,
)

_CODECS: dict[Codec, ingest_pb2.PacketMedia.Codec.ValueType] = {
    "h264": ingest_pb2.PacketMedia.CODEC_H264,
    "hevc": ingest_pb2.PacketMedia.CODEC_HEVC,
    "vp9": ingest_pb2.PacketMedia.CODEC_VP9,
    "av1": ingest_pb2.PacketMedia.CODEC_AV1,
}
ITEM_OVERHEAD_BYTES = 64
"""More than an item takes in a message beside its data."""


def open_request(
    session_id: str, media: Media, *, label: SourceLabel | None = None, join: bool = False
) -> ingest_pb2.IngestRequest:
    """Returns the first message of a call."""
    opening = ingest_pb2.Open(session_id=session_id, join_source=join)
    if label is not None:
        opening.source.fingerprint = label.fingerprint
        opening.source.name = label.name
    if isinstance(media, ImageMedia):
        opening.images.raw_width = media.raw_width
        opening.images.raw_height = media.raw_height
        opening.images.SetInParent()
    elif isinstance(media, ContainerMedia):
        opening.container.format = media.format
        opening.container.SetInParent()
    else:
        opening.packets.codec = _CODECS[media.codec]
        opening.packets.extradata = media.extradata
        opening.packets.rotation_degrees = media.rotation_degrees
    return ingest_pb2.IngestRequest(open=opening)


def items_request(items: Sequence[Item]) -> ingest_pb2.IngestRequest:
    """Returns the message that carries the items: one or more of one kind, or a single chunk."""
    request = ingest_pb2.IngestRequest()
    for item in items:
        if isinstance(item, ImageItem):
            request.images.images.add(pts_s=item.pts_s, data=item.data)
        elif isinstance(item, PacketItem):
            request.packets.packets.add(
                pts_s=item.pts_s, data=item.data, key_frame=item.key_frame, discard=item.discard
            )
        else:
            request.chunk.data = item.data  # alone: see share_a_message
    return request


def share_a_message(items: Sequence[Item], item: Item) -> bool:
    """Tells whether `item` may travel in the message of `items`."""
    return not isinstance(item, ChunkItem) and type(item) is type(items[0])


FINISH_REQUEST = ingest_pb2.IngestRequest(finish=ingest_pb2.Finish())
