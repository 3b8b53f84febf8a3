"""Training clips lose the tokens that the service's default reduction drops, and searches follow
the service's rule."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from eval.streamworld.augment import Augmenter
from eval.streamworld.batches import BatchPlan, make_batch
from eval.streamworld.dropping import dropped, last_kept
from eval.streamworld.exam import make_exam
from eval.streamworld.follow_ups import follow_ups
from eval.streamworld.forward import interleaved, last_shown
from eval.streamworld.sequences import segment
from eval.streamworld.wording import KINDS
from eval.streamworld.world import Pace
from retrieval import searches
from svc.engine.model import load_model
from svc.engine.reduction.base import ReductionState, UnitFeatures
from svc.engine.reduction.spec import WHOLE_EVERY_UNITS, ReductionSpec
from svc.engine.serving import model_config

COSINE = 0.7


def drifting(clips: int, frames: int) -> torch.Tensor:
    """Features that change a little from frame to frame."""
    steps = torch.randn(clips, frames, 9, 16, generator=torch.Generator().manual_seed(1))
    return (0.6 * steps).cumsum(1) + 2.0


def test_what_training_drops_is_what_the_default_policy_drops() -> None:
    features = drifting(2, 80)
    ages = torch.tensor([0, 0])
    kept = last_kept(features, COSINE, ages, torch.zeros(2, 80, 9))
    policy = ReductionSpec.parse(f"last_kept:{COSINE}").make()
    for clip in range(2):
        state = ReductionState()
        for frame in range(80):
            unit = UnitFeatures(
                embeds=features[clip, frame], pixels=lambda: torch.empty(0), grid=(3, 3),
                gap_before=False,
            )  # fmt: skip
            chosen, state = policy.choose(unit, state)  # type: ignore[union-attr]
            assert torch.nonzero(kept[clip, frame])[:, 0].tolist() == chosen.tolist(), frame
    assert 0.1 < kept.float().mean() < 0.9  # neither rule alone


def test_a_still_frame_keeps_one_token_and_a_whole_one_comes_now_and_then() -> None:
    features = drifting(1, 1).expand(1, 70, 9, 16)
    ties = torch.rand(1, 70, 9, generator=torch.Generator().manual_seed(2))
    counts = last_kept(features, COSINE, torch.tensor([5]), ties)[0].sum(-1)
    whole = [0, WHOLE_EVERY_UNITS - 5, 2 * WHOLE_EVERY_UNITS - 5]
    assert torch.nonzero(counts == 9)[:, 0].tolist() == whole
    assert (counts[counts != 9] == 1).all()


def test_a_place_shows_what_was_last_kept_there() -> None:
    kept = torch.zeros(2, 3, 2, dtype=torch.bool)
    kept[:, 0] = True
    kept[1, 1, 0] = kept[0, 2, 1] = True
    assert last_shown(kept).tolist() == [[[0, 1], [0, 1], [0, 5]], [[6, 7], [8, 7], [8, 7]]]


def test_frames_of_one_token_are_not_searched_but_for_the_newest() -> None:
    plan = BatchPlan(
        clips=3, frames=40, questions=6, pace=Pace(duration=(4, 9), gap=(0, 3)),
        kinds=dict.fromkeys(KINDS, 1.0), picked=6, drop_cosine=COSINE, shared_history=True,
    )  # fmt: skip
    batch = make_batch(plan, grid_px=1, augment=Augmenter(seed=0), rng=np.random.default_rng(3))
    features = torch.randn(len(batch.images), 9, 16, generator=torch.Generator().manual_seed(4))
    small = dropped(batch, features)
    still = small.kept.sum(-1) == 1
    assert still.float().mean() > 0.2
    assert not (small.candidates & still & ~small.recent).any()
    assert (small.candidates & small.recent).any(-1).any(-1).all()
    assert not (small.negatives & still).any()
    assert not (small.anchors & still[small.clip]).any()
    asked = batch.anchors.any(1)
    assert small.anchors.any(1)[asked].float().mean() > 0.9  # new events are not still


@pytest.mark.parametrize("text_count", [1, 2, 3, 4])
def test_several_texts_take_turns_as_in_the_service(text_count: int) -> None:
    rng = np.random.default_rng(text_count)
    scores = rng.standard_normal((5, 4, 12)).astype(np.float32)
    allowed = rng.random((5, 12)) < 0.8
    counts = np.array([text_count, 1, 2, 3, 4])
    ranked = interleaved(
        torch.from_numpy(scores), torch.from_numpy(allowed), torch.from_numpy(counts)
    )
    for row, count in enumerate(counts):
        own = np.where(allowed[row], scores[row, :count], -np.inf)
        expected = searches.interleaved(list(own))
        order = [i for i in np.argsort(-expected, kind="stable") if allowed[row, i]]
        found = [i for i in np.argsort(-ranked[row].numpy(), kind="stable") if allowed[row, i]]
        assert found == order


def test_a_conversation_is_read_as_the_service_writes_it() -> None:
    clip = make_exam(seed=0, duration_s=300, fps=Fraction(1)).clip
    model = load_model(model_config("builtin", "float32", "cpu"), vision=False)
    for each in follow_ups(clip, Fraction(1), np.random.default_rng(0))[:40]:
        ours = segment(each.question, each.answer, each.turns)
        prompt = model.prompt.question(each.question, each.turns)
        answer_count = len(ours.targets) - 1
        assert ours.ids[1 : len(ours.ids) - answer_count] == list(prompt.token_ids)
        assert [tuple(places) for places in ours.texts] == [*prompt.searches]
