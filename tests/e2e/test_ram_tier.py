"""The RAM tier in the whole service: answers are the same and say where from; memory is bounded."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from kvstore.hotfile import root_hash
from svc.client import LookbackClient, Tier
from tests.e2e.asking import KINDS, Said, fresh_name
from tests.e2e.running import Service
from tests.e2e.videos import push

FRAMES = [(float(second), second) for second in range(24)]
BUDGET_BYTES = 16 * 2**20
TRACE_BYTES = 2 * 2**20
"""Of the QA process' ring, beside the budget."""


async def ask(client: LookbackClient, session: str) -> tuple[Said, set[Tier]]:
    question, options = KINDS["greedy"]
    answer = await client.answer(session, question, **options)
    return Said.of(answer), {moment.tier for moment in answer.evidence}


def shared_bytes(service: Service) -> int:
    return sum(path.stat().st_blocks * 512 for path in service.shm.iterdir())


def assert_sound_and_stopped(service: Service) -> None:
    """Memory was taken within its budget, and is given back by a stop."""
    assert 0 < shared_bytes(service) <= BUDGET_BYTES + TRACE_BYTES
    service.stop()
    assert service.faults() == ""
    assert list(service.shm.iterdir()) == []


async def test_answers_say_that_they_were_read_from_memory_and_are_those_of_the_disk(
    tmp_path: Path, tiny_path: Path
) -> None:
    """And what a question read from the disk is in memory for a later one."""
    settings = {"ram_budget_bytes": BUDGET_BYTES}
    with Service(folder=tmp_path, model=tiny_path, settings=settings) as service:
        async with service.client() as client:
            await push(client, "cam", FRAMES, fps=1.0)
            remembered, tiers = await ask(client, "cam")
            assert tiers == {Tier.RAM}
        assert_sound_and_stopped(service)
    stale = service.shm / f"lookback-{os.getuid()}-{root_hash(service.data)}-1.ram"
    stale.touch()  # as an ingest process leaves it that was killed
    with Service(folder=tmp_path, model=tiny_path, settings=settings) as service:
        assert not stale.exists()
        async with service.client() as client:
            assert await ask(client, "cam") == (remembered, {Tier.DISK})
            for _ in range(200):
                said, tiers = await ask(client, "cam")
                assert said == remembered
                if tiers == {Tier.RAM}:
                    break
                await asyncio.sleep(0.1)
            assert tiers == {Tier.RAM}
        assert_sound_and_stopped(service)


async def test_without_a_budget_answers_are_read_from_the_disk_each_time(
    shared_service: Service,
) -> None:
    session = fresh_name("cam")
    async with shared_service.client() as client:
        await push(client, session, FRAMES, fps=1.0)
        first, tiers = await ask(client, session)
        assert tiers == {Tier.DISK}
        assert await ask(client, session) == (first, {Tier.DISK})
