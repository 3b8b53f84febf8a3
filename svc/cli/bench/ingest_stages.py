"""Where the time of a frame goes, from packet to store, by how many of its tokens are dropped.

One thread does all of it, so that the stages add up; in the service decoding and preprocessing run
beside the rest.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from rich.console import Console
from torch import Tensor

from kvstore.encoding import Encoding
from kvstore.limits import BlockLimits
from kvstore.session import SessionRecord, create_session
from svc.cli.bench.drop_share import policy_dropping
from svc.cli.bench.stock import StockModel
from svc.cli.bench.stream import FRAME_PX, frame_pixels
from svc.engine.adapters.base import Adapter, WholeUnit
from svc.engine.ingest_session import FrameUnit, StoreOptions, StreamIngest
from svc.engine.model import LoadedModel
from svc.engine.reducer import ReducedUnit
from svc.engine.reduction.base import FeaturePolicy, KeyPolicy, Policy, ReductionState, UnitFeatures
from svc.engine.reduction.spec import ReductionSpec
from svc.engine.window import WindowConfig
from svc.report import Row
from svc.video.frames import PacketItem, PacketMedia
from svc.video.limits import VideoLimits
from svc.video.packets import PacketDecoder

DROP_FRACTIONS = (Fraction(0), Fraction(1, 2), Fraction(7, 10), Fraction(17, 20))
STAGES = ("decode", "preprocessing", "vision", "reduction", "decoder", "store", "the rest")
_WARM_UP_FRAMES = 160
_ROUNDS = 3


@dataclass(slots=True)
class Watch:
    """Seconds by stage, and what was kept."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    token_count: int = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the block to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """One run."""

    frames_per_s: float
    shares: dict[str, float]
    """Of all the time, by stage, what no stage counts under "the rest"; they add up to 1."""
    dropped_fraction: float
    """Of all tokens."""


def stage_rows(
    model: LoadedModel,
    bare: StockModel,
    window: WindowConfig,
    folder: Path,
    *,
    frames: int,
    units_per_pass: int,
    encoding: Encoding,
    console: Console,
) -> list[Row]:
    """Returns frames per second and shares of time by what is dropped, beside the bare model.

    Args:
        model: with its vision tower.
        bare: of the same checkpoint and as many threads.
        window: of the stream.
        folder: of a store that is made there.
        frames: of each timed run.
        units_per_pass: of ours and the bare model's.
        encoding: of the store.
        console: told how far it is.
    """
    runs: dict[Fraction, list[Stages]] = defaultdict(list)
    bases: dict[Fraction, list[float]] = defaultdict(list)
    packets = coded(_WARM_UP_FRAMES + frames)
    for number in range(_ROUNDS):
        console.print(f"stages, round {number + 1} of {_ROUNDS} ...")
        for drop_fraction in DROP_FRACTIONS:
            policy = policy_dropping(drop_fraction, model.adapter.tokens_per_unit)
            store = StoreOptions(
                root=folder / f"stages-{number}-{float(drop_fraction)}",
                limits=BlockLimits(),
                encoding=encoding,
            )
            runs[drop_fraction].append(run(model, window, store, policy, packets, units_per_pass))
            bases[drop_fraction].append(
                bare.frames_per_s(frames, units_per_pass, window_tokens=window.window_tokens)
            )
    return [row for share in DROP_FRACTIONS for row in _rows(runs[share], bases[share])]


def run(
    model: LoadedModel,
    window: WindowConfig,
    store: StoreOptions,
    policy: Policy,
    packets: Sequence[PacketItem],
    units_per_pass: int,
) -> Stages:
    """Takes packets through all stages into a new store; the first of them only warm it up.

    Raises:
        ValueError: the policy chooses by keys, inside the decoder: it has no stage of its own.
    """
    if isinstance(policy, KeyPolicy):
        raise ValueError(f"{policy}: a policy that chooses by keys has no stage of its own")
    watch = Watch()
    timed = replace(model, adapter=cast(Adapter, _TimedAdapter(model.adapter, watch)))
    timed_spec = _TimedSpec(policy_name="none", strength=None, policy=_TimedPolicy(policy, watch))
    record = SessionRecord(
        session_id="stages", created_unix_s=time.time(), unit_period_s=1.0, identity={}
    )
    create_session(store.root, record)
    ingest = _TimedIngest.open(timed, window, record.session_id, store, timed_spec)
    assert isinstance(ingest, _TimedIngest)
    ingest.watch = watch
    try:
        decoder = PacketDecoder(PacketMedia(codec="h264"), VideoLimits())
        _push(ingest, decoder, packets[:_WARM_UP_FRAMES], units_per_pass)
        watch.seconds.clear()
        watch.token_count = 0
        started = time.perf_counter()
        count = _push(ingest, decoder, packets[_WARM_UP_FRAMES:], units_per_pass)
        with watch.stage("store"):
            ingest.flush()
        total_s = time.perf_counter() - started
    finally:
        ingest.close()
    found = dict(watch.seconds)
    known = ("vision", "reduction", "store inside")
    found["decoder"] = found.pop("encode") - sum(found.get(name, 0.0) for name in known)
    found["store"] += found.pop("store inside")
    found["the rest"] = total_s - sum(found.values())
    return Stages(
        frames_per_s=count / total_s,
        shares={name: found.get(name, 0.0) / total_s for name in STAGES},
        dropped_fraction=1 - watch.token_count / (count * model.adapter.tokens_per_unit),
    )


def coded(count: int) -> list[PacketItem]:
    """Returns the bench's frames as H.264 packets, one a second, none of them held back."""
    context = cast(Any, av.CodecContext.create("libx264", "w"))
    context.width = context.height = FRAME_PX
    context.pix_fmt = "yuv420p"
    context.time_base = Fraction(1)
    context.framerate = Fraction(1)
    context.gop_size = 50
    context.options = {"bf": "0", "tune": "zerolatency"}
    made = []
    for index in range(count):
        frame = av.VideoFrame.from_ndarray(frame_pixels(index), format="rgb24")
        frame.pts = index
        made += context.encode(frame)
    made += context.encode(None)
    return [
        PacketItem(pts_s=float(packet.pts), data=bytes(packet), key_frame=packet.is_keyframe)
        for packet in made
    ]


