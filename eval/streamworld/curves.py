"""What a benchmark run measures: few curves, each of which varies one thing.

reduction
    Policies and strengths of token reduction, keys and values as the model makes them.
encoding
    Element types of the store, without reduction and with `last_kept`.
budget
    Units in context, without reduction.
age
    Ways to choose the units, on long streams asked about at many ages, without reduction.
form
    The same questions freely and as a choice among four answers, without reduction.

The full product of these would take a hundred times as long and say little more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from eval.streamworld.exam import Exam, Question
from eval.streamworld.modes import Mode
from eval.streamworld.scenarios import PAST_KINDS, SCENARIOS, Scenario, make_scenario
from eval.streamworld.wording import NOW_KINDS

CurveName = Literal["reduction", "encoding", "budget", "age", "form"]
CURVES: tuple[CurveName, ...] = get_args(CurveName)
Encoding = Literal["model", "int8", "int4"]
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
Form = Literal["free", "choice"]

BUDGET = 8
BUDGETS = (2, 4, 8, 16, 32)
WINDOW_UNITS = 16
NO_REDUCTION = "none"
REDUCTIONS = (
    NO_REDUCTION,
    "last_kept:0.9", "last_kept:light", "last_kept:balanced", "last_kept:aggressive",
    "dtd:0.9", "dtd:light", "dtd:balanced", "dtd:aggressive",
    "dtd_pixel:light", "dtd_pixel:balanced", "dtd_pixel:aggressive",
    "budget:light", "budget:balanced", "budget:aggressive",
    "key_norm:light", "key_norm:balanced", "key_norm:aggressive",
)  # fmt: skip
_REDUCED_AND_ENCODED = "last_kept:balanced"
_MOST_UNITS_ATTENDED = 1024
"""Full attention over more takes minutes a question, far beyond what the model was trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """How a stream is stored."""

    reduction: str
    encoding: Encoding

    def __str__(self) -> str:
        return f"{self.reduction}/{self.encoding}"


REFERENCE = Arm(reduction=NO_REDUCTION, encoding="model")
"""What other arms are compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How a question is put."""

    mode: Mode
    budget: int
    form: Form


AS_SERVED = Asking(mode=Mode.RETRIEVAL, budget=BUDGET, form="free")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One generated stream."""

    kind: Literal["mixed", "long"]
    number: int
    scenario: Scenario
    duration_s: int

    @property
    def name(self) -> str:
        """Names it within a plan."""
        return f"{self.kind}-{self.number:03d}"


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
    def key(self) -> tuple[str, str, int, str, int, str]:
        """Names the task within a plan."""
        asking = self.asking
        return (
            self.stream.name,
            str(self.arm),
            self.number,
            asking.mode.value,
            asking.budget,
            asking.form,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkPlan:
    """What is asked; equal plans ask the same, and a longer one begins with a shorter one."""

    seed: int = 0
    mixed_durations_s: tuple[int, ...] = (300, 600, 900)
    """Lengths of the streams of all scenarios in turn."""
    long_durations_s: tuple[int, ...] = (1800, 14_400)
    """Lengths of the "static" streams that the ages are asked about on."""
    questions_per_kind: int = 2
    model: str = "builtin"

    @property
    def digest(self) -> str:
        """Names the plan in every row."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def streams(self, mixed_count: int, long_count: int) -> list[Stream]:
        """The first streams of each kind, mixed ones and long ones in turn."""
        mixed = [
            Stream(
                kind="mixed",
                number=i,
                scenario=SCENARIOS[i % len(SCENARIOS)],
                duration_s=self._mixed_duration_s(i),
            )
            for i in range(mixed_count)
        ]
        long = [
            Stream(
                kind="long",
                number=i,
                scenario="static",
                duration_s=self.long_durations_s[i % len(self.long_durations_s)],
            )
            for i in range(long_count)
        ]
        return sorted([*mixed, *long], key=lambda stream: (stream.number, stream.kind))

    def exam(self, stream: Stream) -> Exam:
        """The clip and the questions of one stream."""
        kinds = ("mixed", "long")
        return make_scenario(
            stream.scenario,
            seed=(self.seed * 2 + kinds.index(stream.kind)) * 100_000 + stream.number,
            duration_s=stream.duration_s,
            questions_per_kind=self.questions_per_kind,
        )

    def _mixed_duration_s(self, number: int) -> int:
        """Every scenario meets every length."""
        lengths = self.mixed_durations_s
        return lengths[(number + number // len(SCENARIOS)) % len(lengths)]


def arms(curves: Sequence[CurveName], stream: Stream) -> list[Arm]:
    """The arms that a stream is stored in, the reference first."""
    found = [REFERENCE]
    if stream.kind == "mixed":
        if "reduction" in curves:
            found += [Arm(reduction=name, encoding="model") for name in REDUCTIONS]
        if "encoding" in curves:
            found += [
                Arm(reduction=name, encoding=encoding)
                for encoding in ENCODINGS
                for name in (NO_REDUCTION, _REDUCED_AND_ENCODED)
            ]
    return list(dict.fromkeys(found))


def tasks(
    plan: BenchmarkPlan, curves: Sequence[CurveName], stream: Stream, arm: Arm
) -> Iterator[Task]:
    """Everything that is asked about one stream in one arm."""
    for number, question in enumerate(plan.exam(stream).questions):
        for asking in dict.fromkeys(_askings(curves, stream, arm, question)):
            yield Task(stream=stream, arm=arm, number=number, question=question, asking=asking)


def _askings(
    curves: Sequence[CurveName], stream: Stream, arm: Arm, question: Question
) -> Iterator[Asking]:
    if stream.kind == "mixed":
        yield AS_SERVED
        if arm == REFERENCE and "budget" in curves:
            for budget in BUDGETS:
                yield Asking(mode=Mode.RETRIEVAL, budget=budget, form="free")
        if arm == REFERENCE and "form" in curves:
            yield Asking(mode=Mode.RETRIEVAL, budget=BUDGET, form="choice")
    elif "age" in curves and question.kind in NOW_KINDS + PAST_KINDS:
        for mode in Mode:
            if mode is not Mode.ALL or question.asked_at_s < _MOST_UNITS_ATTENDED:
                yield Asking(mode=mode, budget=BUDGET, form="free")
