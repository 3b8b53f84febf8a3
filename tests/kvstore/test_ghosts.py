"""Blocks of a history that recovery cut must stay gone, wherever their bytes turn up again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kvstore.blockread import BlockPlace
from kvstore.errors import BlockCorruptError
from kvstore.format import PAGE_BYTES, BlockHeader
from kvstore.paths import segment_path, session_hash
from kvstore.scan import scan_log
from tests.kvstore.samples import SESSION, open_writer, sample


def places(root: Path) -> list[BlockPlace]:
    return scan_log(root / "sessions" / SESSION, SESSION, session_hash(SESSION)).blocks


def build_ghosts(root: Path, *, claim_durable: bool) -> None:
    """Leave block 1 of a second history with blocks 2 and 3 of the first one behind it.

    As they might come back where a file system gives out old bytes, all blocks having one size.
    With `claim_durable` false, the ghosts' headers do not say that block 1 was durable: what a
    writer with several blocks in flight would leave.
    """

    def write(first: int, stop: int, salt: int) -> None:
        writer = open_writer(root)
        assert writer.durable_unit_count == first
        for index in range(first, stop):
            unit, keys, values = sample(index, salt=salt, token_count=4)
            unit = dataclasses.replace(unit, thumbnail_jpeg=b"")
            writer.append(unit, keys, values, resume=b"")
            writer.flush()
        writer.close()
        ((root / "sessions" / SESSION) / "CTL").unlink()

    write(0, 4, salt=1)
    old = places(root)
    path = segment_path((root / "sessions" / SESSION), 0)
    content = bytearray(path.read_bytes())
    with open(path, "r+b") as file:
        file.truncate(old[1].offset)
    write(1, 2, salt=2)
    previous_hash = old[1].header.hash
    for ghost in old[2:]:
        if not claim_durable:
            header = dataclasses.replace(
                ghost.header, durable_block_count=1, previous_hash=previous_hash
            )
            page = header.pack()
            content[ghost.offset : ghost.offset + PAGE_BYTES] = page
            packed = BlockHeader.unpack(page, path)
            assert packed is not None
            previous_hash = packed.hash
    end = places(root)[-1]
    with open(segment_path((root / "sessions" / SESSION), end.segment_number), "r+b") as file:
        file.seek(end.stop)
        file.write(content[old[2].offset : old[3].stop])


def test_blocks_of_a_history_that_was_cut_do_not_come_back(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_ghosts(root, claim_durable=False)
    assert [place.header.epoch for place in places(root)] == [1, 2]
    with monkeypatch.context() as mutant:
        # Without the chain and the order of epochs they would: the test can see a ghost.
        mutant.setattr("kvstore.chain.ChainEnd.links", lambda end, header: True)
        mutant.setattr("kvstore.scan._Walk.least_epoch", lambda walk, sequence: 0)
        assert [place.header.epoch for place in places(root)] == [1, 2, 1, 1]
    writer = open_writer(root)
    assert writer.durable_unit_count == 2
    writer.close()
    assert [place.header.epoch for place in places(root)] == [1, 2]


def test_a_lost_history_that_was_acknowledged_is_refused(root: Path) -> None:
    build_ghosts(root, claim_durable=True)
    with pytest.raises(BlockCorruptError) as error:
        open_writer(root)
    assert error.value.block_index == 2
