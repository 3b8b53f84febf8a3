"""Waits that suit tests."""

from __future__ import annotations

import pytest

from svc.client import push as push_module


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_module, "_FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(push_module, "_LONGEST_WAIT_S", 0.01)
