"""The README's Python example is what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.svc.cli.conftest import Service

ROOT = Path(__file__).resolve().parents[3]


def test_the_python_example_pushes_a_file_and_asks(service: Service, clip: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for given in ("127.0.0.1:50551", "127.0.0.1:50552", "video.mp4"):
        assert f'"{given}"' in example
        here = str(clip) if given == "video.mp4" else service.address
        example = example.replace(f'"{given}"', repr(here))
    command = [sys.executable, "-c", example]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("PushOpened(")
    assert lines[-2].startswith("PushFinished(")
    assert lines[-1] == "A red circle. [(12.0, 15.0), (61.5, 62.5)]"
    assert service.server.sessions["hall"].finished
    assert service.server.sessions["hall"].fingerprint
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (again.returncode, again.stdout) == (0, f"{lines[-1]}\n"), again.stderr
