"""Random generators by name, so that no training draw can ever equal an evaluation draw.

Every generator of this package comes from `generator`. The purpose is part of the seed's spawn key,
so two purposes never share a stream, whatever the seeds and indices are.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Purpose = Literal["training", "evaluation", "tests", "initialisation"]

_NAMESPACE: dict[Purpose, int] = {
    "training": 1,
    "evaluation": 2,
    "tests": 3,
    "initialisation": 4,
}


def sequence(purpose: Purpose, seed: int, *index: int) -> np.random.SeedSequence:
    """The seed sequence of one purpose.

    Args:
        purpose: What the draws are for; purposes are disjoint by construction.
        seed: The user's seed, >= 0.
        index: Further coordinates, each >= 0 (for example stage, step, rank).
    """
    return np.random.SeedSequence(seed, spawn_key=(_NAMESPACE[purpose], len(index), *index))


def generator(purpose: Purpose, seed: int, *index: int) -> np.random.Generator:
    """A numpy generator over `sequence(purpose, seed, *index)`."""
    return np.random.default_rng(sequence(purpose, seed, *index))


def torch_seed(rng: np.random.Generator) -> int:
    """A seed for a torch generator, drawn from `rng`."""
    return int(rng.integers(0, 2**62))
