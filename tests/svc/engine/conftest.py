"""Tiny models for the engine's tests, built once per run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from svc.engine.model import LoadedModel, ModelConfig, load_model
from tests.svc.engine.tiny import build_tiny_checkpoint


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny checkpoint."""
    return build_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_model(tiny_path: Path) -> Callable[[str], LoadedModel]:
    """Loads the tiny model with vision, once per dtype. Leave it as you found it."""

    @cache
    def load(dtype: str) -> LoadedModel:
        return load_model(ModelConfig(path=str(tiny_path), dtype=dtype), vision=True)

    return load
