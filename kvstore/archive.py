"""What a session looks like as one file: a plain tar that says what it is and checks itself.

    lookback-session.json   what follows: the session, its layout, every file's size, in order
    session.json            the session's record, as it lies in its folder
    seg-000000.kvs ...      its segments up to the last durable block
    manifest.json           XXH3-64 of every file before it, and its own

The manifest comes last so that an archive can be written to a pipe in one pass. Without it, it is
torn. The key index and the CTL page are derived and stay out.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

import xxhash

from kvstore.errors import InvalidSessionIdError
from kvstore.format import FORMAT_VERSION
from kvstore.paths import RECORD_NAME, check_session_id

HEAD_NAME = "lookback-session.json"
MANIFEST_NAME = "manifest.json"
ARCHIVE_VERSION = 1
MAX_JSON_BYTES = 64 << 20
"""No list of files is longer: a number in a tar header must not decide how much memory is taken."""

_SEGMENT = re.compile(r"seg-(\d{6,18})\.kvs")


class BadArchiveError(Exception):
    """It is no session's archive, is torn or damaged, or of another version."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the archive cannot be used: {reason}")
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveHead:
    """What an archive says of itself before anything else."""

    session_id: str
    store_format_version: int
    first_unit: int
    """The first unit that is there: those before it were dropped."""
    unit_count: int
    """Units of the session's history, the dropped ones included."""
    block_count: int
    """Blocks that are there."""
    element: str | None
    encoding: str | None
    files: tuple[tuple[str, int], ...]
    """(name, size in bytes) of the record and of every segment, in order."""

    @property
    def byte_count(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.files)

    def pack(self) -> bytes:
        """The first file of the archive."""
        fields = {"format": "lookback-session", "version": ARCHIVE_VERSION, **asdict(self)}
        return json.dumps(fields, indent=1).encode() + b"\n"

    @classmethod
    def unpack(cls, data: bytes) -> ArchiveHead:
        """Read the first file of an archive.

        Raises:
            BadArchiveError: it is none, is of another version, or names what no session has.
        """
        try:
            fields: dict[str, Any] = json.loads(data)
            if fields.pop("format") != "lookback-session":
                raise BadArchiveError("it is not one of a session")
            version = fields.pop("version")
            if version != ARCHIVE_VERSION:
                raise BadArchiveError(f"it has version {version}, this build reads version 1")
            files = tuple((str(name), int(size)) for name, size in fields.pop("files"))
            head = cls(files=files, **fields)
            check_session_id(head.session_id)
        except InvalidSessionIdError as error:
            raise BadArchiveError(str(error)) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadArchiveError(f"{HEAD_NAME} cannot be read ({error})") from error
        if head.store_format_version != FORMAT_VERSION:
            raise BadArchiveError(
                f"its blocks have format version {head.store_format_version}, "
                f"this build reads {FORMAT_VERSION}"
            )
        _check_files(files)
        return head


def _check_files(files: tuple[tuple[str, int], ...]) -> None:
    """Only what a session's folder holds, each once, in order: no name leads anywhere else."""
    if not files or files[0][0] != RECORD_NAME:
        raise BadArchiveError(f"it does not begin with {RECORD_NAME}")
    last = -1
    for name, size in files[1:]:
        match = _SEGMENT.fullmatch(name)
        if match is None or size <= 0:
            raise BadArchiveError(f"it lists {name!r} of {size} bytes, which is no segment")
        if int(match[1]) <= last:
            raise BadArchiveError(f"it lists {name!r} out of order")
        last = int(match[1])


def segment_number(name: str) -> int:
    """The number in a segment's name, as `unpack` let it pass."""
    match = _SEGMENT.fullmatch(name)
    assert match is not None
    return int(match[1])


def pack_manifest(checksums: dict[str, str]) -> bytes:
    """The last file of an archive, from the XXH3-64 (hex) of each file before it."""
    content = json.dumps({"xxh3": checksums}, sort_keys=True)
    own = xxhash.xxh3_64_hexdigest(content.encode())
    return json.dumps({"manifest": content, "xxh3": own}, indent=1).encode() + b"\n"


def check_manifest(data: bytes, checksums: dict[str, str]) -> None:
    """Raise BadArchiveError unless the manifest is whole and names exactly these checksums."""
    try:
        outer = json.loads(data)
        content: str = outer["manifest"]
        if xxhash.xxh3_64_hexdigest(content.encode()) != outer["xxh3"]:
            raise BadArchiveError(f"{MANIFEST_NAME} does not match its checksum")
        expected: dict[str, str] = json.loads(content)["xxh3"]
        names = set(expected) | set(checksums)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadArchiveError(f"{MANIFEST_NAME} cannot be read ({error})") from error
    for name in sorted(names):
        if expected.get(name) != checksums.get(name):
            raise BadArchiveError(f"{name} does not match its checksum")
