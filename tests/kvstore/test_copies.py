"""Another location stands in for what the disk cannot give: the same bytes, or the same error."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

from kvstore.copies import StoreCopies
from kvstore.errors import BlockCorruptError, KVStoreError, SliceCorruptError, UnitDroppedError
from kvstore.export import export_session
from kvstore.format import PAGE_BYTES
from kvstore.importing import import_session
from kvstore.location import NOWHERE, SegmentAddress
from kvstore.paths import segment_numbers, segment_path
from kvstore.quarantine import Quarantine, quarantined
from kvstore.reader import SessionReader
from kvstore.session import SessionRecord, create_session
from kvstore.tablecache import TableCache
from kvstore.wholesegment import WholeSegment
from tests.kvstore.dropped import dropping_writer
from tests.kvstore.samples import LIMITS, SESSION, append, open_writer, read_unit, sample, unit_is
from tests.kvstore.test_damage import UNIT_COUNT, build, folder_of, overwrite, places
from tests.kvstore.test_dropping import floor_of
from tests.kvstore.thinned import append_scenes, is_part_of, thinning_writer

UNIT, LAYER = 9, 1
JUNK = b"\xa5\x5a\xa5"


@pytest.fixture
def store(root: Path) -> Path:
    return root / "store"


@pytest.fixture
def copy(root: Path) -> Path:
    """Where a copy goes; `snap` makes it."""
    return root / "copy"


def snap(store: Path, copy: Path) -> None:
    """Copy the store as it is."""
    shutil.copytree(store / "sessions", copy / "sessions")


def open_reader(store: Path, *copies: Path) -> SessionReader:
    return SessionReader.open(
        store,
        SESSION,
        quarantine=Quarantine(store, SESSION),
        location=StoreCopies(copies) if copies else NOWHERE,
    )


class CountedCopies(StoreCopies):
    """Copies that count how often each segment is read."""

    def __init__(self, *roots: Path) -> None:
        super().__init__(roots)
        self.read: Counter[int] = Counter()

    def segment(self, wanted: SegmentAddress) -> WholeSegment | None:
        self.read[wanted.number] += 1
        return super().segment(wanted)


def all_whole(reader: SessionReader, units: Iterable[int] = range(UNIT_COUNT)) -> bool:
    snapshot = reader.snapshot()
    return all(unit_is(reader, snapshot, unit) for unit in units)


def kv_whole(reader: SessionReader, unit: int) -> bool:
    """Whether keys and values are right, and so are the cells that tell where they lie."""
    snapshot = reader.snapshot()
    unit_, keys, values = sample(unit)
    same = [reader.cells(snapshot, unit).tolist() == unit_.cells.tolist()]
    for layer in range(len(keys)):
        got_keys, got_values, _ = read_unit(reader, snapshot, unit, layer)
        same += [got_keys.tobytes() == keys[layer].tobytes()]
        same += [got_values.tobytes() == values[layer].tobytes()]
    return all(same)


def slice_offset(store: Path, unit: int) -> tuple[Path, int]:
    """Where the unit's slice of LAYER lies."""
    reader = SessionReader.open(store, SESSION)
    block, position = reader._units.locate(reader.snapshot(), unit, LAYER)
    reader.close()
    path = segment_path(folder_of(store), block.place.segment_number)
    return path, block.extent_offset(LAYER, position)


