"""Naming a reduction: a policy, and how hard it drops, as a preset or a number of its own.

`last_kept`, `last_kept:aggressive` and `last_kept:0.93` are names; see `PolicyName` and `Preset`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from svc.engine.reduction.base import Policy
from svc.engine.reduction.budget import Budget
from svc.engine.reduction.dtd import DifferentialDrop, PixelDrop
from svc.engine.reduction.key_norm import KeyNorm
from svc.engine.reduction.last_kept import LastKept
from svc.engine.reduction.none import KeepAll

PolicyName = Literal["none", "dtd", "dtd_pixel", "last_kept", "budget", "key_norm"]
Preset = Literal["light", "balanced", "aggressive"]
Presets = Mapping[str, Mapping[str, float]]
"""Of each policy, the strength that a preset stands for."""

WHOLE_EVERY_UNITS = 32
"""`last_kept` and `budget` keep a unit whole at least so often."""
SCENE_SIMILARITY = 0.5
"""A unit whose mean cosine with what was last kept is below it begins a scene, for `budget`."""

UNCALIBRATED: Presets = {
    "dtd": {"light": 0.7, "balanced": 0.5, "aggressive": 0.25},
    "dtd_pixel": {"light": 0.02, "balanced": 0.04, "aggressive": 0.08},
    "last_kept": {"light": 0.7, "balanced": 0.5, "aggressive": 0.25},
    "budget": {"light": 0.5, "balanced": 0.25, "aggressive": 0.15},
    "key_norm": {"light": 0.5, "balanced": 0.25, "aggressive": 0.15},
}
"""For models that bring no presets of their own. The cosines are those that TimeChat-Online trains
with, evaluates with and demonstrates (.7, .5 and .25); what they drop depends on the model."""

_POLICIES: Mapping[str, tuple[Callable[[float], Policy], str, float, float]] = {
    "dtd": (DifferentialDrop, "a cosine", -1.0, 1.0),
    "dtd_pixel": (PixelDrop, "a mean absolute difference of pixels", 0.0, 1.0),
    "last_kept": (
        lambda threshold: LastKept(threshold, WHOLE_EVERY_UNITS),
        "a cosine",
        -1.0,
        1.0,
    ),
    "budget": (
        lambda share: Budget(share, SCENE_SIMILARITY, WHOLE_EVERY_UNITS),
        "the share of tokens that is kept",
        0.0,
        1.0,
    ),
    "key_norm": (KeyNorm, "the share of tokens that is kept", 0.0, 1.0),
}


class ReductionNameError(ValueError):
    """The text names no reduction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReductionSpec:
    """A policy with its strength, which is part of a session's identity."""

    policy_name: PolicyName
    strength: float | None
    """In the policy's own terms; None where it has none."""

    @classmethod
    def parse(cls, text: str, presets: Presets = UNCALIBRATED) -> ReductionSpec:
        """Read `POLICY`, `POLICY:PRESET` or `POLICY:NUMBER`; without either it is `balanced`.

        Raises:
            ReductionNameError: it is none of these; says what is.
        """
        name, _, given = text.partition(":")
        if name == "none" and given:
            raise ReductionNameError(f"none keeps all and takes nothing behind it, got {text!r}")
        if name == "none":
            return cls(policy_name="none", strength=None)
        if name not in _POLICIES:
            allowed = ", ".join(get_args(PolicyName))
            raise ReductionNameError(f"policies are {allowed}, got {text!r}")
        own = {**UNCALIBRATED[name], **presets.get(name, {})}
        strength = own.get(given or "balanced")
        if strength is None:
            strength = _number(text, name, given)
        return cls(policy_name=name, strength=strength)  # type: ignore[arg-type]  # checked above

    def make(self) -> Policy:
        """Return the policy."""
        if self.strength is None:
            return KeepAll()
        return _POLICIES[self.policy_name][0](self.strength)

    @property
    def compares_units(self) -> bool:
        """Whether what is kept of a unit hangs on those before it."""
        return self.policy_name not in ("none", "key_norm")

    @property
    def drops_repeats(self) -> bool:
        """Whether a dropped token is one that repeats what was kept before at its place.

        Not where pixels were compared: a vision tower looks at the whole frame, and what it makes
        of a cell changes though its pixels do not.
        """
        return self.policy_name in ("dtd", "last_kept", "budget")

    @property
    def keeps_units_whole(self) -> bool:
        """Whether a unit is kept whole every WHOLE_EVERY_UNITS, and what goes repeats what came
        since."""
        return self.policy_name in ("last_kept", "budget")

    def __str__(self) -> str:
        """What `parse` reads back as the same."""
        if self.strength is None:
            return self.policy_name
        return f"{self.policy_name}:{self.strength!r}"


NO_REDUCTION = ReductionSpec(policy_name="none", strength=None)


def _number(text: str, name: str, given: str) -> float:
    _, meaning, lowest, highest = _POLICIES[name]
    try:
        number = float(given)
    except ValueError:
        number = math.nan
    if not lowest <= number <= highest or (meaning.startswith("the share") and number == 0.0):
        open_end = "(" if meaning.startswith("the share") else "["
        raise ReductionNameError(
            f"after {name}: comes {', '.join(get_args(Preset))}, or {meaning} in "
            f"{open_end}{lowest:g}, {highest:g}], got {text!r}"
        )
    return number
