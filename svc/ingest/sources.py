"""Whose video a session holds: labels as its record keeps them, and what may be joined to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from svc.rpc.errors import Reason, RequestError
from svc.video.counters import DecoderCounters
from svc.video.decoder import Decoder
from svc.video.frames import Frame, Item

SOURCES_KEY = "sources"
"""Of a session's settings in its record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceLabel:
    """Tells one video from another, as the client made it."""

    fingerprint: str
    name: str
    """For people; not compared."""

    def __str__(self) -> str:
        return f"{self.name!r} ({self.fingerprint})"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Admitted:
    label: SourceLabel
    from_unit: int
    """Units that were durable before it: with more than these, something of it is held."""

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Self:
        return cls(label=SourceLabel(**stored["label"]), from_unit=stored["from_unit"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What the record is to keep once a push is admitted."""

    sources: Sequence[Mapping[str, Any]]
    joins: bool
    """Whether the push adds video of another source than the one that is held."""


def admit(
    session_id: str,
    stored: Sequence[Mapping[str, Any]],
    given: SourceLabel | None,
    *,
    durable_unit_count: int,
    join: bool,
) -> Admission:
    """Returns what to keep when `given` is pushed to a session that no push has open.

    A label that was admitted counts from its first durable unit on. One that stored nothing is
    let go of: what was tried may have failed, and a session that holds nothing is nobody's yet.

    Args:
        session_id: for the message.
        stored: what the record keeps.
        given: None: the client cannot tell its source from another; it is not checked.
        durable_unit_count: of the session.
        join: add it though the session holds another source.

    Raises:
        RequestError: SOURCE_MISMATCH: the session holds another source, and not to `join`.
    """
    admitted = [_Admitted.read(each) for each in stored]
    held = [each for each in admitted if each.from_unit < durable_unit_count]
    holder = held[-1].label if held else None
    joins = False
    if given is not None and (holder is None or holder.fingerprint != given.fingerprint):
        joins = durable_unit_count > 0
        if joins and not join:
            known = "a source without a label" if holder is None else str(holder)
            raise RequestError(
                Reason.SOURCE_MISMATCH,
                f"session {session_id!r} holds video of {known}, not of {given}; "
                "join_source adds it all the same",
                session_id=session_id,
                stored=known,
                given=given,
            )
        held.append(_Admitted(label=given, from_unit=durable_unit_count))
    return Admission(sources=[asdict(each) for each in held], joins=joins)


class JoinedDecoder:
    """Decodes video that is to begin after what the session has.

    What lies before would be left out, as what a resumed push sends again is: its loss is told.
    """

    def __init__(self, decoder: Decoder, last_pts_s: float) -> None:
        """`last_pts_s`: of the last frame that the session has."""
        self._decoder = decoder
        self._last_pts_s: float | None = last_pts_s
        self.counters: DecoderCounters = decoder.counters

    def push(self, item: Item) -> Iterator[Frame]:
        """Decodes an item.

        Raises:
            RequestError: SOURCE_MISMATCH: the first frame is not later than what the session has.
        """
        return self._checked(self._decoder.push(item))

    def finish(self) -> Iterator[Frame]:
        """Gives out what is left; raises as `push`."""
        return self._checked(self._decoder.finish())

    def close(self) -> None:
        """Lets go of the decoder."""
        self._decoder.close()

    def _checked(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        for frame in frames:
            last_pts_s, self._last_pts_s = self._last_pts_s, None
            if last_pts_s is not None and frame.pts_s <= last_pts_s:
                raise RequestError(
                    Reason.SOURCE_MISMATCH,
                    f"a joined video must begin after {last_pts_s:g} s, where the session's video "
                    f"ends; this one begins at {frame.pts_s:g} s",
                    last_pts_s=last_pts_s,
                    given_pts_s=frame.pts_s,
                )
            yield frame
