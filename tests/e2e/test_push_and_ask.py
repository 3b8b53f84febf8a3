"""The whole service, as people start it: real videos in, questions answered, times right."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import psutil
import pytest

from svc.client import (
    LookbackClient,
    LookbackError,
    PushFinished,
    PushOpened,
    PushProgress,
    PushReconnecting,
    SessionSettings,
    SessionState,
)
from svc.video.sources import open_source
from tests.svc.engine.tiny import build_tiny_checkpoint

ROOT = Path(__file__).resolve().parents[2]
VIDEOS = ROOT.parent / "shared" / "data" / "videos"
NAMES = (
    "nasa_13013.mp4",
    "h265_video.mp4",
    "av1_video.mkv",
    "testsrc2_vp9.webm",
    "testsrc2_mpeg4.avi",
    "test_non_zero_start.mp4",
    "generated_vfr_bframes.mp4",
)
FPS = 4.0
# A time that a container rounds to its own clock may lie this far before the grid's.
CLOCK_S = 1e-6


@dataclass(frozen=True, kw_only=True)
class Service:
    """A service that runs."""

    process: subprocess.Popen[str]
    ingest_address: str
    qa_address: str
    data: Path

    def ingest_process(self) -> psutil.Process:
        for child in psutil.Process(self.process.pid).children(recursive=True):
            if "svc.ingest" in child.cmdline():
                return child
        raise AssertionError("no ingest process")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    model = build_tiny_checkpoint(folder / "model")
    data = folder / "data"
    command = [sys.executable, "-m", "svc.cli", "serve", "--data", str(data), "--json"]
    command += ["--model", str(model), "--ingest-port", "0", "--qa-port", "0"]
    settings = {"INGEST_THREADS": "1", "QA_THREADS": "1", "BLOCK_SPAN_S": "2", "DRAIN_S": "2"}
    environment = {f"LOOKBACK_{name}": value for name, value in settings.items()}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env={**os.environ, **environment},
        )
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline() or "{}")
    assert ready, (folder / "log").read_text()
    yield Service(
        process=process,
        ingest_address=ready["ingest_address"],
        qa_address=ready["qa_address"],
        data=data,
    )
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0


def video(name: str) -> Path:
    path = VIDEOS / name
    if not path.exists():
        pytest.skip(f"sample video is not at {path}")
    return path


def sampled_pts_s(path: Path, fps: float) -> list[float]:
    """Times of the frames that fall first on or after each point of the grid, by PyAV alone."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        assert isinstance(stream, av.VideoStream)
        times = sorted(frame.time for frame in container.decode(stream) if frame.time is not None)
    taken: list[float] = []
    due_s = times[0]
    for time_s in times:
        if time_s >= due_s - CLOCK_S:
            taken.append(time_s)
            passed = int((time_s - times[0] + CLOCK_S) * fps)
            due_s = times[0] + (passed + 1) / fps
    return taken


def lookback(service: Service, *arguments: str, stdin: Path | None = None) -> Any:
    command = [sys.executable, "-m", "svc.cli", "--ingest-address", service.ingest_address]
    command += ["--qa-address", service.qa_address, *arguments]
    with contextlib.ExitStack() as stack:
        source = subprocess.DEVNULL if stdin is None else stack.enter_context(stdin.open("rb"))
        return subprocess.run(command, stdin=source, capture_output=True, text=True, cwd=ROOT)


