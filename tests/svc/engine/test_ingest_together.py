"""Sessions that share a pass are what they would be alone, and what fails one fails it alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from kvstore.limits import BlockLimits
from kvstore.reader import SessionReader
from svc.engine import ingest_together
from svc.engine.adapters.base import StreamShape
from svc.engine.ingest_session import FrameUnit, StoreOptions, StreamIngest
from svc.engine.ingest_together import encode_streams
from svc.engine.model import LoadedModel, ModelConfig, load_model
from svc.engine.reduction.spec import ReductionSpec
from svc.engine.window import WindowConfig
from tests.svc.engine.tiny_qwen import build_qwen3, build_qwen25

LoadTiny = Callable[[str], LoadedModel]
COUNT = 6
SPECS = ("none", "last_kept:0.9", "key_norm:0.5", "none")
"""Of four sessions; one of them cannot share a pass."""


class World:
    """Four sessions of one model in one store."""

    def __init__(self, root: Path, model: LoadedModel) -> None:
        self.model = model
        self._root = root
        window = WindowConfig(window_tokens=3 * model.adapter.tokens_per_unit, window_positions=900)
        options = StoreOptions(root=root, limits=BlockLimits(min_free_bytes=0))
        shapes = [StreamShape(), StreamShape(), StreamShape(), StreamShape(sample_fps=2.0)]
        self.streams = [
            StreamIngest.open(
                model, window, f"s{index}", options, ReductionSpec.parse(spec),
                model.adapter.shaped(shape),
            )
            for index, (spec, shape) in enumerate(zip(SPECS, shapes, strict=True))
        ]  # fmt: skip
        self.units = [self._units(index) for index in range(len(SPECS))]

    def _units(self, seed: int) -> list[FrameUnit]:
        generator = np.random.default_rng(seed)
        adapter = self.streams[seed].adapter
        made = []
        for index in range(COUNT):
            frames = [
                generator.integers(0, 256, (31, 42, 3), dtype=np.uint8)
                for _ in range(adapter.frames_per_unit)
            ]
            made.append(
                FrameUnit(
                    pixels=adapter.preprocess(frames),
                    first_pts_s=float(index),
                    last_pts_s=index + 0.5,
                    gap_before=index == 3,
                    thumbnail_jpeg=b"",
                    resume=b"",
                )
            )
        return made

    def stored(self, index: int) -> tuple[list[int], np.ndarray]:
        """Token counts, and every key and value of a session."""
        self.streams[index].flush()
        with closing(SessionReader.open(self._root, f"s{index}")) as reader:
            snapshot = reader.snapshot()
            units = list(range(snapshot.unit_count))
            total = int(snapshot.token_counts.sum())
            model, parts = self.model, []
            for layer in range(model.layer_count):
                shape = (total, model.kv_head_count, model.head_dim)
                keys, values = np.empty(shape), np.empty(shape)
                reader.read(snapshot, layer, units, keys, values)
                parts += [keys, values]
            return snapshot.token_counts.tolist(), np.stack(parts)

    def close(self) -> None:
        for stream in self.streams:
            stream.close()


@pytest.fixture(scope="module", params=["llava_onevision", "qwen2_5_vl", "qwen3_vl"])
def model(
    request: pytest.FixtureRequest, tiny_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> LoadedModel:
    builds = {"qwen2_5_vl": build_qwen25, "qwen3_vl": build_qwen3}
    path = tiny_path
    if request.param in builds:
        path = builds[request.param](tmp_path_factory.mktemp(request.param))
    return load_model(ModelConfig(path=str(path), dtype="float64"), vision=True)


def test_sessions_in_one_pass_hold_what_they_would_alone(
    model: LoadedModel, tmp_path: Path
) -> None:
    alone, together = World(tmp_path / "alone", model), World(tmp_path / "together", model)
    for index, stream in enumerate(alone.streams):
        for unit in alone.units[index]:
            stream.encode([unit])
    takes: Sequence[Sequence[int]] = [(1, 1, 1, 1), (1, 2, 1, 0), (2, 1, 3, 1), (2, 2, 1, 4)]
    at = [0] * len(SPECS)
    for take in takes:
        work = []
        for index, count in enumerate(take):
            if count:
                units = together.units[index][at[index] : at[index] + count]
                work.append((together.streams[index], units))
                at[index] += count
        assert encode_streams(work) == [None] * len(work)
    assert at == [COUNT] * len(SPECS)
    for index in range(len(SPECS)):
        (counts, kv), (expected_counts, expected) = together.stored(index), alone.stored(index)
        assert counts == expected_counts
        assert float(np.abs(kv - expected).max()) < 5e-6, "units of a pass share an origin"
    alone.close()
    together.close()


def test_what_cannot_be_stored_ends_its_own_session(
    tiny_model: LoadTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, tiny_model("float64"))

    def full(units: object, made: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(world.streams[1], "keep", full)
    work = [(s, u[:1]) for s, u in zip(world.streams, world.units, strict=True)]
    errors = encode_streams(work)
    assert [type(error) for error in errors] == [type(None), OSError, type(None), type(None)]
    assert [s.status.visible_unit_count for s in world.streams] == [1, 0, 1, 1]
    world.close()


def test_a_pass_that_fails_is_tried_session_by_session(
    tiny_model: LoadTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, tiny_model("float64"))

    def fail(work: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(ingest_together, "encode_together", fail)
    work = [(s, u[:2]) for s, u in zip(world.streams, world.units, strict=True)]
    assert encode_streams(work) == [None] * 4
    assert [s.status.visible_unit_count for s in world.streams] == [2] * 4
    world.close()