class _TimedIngest(StreamIngest):
    """Counts what it does to the watch."""

    watch: Watch

    def encode(self, units: Sequence[FrameUnit]) -> None:
        with self.watch.stage("encode"):
            super().encode(units)

    def _keep(self, unit: FrameUnit, reduced: ReducedUnit) -> None:
        self.watch.token_count += len(reduced.cells)
        with self.watch.stage("store inside"):
            super()._keep(unit, reduced)

    def prepared(self, rgb: np.ndarray[Any, Any]) -> Tensor:
        """The pixels of one frame."""
        with self.watch.stage("preprocessing"):
            return self.adapter.preprocess([rgb])


class _TimedAdapter:
    """An adapter whose vision tower is timed."""

    def __init__(self, adapter: Adapter, watch: Watch) -> None:
        self._adapter = adapter
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)

    def encode(self, pixels: Tensor, times_s: Sequence[float]) -> list[WholeUnit]:
        with self._watch.stage("vision"):
            return self._adapter.encode(pixels, times_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class _TimedSpec(ReductionSpec):
    """A reduction by the policy that is given."""

    policy: Policy

    def make(self) -> Policy:
        return self.policy


class _TimedPolicy:
    def __init__(self, policy: FeaturePolicy, watch: Watch) -> None:
        self._policy = policy
        self._watch = watch

    def choose(self, unit: UnitFeatures, state: ReductionState) -> tuple[Tensor, ReductionState]:
        with self._watch.stage("reduction"):
            return self._policy.choose(unit, state)


def _push(
    ingest: _TimedIngest,
    decoder: PacketDecoder,
    packets: Sequence[PacketItem],
    units_per_pass: int,
) -> int:
    """Returns how many frames came out of the packets, all of them encoded."""
    units: list[FrameUnit] = []
    count = 0
    for packet in packets:
        with ingest.watch.stage("decode"):
            shown = [(frame.pts_s, frame.rgb) for frame in decoder.push(packet)]
        for pts_s, rgb in shown:
            units.append(
                FrameUnit(
                    pixels=ingest.prepared(rgb),
                    first_pts_s=pts_s,
                    last_pts_s=pts_s,
                    gap_before=False,
                    thumbnail_jpeg=b"",
                    resume=b"{}",
                )
            )
        if len(units) >= units_per_pass:
            ingest.encode(units)
            count += len(units)
            units = []
    if units:
        ingest.encode(units)
    return count + len(units)


def _rows(runs: Sequence[Stages], bases: Sequence[float]) -> list[Row]:
    rate, base = (statistics.median(each) for each in ([r.frames_per_s for r in runs], bases))
    ratios = [run.frames_per_s / bare for run, bare in zip(runs, bases, strict=True)]
    dropped = f"{runs[0].dropped_fraction:.0%} dropped"
    rows = [
        Row(
            name=f"frames per second in one thread, {dropped}; ratio to the bare model",
            value=rate,
            unit="frames/s",
            baseline=base,
            ratio=statistics.median(ratios),
            ratio_span=(min(ratios), max(ratios)),
        )
    ]
    return rows + [
        Row(
            name=f"share of that time, {dropped}: {stage}",
            value=statistics.median(run.shares[stage] for run in runs),
            unit="",
        )
        for stage in STAGES
    ]
