"""Calls about one session that meet: what a push may write to is looked at once it is free."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from svc.ingest.push import Push
from svc.ingest.session_records import Session
from svc.ingest.sessions import Sessions
from tests.svc.ingest.calls import FINISH, Refused, images, open_images
from tests.svc.ingest.conftest import StartServer


class Gate:
    """Holds a thread up until the test lets it go on."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._opened = threading.Event()

    def wait(self) -> None:
        """Says that the thread is here, and waits."""
        self._reached.set()
        assert self._opened.wait(30)

    async def reached(self) -> None:
        """Returns when a thread is here."""
        assert await asyncio.to_thread(self._reached.wait, 30)

    def open(self) -> None:
        """Lets go of it."""
        self._opened.set()


async def test_a_call_that_waits_for_one_that_finishes_is_refused(
    start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await start()
    await client.create("cam")
    finishing, waited = Gate(), asyncio.Event()
    finish, hurry = Sessions.finish, Push.hurry

    def slow_finish(sessions: Sessions, session_id: str) -> None:
        finishing.wait()
        finish(sessions, session_id)

    def heard_hurry(push: Push) -> None:
        waited.set()
        hurry(push)

    monkeypatch.setattr(Sessions, "finish", slow_finish)
    monkeypatch.setattr(Push, "hurry", heard_hurry)
    first = await client.open(open_images("cam"))
    await first.send(images([0.0, 1.0]), FINISH)
    await finishing.reached()
    second = client.ingest()
    await second.send(open_images("cam"))
    await waited.wait()  # it has come to where it waits for the first
    finishing.open()
    with pytest.raises(Refused) as caught:
        await second.receive()
    assert caught.value.reason == "SESSION_FINISHED"
    await first.rest()
    assert first.finished is not None


async def test_a_session_is_not_deleted_between_a_look_at_it_and_its_opening(
    start: StartServer, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await start()
    await client.create("cam")
    looked = Gate()
    get_pushable = Sessions.get_pushable

    def slow_look(sessions: Sessions, session_id: str) -> Session:
        session = get_pushable(sessions, session_id)
        looked.wait()
        return session

    monkeypatch.setattr(Sessions, "get_pushable", slow_look)
    opening = asyncio.create_task(client.open(open_images("cam")))
    await looked.reached()
    deleting = asyncio.create_task(client.sessions("DeleteSession", session_id="cam"))
    await asyncio.wait({deleting}, timeout=0.5)
    looked.open()
    call = await opening
    with pytest.raises(Refused) as caught:
        await deleting
    assert caught.value.reason == "SESSION_BUSY"
    await call.send(images([0.0]), FINISH)
    await call.rest()
    assert (Path(values["data_dir"]) / "sessions" / "cam" / "session.json").exists()


@pytest.mark.parametrize("client_stays", [True, False])
async def test_a_push_that_meets_a_deletion_makes_no_folder(
    start: StartServer,
    values: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    client_stays: bool,
) -> None:
    client = await start()
    await client.create("cam")
    deleting_now = Gate()
    delete = Sessions.delete

    def slow_delete(sessions: Sessions, session_id: str) -> None:
        deleting_now.wait()
        delete(sessions, session_id)

    monkeypatch.setattr(Sessions, "delete", slow_delete)
    deleting = asyncio.create_task(client.sessions("DeleteSession", session_id="cam"))
    await deleting_now.reached()
    if not client_stays:
        deleting.cancel()
        await asyncio.wait({deleting})
    opening = asyncio.create_task(client.open(open_images("cam")))
    await asyncio.wait({opening}, timeout=0.5)
    deleting_now.open()
    with pytest.raises(Refused) as caught:
        await opening
    assert caught.value.reason == "SESSION_NOT_FOUND"
    if client_stays:
        await deleting
    assert not list((Path(values["data_dir"]) / "sessions").iterdir())
