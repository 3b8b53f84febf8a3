"""What token reduction leaves of training clips: the service's default, and what follows."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from eval.streamworld.batches import Batch
from svc.engine.reduction.spec import WHOLE_EVERY_UNITS

_FIRST_KEPT = 1


def last_kept(features: Tensor, cosine: float, ages: Tensor, ties: Tensor) -> Tensor:
    """Which tokens `svc.engine.reduction.last_kept` keeps.

    Args:
        features: [clips, frames, tokens, hidden].
        cosine: A token that resembles what was last kept at its place by more is dropped.
        ages: [clips] units since one was kept whole, before the first frame after the first.
        ties: [clips, frames, tokens] in [0, 1): of a still frame the token with the largest is
            kept. Frames here are equal to the bit; those of a video differ by what a codec left.

    Returns:
        [clips, frames, tokens]; of the first frame all, of every frame at least one.
    """
    reference = features[:, 0]
    kept = [torch.ones(features.shape[:3:2], dtype=torch.bool)]
    for frame in range(1, features.shape[1]):
        own = features[:, frame]
        alike = torch.cosine_similarity(reference, own, dim=-1).round(decimals=3)
        differ = alike <= cosine
        least = (alike - 1e-3 * ties[:, frame]).argmin(-1, keepdim=True)
        differ |= torch.zeros_like(differ).scatter(1, least, ~differ.any(-1, keepdim=True))
        differ |= ((ages + frame) % WHOLE_EVERY_UNITS == 0)[:, None]
        reference = torch.where(differ[..., None], own, reference)
        kept.append(differ)
    return torch.stack(kept, 1)


def dropped(batch: Batch, features: Tensor) -> Batch:
    """The batch as the service would store it.

    Args:
        batch: Whole frames.
        features: [unique images, tokens, hidden] of its images.

    Returns:
        `batch`, where its plan drops nothing. Else frames lack what repeats earlier ones, and those
        of one token, which say nothing new, are not searched (`svc.engine.choice`).
    """
    if batch.drop_cosine is None:
        return batch
    with torch.no_grad():
        kept = last_kept(
            features.detach()[batch.image_of], batch.drop_cosine, batch.ages, batch.ties
        )
    searched = kept.sum(-1) > _FIRST_KEPT
    return replace(
        batch,
        kept=kept,
        candidates=(batch.candidates & searched) | batch.recent,
        negatives=batch.negatives & searched,
        anchors=batch.anchors & searched[batch.clip],
    )
