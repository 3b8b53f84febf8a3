"""Rules of one session for what is kept: over the server's, reported, and when they take hold."""

from __future__ import annotations

import math
from typing import Any

import grpc
import pytest

from kvstore.diskuse import used_bytes
from kvstore.paths import session_folder
from svc.config import Settings
from svc.ingest.keeping import KeepingRules
from tests.svc.ingest.calls import Client, Refused, images, open_images
from tests.svc.ingest.conftest import StartServer

_MIB = 2**20
_BUDGET = _MIB + _MIB // 2
REFUSE, DROP_OLDEST, THIN = 1, 2, 3


async def create(client: Client, session_id: str = "cam", **keeping: Any) -> Any:
    response = await client.sessions(
        "CreateSession", session_id=session_id, keeping=keeping, exist_ok=True
    )
    return response.session


async def update(client: Client, paths: list[str], **keeping: Any) -> Any:
    response = await client.sessions(
        "UpdateSession",
        session={"session_id": "cam", "keeping": keeping},
        update_mask={"paths": paths},
    )
    return response.session


async def push(client: Client, count: int, session_id: str = "cam") -> None:
    call = await client.open(open_images(session_id))
    await call.send_all([images([float(i)]) for i in range(count)])
    await call.half_close()
    await call.rest()


def rules(message: Any) -> tuple[int, int, float]:
    return message.session_budget_bytes, message.on_full, message.retain_s


async def test_what_is_said_is_kept_and_what_is_not_is_the_servers_of_the_day(
    start: StartServer,
) -> None:
    client = await start(retain_s=60.0, session_budget_bytes=9 * _MIB)
    session = await create(client, on_full=DROP_OLDEST)
    assert rules(session.keeping) == (0, DROP_OLDEST, 0.0)
    assert rules(session.keeping_in_force) == (9 * _MIB, DROP_OLDEST, 60.0)
    await client.close()
    client = await start(retain_s=5.0)
    shown = (await client.sessions("GetSession", session_id="cam")).session
    assert rules(shown.keeping_in_force) == (0, DROP_OLDEST, 5.0)
    listed = (await client.sessions("ListSessions")).sessions[0]
    assert listed.keeping_in_force == shown.keeping_in_force


async def test_an_update_changes_what_its_mask_names_and_nothing_else(start: StartServer) -> None:
    client = await start(retain_s=60.0)
    await create(client, session_budget_bytes=2 * _MIB, on_full=THIN, retain_s=10.0)
    changed = await update(client, ["keeping.retain_s"], retain_s=math.inf)
    assert rules(changed.keeping) == (2 * _MIB, THIN, math.inf)
    assert rules(changed.keeping_in_force) == (2 * _MIB, THIN, 0.0)
    changed = await update(client, ["keeping"], session_budget_bytes=3 * _MIB)
    assert rules(changed.keeping) == (3 * _MIB, 0, 0.0)
    assert rules(changed.keeping_in_force) == (3 * _MIB, REFUSE, 60.0)
    shown = (await client.sessions("GetSession", session_id="cam")).session
    assert shown == changed


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("session_budget_bytes", -1),
        ("session_budget_bytes", _MIB - 1),
        ("session_budget_bytes", 2**63 - 1),
        ("on_full", 9),
        ("on_full", -1),
        ("retain_s", -1.0),
        ("retain_s", math.nan),
        ("retain_s", -math.inf),
    ],
)
async def test_rules_that_cannot_be_kept_to(start: StartServer, field: str, value: Any) -> None:
    client = await start()
    await create(client)
    for asked in (
        create(client, "other", **{field: value}),
        update(client, ["keeping"], **{field: value}),
        update(client, [f"keeping.{field}"], **{field: value}),
    ):
        with pytest.raises(Refused) as caught:
            await asked
        assert (caught.value.reason, caught.value.code) == (
            "INVALID_REQUEST",
            grpc.StatusCode.INVALID_ARGUMENT,
        )
        assert field in caught.value.message
    shown = (await client.sessions("GetSession", session_id="cam")).session
    assert rules(shown.keeping) == (0, 0, 0.0)


@pytest.mark.parametrize(
    "paths", [[], ["keeping.nonsense"], ["pinned_spans"], ["keeping", "state"]]
)
async def test_a_mask_that_names_what_cannot_change(start: StartServer, paths: list[str]) -> None:
    client = await start()
    await create(client)
    with pytest.raises(Refused) as caught:
        await update(client, paths, retain_s=5.0)
    assert caught.value.reason == "INVALID_REQUEST"
    assert "of display_name, keeping, keeping.session_budget_bytes" in caught.value.message


async def test_a_session_that_exists_with_other_rules_does_not_agree(start: StartServer) -> None:
    client = await start()
    await create(client, retain_s=10.0)
    assert rules((await create(client, retain_s=10.0)).keeping) == (0, 0, 10.0)
    assert rules((await create(client)).keeping) == (0, 0, 10.0)
    with pytest.raises(Refused) as caught:
        await create(client, retain_s=11.0)
    assert caught.value.reason == "SESSION_EXISTS"
    assert "retain_s 10.0, got 11.0" in caught.value.message


async def test_a_budget_of_its_own_holds_for_a_session_alone(
    start: StartServer, values: dict[str, Any]
) -> None:
    client = await start(block_span_s=2.0, window_tokens=32)
    await create(client, "small", session_budget_bytes=_BUDGET, on_full=DROP_OLDEST)
    await create(client, "free")
    for name in ("small", "free"):
        await push(client, 260, name)
    folders = {name: session_folder(values["data_dir"], name) for name in ("small", "free")}
    assert used_bytes(folders["small"]) <= _BUDGET < used_bytes(folders["free"])
    stats = (await client.sessions("GetSession", session_id="small")).session.stats
    assert stats.dropped_unit_count > 0
    assert stats.last_durable_pts_s == 259.0


async def test_a_changed_rule_holds_from_the_next_open_on(start: StartServer) -> None:
    client = await start(block_span_s=2.0)
    await create(client, session_budget_bytes=_BUDGET)
    call = await client.open(open_images("cam"))
    await update(client, ["keeping.session_budget_bytes"], session_budget_bytes=9 * _MIB)
    with pytest.raises(Refused, match="STORE_FULL"):
        await call.send_all([images([float(i)]) for i in range(260)])
    call.cancel()
    await push(client, 260)
    stats = (await client.sessions("GetSession", session_id="cam")).session.stats
    assert stats.last_durable_pts_s == 259.0
    assert stats.disk_bytes > _BUDGET


def test_rules_are_the_same_when_they_come_back_from_a_record() -> None:
    for said in (
        KeepingRules(),
        KeepingRules(session_budget_bytes=_MIB, on_full="thin", retain_s=1.5),
        KeepingRules(retain_s=math.inf),
    ):
        record = {"keeping": said.to_record()}
        assert KeepingRules.of_record(record) == said
    assert KeepingRules.of_record({}) == KeepingRules()
    assert KeepingRules(retain_s=math.inf).in_force(Settings(retain_s=5.0)).retain_s == 0.0
