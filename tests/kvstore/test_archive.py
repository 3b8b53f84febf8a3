"""A session leaves and comes back byte for byte; what is not a whole archive never becomes one."""

from __future__ import annotations

import io
import random
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvstore.archive import HEAD_NAME, MANIFEST_NAME, BadArchiveError
from kvstore.budget import DiskBudget
from kvstore.encoding import Encoding
from kvstore.errors import BlockCorruptError, SessionExistsError, StoreFullError
from kvstore.export import export_session
from kvstore.importing import import_session
from kvstore.incoming import incoming_folder, made_aside, sweep_incoming
from kvstore.limits import BlockLimits
from kvstore.paths import session_folder, sessions_folder
from kvstore.reader import SessionReader
from kvstore.session import SessionRecord, create_session, load_session, session_ids
from kvstore.verify import verify_store
from kvstore.writer import SessionWriter
from tests.kvstore.dropped import dropping_writer
from tests.kvstore.samples import (
    LIMITS,
    SESSION,
    SMALL,
    append,
    kill,
    open_writer,
    read_units,
    resume_blob,
    sample,
    unit_is,
)

RECORD = SessionRecord(
    session_id=SESSION,
    created_unix_s=1.0,
    unit_period_s=2.0,
    identity={"model": "tiny"},
    settings={"sample_fps": 1.0},
    pinned_spans=((3.0, 4.5),),
)
UNIT_COUNT = 30


def build(root: Path) -> None:
    create_session(root, RECORD)
    writer = open_writer(root)
    append(writer, UNIT_COUNT)
    writer.flush()
    writer.close()


def exported(root: Path) -> bytes:
    out = io.BytesIO()
    export_session(root, SESSION, out)
    return out.getvalue()


def taken_in(root: Path, archive: bytes, name: str | None = None) -> None:
    import_session(root, io.BytesIO(archive), session_id=name)


def holds(root: Path, session_id: str, unit_count: int) -> bool:
    """Whether a reader finds exactly the first units, every byte of them."""
    reader = SessionReader.open(root, session_id)
    try:
        snapshot = reader.snapshot()
        return snapshot.unit_count == unit_count and all(
            unit_is(reader, snapshot, index) for index in range(unit_count)
        )
    finally:
        reader.close()


def segments(root: Path, session_id: str) -> list[tuple[str, bytes]]:
    folder = session_folder(root, session_id)
    return [(path.name, path.read_bytes()) for path in sorted(folder.glob("seg-*.kvs"))]


def nothing_came(root: Path) -> bool:
    """Whether an import left neither a session nor anything beside one."""
    aside = incoming_folder(root)
    return session_ids(root) == [] and not (aside.is_dir() and any(aside.iterdir()))


def test_a_session_comes_back_byte_for_byte(root: Path) -> None:
    build(root / "a")
    archive = exported(root / "a")
    taken_in(root / "b", archive)
    assert segments(root / "b", SESSION) == segments(root / "a", SESSION)
    assert load_session(root / "b", SESSION) == RECORD
    assert holds(root / "b", SESSION, UNIT_COUNT)
    assert exported(root / "b") == archive


def test_under_another_name_it_holds_the_same_and_can_be_gone_on_with(root: Path) -> None:
    build(root)
    taken_in(root, exported(root), "cam-2")
    assert load_session(root, "cam-2") == replace(RECORD, session_id="cam-2")
    assert holds(root, "cam-2", UNIT_COUNT)
    assert holds(root, SESSION, UNIT_COUNT)
    assert verify_store(root).damage == ()
    writer = SessionWriter.open(root, "cam-2", geometry=SMALL, limits=LIMITS)
    assert writer.durable_unit_count == UNIT_COUNT
    assert writer.recovery.resume == resume_blob(UNIT_COUNT - 1)
    append(writer, 5)
    writer.flush()
    writer.close()
    assert holds(root, "cam-2", UNIT_COUNT + 5)


