"""What a benchmark run measures: few curves, each of which varies one thing.

selection
    Ways to choose the units, on many streams, about what has left the window and what is on screen.
reduction
    Policies and strengths of token reduction, keys and values as the model makes them.
pareto
    Policies of token reduction and element types of the store, together: accuracy for bytes.
budget
    Units in context, without reduction.
age
    Ways to choose the units, on long streams asked about at many ages, without reduction.
form
    The same questions freely and as a choice among four answers, without reduction.
quiet
    Time to the first token of one question at a time, nothing else being done: the arms of
    `pareto`, and the ways of `selection`.

The full product of these would take a hundred times as long and say little more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Literal, get_args

from eval.streamworld.exam import Exam, Question
from eval.streamworld.modes import Mode
from eval.streamworld.scenarios import PAST_KINDS, SCENARIOS, Scenario, make_scenario
from eval.streamworld.wording import NOW_KINDS

CurveName = Literal["selection", "reduction", "pareto", "budget", "age", "form", "quiet"]
CURVES: tuple[CurveName, ...] = get_args(CurveName)
Encoding = Literal["model", "int8", "int4"]
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
Form = Literal["free", "choice"]

BUDGET = 8
BUDGETS = (2, 4, 8, 16, 32)
WINDOW_UNITS = 16
EXAM_FPS = Fraction(1)
"""Frames, and units, a second of every stream."""
NO_REDUCTION = "none"
REDUCTIONS = (
    NO_REDUCTION,
    "last_kept:0.9", "last_kept:light", "last_kept:balanced", "last_kept:aggressive",
    "dtd:0.9", "dtd:light", "dtd:balanced", "dtd:aggressive",
    "dtd_pixel:light", "dtd_pixel:balanced", "dtd_pixel:aggressive",
    "budget:light", "budget:balanced", "budget:aggressive",
    "key_norm:light", "key_norm:balanced", "key_norm:aggressive",
)  # fmt: skip
_ENCODED = (NO_REDUCTION, "last_kept:light", "last_kept:balanced", "last_kept:aggressive")
_BESIDE = ("dtd:light", "dtd:balanced", "budget:balanced", "key_norm:balanced")
_SELECTION_SCENARIOS: tuple[Scenario, ...] = tuple(
    name for other in SCENARIOS if other != "plain" for name in ("plain", other)
)
"""Every other stream is "plain": the others ask for no count and no motion."""
_MOST_UNITS_ATTENDED = 1024
"""Full attention over more takes minutes a question, far beyond what the model was trained on."""
_FULL_ATTENTION_EVERY = 4
"""Of the questions of `selection`: a sample is enough to see it fail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """How a stream is stored."""

    reduction: str
    encoding: Encoding

    def __str__(self) -> str:
        return f"{self.reduction}/{self.encoding}"


REFERENCE = Arm(reduction=NO_REDUCTION, encoding="model")
"""What other arms are compared with."""
RECOMMENDED = Arm(reduction="last_kept:balanced", encoding="int4")
"""What new sessions of the built-in model have where nothing else is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How a question is put."""

    mode: Mode
    budget: int
    form: Form
    alone: bool = False
    """Whether nothing else is asked or pushed meanwhile."""


AS_SERVED = Asking(mode=Mode.RETRIEVAL, budget=BUDGET, form="free")


