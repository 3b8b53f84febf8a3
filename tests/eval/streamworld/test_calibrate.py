"""What a strength of token reduction costs: counted by question, and never asked twice."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from eval.streamworld.calibrate import add_calibrate, drift_table, table
from eval.streamworld.lines import read_lines


def line(seed: int, reduction: str, dropped: float, right: list[tuple[str, bool]]) -> Any:
    questions = [
        {"kind": kind, "right": each, "drift": "after" if kind == "now_colour" else ""}
        for kind, each in right
    ]
    return {"seed": seed, "reduction": reduction, "dropped": dropped, "questions": questions}


def test_a_loss_is_counted_over_questions_of_past_and_present_alone() -> None:
    kinds = ["past_colour", "past_scene", "now_what", "now_colour", "count"]
    whole = [line(seed, "none", 0.0, [(kind, True) for kind in kinds]) for seed in (1, 2)]
    reduced = [
        line(seed, "dtd:0.5", 0.6, [(kind, kind not in wrong) for kind in kinds])
        for seed, wrong in ((1, {"count"}), (2, {"count", "now_what"}))
    ]
    rows = table([*whole, *reduced]).splitlines()
    assert rows[2].startswith("| none | 0.000 | 1.000 | 1.000 | +0.000 |")
    assert rows[3].startswith("| dtd:0.5 | 0.600 | 1.000 | 0.750 | -0.125 |")


def test_a_stream_that_was_not_asked_whole_is_left_out() -> None:
    asked = [("past_colour", True), ("now_what", True)]
    rows = table(
        [
            line(1, "none", 0.0, asked),
            line(1, "dtd:0.5", 0.5, asked),
            line(2, "dtd:0.5", 0.9, [("past_colour", False), ("now_what", False)]),
        ]
    )
    assert "| dtd:0.5 | 0.500 | 1.000 | 1.000 | +0.000 |" in rows


def test_what_a_slow_change_led_to_is_asked_of_both_policies() -> None:
    rows = drift_table(
        [
            line(1, "last_kept:0.7", 0.5, [("now_colour", True), ("now_what", False)]),
            line(1, "dtd:0.7", 0.5, [("now_colour", False), ("now_what", False)]),
            line(2, "last_kept:0.7", 0.5, [("now_colour", True)]),
            line(2, "dtd:0.7", 0.5, [("now_colour", True)]),
            line(3, "last_kept:0.7", 0.5, [("now_colour", False)]),
        ]
    )
    assert "| 0.7 | 1.000 | 0.500 | +0.500 |" in rows
    assert rows.endswith("| 2 |")


def test_a_run_goes_on_where_it_was_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = argparse.ArgumentParser()
    add_calibrate(commands.add_subparsers())
    out = tmp_path / "lines"

    def run(*reductions: str) -> list[Any]:
        arguments = ["calibrate", "--streams", "1", "--duration-s", "150", "--out", str(out)]
        parsed = commands.parse_args([*arguments, "--reduction", *reductions])
        parsed.command(parsed)
        return read_lines(out)

    first = run("last_kept")
    assert [each["reduction"] for each in first] == ["none", "last_kept:0.7"]
    assert first[0]["dropped"] == 0 < first[1]["dropped"] < 1
    with out.open("r+b") as file:
        file.truncate(out.stat().st_size - 5)  # stopped while it wrote
    again = run("last_kept", "dtd:0.5")
    assert again[:2] == first
    assert [each["reduction"] for each in again] == ["none", "last_kept:0.7", "dtd:0.5"]
    assert "| dtd:0.5 |" in capsys.readouterr().out
