"""`lookback eval`, as people start it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from svc.cli import added
from svc.cli.failures import CommandError

SMALL = ["--limit", "1", "--duration-s", "120", "--long-duration-s", "120", "--curve", "budget",
         "--curve", "age", "--questions-per-kind", "1"]  # fmt: skip


def lookback(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "svc.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_a_small_run_reports_and_a_second_one_asks_nothing_again(tmp_path: Path) -> None:
    out = tmp_path / "report"
    first = lookback("eval", "streamworld", *SMALL, "--out", str(out), "--json")
    assert first.returncode == 0, first.stderr
    report = json.loads(first.stdout)
    assert report["streams"] == 2
    assert [figure["name"] for figure in report["budgets"]] == ["2", "4", "8", "16", "32"]
    assert {figure["mode"] for figure in report["ages"]} >= {"retrieval", "window only"}
    (arm,) = report["arms"]
    assert arm["name"] == "none/model"
    assert arm["past"]["value"] > 0.7
    assert arm["now"]["value"] > 0.7
    rows, drawn = (out / "answers.jsonl").read_bytes(), (out / "report.html").read_bytes()
    assert len(rows.splitlines()) == report["answers"] + report["streams"]

    again = lookback("eval", "streamworld", *SMALL, "--out", str(out), "--json")
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert (out / "answers.jsonl").read_bytes() == rows
    assert (out / "report.html").read_bytes() == drawn


def test_wrong_arguments_are_told_in_one_line(tmp_path: Path) -> None:
    for arguments, status, word in (
        (("eval", "streamworld", "--curve", "x"), 2, "no curve is called 'x'"),
        (("eval", "nothing"), 2, "nothing"),
        (("eval", "streamworld", "--duration-s", "20", "--out", str(tmp_path)), 1, "at least 120"),
    ):
        done = lookback(*arguments)
        assert done.returncode == status
        assert done.stderr.startswith("error: USAGE: ")
        assert word in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_missing_extra_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda **_: ())
    with pytest.raises(CommandError, match=r"pip install 'lookback\[eval\]'"):
        added.find("eval")
    broken = metadata.EntryPoint("eval", "a_module_that_is_not_there:run", "lookback.commands")
    monkeypatch.setattr(metadata, "entry_points", lambda **_: (broken,))
    with pytest.raises(CommandError, match="a_module_that_is_not_there: pip install"):
        added.find("eval")
