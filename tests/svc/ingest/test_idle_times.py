"""How long sessions lay idle is written down, and nothing else is written to."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from svc.ingest.idle_times import FILE_NAME, IdleTimes


def test_a_save_that_others_overtake_touches_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = IdleTimes.open(tmp_path)
    assert times is not None
    times.look({"cam": "as it is"})
    inside, may_go_on = threading.Event(), threading.Event()
    written = os.pwrite

    def slow(*arguments: Any) -> int:
        count = written(*arguments)
        inside.set()
        may_go_on.wait()
        return count

    monkeypatch.setattr(os, "pwrite", slow)
    saving = threading.Thread(target=times.save)
    saving.start()
    inside.wait()
    closing = threading.Thread(target=times.close)
    closing.start()
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    os.write(other, bytes(100_000))
    may_go_on.set()
    saving.join()
    closing.join()
    times.save()  # nor does one that comes too late
    assert os.fstat(other).st_size == 100_000
    os.close(other)
    assert (tmp_path / FILE_NAME).stat().st_size > 0
    again = IdleTimes.open(tmp_path)
    assert again is not None
    again.close()
