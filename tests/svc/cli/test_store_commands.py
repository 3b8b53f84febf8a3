"""`lookback store`: what it prints of a store made without a service, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvstore.paths import segment_path, session_folder
from kvstore.session import SessionRecord, create_session
from tests.kvstore.samples import SESSION, append, open_writer
from tests.svc.cli.conftest import Lookback

UNIT_COUNT = 20


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with one closed session of 20 units."""
    create_session(
        tmp_path, SessionRecord(session_id=SESSION, created_unix_s=1.0, unit_period_s=1.0)
    )
    writer = open_writer(tmp_path)
    append(writer, UNIT_COUNT)
    writer.flush()
    writer.close()
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


@pytest.mark.parametrize("command", ["stat"])
def test_a_folder_that_is_no_store_is_refused(
    lookback: type[Lookback], tmp_path: Path, command: str
) -> None:
    outcome = lookback.run("store", command, str(tmp_path))
    assert outcome.status == 1
    assert outcome.err.startswith("error: STORE_NOT_FOUND: ")
