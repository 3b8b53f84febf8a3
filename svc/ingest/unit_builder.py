"""Sampled frames into units for the vision tower."""

from __future__ import annotations

from svc.engine.adapters.base import Adapter
from svc.engine.ingest_session import FrameUnit
from svc.video.sampler import Sample
from svc.video.thumbnails import thumbnail_jpeg


class UnitBuilder:
    """Groups samples by `adapter.frames_per_unit` and prepares their pixels; one per call."""

    def __init__(self, adapter: Adapter) -> None:
        """`adapter` says how many frames a unit has, and prepares them."""
        self._adapter = adapter
        self._samples: list[Sample] = []

    def add(self, sample: Sample) -> FrameUnit | None:
        """Takes the next sample; returns the unit that it completes, if it does."""
        self._samples.append(sample)
        if len(self._samples) < self._adapter.frames_per_unit:
            return None
        return self._build()

    def finish(self) -> FrameUnit | None:
        """Returns the last unit, its last frame repeated as often as needed, if one is pending."""
        if not self._samples:
            return None
        return self._build()

    def _build(self) -> FrameUnit:
        samples, self._samples = self._samples, []
        frames = [sample.frame.rgb for sample in samples]
        frames += [frames[-1]] * (self._adapter.frames_per_unit - len(frames))
        return FrameUnit(
            pixels=self._adapter.preprocess(frames),
            first_pts_s=samples[0].frame.pts_s,
            last_pts_s=samples[-1].frame.pts_s,
            gap_before=any(sample.gap_before for sample in samples),
            thumbnail_jpeg=thumbnail_jpeg(frames[0]),
            resume=samples[-1].state.to_json(),
        )
