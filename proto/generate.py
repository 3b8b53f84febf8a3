"""Generates the Python code of the protocol beside the .proto files.

`python proto/generate.py` writes it; `--check` fails when what is committed is not what would be
written, and runs `buf lint` where a `buf` or `npx` command is found.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROTO_ROOT = Path(__file__).resolve().parent
BUF_VERSION = "1.75.0"


def generate(out: Path) -> None:
    """Writes `*_pb2.py`, `*_pb2_grpc.py` and their stubs under `out`."""
    sources = sorted(str(path) for path in PROTO_ROOT.glob("lookback/v1/*.proto"))
    bin_dir = Path(sys.executable).parent
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO_ROOT}"]
    command += [f"--plugin=protoc-gen-mypy={bin_dir / 'protoc-gen-mypy'}"]
    command += [f"--plugin=protoc-gen-mypy_grpc={bin_dir / 'protoc-gen-mypy_grpc'}"]
    command += [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    subprocess.run([*command, *sources], check=True)


def differing(out: Path) -> list[str]:
    """Returns the generated files that are absent or different in the working tree."""
    wanted = {path.relative_to(out) for path in out.rglob("*_pb2*")}
    present = {path.relative_to(PROTO_ROOT) for path in PROTO_ROOT.rglob("*_pb2*.py*")}
    present = {path for path in present if "__pycache__" not in path.parts}
    changed = wanted ^ present
    changed |= {
        path
        for path in wanted & present
        if not filecmp.cmp(out / path, PROTO_ROOT / path, shallow=False)
    }
    return sorted(str(path) for path in changed)


def buf_lint() -> int:
    """Runs `buf lint`; says so, and returns 0, on a machine that cannot get buf."""
    if shutil.which("buf"):
        command = ["buf"]
    elif shutil.which("npx"):
        command = ["npx", "--yes", f"@bufbuild/buf@{BUF_VERSION}"]
    else:
        sys.stderr.write("proto: neither buf nor npx found, so the .proto files were not linted\n")
        return 0
    return subprocess.run([*command, "lint"], cwd=PROTO_ROOT, check=False).returncode


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="fail if committed code differs")
    if not parser.parse_args().check:
        generate(PROTO_ROOT)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        changed = differing(Path(folder))
    if changed:
        sys.stderr.write(f"proto: out of date, run `make proto`: {', '.join(changed)}\n")
        return 1
    return buf_lint()


if __name__ == "__main__":
    sys.exit(main())
