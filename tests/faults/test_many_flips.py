"""Thousands of flipped bits, in every region of a session's files, one at a time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from kvstore.errors import KVStoreError
from kvstore.floor import FLOOR_NAME
from kvstore.format import PAGE_BYTES
from kvstore.paths import CONTROL_NAME, segment_path, session_folder, session_hash
from kvstore.reader import SessionReader
from kvstore.scan import scan_log
from kvstore.verify import verify_store
from retrieval.errors import RetrievalError
from retrieval.index import KeyIndexReader
from retrieval.index_writer import KeyIndexWriter
from tests.faults.killed import DROPPING
from tests.faults.ledger import Ledger, Line
from tests.kvstore.samples import SESSION, append, open_writer, unit_is

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
_FLIPS_PER_REGION = 300


@dataclass(frozen=True)
class Range:
    """Bytes of a file that mean the same."""

    path: Path
    start: int
    stop: int


@dataclass(frozen=True)
class Stored:
    """A closed session that has dropped some of its units."""

    root: Path
    first_unit: int
    unit_count: int

    def check(self, line: Line) -> None:
        """Raise unless a reader that comes now serves every unit as it was written."""
        reader = SessionReader.open(self.root, SESSION)
        try:
            snapshot = reader.snapshot()
            assert (snapshot.first_unit, snapshot.unit_count) == (self.first_unit, self.unit_count)
            for index in range(self.first_unit, self.unit_count):
                assert unit_is(reader, snapshot, index), f"unit {index} was served with other bytes"
                line.checked_count += 1
        finally:
            reader.close()


@pytest.fixture
def stored(root: Path) -> Stored:
    """The session, of a few segments."""
    writer = open_writer(root, limits=DROPPING)
    append(writer, 160)
    writer.flush()
    writer.close()
    reader = SessionReader.open(root, SESSION)
    snapshot = reader.snapshot()
    reader.close()
    assert snapshot.first_unit > 0
    return Stored(root, snapshot.first_unit, snapshot.unit_count)


def _regions(root: Path) -> dict[str, list[Range]]:
    """The ranges of each region. Of the padding behind a part, which is no data, none."""
    folder = session_folder(root, SESSION)
    blocks = scan_log(folder, SESSION, session_hash(SESSION)).blocks
    paths = {place.segment_number: segment_path(folder, place.segment_number) for place in blocks}
    regions: dict[str, list[Range]] = {
        "segment headers": [Range(path, 0, PAGE_BYTES) for path in paths.values()],
        "block headers": [],
        "unit tables": [],
        "keys and values": [],
        "floor record": [Range(folder / FLOOR_NAME, 0, (folder / FLOOR_NAME).stat().st_size)],
    }
    for place in blocks:
        path, header = paths[place.segment_number], place.header
        meta = place.offset + PAGE_BYTES
        regions["block headers"].append(Range(path, place.offset, meta))
        regions["unit tables"].append(Range(path, meta, meta + header.table_bytes))
        for layer in range(place.layout.geometry.layer_count):
            start = place.offset + header.layer_offset(place.layout, layer)
            length = place.layout.extent_bytes(header.token_count, header.unit_count)
            regions["keys and values"].append(Range(path, start, start + length))
    return regions


def _flips(ranges: list[Range], rng: random.Random, count: int) -> Iterator[str]:
    """Flip a bit, yield where, and put it back; again and again."""
    sizes = [each.stop - each.start for each in ranges]
    for _ in range(count):
        (chosen,) = rng.choices(ranges, weights=sizes)
        offset = rng.randrange(chosen.start, chosen.stop)
        with open(chosen.path, "r+b", buffering=0) as file:
            file.seek(offset)
            whole = file.read(1)
            file.seek(offset)
            file.write(bytes([whole[0] ^ 1 << rng.randrange(8)]))
            try:
                yield f"{chosen.path.name} at {offset}"
            finally:
                file.seek(offset)
                file.write(whole)


def _flip_and_read(stored: Stored, ranges: list[Range], count: int, line: Line) -> None:
    for place in _flips(ranges, random.Random(7), count):
        try:
            stored.check(line)
        except KVStoreError:
            pass
        else:
            pytest.fail(f"{place} went unseen")
        assert verify_store(stored.root).damage, f"{place} was not reported"
        line.fault_count += 1
    stored.check(line)


@pytest.mark.parametrize(
    "region",
    ["segment headers", "block headers", "unit tables", "keys and values", "floor record"],
)
def test_a_flipped_bit_of_what_is_read_is_an_error_and_reported(
    ledger: Ledger, stored: Stored, region: str
) -> None:
    with ledger.line(f"flipped bits: {region}") as line:
        _flip_and_read(stored, _regions(stored.root)[region], _FLIPS_PER_REGION, line)
        line.acknowledged_count += stored.unit_count


def test_a_flipped_bit_anywhere_in_a_segment_serves_nothing_wrong(
    ledger: Ledger, stored: Stored
) -> None:
    """Thumbnails, resume blobs, padding and what is reserved too: an error, or nothing changed."""
    with ledger.line("flipped bits: anywhere in a segment") as line:
        paths = session_folder(stored.root, SESSION).glob("seg-*.kvs")
        ranges = [Range(path, 0, path.stat().st_size) for path in sorted(paths)]
        for _ in _flips(ranges, random.Random(8), _FLIPS_PER_REGION):
            try:
                stored.check(line)
            except KVStoreError:
                assert verify_store(stored.root).damage
            line.fault_count += 1
        line.acknowledged_count += stored.unit_count


def test_a_flipped_bit_of_the_control_page_changes_nothing(ledger: Ledger, stored: Stored) -> None:
    """Readers serve every unit, and the next writer finds them."""
    with ledger.line("flipped bits: control page") as line:
        path = session_folder(stored.root, SESSION) / CONTROL_NAME
        whole = path.read_bytes()
        for _ in _flips([Range(path, 0, PAGE_BYTES)], random.Random(9), _FLIPS_PER_REGION):
            stored.check(line)
            writer = open_writer(stored.root, limits=DROPPING)
            assert writer.durable_unit_count == stored.unit_count
            writer.close()
            stored.check(line)
            path.write_bytes(whole)
            line.fault_count += 1
        line.acknowledged_count += stored.unit_count


def test_a_flipped_bit_in_any_word_of_the_control_page_hides_no_unit(
    ledger: Ledger, stored: Stored
) -> None:
    """In every copy; every bit of them, and a mutant, are in tests/kvstore/test_control.py."""
    with ledger.line("flipped bits: each word of the control page") as line:
        path = session_folder(stored.root, SESSION) / CONTROL_NAME
        for word in range(PAGE_BYTES // 8):
            for _ in _flips([Range(path, 8 * word, 8 * word + 8)], random.Random(word), 1):
                stored.check(line)
                line.fault_count += 1
        line.acknowledged_count += stored.unit_count


def test_a_flipped_bit_of_the_key_index_is_found_or_changes_no_score(
    ledger: Ledger, root: Path
) -> None:
    with ledger.line("flipped bits: key index") as line:
        path = root / "index.rows"
        rows = np.random.default_rng(3).standard_normal((50, 2, 16)).astype(np.float32)
        writer = KeyIndexWriter.create(path, layer_count=2, dim=16, epoch=1)
        for row in rows:
            writer.append(row)
        writer.sync()
        writer.close()
        query = np.ones(16, dtype=np.float32)

        def scores() -> list[bytes]:
            reader = KeyIndexReader.open(path)
            try:
                return [reader.scores(layer, query, 50).tobytes() for layer in range(2)]
            finally:
                reader.close()

        right, found = scores(), 0
        used = Range(path, 0, min(path.stat().st_size, 3 * PAGE_BYTES))
        for place in _flips([used], random.Random(10), _FLIPS_PER_REGION):
            try:
                assert scores() == right, f"{place} changed a score"
                line.checked_count += 50
            except RetrievalError:
                found += 1
            line.fault_count += 1
        assert found > 0
        assert scores() == right


def test_a_store_that_does_not_check_what_it_reads_is_caught(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges = _regions(stored.root)["keys and values"]

    class _Whatever(int):
        __hash__ = int.__hash__

        def __ne__(self, other: object) -> bool:
            return False

    monkeypatch.setattr("kvstore.extents.kv_checksum", lambda *parts: _Whatever())
    with pytest.raises(AssertionError, match="served with other bytes"):
        _flip_and_read(stored, ranges, 5, Line("mutant"))
