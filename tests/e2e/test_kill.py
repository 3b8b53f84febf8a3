"""kill -9 of either process at any moment: nothing acknowledged is lost, nothing is there twice.

The short tests kill five times; the long ones (`-m slow`) seventy times.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from svc.client import (
    Answer,
    DecodingOptions,
    LookbackClient,
    LookbackError,
    PushFinished,
    PushOpened,
    PushProgress,
    SessionSettings,
    SessionState,
    TextDelta,
    wait_ready,
)
from tests.e2e.asking import KINDS, Said, ask_all, fresh_name
from tests.e2e.running import Service
from tests.e2e.videos import Pictures, push
from tests.svc.ingest.stored import assert_same, read_stored

FPS = 4.0
BACK_WITHIN_S = 240.0
FRAMES_BETWEEN_KILLS = 60
AWAY = {"CONNECTION_LOST", "UNREACHABLE"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, tiny_path: Path) -> Iterator[Service]:
    """A service that is killed a lot."""
    folder = tmp_path_factory.mktemp("killed")
    with Service(folder=folder, model=tiny_path, module="tests.e2e.quick_restarts") as service:
        yield service


@pytest.fixture(autouse=True)
def _faults(service: Service) -> Iterator[None]:
    """Shows with a failing test what the service had to say."""
    yield
    print(service.faults())


@pytest.fixture
def chance() -> random.Random:
    """Chance of this run; a failing test shows its seed."""
    seed = int.from_bytes(os.urandom(4))
    print(f"chance = random.Random({seed})")
    return random.Random(seed)


def film(frame_count: int) -> list[tuple[float, int]]:
    """Two frames for each that is sampled."""
    return [(i / (2 * FPS), i) for i in range(frame_count)]


@dataclass(kw_only=True)
class Log:
    """What the client was told, in order, as it would be in a file of its own."""

    acknowledged_count: int = 0
    acknowledged_s: float | None = None
    visible_count: int = 0
    reopened_count: int = 0
    finished: PushFinished | None = None
    asked_s: list[float] = field(default_factory=list)
    answers: list[Said] = field(default_factory=list)

    def note(self, event: object) -> None:
        match event:
            case PushOpened():
                self.reopened_count = event.reconnect_count
                if self.acknowledged_s is not None:
                    assert event.durable_pts_s is not None, "what was acknowledged is gone"
                    assert event.durable_pts_s >= self.acknowledged_s
                self.visible_count = 0
            case PushProgress():
                self._note_progress(event)
            case PushFinished():
                self._note_progress(event.progress)
                self.finished = event

    async def more_visible(self, unit_count: int) -> None:
        """Returns when some more is visible than now, or than a call began with meanwhile."""
        reopened_count, start = self.reopened_count, self.visible_count
        while self.finished is None and self.visible_count < start + unit_count:
            await asyncio.sleep(0.002)
            if self.reopened_count > reopened_count:
                reopened_count, start = self.reopened_count, self.acknowledged_count

    def _note_progress(self, progress: PushProgress) -> None:
        self.visible_count = progress.visible_unit_count
        assert progress.durable_unit_count >= self.acknowledged_count
        self.acknowledged_count = progress.durable_unit_count
        self.acknowledged_s = progress.durable_pts_s


async def push_through(
    client: LookbackClient, session: str, frames: list[tuple[float, int]], log: Log
) -> None:
    """Pushes until the service has it all; the client is left to get over what happens."""
    await client.create_session(session, settings=SessionSettings(sample_fps=FPS))
    async for event in client.push(session, Pictures(frames=frames)):
        log.note(event)


async def ask_as_of_what_is_acknowledged(
    client: LookbackClient, session: str, log: Log, chance: random.Random
) -> None:
    """Asks on and on; whoever asks is told when to ask again, and nothing else goes wrong."""
    while log.finished is None:
        await asyncio.sleep(0.05)
        if log.acknowledged_s is None:
            continue
        at_s = chance.uniform(0.0, log.acknowledged_s)
        answer = await answer_unless_told_to_wait(client, session, at_s)
        if answer is None:
            continue
        log.asked_s.append(at_s)
        log.answers.append(Said.of(answer))


async def answer_unless_told_to_wait(
    client: LookbackClient, session: str, at_s: float
) -> Answer | None:
    question, options = KINDS["greedy"]
    try:
        return await client.answer(session, question, **{**options, "asked_at_s": at_s})
    except LookbackError as error:
        if error.retry_after_s is None:
            raise
        return None


async def until(claim: Callable[[], object]) -> None:
    """Waits for what another process does; the suite's timeout is the limit."""
    while not claim():  # noqa: ASYNC110 - nothing here could set an event
        await asyncio.sleep(0.002)


