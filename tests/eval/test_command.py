"""`lookback eval`, as people start it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

import pytest

from svc.cli import added
from svc.cli.failures import CommandError
from svc.report import fill

SMALL = ["--limit", "1", "--duration-s", "120", "--long-duration-s", "120", "--curve", "budget",
         "--curve", "age", "--questions-per-kind", "1"]  # fmt: skip
CLAIMED = ["--selection-streams", "2", "--streams", "0", "--long-streams", "0", "--curve",
           "selection", "--duration-s", "300", "--questions-per-kind", "3"]  # fmt: skip


def lookback(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "svc.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_a_small_run_reports_and_later_ones_ask_nothing_again(tmp_path: Path) -> None:
    """A plot is a file of its own, and is made from answers that are there."""
    out, plot = tmp_path / "report", tmp_path / "pareto.svg"
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

    plotted = lookback("eval", "streamworld", *SMALL, "--out", str(out), "--plot", str(plot))
    assert plotted.returncode == 0, plotted.stderr
    assert (out / "answers.jsonl").read_bytes() == rows
    assert ElementTree.parse(plot).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert plot.stat().st_size < 200_000


def test_the_claims_hold_in_a_small_run_and_their_figures_go_into_a_readme(tmp_path: Path) -> None:
    figures = tmp_path / "benchmark.json"
    done = lookback(
        "eval", "streamworld", *CLAIMED, "--out", str(tmp_path), "--figures", str(figures), "--json"
    )
    assert done.returncode == 0, done.stderr
    selection = json.loads(done.stdout)["selection"]
    assert selection["streams"] == 2
    right = {(f["mode"], f["group"]): f["right"]["value"] for f in selection["modes"]}
    assert right["retrieval", "past"] >= right["evidence only", "past"] - 0.1
    assert right["retrieval", "past"] >= right["uniform", "past"] + 0.25
    assert right["retrieval", "now"] >= right["recent frames only", "now"] - 0.1
    layers = {(f["mode"], f["group"]): f["layers"] for f in selection["layers"]}
    assert len(layers["retrieval", "past"]) == 5
    assert min(layers["retrieval", "past"]) > max(layers["uniform", "past"])
    readme = "<!-- figures: benchmark.json -->\n<!-- /figures -->"
    assert "retrieval less evidence only" in fill(readme, tmp_path)


def test_wrong_arguments_are_told_in_one_line(tmp_path: Path) -> None:
    for arguments, status, word in (
        (("eval", "streamworld", "--curve", "x"), 2, "no curve is called 'x'"),
        (("eval", "streamworld", "--plot", "x.gif"), 2, "must end in .svg, got 'x.gif'"),
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
