"""The sampling grid: which frames, which times, gaps, lateness, restarts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc.video.errors import PtsError, SamplerStateError
from svc.video.frames import Frame, Rgb
from svc.video.sampler import Sample, Sampler, SamplerConfig, SamplerState
from svc.video.sources import open_source
from tests.svc.video.media import NASA, VARIABLE, pushed, video

PIXELS: Rgb = np.zeros((1, 1, 3), np.uint8)


def frame(pts_s: float) -> Frame:
    return Frame.from_rgb(pts_s, PIXELS)


def run(sampler: Sampler, times: Iterable[float]) -> list[Sample]:
    samples = (sampler.push(frame(pts_s)) for pts_s in times)
    return [sample for sample in samples if sample is not None]


def sampled(config: SamplerConfig, times: Iterable[float]) -> list[float]:
    return [sample.frame.pts_s for sample in run(Sampler(config), times)]


def config(sample_fps: float, **others: float) -> SamplerConfig:
    return SamplerConfig(sample_fps=sample_fps, **others)


def test_the_first_frame_is_the_anchor_wherever_it_lies() -> None:
    times = [8.333 + i / 30 for i in range(90)]
    assert sampled(config(1), times) == [times[0], times[30], times[60]]


def test_a_stream_at_exactly_the_sampling_rate_keeps_every_frame() -> None:
    for fps in (10, 24, 25, 30, 60):
        times = [5 + i / fps for i in range(2000)]
        assert sampled(config(fps), times) == times


@pytest.mark.parametrize("ticks_per_s", [1000, 90_000, 30_000])
@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(24000, 1001), Fraction(30)])
@pytest.mark.parametrize("divisor", [1, 2, 3, 5])
def test_rounded_times_lose_no_frame(ticks_per_s: int, rate: Fraction, divisor: int) -> None:
    times = [float(Fraction(round(i / rate * ticks_per_s), ticks_per_s)) for i in range(5000)]
    assert sampled(config(float(rate / divisor)), times) == times[::divisor]


def test_a_frame_just_short_of_a_point_by_more_than_rounding_does_not_reach_it() -> None:
    assert sampled(config(1), [0.0, 0.967, 1.0, 1.033]) == [0.0, 1.0]


def test_after_a_hole_the_next_point_is_the_first_behind_the_frame() -> None:
    times = [0.0, 0.5, 3.2, 3.5, 4.0, 4.1, 5.0]
    assert sampled(config(1), times) == [0.0, 3.2, 4.0, 5.0]


@given(
    steps=st.lists(st.floats(0.001, 3), min_size=1, max_size=60),
    start=st.floats(-1e6, 1e6),
    fps=st.sampled_from([0.2, 1.0, 2.0, 7.0, 30.0]),
)
def test_each_sample_is_the_first_frame_at_its_point(
    steps: list[float], start: float, fps: float
) -> None:
    times = list(itertools.accumulate(steps, initial=start))
    kept = sampled(config(fps), times)
    assert kept[0] == times[0]
    # written independently: walk the points one by one
    expected, point = [times[0]], times[0]
    rounding_s = min(0.05 / fps, 0.001)
    for pts_s in times[1:]:
        count = math.floor((expected[-1] - times[0] + rounding_s) * fps) + 1
        point = times[0] + count / fps
        if abs(pts_s - (point - rounding_s)) < 1e-9:
            return  # on the very edge: floating point decides
        if pts_s > point - rounding_s:
            expected.append(pts_s)
    assert kept == expected


def test_a_real_29_97_fps_video_at_1_fps() -> None:
    times = [pts for pts, _ in pushed(open_source(video(NASA)))]
    # 30 frames last 1.001 s, so the frame that is first at or after each whole second
    expected = [next(t for t in times if t >= second - 0.001) for second in range(13)]
    assert sampled(config(1), times) == expected
    assert len(expected) == 13


def test_a_real_variable_rate_video_marks_its_gap() -> None:
    times = [pts for pts, _ in pushed(open_source(video(VARIABLE)))]
    samples = run(Sampler(config(2, gap_max_s=1.0)), times)
    before = max(t for t in times if t < 5.3 + 1e-9)
    gaps = [sample.frame.pts_s for sample in samples if sample.gap_before]
    assert len(gaps) == 1
    assert gaps[0] - before == pytest.approx(1.5, abs=0.11)


def test_only_the_sample_after_a_gap_carries_it_even_if_the_frame_after_it_is_no_sample() -> None:
    sampler = Sampler(config(0.1, gap_max_s=1.0))
    samples = run(sampler, [0.0, 1.0, 4.0, 4.5, 10.0, 20.0])
    assert [sample.gap_before for sample in samples] == [False, True, True]
    assert [sample.frame.pts_s for sample in samples] == [0.0, 10.0, 20.0]
    assert sampler.counters.gaps == 3


def test_a_hole_of_exactly_gap_max_is_none() -> None:
    assert not any(s.gap_before for s in run(Sampler(config(1, gap_max_s=5.0)), [0.0, 5.0, 10.0]))


def test_late_and_repeated_frames_are_counted_and_left_out() -> None:
    sampler = Sampler(config(10, reorder_tolerance_s=0.5))
    samples = run(sampler, [0.0, 0.2, 0.1, 0.2, 0.2, 0.5, 0.3, 0.6])
    assert [sample.frame.pts_s for sample in samples] == [0.0, 0.2, 0.5, 0.6]
    counters = sampler.counters
    assert (counters.received, counters.sampled) == (8, 4)
    assert (counters.discarded_late, counters.discarded_duplicate) == (2, 2)


@given(order=st.permutations(list(range(12))))
def test_no_order_of_arrival_makes_samples_go_back_in_time(order: list[int]) -> None:
    sampler = Sampler(config(1, reorder_tolerance_s=100))
    times = [sample.frame.pts_s for sample in run(sampler, order)]
    assert times == sorted(set(times))
    counters = sampler.counters
    assert counters.received == counters.sampled + counters.discarded_late


def test_a_larger_jump_back_is_an_error_that_says_from_where() -> None:
    sampler = Sampler(config(1, reorder_tolerance_s=0.5))
    run(sampler, [10.0, 9.5])
    with pytest.raises(PtsError, match=r"9\.49.*back from 10\.0 s; allowed: at most 0\.5 s"):
        sampler.push(frame(9.49))


@pytest.mark.parametrize("pts_s", [math.nan, math.inf, -math.inf, 1.1e10, -1.1e10])
def test_times_that_are_none_are_errors(pts_s: float) -> None:
    with pytest.raises(PtsError, match="finite"):
        Sampler(config(1)).push(frame(pts_s))


def resumed(whole: Sequence[float], cut: int, setup: SamplerConfig, back: int) -> list[Sample]:
    """Sample up to a cut, then go on from the last sample's stored state, `back` frames early."""
    first = run(Sampler(setup), whole[:cut])
    state = SamplerState.from_json(first[-1].state.to_json())
    return first + run(Sampler(setup, state), whole[max(0, cut - back) :])