async def kill_ingest_while_it_takes(
    service: Service, log: Log, chance: random.Random, kill_count: int
) -> None:
    """Kills it once some more has become visible; now and then also while it comes back."""
    for number in range(kill_count):
        if number % 4 == 3:
            await asyncio.sleep(chance.uniform(0.0, 5.0))  # loading, recovering, or taking video
        else:
            await log.more_visible(chance.randint(1, FRAMES_BETWEEN_KILLS // 4))
            await asyncio.sleep(chance.uniform(0.0, 0.03))
        assert log.finished is None, "the video is too short for so many kills"
        await until(lambda: service.kill("ingest"))


@asynccontextmanager
async def clients(service: Service) -> AsyncIterator[tuple[LookbackClient, LookbackClient]]:
    """One that pushes and one that asks."""
    async with service.client() as pushing, service.client() as asking:
        yield pushing, asking


async def assert_a_push_survives(
    service: Service, chance: random.Random, *, kill_count: int
) -> Log:
    """Kills while pushing and asking; compares with the same video pushed in peace."""
    frames = film(2 * FRAMES_BETWEEN_KILLS * (kill_count + 1))
    session, log = fresh_name("killed"), Log()
    qa_pid = service.pid("qa")
    async with clients(service) as (pushing, asking):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(push_through(pushing, session, frames, log))
            tasks.create_task(ask_as_of_what_is_acknowledged(asking, session, log, chance))
            await kill_ingest_while_it_takes(service, log, chance, kill_count)
        assert service.pid("qa") == qa_pid

        peace = fresh_name("peace")
        await push(pushing, peace, frames, fps=FPS)
        assert_same(read_stored(service.data, session), read_stored(service.data, peace))
        expected_s = [time_s for time_s, _ in frames[::2]]
        stored = read_stored(service.data, session)
        assert stored.first_pts_s == stored.last_pts_s == expected_s
        assert log.finished is not None
        assert log.finished.progress.durable_unit_count == len(expected_s)

        for at_s in (expected_s[0], *(chance.choice(expected_s) for _ in range(2)), None):
            when = {} if at_s is None else {"asked_at_s": at_s}
            ours, theirs = [await ask_all(asking, name, **when) for name in (session, peace)]
            for kind in ours:
                ours[kind].assert_near(theirs[kind])
        question, options = KINDS["greedy"]
        for at_s, said in list(zip(log.asked_s, log.answers, strict=True))[-20:]:
            answer = await asking.answer(peace, question, **{**options, "asked_at_s": at_s})
            said.assert_near(Said.of(answer))
    return log


async def test_a_push_gets_over_kills_of_the_ingest_process(
    service: Service, chance: random.Random
) -> None:
    log = await assert_a_push_survives(service, chance, kill_count=3)
    assert log.reopened_count >= 2
    assert log.answers


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
async def test_a_push_gets_over_fifty_kills_of_the_ingest_process(
    service: Service, chance: random.Random
) -> None:
    log = await assert_a_push_survives(service, chance, kill_count=50)
    print(
        f"reopened {log.reopened_count} times, {log.acknowledged_count} units, "
        f"{len(log.answers)} answers meanwhile"
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_a_finish_gets_over_kills_of_the_ingest_process(
    service: Service, chance: random.Random
) -> None:
    """Killed when all is visible: before, while or after the finish is taken."""
    frames = film(32)
    async with service.client() as client:
        for _ in range(8):
            session, log = fresh_name("finish"), Log()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(push_through(client, session, frames, log))
                await log.more_visible(len(frames) // 2)
                await asyncio.sleep(chance.uniform(0.0, 0.03))
                service.kill("ingest")
            await wait_ready(service.ingest_address, BACK_WITHIN_S)
            shown = await client.get_session(session)
            assert shown.state is SessionState.FINISHED
            assert shown.stats.durable_unit_count == log.acknowledged_count == len(frames) // 2
            stored = read_stored(service.data, session)
            assert stored.last_pts_s == [time_s for time_s, _ in frames[::2]]


async def assert_answers_survive(
    service: Service, chance: random.Random, *, kill_count: int
) -> None:
    """Kills the QA process in the middle of answers; the same questions are answered the same."""
    session = fresh_name("asked")
    ingest_pid, address = service.pid("ingest"), service.qa_address
    async with service.client() as client:
        await push(client, session, film(80), fps=FPS)
        before = await ask_all(client, session)
        for _ in range(kill_count):
            await kill_in_the_middle_of_an_answer(service, client, session, chance)
            await wait_ready(address, BACK_WITHIN_S)
            after = await ask_all(client, session)
            for kind in before:
                after[kind].assert_near(before[kind])
    assert service.pid("ingest") == ingest_pid


async def ask_and_kill(
    service: Service, client: LookbackClient, session: str, delta_count: int
) -> None:
    """Asks for a long answer, and kills who gives it after so many pieces."""
    long = DecodingOptions(max_new_token_count=2000, temperature=0.0, ignore_eos=True)
    if not delta_count:
        service.kill("qa")
    async for part in client.ask(session, "What was it?", decoding=long):
        delta_count -= isinstance(part, TextDelta)
        if not delta_count:
            service.kill("qa")


async def kill_in_the_middle_of_an_answer(
    service: Service, client: LookbackClient, session: str, chance: random.Random
) -> None:
    with pytest.raises(LookbackError) as caught:
        await ask_and_kill(service, client, session, chance.randint(0, 40))
    assert caught.value.reason in AWAY


async def test_answers_get_over_kills_of_the_qa_process(
    service: Service, chance: random.Random
) -> None:
    await assert_answers_survive(service, chance, kill_count=2)


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
async def test_answers_get_over_twenty_kills_of_the_qa_process(
    service: Service, chance: random.Random
) -> None:
    await assert_answers_survive(service, chance, kill_count=20)


async def test_both_processes_end_with_their_parent_and_leave_no_shared_memory(
    service: Service,
) -> None:
    """The last of this module: it kills `lookback serve` itself."""
    async with service.client() as client:
        await push(client, fresh_name("orphan"), film(20), fps=FPS, finish=False)
    children = psutil.Process(service.process.pid).children()
    assert len(children) == 2
    service.process.send_signal(signal.SIGKILL)
    service.process.wait()
    _, alive = psutil.wait_procs(children, timeout=BACK_WITHIN_S)
    assert not alive
    assert list(service.shm.iterdir()) == []
