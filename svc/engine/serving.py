"""How both processes name a model, what it recommends, and what ties a session to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import get_args

import torch
import xxhash

from kvstore.encoding import Encoding, encoding_named
from svc.engine.adapters.base import USUAL_SHAPE, StreamShape
from svc.engine.checkpoint import Checkpoint
from svc.engine.errors import DeviceError, UnsupportedModelError
from svc.engine.model import DTYPES, LoadedModel, ModelConfig
from svc.engine.reduction.spec import Preset, Presets, ReductionNameError, ReductionSpec

BUILTIN_FOLDER = Path(__file__).resolve().parents[2] / "eval" / "streamworld" / "checkpoint"
"""Where the package keeps the model that `builtin` names."""
_BUILTIN = "builtin"
_BUILTIN_NAME = "streamworld"
_RECOMMENDATIONS = "lookback.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingDefaults:
    """What a model is served with where nothing else is asked for.

    A checkpoint may bring its own values, by the same names, in `lookback.json`.
    """

    window_tokens: int = 8192
    """Tokens of the sliding window."""
    window_positions: int = 32768
    """Positions of the sliding window; the model's trained range limits it further."""
    retrieved_units: int = 64
    """Units in the context of a question, the recent ones included."""
    reduction_presets: Presets = field(default_factory=dict)
    """Strengths that suit the model's features; see `svc.engine.reduction.spec`."""
    reduction: str = "none"
    """Which visual tokens are kept. Nothing is dropped that was not measured with the model."""
    kv_encoding: Encoding = "model"
    """How keys and values are stored. Nothing is rounded that was not measured with the model."""


def model_config(model: str, dtype: str, device: str) -> ModelConfig:
    """Return the configuration that the settings' words stand for.

    Args:
        model: `builtin`, a folder, or the name of a hub repository.
        dtype: one of ModelConfig's, or `auto`: float32 on a CPU, else as the checkpoint was saved.
        device: what torch.device takes.

    Raises:
        NotAModelError: there is no such model, asked for by `auto` on an accelerator.
        DeviceError: there is no such device here.
    """
    _check_device(device)
    path, name = (str(BUILTIN_FOLDER), _BUILTIN_NAME) if model == _BUILTIN else (model, "")
    if dtype == "auto":
        dtype = "float32" if device.startswith("cpu") else _saved_dtype(path)
    return ModelConfig(path=path, dtype=dtype, device=device, name=name)


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for it
        raise DeviceError(device, str(error).splitlines()[0]) from error


def serving_defaults(config: ModelConfig) -> ServingDefaults:
    """Return what the checkpoint recommends, or the defaults.

    Raises:
        NotAModelError: there is no such model.
        UnsupportedModelError: its recommendations cannot be read; says why.
    """
    given = Checkpoint(config.path).json(_RECOMMENDATIONS) or {}
    known = {field.name for field in fields(ServingDefaults)}
    for name, value in given.items():
        if name not in known:
            raise UnsupportedModelError(
                config.path,
                f"its {_RECOMMENDATIONS} has {name!r}, known are {', '.join(sorted(known))}",
            )
        if name in ("reduction_presets", "reduction", "kv_encoding"):
            continue
        if type(value) is not int or value < 1:
            raise UnsupportedModelError(
                config.path,
                f"its {_RECOMMENDATIONS} gives {name} as {value!r}, not an integer >= 1",
            )
    defaults = ServingDefaults(**given)
    _check_presets(config.path, defaults.reduction_presets)
    try:
        ReductionSpec.parse(str(defaults.reduction), defaults.reduction_presets)
        encoding_named(str(defaults.kv_encoding))
    except ValueError as error:
        raise UnsupportedModelError(config.path, f"its {_RECOMMENDATIONS}: {error}") from error
    return defaults


def _check_presets(path: str, given: object) -> None:
    """Raise UnsupportedModelError unless every strength is one that its policy takes."""
    try:
        for policy, strengths in given.items():  # type: ignore[attr-defined]  # caught below
            for preset, strength in strengths.items():
                if preset not in get_args(Preset):
                    raise ReductionNameError(f"{preset!r} is no preset")
                if type(strength) not in (int, float):
                    raise ReductionNameError(f"{strength!r} is no number")
                ReductionSpec.parse(f"{policy}:{strength}")
    except (AttributeError, ReductionNameError) as error:
        raise UnsupportedModelError(
            path, f"its {_RECOMMENDATIONS} gives reduction_presets that are none: {error}"
        ) from error


def model_identity(model: LoadedModel) -> dict[str, str]:
    """Return the part of a session's identity that follows from the model.

    Keys and values that were made under another identity mean nothing to this model.
    """
    prefix = ",".join(map(str, model.prompt.prefix_ids)).encode()
    return {
        "model": model.digest,
        "dtype": model.element,
        "prefix": f"xxh3-64:{xxhash.xxh3_64_hexdigest(prefix)}",
    }


def shape_identity(shape: StreamShape) -> dict[str, str | int | float]:
    """Return the part of a session's identity that says how its frames come."""
    return {
        "frame_shape": f"{shape.frame_width}x{shape.frame_height}",
        "unit_tokens": shape.unit_tokens,
        "sample_fps": shape.sample_fps,
    }


def shape_of(identity: Mapping[str, str | int | float]) -> StreamShape:
    """Return how the frames of a session of this identity come; older ones do not say all."""
    known = shape_identity(USUAL_SHAPE) | dict(identity)
    width, height = map(int, str(known["frame_shape"]).split("x"))
    return StreamShape(
        frame_height=height,
        frame_width=width,
        sample_fps=float(known["sample_fps"]),
        unit_tokens=int(known["unit_tokens"]),
    )


def _saved_dtype(path: str) -> str:
    config = Checkpoint(path).json("config.json") or {}
    saved = str(config.get("dtype") or config.get("torch_dtype") or "float16")
    return saved if saved in DTYPES else "float16"
