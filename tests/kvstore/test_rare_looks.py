"""A reader that looks rarely meets blocks that were thinned before it ever read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvstore.errors import UnitsThinnedError
from kvstore.reader import SessionReader
from tests.kvstore.samples import SESSION
from tests.kvstore.thinned import append_scenes, is_part_of, thinning_writer


def test_units_seen_in_shared_memory_and_thinned_before_the_next_look_are_known_as_they_are(
    root: Path,
) -> None:
    writer = thinning_writer(root)
    append_scenes(writer, 7)
    reader = SessionReader.open(root, SESSION)
    seen = reader.snapshot()
    assert seen.durable_unit_count < seen.unit_count == 7
    append_scenes(writer, 200)
    snapshot = reader.snapshot()
    assert snapshot.coarsened[:7].all()
    for index in range(snapshot.unit_count):
        assert is_part_of(reader, snapshot, index), f"unit {index}"
    with pytest.raises(UnitsThinnedError) as caught:
        reader.cells(seen, 6)
    assert caught.value.unit_indices == tuple(range(7))
    assert list(caught.value.token_counts) == snapshot.token_counts[:7].tolist()
    assert not seen.coarsened.any()
    reader.close()
    writer.close()
