"""Units of a session as a client lists them: in order, page by page, between times."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.svc.ingest.calls import FINISH, Client, Refused, images, open_images
from tests.svc.ingest.conftest import StartServer

SETTINGS = {"sample_fps": 1.0, "reduction": "budget:0.5"}
COUNT = 12


@pytest.fixture
async def client(start: StartServer) -> Client:
    client = await start()
    await client.create("cam", **SETTINGS)
    call = await client.open(open_images("cam"))
    await call.send(images([*range(6), *range(20, 26)]), FINISH)
    await call.rest()
    return client


async def listed(client: Client, **fields: Any) -> Any:
    return await client.sessions("ListUnits", session_id="cam", **fields)


async def test_every_unit_says_what_is_kept_of_it(client: Client) -> None:
    units = (await listed(client)).units
    assert [unit.first_pts_s for unit in units] == [*range(6), *range(20, 26)]
    assert [unit.gap_before for unit in units] == [i == 6 for i in range(COUNT)]
    for unit in units:
        assert unit.drop_fraction == pytest.approx(1 - unit.token_count / 9)
    assert {units[0].drop_fraction, units[6].drop_fraction} == {0.0}  # whole after a gap
    assert 0 < units[1].drop_fraction < 1
    stats = (await client.sessions("GetSession", session_id="cam")).session.stats
    assert stats.drop_fraction == pytest.approx(1 - stats.token_count / (9 * COUNT))


@pytest.mark.parametrize("page_size", [1, 5, 12, 100])
async def test_pages_hold_every_unit_once(client: Client, page_size: int) -> None:
    found: list[float] = []
    token = ""
    while True:
        page = await listed(client, page_size=page_size, page_token=token)
        assert 1 <= len(page.units) <= page_size
        found += [unit.first_pts_s for unit in page.units]
        token = page.next_page_token
        if not token:
            break
    assert found == [*range(6), *range(20, 26)]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"start_s": 4.0}, [4, 5, *range(20, 26)]),
        ({"end_s": 4.0}, [0, 1, 2, 3]),
        ({"start_s": 4.5, "end_s": 21.5}, [5, 20, 21]),
        ({"start_s": 30.0}, []),
        ({"start_s": -math.inf, "end_s": math.inf}, [*range(6), *range(20, 26)]),
    ],
)
async def test_a_span_lists_the_units_that_are_in_it(
    client: Client, times: dict[str, float], expected: list[float]
) -> None:
    page = await listed(client, **times)
    assert [unit.first_pts_s for unit in page.units] == expected
    assert not page.next_page_token


@pytest.mark.parametrize(
    ("field", "value"),
    [("page_size", -1), ("page_token", "next"), ("start_s", math.nan), ("end_s", math.nan)],
)
async def test_what_cannot_be_listed_is_refused(client: Client, field: str, value: Any) -> None:
    with pytest.raises(Refused) as refusal:
        await listed(client, **{field: value})
    assert refusal.value.reason == "INVALID_REQUEST"
    assert field in refusal.value.message


async def test_a_reduction_that_is_none_is_refused(start: StartServer) -> None:
    client = await start()
    with pytest.raises(Refused) as refusal:
        await client.create("cam", reduction="last_kept:hard")
    assert refusal.value.reason == "INVALID_REQUEST"
    assert "light, balanced, aggressive" in refusal.value.message
