"""Sessions that nobody pushes to forget what is old while questions are asked about them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio

from kvstore.verify import verify_store
from svc.client import KeepingRules, LookbackClient, LookbackError, SessionSettings
from tests.e2e.running import SMALL
from tests.e2e.videos import Pictures
from tests.svc.ingest.processes import START_TIMEOUT_S, IngestProcess

_RETAIN_S = 6.0
_SWEEPS_OFTEN = """
import sys
import svc.ingest.sweeper
svc.ingest.sweeper.LOOK_EVERY_S = 0.2
from svc.ingest.process import main
sys.exit(main())
"""


class _QaProcess(IngestProcess):
    """The process that answers."""

    async def ready(self) -> _QaProcess:
        assert self._process.stdout is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            line = await self._process.stdout.readline()
        if not line:
            raise AssertionError((await self.ended())[1])
        self.address = json.loads(line)["address"]
        return self


@pytest_asyncio.fixture
async def client(tmp_path: Path, tiny_path: Path) -> AsyncIterator[LookbackClient]:
    """A client of two processes over one store, of which one sweeps all the time."""
    shm = tmp_path / "shm"
    shm.mkdir()
    values: dict[str, Any] = {
        **SMALL,
        "model": tiny_path,
        "data_dir": tmp_path / "store",
        "shm_dir": shm,
        "ingest_port": 0,
        "qa_port": 0,
        "window_tokens": 18,
    }
    ingest = await IngestProcess.start(values, arguments=["-c", _SWEEPS_OFTEN])
    qa = await _QaProcess.start(values, arguments=["-m", "svc.qa"])
    try:
        await ingest.ready()
        await qa.ready()
        async with LookbackClient(ingest.address, qa.address) as connected:
            yield connected
    finally:
        for process in (ingest, qa):
            await process.stop()


async def _push(client: LookbackClient, session_id: str, *, finish: bool) -> None:
    frames = [(second / 2, second) for second in range(60)]
    await client.create_session(
        session_id,
        settings=SessionSettings(sample_fps=2.0),
        keeping=KeepingRules(retain_s=_RETAIN_S),
    )
    async for _ in client.push(session_id, Pictures(frames=frames), finish=finish):
        pass


async def _ask(client: LookbackClient, session_id: str, told: Counter[str]) -> None:
    """Asks until the session is gone, or its oldest is; every answer is from what was there."""
    while True:
        try:
            answer = await client.answer(session_id, "What was it?")
        except LookbackError as error:
            told[error.reason] += 1
            if error.reason == "SESSION_NOT_FOUND":
                return
            continue
        told["forgot" if answer.remembers_from_s is not None else "whole"] += 1
        first_s = answer.remembers_from_s or 0.0
        assert all(moment.start_s >= first_s for moment in answer.evidence)
        if answer.remembers_from_s is not None and told["forgot"] > 10:
            return


async def test_questions_are_answered_or_told_what_is_gone_while_idle_sessions_forget(
    client: LookbackClient, tmp_path: Path
) -> None:
    await asyncio.gather(
        _push(client, "live", finish=False),
        _push(client, "over", finish=True),
        _push(client, "pinned", finish=True),
    )
    await client.pin_span("pinned", 5.0, 6.0)
    told: dict[str, Counter[str]] = {name: Counter() for name in ("live", "over")}
    async with asyncio.TaskGroup() as tasks:
        for name, counts in told.items():
            tasks.create_task(_ask(client, name, counts))
    assert told["live"]["forgot"]
    assert told["over"]["SESSION_NOT_FOUND"] == 1
    for counts in told.values():
        assert set(counts) <= {"whole", "forgot", "SNAPSHOT_LOST", "SESSION_NOT_FOUND"}, counts
    live, pinned = await client.get_session("live"), await client.get_session("pinned")
    assert live.stats.last_durable_pts_s == 29.5
    assert live.stats.dropped_unit_count > 0
    assert pinned.stats.first_pts_s is not None
    assert pinned.stats.first_pts_s <= 5.0
    assert (await client.answer("pinned", "What was it?", asked_at_s=5.5)).text is not None
    assert verify_store(tmp_path / "store").damage == ()
