"""The worst bug there is: something of the future reaches an answer.

Two videos that are equal up to a time, and differ after it, must give the same answers as of that
time: while only the common part is there, while the rest comes in, and when all of it is there.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svc.client import LookbackClient, RetrievalOptions
from tests.e2e.asking import Answers, ask_all, fresh_name
from tests.e2e.running import ROOT, SMALL, Service, environment
from tests.e2e.videos import push

FPS = 2.0
REDUCTIONS = ("none", "last_kept:0.8", "key_norm:0.5")
STEPS_S = (0.25, 0.5, 0.75, 1.0, 7.0)
"""Between frames: some are not sampled, some leave a gap."""
Frames = list[tuple[float, int]]


@dataclass(frozen=True, kw_only=True)
class Worlds:
    """Two videos with a common beginning."""

    common: Frames
    tails: tuple[Frames, Frames]
    asked_at_s: float
    before: bool
    """Whether the moment `asked_at_s` itself is out of sight."""
    reduction: str = "none"
    """Which visual tokens are kept of both."""


@st.composite
def worlds(draw: st.DrawFn) -> Worlds:
    """The time asked about is anywhere between the last common frame and the first other one."""
    steps = st.sampled_from(STEPS_S)
    common = draw(st.lists(steps, min_size=2, max_size=12))
    tails = [draw(st.lists(steps, min_size=1, max_size=6)) for _ in range(2)]
    numbers = iter(range(draw(st.integers(0, 10**6)) * 100, 10**9))
    start_s = draw(st.sampled_from((0.0, 1000.25)))

    def frames(from_s: float, steps_s: list[float]) -> Frames:
        made = []
        for step_s in steps_s:
            from_s += step_s
            made.append((from_s, next(numbers)))
        return made

    shared = [(start_s, next(numbers)), *frames(start_s, common)]
    last_s = shared[-1][0]
    a, b = (frames(last_s, tail) for tail in tails)
    before = draw(st.booleans())
    if before:
        asked_at_s = min(a[0][0], b[0][0])
    else:
        asked_at_s = last_s + draw(st.sampled_from((0.0, 0.125, 0.249)))
    return Worlds(
        common=shared,
        tails=(a, b),
        asked_at_s=asked_at_s,
        before=before,
        reduction=draw(st.sampled_from(REDUCTIONS)),
    )


def assert_near(answers: Answers, expected: Answers) -> None:
    assert answers.keys() == expected.keys()
    for kind, said in answers.items():
        said.assert_near(expected[kind])


@given(pair=worlds())
@settings(max_examples=8, deadline=None, print_blob=True)
def test_an_answer_as_of_a_time_is_the_same_whatever_comes_after(
    shared_service: Service, pair: Worlds
) -> None:
    async def try_it() -> None:
        async with shared_service.client() as client:
            await assert_no_leak(client, pair)

    asyncio.run(try_it())


async def assert_no_leak(client: LookbackClient, pair: Worlds) -> None:
    first, second = fresh_name("leak"), fresh_name("leak")
    when = {"asked_at_s": pair.asked_at_s, "before": pair.before}
    like: dict[str, Any] = {"fps": FPS, "reduction": pair.reduction}
    await push(client, first, pair.common, **like, finish=False)
    live = await ask_all(client, first)

    whole = [*pair.common, *pair.tails[0]]
    _, meanwhile = await asyncio.gather(
        push(client, first, whole, **like),
        ask_while_it_grows(client, first, pair),
    )
    later = await ask_all(client, first, **when)
    await push(client, second, [*pair.common, *pair.tails[1]], **like)
    elsewhere = await ask_all(client, second, **when)

    assert later == live, "the answer as of a time is not the one that was given at that time"
    assert elsewhere == live, "the answer depends on what comes after"
    for answers in meanwhile:
        assert_near(answers, live)


async def ask_while_it_grows(
    client: LookbackClient, session_id: str, pair: Worlds
) -> list[Answers]:
    """Asks as of the last common frame, which is received already, again and again."""
    at_s = pair.common[-1][0]
    return [await ask_all(client, session_id, asked_at_s=at_s) for _ in range(2)]


TWINS = Worlds(
    common=[(0.5 * i, i) for i in range(9)],
    tails=(
        [(4.5 + 0.5 * i, 100 + i) for i in range(3)],
        [(4.5 + 0.5 * i, 200 + i) for i in range(3)],
    ),
    asked_at_s=4.25,
    before=False,
)
"""Equal in everything but what the pictures after the time show."""


@pytest.fixture(scope="module")
def leaky_qa_address(shared_service: Service) -> Iterator[str]:
    """A second QA process over the store of the service; its snapshots are cut a unit too late."""
    values = {**SMALL, "data_dir": shared_service.data, "shm_dir": shared_service.shm}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.leaky_qa"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env=environment(**values, model=shared_service.model, qa_port=0),
    )
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["address"]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("reduction", REDUCTIONS)
async def test_a_snapshot_cut_one_unit_too_late_is_noticed_by_every_kind_of_question(
    shared_service: Service, leaky_qa_address: str, reduction: str
) -> None:
    """The mutant that the property above must catch: by its tokens or scores, whatever is asked."""
    twins = replace(TWINS, reduction=reduction)
    names = [fresh_name("twin"), fresh_name("twin")]
    async with shared_service.client() as client:
        for name, tail in zip(names, twins.tails, strict=True):
            await push(client, name, [*twins.common, *tail], fps=FPS, reduction=reduction)
        sound = [await ask_all(client, name, asked_at_s=twins.asked_at_s) for name in names]
    async with LookbackClient(shared_service.ingest_address, leaky_qa_address) as client:
        leaky = [await ask_all(client, name, asked_at_s=twins.asked_at_s) for name in names]
        with pytest.raises(AssertionError, match="not the one that was given at that time"):
            await assert_no_leak(client, twins)
    assert sound[0] == sound[1]
    for kind in sound[0]:
        assert leaky[0][kind].seen == leaky[1][kind].seen, "the twins' times are equal"
        differs = leaky[0][kind].tokens != leaky[1][kind].tokens
        differs |= leaky[0][kind].scores != pytest.approx(leaky[1][kind].scores, rel=1e-3)
        assert differs, f"{kind}: a leak would go unseen"


STILL = [(0.5 * i, 1) for i in range(12)]
"""A picture that stands: all but one token of each unit after the first may go."""


@pytest.mark.parametrize(("reduction", "shown"), [("last_kept:0.8", 9), ("key_norm:0.2", 2)])
async def test_the_newest_unit_is_whole_where_what_it_lacks_was_kept_before(
    shared_service: Service, reduction: str, shown: int
) -> None:
    """Live and as of each time; with `key_norm` what went is nowhere."""
    name = fresh_name("still")
    one = RetrievalOptions(unit_count=1)
    async with shared_service.client() as client:
        await push(client, name, STILL, fps=FPS, reduction=reduction)
        for asked_at_s in (None, 2.0, 4.25):
            answer = await client.answer(name, "What?", asked_at_s=asked_at_s, retrieval=one)
            assert answer.retrieved_token_count == shown
