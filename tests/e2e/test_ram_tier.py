"""The RAM tier in the whole service: answers are the same and say where from; memory is bounded."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from kvstore.hotfile import root_hash
from svc.client import LookbackClient, Tier
from tests.e2e.asking import KINDS, Said
from tests.e2e.running import Service
from tests.e2e.videos import push

FRAMES = [(float(second), second) for second in range(24)]
BUDGET_BYTES = 16 * 2**20
TRACE_BYTES = 2 * 2**20
"""Of the QA process' ring, beside the budget."""


async def ask(client: LookbackClient) -> tuple[Said, set[Tier]]:
    question, options = KINDS["greedy"]
    answer = await client.answer("cam", question, **options)
    return Said.of(answer), {moment.tier for moment in answer.evidence}


def shared_bytes(service: Service) -> int:
    return sum(path.stat().st_blocks * 512 for path in service.shm.iterdir())


async def test_answers_say_that_they_were_read_from_memory_and_are_those_of_the_disk(
    tmp_path: Path, tiny_path: Path
) -> None:
    settings = {"ram_budget_bytes": BUDGET_BYTES}
    with Service(folder=tmp_path, model=tiny_path, settings=settings) as service:
        async with service.client() as client:
            await push(client, "cam", FRAMES, fps=1.0)
            remembered, tiers = await ask(client)
            assert tiers == {Tier.RAM}
        assert 0 < shared_bytes(service) <= BUDGET_BYTES + TRACE_BYTES
        service.stop()
        assert service.faults() == ""
        assert list(service.shm.iterdir()) == []
    stale = service.shm / f"lookback-{os.getuid()}-{root_hash(service.data)}-1.ram"
    stale.touch()  # as an ingest process leaves it that was killed
    with Service(folder=tmp_path, model=tiny_path, settings=settings) as service:
        assert not stale.exists()
        async with service.client() as client:
            read, tiers = await ask(client)
            assert tiers == {Tier.DISK}
            assert read == remembered


async def test_what_a_question_read_from_the_disk_is_in_memory_for_a_later_one(
    tmp_path: Path, tiny_path: Path
) -> None:
    with Service(folder=tmp_path, model=tiny_path) as service:
        async with service.client() as client:
            await push(client, "cam", FRAMES, fps=1.0)
            read, tiers = await ask(client)
            assert tiers == {Tier.DISK}
    settings = {"ram_budget_bytes": BUDGET_BYTES}
    with Service(folder=tmp_path, model=tiny_path, settings=settings) as service:
        async with service.client() as client:
            assert await ask(client) == (read, {Tier.DISK})
            for _ in range(200):
                said, tiers = await ask(client)
                assert said == read
                if tiers == {Tier.RAM}:
                    break
                await asyncio.sleep(0.1)
            assert tiers == {Tier.RAM}
        assert 0 < shared_bytes(service) <= BUDGET_BYTES + TRACE_BYTES
        service.stop()
        assert service.faults() == ""
        assert list(service.shm.iterdir()) == []
