"""`lookback store`: what it prints of a store made without a service, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kvstore.paths import segment_path, session_folder
from kvstore.scrub import Pace
from kvstore.session import SessionRecord, create_session
from svc.engine.index_repair import header_fault, repair_index, row_fault
from tests.kvstore.samples import LIMITS, SESSION, SMALL, open_writer, sample
from tests.svc.cli.conftest import Lookback
from tests.svc.ingest.stored import read_stored

UNIT_COUNT = 20


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with one closed session of 20 units."""
    create_session(
        tmp_path, SessionRecord(session_id=SESSION, created_unix_s=1.0, unit_period_s=1.0)
    )
    writer = open_writer(tmp_path)
    for index in range(UNIT_COUNT):
        unit = sample(index)[0]
        shape = (SMALL.layer_count, unit.token_count, SMALL.kv_head_count, SMALL.head_dim)
        numbers = np.random.default_rng(index).standard_normal((2, *shape), np.float32)
        writer.append(unit, *numbers, resume=b"")
        writer.publish()
    writer.flush()
    writer.close()
    repair_index(tmp_path, SESSION, limits=LIMITS)
    return tmp_path


def damage(store: Path) -> None:
    """Flips a byte of the keys and values of block 0."""
    with open(segment_path(session_folder(store, SESSION), 0), "r+b") as file:
        data = file.read()
        second = data.index(b"LBKVBLK\0", 8192)
        place = len(data[:second].rstrip(b"\0")) - 1  # the last byte of the first block that counts
        file.seek(place)
        file.write(bytes([data[place] ^ 1]))


def test_stat_as_json_adds_up(lookback: type[Lookback], store: Path) -> None:
    outcome = lookback.run("store", "stat", str(store), "--json")
    assert (outcome.status, outcome.err) == (0, "")
    report = json.loads(outcome.out)
    (session,) = report["sessions"]
    assert session["session"] == SESSION
    assert session["visible_unit_count"] == session["durable_unit_count"] == UNIT_COUNT
    assert session["damage"] == []
    for name, total in report["total"].items():
        if name in session:
            assert session[name] == total, name
    assert report["total"]["session_count"] == 1


def test_stat_for_people_names_every_session_in_one_line(
    lookback: type[Lookback], store: Path
) -> None:
    outcome = lookback.run("store", "stat", str(store))
    lines = outcome.out.splitlines()
    assert [line.split()[0] for line in lines] == ["session", SESSION, "1"]
    assert outcome.status == 0


@pytest.mark.parametrize("command", ["stat", "scrub", "repair"])
def test_a_folder_that_is_no_store_is_refused(
    lookback: type[Lookback], tmp_path: Path, command: str
) -> None:
    outcome = lookback.run("store", command, str(tmp_path))
    assert outcome.status == 1
    assert outcome.err.startswith("error: STORE_NOT_FOUND: ")


@pytest.mark.parametrize("command", ["verify", "scrub", "repair"])
def test_sessions_that_are_named_are_looked_at_alone(
    lookback: type[Lookback], store: Path, tmp_path: Path, command: str
) -> None:
    archive = tmp_path / "a.tar"
    assert lookback.run("store", "export", str(store), SESSION, str(archive)).status == 0
    assert lookback.run("store", "import", str(archive), str(store), "--as", "whole").status == 0
    damage(store)
    outcome = lookback.run("store", command, str(store), "whole")
    assert outcome.status == 0, outcome.err
    assert outcome.out.startswith("1 sessions")
    if command != "repair":  # which reads no keys and values
        outcome = lookback.run("store", command, str(store), "whole", SESSION)
        assert outcome.status == 1
        assert "2 sessions" in outcome.out
    outcome = lookback.run("store", command, str(store), "whole", "nosuch")
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err == "error: SESSION_NOT_FOUND: session 'nosuch' does not exist\n"


def test_a_session_comes_back_from_its_archive_under_both_names(
    lookback: type[Lookback], store: Path, tmp_path: Path
) -> None:
    archive, other = tmp_path / "cam.tar", tmp_path / "other"
    outcome = lookback.run("store", "export", str(store), SESSION, str(archive))
    assert (outcome.status, outcome.out) == (0, "")
    assert outcome.err.startswith(f"exported {SESSION}: {UNIT_COUNT} units")
    assert [path.name for path in tmp_path.glob("cam*")] == ["cam.tar"]
    for more in ([], ["--as", "cam-2"]):
        outcome = lookback.run("store", "import", str(archive), str(other), *more)
        assert (outcome.status, outcome.out) == (0, ""), outcome.err
    before, first, second = (
        read_stored(*place) for place in ((store, SESSION), (other, SESSION), (other, "cam-2"))
    )
    assert first.row_count == second.row_count == UNIT_COUNT
    for after in (first, second):
        assert after.keys.tobytes() == before.keys.tobytes()
        assert after.values.tobytes() == before.values.tobytes()
        assert after.thumbnails == before.thumbnails
    assert (header_fault(other, "cam-2") or row_fault(other, "cam-2")) is None
    outcome = lookback.run("store", "import", str(archive), str(other))
    assert outcome.status == 1
    assert outcome.err.startswith("error: SESSION_EXISTS: ")


