"""What is installed, and what the packages may call each other."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_wheel_holds_the_five_packages_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert top == {"svc", "kvstore", "retrieval", "eval", "lookback"}
    assert "lookback/v1/question_pb2.py" in names
    assert "eval/streamworld/checkpoint/model.safetensors" in names


def test_nothing_imports_eval_by_its_own_name_because_that_hides_the_builtin() -> None:
    offenders = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for package in ("svc", "kvstore", "retrieval", "eval", "tests")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name.split(".")[0] == "eval" and alias.asname is None
    ]
    assert offenders == []