def damage_at(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def damage_slice(store: Path, unit: int = UNIT) -> None:
    damage_at(*slice_offset(store, unit))


def test_a_damaged_slice_comes_from_the_copy_and_is_reported_all_the_same(
    store: Path, copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(store)
    snap(store, copy)
    damage_slice(store)
    without = open_reader(store)
    with pytest.raises(SliceCorruptError) as error:
        read_unit(without, without.snapshot(), UNIT, LAYER)
    assert error.value.unit_index == UNIT
    without.close()
    (store / "quarantine" / f"{SESSION}.log").unlink()
    caplog.clear()
    reader = open_reader(store, copy)
    for _ in range(2):  # found, and known before
        assert all_whole(reader)
    assert [(each.unit_index, each.layer_index) for each in quarantined(store, SESSION)] == [
        (UNIT, LAYER)
    ]
    assert [r.levelno for r in caplog.records if r.levelno >= logging.ERROR] == [logging.ERROR]
    assert "damaged keys and values are read from another location" in caplog.messages
    reader.close()


def regions(store: Path) -> dict[str, tuple[Path, int]]:
    """A byte of everything that an answer needs, in a block in the middle."""
    block = places(store)[3]
    path = segment_path(folder_of(store), block.segment_number)
    first_in_segment = next(p for p in places(store) if p.segment_number == block.segment_number)
    return {
        "segment header": (path, 24),
        "first block header": (path, first_in_segment.offset + 24),
        "block header": (path, block.offset + 24),
        "unit table": (path, block.offset + PAGE_BYTES + 8),
        "keys": (path, block.offset + block.header.layer_offset(block.layout, 0) + 3),
        "last layer": (path, block.offset + block.header.layer_offset(block.layout, 1) + 3),
    }


@pytest.mark.parametrize(
    "region",
    ["segment header", "first block header", "block header", "unit table", "keys", "last layer"],
)
@pytest.mark.parametrize("opened", ["before", "after"])
def test_damage_in_any_region_costs_nothing(
    store: Path, copy: Path, region: str, opened: str, caplog: pytest.LogCaptureFixture
) -> None:
    build(store)
    snap(store, copy)
    path, offset = regions(store)[region]
    reader = open_reader(store, copy) if opened == "before" else None
    damage_at(path, offset)
    if reader is None:
        with pytest.raises(KVStoreError):
            all_whole(open_reader(store))
        shutil.rmtree(store / "quarantine", ignore_errors=True)
        caplog.clear()
        reader = open_reader(store, copy)
    assert all_whole(reader)
    if opened == "after":
        assert any(record.levelno == logging.ERROR for record in caplog.records)
    reader.close()


@pytest.mark.parametrize("opened", ["before", "after"])
@pytest.mark.parametrize("which", [0, 1, -1], ids=["first", "middle", "last"])
def test_a_missing_segment_costs_nothing(
    store: Path, copy: Path, which: int, opened: str, caplog: pytest.LogCaptureFixture
) -> None:
    build(store)
    snap(store, copy)
    number = segment_numbers(folder_of(store))[which]
    reader = open_reader(store, copy) if opened == "before" else None
    if reader is not None:
        reader._files.forget(0)
    segment_path(folder_of(store), number).unlink()
    reader = reader or open_reader(store, copy)
    assert all(kv_whole(reader, unit) for unit in range(UNIT_COUNT))
    assert any(record.levelno == logging.ERROR for record in caplog.records)
    reader.close()


@pytest.mark.parametrize("fault", ["missing", "all headers damaged"])
def test_a_copys_segment_is_read_and_told_of_once_however_many_blocks_are_asked_for(
    store: Path, copy: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    writer = open_writer(store, limits=replace(LIMITS, block_tokens=1, segment_bytes=2**18))
    append(writer, 60)
    writer.flush()
    writer.close()
    snap(store, copy)
    gone = [block for block in places(store) if block.segment_number == 1]
    assert len(gone) > 3
    path = segment_path(folder_of(store), 1)
    if fault == "missing":
        path.unlink()
    else:
        for block in gone:
            damage_at(path, block.offset + 24)
    copies = CountedCopies(copy)
    caplog.clear()
    reader = SessionReader.open(store, SESSION, location=copies, tables=TableCache(2**20))
    snapshot = reader.snapshot()
    assert copies.read[1] == 1
    for unit in range(snapshot.unit_count):
        reader.cells(snapshot, unit)
    assert max(copies.read.values()) <= 2
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.__dict__["path"] for record in errors] == [path.name]
    assert all(kv_whole(reader, unit) for unit in range(60))
    reader.close()


def test_a_copy_that_has_caught_up_since_it_was_read_gives_what_came(
    store: Path, copy: Path
) -> None:
    blocks = build(store)
    snap(store, copy)
    current = segment_path(folder_of(copy), 1).read_bytes()
    of_segment = [block for block in blocks if block.segment_number == 1]
    old, new = of_segment[0].header.first_unit, of_segment[-1].header.first_unit
    reader = SessionReader.open(
        store, SESSION, location=StoreCopies([copy]), tables=TableCache(2**20)
    )
    snapshot = reader.snapshot()
    segment_path(folder_of(copy), 1).write_bytes(current[: of_segment[-1].offset])
    reader._files.forget(0)
    segment_path(folder_of(store), 1).unlink()
    assert kv_whole(reader, old)
    with pytest.raises(BlockCorruptError):
        reader.cells(snapshot, new)
    segment_path(folder_of(copy), 1).write_bytes(current)
    assert kv_whole(reader, new)
    reader.close()


def test_all_segments_may_be_missing(store: Path, copy: Path) -> None:
    build(store)
    snap(store, copy)
    for path in folder_of(store).glob("seg-*.kvs"):
        path.unlink()
    reader = open_reader(store, copy)
    assert all(kv_whole(reader, unit) for unit in range(UNIT_COUNT))
    reader.close()


def test_a_missing_segment_without_a_copy_costs_its_units_and_names_them(store: Path) -> None:
    blocks = build(store)
    reader = open_reader(store)
    snapshot = reader.snapshot()
    number = 1
    gone = [
        unit
        for block in blocks
        if block.segment_number == number
        for unit in range(
            block.header.first_unit, block.header.first_unit + block.header.unit_count
        )
    ]
    assert all_whole(reader)  # and its unit tables are known
    reader._files.forget(0)
    path = segment_path(folder_of(store), number)
    aside = path.rename(path.with_suffix(".aside"))
    for _ in range(2):
        for unit in gone:
            with pytest.raises(SliceCorruptError) as error:
                read_unit(reader, snapshot, unit, LAYER)
            assert error.value.unreadable
            assert error.value.unit_index == unit
    assert all_whole(reader, set(range(UNIT_COUNT)) - set(gone))
    aside.rename(path)
    assert all_whole(reader)
    assert quarantined(store, SESSION) == []
    evicted = open_reader(store)
    evicted._files.forget(0)
    evicted._units._tables.forget(evicted._units._number)
    path.unlink()
    with pytest.raises(BlockCorruptError, match="its segment is missing"):
        read_unit(evicted, evicted.snapshot(), gone[0], LAYER)
    reader.close()
    evicted.close()


def test_a_copy_that_is_damaged_too_leaves_the_error_and_the_next_copy_is_asked(
    store: Path, copy: Path, root: Path
) -> None:
    build(store)
    snap(store, copy)
    snap(store, root / "second")
    damage_slice(store)
    damage_slice(copy)
    reader = open_reader(store, copy)
    snapshot = reader.snapshot()
    with pytest.raises(SliceCorruptError) as error:
        read_unit(reader, snapshot, UNIT, LAYER)
    assert (error.value.unit_index, error.value.layer_index) == (UNIT, LAYER)
    assert all_whole(reader, set(range(UNIT_COUNT)) - {UNIT})
    reader.close()
    both = open_reader(store, copy, root / "second")
    assert all_whole(both)
    both.close()


def test_a_copy_that_is_damaged_too_is_told_of_once_a_segment(
    store: Path, copy: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(store)
    snap(store, copy)
    monkeypatch.setattr("kvstore.copies._MAX_TOLD", 2)
    first_units = {place.segment_number: place.header.first_unit for place in places(store)}
    for unit in first_units.values():
        damage_slice(store, unit)
        damage_slice(copy, unit)
    reader = open_reader(store, copy)
    snapshot = reader.snapshot()

    def told(units: Iterable[int]) -> int:
        caplog.clear()
        for unit in units:
            for _ in range(4):
                with pytest.raises(SliceCorruptError):
                    read_unit(reader, snapshot, unit, LAYER)
        message = "a copy of the store cannot give what is asked"
        return caplog.messages.count(message)

    two = list(first_units.values())[:2]
    assert told(two) == 2
    assert told(two) == 0
    assert told(first_units.values()) <= len(first_units)
    assert len(reader._units._elsewhere._location._faults._told) <= 2
    reader.close()


def test_a_copy_that_lags_lacks_what_is_newer(store: Path, copy: Path) -> None:
    build(store)
    snap(store, copy)
    writer = open_writer(store)
    append(writer, UNIT_COUNT)
    writer.flush()
    writer.close()
    old, new = 3, UNIT_COUNT + 5
    damage_slice(store, old)
    damage_slice(store, new)
    reader = open_reader(store, copy)
    assert unit_is(reader, reader.snapshot(), old)
    with pytest.raises(SliceCorruptError) as error:
        read_unit(reader, reader.snapshot(), new, LAYER)
    assert error.value.unit_index == new
    reader.close()
    newest = segment_numbers(folder_of(store))[-1]
    assert newest not in segment_numbers(copy / "sessions" / SESSION)
    segment_path(folder_of(store), newest).unlink()
    with pytest.raises(BlockCorruptError, match="missing"):
        open_reader(store, copy)


def test_another_session_under_the_same_name_is_no_copy(store: Path, copy: Path) -> None:
    for folder, salt in ((store, 0), (copy, 1)):
        record = SessionRecord(session_id=SESSION, created_unix_s=float(salt), unit_period_s=1.0)
        create_session(folder, record)
        writer = open_writer(folder)
        append(writer, 12, salt=salt)
        writer.flush()
        writer.close()
    damage_slice(store, 3)
    reader = open_reader(store, copy)
    with pytest.raises(SliceCorruptError):
        read_unit(reader, reader.snapshot(), 3, LAYER)
    reader.close()
    last = segment_numbers(folder_of(store))[-1]
    segment_path(folder_of(store), last).unlink()
    with pytest.raises(BlockCorruptError, match="missing"):
        open_reader(store, copy)


def test_another_sessions_files_under_this_name_are_no_copy(store: Path, copy: Path) -> None:
    build(store)
    (copy / "sessions" / SESSION).mkdir(parents=True)
    for path in folder_of(store).glob("seg-*.kvs"):
        data = bytearray(path.read_bytes())
        data[16] ^= 1  # of the session's hash in the header, which is then not intact
        (copy / "sessions" / SESSION / path.name).write_bytes(data)
    segment_path(folder_of(store), 0).unlink()
    with pytest.raises(BlockCorruptError, match="missing"):
        open_reader(store, copy)


def thinned_with_copy_of_before(store: Path, copy: Path) -> None:
    """A session whose first segments are thinned, and a copy from before it was."""
    writer = thinning_writer(store)
    append_scenes(writer, 24)
    writer.flush()
    snap(store, copy)
    append_scenes(writer, 126)
    writer.flush()
    writer.close()
    first = places(store)[0]
    assert first.header.generation > 0
    assert places(copy)[0].header.generation == 0


@pytest.mark.parametrize("opened", ["before", "after"])
def test_no_slice_of_before_it_was_thinned_stands_in_for_a_thinned_one(
    store: Path, copy: Path, opened: str
) -> None:
    thinned_with_copy_of_before(store, copy)
    reader = open_reader(store, copy) if opened == "before" else None
    damage_slice(store, 2)
    reader = reader or open_reader(store, copy)
    snapshot = reader.snapshot()
    assert snapshot.coarsened[2]
    with pytest.raises(SliceCorruptError):
        read_unit(reader, snapshot, 2, LAYER)
    assert is_part_of(reader, snapshot, 1)
    reader.close()
    current = copy.with_name("current")
    damage_slice(store, 2)
    snap(store, current)
    damage_slice(store, 2)
    shutil.rmtree(store / "quarantine")
    with_both = open_reader(store, copy, current)
    assert is_part_of(with_both, with_both.snapshot(), 2)
    with_both.close()


def damage_first_table(store: Path) -> None:
    place = places(store)[0]
    overwrite(store, place, PAGE_BYTES + 8, JUNK)


def test_no_block_of_before_it_was_thinned_stands_in_for_a_thinned_one(
    store: Path, copy: Path
) -> None:
    thinned_with_copy_of_before(store, copy)
    damage_first_table(store)
    with pytest.raises(BlockCorruptError):
        open_reader(store, copy)


def test_without_the_check_of_the_generation_it_would(
    store: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thinned_with_copy_of_before(store, copy)
    damage_first_table(store)
    monkeypatch.setattr("kvstore.elsewhere.is_of_generation", lambda found, own: True)
    with pytest.raises(pytest.fail.Exception), pytest.raises(BlockCorruptError):
        open_reader(store, copy)


def test_what_was_dropped_does_not_come_back(store: Path, copy: Path) -> None:
    writer = dropping_writer(store)
    append(writer, 10)
    writer.flush()
    snap(store, copy)
    before = open_reader(store, copy)
    old = before.snapshot()
    while floor_of(store).first_unit == 0:
        append(writer, 10)
        writer.flush()
    writer.close()
    before._files.forget(0)
    with pytest.raises(UnitDroppedError):
        read_unit(before, old, 0, LAYER)
    before.close()
    after = open_reader(store, copy)
    assert after.snapshot().first_unit == floor_of(store).first_unit
    after.close()


def test_a_copy_is_never_written_to(store: Path, copy: Path) -> None:
    build(store)
    snap(store, copy)
    damage_slice(store)

    def seen() -> dict[str, tuple[int, int]]:
        return {
            str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in copy.rglob("*")
        }

    before = seen()
    reader = open_reader(store, copy)
    assert all_whole(reader)
    reader.close()
    assert seen() == before


def test_copies_that_cannot_be_read_are_named_and_do_no_harm(
    store: Path, copy: Path, root: Path
) -> None:
    build(store)
    snap(store, copy)
    file = root / "file"
    file.write_text("no folder")
    copies = StoreCopies([root / "absent", file, copy])
    absent, no_folder = copies.faults()
    assert str(root / "absent") in absent
    assert str(file) in no_folder
    damage_slice(store)
    reader = open_reader(store, root / "absent", file, copy)
    assert all_whole(reader)
    reader.close()


def test_an_archive_that_was_imported_under_the_sessions_name_is_a_copy(
    store: Path, copy: Path
) -> None:
    record = SessionRecord(session_id=SESSION, created_unix_s=1.0, unit_period_s=1.0)
    create_session(store, record)
    build(store)
    archive = BytesIO()
    export_session(store, SESSION, archive)
    archive.seek(0)
    import_session(copy, archive)
    damage_slice(store)
    segment_path(folder_of(store), 0).unlink()
    reader = open_reader(store, copy)
    assert all(kv_whole(reader, unit) for unit in range(UNIT_COUNT))
    reader.close()


def test_a_session_whose_record_is_damaged_takes_no_segment_from_a_copy(
    store: Path, copy: Path
) -> None:
    record = SessionRecord(session_id=SESSION, created_unix_s=1.0, unit_period_s=1.0)
    create_session(store, record)
    build(store)
    snap(store, copy)
    damage_at(folder_of(store) / "session.json", 40)
    segment_path(folder_of(store), 0).unlink()
    with pytest.raises(BlockCorruptError, match="missing"):
        open_reader(store, copy)
