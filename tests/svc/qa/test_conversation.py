"""Questions with earlier turns, put to a real QA process over a store that is being written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvstore.reader import SessionReader
from lookback.v1 import question_pb2 as pb
from svc.engine.model import LoadedModel
from tests.svc.qa.service import LiveSession, QaProcess

Live = Callable[..., LiveSession]


def test_a_turn_that_saw_later_video_is_left_out(qa: QaProcess, live: Live) -> None:
    session = live()
    session.push([0.0, 1.0, 2.0, 3.0])
    early, late = (
        pb.Turn(question="What was it?", answer=f"It ended in {word}.", evidence_until_s=time_s)
        for word, time_s in (("green", 1.0), ("red", 3.0))
    )
    undated = pb.Turn(question="What?", answer="A thing.")

    def asked(history: list[pb.Turn], **when: Any) -> pb.Answer:
        return qa.ask(session.session_id, history=history, **when)

    at_2 = asked([early, late, undated], asked_at_s=2.0)
    assert at_2.history_turn_count == 2
    assert _same(at_2, asked([early, undated], asked_at_s=2.0))
    assert asked([early, late], asked_at_s=1.0).history_turn_count == 1
    before = {"asked_at_s": 1.0, "cut": pb.SNAPSHOT_CUT_BEFORE}
    assert _same(asked([early, late], **before), asked([], **before))
    assert asked([early, late]).history_turn_count == 2


def _same(one: pb.Answer, other: pb.Answer) -> bool:
    """Whether all but the timings is equal."""
    for answer in (one, other):
        answer.ClearField("ttft_s")
        answer.ClearField("total_s")
    return one == other


def test_turns_that_do_not_fit_go_and_the_answer_says_how_many_stayed(
    qa: QaProcess, live: Live
) -> None:
    session = live()
    session.push([0.0, 1.0])
    long = pb.Turn(question="What?", answer="x y " * 1200)
    history = [pb.Turn(question="What?", answer="A circle."), long, pb.Turn(answer="A star.")]
    answer = qa.ask(session.session_id, history=history)
    assert answer.history_turn_count == 1
    assert _same(answer, qa.ask(session.session_id, history=history[2:]))


def test_a_stream_is_the_same_whether_or_not_a_conversation_goes_on_about_it(
    qa: QaProcess, live: Live, store: Path, model: LoadedModel
) -> None:
    asked, left_alone = (live(name) for name in ("asked", "alone"))
    history: list[pb.Turn] = []
    for second in range(6):
        shown = np.random.default_rng(second).integers(0, 256, (31, 42, 3), dtype=np.uint8)
        for session in (asked, left_alone):
            session.push_frame(float(second), shown)
        before = keys_and_values(store, asked, model)
        answer = qa.ask(asked.session_id, "And now?", history=history)
        assert answer.history_turn_count == len(history)
        history.append(pb.Turn(question="And now?", answer=answer.text))
        for part, as_before in zip(keys_and_values(store, asked, model), before, strict=True):
            np.testing.assert_array_equal(part, as_before)
    for part, other in zip(
        keys_and_values(store, asked, model), keys_and_values(store, left_alone, model), strict=True
    ):
        np.testing.assert_array_equal(part, other)


def keys_and_values(
    store: Path, session: LiveSession, model: LoadedModel
) -> list[NDArray[np.float32]]:
    """Returns what the store holds of a session: keys, then values, of each layer."""
    reader = SessionReader.open(store, session.session_id)
    try:
        snapshot = reader.snapshot()
        shape = (int(snapshot.token_counts.sum()), model.kv_head_count, model.head_dim)
        found: list[NDArray[np.float32]] = []
        for layer in range(model.layer_count):
            keys, values = np.empty(shape, np.float32), np.empty(shape, np.float32)
            reader.read(snapshot, layer, range(snapshot.unit_count), keys, values)
            found += [keys, values]
        return found
    finally:
        reader.close()
