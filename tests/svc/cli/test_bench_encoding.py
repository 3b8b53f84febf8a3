"""The benchmark of encodings: its material is what it says, and its figures are of real files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kvstore.encoding import Encoding, Layout
from kvstore.geometry import Geometry
from svc.cli.bench.encoding import bench_encoding
from svc.cli.bench.encoding_error import (
    HEAVY,
    PLAIN,
    Material,
    attention_errors,
    from_bfloat16,
)

SHAPE = Geometry(layer_count=1, kv_head_count=2, head_dim=32, element="bfloat16")


@pytest.mark.parametrize(("encoding", "most"), [("int8", 0.03), ("int4", 0.4)])
def test_heavy_channels_are_harmless_per_channel_and_ruinous_per_token(
    encoding: Encoding, most: float
) -> None:
    errors = {}
    for kind in (PLAIN, HEAVY):
        material = Material.make(kind, SHAPE, unit_tokens=40, unit_count=3)
        exact = from_bfloat16(material.keys), from_bfloat16(material.values)
        errors[kind.name] = attention_errors(Layout(SHAPE, encoding), material, exact)
    (plain, _), (heavy, heavy_per_token) = errors[PLAIN.name], errors[HEAVY.name]
    assert 0 < plain < most
    assert heavy < 1.5 * plain
    assert heavy_per_token > 4 * heavy


def test_heavy_material_has_its_channels_in_every_token() -> None:
    material = Material.make(HEAVY, SHAPE, unit_tokens=40, unit_count=2)
    lowest = np.abs(from_bfloat16(material.keys)).min(axis=0)
    assert (np.count_nonzero(lowest > 10, axis=-1) == 4).all()


def test_the_figures_of_size_are_those_of_files(tmp_path: Path) -> None:
    bench_encoding(2, 1, tmp_path / "encoding.json")
    rows = json.loads((tmp_path / "encoding.json").read_text())["rows"]
    ratios = {row["name"][:4]: row["ratio"] for row in rows if "stream hour" in row["name"]}
    assert ratios["int8"] == pytest.approx(401_408 / 205_888, rel=0.02)
    assert ratios["int4"] == pytest.approx(401_408 / 105_536, rel=0.02)
    assert all(set(row) >= {"value", "unit", "baseline", "target", "met"} for row in rows)
