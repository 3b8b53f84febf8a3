"""A stream that is stored in int8 or int4: what is resumed from, derived from, refused and told."""

from __future__ import annotations

import asyncio
import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore.limits import BlockLimits
from svc.engine.index_repair import repair_index
from tests.svc.ingest.calls import FINISH, Client, IngestCall, images, open_images
from tests.svc.ingest.conftest import StartServer
from tests.svc.ingest.stored import Stored, read_stored

TIMES_S = [0.8 * i for i in range(16)]
WINDOW = {"window_token_count": 45, "sample_fps": 1.25}


async def push(client: Client, times_s: list[float], *, finish: bool = False) -> IngestCall:
    call = await client.open(open_images("cam"))
    await call.send_all(images([time_s]) for time_s in times_s)
    if finish:
        await call.send(FINISH)
    await call.half_close()
    return await call.rest()


async def whole(start: StartServer, values: dict[str, Any], encoding: str) -> Stored:
    """The stream as one push stores it."""
    data_dir = values["data_dir"] / encoding
    client = await start(data_dir=data_dir, kv_encoding=encoding)
    await client.create("cam", **WINDOW)
    await push(client, TIMES_S, finish=True)
    await client.close()
    return read_stored(data_dir, "cam")


def relative_error(stored: Stored, exact: Stored) -> float:
    distance = np.linalg.norm(stored.keys - exact.keys) / np.linalg.norm(exact.keys)
    return float(distance)


@pytest.mark.parametrize(("encoding", "allowed"), [("int8", 0.01), ("int4", 0.15)])
async def test_a_quantised_stream_is_close_to_the_exact_one_and_its_rows_are_of_its_own_keys(
    start: StartServer, values: dict[str, Any], encoding: str, allowed: float
) -> None:
    exact = await whole(start, values, "model")
    stored = await whole(start, values, encoding)
    assert stored.last_pts_s == exact.last_pts_s
    assert 0 < relative_error(stored, exact) < allowed
    starts = np.concatenate([[0], np.cumsum(stored.token_counts)])
    means = [stored.keys[0, a:b].mean(axis=0).ravel() for a, b in pairwise(starts)]
    np.testing.assert_allclose(stored.rows, np.stack(means), atol=1e-6)
    assert np.abs(stored.rows - exact.rows).max() > 1e-5  # the test can tell the two apart


async def test_an_index_made_anew_has_the_rows_it_had(
    start: StartServer, values: dict[str, Any]
) -> None:
    before = await whole(start, values, "int4")
    root = values["data_dir"] / "int4"
    (Path(root) / "sessions" / "cam" / "index.rows").unlink()
    await asyncio.to_thread(repair_index, root, "cam", limits=BlockLimits(min_free_bytes=0))
    np.testing.assert_array_equal(read_stored(root, "cam").rows, before.rows)


@pytest.mark.parametrize("encoding", ["model", "int8"])
async def test_a_resumed_push_says_whether_its_window_was_rounded(
    start: StartServer,
    values: dict[str, Any],
    encoding: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    exact = await whole(start, values, "model")
    client = await start(kv_encoding=encoding)
    created = await client.create("cam", **WINDOW)
    assert created.session.kv_encoding == encoding
    first = await push(client, TIMES_S[:7])
    assert not first.opened.window_rounded  # there was no window yet
    with caplog.at_level(logging.INFO, logger="svc.engine.ingest_session"):
        second = await push(client, TIMES_S, finish=True)
    assert second.opened.window_rounded == (encoding != "model")
    told = [record for record in caplog.records if "stored rounded" in record.message]
    assert len(told) == (encoding != "model")
    stored = read_stored(values["data_dir"], "cam")
    assert stored.last_pts_s == exact.last_pts_s
    assert relative_error(stored, exact) < 0.02


async def test_a_session_goes_on_in_its_own_encoding_whatever_new_ones_have(
    start: StartServer, values: dict[str, Any]
) -> None:
    client = await start(kv_encoding="int8")
    await client.create("cam", **WINDOW)
    await push(client, TIMES_S[:3])
    await client.close()
    client = await start(kv_encoding="int4")
    await push(client, TIMES_S, finish=True)
    assert (await client.create("new", **WINDOW)).session.kv_encoding == "int4"
    session = (await client.sessions("GetSession", session_id="cam")).session
    assert session.kv_encoding == "int8"
    assert read_stored(values["data_dir"], "cam").last_pts_s == TIMES_S
