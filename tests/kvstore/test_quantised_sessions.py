"""A quantised session from end to end: one set of bytes, whichever tier and thread reads it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore.encoding_codec as codec
from kvstore.arena import Arena
from kvstore.encoding import Encoding, Layout
from kvstore.errors import GeometryMismatchError, NotFiniteError, SliceCorruptError
from kvstore.geometry import Geometry, Tier
from kvstore.glance import glance
from kvstore.limits import BlockLimits
from kvstore.paths import session_hash
from kvstore.ramtier import RamTier
from kvstore.reader import SessionReader
from kvstore.scan import scan_log
from kvstore.verify import verify_store
from kvstore.writer import SessionWriter
from tests.kvstore.samples import SESSION, Sample, open_writer, read_unit, read_units, sample

SHAPE = Geometry(layer_count=3, kv_head_count=2, head_dim=17, element="bfloat16")
QUANTISED: list[Encoding] = ["int8", "int4"]
# A segment of many blocks: what is read lies in runs of neighbours.
LIMITS = BlockLimits(block_tokens=60, segment_bytes=1 << 20, min_free_bytes=0)


def finite(index: int, token_count: int | None = None) -> Sample:
    """As `sample`, with keys and values that a model could make."""
    unit, keys, values = sample(index, geometry=SHAPE, token_count=token_count)
    rng = np.random.default_rng([index, 5])
    halves = [rng.standard_normal(array.shape).astype(np.float32) for array in (keys, values)]
    halves[0][..., 3] += 70
    bits = [(half.view(np.uint32) >> 16).astype(np.uint16) for half in halves]
    return unit, bits[0], bits[1]


def write(root: Path, encoding: Encoding, unit_count: int, **changes: Any) -> SessionWriter:
    """An open writer that has appended and published the units."""
    arguments = {"geometry": SHAPE, "encoding": encoding, "limits": LIMITS}
    writer = open_writer(root, **(arguments | changes))
    for index in range(unit_count):
        writer.append(*finite(index), resume=b"")
        writer.publish()
    return writer


def as_codec_gives(encoding: Encoding, index: int, layer: int) -> tuple[bytes, bytes]:
    """Keys and values of a unit as they come out of the codec, without a store."""
    layout = Layout(SHAPE, encoding)
    unit, keys, values = finite(index)
    data = np.empty(layout.extent_bytes(unit.token_count), np.uint8)
    codec.encode_extent(layout, keys[layer], values[layer], data)
    out = [np.empty_like(keys[layer]) for _ in range(2)]
    codec.decode_extent(layout, data, *out)
    return out[0].tobytes(), out[1].tobytes()


def read_bytes(reader: SessionReader, index: int, layer: int) -> tuple[bytes, bytes, Tier]:
    keys, values, tier = read_unit(reader, reader.snapshot(), index, layer)
    return keys.tobytes(), values.tobytes(), tier


@pytest.mark.parametrize("encoding", QUANTISED)
def test_memory_and_disk_give_the_same_bytes_and_they_are_the_codecs(
    root: Path, encoding: Encoding
) -> None:
    writer = write(root, encoding, 40)
    reader = SessionReader.open(root, SESSION)
    hot = [read_bytes(reader, index, 1) for index in range(40)]
    assert hot[-1][2] is Tier.HOT
    writer.flush()
    writer.close()
    cold_reader = SessionReader.open(root, SESSION)
    cold = [read_bytes(cold_reader, index, 1) for index in range(40)]
    assert {tier for _, _, tier in cold} == {Tier.DISK}
    for index in range(40):
        assert hot[index][:2] == cold[index][:2] == as_codec_gives(encoding, index, 1)


@pytest.mark.parametrize("encoding", QUANTISED)
@pytest.mark.parametrize("at_once", [1, 3, 500])
def test_units_read_together_in_any_order_are_those_read_alone(
    root: Path, encoding: Encoding, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = write(root, encoding, 40)
    writer.flush()
    writer.close()
    layout = Layout(SHAPE, encoding)
    monkeypatch.setattr("kvstore.extents._SCRATCH_BYTES", at_once * layout.extent_bytes(12))
    reader = SessionReader.open(root, SESSION)
    shuffled = np.random.default_rng(1).permutation(40).tolist()
    for order in (list(range(40)), shuffled, [*range(20, 30), *range(5), 39]):
        keys, values, _ = read_units(reader, reader.snapshot(), order, 2)
        alone = [as_codec_gives(encoding, index, 2) for index in order]
        assert keys.tobytes() == b"".join(each[0] for each in alone)
        assert values.tobytes() == b"".join(each[1] for each in alone)


def wrong_reads_of_two_threads(root: Path) -> int:
    """Reads by two threads, in step, that are not what the codec gives."""
    reader = SessionReader.open(root, SESSION)
    reads = [index for index in range(40) for _ in range(3)]
    in_step = threading.Barrier(2, timeout=20)
    waiting = codec.decode_extent

    def read(indices: list[int]) -> int:
        wrong = 0
        for index in indices:
            got = read_bytes(reader, index, 0)
            wrong += got[:2] != as_codec_gives("int8", index, 0)
        return wrong

    def decode_in_step(*arguments: Any) -> None:
        in_step.wait()  # both have filled their buffers
        waiting(*arguments)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr("kvstore.extents.decode_extent", decode_in_step)
        wrong = sum(pool.map(read, [reads, reads[::-1]]))
    reader.close()
    return wrong


def test_threads_do_not_decode_each_others_bytes(root: Path) -> None:
    writer = write(root, "int8", 40)
    writer.flush()
    writer.close()
    assert wrong_reads_of_two_threads(root) == 0


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # garbage is decoded
def test_the_test_of_threads_notices_a_buffer_that_they_share(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = write(root, "int8", 40)
    writer.flush()
    writer.close()
    shared = np.empty(1 << 20, np.uint8)
    monkeypatch.setattr("kvstore.extents.scratch_bytes", lambda count: shared[:count])
    assert wrong_reads_of_two_threads(root) > 0


@pytest.mark.parametrize("encoding", QUANTISED)
def test_no_flipped_bit_of_a_quantised_extent_is_silent(root: Path, encoding: Encoding) -> None:
    writer = write(root, encoding, 12)
    writer.flush()
    writer.close()
    folder = root / "sessions" / SESSION
    place = scan_log(folder, SESSION, session_hash(SESSION)).blocks[0]
    extent_bytes = place.layout.extent_bytes(place.header.token_count, place.header.unit_count)
    assert verify_store(root).damage == ()
    rng = np.random.default_rng(2)
    for _ in range(60):
        layer = int(rng.integers(0, SHAPE.layer_count))
        offset = place.offset + place.header.layer_offset(place.layout, layer)
        offset += int(rng.integers(0, extent_bytes))
        with open(folder / "seg-000000.kvs", "r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1 << int(rng.integers(0, 8))]))
            file.flush()
            assert [found.layer_index for found in verify_store(root).damage] == [layer]
            reader = SessionReader.open(root, SESSION)
            with pytest.raises(SliceCorruptError):
                read_units(reader, reader.snapshot(), range(place.header.unit_count), layer)
            reader.close()
            file.seek(offset)
            file.write(bytes([byte]))


def test_a_unit_with_nan_is_refused_by_name_and_the_session_goes_on(root: Path) -> None:
    writer = write(root, "int4", 3)
    unit, keys, values = finite(3)
    bad = values.copy()
    bad[2, 0, 1, 4] = 0x7FC0  # NaN in bfloat16
    with pytest.raises(NotFiniteError, match=r"unit 3, layer 2 .* as int4: its values hold NaN"):
        writer.append(unit, keys, bad, resume=b"")
    writer.append(unit, keys, values, resume=b"")
    writer.publish()
    reader = SessionReader.open(root, SESSION)
    for index in range(4):
        assert read_bytes(reader, index, 2)[:2] == as_codec_gives("int4", index, 2)


@pytest.mark.parametrize("encoding", QUANTISED)
def test_units_of_one_token_come_back_with_their_keys_untouched(
    root: Path, encoding: Encoding
) -> None:
    writer = open_writer(root, geometry=SHAPE, encoding=encoding, limits=LIMITS)
    for index in range(5):
        writer.append(*finite(index, token_count=1), resume=b"")
    writer.flush()
    writer.publish()
    writer.close()
    reader = SessionReader.open(root, SESSION)
    for index in range(5):
        keys = read_unit(reader, reader.snapshot(), index, 2)[0]
        assert keys.tobytes() == finite(index, token_count=1)[1][2].tobytes()


def test_a_session_keeps_the_encoding_it_was_begun_with(root: Path) -> None:
    writer = write(root, "int8", 5)
    reader = SessionReader.open(root, SESSION)
    assert (reader.encoding, reader.geometry) == ("int8", SHAPE)
    writer.flush()
    writer.close()
    for other in ("model", "int4"):
        with pytest.raises(GeometryMismatchError, match=f"encoding='int8'.*encoding='{other}'"):
            open_writer(root, geometry=SHAPE, encoding=other, limits=LIMITS)
    seen = glance(root, SESSION)
    assert seen is not None
    assert seen.encoding == "int8"
    (root / "sessions" / SESSION / "CTL").unlink()
    assert SessionReader.open(root, SESSION).encoding == "int8"


@pytest.mark.parametrize("encoding", QUANTISED)
def test_units_as_they_are_stored_are_what_was_appended_from_every_tier(
    root: Path, encoding: Encoding
) -> None:
    count = 20
    write(root, encoding, count).close()
    writer = open_writer(root, geometry=SHAPE, encoding=encoding, limits=LIMITS)
    for index in range(writer.visible_unit_count, count + 3):
        writer.append(*finite(index), resume=b"")
        writer.publish()
    layout = Layout(SHAPE, encoding)
    arena = Arena.create(
        root,
        budget_bytes=512 * 1024,
        slot_bytes=layout.extent_bytes(12),
        shm_dir=root / "shm",
    )
    reader = SessionReader.open(root, SESSION, ram=RamTier(root, shm_dir=root / "shm"))
    snapshot = reader.snapshot()
    units = [7, 0, count + 2, 3]
    expected = b""
    for unit in units:
        kept, keys, values = finite(unit)
        data = np.empty(layout.extent_bytes(kept.token_count), np.uint8)
        codec.encode_extent(layout, keys[1], values[1], data)
        expected += data.tobytes()
    out = np.empty(len(expected), np.uint8)
    assert reader.read_stored(snapshot, 1, units, out) == [
        Tier.DISK,
        Tier.DISK,
        Tier.HOT,
        Tier.DISK,
    ]
    assert out.tobytes() == expected
    found = [reader.stored_slice(snapshot, 0, layer) for layer in range(SHAPE.layer_count)]
    slices, checksums = zip(*(one for one in found if one is not None), strict=True)
    arena.keep(session_hash(SESSION), 0, slices, checksums)
    out[:] = 0
    assert reader.read_stored(snapshot, 1, units, out)[1] == Tier.RAM
    assert out.tobytes() == expected
    for wrong in (out[:-1], out.view(np.int8)):
        with pytest.raises(ValueError, match="out must be"):
            reader.read_stored(snapshot, 1, units, wrong)
    reader.close()
    arena.close()
    writer.close()


def test_units_that_are_not_quantised_are_not_given_as_stored(root: Path) -> None:
    writer = write(root, "model", 3)
    reader = SessionReader.open(root, SESSION)
    with pytest.raises(ValueError, match="quantised"):
        reader.read_stored(reader.snapshot(), 0, [0], np.empty(8, np.uint8))
    reader.close()
    writer.close()
