"""Damage is named, never served, and never mistaken for a torn tail (or the other way round)."""

from __future__ import annotations

import dataclasses
import random
import shutil
from pathlib import Path

import pytest

from kvstore.blockread import BlockPlace
from kvstore.errors import (
    BlockCorruptError,
    FormatVersionError,
    GeometryMismatchError,
    KVStoreError,
    SliceCorruptError,
)
from kvstore.format import PAGE_BYTES, BlockHeader, SegmentHeader
from kvstore.geometry import Geometry
from kvstore.paths import segment_numbers, segment_path, session_hash
from kvstore.reader import SessionReader
from kvstore.scan import scan_log
from kvstore.verify import verify_store
from tests.kvstore.samples import LIMITS, SESSION, append, open_writer, read_unit, unit_is

UNIT_COUNT = 30


def folder_of(root: Path) -> Path:
    return root / "sessions" / SESSION


def build(root: Path, unit_count: int = UNIT_COUNT) -> list[BlockPlace]:
    """A closed session of several blocks and segments; where its blocks lie."""
    writer = open_writer(root)
    append(writer, unit_count)
    writer.flush()
    writer.close()
    blocks = places(root)
    assert blocks[-1].segment_number >= 2
    return blocks


def places(root: Path) -> list[BlockPlace]:
    return scan_log(folder_of(root), SESSION, session_hash(SESSION)).blocks


def overwrite(root: Path, place: BlockPlace, offset: int, data: bytes) -> None:
    with open(segment_path(folder_of(root), place.segment_number), "r+b") as file:
        file.seek(place.offset + offset)
        file.write(data)


def read_all(root: Path) -> bool:
    """Whether a new reader finds every unit as it was written."""
    reader = SessionReader.open(root, SESSION)
    try:
        snapshot = reader.snapshot()
        return snapshot.unit_count == UNIT_COUNT and all(
            unit_is(reader, snapshot, index) for index in range(UNIT_COUNT)
        )
    finally:
        reader.close()


