"""What tells one video from another, so that two are not pushed into one session by mistake."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import xxhash

_READ_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceLabel:
    """Stays with a session from its first push on; see `LookbackClient.push`."""

    fingerprint: str
    """Equal for the same video; 1 to 200 characters."""
    name: str
    """What people call it, at most 255 characters; not compared."""


def label_of_file(path: str | Path) -> SourceLabel:
    """Returns the label of a regular file: its size, and a hash of its first and last MiB.

    Equal for a file that was moved or renamed, and different once it has grown.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        hasher = xxhash.xxh3_64(file.read(_READ_BYTES))
        file.seek(max(0, size_bytes - _READ_BYTES))
        hasher.update(file.read(_READ_BYTES))
    # A name need not be text: what of it is none would not fit in a message.
    name = os.fsencode(Path(path).name).decode("utf-8", "replace")
    return SourceLabel(fingerprint=f"{size_bytes} bytes, xxh3 {hasher.hexdigest()}", name=name)
