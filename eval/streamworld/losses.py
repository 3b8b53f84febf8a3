"""The losses of the language stages, and how often answers and retrieval are right."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaOnevisionForConditionalGeneration

from eval.streamworld.batches import Batch
from eval.streamworld.forward import QuestionInputs, answer_states, encode_video
from eval.streamworld.sequences import IGNORED
from eval.streamworld.vocabulary import PREFIX_IDS

_FAR = -1e9


def video_mask(batch: Batch) -> Tensor | None:
    """Additive mask of the video pass, or None when it is plainly causal.

    A frame's tokens see the prefix and the frames of the window; nobody sees a dropped token but
    itself.
    """
    _, frames, tokens = batch.kept.shape
    dropped = not bool(batch.kept.all())
    if batch.window_frames is None and not dropped:
        return None
    prefix = len(PREFIX_IDS)
    position = torch.arange(prefix + frames * tokens)
    frame = torch.div(position - prefix, tokens, rounding_mode="floor")
    visible = position[:, None] >= position
    if batch.window_frames is not None:
        near = frame[:, None] - frame < batch.window_frames
        visible = visible & (near | (position < prefix))
    visible = visible[None]
    if dropped:
        kept = F.pad(batch.kept.flatten(1), (prefix, 0), value=True)
        visible = visible & kept[:, None] | torch.eye(len(position), dtype=torch.bool)
    return torch.zeros(visible.shape).masked_fill_(~visible, _FAR)[:, None]


def run_batch(
    model: LlavaOnevisionForConditionalGeneration, batch: Batch, features: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Logits at the labelled positions, and each layer's retrieval scores [n, clips, frames].

    `features` are [unique images, tokens, hidden], of the batch's images.
    """
    clips = batch.image_of.shape[0]
    embed = model.model.language_model.embed_tokens
    tokens = batch.tokens
    video = features[batch.image_of].flatten(1, 2)
    prefix = embed(torch.tensor(PREFIX_IDS)).expand(clips, -1, -1)
    memories = encode_video(model, torch.cat((prefix, video), 1), video_mask(batch))
    opening = model.model.image_newline.expand(len(tokens.ids), 1, -1)
    inputs = QuestionInputs(
        embeddings=torch.cat((opening, embed(tokens.ids[:, 1:])), 1),
        lengths=tokens.lengths, text_weight=tokens.text_weight, clip=batch.clip,
        candidates=batch.candidates, recent=batch.recent, picked_count=batch.picked,
        kept=batch.kept,
    )  # fmt: skip
    states, scores = answer_states(model, memories, len(PREFIX_IDS), inputs)
    return model.lm_head(states[tokens.labels != IGNORED]), scores


def retrieval_loss(scores: list[Tensor], batch: Batch) -> tuple[Tensor, float]:
    """Cross-entropy of the retrieval score against the anchor frames, mean over layers.

    Returns:
        The loss (0 when no question has anchors) and how often the best-scored frame of the
        question's own clip is an anchor.
    """
    asked = batch.anchors.any(1)
    if not bool(asked.any()):
        return scores[0].new_zeros(()), float("nan")
    rows = torch.arange(int(asked.sum()))
    owner, anchors = batch.clip[asked], batch.anchors[asked]
    compared = batch.negatives[asked].clone()
    own_compared = compared[rows, owner] | anchors
    compared[rows, owner] = own_compared
    target = anchors / anchors.sum(1, keepdim=True)
    losses, hits = [], []
    for score in scores:
        kept = score[asked].masked_fill(~compared, _FAR)
        log_share = kept.flatten(1).log_softmax(-1).view(kept.shape)[rows, owner]
        losses.append(-(target * log_share.masked_fill(~anchors, 0)).sum(1).mean())
        best = score.detach()[asked][rows, owner].masked_fill(~own_compared, _FAR).argmax(1)
        hits.append(anchors[rows, best].float().mean())
    return torch.stack(losses).mean(), float(torch.stack(hits).mean())


def answer_loss(logits: Tensor, batch: Batch) -> tuple[Tensor, dict[str, list[float]]]:
    """Cross-entropy of the answers, and per kind 1.0 or 0.0 for each question answered exactly."""
    labelled = batch.tokens.labels != IGNORED
    target = batch.tokens.labels[labelled]
    right = torch.ones(batch.tokens.labels.shape, dtype=torch.bool)
    right[labelled] = logits.detach().argmax(-1) == target
    by_kind: dict[str, list[float]] = defaultdict(list)
    for question, exact in zip(batch.questions, right.all(1).tolist(), strict=True):
        by_kind[question.kind].append(float(exact))
    return F.cross_entropy(logits, target), by_kind
