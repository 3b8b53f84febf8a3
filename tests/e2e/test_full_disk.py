"""A disk that is really full: the push is refused, what was acknowledged stays, room helps."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from svc.client import LookbackClient, LookbackError, PushFinished, PushProgress
from tests.e2e.asking import KINDS, Said
from tests.e2e.running import Service
from tests.e2e.videos import Pictures, push

DISK_BYTES = 16 * 2**20
"""Room for a session of 700 units and the first extents of four megabytes of another."""
OWN_MOUNTS = ("unshare", "--user", "--map-root-user", "--mount")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Where the service, and it alone, will find a disk of its own."""
    tried = [*OWN_MOUNTS, "mount", "-t", "tmpfs", "none", str(tmp_path)]
    try:
        outcome = subprocess.run(tried, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("this machine has no unshare(1), so no disk of a test's own")
    if outcome.returncode:
        pytest.skip(f"no disk of a test's own is allowed here: {outcome.stderr.strip()}")
    return tmp_path / "service" / "data"


@pytest.fixture
def service(disk: Path, tiny_path: Path) -> Iterator[Service]:
    mount = f"mount -t tmpfs -o size={DISK_BYTES} none {disk}"
    with Service(
        folder=disk.parent,
        model=tiny_path,
        prefix=(*OWN_MOUNTS, "sh", "-c", f'{mount} && exec "$@"', "sh"),
    ) as service:
        yield service


async def push_all(
    client: LookbackClient, session: str, frames: list[tuple[float, int]], heard: list[PushProgress]
) -> None:
    """Pushes without a second try; `heard` is what the service acknowledged."""
    events = client.push(session, Pictures(frames=frames), give_up_after_s=0.0)
    async for event in events:
        if isinstance(event, PushProgress):
            heard.append(event)
        elif isinstance(event, PushFinished):
            heard.append(event.progress)


async def test_a_full_disk_refuses_the_push_and_loses_nothing(service: Service) -> None:
    frames = [(float(i), i) for i in range(1500)]
    question, options = KINDS["greedy"]
    heard: list[PushProgress] = []
    async with service.client() as client:
        await push(client, "old", frames[:700], fps=1.0)
        await client.create_session("new")
        with pytest.raises(LookbackError) as caught:
            await push_all(client, "new", frames, heard)
        error = caught.value
        assert error.metadata.get("last_reason", error.reason) == "STORE_FULL"
        assert "\n" not in error.message
        at_s = heard[-1].durable_pts_s
        assert at_s is not None
        stats = (await client.get_session("new")).stats
        assert stats.durable_unit_count == heard[-1].durable_unit_count > 10
        before = await client.answer("new", question, **{**options, "asked_at_s": at_s})
        assert before.evidence_until_s == at_s

        await client.delete_session("old")
        rest = [frame for frame in frames if frame[0] <= at_s + 20.0]
        await push_all(client, "new", rest, heard)
        assert heard[-1].durable_unit_count == len(rest)
        after = await client.answer("new", question, **{**options, "asked_at_s": at_s})
        Said.of(after).assert_near(Said.of(before))
    assert await asyncio.to_thread(service.stop) == 0
