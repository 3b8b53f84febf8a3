"""The model thread, with the tiny model and memories that stop and fail on command."""

import queue
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvstore.errors import SliceCorruptError
from svc.engine.answer import AnswerEngine
from svc.engine.answer_request import AnswerRequest
from svc.engine.answer_result import AnswerResult
from svc.engine.losses import EvidenceLostError
from svc.engine.memory import Memory
from svc.engine.model import LoadedModel
from svc.qa.runner import Event, Job, Runner
from svc.qa.warm_up import RandomMemory
from tests.svc.qa.bench import JOIN_S, StepwiseMemory


class FixedMemory(RandomMemory):
    """The same random numbers at every look."""

    def __init__(self, model: LoadedModel, *, seed: int) -> None:
        super().__init__(model, 3)
        self._kv = RandomMemory(model, 3)
        generator = np.random.default_rng(seed)
        self._seed = int(generator.integers(1 << 30))

    def load(self, layer: int, units: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(self._seed + layer)
            keys, values = super().load(layer, np.arange(self.unit_count))
        size = len(keys) // self.unit_count
        chosen = np.concatenate([np.arange(size) + unit * size for unit in units])
        return keys[chosen], values[chosen]


class DamagedMemory(RandomMemory):
    def load(self, layer: int, units: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        raise SliceCorruptError("door", 0, int(units[0]), layer)


class Asked:
    """A job with everything that happened to it."""

    def __init__(self, session_id: str, memory: Memory, request: AnswerRequest) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self.let_go = threading.Semaphore(0)
        self.job = Job(
            session_id=session_id,
            request=request,
            memory=memory,
            deliver=self.events.put,
            let_go=self.let_go.release,
        )

    def last(self) -> AnswerResult | Exception:
        while isinstance(event := self.events.get(), str):
            pass
        self.let_go.acquire()
        return event

    def result(self) -> AnswerResult:
        last = self.last()
        assert isinstance(last, AnswerResult), last
        return last


@pytest.fixture
def model(tiny_model: Callable[[str], LoadedModel]) -> LoadedModel:
    return tiny_model("float32")


@pytest.fixture
def ask(model: LoadedModel) -> Iterator[Callable[..., Asked]]:
    """Submits questions to a running runner that packs two at a time."""
    runner = Runner(packed_count=2)
    thread = threading.Thread(target=runner.run, args=[AnswerEngine(model)], daemon=True)
    thread.start()

    def submit(session_id: str, memory: Memory, **fields: object) -> Asked:
        settings = {"max_new_tokens": 6, "temperature": 0.0, "ignore_eos": True, **fields}
        asked = Asked(session_id, memory, AnswerRequest(question="What?", **settings))  # type: ignore[arg-type]
        runner.submit(asked.job)
        return asked

    submit.runner = runner  # type: ignore[attr-defined]
    yield submit
    runner.stop()
    thread.join(JOIN_S)


def test_text_comes_before_the_result_and_adds_up_to_it(
    model: LoadedModel, ask: Callable[..., Asked]
) -> None:
    asked = ask("door", RandomMemory(model, 3))
    text = ""
    while isinstance(event := asked.events.get(), str):
        text += event
    assert isinstance(event, AnswerResult)
    assert event.text == text
    assert event.finish_reason == "length"
    assert asked.job.started_at_s is not None


def test_questions_decoded_together_answer_as_if_alone(
    model: LoadedModel, ask: Callable[..., Asked]
) -> None:
    first, second = FixedMemory(model, seed=1), FixedMemory(model, seed=2)
    alone = [ask("a", first).result().token_ids, ask("b", second).result().token_ids]
    gate = StepwiseMemory(model)
    held = ask("gate", gate)
    gate.reading.wait()
    asked = [ask("a", first, max_new_tokens=12), ask("b", second)]
    gate.may_read.set()
    held.result()
    together = [asked[0].result().token_ids, asked[1].result().token_ids]
    assert [together[0][:6], together[1]] == alone


def test_damage_fails_its_question_alone(model: LoadedModel, ask: Callable[..., Asked]) -> None:
    gate = StepwiseMemory(model)
    good = ask("a", gate)
    gate.reading.wait()
    bad = ask("b", DamagedMemory(model, 3))
    gate.may_read.set()
    assert isinstance(bad.last(), EvidenceLostError)
    assert good.result().finish_reason == "length"


def test_a_refusal_at_the_start_fails_its_question_alone(
    model: LoadedModel, ask: Callable[..., Asked]
) -> None:
    refused = ask("a", RandomMemory(model, 0))
    assert "no unit" in str(refused.last())
    assert ask("a", RandomMemory(model, 1)).result().snapshot_unit_count == 1


def test_a_cancelled_question_lets_go_of_its_memory_and_its_place(
    model: LoadedModel, ask: Callable[..., Asked]
) -> None:
    gate = StepwiseMemory(model)
    running = ask("a", gate, max_new_tokens=4096)
    gate.reading.wait()
    waiting = ask("a", DamagedMemory(model, 3))
    runner: Runner = ask.runner  # type: ignore[attr-defined]
    runner.cancel(running.job)
    runner.cancel(waiting.job)
    gate.may_read.set()
    running.let_go.acquire()
    waiting.let_go.acquire()
    assert running.events.empty()
    assert waiting.events.empty()
    assert ask("a", RandomMemory(model, 1)).result().finish_reason == "length"


def test_more_questions_than_places_wait_their_sessions_turn(
    model: LoadedModel, ask: Callable[..., Asked]
) -> None:
    gate = StepwiseMemory(model)
    held = ask("gate", gate)
    gate.reading.wait()  # one place of two is taken, and its step waits
    flood = [ask("flood", FixedMemory(model, seed=3)) for _ in range(4)]
    other = ask("other", FixedMemory(model, seed=4))
    gate.may_read.set()
    held.result()
    other.result()
    started = [asked.job.started_at_s for asked in flood]
    for asked in flood:
        asked.result()
    assert started[0] is not None
    late = [asked.job.started_at_s for asked in flood[1:]]
    assert other.job.started_at_s is not None
    assert all(time is not None and time > other.job.started_at_s for time in late)


def test_stop_lets_go_of_everything_without_a_word(model: LoadedModel) -> None:
    runner = Runner(packed_count=1)
    thread = threading.Thread(target=runner.run, args=[AnswerEngine(model)], daemon=True)
    thread.start()
    gate = StepwiseMemory(model)
    request = AnswerRequest(question="What?", max_new_tokens=4096, ignore_eos=True)
    asked = [Asked("a", gate, request), Asked("a", RandomMemory(model, 1), request)]
    for each in asked:
        runner.submit(each.job)
    gate.reading.wait()
    runner.stop()
    gate.may_read.set()
    thread.join()
    for each in asked:
        each.let_go.acquire()
        assert not any(isinstance(event, AnswerResult) for event in each.events.queue)
    with pytest.raises(RuntimeError, match="stopped"):
        runner.submit(asked[0].job)
