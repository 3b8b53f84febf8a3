"""What a push reports while it runs. Times are presentation times in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from lookback.v1 import ingest_pb2
from svc.client.errors import PROTOCOL_VIOLATED, LookbackError
from svc.client.types import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class PushOpened:
    """A call is open and items flow."""

    durable_pts_s: float | None
    """Up to here the server has the video, and it survives a crash; None: it has nothing."""
    target_fps: float
    """Frames per second that the session keeps."""
    reconnect_count: int
    """How often this push has been resumed."""
    window_rounded: bool = False
    """The stream goes on from a window that was stored in int8 or int4; see the protocol."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushProgress:
    """How far the server has come. Frame and packet counts are of the current call."""

    received_pts_s: float | None
    """Last frame that was decoded."""
    visible_pts_s: float | None
    """Last frame that questions can use."""
    durable_pts_s: float | None
    """Last frame that survives a crash."""
    visible_unit_count: int
    durable_unit_count: int
    received_frame_count: int
    sampled_frame_count: int
    late_frame_count: int
    """Left out: they came too late."""
    known_frame_count: int
    """Left out: the session already had them."""
    duplicate_frame_count: int
    """Left out: they had the time of the frame before."""
    undecodable_packet_count: int
    """Left out: no key frame had come yet."""
    sent_item_count: int
    """Images, packets or chunks written in the current call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushGap:
    """A source that cannot be read again lost a part: it could not be held while away."""

    start_s: float
    """What follows was not sent ..."""
    end_s: float
    """... up to here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushReconnecting:
    """The call is gone; another is opened after `wait_s`."""

    error: LookbackError
    """Why it is gone."""
    wait_s: float
    give_up_in_s: float
    """From now, if no call gets further than those before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushLeft:
    """The push ended without `finish`: the session is live and can be resumed."""

    progress: PushProgress | None
    """The last that was heard; None: nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushFinished:
    """The server has everything, durably, and the session takes no more."""

    progress: PushProgress


PushEvent: TypeAlias = (
    PushOpened | PushProgress | PushGap | PushReconnecting | PushLeft | PushFinished
)


def progress_from(message: ingest_pb2.Progress, sent_item_count: int) -> PushProgress:
    """Returns the progress that the message tells."""
    return PushProgress(
        received_pts_s=message.received_pts_s if message.HasField("received_pts_s") else None,
        visible_pts_s=message.visible_pts_s if message.HasField("visible_pts_s") else None,
        durable_pts_s=message.durable_pts_s if message.HasField("durable_pts_s") else None,
        visible_unit_count=message.visible_unit_count,
        durable_unit_count=message.durable_unit_count,
        received_frame_count=message.received_frame_count,
        sampled_frame_count=message.sampled_frame_count,
        late_frame_count=message.late_frame_count,
        known_frame_count=message.known_frame_count,
        duplicate_frame_count=message.duplicate_frame_count,
        undecodable_packet_count=message.undecodable_packet_count,
        sent_item_count=sent_item_count,
    )


def progress_of(session: Session) -> PushProgress:
    """Returns what is known of a finished session that another call has brought to its end.

    Raises:
        LookbackError: PROTOCOL_VIOLATED, the server did not say what it holds.
    """
    stats = session.stats
    if stats is None:  # which it may be in a list alone
        raise LookbackError(
            reason=PROTOCOL_VIOLATED,
            message=f"the server sent session {session.session_id!r} without its stats",
            metadata={"field": "Session.stats"},
        )
    return PushProgress(
        received_pts_s=stats.last_visible_pts_s,
        visible_pts_s=stats.last_visible_pts_s,
        durable_pts_s=stats.last_durable_pts_s,
        visible_unit_count=stats.visible_unit_count,
        durable_unit_count=stats.durable_unit_count,
        received_frame_count=0,
        sampled_frame_count=0,
        late_frame_count=0,
        known_frame_count=0,
        duplicate_frame_count=0,
        undecodable_packet_count=0,
        sent_item_count=0,
    )
