"""A start makes indexes whole that questions cannot use, of sessions that are over too."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval.errors import IndexDamagedError
from retrieval.index_file import IndexFile
from svc.engine.index_repair import header_fault, row_fault
from svc.engine.key_rows import key_index_path
from svc.ingest import repairs as repairs_module
from svc.ingest import server as server_module
from svc.ingest.repairs import IndexRepairs
from tests.svc.ingest.calls import FINISH, Client, images, open_images
from tests.svc.ingest.conftest import StartServer
from tests.svc.ingest.stored import assert_same, read_stored


async def push(client: Client, session_id: str, *, finish: bool) -> None:
    await client.create(session_id)
    call = await client.open(open_images(session_id))
    await call.send(images([float(i) for i in range(6)]))
    await call.until_visible(6)
    await (call.send(FINISH) if finish else call.half_close())
    await call.rest()


async def rows_checked(client: Client) -> None:
    """Waits for what goes on beside serving."""
    assert client.server._repairing is not None
    await client.server._repairing


@pytest.mark.parametrize("finish", [True, False])
async def test_an_index_that_is_gone_is_back_after_a_start(
    start: StartServer, values: dict[str, Any], finish: bool
) -> None:
    root: Path = values["data_dir"]
    client = await start()
    await push(client, "cam", finish=finish)
    await client.close()
    before = read_stored(root, "cam")
    key_index_path(root, "cam").unlink()
    client = await start()
    assert_same(read_stored(root, "cam"), before)
    assert (await client.sessions("GetSession", session_id="cam")).session.state == 1 + finish


async def test_a_bit_that_flipped_in_the_index_of_a_finished_session_is_mended_by_a_start(
    start: StartServer, values: dict[str, Any]
) -> None:
    root: Path = values["data_dir"]
    client = await start()
    await push(client, "cam", finish=True)
    await client.close()
    before = read_stored(root, "cam")
    file = IndexFile.open(key_index_path(root, "cam"), writable=True)
    file.map_chunks(1)[0].rows.view(np.uint32)[0, 3, 1] ^= 1
    file.close()
    with pytest.raises(IndexDamagedError, match="row 3"):
        read_stored(root, "cam")
    await rows_checked(await start())
    assert_same(read_stored(root, "cam"), before)


async def test_a_session_that_cannot_be_repaired_keeps_no_other_from_it(
    start: StartServer, values: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    root: Path = values["data_dir"]
    client = await start()
    for name in ("bad", "good"):
        await push(client, name, finish=True)
    await client.close()
    before = read_stored(root, "good")
    for name in ("bad", "good"):
        key_index_path(root, name).unlink()
    segment = next((root / "sessions" / "bad").glob("seg-*.kvs"))
    segment.write_bytes(bytes(64) + segment.read_bytes()[64:])
    with caplog.at_level(logging.ERROR):
        await start()
    failed = [r for r in caplog.records if r.message == "key index cannot be made whole"]
    assert [record.__dict__["session"] for record in failed] == ["bad"]
    assert_same(read_stored(root, "good"), before)


async def test_a_repair_that_takes_long_does_not_hold_up_serving(
    start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def endless(repairs: IndexRepairs, threads: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(IndexRepairs, "run", endless)
    monkeypatch.setattr(server_module, "INDEX_REPAIR_WAIT_S", 0.01)
    client = await start()
    await push(client, "cam", finish=True)
    assert await client.stop_server()


async def test_what_headers_tell_of_is_mended_before_any_row_is_read_and_serving_waits_for_no_row(
    start: StartServer, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    root: Path = values["data_dir"]
    client = await start()
    for name in ("first", "torn"):
        await push(client, name, finish=True)
    await client.close()
    before = read_stored(root, "torn")
    key_index_path(root, "torn").unlink()
    looked: list[str] = []
    may_go_on = threading.Event()

    def held(root: Path, session_id: str) -> str | None:
        looked.append(session_id)
        may_go_on.wait()
        return row_fault(root, session_id)

    monkeypatch.setattr(repairs_module, "row_fault", held)
    monkeypatch.setattr(server_module, "INDEX_REPAIR_WAIT_S", 3600.0)
    client = await start()  # serves, though the rows are held
    try:
        assert_same(read_stored(root, "torn"), before)
    finally:
        may_go_on.set()
    await rows_checked(client)
    assert looked == ["first"]  # the other was read as it was mended


async def test_a_look_that_breaks_is_logged_and_keeps_no_other_from_it(
    start: StartServer,
    values: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    root: Path = values["data_dir"]
    client = await start()
    for name in ("bad", "good"):
        await push(client, name, finish=True)
    await client.close()
    before = read_stored(root, "good")
    key_index_path(root, "good").unlink()

    def broken(root: Path, session_id: str) -> str | None:
        if session_id == "bad":
            raise ValueError("nobody thought of it")
        return header_fault(root, session_id)

    monkeypatch.setattr(repairs_module, "header_fault", broken)
    await rows_checked(await start())
    assert "nobody thought of it" in caplog.text
    assert_same(read_stored(root, "good"), before)
