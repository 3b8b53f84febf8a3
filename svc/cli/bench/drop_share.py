"""A reduction that drops a given share of a stream's tokens, whatever the stream shows."""

from __future__ import annotations

import math
from fractions import Fraction

from svc.engine.reduction.base import FeaturePolicy
from svc.engine.reduction.budget import Budget
from svc.engine.reduction.none import KeepAll

_NO_SCENE = -1.0  # no cosine is below it: a scene's keyframe would drop less than was asked for


def policy_dropping(drop_fraction: Fraction, unit_tokens: int) -> FeaturePolicy:
    """Return `budget`, its share and keyframes so that together they drop that much.

    Units keep whole tokens, so of nine a share alone drops .444 or .556, never half: the policy
    drops the next larger share, and keyframes, which stay whole, take back what is too much.

    Args:
        drop_fraction: of all tokens, in [0, 1).
        unit_tokens: of a whole unit.

    Raises:
        ValueError: a unit keeps at least one token, so that much cannot be dropped.
    """
    if drop_fraction == 0:
        return KeepAll()
    kept_count = math.ceil((1 - drop_fraction) * unit_tokens) - 1
    if kept_count < 1:
        raise ValueError(
            f"less than {float(1 - Fraction(1, unit_tokens)):.3g} can be dropped of units of "
            f"{unit_tokens} tokens, which keep at least one; got {float(drop_fraction):.3g}"
        )
    dropped = 1 - Fraction(kept_count, unit_tokens)
    keyframe_units = round(dropped / (dropped - drop_fraction))
    # Half a token less: the share is a float, and rounded up to whole tokens.
    return Budget((kept_count - 0.5) / unit_tokens, _NO_SCENE, keyframe_units)
