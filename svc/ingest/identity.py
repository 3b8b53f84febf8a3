"""What a session is made with, for good, and what of it follows from the model that is served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from kvstore.encoding import Encoding
from kvstore.limits import BlockLimits
from svc.config import ConfigError, Settings
from svc.engine.adapters.base import USUAL_SHAPE, Adapter, StreamShape
from svc.engine.model import LoadedModel
from svc.engine.reduction.spec import WHOLE_EVERY_UNITS, ReductionNameError, ReductionSpec
from svc.engine.serving import ServingDefaults, model_identity, shape_identity, shape_of
from svc.engine.window import WindowConfig
from svc.ingest.keeping import RulesInForce
from svc.rpc.errors import Reason, RequestError
from svc.video.sampler import SamplerConfig

IDENTITY_FORMAT = 1
MAX_SAMPLE_FPS = 30.0
_MOST_PX = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """Chosen when a session is created; the session keeps them whatever the defaults become."""

    sample_fps: float
    reorder_tolerance_s: float
    gap_max_s: float
    window_tokens: int
    window_positions: int
    keep_tokens: int
    """Of the newest units, which are neither dropped nor thinned: what the next unit sees, and what
    makes the newest one whole."""
    kv_encoding: Encoding
    reduction: str
    """As `svc.engine.reduction.spec` names it, its strength a number."""
    frame_width: int
    """Of the source; see `StreamShape`."""
    frame_height: int
    unit_tokens: int
    block_tokens: int
    block_span_s: float

    @property
    def window(self) -> WindowConfig:
        """The sliding window."""
        return WindowConfig(
            window_tokens=self.window_tokens, window_positions=self.window_positions
        )

    @property
    def shape(self) -> StreamShape:
        """How frames come."""
        return StreamShape(
            frame_height=self.frame_height,
            frame_width=self.frame_width,
            sample_fps=self.sample_fps,
            unit_tokens=self.unit_tokens,
        )

    @property
    def sampling(self) -> SamplerConfig:
        """Which frames are taken."""
        return SamplerConfig(
            sample_fps=self.sample_fps,
            reorder_tolerance_s=self.reorder_tolerance_s,
            gap_max_s=self.gap_max_s,
        )

    def block_limits(self, settings: Settings, rules: RulesInForce) -> BlockLimits:
        """Returns when blocks close, and what of the disk is left alone or given back."""
        return BlockLimits(
            block_tokens=self.block_tokens,
            block_span_s=self.block_span_s,
            min_free_bytes=settings.min_free_bytes,
            budget=rules.budget,
            keep_tokens=self.keep_tokens,
            retain_s=rules.retain_s,
            disk_io=settings.disk_io,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedFrames:
    """What is asked of a session's frames, as `CreateSession` takes it; 0 stands for a default."""

    width: int = 0
    height: int = 0
    unit_tokens: int = 0


DEFAULT_FRAMES = AskedFrames()


