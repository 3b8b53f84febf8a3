"""Streams and questions in StreamingBench's layout: what a runner of that benchmark relies on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import av
import pytest

from eval.streamworld.benchmark_file import TASK_OF, write_benchmark
from eval.streamworld.wording import KINDS

ENTRY_KEYS = {"time", "questions", "video_categories", "video_path"}
QUESTION_KEYS = {
    "task_type", "question", "time_stamp", "answer", "options", "required_ability",
}  # fmt: skip
TASKS_OF_STREAMINGBENCH = {
    "Object Recognition", "Causal Reasoning", "Clips Summarize", "Attribute Recognition",
    "Event Understanding", "Text-Rich Understanding", "Prospective Reasoning",
    "Spatial Understanding", "Action Recognition", "Counting", "Emotion Recognition",
    "Scene Understanding", "Source Discrimination", "Multimodal Alignment",
    "Misleading Context Understanding", "Anomaly Context Understanding",
    "Sequential Question Answering", "Proactive Output",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("benchmark")
    command = [sys.executable, "-m", "eval.streamworld", "export-benchmark", "--seed", "1"]
    command += ["--streams", "6", "--durations-s", "300", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return out


def stamp_s(text: str) -> int:
    """As StreamingBench's own code reads it."""
    return sum(int(part) * 60**i for i, part in enumerate(reversed(text.split(":"))))


def test_every_kind_counts_as_one_of_streamingbenchs_tasks() -> None:
    assert set(TASK_OF) == set(KINDS)
    assert set(TASK_OF.values()) <= TASKS_OF_STREAMINGBENCH


def test_entries_have_the_layout_and_answers_are_among_lettered_options(folder: Path) -> None:
    entries = json.loads((folder / "questions_real.json").read_text())
    assert len(entries) > 80
    for entry in entries:
        assert set(entry) == ENTRY_KEYS
        assert re.fullmatch(r"\[\d:\d\d:\d\d - \d:\d\d:\d\d\]", entry["time"])
        (question,) = entry["questions"]
        assert set(question) == QUESTION_KEYS
        assert [option[:3] for option in question["options"]] == ["A. ", "B. ", "C. ", "D. "]
        assert question["answer"] in "ABCD"
    paths = [entry["video_path"] for entry in entries]
    assert paths == sorted(paths)  # the entries of a video lie beside each other
    assert {e["video_categories"] for e in entries} == {
        f"streamworld_{name}"
        for name in ("plain", "static", "drift", "flash", "distractors", "near_duplicates")
    }


def test_evidence_lies_beside_each_entry_and_before_its_stamp(folder: Path) -> None:
    entries = json.loads((folder / "questions_real.json").read_text())
    evidence = json.loads((folder / "evidence.json").read_text())
    assert len(evidence) == len(entries)
    for number, (entry, beside) in enumerate(zip(entries, evidence, strict=True)):
        (question,) = entry["questions"]
        assert (beside["entry"], beside["video_path"]) == (number, entry["video_path"])
        stamp = stamp_s(question["time_stamp"])
        assert stamp == beside["asked_at_s"] + 1
        assert all(0 <= start < end <= stamp for start, end in beside["evidence_s"])
        letter = "ABCD".index(question["answer"])
        assert question["options"][letter] == "ABCD"[letter] + ". " + beside["answer"]


def test_what_is_on_screen_is_the_same_whether_or_not_the_frame_at_the_stamp_is_seen(
    folder: Path,
) -> None:
    entries = json.loads((folder / "questions_real.json").read_text())
    path = entries[0]["video_path"]
    with av.open(str(folder / path)) as container:
        frames = {
            frame.time: frame.to_ndarray(format="gray") for frame in container.decode(video=0)
        }
    for entry in entries:
        if entry["video_path"] == path:
            stamp = stamp_s(entry["questions"][0]["time_stamp"])
            before, at = frames[stamp - 0.25].astype(int), frames[float(stamp)].astype(int)
            assert abs(before - at).mean() < 3


def test_equal_seeds_write_equal_questions(folder: Path, tmp_path: Path) -> None:
    write_benchmark(tmp_path, seed=1, stream_count=6, durations_s=(300,), questions_per_kind=2)
    for name in ("questions_real.json", "evidence.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    write_benchmark(tmp_path, seed=2, stream_count=1, durations_s=(300,), questions_per_kind=2)
    assert (tmp_path / "evidence.json").read_bytes() != (folder / "evidence.json").read_bytes()
