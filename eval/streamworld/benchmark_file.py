"""Scenarios as files in StreamingBench's own layout, for any runner that reads it.

Layout: Lin et al., arXiv:2411.03628, `questions_real.json` of its repository: a list of entries,
one clip window each, a video's entries beside each other. What the layout has no place for, the
spans of evidence above all, is in `evidence.json` beside it, entry by entry.

Frames are held for a second of several frames, and the time stamp is the end of the second that was
asked about: runners that exclude the frame at the stamp and those that include it see the same, as
only questions are written whose next second shows the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from eval.streamworld.clip_file import write_mp4
from eval.streamworld.exam import Exam, Question
from eval.streamworld.scenarios import SCENARIOS, Scenario, make_scenario, settled
from eval.streamworld.wording import NOW_KINDS, Kind

TASK_OF: Mapping[Kind, str] = {
    "now_what": "Object Recognition",
    "now_object": "Object Recognition",
    "past_object": "Object Recognition",
    "now_colour": "Attribute Recognition",
    "past_colour": "Attribute Recognition",
    "now_scene": "Spatial Understanding",
    "past_scene": "Spatial Understanding",
    "past_text": "Text-Rich Understanding",
    "motion": "Action Recognition",
    "count": "Counting",
    "order": "Event Understanding",
    "not_seen": "Misleading Context Understanding",
}
"""StreamingBench's task of each kind. The world has no causes, plans, feelings or sound, so Causal
and Prospective Reasoning, Clips Summarize and the tasks that need sound have no kind."""

_WINDOW_S = 10
_LETTERS = "ABCD"


def write_benchmark(
    folder: Path,
    *,
    seed: int,
    stream_count: int,
    durations_s: Sequence[int],
    questions_per_kind: int,
    scenarios: Sequence[Scenario] = SCENARIOS,
    frames_per_second: int = 4,
) -> int:
    """Writes `questions_real.json`, `evidence.json` and `videos/` into a folder.

    Args:
        folder: Made if it is not there.
        seed: Another number, other streams; equal arguments write equal files.
        stream_count: How many videos.
        durations_s: Their lengths in seconds, taken in turn.
        questions_per_kind: In each video.
        scenarios: Taken in turn.
        frames_per_second: Of the video files; the world changes once a second.

    Returns:
        How many questions there are.

    Raises:
        ValueError: A length is too short for its scenario.
    """
    exams = [
        make_scenario(
            scenarios[stream % len(scenarios)],
            seed=seed * 100_000 + stream,
            duration_s=durations_s[stream % len(durations_s)],
            questions_per_kind=questions_per_kind,
        )
        for stream in range(stream_count)
    ]
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    evidence: list[dict[str, Any]] = []
    for stream, exam in enumerate(exams):
        scenario = scenarios[stream % len(scenarios)]
        path = f"./videos/sample_{stream + 1}_real.mp4"
        fps = Fraction(frames_per_second)
        write_mp4(exam.clip, folder / path, fps=fps, hold=frames_per_second)
        for question in _writable(exam):
            entries.append(_entry(question, path, scenario))
            evidence.append(_evidence(question, path, len(entries) - 1, scenario))
    for name, content in (("questions_real.json", entries), ("evidence.json", evidence)):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")
    return len(entries)


def _writable(exam: Exam) -> list[Question]:
    """Questions whose answer does not depend on which side of the stamp a runner cuts."""
    return [q for q in exam.questions if settled(exam.clip, int(q.asked_at_s * exam.fps))]


def _entry(question: Question, path: str, scenario: Scenario) -> dict[str, Any]:
    stamp_s = int(question.asked_at_s) + 1
    options = [f"{a}. {text}" for a, text in zip(_LETTERS, question.options, strict=True)]
    window = f"[{_clock(max(0, stamp_s - _WINDOW_S), 1)} - {_clock(stamp_s, 1)}]"
    return {
        "time": window,
        "questions": [
            {
                "task_type": TASK_OF[question.kind],
                "question": question.text,
                "time_stamp": _clock(stamp_s, 2),
                "answer": _LETTERS[question.options.index(question.answer)],
                "options": options,
                "required_ability": (
                    "working memory" if question.kind in NOW_KINDS else "episodic memory"
                ),
            }
        ],
        "video_categories": f"streamworld_{scenario}",
        "video_path": path,
    }


def _evidence(question: Question, path: str, entry: int, scenario: Scenario) -> dict[str, Any]:
    spans = question.evidence_s
    return {
        "entry": entry,
        "video_path": path,
        "scenario": scenario,
        "kind": question.kind,
        "asked_as": question.asked_as,
        "drift": question.drift,
        "asked_at_s": question.asked_at_s,
        "answer": question.answer,
        "evidence_s": spans,
        "age_s": question.asked_at_s - spans[-1][1] if spans else None,
    }


def _clock(seconds: int, hour_digits: int) -> str:
    return f"{seconds // 3600:0{hour_digits}d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