class IdentityRules:
    """Settings of new sessions, and whether stored ones fit the model that is served."""

    def __init__(self, model: LoadedModel, defaults: ServingDefaults, settings: Settings) -> None:
        """Works the defaults out once.

        Raises:
            ConfigError: the configured window does not fit the model.
        """
        adapter = model.adapter
        # The unit itself and the prefix lie within the trained range too.
        room = model.decoder.max_position_count - model.prefix.token_count - adapter.position_span
        self._adapter = adapter
        self._tokens_per_unit = adapter.tokens_per_unit
        self._window_positions = min(defaults.window_positions, room)
        self._settings = settings
        if settings.window_tokens:
            fault = self._window_fault(settings.window_tokens)
            if fault:
                raise ConfigError(f"window_tokens {fault}")
        self._presets = defaults.reduction_presets
        self.kv_encoding: Encoding = (
            defaults.kv_encoding if settings.kv_encoding == "auto" else settings.kv_encoding
        )
        """How new sessions store keys and values."""
        reduction = defaults.reduction if settings.reduction == "auto" else settings.reduction
        try:
            self._default_reduction = self._reduction(reduction)
        except ReductionNameError as error:
            raise ConfigError(f"reduction: {error}") from error
        self._default_window_tokens = settings.window_tokens or min(
            defaults.window_tokens, self._window_positions
        )
        self._served: Mapping[str, str | int | float] = {
            "format": IDENTITY_FORMAT,
            **model_identity(model),
        }

    def choose(
        self,
        *,
        sample_fps: float,
        window_tokens: int,
        reduction: str = "",
        frames: AskedFrames = DEFAULT_FRAMES,
    ) -> SessionSettings:
        """Returns the settings of a new session; 0 and nothing stand for the default.

        Raises:
            RequestError: INVALID_REQUEST: a value is out of its range.
        """
        if not 0 <= sample_fps <= MAX_SAMPLE_FPS:  # NaN is not, either
            raise RequestError(
                Reason.INVALID_REQUEST,
                f"settings.sample_fps must be in (0, {MAX_SAMPLE_FPS:g}], or 0 for the default, "
                f"got {sample_fps}",
                field="settings.sample_fps",
                given=sample_fps,
            )
        fault = self._window_fault(window_tokens) if window_tokens else None
        if fault:
            raise RequestError(
                Reason.INVALID_REQUEST,
                f"settings.window_token_count {fault}",
                field="settings.window_token_count",
                given=window_tokens,
            )
        try:
            reduction = self._reduction(reduction) if reduction else self._default_reduction
        except ReductionNameError as error:
            raise RequestError(
                Reason.INVALID_REQUEST,
                f"settings.reduction: {error}",
                field="settings.reduction",
                given=reduction,
            ) from error
        window_tokens = window_tokens or self._default_window_tokens
        shape = self._shape(frames, sample_fps or self._settings.sample_fps)
        lent_tokens = 0
        if ReductionSpec.parse(reduction).drops_repeats:
            lent_tokens = WHOLE_EVERY_UNITS * self._adapter.shaped(shape).tokens_per_unit
        return SessionSettings(
            sample_fps=shape.sample_fps,
            frame_width=shape.frame_width,
            frame_height=shape.frame_height,
            unit_tokens=shape.unit_tokens,
            reorder_tolerance_s=self._settings.reorder_tolerance_s,
            gap_max_s=self._settings.gap_max_s,
            window_tokens=window_tokens,
            window_positions=self._window_positions,
            keep_tokens=max(window_tokens, lent_tokens),
            kv_encoding=self.kv_encoding,
            reduction=reduction,
            block_tokens=self._settings.block_tokens,
            block_span_s=self._settings.block_span_s,
        )

    def identity(self, settings: SessionSettings) -> dict[str, str | int | float]:
        """Returns what is stored with a new session, and must hold whenever it is resumed."""
        return {
            **self._served,
            "resolution": _resolution(self._adapter.shaped(settings.shape)),
            **shape_identity(settings.shape),
            "window_tokens": settings.window_tokens,
            "window_positions": settings.window_positions,
            "kv_encoding": settings.kv_encoding,
            "reduction": settings.reduction,
            "reorder_tolerance_s": settings.reorder_tolerance_s,
            "gap_max_s": settings.gap_max_s,
            "block_rule": f"{settings.block_tokens} tokens, {settings.block_span_s:g} s",
        }

    def mismatch(self, identity: Mapping[str, str | int | float]) -> RequestError | None:
        """Returns the refusal of a stored session that this process cannot go on with, if so."""
        resolution = _resolution(self._adapter.shaped(shape_of(identity)))
        for field, served in {**self._served, "resolution": resolution}.items():
            stored = identity.get(field)
            if stored != served:
                return RequestError(
                    Reason.IDENTITY_MISMATCH,
                    f"the session was encoded with {field} {stored!r}, "
                    f"this server encodes with {served!r}",
                    field=field,
                    stored=stored,
                    serving=served,
                )
        return None

    def _shape(self, frames: AskedFrames, sample_fps: float) -> StreamShape:
        """Returns how frames come, each field checked."""
        usual = replace(USUAL_SHAPE, sample_fps=sample_fps)
        try:
            if (frames.width == 0) != (frames.height == 0):
                raise ValueError("frame_width and frame_height are given both or neither")
            for name, given in asdict(frames).items():
                if not 0 <= given <= _MOST_PX:
                    raise ValueError(f"{name} must be in [1, {_MOST_PX}], or 0 for the default")
            shape = replace(
                usual,
                frame_width=frames.width or usual.frame_width,
                frame_height=frames.height or usual.frame_height,
                unit_tokens=frames.unit_tokens or usual.unit_tokens,
            )
            fault = self._shape_fault(shape)
            if fault:
                raise ValueError(fault)
        except ValueError as error:
            raise RequestError(
                Reason.INVALID_REQUEST,
                f"settings: {error}, got frames of {frames.width}x{frames.height} in "
                f"{frames.unit_tokens} tokens",
                field="settings.frame_width",
                given=f"{frames.width}x{frames.height}, {frames.unit_tokens}",
            ) from error
        return shape

    def _shape_fault(self, shape: StreamShape) -> str | None:
        """Returns why a unit would not fit the window, if so."""
        tokens, room = self._adapter.shaped(shape).tokens_per_unit, self._window_positions
        return None if tokens <= room else f"a unit of {tokens} tokens, the window has {room}"

    def _reduction(self, text: str) -> str:
        return str(ReductionSpec.parse(text, self._presets))

    def _window_fault(self, window_tokens: int) -> str | None:
        low, high = self._tokens_per_unit, self._window_positions
        if low <= window_tokens <= high:
            return None
        return (
            f"must be in [{low}, {high}] with this model, or 0 for the default, got {window_tokens}"
        )


def _resolution(adapter: Adapter) -> str:
    return f"{adapter.frame_width}x{adapter.frame_height}"
