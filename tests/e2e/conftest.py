"""One service for all tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.running import Service
from tests.svc.engine.tiny import build_tiny_checkpoint


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny checkpoint."""
    return build_tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def shared_service(tmp_path_factory: pytest.TempPathFactory, tiny_path: Path) -> Iterator[Service]:
    """A service that encodes one unit a pass: what is computed is then equal to the last bit."""
    folder = tmp_path_factory.mktemp("service")
    with Service(folder=folder, model=tiny_path, settings={"units_per_pass": 1}) as service:
        yield service
        assert service.stop() == 0
        assert "Traceback" not in service.log
