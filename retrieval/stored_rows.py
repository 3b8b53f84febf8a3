"""Checking the rows of an index file by reads, for those that must survive a bad disk.

Through a mapping, a sector that cannot be read is a SIGBUS, which ends the process.
"""

from __future__ import annotations

from retrieval.errors import IndexDamagedError
from retrieval.index_file import IndexFile

_READ_BYTES = 1 << 22


def first_unsound_stored_row(file: IndexFile, count: int) -> int:
    """Return the first of the first `count` rows that fails its checksum; `count` if none does.

    Raises:
        IndexDamagedError: the disk does not give rows out, or the file ends before them.
    """
    size = file.layout.chunk_row_count
    step = max(1, min(size, _READ_BYTES // file.layout.row_bytes))
    for first_row_index in range(0, count, size):
        end = min(size, count - first_row_index)
        for place in range(0, end, step):
            row_index = first_row_index + place
            row_count = min(step, end - place)
            try:
                part = file.read_rows(row_index, row_count)
            except OSError as error:
                raise IndexDamagedError(
                    file.path, f"its rows from {row_index} on cannot be read: {error}"
                ) from error
            sound_count = part.first_unsound(0, row_count, first_row_index=row_index)
            if sound_count < row_count:
                return row_index + sound_count
    return count