def test_of_a_live_session_the_durable_part_leaves(root: Path) -> None:
    create_session(root, RECORD)
    writer = open_writer(root)
    append(writer, 12)
    writer.flush()
    durable = writer.durable_unit_count
    append(writer, 1)
    archive = exported(root)
    append(writer, 12)  # the writer was not disturbed
    writer.close()
    taken_in(root / "b", archive)
    assert writer.durable_unit_count > durable
    assert holds(root / "b", SESSION, durable)


def test_a_killed_writers_torn_tail_stays_behind(root: Path) -> None:
    create_session(root, RECORD)
    writer = open_writer(root)
    append(writer, 12)
    writer.flush()
    kill(writer)
    last = sorted(session_folder(root, SESSION).glob("seg-*.kvs"))[-1]
    with open(last, "r+b") as file:
        file.seek(0, 2)
        file.write(b"half a block" * 1000)
    taken_in(root / "b", exported(root))
    assert holds(root / "b", SESSION, 12)


@pytest.mark.parametrize("name", [None, "cam-2"])
def test_of_a_session_that_dropped_what_is_left_travels(root: Path, name: str | None) -> None:
    create_session(root, RECORD)
    writer = dropping_writer(root)
    append(writer, 200)
    writer.flush()
    archive = exported(root)
    append(writer, 20)
    writer.close()
    there = root / "b"
    taken_in(there, archive, name)
    reader = SessionReader.open(there, name or SESSION)
    snapshot = reader.snapshot()
    assert snapshot.unit_count == 200
    assert snapshot.first_unit > 50
    assert all(unit_is(reader, snapshot, index) for index in range(snapshot.first_unit, 200))
    reader.close()
    assert verify_store(there).damage == ()
    again = SessionWriter.open(there, name or SESSION, geometry=SMALL, limits=LIMITS)
    append(again, 5)
    again.flush()
    again.close()
    assert verify_store(there).damage == ()


def test_what_is_dropped_while_it_leaves_still_leaves(root: Path) -> None:
    create_session(root, RECORD)
    writer = dropping_writer(root)
    append(writer, 30)
    writer.flush()
    durable = writer.durable_unit_count
    out = io.BytesIO()

    def go_on(done: int, total: int) -> None:
        if writer.visible_unit_count < 400:
            append(writer, 20)

    export_session(root, SESSION, out, go_on)
    writer.close()
    taken_in(root / "b", out.getvalue())
    assert holds(root / "b", SESSION, durable)


@pytest.mark.parametrize("encoding", ["int8", "int4"])
def test_a_quantised_session_travels_as_it_is(root: Path, encoding: Encoding) -> None:
    create_session(root, RECORD)
    writer = open_writer(root, encoding=encoding)
    for index in range(20):
        unit = sample(index)[0]
        shape = (SMALL.layer_count, unit.token_count, SMALL.kv_head_count, SMALL.head_dim)
        numbers = np.random.default_rng(index).standard_normal((2, *shape), np.float32)
        writer.append(unit, *numbers, resume=b"")
        writer.publish()
    writer.flush()
    writer.close()
    archive = exported(root)
    taken_in(root, archive, "cam-2")
    units = range(20)
    readers = [SessionReader.open(root, name) for name in (SESSION, "cam-2")]
    for layer in range(SMALL.layer_count):
        ours, theirs = (read_units(each, each.snapshot(), units, layer) for each in readers)
        assert ours[0].tobytes() == theirs[0].tobytes()
        assert ours[1].tobytes() == theirs[1].tobytes()
    for reader in readers:
        assert reader.places[0].layout.encoding == encoding
        reader.close()


def test_a_session_without_blocks_travels_too(root: Path) -> None:
    create_session(root, RECORD)
    taken_in(root / "b", exported(root))
    assert holds(root / "b", SESSION, 0)


