"""Clips survive H.264: times are exact, pixels close, and evidence is where the questions say."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from eval.streamworld.clip_file import read_mp4, write_mp4
from eval.streamworld.exam import make_exam
from eval.streamworld.render import render, to_uint8
from eval.streamworld.vocabulary import COLOURS, ENTITIES


@pytest.mark.parametrize("fps", [Fraction(1), Fraction(4), Fraction(30000, 1001)])
def test_frame_k_comes_back_at_k_over_fps(tmp_path: Path, fps: Fraction) -> None:
    clip = make_exam(seed=1, duration_s=float(130 / fps), fps=fps).clip
    write_mp4(clip, tmp_path / "clip.mp4", fps=fps)
    frames, pts_s = read_mp4(tmp_path / "clip.mp4")
    assert pts_s == [float(k / fps) for k in range(clip.frame_count)]
    assert len(frames) == clip.frame_count


def test_decoded_frames_are_the_rendered_ones_within_codec_noise(tmp_path: Path) -> None:
    clip = make_exam(seed=2, duration_s=130.0).clip
    write_mp4(clip, tmp_path / "clip.mp4", crf=23)
    frames, _ = read_mp4(tmp_path / "clip.mp4")
    drawn = to_uint8(render(list(clip.images)))[list(clip.image_of)]
    error = np.abs(frames.astype(int) - drawn.astype(int)).mean((1, 2, 3))
    assert error.max() < 8
    assert np.abs(np.roll(frames, 7, 0).astype(int) - drawn.astype(int)).mean() > 8


def test_evidence_spans_show_the_object_and_the_seconds_around_them_do_not() -> None:
    exam = make_exam(seed=3, duration_s=400.0, questions_per_kind=4)
    clip = exam.clip
    asked = [q for q in exam.questions if q.kind in ("past_colour", "past_scene")]
    assert asked
    for q in asked:
        entity = ENTITIES.index(next(w for w in q.text.split() if w in ENTITIES))
        shown = {f for f in range(clip.frame_count)
                 if clip.images[clip.image_of[f]].entity == entity}  # fmt: skip
        (span,) = q.evidence_s
        assert shown == set(range(round(span[0]), round(span[1])))
        if q.kind == "past_colour":
            specs = {clip.images[clip.image_of[f]].colour for f in shown}
            assert {COLOURS[c] for c in specs} == {q.answer}
