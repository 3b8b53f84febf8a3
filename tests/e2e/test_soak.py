"""The soak as a command, on a small scale: budgets hold, answers are the same or say why not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests.e2e.running import ROOT, environment

SHARED_MEMORY = Path("/dev/shm")


def start(work: Path, *arguments: str) -> subprocess.Popen[str]:
    """Two sessions of ten minutes, a question every ten seconds of each."""
    command = [sys.executable, "-m", "eval.soak", "--work", str(work), "--sessions", "2"]
    command += ["--hours", str(1 / 6), "--question-every-s", "10", "--sample-every-s", "0.1"]
    return subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(),
    )


def share_of_equal_answers(figures: Path) -> float:
    """Checks what must hold in every soak; memory is not steady yet in so short a one."""
    rows = {row["name"]: row for row in json.loads(figures.read_text())["rows"]}
    missed = [name for name, row in rows.items() if row["met"] is False]
    unsteady = ("process, anonymous", "descriptors")
    assert not [name for name in missed if not any(word in name for word in unsteady)]
    (answers,) = (name for name in rows if name.startswith("answers with the unbounded"))
    assert "(of 120)" in answers
    return float(rows["of them with the same text"]["value"])


def test_a_soak_goes_on_behind_its_first_run_and_finds_answers_and_budgets_in_order(
    tmp_path: Path,
) -> None:
    before = set(SHARED_MEMORY.glob("lookback-soak-*"))
    soak = start(tmp_path, "--mode", "drop_oldest")
    assert soak.stdout is not None
    for line in soak.stdout:
        if line.startswith("drop_oldest"):  # the first run is over, the second pushes
            break
    children = psutil.Process(soak.pid).children(recursive=True)
    assert children
    soak.send_signal(signal.SIGINT)
    _, err = soak.communicate()
    assert soak.returncode == 130, err
    assert "Traceback" not in err
    assert not any(child.is_running() for child in children)
    assert set(SHARED_MEMORY.glob("lookback-soak-*")) == before

    figures = tmp_path / "figures.json"
    soak = start(tmp_path, "--mode", "thin", "--json", str(figures))
    out, err = soak.communicate()
    assert soak.returncode in (0, 1), err
    assert (soak.returncode == 0) == ("missed" not in err)
    assert "unbounded: 0" not in out
    assert share_of_equal_answers(figures) > 0.8
