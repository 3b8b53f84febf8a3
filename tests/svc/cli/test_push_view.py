"""What a push shows while it runs."""

from __future__ import annotations

import dataclasses

import pytest

from svc.cli import push_view
from svc.cli.push_view import PushView
from svc.client import PushOpened
from tests.svc.client.pushing import NOTHING


def test_the_speed_is_that_of_the_call_that_is_open(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A server that was killed goes on from what is durable: behind what it had received."""
    clock = [0.0]
    monkeypatch.setattr(push_view.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(push_view, "_LINE_EVERY_S", 0.0)
    view = PushView("s", None)

    def receive(*times_s: float) -> str:
        for time_s in times_s:
            clock[0] += 1.0
            view.show(dataclasses.replace(NOTHING, received_pts_s=time_s))
        return capfd.readouterr().err.splitlines()[-1]

    opened = PushOpened(durable_pts_s=None, target_fps=1.0, reconnect_count=0)
    view.show(opened)
    assert receive(100.0, 104.0).endswith("  4.0x")
    view.show(dataclasses.replace(opened, durable_pts_s=50.0, reconnect_count=1))
    assert receive(52.0).endswith("  0 units")
    assert receive(55.0).endswith("  3.0x")
