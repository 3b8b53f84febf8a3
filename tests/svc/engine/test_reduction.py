"""What each policy keeps, as rules on features alone; see test_reduction_oracle for the model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from svc.engine.reduction.base import FeaturePolicy, ReductionState, UnitFeatures
from svc.engine.reduction.budget import Budget
from svc.engine.reduction.dtd import DifferentialDrop, PixelDrop
from svc.engine.reduction.key_norm import KeyNorm
from svc.engine.reduction.last_kept import LastKept
from svc.engine.reduction.none import KeepAll
from svc.engine.reduction.spec import ReductionNameError, ReductionSpec

GRID = (2, 2)
PLACES = 4


def unit(embeds: Tensor, *, pixels: Tensor | None = None, gap_before: bool = False) -> UnitFeatures:
    if pixels is None:
        pixels = torch.zeros(1, 3, 4, 4)
    return UnitFeatures(embeds=embeds, pixels=lambda: pixels, grid=GRID, gap_before=gap_before)


def turned(*degrees: float) -> Tensor:
    """Return one feature for each place, at these angles: cosines are plain to see."""
    angles = torch.tensor(degrees) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def kept(policy: FeaturePolicy, units: Sequence[UnitFeatures]) -> list[list[int]]:
    state, found = ReductionState(), []
    for each in units:
        tokens, state = policy.choose(each, state)
        state = ReductionState.from_bytes(state.to_bytes())
        found.append(tokens.tolist())
    return found


WITHIN = math.cos(math.radians(25))
"""Features closer than 25 degrees repeat each other."""


def test_dtd_compares_with_the_unit_before_whole() -> None:
    stream = [unit(turned(0, 0, 0, 0)), unit(turned(30, 0, 15, 0)), unit(turned(30, 0, 30, 0))]
    found = kept(DifferentialDrop(WITHIN), stream)
    assert found[:2] == [[0, 1, 2, 3], [0]]
    assert len(found[2]) == 1  # place 2 crept by twice 15 degrees; at least one token stays


def test_slow_drift_is_lost_by_dtd_and_kept_by_last_kept() -> None:
    drift = [unit(turned(0, 0, 0, 10.0 * step)) for step in range(12)]
    assert all(3 not in tokens for tokens in _unforced(DifferentialDrop(WITHIN), drift)[1:])
    times_kept = [3 in tokens for tokens in _unforced(LastKept(WITHIN, 1000), drift)]
    # never further than the threshold from what is remembered: every third step of 10 degrees
    assert times_kept == [step % 3 == 0 for step in range(12)]


def _unforced(policy: FeaturePolicy, drift: Sequence[UnitFeatures]) -> list[list[int]]:
    """Return what is kept when another place changes all the time, so none is kept for want."""
    flicker = []
    for step, each in enumerate(drift):
        embeds = each.embeds.clone()
        embeds[0] = turned(90.0 * (step % 2))[0]
        flicker.append(unit(embeds))
    return kept(policy, flicker)


def test_last_kept_keeps_a_unit_whole_every_so_often_and_after_a_gap() -> None:
    still = [unit(turned(0, 0, 0, 0), gap_before=step == 5) for step in range(12)]
    whole = [len(tokens) == PLACES for tokens in kept(LastKept(WITHIN, 4), still)]
    assert [step for step, is_whole in enumerate(whole) if is_whole] == [0, 4, 5, 9]


def test_pixels_are_compared_by_cell() -> None:
    before, after = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    after[:, :, :2, 2:] = 0.1  # the cell at the upper right
    same = turned(0, 0, 0, 0)
    stream = [unit(same, pixels=before), unit(same, pixels=after)]
    assert kept(PixelDrop(0.05), stream) == [[0, 1, 2, 3], [1]]
    assert kept(PixelDrop(0.2), stream)[1] == [1]  # the one that changed most, for want of any


def test_a_budget_keeps_a_share_by_novelty_and_keyframes_whole() -> None:
    policy = Budget(share=0.5, scene_similarity=0.5, keyframe_units=4)
    stream = [
        unit(turned(0, 0, 0, 0)),
        unit(turned(5, 30, 0, 20)),  # novel at 1 and 3
        unit(turned(5, 30, 10, 20)),  # place 0 is 5 degrees from what was kept, place 2 is 10
        unit(turned(180, 180, 180, 180)),  # another scene
        unit(turned(180, 180, 180, 180)),
        unit(turned(180, 180, 180, 180)),
        unit(turned(180, 180, 180, 180)),
        unit(turned(180, 180, 180, 180)),  # the fourth after a whole one
    ]
    found = kept(policy, stream)
    assert found[:4] == [[0, 1, 2, 3], [1, 3], [0, 2], [0, 1, 2, 3]]
    assert [len(tokens) for tokens in found[4:]] == [2, 2, 2, 4]


def test_key_norm_keeps_the_smallest_keys_of_all_layers_together() -> None:
    keys = torch.ones(2, 4, 1, 2)
    keys[0, 1], keys[1, 1] = 0.1, 0.1
    keys[0, 2] = 0.5
    keys[1, 3] = 100.0  # one layer's large keys do not drown the other's
    assert KeyNorm(0.5).choose_by_keys(keys).tolist() == [1, 2]
    assert KeyNorm(0.01).choose_by_keys(keys).tolist() == [1]


POLICIES = [
    KeepAll(),
    DifferentialDrop(0.5),
    PixelDrop(0.05),
    LastKept(0.5, 5),
    Budget(0.3, 0.2, 5),
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
@given(seed=st.integers(0, 2**32 - 1), still=st.floats(0, 1))
def test_every_unit_keeps_tokens_in_order_and_a_state_restores_exactly(
    policy: FeaturePolicy, seed: int, still: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    state, embeds = ReductionState(), torch.randn(PLACES, 6, generator=generator)
    pixels = torch.rand(1, 3, 4, 4, generator=generator)
    for _ in range(8):
        changed = torch.rand(PLACES, generator=generator) > still
        embeds = torch.where(changed[:, None], torch.randn(PLACES, 6, generator=generator), embeds)
        pixels = (pixels + 0.1 * torch.rand(1, 3, 4, 4, generator=generator)).clamp(0, 1)
        each = unit(embeds, pixels=pixels)
        tokens, after = policy.choose(each, state)
        again, after_again = policy.choose(each, ReductionState.from_bytes(state.to_bytes()))
        assert tokens.tolist() == sorted(set(tokens.tolist())) == again.tolist()
        assert 1 <= len(tokens) <= PLACES
        assert after.to_bytes() == after_again.to_bytes()
        state = after


@pytest.mark.parametrize(
    ("text", "strength"),
    [
        ("none", None),
        ("last_kept", 0.5),
        ("last_kept:light", 0.9),
        ("dtd:0.25", 0.25),
        ("budget:aggressive", 0.15),
    ],
)
def test_a_name_is_a_policy_with_a_preset_or_a_number(text: str, strength: float | None) -> None:
    presets = {"last_kept": {"light": 0.9}}
    spec = ReductionSpec.parse(text, presets)
    assert spec.strength == strength
    assert ReductionSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    "text",
    ["", "nope", "none:light", "last_kept:hard", "last_kept:1.5", "budget:0", "key_norm:nan"],
)
def test_another_name_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ReductionNameError, match=r"none, dtd|light, balanced|takes nothing"):
        ReductionSpec.parse(text)


@pytest.mark.parametrize("name", ["dtd", "last_kept", "budget"])
def test_what_goes_for_its_features_is_lent_to_the_newest_unit(name: str) -> None:
    assert ReductionSpec.parse(name).drops_repeats


@pytest.mark.parametrize("name", ["none", "dtd_pixel", "key_norm"])
def test_what_goes_for_anything_else_is_not(name: str) -> None:
    assert not ReductionSpec.parse(name).drops_repeats


@pytest.mark.parametrize("name", ["dtd:0.97", "last_kept:0.97", "budget:0.4"])
def test_rounding_of_a_pass_decides_nothing(name: str) -> None:
    """A still picture, its features off by what a vision tower's batch makes of them."""
    generator = torch.Generator().manual_seed(5)
    still = torch.randn(9, 64, generator=generator)
    policy = ReductionSpec.parse(name).make()
    _, state = policy.choose(unit(still), ReductionState())
    noises = [1e-6 * torch.randn(9, 64, generator=generator) for _ in range(20)]
    found = [policy.choose(unit(still * (1 + noise)), state)[0].tolist() for noise in noises]
    assert found == found[:1] * 20
