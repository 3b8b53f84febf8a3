"""Which frames of a stream are kept: a grid of presentation times, anchored at the first frame."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields

from svc.video.errors import PtsError, SamplerStateError
from svc.video.frames import Frame
from svc.video.pts import checked_pts

_ROUNDING_FRACTION = 0.05
_ROUNDING_MAX_S = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerConfig:
    """How a stream is sampled."""

    sample_fps: float
    """Grid points per second of media time."""
    reorder_tolerance_s: float = 1.0
    """A frame that is late by up to this is counted and left out; by more is an error."""
    gap_max_s: float = 5.0
    """A longer hole between two frames is a gap."""

    def __post_init__(self) -> None:
        if not 0 < self.sample_fps <= 1000:
            raise ValueError(f"sample_fps must be in (0, 1000], got {self.sample_fps}")
        if not 0 <= self.reorder_tolerance_s < math.inf:
            raise ValueError(f"reorder_tolerance_s must be >= 0, got {self.reorder_tolerance_s}")
        if not 0 < self.gap_max_s < math.inf:
            raise ValueError(f"gap_max_s must be > 0, got {self.gap_max_s}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerState:
    """What is needed to go on after a sample as if nothing had happened."""

    sample_fps: float
    anchor_pts_s: float
    """Time of the session's first frame: grid point 0."""
    last_point: int
    """Grid point that the last sample reached."""
    last_pts_s: float
    """Time of the last sample."""

    def to_json(self) -> bytes:
        """Return the state as bytes, exactly."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> SamplerState:
        """Return the state that was written.

        Raises:
            SamplerStateError: these bytes are not one.
        """
        try:
            values = json.loads(data)
        except ValueError as error:
            raise SamplerStateError(reason=f"not JSON: {error}") from error
        names = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            raise SamplerStateError(reason=f"must be an object of {sorted(names)}")
        for name, value in values.items():
            if type(value) not in (int, float) or not math.isfinite(value):
                raise SamplerStateError(reason=f"{name} must be a finite number, got {value!r}")
        if type(values["last_point"]) is not int:
            raise SamplerStateError(reason=f"last_point must be whole, got {values['last_point']}")
        return cls(**values)


@dataclass(slots=True, kw_only=True)
class SamplerCounters:
    """Counts since this sampler was made; every received frame is in `sampled`, in one of the
    others up to `already_had`, or lay between grid points."""

    received: int = 0
    sampled: int = 0
    discarded_late: int = 0
    """Came after a frame that is shown later."""
    discarded_duplicate: int = 0
    """Of the same time as the frame before."""
    already_had: int = 0
    """At or before the last sample of the run that was resumed."""
    gaps: int = 0
    """Holes longer than `gap_max_s`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """A frame that is kept."""

    frame: Frame
    gap_before: bool
    """Whether there was a gap between this sample and the one before."""
    state: SamplerState
    """What to store with this sample for a restart."""


class Sampler:
    """Keeps the first frame at or after each grid point; time is pts, never arrival or a count.

    Points lie at the first frame's pts plus multiples of 1/sample_fps. After a sample, the next
    point is the first one after its pts: holes are not made up for. A frame short of a point by
    no more than rounding (a twentieth of the period, at most 1 ms) reaches it: 29.97 fps and time
    bases of milliseconds would else lose a frame now and then.

    Late frames are left out: to place them, every live frame would have to wait for them.
    """

    def __init__(self, config: SamplerConfig, state: SamplerState | None = None) -> None:
        """Start a session's sampling, or go on from a stored state.

        Raises:
            SamplerStateError: the state is of another sample_fps.
        """
        if state is not None and state.sample_fps != config.sample_fps:
            raise SamplerStateError(
                reason=f"is of {state.sample_fps} fps, sampling is at {config.sample_fps} fps"
            )
        self.counters = SamplerCounters()
        self._config = config
        self._state = state
        self._latest_pts_s = None if state is None else state.last_pts_s
        self._catching_up = state is not None
        self._gap_pending = False

    @property
    def state(self) -> SamplerState | None:
        """As of the last sample; None before the first."""
        return self._state

    def push(self, frame: Frame) -> Sample | None:
        """Return the frame as a sample if it is one.

        Raises:
            PtsError: its time is not finite, out of range, or back by more than the tolerance.
        """
        pts_s = checked_pts(frame.pts_s)
        self.counters.received += 1
        if self._known(pts_s) or self._late(pts_s):
            return None
        if self._latest_pts_s is not None and pts_s - self._latest_pts_s > self._config.gap_max_s:
            self.counters.gaps += 1
            self._gap_pending = True
        self._latest_pts_s = pts_s
        return self._sample(frame)

    def _known(self, pts_s: float) -> bool:
        """Whether a resumed run sends again what was sampled: however far it starts back."""
        if not self._catching_up or self._state is None:
            return False
        if pts_s <= self._state.last_pts_s:
            self.counters.already_had += 1
            return True
        self._catching_up = False
        return False

    def _late(self, pts_s: float) -> bool:
        latest_pts_s = self._latest_pts_s
        if latest_pts_s is None or pts_s > latest_pts_s:
            return False
        if pts_s == latest_pts_s:
            self.counters.discarded_duplicate += 1
            return True
        tolerance_s = self._config.reorder_tolerance_s
        if latest_pts_s - pts_s > tolerance_s:
            raise PtsError(
                pts_s=pts_s,
                reason=f"jumps back from {latest_pts_s!r} s; allowed: at most {tolerance_s} s",
            )
        self.counters.discarded_late += 1
        return True

    def _sample(self, frame: Frame) -> Sample | None:
        fps = self._config.sample_fps
        anchor_pts_s, last_point = frame.pts_s, -1
        if self._state is not None:
            anchor_pts_s, last_point = self._state.anchor_pts_s, self._state.last_point
        rounding_s = min(_ROUNDING_FRACTION / fps, _ROUNDING_MAX_S)
        point = math.floor((frame.pts_s - anchor_pts_s + rounding_s) * fps)
        if point <= last_point:
            return None
        self._state = SamplerState(
            sample_fps=fps, anchor_pts_s=anchor_pts_s, last_point=point, last_pts_s=frame.pts_s
        )
        sample = Sample(frame=frame, gap_before=self._gap_pending, state=self._state)
        self._gap_pending = False
        self.counters.sampled += 1
        return sample
