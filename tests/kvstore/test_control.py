"""The CTL page: no flipped bit of it changes what readers see, whatever the writer is doing."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore import control, triplewords
from kvstore.control import ControlPage, ControlState, Watermarks
from kvstore.controltext import TEXTS_START, TEXTS_STOP, ControlText
from kvstore.errors import ControlCorruptError
from kvstore.glance import glance
from kvstore.paths import session_hash
from kvstore.reader import SessionReader
from kvstore.triplewords import TripleWords
from tests.kvstore.samples import SESSION, append, open_writer, unit_is

_WORDS = sorted(
    value for name, value in vars(control).items() if name.endswith("_WORD") and name[1:2].isupper()
)
_COPY_BYTES = 8 * control._WORD_COUNT
_TEXT = (TEXTS_START, TEXTS_STOP)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[mmap.mmap]:
    """The CTL page of a session that is live: 12 units are visible, 10 of them durable."""
    writer = open_writer(tmp_path)
    append(writer, 10)
    writer.flush()
    append(writer, 2)
    writer.set_watermarks(received_pts_s=40.0, settled_pts_s=11.5)
    with (
        closing(writer),
        open(tmp_path / "sessions" / SESSION / "CTL", "r+b") as file,
        mmap.mmap(file.fileno(), 0) as mapping,
    ):
        yield mapping


def _seen(root: Path) -> tuple[ControlState, ControlText | None, Watermarks, int, int]:
    found = ControlPage.open(root / "sessions" / SESSION, session_hash(SESSION))
    assert found is not None
    with closing(found):
        state = found.state()
        text, marks = found.text(state.epoch), found.watermarks()
        return state, text, marks, found.proven_block_count(), found.last_epoch()


@pytest.mark.parametrize("word", _WORDS)
def test_a_flipped_bit_in_any_copy_of_any_word_changes_nothing(
    page: mmap.mmap, tmp_path: Path, word: int
) -> None:
    whole = _seen(tmp_path)
    assert (whole[0].visible_unit_count, whole[2].settled_pts_s) == (12, 11.5)
    for start in range(8 * word, 3 * _COPY_BYTES, _COPY_BYTES):
        for bit in range(64):
            page[start + bit // 8] ^= 1 << bit % 8
            assert _seen(tmp_path) == whole, f"word {word}, bit {bit}, copy at {start}"
            page[start + bit // 8] ^= 1 << bit % 8


def test_a_flipped_bit_of_a_text_changes_nothing(page: mmap.mmap, tmp_path: Path) -> None:
    whole = _seen(tmp_path)
    for offset in range(*_TEXT):
        page[offset] ^= 1 << offset % 8
        assert _seen(tmp_path) == whole, f"byte {offset}"
        page[offset] ^= 1 << offset % 8


def test_readers_that_come_with_a_flipped_count_see_the_newest_units(
    page: mmap.mmap, tmp_path: Path
) -> None:
    page[8 * control._VISIBLE_WORD] ^= 8
    with closing(SessionReader.open(tmp_path, SESSION)) as reader:
        snapshot = reader.snapshot()
        assert (snapshot.unit_count, snapshot.durable_unit_count) == (12, 10)
        assert all(unit_is(reader, snapshot, index) for index in range(12))


def test_a_page_that_is_believed_at_its_first_copy_is_caught(
    page: mmap.mmap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _seen(tmp_path)
    monkeypatch.setattr(TripleWords, "__getitem__", lambda self, place: self._words[place])
    page[8 * control._VISIBLE_WORD] ^= 8
    assert _seen(tmp_path) != whole


def test_damage_beyond_healing_is_told_until_a_writer_renews_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triplewords, "_TRY_S", 0.0)
    writer = open_writer(tmp_path)
    append(writer, 10)
    writer.flush()
    writer.close()
    path = tmp_path / "sessions" / SESSION / "CTL"
    for word in _WORDS:
        content = bytearray(path.read_bytes())
        content[8 * word] ^= 1
        content[_COPY_BYTES + 8 * word] ^= 2
        path.write_bytes(content)
        if word in (control._PID_WORD, control._DURABLE_CHECK_WORD, control._EPOCH_CHECK_WORD):
            _seen(tmp_path)  # which readers do not ask for, or do without
        else:
            with pytest.raises(ControlCorruptError, match=f"word {word} "):
                _seen(tmp_path)
        if word not in (control._PID_WORD, control._RECEIVED_WORD, control._SETTLED_WORD):
            assert glance(tmp_path, SESSION) is None or word in (
                control._DURABLE_CHECK_WORD,
                control._EPOCH_CHECK_WORD,
            )
        writer = open_writer(tmp_path)
        assert writer.durable_unit_count == 10
        writer.close()
        assert _seen(tmp_path)[0].visible_unit_count == 10


def test_a_count_that_was_lost_with_its_check_takes_no_block_of_an_earlier_epoch_along(
    tmp_path: Path,
) -> None:
    """As when the writer is killed between the count and its check."""
    for _ in range(2):
        writer = open_writer(tmp_path)
        append(writer, 10)
        writer.flush()
        writer.close()
    path = tmp_path / "sessions" / SESSION / "CTL"
    content = bytearray(path.read_bytes())
    for copy in range(3):
        content[copy * _COPY_BYTES + 8 * control._DURABLE_BLOCKS_WORD] += 1
    path.write_bytes(content)
    writer = open_writer(tmp_path)
    assert (writer.durable_unit_count, writer.recovery.epoch) == (20, 3)
    writer.close()


@given(
    old=st.integers(0, 2**64 - 1),
    new=st.integers(0, 2**64 - 1),
    stores=st.integers(0, 3),
)
def test_a_writer_that_was_killed_between_its_stores_leaves_the_old_word_or_the_new(
    old: int, new: int, stores: int
) -> None:
    with mmap.mmap(-1, mmap.PAGESIZE) as mapping:
        words = TripleWords(mapping, Path("page"), word_count=4)
        words[2] = old
        for copy in range(stores):
            words._words[2 + 4 * copy] = new
        assert words[2] == (new if stores >= 2 else old)
        words.release()


def test_a_word_never_turns_back_under_a_reader() -> None:
    mapping = mmap.mmap(-1, mmap.PAGESIZE)
    words = TripleWords(mapping, Path("page"), word_count=4)

    def count_up() -> None:
        for value in range(20_000):
            words[1] = value

    writer = threading.Thread(target=count_up)
    writer.start()
    last = 0
    while writer.is_alive():
        value = words[1]
        assert value >= last
        last = value
    writer.join()
    assert words[1] == 19_999
