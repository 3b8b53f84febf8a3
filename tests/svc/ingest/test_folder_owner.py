"""One ingest process serves a folder, or several that share it through a registry."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from svc.config import Settings
from svc.folder_owner import LOCK_NAME, FolderInUseError, check_free, folder_owner
from tests.svc.ingest.processes import IngestProcess

REDIS = "redis://127.0.0.1:1"

HOLDS = """
import sys, time
from svc.config import Settings
from svc.folder_owner import folder_owner
with folder_owner(Settings(data_dir=sys.argv[1])) as owner:
    owner.serves_at("10.0.0.1:50551")
    print("holds", flush=True)
    time.sleep(300)
"""


def settings(root: Path, **changes: Any) -> Settings:
    return Settings(data_dir=root, **changes)


def test_the_second_process_of_a_folder_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    with folder_owner(settings(tmp_path)) as owner:
        owner.serves_at("127.0.0.1:50551")
        told = rf"pid {os.getpid()} at 127\.0\.0\.1:50551.*LOOKBACK_REDIS_URL"
        with pytest.raises(FolderInUseError, match=told), folder_owner(settings(tmp_path)):
            pass
        with pytest.raises(FolderInUseError, match=told):
            check_free(settings(tmp_path))


def test_a_folder_is_free_again_when_its_process_has_ended(tmp_path: Path) -> None:
    with folder_owner(settings(tmp_path)):
        pass
    check_free(settings(tmp_path))
    with folder_owner(settings(tmp_path)):
        pass


def test_a_process_that_was_killed_outright_leaves_no_refusal_behind(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holds\n"
    with pytest.raises(FolderInUseError, match=rf"pid {holder.pid} at 10\.0\.0\.1:50551"):
        check_free(settings(tmp_path))
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    assert str(holder.pid) in (tmp_path / LOCK_NAME).read_text()  # which is not the lock
    with folder_owner(settings(tmp_path)):
        assert str(holder.pid) not in (tmp_path / LOCK_NAME).read_text()


def test_processes_with_a_registry_share_a_folder_with_each_other_only(tmp_path: Path) -> None:
    shared = settings(tmp_path, redis_url=REDIS)
    with folder_owner(shared), folder_owner(shared):
        check_free(shared)
        with pytest.raises(FolderInUseError), folder_owner(settings(tmp_path)):
            pass
    with (
        folder_owner(settings(tmp_path)),
        pytest.raises(FolderInUseError, match="which has no LOOKBACK_REDIS_URL"),
        folder_owner(shared),
    ):
        pass


def test_of_processes_that_share_a_folder_none_is_taken_for_its_holder(tmp_path: Path) -> None:
    shared = settings(tmp_path, redis_url=REDIS)
    with folder_owner(settings(tmp_path)) as before:
        before.leaves()
    with folder_owner(shared) as stays:
        with folder_owner(shared) as leaver:
            leaver.serves_at("10.0.0.1:50551")
            leaver.leaves()
        stays.serves_at("10.0.0.2:50551")
        with pytest.raises(FolderInUseError) as caught:
            check_free(settings(tmp_path, drain_s=1e6))  # it would wait so long for one that leaves
    told = str(caught.value)
    assert "ingest processes that share it through LOOKBACK_REDIS_URL" in told
    assert "pid" not in told
    assert "10.0.0" not in told


def test_one_that_looks_is_told_of_processes_with_a_registry_too(tmp_path: Path) -> None:
    with (
        folder_owner(settings(tmp_path, redis_url=REDIS)),
        pytest.raises(FolderInUseError),
    ):
        check_free(settings(tmp_path))


def test_a_process_that_is_stopping_is_waited_for(tmp_path: Path) -> None:
    leaving, gone = threading.Event(), threading.Event()

    def hold() -> None:
        with folder_owner(settings(tmp_path)) as owner:
            owner.leaves()
            leaving.set()
            gone.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    leaving.wait()
    threading.Timer(0.7, gone.set).start()  # more than is waited for one that stays
    check_free(settings(tmp_path))
    assert gone.is_set()
    with folder_owner(settings(tmp_path)):
        pass
    holder.join()


async def test_of_two_ingest_processes_on_one_folder_the_second_says_so_and_ends(
    values: dict[str, Any],
) -> None:
    first = await (await IngestProcess.start(values)).ready()
    try:
        second = await IngestProcess.start(values)
        status, errors = await second.ended()
        assert status == 2
        (line,) = errors.splitlines()
        assert f"pid {first.pid} at {first.address}" in line
        first.kill()
        await first.ended()
        third = await (await IngestProcess.start(values)).ready()
        third.terminate()
        assert (await third.ended())[0] == 0
    finally:
        await first.stop()