def test_no_flipped_bit_of_a_segment_is_silent(root: Path) -> None:
    build(root)
    rng = random.Random(1)
    segments = sorted(folder_of(root).glob("seg-*.kvs"))
    detected = harmless = 0
    for _ in range(250):
        path = rng.choice(segments)
        offset = rng.randrange(path.stat().st_size)
        with open(path, "r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1 << rng.randrange(8)]))
            file.flush()
            try:
                assert read_all(root), f"{path.name} at {offset} was served"
                found = bool(verify_store(root).damage)
                harmless += not found
            except KVStoreError:
                found = True
                assert verify_store(root).damage, f"{path.name} at {offset} was not reported"
            detected += found
            file.seek(offset)
            file.write(bytes([byte]))
    assert read_all(root)
    assert detected > 60
    # Padding up to the next page is no part of the data.
    assert detected + harmless == 250


@pytest.mark.parametrize("which", ["middle", "last", "first of the last segment"])
def test_a_damaged_block_header_is_told_as_one_and_not_as_a_missing_segment(
    root: Path, which: str
) -> None:
    writer = open_writer(root, limits=dataclasses.replace(LIMITS, block_tokens=1))
    append(writer, UNIT_COUNT - 1)
    writer.flush()
    writer.close()
    blocks = places(root)
    last = blocks[-1].segment_number
    of_last = [block for block in blocks if block.segment_number == last]
    assert len(of_last) > 1
    block = {
        "middle": [block for block in blocks if block.segment_number == 1][1],
        "last": of_last[-1],
        "first of the last segment": of_last[0],
    }[which]
    overwrite(root, block, 24, b"\xa5\x5a")
    with pytest.raises(BlockCorruptError) as error:
        SessionReader.open(root, SESSION)
    assert (error.value.block_index, error.value.reason) == (
        block.header.sequence,
        "its header is damaged",
    )


def test_a_missing_segment_is_told_as_one(root: Path) -> None:
    blocks = build(root)
    last = blocks[-1].segment_number
    first_gone = next(block for block in blocks if block.segment_number == last)
    segment_path(folder_of(root), last).unlink()
    with pytest.raises(BlockCorruptError) as error:
        SessionReader.open(root, SESSION)
    assert (error.value.block_index, error.value.reason) == (
        first_gone.header.sequence,
        "its segment is missing",
    )


@pytest.mark.parametrize("offset", range(0, 768, 8))
def test_a_damaged_control_page_costs_no_unit(root: Path, offset: int) -> None:
    build(root)
    path = folder_of(root) / "CTL"
    page = bytearray(path.read_bytes())
    page[offset] ^= 0x10
    path.write_bytes(page)
    assert read_all(root)
    writer = open_writer(root)
    assert writer.durable_unit_count == UNIT_COUNT
    assert writer.recovery.epoch >= 2
    writer.close()
    assert read_all(root)


def test_a_control_page_that_is_gone_costs_no_unit(root: Path) -> None:
    build(root)
    (folder_of(root) / "CTL").unlink()
    assert read_all(root)
    writer = open_writer(root)
    assert writer.durable_unit_count == UNIT_COUNT
    assert writer.recovery.epoch == 2
    writer.close()


def test_a_damaged_header_below_durable_blocks_is_refused_by_name(root: Path) -> None:
    blocks = build(root)
    (folder_of(root) / "CTL").unlink()
    for damaged in (0, 3, len(blocks) - 2):
        overwrite(root, blocks[damaged], 100, b"\xff\xff\xff")
        for open_it in (open_writer, lambda root: SessionReader.open(root, SESSION)):
            with pytest.raises(BlockCorruptError) as error:
                open_it(root)
            assert error.value.block_index == damaged
        overwrite(root, blocks[damaged], 0, blocks[damaged].header.pack())
    assert read_all(root)


@pytest.mark.parametrize("offset", [0, 200, PAGE_BYTES + 10, -10_000])
def test_the_last_acknowledged_block_is_protected_by_the_control_page(
    root: Path, offset: int
) -> None:
    last = build(root)[-1]
    at = offset % (last.stop - last.offset)
    overwrite(root, last, at, b"\xa5" * 8000 if at else bytes(PAGE_BYTES))
    with pytest.raises(BlockCorruptError) as error:
        open_writer(root)
    assert error.value.block_index == last.header.sequence


def test_damage_to_one_slice_is_an_error_for_that_unit_and_layer_only(root: Path) -> None:
    block = build(root)[2]
    offset = block.header.layer_offset(block.layout, 1) + 20
    overwrite(root, block, offset, b"\x00\x01\x02")
    reader = SessionReader.open(root, SESSION)
    snapshot = reader.snapshot()
    unit = block.header.first_unit
    with pytest.raises(SliceCorruptError) as error:
        read_unit(reader, snapshot, unit, 1)
    assert (error.value.block_index, error.value.unit_index, error.value.layer_index) == (
        2,
        unit,
        1,
    )
    read_unit(reader, snapshot, unit, 0)
    assert all(unit_is(reader, snapshot, index) for index in range(UNIT_COUNT) if index != unit)
    (damage,) = verify_store(root).damage
    assert (damage.block_index, damage.unit_index, damage.layer_index) == (2, unit, 1)


@pytest.mark.parametrize("keep_control", [True, False])
def test_a_missing_segment_is_refused(root: Path, keep_control: bool) -> None:
    blocks = build(root)
    if not keep_control:
        (folder_of(root) / "CTL").unlink()
    numbers = segment_numbers(folder_of(root))
    for number in numbers[: len(numbers) if keep_control else -1]:
        path = segment_path(folder_of(root), number)
        aside = path.with_suffix(".aside")
        path.rename(aside)
        first = next(b.header.sequence for b in blocks if b.segment_number == number)
        for open_it in (open_writer, lambda root: SessionReader.open(root, SESSION)):
            with pytest.raises(BlockCorruptError) as error:
                open_it(root)
            assert error.value.block_index == first
        assert any(d.block_index == first for d in verify_store(root).damage)
        aside.rename(path)
    assert read_all(root)


def test_a_segment_cut_short_below_an_acknowledged_block_is_refused(root: Path) -> None:
    last = build(root)[-1]
    path = segment_path(folder_of(root), last.segment_number)
    with open(path, "r+b") as file:
        file.truncate(last.stop - PAGE_BYTES)
    with pytest.raises(BlockCorruptError) as error:
        open_writer(root)
    assert error.value.block_index == last.header.sequence


def test_a_torn_tail_without_proof_is_cut_and_the_log_goes_on(root: Path) -> None:
    last = build(root)[-1]
    (folder_of(root) / "CTL").unlink()
    overwrite(root, last, last.header.layer_offset(last.layout, 0), b"\xff" * 100)
    writer = open_writer(root)
    assert writer.durable_unit_count == last.header.first_unit
    assert writer.recovery.torn_bytes == last.stop - last.offset
    append(writer, UNIT_COUNT - last.header.first_unit)
    writer.flush()
    writer.close()
    assert read_all(root)


def test_a_segment_of_another_session_is_refused_and_left_alone(root: Path) -> None:
    build(root)
    other = root / "sessions" / "other"
    shutil.copytree(folder_of(root), other)
    before = (other / "seg-000000.kvs").read_bytes()
    for keep_control in (True, False):
        if not keep_control:
            (other / "CTL").unlink()
        with pytest.raises(BlockCorruptError, match="belongs to session 'cam-1'"):
            SessionReader.open(root, "other")
    assert (other / "seg-000000.kvs").read_bytes() == before
    assert any(damage.session_id == "other" for damage in verify_store(root).damage)


def test_another_geometry_is_refused(root: Path) -> None:
    build(root)
    other = Geometry(layer_count=2, kv_head_count=2, head_dim=32, element="float32")
    with pytest.raises(GeometryMismatchError):
        open_writer(root, geometry=other)
    assert read_all(root)


def test_a_file_of_another_version_is_refused_by_name(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr("kvstore.format.FORMAT_VERSION", 1)
        build_with_older = open_writer(root)
        append(build_with_older, 3)
        build_with_older.flush()
        build_with_older.close()
    (folder_of(root) / "CTL").unlink()
    with pytest.raises(FormatVersionError) as error:
        open_writer(root)
    assert (error.value.version, error.value.supported) == (1, 2)


def test_header_pages_reject_every_flipped_bit(root: Path) -> None:
    place = build(root)[0]
    path = segment_path(folder_of(root), 0)
    block_page = place.header.pack()
    segment_page = path.read_bytes()[:PAGE_BYTES]
    assert SegmentHeader.unpack(segment_page, path) is not None
    rng = random.Random(2)
    for _ in range(500):
        bit = rng.randrange(PAGE_BYTES * 8)
        for page, kind in ((block_page, BlockHeader), (segment_page, SegmentHeader)):
            damaged = bytearray(page)
            damaged[bit // 8] ^= 1 << bit % 8
            assert kind.unpack(damaged, path) is None


def test_headers_keep_every_field_they_were_packed_with(root: Path) -> None:
    place = build(root)[1]
    block = dataclasses.replace(place.header, generation=3, hash=0)
    unpacked = BlockHeader.unpack(block.pack(), root)
    assert unpacked is not None
    assert dataclasses.replace(unpacked, hash=0) == block
    segment = SegmentHeader.unpack(
        segment_path(folder_of(root), 1).read_bytes()[:PAGE_BYTES], folder_of(root)
    )
    assert segment is not None
    assert segment.layout == place.layout
    rewritten = dataclasses.replace(segment, generation=2, chain_end_hash=2**64 - 1)
    assert SegmentHeader.unpack(rewritten.pack(), root) == rewritten
