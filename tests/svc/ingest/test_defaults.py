"""What new sessions keep, and how it is stored, where nobody says: what the model recommends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kvstore.session import load_session
from tests.svc.ingest.conftest import StartServer


@pytest.fixture
def measured(tiny_path: Path, tmp_path: Path) -> Path:
    """A model that brings recommendations."""
    folder = tmp_path / "measured"
    shutil.copytree(tiny_path, folder)
    path = folder / "lookback.json"
    given = json.loads(path.read_text()) if path.exists() else {}
    presets = {"last_kept": {"balanced": 0.625}}
    path.write_text(
        json.dumps(
            {**given, "reduction_presets": presets, "reduction": "last_kept", "kv_encoding": "int8"}
        )
    )
    return folder


@pytest.mark.parametrize(
    ("settings", "asked", "expected"),
    [
        ({}, {}, ("last_kept:0.625", "int8")),
        ({"reduction": "none", "kv_encoding": "model"}, {}, ("none", "model")),
        ({"kv_encoding": "int4"}, {}, ("last_kept:0.625", "int4")),
        ({}, {"reduction": "none"}, ("none", "int8")),
        ({"reduction": "dtd:0.5"}, {"reduction": "last_kept:light"}, ("last_kept:0.7", "int8")),
    ],
)
async def test_a_session_goes_before_the_settings_and_those_before_the_model(
    start: StartServer,
    measured: Path,
    settings: dict[str, Any],
    asked: dict[str, Any],
    expected: tuple[str, str],
) -> None:
    client = await start(model=str(measured), **settings)
    session = (await client.create("cam", **asked)).session
    assert (session.settings.reduction, session.kv_encoding) == expected


async def test_a_model_without_recommendations_keeps_all_as_it_is(start: StartServer) -> None:
    session = (await (await start()).create("cam")).session
    assert (session.settings.reduction, session.kv_encoding) == ("none", "model")


@pytest.mark.parametrize(
    ("reduction", "window_tokens", "expected"),
    [("none", 45, 45), ("key_norm", 45, 45), ("last_kept", 45, 32 * 9), ("last_kept", 300, 300)],
)
async def test_what_makes_the_newest_unit_whole_stays_with_what_the_next_one_sees(
    start: StartServer,
    values: dict[str, Any],
    reduction: str,
    window_tokens: int,
    expected: int,
) -> None:
    client = await start()
    await client.create("cam", reduction=reduction, window_token_count=window_tokens)
    assert load_session(values["data_dir"], "cam").settings["keep_tokens"] == expected