StreamKind = Literal["mixed", "long", "selection"]
_STREAM_KINDS: tuple[StreamKind, ...] = get_args(StreamKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One generated stream."""

    kind: StreamKind
    number: int
    scenario: Scenario
    duration_s: int

    @property
    def name(self) -> str:
        """Names it within a plan."""
        return f"{self.kind}-{self.number:03d}"

    @property
    def seed_words(self) -> tuple[int, int]:
        """What tells its draws from those of a plan's other streams."""
        return _STREAM_KINDS.index(self.kind), self.number


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One question put in one way to one arm."""

    stream: Stream
    arm: Arm
    number: int
    """Index of the question in the stream's exam."""
    question: Question
    asking: Asking

    @property
    def key(self) -> tuple[str, str, int, str, int, str, str]:
        """Names the task within a plan."""
        asking = self.asking
        return (
            self.stream.name,
            str(self.arm),
            self.number,
            asking.mode.value,
            asking.budget,
            asking.form,
            "alone" if asking.alone else "together",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkPlan:
    """What is asked; equal plans ask the same, and a longer one begins with a shorter one."""

    seed: int = 0
    durations_s: tuple[int, ...] = (300, 600, 900)
    """Lengths of the streams of `selection`, and of all scenarios, in turn."""
    long_durations_s: tuple[int, ...] = (1800, 14_400)
    """Lengths of the "static" streams that the ages are asked about on."""
    questions_per_kind: int = 2
    model: str = "builtin"

    @property
    def digest(self) -> str:
        """Names the plan in every row."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def streams(
        self, *, mixed_count: int = 0, long_count: int = 0, selection_count: int = 0
    ) -> list[Stream]:
        """The first streams of each kind: of `selection`, then mixed and long ones in turn."""
        selection = [self._stream("selection", i) for i in range(selection_count)]
        mixed = [self._stream("mixed", i) for i in range(mixed_count)]
        long = [self._stream("long", i) for i in range(long_count)]
        others = sorted([*mixed, *long], key=lambda stream: (stream.number, stream.kind))
        return [*selection, *others]

    def exam(self, stream: Stream) -> Exam:
        """The clip and the questions of one stream."""
        kind, number = stream.seed_words
        return make_scenario(
            stream.scenario,
            seed=(self.seed * len(_STREAM_KINDS) + kind) * 100_000 + number,
            duration_s=stream.duration_s,
            fps=EXAM_FPS,
            questions_per_kind=self.questions_per_kind,
        )

    def _stream(self, kind: StreamKind, number: int) -> Stream:
        if kind == "long":
            length_s = self.long_durations_s[number % len(self.long_durations_s)]
            return Stream(kind=kind, number=number, scenario="static", duration_s=length_s)
        scenarios = _SELECTION_SCENARIOS if kind == "selection" else SCENARIOS
        # Every scenario meets every length.
        length = (number + number // len(scenarios)) % len(self.durations_s)
        return Stream(
            kind=kind,
            number=number,
            scenario=scenarios[number % len(scenarios)],
            duration_s=self.durations_s[length],
        )


def arms(curves: Sequence[CurveName], stream: Stream) -> list[Arm]:
    """The arms that a stream is stored in, the reference first."""
    found = [REFERENCE]
    if stream.kind == "mixed":
        if "reduction" in curves:
            found += [Arm(reduction=name, encoding="model") for name in REDUCTIONS]
        if "pareto" in curves or ("quiet" in curves and _is_quiet(stream)):
            found += _PARETO_ARMS
    return list(dict.fromkeys(found))


def tasks(
    plan: BenchmarkPlan, curves: Sequence[CurveName], stream: Stream, arm: Arm
) -> Iterator[Task]:
    """Everything that is asked about one stream in one arm."""
    for number, question in enumerate(plan.exam(stream).questions):
        for asking in dict.fromkeys(_askings(curves, stream, arm, question, number)):
            yield Task(stream=stream, arm=arm, number=number, question=question, asking=asking)


_PARETO_ARMS = [
    *(Arm(reduction=name, encoding=encoding) for encoding in ENCODINGS for name in _ENCODED),
    *(Arm(reduction=name, encoding="model") for name in _BESIDE),
]


def _is_quiet(stream: Stream) -> bool:
    """Some dozens of questions are enough for a median: those of one stream."""
    return stream.kind == "mixed" and stream.number == 0


def _askings(
    curves: Sequence[CurveName], stream: Stream, arm: Arm, question: Question, number: int
) -> Iterator[Asking]:
    if stream.kind == "selection":
        if "selection" in curves and left_the_window(question):
            for mode in Mode:
                if mode is not Mode.ALL or number % _FULL_ATTENTION_EVERY == 0:
                    yield Asking(mode=mode, budget=BUDGET, form="free")
    elif stream.kind == "long":
        if "age" in curves and question.kind in NOW_KINDS + PAST_KINDS:
            for mode in Mode:
                if mode is not Mode.ALL or question.asked_at_s < _MOST_UNITS_ATTENDED:
                    yield Asking(mode=mode, budget=BUDGET, form="free")
    else:
        yield from _mixed_askings(curves, stream, arm)


def _mixed_askings(curves: Sequence[CurveName], stream: Stream, arm: Arm) -> Iterator[Asking]:
    if set(curves) & {"reduction", "pareto", "budget", "form"}:
        yield AS_SERVED
    if arm == REFERENCE and "budget" in curves:
        for budget in BUDGETS:
            yield Asking(mode=Mode.RETRIEVAL, budget=budget, form="free")
    if arm == REFERENCE and "form" in curves:
        yield Asking(mode=Mode.RETRIEVAL, budget=BUDGET, form="choice")
    if "quiet" in curves and _is_quiet(stream) and arm in _PARETO_ARMS:
        for mode in Mode if arm == REFERENCE else (Mode.RETRIEVAL,):
            yield Asking(mode=mode, budget=BUDGET, form="free", alone=True)


def left_the_window(question: Question) -> bool:
    """Whether the window holds nothing of the evidence, or the question is about the screen."""
    if question.kind in NOW_KINDS or not question.evidence_s:
        return True
    units_since = (question.asked_at_s - question.evidence_s[-1][1]) * EXAM_FPS + 1
    return units_since >= WINDOW_UNITS
