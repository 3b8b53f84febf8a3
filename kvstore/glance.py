"""What there is of a session, from its CTL page alone: for looking many sessions over."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from kvstore.control import ControlPage, WriterState
from kvstore.encoding import Encoding
from kvstore.errors import ControlCorruptError
from kvstore.geometry import Geometry
from kvstore.paths import segment_numbers, session_folder, session_hash


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """What a session's writer says, or the last one left."""

    epoch: int
    visible_unit_count: int
    durable_unit_count: int
    first_unit: int
    geometry: Geometry
    encoding: Encoding


def has_blocks(root: Path, session_id: str) -> bool:
    """Return whether a session has a log at all."""
    return bool(segment_numbers(session_folder(root, session_id)))


def last_epoch(root: Path, session_id: str) -> int:
    """Return the last epoch that a writer began, as far as the CTL page says for certain; or 0."""
    try:
        page = ControlPage.open(session_folder(root, session_id), session_hash(session_id))
    except ControlCorruptError:
        return 0
    if page is None:
        return 0
    with closing(page):
        return page.last_epoch()


def glance(root: Path, session_id: str) -> Glance | None:
    """Return what the CTL page says for certain; None when only the log can tell.

    The page is certain since the machine started, and whenever the last writer closed it. It is
    not when the power was lost under a writer, nor when it is absent or damaged.

    Raises:
        FormatVersionError: the page is one of another version.
    """
    try:
        page = ControlPage.open(session_folder(root, session_id), session_hash(session_id))
        if page is None:
            return None
        with closing(page):
            state = page.state()
            text = page.text(state.epoch)
    except ControlCorruptError:
        return None
    if text is None or not (state.this_boot or state.writer_state == WriterState.CLOSED):
        return None
    return Glance(
        epoch=state.epoch,
        visible_unit_count=state.visible_unit_count,
        durable_unit_count=state.durable_unit_count,
        first_unit=state.first_unit,
        geometry=text.layout.geometry,
        encoding=text.layout.encoding,
    )