def test_what_is_no_archive_is_one_line_and_leaves_nothing(
    lookback: type[Lookback], store: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.tar"
    wrong.write_bytes(b"not a tar" * 1000)
    outcome = lookback.run("store", "import", str(wrong), str(tmp_path / "new"))
    assert outcome.status == 1
    assert outcome.err.startswith("error: BAD_ARCHIVE: ")
    assert outcome.err.count("\n") == 1
    assert list((tmp_path / "new" / "sessions").iterdir()) == []


def test_an_archive_that_is_not_there_leaves_no_folder(
    lookback: type[Lookback], tmp_path: Path
) -> None:
    for file in ("nosuch.tar", "."):
        outcome = lookback.run("store", "import", str(tmp_path / file), str(tmp_path / "new"))
        assert outcome.status == 1
        assert str(tmp_path) in outcome.err
        assert list(tmp_path.iterdir()) == []


def test_a_damaged_session_is_not_exported_and_no_file_stays(
    lookback: type[Lookback], store: Path, tmp_path: Path
) -> None:
    damage(store)
    archive = tmp_path / "cam.tar"
    outcome = lookback.run("store", "export", str(store), SESSION, str(archive))
    assert outcome.status == 1
    assert outcome.err.startswith("error: BLOCK_CORRUPT: block 0 ")
    assert list(tmp_path.glob("cam.tar*")) == []


def test_an_export_never_writes_over_a_file(
    lookback: type[Lookback], store: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "cam.tar"
    archive.write_bytes(b"mine")
    outcome = lookback.run("store", "export", str(store), SESSION, str(archive))
    assert outcome.err.startswith("error: FILE_EXISTS: ")
    assert archive.read_bytes() == b"mine"


def test_a_scrub_says_what_is_damaged_as_verify_does(lookback: type[Lookback], store: Path) -> None:
    assert (
        lookback.run("store", "scrub", str(store), "--rate-bytes-per-s", "1000000000").status == 0
    )
    damage(store)
    verified = lookback.run("store", "verify", str(store))
    scrubbed = lookback.run("store", "scrub", str(store), "--rate-bytes-per-s", "1000000000")
    assert (scrubbed.status, scrubbed.out, scrubbed.err) == (1, verified.out, verified.err)
    assert scrubbed.out.startswith(f"{SESSION}, block 0, unit ")


def test_an_interrupted_scrub_says_where_it_was(
    lookback: type[Lookback], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def interrupt(pace: Pace, done_bytes: int, total_bytes: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(Pace, "__call__", interrupt)
    outcome = lookback.run("store", "scrub", str(store))
    assert (outcome.status, outcome.out) == (130, "")
    assert outcome.err.startswith(f"stopped at session {SESSION}, block 2: ")


def test_a_repair_mends_the_index_and_the_tail_once(lookback: type[Lookback], store: Path) -> None:
    (session_folder(store, SESSION) / "index.rows").unlink()
    last = sorted(session_folder(store, SESSION).glob("seg-*.kvs"))[-1]
    with open(last, "ab") as file:
        file.write(b"half a block" * 1000)
    outcome = lookback.run("store", "repair", str(store))
    assert (outcome.status, outcome.err) == (0, "")
    tail, index, summary = outcome.out.splitlines()
    assert "12,000 bytes of a torn, never acknowledged tail cut" in tail
    assert f"key index made whole, {UNIT_COUNT} rows" in index
    again = lookback.run("store", "repair", str(store), SESSION)
    assert again.out.splitlines() == [summary]
    assert read_stored(store, SESSION).row_count == UNIT_COUNT


def test_a_repair_drops_no_acknowledged_block(lookback: type[Lookback], store: Path) -> None:
    path = segment_path(session_folder(store, SESSION), 0)
    data = bytearray(path.read_bytes())
    data[4096 + 100] ^= 1  # the header of block 0
    path.write_bytes(data)
    outcome = lookback.run("store", "repair", str(store))
    assert outcome.status == 1
    assert outcome.out.splitlines()[0] == f"{SESSION}, block 0: its header is damaged"
    assert outcome.err.startswith("error: STORE_DAMAGED: 1 of 1 sessions ")
    assert path.read_bytes() == data


def test_a_repair_leaves_a_session_to_its_writer(lookback: type[Lookback], store: Path) -> None:
    (session_folder(store, SESSION) / "index.rows").unlink()
    writer = open_writer(store)
    outcome = lookback.run("store", "repair", str(store))
    assert outcome.status == 0
    assert outcome.out.startswith(f"{SESSION}: is being written, and left to its writer\n")
    writer.close()


def test_a_repair_of_a_session_that_is_not_there_says_so(
    lookback: type[Lookback], store: Path
) -> None:
    outcome = lookback.run("store", "repair", str(store), "nobody")
    assert outcome.err == "error: SESSION_NOT_FOUND: session 'nobody' does not exist\n"