def test_damage_is_not_exported(root: Path) -> None:
    build(root)
    path = session_folder(root, SESSION) / "seg-000001.kvs"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    if not verify_store(root).damage:
        pytest.skip("the byte was padding")
    with pytest.raises(BlockCorruptError):
        exported(root)


def test_a_taken_name_is_refused_and_what_has_it_stays(root: Path) -> None:
    build(root)
    archive = exported(root)
    before = segments(root, SESSION)
    for name in (None, SESSION):
        with pytest.raises(SessionExistsError):
            taken_in(root, archive, name)
    assert segments(root, SESSION) == before


@pytest.mark.parametrize(
    "limits",
    [
        BlockLimits(min_free_bytes=1 << 60),
        BlockLimits(min_free_bytes=0, budget=DiskBudget(store_bytes=100_000)),
        BlockLimits(min_free_bytes=0, budget=DiskBudget(session_bytes=100_000)),
    ],
    ids=["disk", "store", "session"],
)
def test_without_room_nothing_is_written(root: Path, limits: BlockLimits) -> None:
    build(root / "a")
    archive = exported(root / "a")
    assert len(archive) > 100_000
    with pytest.raises(StoreFullError):
        import_session(root / "b", io.BytesIO(archive), limits=limits)
    assert nothing_came(root / "b")


def test_no_shorter_archive_is_taken(root: Path) -> None:
    build(root / "a")
    archive = exported(root / "a")
    manifest_end = archive.index(b'"manifest"') + 512
    rng = random.Random(0)
    cuts = [0, 1, 511, 512, 1024, *(rng.randrange(manifest_end - 512) for _ in range(60))]
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        cuts += [member.offset for member in tar]
    for cut in cuts:
        with pytest.raises(BadArchiveError):
            taken_in(root / "b", archive[:cut])
        assert nothing_came(root / "b"), cut


def test_no_flipped_bit_of_an_archive_is_taken(root: Path) -> None:
    build(root / "a")
    archive = exported(root / "a")
    rng = random.Random(1)
    refused = 0
    for _ in range(120):
        flipped = bytearray(archive)
        flipped[rng.randrange(len(archive))] ^= 1 << rng.randrange(8)
        try:
            taken_in(root / "b", bytes(flipped))
        except BadArchiveError:
            refused += 1
            assert nothing_came(root / "b")
            continue
        # Only what is not part of any file: padding of the tar, owner and time of a member.
        assert segments(root / "b", SESSION) == segments(root / "a", SESSION)
        assert load_session(root / "b", SESSION) == RECORD
        for path in session_folder(root / "b", SESSION).iterdir():
            path.unlink()
        session_folder(root / "b", SESSION).rmdir()
    assert refused > 80


def rebuilt(archive: bytes, change: str) -> bytes:
    """The archive with one member replaced by something that does not belong there."""
    out = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(archive)) as old,
        tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in old:
            file = old.extractfile(member)
            assert file is not None
            data = file.read()
            if change == "climbs" and member.name == "seg-000000.kvs":
                member.name = "../../../climbed.kvs"
            if change == "absolute" and member.name == "seg-000000.kvs":
                member.name = "/tmp/climbed.kvs"
            if change == "head climbs" and member.name == HEAD_NAME:
                data = data.replace(b"seg-000000.kvs", b"../../climbed.")
            if change == "head names a foreign session" and member.name == HEAD_NAME:
                data = data.replace(b'"cam-1"', b'"../ca"')
            if change == "other version" and member.name == HEAD_NAME:
                data = data.replace(b'"version": 1', b'"version": 9')
            if change in ("link", "hard link") and member.name == "seg-000000.kvs":
                member.type = tarfile.SYMTYPE if change == "link" else tarfile.LNKTYPE
                member.linkname = "/etc/passwd"
                data = b""
            if change == "device" and member.name == "seg-000000.kvs":
                member.type = tarfile.CHRTYPE
                data = b""
            if change == "doubled" and member.name == MANIFEST_NAME:
                new.addfile(member, io.BytesIO(data))
            if change == "no manifest" and member.name == MANIFEST_NAME:
                continue
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    return out.getvalue()