def session_of(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


@pytest.mark.parametrize("name", NAMES)
def test_a_video_is_pushed_and_asked_about_with_right_times(service: Service, name: str) -> None:
    path, session = video(name), session_of(name)
    times = sampled_pts_s(path, FPS)

    pushed = lookback(service, "push", str(path), "--session", session, "--fps", str(FPS))
    assert pushed.returncode == 0, pushed.stderr
    asked = lookback(service, "ask", session, "What is there?", "--json")
    assert asked.returncode == 0, asked.stderr
    answer = json.loads(asked.stdout)
    assert answer["evidence_until_s"] == pytest.approx(times[-1], abs=1e-3)
    for moment in answer["evidence"]:
        assert times[0] - 1e-3 <= moment["start_s"] < moment["end_s"]
        assert moment["tier"] == "disk"
    asyncio.run(check_session(service, session, times))


async def check_session(service: Service, session: str, times: list[float]) -> None:
    """What is stored, and what a question in the middle sees, are the video's own times."""
    async with LookbackClient(service.ingest_address, service.qa_address) as client:
        stored = await client.get_session(session)
        assert stored.state is SessionState.FINISHED
        stats = stored.stats
        assert stats.visible_unit_count == stats.durable_unit_count == len(times)
        assert stats.first_pts_s == pytest.approx(times[0], abs=1e-3)
        assert stats.last_durable_pts_s == pytest.approx(times[-1], abs=1e-3)

        middle = len(times) // 2
        asked_at_s = times[middle] + 1e-3  # the container's clock may differ in the last place
        answer = await client.answer(session, "What?", asked_at_s=asked_at_s)
        assert answer.evidence_until_s == pytest.approx(times[middle], abs=1e-3)
        earlier = times[:middle]
        asked_at_s = times[middle] - 1e-3
        if earlier:
            answer = await client.answer(session, "What?", asked_at_s=asked_at_s, before=True)
            assert answer.evidence_until_s == pytest.approx(earlier[-1], abs=1e-3)
        else:
            with pytest.raises(LookbackError, match="ASKED_AT_BEFORE_START"):
                await client.answer(session, "What?", asked_at_s=asked_at_s, before=True)


@pytest.mark.parametrize("from_stdin", [False, True])
def test_audio_alone_is_refused_clearly(service: Service, from_stdin: bool) -> None:
    path = video("nasa_13013.mp4.audio.mp3")
    source = "-" if from_stdin else str(path)
    outcome = lookback(
        service, "push", source, "--session", "sound", stdin=path if from_stdin else None
    )
    assert outcome.returncode == 1
    assert outcome.stderr.splitlines()[-1].startswith("error: NO_VIDEO_STREAM: no video stream")


def test_standard_input_gives_the_same_units_as_the_file(service: Service) -> None:
    path = video("av1_video.mkv")
    outcome = lookback(service, "push", "-", "--session", "piped", "--fps", str(FPS), stdin=path)
    assert outcome.returncode == 0, outcome.stderr
    shown = lookback(service, "sessions", "show", "piped", "--json")
    stats = json.loads(shown.stdout)["stats"]
    assert stats["visible_unit_count"] == len(sampled_pts_s(path, FPS))


def test_a_push_survives_the_death_of_the_ingest_process(service: Service) -> None:
    """Killed in the middle of a paced push, with questions asked before and after."""
    path = video("nasa_13013.mp4")
    times = sampled_pts_s(path, FPS)

    async def push_over_a_kill() -> tuple[PushFinished, int, str, str]:
        killed_at_units = reconnects = 0
        live = ""
        async with LookbackClient(service.ingest_address, service.qa_address) as client:
            await client.create_session("killed", settings=SessionSettings(sample_fps=FPS))
            async for event in client.push("killed", open_source(str(path)), speed=8.0):
                match event:
                    case PushProgress() if not killed_at_units and event.durable_unit_count > 4:
                        live = (await client.answer("killed", "What?", asked_at_s=1.0)).text
                        killed_at_units = event.visible_unit_count
                        service.ingest_process().send_signal(signal.SIGKILL)
                    case PushReconnecting():
                        reconnects += 1
                    case PushOpened(reconnect_count=int() as count) if count:
                        assert event.durable_pts_s is not None
                        assert event.durable_pts_s >= times[4] - 1e-3
                    case PushFinished():
                        later = (await client.answer("killed", "What?", asked_at_s=1.0)).text
                        return event, reconnects, live, later
        raise AssertionError("the push did not finish")

    finished, reconnects, live, later = asyncio.run(push_over_a_kill())
    assert reconnects > 0
    assert finished.progress.durable_unit_count == len(times)
    assert finished.progress.durable_pts_s == pytest.approx(times[-1], abs=1e-3)
    assert live == later


def test_the_store_is_sound_after_all_that(service: Service) -> None:
    if not any(service.data.glob("sessions/*")):
        pytest.skip("no sample video was there to be pushed")
    outcome = lookback(service, "store", "verify", str(service.data), "--json")
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads(outcome.stdout)["damage"] == []
