"""What tests do to stored bytes, and to the checks that should find it."""

from __future__ import annotations

from pathlib import Path


def flip_byte_of(root: Path, session_id: str, content: bytes) -> None:
    """Flip a bit of the first byte of some content, wherever it lies in a session's segments."""
    for path in (root / "sessions" / session_id).glob("seg-*.kvs"):
        at = path.read_bytes().find(content)
        if at >= 0:
            with path.open("r+b") as file:
                file.seek(at)
                file.write(bytes([content[0] ^ 1]))
            return
    raise AssertionError("not on disk")


class AnyChecksum(int):
    """A checksum that is whatever it is compared with: for mutants that look at none."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__