@given(
    steps=st.lists(st.floats(0.001, 8), min_size=1, max_size=60),
    start=st.floats(-1e6, 1e6),
    fps=st.sampled_from([0.2, 1.0, 2.0, 30.0]),
    data=st.data(),
)
def test_resumed_sampling_equals_uninterrupted_sampling(
    steps: list[float], start: float, fps: float, data: st.DataObject
) -> None:
    setup = config(fps)
    times = list(itertools.accumulate(steps, initial=start))
    cut = data.draw(st.integers(1, len(times)))
    whole = run(Sampler(setup), times)
    last_index = times.index(run(Sampler(setup), times[:cut])[-1].frame.pts_s)
    # the client starts anywhere at or before the last sample, or right after it
    back = cut - data.draw(st.integers(0, last_index + 1))
    both = resumed(times, cut, setup, back)
    assert [s.frame.pts_s for s in both] == [s.frame.pts_s for s in whole]
    assert [s.gap_before for s in both] == [s.gap_before for s in whole]
    assert [s.state for s in both] == [s.state for s in whole]


def test_what_a_resumed_client_sends_again_is_counted_however_far_back_it_starts() -> None:
    times = [i / 10 for i in range(600)]
    last = run(Sampler(config(1)), times)[-1]
    again = Sampler(config(1, reorder_tolerance_s=0.0), last.state)
    run(again, times)
    assert again.counters.already_had == times.index(last.frame.pts_s) + 1
    assert again.counters.sampled == 0
    assert [s.frame.pts_s for s in run(again, [60.0, 61.0])] == [60.0, 61.0]
    with pytest.raises(PtsError, match="jumps back"):
        again.push(frame(3.0))


def test_frames_lost_over_a_restart_are_a_gap() -> None:
    last = run(Sampler(config(1)), [0.0, 1.0])[-1]
    (sample,) = run(Sampler(config(1, gap_max_s=5.0), last.state), [100.5])
    assert sample.gap_before
    assert sample.state.last_point == 100


def test_a_state_survives_bytes_exactly() -> None:
    state = SamplerState(
        sample_fps=30000 / 1001, anchor_pts_s=1 / 3, last_point=2**40, last_pts_s=math.pi * 1e9
    )
    assert SamplerState.from_json(state.to_json()) == state


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"sample_fps": 1, "anchor_pts_s": 0, "last_point": 0}',
        b'{"sample_fps": 1, "anchor_pts_s": NaN, "last_point": 0, "last_pts_s": 0}',
        b'{"sample_fps": 1, "anchor_pts_s": "0", "last_point": 0, "last_pts_s": 0}',
        b'{"sample_fps": 1, "anchor_pts_s": 0, "last_point": 0.5, "last_pts_s": 0}',
        b'{"sample_fps": true, "anchor_pts_s": 0, "last_point": 0, "last_pts_s": 0}',
    ],
)
def test_bytes_that_are_no_state_are_refused(data: bytes) -> None:
    with pytest.raises(SamplerStateError):
        SamplerState.from_json(data)


def test_a_state_of_another_rate_is_refused() -> None:
    state = run(Sampler(config(2)), [0.0])[0].state
    with pytest.raises(SamplerStateError, match=r"2.* fps, sampling is at 1.* fps"):
        Sampler(config(1), state)
    assert Sampler(config(2), replace(state)).state == state


@pytest.mark.parametrize(
    "bad",
    [
        {"sample_fps": 0.0},
        {"sample_fps": math.nan},
        {"sample_fps": 1.0, "reorder_tolerance_s": -1.0},
        {"sample_fps": 1.0, "gap_max_s": 0.0},
    ],
)
def test_a_config_that_makes_no_sense_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        SamplerConfig(**bad)
