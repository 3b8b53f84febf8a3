"""The supervisor against real child processes that only stand in for the heavy ones."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from svc import child as child_module
from svc.child import ChildFailedError
from svc.config import ConfigError, Settings
from svc.folder_owner import folder_owner
from svc.supervisor import StartError, Supervisor, serve

MODULES = {"ingest": "tests.svc.stand_in_ingest", "qa": "tests.svc.stand_in_qa"}
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stand-ins look for their part; restarts come at once."""
    monkeypatch.setenv("STAND_IN", str(tmp_path))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(child_module, "_FIRST_PAUSE_S", 0.01)
    return tmp_path


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, ingest_port=0, qa_port=0, drain_s=1.0)


def starts(folder: Path, name: str) -> list[dict]:
    """What is known of each start; a process that is stopped at once may not have got so far."""
    file = folder / f"{name}.starts"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def reachable(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


async def until(claim: Callable[[], bool]) -> None:
    """Waits for what another process does; the suite's timeout is the limit."""
    while not claim():  # noqa: ASYNC110 - nothing here could set an event
        await asyncio.sleep(0.01)


async def test_both_serve_inside_the_block_and_have_drained_after_it(
    settings: Settings, stand_in: Path
) -> None:
    async with Supervisor(settings, modules=MODULES) as service:
        assert reachable(service.ingest_address)
        assert reachable(service.qa_address)
        assert service.ingest_address != service.qa_address
        pids = service.pids
        assert set(service.rss_bytes()) == {"supervisor", "ingest", "qa"}
        assert all(size > 2**20 for size in service.rss_bytes().values())
    assert (stand_in / "ingest.stopped").exists()
    assert (stand_in / "qa.stopped").exists()
    assert not any(psutil.pid_exists(pid) for pid in pids.values())
    assert await service.wait() == 0


async def test_children_get_every_setting(settings: Settings, stand_in: Path) -> None:
    async with Supervisor(settings, modules=MODULES):
        pass
    given = starts(stand_in, "qa")[0]["settings"]
    assert given["LOOKBACK_DATA_DIR"] == str(settings.data_dir.absolute())
    assert given["LOOKBACK_DRAIN_S"] == "1.0"
    assert "LOOKBACK_SHM_DIR" not in given  # None has no text: absent stays absent


async def test_a_killed_child_is_back_at_the_same_address(
    settings: Settings, stand_in: Path
) -> None:
    async with Supervisor(settings, modules=MODULES) as service:
        address, ingest_pid = service.qa_address, service.pids["ingest"]
        for _ in range(2):
            killed = service.pids["qa"]
            os.kill(killed, signal.SIGKILL)
            await until(lambda killed=killed: service.pids.get("qa") not in (None, killed))
            await service.wait_ready("qa")
            assert service.qa_address == address
            assert reachable(address)
        assert service.restart_counts == {"ingest": 0, "qa": 2}
        assert service.pids["ingest"] == ingest_pid


async def test_a_misconfigured_child_is_not_started_again_and_takes_the_other_down(
    settings: Settings, stand_in: Path
) -> None:
    (stand_in / "qa").write_text("config")
    service = Supervisor(settings, modules=MODULES)
    with pytest.raises(ChildFailedError, match="the qa process cannot serve as configured"):
        await service.__aenter__()
    assert await service.wait() == 2
    assert len(starts(stand_in, "qa")) == 1
    for start in starts(stand_in, "ingest"):
        assert not psutil.pid_exists(start["pid"])


async def test_a_child_that_never_gets_ready_is_given_up(
    settings: Settings, stand_in: Path
) -> None:
    (stand_in / "ingest").write_text("crash")
    service = Supervisor(settings, modules=MODULES)
    with pytest.raises(ChildFailedError, match=r"5 times before it was ready .*exit status 3"):
        await service.__aenter__()
    assert await service.wait() == 1
    assert len(starts(stand_in, "ingest")) == 5


async def test_misconfiguration_at_a_restart_ends_the_service(
    settings: Settings, stand_in: Path
) -> None:
    async with Supervisor(settings, modules=MODULES) as service:
        (stand_in / "qa").write_text("config")
        os.kill(service.pids["qa"], signal.SIGKILL)
        assert await service.wait() == 2
        assert service.pids == {}


async def test_a_child_that_does_not_stop_is_killed(
    settings: Settings, stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_module, "STOP_MARGIN_S", 0.0)
    (stand_in / "qa").write_text("deaf")
    async with Supervisor(settings.model_copy(update={"drain_s": 0.1}), modules=MODULES) as service:
        pid = service.pids["qa"]
    assert not psutil.pid_exists(pid)
    assert not (stand_in / "qa.stopped").exists()


def test_children_stop_when_the_parent_is_killed_outright(tmp_path: Path, stand_in: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-m", "tests.svc.stand_in_service", str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"serving\n"
    children = [psutil.Process(starts(stand_in, name)[0]["pid"]) for name in ("ingest", "qa")]
    assert {child.ppid() for child in children} == {parent.pid}
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    assert (stand_in / "qa.stopped").exists()  # told to stop, so they could drain


async def test_serve_stops_on_sigterm_and_reports_a_clean_stop(
    settings: Settings, stand_in: Path
) -> None:
    addresses = []

    def stop(service: Supervisor) -> None:
        addresses.extend([service.ingest_address, service.qa_address])
        os.kill(os.getpid(), signal.SIGTERM)

    assert await serve(settings, modules=MODULES, on_ready=stop) == 0
    assert len(set(addresses)) == 2
    assert (stand_in / "qa.stopped").exists()


async def test_serve_stops_on_sigterm_before_both_are_ready(
    settings: Settings, stand_in: Path
) -> None:
    serving = asyncio.create_task(serve(settings, modules=MODULES))
    await until((stand_in / "qa.starts").exists)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await serving == 0


async def test_serve_stops_on_sigterm_while_it_waits_for_the_process_before(
    settings: Settings, stand_in: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with folder_owner(settings) as leaver:
        leaver.leaves()
        patient = settings.model_copy(update={"drain_s": 1e6})
        serving = asyncio.create_task(serve(patient, modules=MODULES))
        await until(lambda: "waiting for the process before to stop" in caplog.messages)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await serving == 0
    assert starts(stand_in, "ingest") == []


async def test_serve_reports_a_misconfiguration(settings: Settings, stand_in: Path) -> None:
    (stand_in / "ingest").write_text("config")
    with pytest.raises(StartError, match="the ingest process cannot serve as configured") as caught:
        await serve(settings, modules=MODULES)
    assert caught.value.exit_status == 2


async def test_a_reason_that_both_processes_have_is_told_once(
    settings: Settings, stand_in: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("ingest", "qa"):
        (stand_in / name).write_text("refuse")
    with pytest.raises(StartError, match=r"^'x' is not a model$"):
        await serve(settings, modules=MODULES)
    assert capfd.readouterr().err == ""


async def test_one_port_for_both_is_refused_before_anything_starts(
    settings: Settings, stand_in: Path
) -> None:
    clash = settings.model_copy(update={"ingest_port": 50999, "qa_port": 50999})
    with pytest.raises(ConfigError, match="ingest_port and qa_port must differ, both are 50999"):
        await serve(clash, modules=MODULES)
    assert not (stand_in / "ingest.starts").exists()
