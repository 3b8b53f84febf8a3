"""The service with models whose units are two frames, with positions of three axes.

Live answers at a time equal later ones as of it, over a restart too, whatever is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from svc.client import LookbackError, PushFinished, SessionSettings, wait_ready
from tests.e2e.asking import ask_all, fresh_name
from tests.e2e.running import Service
from tests.e2e.videos import Pictures, push
from tests.svc.engine.tiny_qwen import build_qwen3, build_qwen25

FPS = 2.0
Build = Callable[[Path], Path]


@pytest.fixture(scope="module", params=[build_qwen25, build_qwen3], ids=["qwen2_5_vl", "qwen3_vl"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    build: Build = request.param
    model = build(folder / "model")
    with Service(folder=folder, model=model, settings={"units_per_pass": 1}) as running:
        yield running
        assert running.stop() == 0
        assert "Traceback" not in running.log


@pytest.mark.parametrize("reduction", ["none", "last_kept:0.9"])
def test_an_answer_is_the_same_live_later_and_after_a_restart(
    service: Service, reduction: str
) -> None:
    frames = [(index / FPS, 100 + index // 2) for index in range(25)]

    async def ask() -> None:
        session = fresh_name("pairs")
        async with service.client() as client:
            await push(client, session, frames[:12], fps=FPS, reduction=reduction, finish=False)
            as_of_s = frames[11][0]
            live = await ask_all(client, session)
            service.kill("ingest")
            await wait_ready(service.ingest_address, 60.0)
            events = [event async for event in client.push(session, Pictures(frames=frames))]
            ended = events[-1]
            assert isinstance(ended, PushFinished)
            later = await ask_all(client, session, asked_at_s=as_of_s)
            for kind, said in live.items():
                later[kind].assert_near(said)
            now = await ask_all(client, session)
            assert {said.seen[0] for said in now.values()} == {frames[-1][0]}  # the odd one, too
            assert ended.progress.visible_pts_s == frames[-1][0]

    asyncio.run(ask())


def test_a_sessions_frames_keep_the_shape_and_the_budget_that_it_was_made_with(
    service: Service,
) -> None:
    frames = [(index / FPS, 300 + index) for index in range(8)]

    async def ask() -> None:
        async with service.client() as client:
            counts = {}
            for name, settings in {
                "wide": SessionSettings(sample_fps=FPS),
                "tall": SessionSettings(sample_fps=FPS, frame_width=100, frame_height=400),
                "small": SessionSettings(sample_fps=FPS, unit_token_count=2),
            }.items():
                session = fresh_name(name)
                await client.create_session(session, settings=settings)
                async for _ in client.push(session, Pictures(frames=frames)):
                    pass
                live = await ask_all(client, session)
                counts[name] = (await client.get_session(session)).stats.token_count
                later = await ask_all(client, session, asked_at_s=frames[-1][0])
                for kind, said in live.items():
                    later[kind].assert_near(said)
            assert counts["small"] < counts["tall"] < counts["wide"]
            with pytest.raises(LookbackError, match="both or neither"):
                await client.create_session(
                    fresh_name("bad"), settings=SessionSettings(frame_width=100)
                )

    asyncio.run(ask())