MEMBERS = ("climbs", "absolute", "link", "hard link", "device")


@pytest.mark.parametrize(
    "change",
    [
        "climbs",
        "absolute",
        "head climbs",
        "head names a foreign session",
        "other version",
        "link",
        "hard link",
        "device",
        "doubled",
        "no manifest",
    ],
)
def test_a_foreign_archive_writes_nowhere(root: Path, change: str) -> None:
    build(root / "a")
    archive = exported(root / "a")
    taken_in(root / "control", rebuilt(archive, "nothing"))
    said = "where seg-000000.kvs belongs" if change in MEMBERS else "the archive cannot be used"
    with pytest.raises(BadArchiveError, match=said):
        taken_in(root / "b", rebuilt(archive, change))
    assert nothing_came(root / "b")
    assert list(root.rglob("climbed*")) == []
    assert not Path("/tmp/climbed.kvs").exists()


def test_blocks_that_are_damaged_under_a_right_manifest_are_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exporter that does not look at what it writes is caught by the importer."""
    build(root / "a")
    path = session_folder(root / "a", SESSION) / "seg-000001.kvs"
    data = bytearray(path.read_bytes())
    place = len(bytes(data).rstrip(b"\0")) - 1
    data[place] ^= 1
    path.write_bytes(data)
    monkeypatch.setattr("kvstore.export._verify", lambda session_id, segment: None)
    archive = exported(root / "a")
    with pytest.raises(BadArchiveError, match="damaged"):
        taken_in(root / "b", archive)
    assert nothing_came(root / "b")


def test_what_derives_from_the_blocks_is_made_before_the_session_appears(root: Path) -> None:
    build(root / "a")
    seen = []

    def finish(aside: Path, name: str) -> None:
        seen.append((session_ids(root / "b"), holds(aside, name, UNIT_COUNT)))
        (session_folder(aside, name) / "derived").touch()

    archive = io.BytesIO(exported(root / "a"))
    import_session(root / "b", archive, session_id="cam-9", finish=finish)
    assert seen == [([], True)]
    assert (session_folder(root / "b", "cam-9") / "derived").exists()


def test_an_import_that_fails_at_the_end_leaves_nothing(root: Path) -> None:
    build(root / "a")

    def finish(aside: Path, name: str) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        import_session(root / "b", io.BytesIO(exported(root / "a")), finish=finish)
    assert nothing_came(root / "b")


_IMPORT = """
import sys
from pathlib import Path
from kvstore.importing import import_session
import_session(Path(sys.argv[1]), sys.stdin.buffer, progress=lambda *_: print(flush=True))
"""


def test_an_import_that_is_killed_leaves_no_session_and_can_be_done_again(root: Path) -> None:
    build(root / "a")
    archive = exported(root / "a")
    there = root / "b"
    process = subprocess.Popen(
        [sys.executable, "-c", _IMPORT, str(there)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(archive[: len(archive) * 2 // 3])
    process.stdin.flush()
    process.stdout.readline()  # a part of the first file is written
    assert sweep_incoming(there) == 0  # it is at work
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    assert session_ids(there) == []
    assert sweep_incoming(there) == 1
    taken_in(there, archive)
    assert holds(there, SESSION, UNIT_COUNT)


def test_only_interrupted_imports_are_swept(root: Path) -> None:
    with made_aside(root) as at_work:
        left = incoming_folder(root) / "left"
        (left / "sessions").mkdir(parents=True)
        assert sweep_incoming(root) == 1
        assert at_work.is_dir()
        assert not left.exists()
    assert sweep_incoming(root) == 0
    assert not sessions_folder(root).exists()
