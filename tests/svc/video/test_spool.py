"""Where files are held that cannot be decoded before they are complete."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from svc.video.decoder import open_decoder
from svc.video.errors import SpoolFullError
from svc.video.frames import ChunkItem, ContainerMedia
from svc.video.spool import Spool
from tests.svc.video.media import VARIABLE, video

_Usage = namedtuple("_Usage", ["total", "used", "free"])


def spooled_in(folder: Path) -> list[str]:
    """The files without a name that this process has open in a folder."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        if target.startswith(f"{folder}/"):
            found.append(target)
    return found


def test_an_mp4_with_its_index_last_lies_in_the_folder_that_was_given(tmp_path: Path) -> None:
    data = Path(video(VARIABLE)).read_bytes()
    assert data.index(b"moov") > data.index(b"mdat")
    spool = Spool(folder=tmp_path / "spool")
    spool.clean()
    decoder = open_decoder(ContainerMedia(format="mp4"), spool=spool)
    assert list(decoder.push(ChunkItem(data=data[: 2**20]))) == []
    assert len(spooled_in(tmp_path / "spool")) == 1
    assert list((tmp_path / "spool").iterdir()) == []
    decoder.close()
    assert spooled_in(tmp_path / "spool") == []


def test_what_is_to_be_left_free_is_left_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(folder=tmp_path, min_free_bytes=1000)
    free = 1000 + 30
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(10**6, 0, free))
    with spool.open() as file:
        spool.write(file, bytes(30))
        with pytest.raises(SpoolFullError) as caught:
            spool.write(file, bytes(31))
    assert (caught.value.free_bytes, caught.value.reserve_bytes) == (free, 1000)
    assert str(tmp_path) in str(caught.value)


def test_a_start_removes_what_a_crash_left_and_nothing_else(tmp_path: Path) -> None:
    for name in ("lookback-spool-abc", "other"):
        (tmp_path / name).write_bytes(b"x")
    Spool(folder=tmp_path).clean()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
