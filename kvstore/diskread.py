"""Reading units from disk past damage: what cannot be read is named, all else is read."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from kvstore.errors import SliceCorruptError, UnitDroppedError
from kvstore.extents import Located, read_runs
from kvstore.floor import why_gone
from kvstore.format import SegmentHeader
from kvstore.paths import segment_path, still_there
from kvstore.quarantine import DamagedSlice, FileState, Quarantine, damaged_now
from kvstore.scan import read_page
from kvstore.segmentfiles import SegmentFiles


class SegmentRewrittenError(Exception):
    """Internal: the file is of another generation than the blocks that are known of it."""


class DiskReads:
    """Reads of one session's segment files. Safe to use from many threads."""

    def __init__(
        self, session_id: str, folder: Path, files: SegmentFiles, quarantine: Quarantine | None
    ) -> None:
        """With a quarantine, what is damaged is remembered in it and not read again."""
        self._session_id = session_id
        self._folder = folder
        self._files = files
        self._quarantine = quarantine

    def read(self, layer: int, located: Sequence[Located]) -> list[SliceCorruptError]:
        """Fill every extent that can be read; return what cannot.

        Raises:
            UnitDroppedError: a segment was dropped.
            SessionNotFoundError: it is gone with its session.
            SegmentRewrittenError: what is known of a segment is out of date.
            OSError: of this process, such as too many open files: no fault of the data.
        """
        wanted, retried, damaged = self._set_aside(layer, located)
        try:
            read_runs(self._session_id, self._files, layer, wanted)
        except SliceCorruptError:
            self._check_generation(wanted)
            return damaged + self._examine(layer, wanted)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.ENOENT):
                raise
            return damaged + self._examine(layer, wanted)
        if self._quarantine is not None:
            for each in retried:
                self._quarantine.lift(each)
        return damaged

    def _set_aside(
        self, layer: int, located: Sequence[Located]
    ) -> tuple[list[Located], list[DamagedSlice], list[SliceCorruptError]]:
        """Part what is to be read from what is known to be damaged in a file that is as it was."""
        if not self._quarantine:  # most often nothing is known
            return list(located), [], []
        wanted: list[Located] = []
        retried: list[DamagedSlice] = []
        damaged: list[SliceCorruptError] = []
        for one in located:
            extent, (block, _) = one
            known = self._known(block.header.hash, extent.unit_index, layer)
            if known is None:
                wanted.append(one)
                continue
            if self._state(one) == (known.inode, known.changed_ns):
                self._check_not_dropped(one)
                damaged.append(self._error(one, layer, unreadable=known.unreadable))
                continue
            # It may be another file under the name: the one that is open is the damaged one.
            self._files.forget_one(block.place.segment_number)
            retried.append(known)
            wanted.append(one)
        return wanted, retried, damaged

    def _examine(self, layer: int, located: Sequence[Located]) -> list[SliceCorruptError]:
        """Read each unit by itself, so that all that is damaged is told at once."""
        errors: list[SliceCorruptError] = []
        found: list[DamagedSlice] = []
        for one in located:
            extent, (block, _) = one
            file = self._state(one)  # first: a repair while it is read must not go unseen
            known = self._known(block.header.hash, extent.unit_index, layer)
            try:
                read_runs(self._session_id, self._files, layer, [one])
            except SliceCorruptError as error:
                self._check_generation([one])
                errors.append(error)
            except OSError as error:
                if error.errno not in (errno.EIO, errno.ENOENT):
                    raise
                self._check_not_dropped(one)
                errors.append(self._error(one, layer, unreadable=True))
            else:
                if known is not None and self._quarantine is not None:
                    self._quarantine.lift(known)
                continue
            found.append(damaged_now(errors[-1], block_hash=block.header.hash, file=file))
        if self._quarantine is not None:
            self._quarantine.add(found)
        return errors

    def _check_generation(self, located: Sequence[Located]) -> None:
        """Raise SegmentRewrittenError where other bytes than expected are no damage."""
        headers = {block.place.segment_number: block.header for _, (block, _) in located}
        for number, known in headers.items():
            path = segment_path(self._folder, number)
            try:
                with self._files.use(number) as fd:
                    header = SegmentHeader.unpack(read_page(fd, 0), path)
            except OSError:
                continue  # the disk refuses, or it is missing: that is damage
            if header is not None and header.generation != known.generation:
                raise SegmentRewrittenError(path.name)

    def _known(self, block_hash: int, unit: int, layer: int) -> DamagedSlice | None:
        return self._quarantine.find(block_hash, unit, layer) if self._quarantine else None

    def _state(self, one: Located) -> FileState:
        _, (block, _) = one
        return FileState.of(segment_path(self._folder, block.place.segment_number))

    def _check_not_dropped(self, one: Located) -> None:
        """Raise where a unit was dropped on purpose, or its session was; else it is damaged."""
        extent, _ = one
        gone = why_gone(self._folder, self._session_id, extent.unit_index)
        if isinstance(gone, UnitDroppedError) or not still_there(self._folder):
            raise gone

    def _error(self, one: Located, layer: int, *, unreadable: bool) -> SliceCorruptError:
        extent, (block, _) = one
        sequence = block.header.sequence
        return SliceCorruptError(
            self._session_id, sequence, extent.unit_index, layer, unreadable=unreadable
        )
