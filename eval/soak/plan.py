"""What a soak pushes and asks; two soaks with equal plans push and ask the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from eval.streamworld import wording
from eval.streamworld.clip_file import write_mp4
from eval.streamworld.exam import Exam, Question, make_exam, timed
from eval.streamworld.questions import ask
from eval.streamworld.seeds import generator

OnFull = Literal["thin", "drop_oldest"]
ON_FULL: tuple[OnFull, ...] = get_args(OnFull)
FPS = Fraction(1)
LEAST_STREAM_S = 600
"""In less, pages and the index's first chunk take most of a budget, and nothing can be thinned."""
_FORMAT = 3  # of the files of a run: those of another are not read

_PAST: tuple[wording.Kind, ...] = (
    "past_object",
    "past_colour",
    "past_scene",
    "past_text",
    "motion",
)
_KINDS = (*wording.NOW_KINDS, *_PAST, *_PAST, "not_seen")
_ASKED_LATER_FRACTION = 0.25
_LATEST_FRACTION = 1 / 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """One question and when it is put."""

    number: int
    question: Question
    when_s: float
    """Put once the stream is visible up to here: `asked_at_s`, or later as of it."""
    as_choice: bool
    """Picked among the question's options by likelihood, instead of answered freely."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A session's video, and the questions in the order in which they are put."""

    session_id: str
    length_s: int
    clip: Path
    """An H.264 file."""
    questions: tuple[Scheduled, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that decides what is pushed and asked."""

    seed: int
    session_count: int
    stream_s: int
    question_every_s: float
    """Seconds of a session's stream from one question to the next."""

    @property
    def digest(self) -> str:
        """Names the plan in files."""
        text = json.dumps({"format": _FORMAT, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def streams(self, folder: Path) -> Iterator[Stream]:
        """Yields the streams; clips that are not in the folder yet are made.

        Raises:
            ValueError: the streams are too short to ask about.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(self.session_count):
            exam = make_exam(seed=self.seed * 100_000 + number, duration_s=self.stream_s, fps=FPS)
            clip = folder / f"{self.seed}-{number}-{self.stream_s}.mp4"
            if not clip.exists():
                partial = clip.with_suffix(".partial")
                write_mp4(exam.clip, partial, fps=FPS)
                partial.replace(clip)
            yield Stream(
                session_id=f"soak-{number}",
                length_s=self.stream_s,
                clip=clip,
                questions=self._questions(number, exam),
            )

    def _questions(self, number: int, exam: Exam) -> tuple[Scheduled, ...]:
        rng = generator("evaluation", self.seed, number, self.stream_s)
        count = max(1, int(self.stream_s / self.question_every_s))
        asked = [
            self._question(place, int((place + rng.random()) * self.stream_s / count), exam, rng)
            for place in range(count)
        ]
        return tuple(sorted(asked, key=lambda scheduled: scheduled.when_s))

    def _question(self, number: int, frame: int, exam: Exam, rng: np.random.Generator) -> Scheduled:
        question = None
        while question is None:  # a kind may have nothing to ask about yet; what is seen now has
            question = ask(exam.clip, frame, _KINDS[int(rng.integers(len(_KINDS)))], rng)
        when_s = float(frame / FPS)
        if rng.random() < _ASKED_LATER_FRACTION:
            when_s += rng.random() * _LATEST_FRACTION * self.stream_s
        return Scheduled(
            number=number,
            question=timed(question, FPS, rng),
            when_s=min(when_s, float((exam.clip.frame_count - 1) / FPS)),
            as_choice=number % 2 == 1,
        )
