"""`lookback push`, in processes of its own where signals and pipes matter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from svc.rpc.errors import Reason, RequestError
from tests.svc.cli.conftest import Lookback, Service
from tests.svc.client.protocol_server import StoredSession

ROOT = Path(__file__).resolve().parents[3]


def started(*arguments: str, stdin: int | None = subprocess.DEVNULL) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "svc.cli", *arguments],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"},
    )


def test_a_file_is_pushed_and_its_end_acknowledged(
    lookback: type[Lookback], service: Service, clip: Path
) -> None:
    outcome = lookback.run("push", str(clip), "--session", "s", *service.options)
    assert outcome.status == 0
    assert outcome.out == "s: finished, 40 units, stored up to 0:39.0\n"
    assert service.server.sessions["s"].finished


def test_a_push_can_leave_the_session_live_and_be_gone_on_with(
    lookback: type[Lookback], service: Service, clip: Path
) -> None:
    arguments = ["push", str(clip), "--session", "s", *service.options]
    left = lookback.run(*arguments, "--no-finish")
    assert left.status == 0
    assert left.out.startswith("s: left live")
    assert not service.server.sessions["s"].finished
    again = lookback.run(*arguments)
    assert again.status == 0
    assert "on from 0:39.0" in again.err
    assert lookback.run(*arguments).err.endswith(
        "error: SESSION_FINISHED: the session is finished\n"
    )


def write_video(path: Path, *, from_s: int, frame_count: int) -> Path:
    """Writes one frame a second, with times from `from_s` on."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for index in range(frame_count):
            pixels = np.full((32, 32, 3), 5 * index, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = from_s + index, Fraction(1)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_another_file_is_not_added_to_a_session_unless_it_is_meant(
    lookback: type[Lookback], service: Service, clip: Path, tmp_path: Path
) -> None:
    other = write_video(tmp_path / "other.mkv", from_s=40, frame_count=48)
    where = ["--session", "s", "--no-finish", *service.options]
    assert lookback.run("push", str(clip), *where).status == 0
    refused = lookback.run("push", str(other), *where)
    assert refused.status == 1
    last = refused.err.splitlines()[-1]
    assert last.startswith("error: SOURCE_MISMATCH: ")
    assert last.endswith("; --join adds it all the same")
    for path in (clip, other):
        assert f"{path.stat().st_size} bytes" in last
    moved = clip.with_name("moved.mp4")
    moved.write_bytes(clip.read_bytes())
    assert lookback.run("push", str(moved), *where).status == 0
    joined = lookback.run("push", str(other), "--join", *where)
    assert (joined.status, joined.out) == (0, "s: left live, 88 units, stored up to 1:27.0\n")
    assert service.server.sessions["s"].durable == [float(time_s) for time_s in range(88)]
    again = lookback.run("push", str(other), *where)
    assert again.status == 0
    assert again.out.startswith("s: left live, 88 units, stored up to 1:27.0, ")
    assert again.out.endswith(" already there\n")


@pytest.mark.parametrize("frame_count", [6, 48])
def test_a_file_that_begins_before_the_end_of_a_session_is_not_joined(
    lookback: type[Lookback], service: Service, clip: Path, tmp_path: Path, frame_count: int
) -> None:
    """Not even its end, where it is longer: it is read from its start, not from the session's."""
    other = write_video(tmp_path / "other.mkv", from_s=0, frame_count=frame_count)
    where = ["--session", "s", "--no-finish", *service.options]
    assert lookback.run("push", str(clip), *where).status == 0
    refused = lookback.run("push", str(other), "--join", *where)
    assert refused.status == 1
    assert refused.err.endswith("error: SOURCE_MISMATCH: must begin after 39.0, not at 0.0\n")
    assert len(service.server.sessions["s"].durable) == 40
    assert lookback.run("push", str(clip), *where).status == 0


def test_a_file_whose_name_is_not_text_is_pushed(
    lookback: type[Lookback], service: Service, clip: Path, tmp_path: Path
) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")
    Path(path).write_bytes(clip.read_bytes())
    outcome = lookback.run("push", path, "--session", "s", *service.options)
    assert (outcome.status, outcome.out) == (0, "s: finished, 40 units, stored up to 0:39.0\n")


def test_a_session_that_is_not_to_be_created_must_be_there(
    lookback: type[Lookback], service: Service, clip: Path
) -> None:
    outcome = lookback.run("push", str(clip), "--session", "s", "--no-create", *service.options)
    assert outcome.status == 1
    assert outcome.err.endswith("error: SESSION_NOT_FOUND: no session 's'\n")
    assert service.server.sessions == {}


def test_a_lost_connection_is_said_and_gone_on_from(
    lookback: type[Lookback], service: Service, clip: Path
) -> None:
    service.server.failures.cuts = [("packets", 6), ("finish", 0)]
    outcome = lookback.run("push", str(clip), "--session", "s", *service.options)
    assert outcome.status == 0
    assert outcome.err.count("trying again for") == 2
    assert service.server.sessions["s"].finished


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "SOURCE_OPEN"), (b"", "CORRUPT_MEDIA"), (b"not a video" * 99, "CORRUPT_MEDIA")],
)
def test_what_is_no_video_is_refused_in_one_line(
    lookback: type[Lookback], tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "x.mp4"
    if content is not None:
        path.write_bytes(content)
    outcome = lookback.run("push", str(path), "--session", "s")
    assert outcome.status == 1
    lines = outcome.err.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["error"]
    assert lines[0].split(": ")[1] in (reason, "EMPTY_MEDIA", "SOURCE_OPEN")


@pytest.mark.parametrize(
    "content", [b"", b"dear diary,\n" * 99, b"\x89PNG\r\n\x1a\n", b"%PDF-1.7\n"]
)
def test_a_file_that_is_no_video_is_called_so(
    lookback: type[Lookback], tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    outcome = lookback.run("push", str(path), "--session", "s")
    said = f"error: SOURCE_OPEN: cannot read {str(path)!r}: it is no video that can be read\n"
    assert outcome.err == said
    missing = lookback.run("push", str(tmp_path / "nosuch.mp4"), "--session", "s")
    assert "no such file" in missing.err.lower()


def test_a_folder_is_refused_before_a_session_is_made_of_it(
    lookback: type[Lookback], service: Service, tmp_path: Path
) -> None:
    outcome = lookback.run("push", str(tmp_path), "--session", "s", *service.options)
    assert outcome.status == 1
    assert outcome.err.startswith("error: SOURCE_OPEN: ")
    assert service.server.sessions == {}


def test_nobody_there_ends_a_push_at_once(lookback: type[Lookback], clip: Path) -> None:
    outcome = lookback.run("push", str(clip), "--session", "s", "--ingest-address", "127.0.0.1:1")
    assert outcome.status == 1
    assert outcome.err.startswith("error: UNREACHABLE: no server answers at 127.0.0.1:1; start")


def test_ctrl_c_ends_a_push_cleanly_and_says_how_to_go_on(service: Service, clip: Path) -> None:
    service.server.sessions["s"] = StoredSession()
    process = started("push", str(clip), "--session", "s", "--speed", "4", *service.options)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("pushing to s")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out.startswith("s: left live")
    assert f"To go on: lookback push {clip} --session s" in err
    assert "Traceback" not in err
    assert not service.server.sessions["s"].finished
    assert service.server.calls[0][-1] != "finish"


def test_ctrl_c_while_standard_input_is_silent_ends_at_once(service: Service) -> None:
    process = started("push", "-", "--session", "s", *service.options, stdin=subprocess.PIPE)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("pushing to s")
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)
    err = process.stderr.read()
    assert process.returncode == 130
    assert "Fatal" not in err
    assert "Traceback" not in err


def test_standard_input_is_pushed_as_container_bytes(service: Service, clip: Path) -> None:
    process = started("push", "-", "--session", "s", *service.options, stdin=subprocess.PIPE)
    process.communicate(clip.read_text(encoding="latin-1")[:100], timeout=30)
    assert process.returncode == 0
    assert service.server.calls[0] == ["open", "chunk", "finish"]


def test_a_second_ctrl_c_ends_a_push_that_cannot_end(service: Service, clip: Path) -> None:
    """The server never ends the call: the clean end would wait for it for ever."""
    service.server.sessions["s"] = StoredSession()
    service.server.never_ends = True
    process = started("push", str(clip), "--session", "s", *service.options)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("pushing to s")
    process.send_signal(signal.SIGINT)
    assert "again" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)
    err = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in err


