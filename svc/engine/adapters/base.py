"""What a family must bring: frames to units of embeddings, and its part of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from torch import Tensor

from svc.engine.layout import Cells, UnitLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamShape:
    """How a session's frames come: what its units look like follows from it."""

    frame_height: int = 720
    """Of the source, in pixels; only its relation to the width counts."""
    frame_width: int = 1280
    sample_fps: float = 1.0
    """Frames that are taken of a second of video."""
    unit_tokens: int = 256
    """Tokens of a unit's picture, at most, where the family sizes frames by a budget."""


USUAL_SHAPE = StreamShape()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WholeUnit:
    """One unit as the vision tower leaves it, with the text that goes with it."""

    pixels: Tensor
    """(frames_per_unit, 3, height, width), of `Adapter.preprocess`."""
    embeds: Tensor
    """(n, hidden) of the model's dtype and device."""
    cells: Cells
    """(n, 2) uint16; see `svc.engine.layout`."""
    position_span: int
    deepstack: Tensor | None = None
    """(levels, n, hidden): added to the states after the first layers, 0 for text. None: no such
    model."""
    gap_before: bool = False


class Adapter(UnitLayout, Protocol):
    """A model family, for sessions of one shape.

    Stateless: what one unit becomes depends on its own frames and their times alone.
    """

    family: str
    frames_per_unit: int
    frame_height: int
    """Of the frames that the vision tower sees."""
    frame_width: int
    video_token_id: int
    """The token that stands for the video in the checkpoint's template."""
    video_mark: tuple[int, ...]
    """Tokens of the template that the video takes the place of: that one, and what is around it
    where the family leaves that out."""
    question_lead_count: int
    """Embeddings that `question_embeds` puts before the question segment's tokens."""

    def shaped(self, stream: StreamShape) -> Self:
        """Return the adapter for sessions of another shape."""
        ...

    def preprocess(self, frames: Sequence[np.ndarray]) -> Tensor:
        """Return the pixels of whole units, (units, frames_per_unit, 3, height, width) float32.

        Args:
            frames: RGB, each (H, W, 3) uint8, in time order.

        Raises:
            ValueError: the frames are not whole units, or not such arrays.
        """
        ...

    def shown(self, pixels: Tensor) -> Tensor:
        """Return pixels of `preprocess` as values in [0, 1], whatever the normalisation."""
        ...

    def encode(self, pixels: Tensor, times_s: Sequence[float]) -> list[WholeUnit]:
        """Return the units of `preprocess`' pixels as they go into the text model.

        Args:
            pixels: (units, frames_per_unit, 3, height, width).
            times_s: of each unit, the mean of its frames' pts; some families tell the model.

        Raises:
            RuntimeError: the model was loaded without its vision tower.
        """
        ...

    def question_embeds(self, token_ids: Sequence[int]) -> Tensor:
        """Return (question_lead_count + len(token_ids), hidden): the whole question segment."""
        ...
