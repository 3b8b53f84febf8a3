"""Session records, deletion that survives crashes, and the check of a whole store."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

import kvstore.deletion
from kvstore.deletion import delete_session, sweep_tombstones
from kvstore.errors import (
    SessionExistsError,
    SessionLockedError,
    SessionNotFoundError,
    SessionRecordCorruptError,
)
from kvstore.reader import SessionReader
from kvstore.session import (
    SessionRecord,
    create_session,
    list_sessions,
    load_session,
    update_session,
)
from kvstore.verify import verify_store
from tests.kvstore.samples import SESSION, append, open_writer


def record(session_id: str = SESSION) -> SessionRecord:
    return SessionRecord(
        session_id=session_id,
        created_unix_s=1234.5,
        unit_period_s=0.5,
        identity={"model": "tiny", "dtype": "float32", "window_tokens": 144},
        settings={"display_name": "Tür", "nested": {"a": [1, 2.5, None]}},
    )


def built(root: Path) -> None:
    create_session(root, record())
    writer = open_writer(root)
    append(writer, 40)
    writer.flush()
    writer.close()


def test_a_record_reads_back_and_can_be_replaced(root: Path) -> None:
    create_session(root, record())
    assert load_session(root, SESSION) == record()
    finished = dataclasses.replace(record(), state="finished", totals={"unit_count": 7})
    update_session(root, finished)
    assert load_session(root, SESSION) == finished
    create_session(root, record("a"))
    assert [found.session_id for found in list_sessions(root)] == ["a", SESSION]
    assert sorted(path.name for path in (root / "sessions" / SESSION).iterdir()) == ["session.json"]


def test_names_are_taken_once(root: Path) -> None:
    create_session(root, record())
    with pytest.raises(SessionExistsError):
        create_session(root, record())
    assert list((root / "trash").iterdir()) == []
    with pytest.raises(SessionNotFoundError):
        update_session(root, record("other"))
    with pytest.raises(SessionNotFoundError):
        load_session(root, "other")


def test_a_damaged_record_is_an_error_and_hides_no_other(root: Path) -> None:
    create_session(root, record())
    create_session(root, record("fine"))
    path = root / "sessions" / SESSION / "session.json"
    good = path.read_bytes()
    for bad in (good.replace(b"144", b"145"), good[:-20], b"", b"[]", b"{}", b"\xff"):
        path.write_bytes(bad)
        with pytest.raises(SessionRecordCorruptError):
            load_session(root, SESSION)
        assert [found.session_id for found in list_sessions(root)] == ["fine"]
        assert [found.session_id for found in verify_store(root).damage] == [SESSION]
    path.write_bytes((root / "sessions" / "fine" / "session.json").read_bytes())
    with pytest.raises(SessionRecordCorruptError, match="fine"):
        load_session(root, SESSION)


def test_a_deleted_session_is_gone_and_its_name_is_free(root: Path) -> None:
    built(root)
    delete_session(root, SESSION)
    assert list_sessions(root) == []
    assert list((root / "sessions").iterdir()) == []
    assert list((root / "trash").iterdir()) == []
    with pytest.raises(SessionNotFoundError):
        delete_session(root, SESSION)
    built(root)
    assert verify_store(root).unit_count == 40


def test_a_session_with_a_writer_is_not_deleted(root: Path) -> None:
    built(root)
    writer = open_writer(root)
    with pytest.raises(SessionLockedError):
        delete_session(root, SESSION)
    append(writer, 1)
    writer.close()
    assert [found.session_id for found in list_sessions(root)] == [SESSION]


class _Crash(BaseException):
    pass


def crash_at(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
    """Let a function end the process instead of doing its work."""

    def crash(*arguments: Any, **options: Any) -> None:
        raise _Crash

    monkeypatch.setattr(module, name, crash)


@pytest.mark.parametrize(
    "crash_point", ["_remove", "make_folders", "clean_stale_hot_tails", "shutil.rmtree", "partial"]
)
@pytest.mark.parametrize("then", ["sweep", "create"])
def test_a_deletion_that_was_interrupted_is_finished_at_the_next_start(
    root: Path, monkeypatch: pytest.MonkeyPatch, crash_point: str, then: str
) -> None:
    built(root)

    def half(folder: Path) -> None:
        next(Path(folder).glob("seg-*")).unlink()
        raise _Crash

    with monkeypatch.context() as crashing:
        if crash_point == "partial":
            crashing.setattr(shutil, "rmtree", half)
        elif crash_point == "shutil.rmtree":
            crash_at(crashing, shutil, "rmtree")
        else:
            crash_at(crashing, kvstore.deletion, crash_point)
        with pytest.raises(_Crash):
            delete_session(root, SESSION)
    # Decided: nobody sees the session any more, swept or not.
    assert list_sessions(root) == []
    for look in (load_session, SessionReader.open):
        with pytest.raises(SessionNotFoundError):
            look(root, SESSION)
    if then == "create":
        create_session(root, record())
        assert load_session(root, SESSION) == record()
        assert SessionReader.open(root, SESSION).snapshot().unit_count == 0
    sweep_tombstones(root)
    assert list((root / "trash").iterdir()) == []
    assert len(list((root / "sessions").iterdir())) == (then == "create")
    assert sweep_tombstones(root) == 0


def test_a_deletion_that_was_not_decided_leaves_the_session_whole(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(root)
    with monkeypatch.context() as crashing:
        crash_at(crashing, kvstore.deletion, "lock_session")
        with pytest.raises(_Crash):
            delete_session(root, SESSION)
    assert sweep_tombstones(root) == 0
    assert load_session(root, SESSION) == record()
    assert verify_store(root).damage == ()


def test_a_whole_store_is_verified_with_progress(root: Path) -> None:
    built(root)
    shutil.rmtree(root / "shm")
    create_session(root, record("empty"))
    seen: list[tuple[int, int]] = []
    report = verify_store(root, lambda done, total: seen.append((done, total)))
    assert (report.session_count, report.unit_count, report.damage) == (2, 40, ())
    assert report.block_count > 5
    assert seen == sorted(seen)
    assert len({total for _, total in seen}) == 1
    assert seen[-1][0] <= seen[-1][1]


def test_verifying_beside_a_live_writer_reports_no_damage(root: Path) -> None:
    writer = open_writer(root)
    for _ in range(20):
        append(writer, 3)
        assert verify_store(root).damage == ()
    writer.close()


def test_an_empty_or_absent_store_is_whole(root: Path) -> None:
    assert verify_store(root / "absent").session_count == 0
    assert list_sessions(root / "absent") == []
    assert sweep_tombstones(root / "absent") == 0