def test_a_refusal_in_the_middle_is_the_last_line(
    lookback: type[Lookback], service: Service, clip: Path
) -> None:
    service.server.refuse_items_after = (9, RequestError(Reason.MEDIA_CORRUPT, "bad packet"))
    outcome = lookback.run("push", str(clip), "--session", "s", *service.options)
    assert outcome.status == 1
    assert outcome.err.splitlines()[-1] == "error: MEDIA_CORRUPT: bad packet"


def test_commands_that_only_talk_to_a_service_load_no_model() -> None:
    code = (
        "import sys, svc.cli.main, svc.client, svc.cli.push_view;"
        "print([m for m in ('torch', 'transformers', 'faiss', 'kvstore') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout == "[]\n"


def test_help_does_not_even_load_the_client() -> None:
    code = (
        "import sys, svc.cli.main;"
        "print([m for m in ('grpc', 'av', 'numpy', 'svc.client') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout == "[]\n"


def test_a_reader_that_goes_away_is_no_fault(service: Service) -> None:
    service.server.sessions = {f"s{i}": StoredSession() for i in range(500)}
    process = started("sessions", "list", *service.options)
    assert process.stdout is not None
    process.stdout.close()
    process.wait(timeout=30)
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()


def test_a_push_that_failed_says_that_the_session_is_live_and_how_to_go_on(
    lookback: type[Lookback], service: Service, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.server.refuse_items_after = (6, RequestError(Reason.MEDIA_CORRUPT, "half a picture"))
    arguments = ["push", str(clip), "--session", "s", *service.options]
    monkeypatch.setattr("sys.argv", ["lookback", *arguments])
    failed = lookback.run(*arguments)
    assert failed.status == 1
    told, error = failed.err.splitlines()[-2:]
    assert error.startswith("error: MEDIA_CORRUPT: half a picture")
    assert told.startswith("the session s is live, stored up to 0:0")
    assert f"To go on once that is mended: lookback push {clip} --session s" in told
    assert told.endswith("To end it: lookback sessions finish s")
    service.server.refuse_items_after = None
    assert lookback.run(*arguments).status == 0
    # A session that is over is not said to be live.
    assert "is live" not in lookback.run(*arguments).err
