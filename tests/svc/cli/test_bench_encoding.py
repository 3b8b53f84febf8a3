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
from svc.cli.bench.encoding_size import size_rows

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
    ratios = {row["name"][:4]: row["ratio"] for row in rows if "scaled from" in row["name"]}
    assert ratios["int8"] == pytest.approx(401_408 / 205_888, rel=0.02)
    assert ratios["int4"] == pytest.approx(401_408 / 105_536, rel=0.02)
    assert all(set(row) >= {"value", "unit", "baseline", "target", "met"} for row in rows)


def test_sizes_by_tokens_kept_are_those_of_files_with_the_index(tmp_path: Path) -> None:
    shape = Geometry(layer_count=2, kv_head_count=2, head_dim=32, element="bfloat16")
    material = Material.make(PLAIN, shape, unit_tokens=400, unit_count=1)
    rows = size_rows(tmp_path, shape, material, unit_count=10)
    gib = {row.name.split(" tokens")[0]: row.value for row in rows}
    index_gib = gib.pop("index of mean keys: GiB of disk per stream hour, whatever is kept")
    chunk_bytes = 1024 * (2 * 64 * 4 + 8)
    assert index_gib * 2**30 == pytest.approx(2 * chunk_bytes, rel=0.01)
    encodings: tuple[Encoding, ...] = ("model", "int8", "int4")
    for encoding in encodings:
        layout = Layout(shape, encoding)
        for kept_count in (400, 200, 116, 40):
            kv_bytes = 1800 * shape.layer_count * layout.extent_bytes(kept_count)
            size_bytes = (gib[f"{encoding}, {kept_count} of 400"] - index_gib) * 2**30
            # Beside keys and values lie pages of headers and tables, and pictures of up to 4 KiB.
            assert kv_bytes < size_bytes < kv_bytes + 1800 * 3 * 4096
    assert not list(tmp_path.iterdir())
