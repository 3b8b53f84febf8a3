"""Which root a process serves, and whether the kernel's locks hold for everyone who reaches it."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

ROOT_ID_NAME = "root-id"
_ROOT_ID = re.compile(r"[0-9a-f]{32}")
_LOCAL_KINDS = frozenset(
    ["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs", "tmpfs", "ramfs", "overlay"]
)


class RootIdDamagedError(Exception):
    """The file that names the root says something else than a name."""


def read_root_id(root: Path) -> str | None:
    """Return the name of a root; None when nobody has given it one.

    Raises:
        RootIdDamagedError: the file holds no name.
    """
    path = root / ROOT_ID_NAME
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        return None
    if _ROOT_ID.fullmatch(text) is None:
        raise RootIdDamagedError(f"{path} must hold 32 hexadecimal digits, got {text[:50]!r}")
    return text


def make_root_id(root: Path) -> str:
    """Return the name of a root, which gets one now if it has none; the same for all who ask.

    Raises:
        RootIdDamagedError: the file holds no name.
        OSError: it cannot be written.
    """
    aside = root / f"{ROOT_ID_NAME}.{secrets.token_hex(8)}.tmp"
    while (found := read_root_id(root)) is None:
        with open(aside, "w") as file:
            file.write(secrets.token_hex(16) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(aside, root / ROOT_ID_NAME)  # whole, or somebody else's
        except FileExistsError:
            continue
        finally:
            aside.unlink()
    return found


def root_is_locked(root: Path) -> bool:
    """Whether a lock on a file under `root` keeps every other process that reaches it out.

    True of file systems of one machine only. Of one that is not known to be such, False: then the
    registry's lease alone decides who may write.
    """
    device = root.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    resolved = root.resolve()
    best, kind_of_best = -1, ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, rest = line.partition(" - ")
        fields, kind = mount.split(), rest.split()[0]
        if fields[2] == number:
            return kind in _LOCAL_KINDS
        # Subvolumes have numbers of their own: then the mount point tells.
        point = Path(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), fields[4]))
        if resolved.is_relative_to(point) and len(point.parts) > best:
            best, kind_of_best = len(point.parts), kind
    return kind_of_best in _LOCAL_KINDS
