"""The process with a model that was trained: its answers mean something, and end by themselves."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from eval.streamworld import wording
from eval.streamworld.questions import FrameQuestion, ask
from eval.streamworld.render import render, to_uint8
from eval.streamworld.world import Pace, make_clip
from lookback.v1 import question_pb2 as pb
from svc.engine.model import load_model
from svc.engine.serving import BUILTIN_FOLDER, model_config, serving_defaults
from svc.engine.window import WindowConfig
from tests.svc.qa.service import LiveSession, QaProcess, finish

DECODING = pb.DecodingOptions(max_new_token_count=16, temperature=0.0)
FRAME_COUNT = 48
QUESTIONS_PER_KIND = 3


@dataclass(frozen=True)
class World:
    """A clip that a process has seen, and questions about it."""

    qa: QaProcess
    session_id: str
    questions: list[FrameQuestion]

    def asked(self, question: FrameQuestion) -> dict[str, object]:
        return {"asked_at_s": float(question.asked_at), "decoding": DECODING}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = BUILTIN_FOLDER
    if not (folder / "model.safetensors").exists():
        pytest.skip(f"the built-in model is not at {folder}")
    store = tmp_path_factory.mktemp("world")
    config = model_config("builtin", "auto", "cpu")
    defaults = serving_defaults(config)
    window = WindowConfig(
        window_tokens=defaults.window_tokens, window_positions=defaults.window_positions
    )
    rng = np.random.default_rng(7)
    clip = make_clip(FRAME_COUNT, rng, pace=Pace(), grid_px=1)
    shown = to_uint8(render(list(clip.images)))
    session = LiveSession(store, load_model(config, vision=True), "world", window=window)
    for time, image in enumerate(clip.image_of):
        session.push_frame(float(time), shown[image])
    drawn = [
        ask(clip, int(rng.integers(FRAME_COUNT // 2, FRAME_COUNT)), kind, rng)
        for kind in wording.PHRASES
        for _ in range(QUESTIONS_PER_KIND)
    ]
    with QaProcess(data_dir=store, model="builtin") as qa:
        yield World(qa, "world", [question for question in drawn if question is not None])
    session.close()


def test_what_is_seen_now_is_told_and_every_answer_ends_by_itself(world: World) -> None:
    right = []
    for question in world.questions:
        answer = world.qa.ask(world.session_id, question.text, **world.asked(question))
        assert answer.finish_reason == pb.Answer.FINISH_REASON_STOP
        if question.kind in wording.NOW_KINDS:
            right.append(answer.text.strip() == question.answer)
    assert sum(right) > len(right) / 2


def test_evidence_finds_the_moment(world: World) -> None:
    questions = [question for question in world.questions if question.evidence]
    found = 0
    for question in questions:
        answer = world.qa.ask(world.session_id, question.text, **world.asked(question))
        assert all(span.end_s <= question.asked_at + 1 for span in answer.evidence)
        found += any(
            span.start_s <= frame < span.end_s
            for span in answer.evidence
            for frame in question.evidence
        )
    assert found > 0.7 * len(questions)


def test_asked_all_at_once_they_answer_as_one_by_one(world: World) -> None:
    alone = [
        world.qa.ask(world.session_id, question.text, **world.asked(question)).text
        for question in world.questions
    ]
    calls = [
        world.qa.call(world.session_id, question.text, **world.asked(question))
        for question in world.questions
    ]
    assert [finish(call).text for call in calls] == alone


def test_a_question_about_now_is_answered_from_now(world: World) -> None:
    answers = {
        world.qa.ask(world.session_id, question.text, **world.asked(question)).evidence_until_s
        for question in world.questions
    }
    assert answers == {float(question.asked_at) for question in world.questions}


def test_the_model_goes_by_its_name(world: World) -> None:
    assert world.qa.ask(world.session_id).model == "streamworld"
