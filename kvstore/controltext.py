"""The texts of the CTL page: what the writer of an epoch says once.

Two texts are used in turn by odd and even epochs: a reader finds its epoch's whole while the next
writer is still writing. Each is there twice, with a checksum.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

import xxhash

from kvstore.encoding import Layout, encoding_named
from kvstore.geometry import Geometry

TEXTS_START, TEXTS_STOP = 1024, 4096
"""Where they lie in the page."""
_SLOT_BYTES, _COPY_BYTES = 1536, 768
_HEAD = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class ControlText:
    """What the writer of an epoch wrote once."""

    layout: Layout
    hot_tail_path: Path


def read_text(page: mmap.mmap, epoch: int) -> ControlText | None:
    """What the writer of `epoch`, which must be current, wrote once; None when damaged."""
    slot = _slot(epoch)
    for start in range(slot, slot + _SLOT_BYTES, _COPY_BYTES):
        length, check = _HEAD.unpack_from(page, start)
        data = page[start + _HEAD.size : start + _COPY_BYTES][:length]
        if xxhash.xxh3_64_intdigest(data, seed=epoch) == check:
            break
    else:
        return None
    layers, heads, dim, element, encoding, path = data.decode().split("\n", 5)
    geometry = Geometry(
        layer_count=int(layers), kv_head_count=int(heads), head_dim=int(dim), element=element
    )
    return ControlText(Layout(geometry, encoding_named(encoding)), Path(path))


def write_text(page: mmap.mmap, epoch: int, text: ControlText) -> None:
    """Put the text of an epoch that is about to begin."""
    shape = text.layout.geometry
    numbers = [shape.layer_count, shape.kv_head_count, shape.head_dim]
    names = [shape.element, text.layout.encoding, str(text.hot_tail_path)]
    data = "\n".join([*map(str, numbers), *names]).encode()
    if len(data) > _COPY_BYTES - _HEAD.size:
        raise ValueError(f"the hot tail's path is too long: {text.hot_tail_path}")
    check = xxhash.xxh3_64_intdigest(data, seed=epoch)
    copy = (_HEAD.pack(len(data), check) + data).ljust(_COPY_BYTES, b"\0")
    start = _slot(epoch)
    page[start : start + _SLOT_BYTES] = 2 * copy


def _slot(epoch: int) -> int:
    return TEXTS_START + epoch % 2 * _SLOT_BYTES
