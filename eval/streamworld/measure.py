"""Accuracy of a model by kind, in this process: window, per-layer retrieval and answer as served.

A training tool: it needs no service. What the service achieves is measured through the service.
"""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaOnevisionForConditionalGeneration

from eval.streamworld.clip_file import read_mp4, write_mp4
from eval.streamworld.exam import Exam, Question, make_exam
from eval.streamworld.forward import (
    Memory,
    QuestionInputs,
    answer_states,
    frame_features,
    mlp,
    norm,
    rope,
    rotate,
    sizes,
)
from eval.streamworld.render import render
from eval.streamworld.sequences import IGNORED, segment, token_tensors
from eval.streamworld.vocabulary import PREFIX_IDS

_FAR = -1e9
_VISION_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How the model is served: window, retrieved frames, and H.264 quality (None: no codec)."""

    window_frames: int = 16
    retrieved: int = 7
    recent: int = 1
    crf: int | None = None


@dataclass(frozen=True, kw_only=True)
class Graded:
    """One question's outcome: exact greedy answer, most likely option, and frames found.

    `hit_fraction` is the share of layers that picked an evidence frame; nan without evidence.
    """

    question: Question
    exact: bool
    chosen: bool
    hit_fraction: float


def exam_features(
    model: LlavaOnevisionForConditionalGeneration, exam: Exam, crf: int | None
) -> Tensor:
    """Visual tokens of every frame, [frames, tokens, hidden]; through H.264 unless crf is None."""
    clip = exam.clip
    if crf is None:
        images = torch.from_numpy(render(list(clip.images)))
        index = torch.tensor(clip.image_of)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clip.mp4"
            write_mp4(clip, path, fps=exam.fps, crf=crf)
            pixels, _ = read_mp4(path)
        images = torch.from_numpy(pixels).float() / 127.5 - 1
        index = torch.arange(len(images))
    starts = range(0, len(images), _VISION_BATCH)
    parts = [frame_features(model, images[at : at + _VISION_BATCH]) for at in starts]
    return torch.cat(parts)[index]


def encode_stream(
    model: LlavaOnevisionForConditionalGeneration, features: Tensor, window_frames: int
) -> list[Memory]:
    """The streaming pass over [frames, tokens, hidden]: each frame sees the prefix and a window.

    Computed in blocks of one window, each seeing the block before; the prefix lies just before
    the block.
    """
    s = sizes(model)
    frames, tokens, width = features.shape
    blocks = -(-frames // window_frames)
    span, prefix = window_frames * tokens, len(PREFIX_IDS)
    x = F.pad(features, (0, 0, 0, 0, 0, blocks * window_frames - frames)).view(blocks, span, width)
    p = model.model.language_model.embed_tokens(torch.tensor(PREFIX_IDS))[None]
    position = torch.cat((torch.arange(prefix) + span, prefix + torch.arange(2 * span)))
    cos, sin = rope(position, s)
    frame = torch.div(torch.arange(2 * span), tokens, rounding_mode="floor")
    order = torch.arange(2 * span)
    near = (order[span:, None] >= order) & (frame[span:, None] - frame < window_frames)
    mask = torch.cat((torch.ones(span, prefix, dtype=torch.bool), near), 1)
    bias = torch.zeros(mask.shape).masked_fill(~mask, _FAR).expand(blocks, 1, -1, -1).clone()
    bias[0, :, :, prefix : prefix + span] = _FAR
    memories = []
    for layer in model.model.language_model.layers:
        attention = layer.self_attn

        def heads(y: Tensor, count: int) -> Tensor:
            return y.view(*y.shape[:2], count, -1).transpose(1, 2)

        hp, hx = norm(p, layer.input_layernorm.weight), norm(x, layer.input_layernorm.weight)
        kp, vp = attention.k_proj(hp), attention.v_proj(hp)
        kx, vx = attention.k_proj(hx), attention.v_proj(hx)
        memories.append(
            Memory(
                keys=torch.cat((kp, kx.view(1, blocks * span, -1)[:, : frames * tokens]), 1),
                values=torch.cat((vp, vx.view(1, blocks * span, -1)[:, : frames * tokens]), 1),
            )
        )

        def seen(own: Tensor, fixed: Tensor) -> Tensor:
            before = torch.cat((torch.zeros_like(own[:1]), own[:-1]))
            return heads(torch.cat((fixed.expand(blocks, -1, -1), before, own), 1), s.kv_heads)

        k, v = rotate(seen(kx, kp), cos, sin), seen(vx, vp)
        q = rotate(heads(attention.q_proj(hx), s.heads), cos[prefix + span :], sin[prefix + span :])
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=True)
        x = mlp(layer, x + attention.o_proj(out.transpose(1, 2).reshape(x.shape)))
        q = rotate(heads(attention.q_proj(hp), s.heads), cos[:prefix], sin[:prefix])
        k = rotate(heads(kp, s.kv_heads), cos[:prefix], sin[:prefix])
        out = F.scaled_dot_product_attention(
            q, k, heads(vp, s.kv_heads), is_causal=True, enable_gqa=True
        )
        p = mlp(layer, p + attention.o_proj(out.transpose(1, 2).reshape(p.shape)))
    return memories


def answer_likelihoods(
    model: LlavaOnevisionForConditionalGeneration,
    memories: list[Memory],
    frames: int,
    rows: list[tuple[str, str, int]],
    serving: Serving,
) -> tuple[list[bool], list[float], list[Tensor]]:
    """For (question, answer, newest frame) rows: exact greedy match, log likelihood, scores."""
    made = token_tensors([segment(text, answer) for text, answer, _ in rows])
    embedded = model.model.language_model.embed_tokens(made.ids)
    embedded[:, 0] = model.model.image_newline
    newest = torch.tensor([frame for _, _, frame in rows])[:, None, None]
    frame = torch.arange(frames)[None, None]
    tokens = (memories[0].keys.shape[1] - len(PREFIX_IDS)) // frames
    inputs = QuestionInputs(
        embeddings=embedded, text_weight=made.text_weight, lengths=made.lengths,
        clip=torch.zeros(len(rows), dtype=torch.long),
        candidates=frame <= newest, recent=(frame <= newest) & (frame > newest - serving.recent),
        picked_count=serving.retrieved + serving.recent,
        kept=torch.ones(1, frames, tokens, dtype=torch.bool),
    )  # fmt: skip
    states, scores = answer_states(model, memories, len(PREFIX_IDS), inputs)
    log_p = model.lm_head(states).log_softmax(-1)
    labelled = made.labels != IGNORED
    target = made.labels.clamp_min(0)
    exact = ((log_p.argmax(-1) == target) | ~labelled).all(1).tolist()
    total = (log_p.gather(2, target[..., None])[..., 0] * labelled).sum(1).tolist()
    return exact, total, scores


@torch.no_grad()
def grade(
    model: LlavaOnevisionForConditionalGeneration, exam: Exam, serving: Serving
) -> list[Graded]:
    """Answer every question of an exam."""
    features = exam_features(model, exam, serving.crf)
    frames = len(features)
    memories = encode_stream(model, features, serving.window_frames)
    graded = []
    for question in exam.questions:
        newest = round(question.asked_at_s * exam.fps)
        rows = [(question.text, answer, newest) for answer in (question.answer, *question.options)]
        exact, likelihood, scores = answer_likelihoods(model, memories, frames, rows, serving)
        options = likelihood[1:]
        best = question.options[options.index(max(options))]
        graded.append(
            Graded(
                question=question, exact=exact[0], chosen=best == question.answer,
                hit_fraction=_hit_fraction(question, exam, scores, newest, serving),
            )
        )  # fmt: skip
    return graded


def _hit_fraction(
    question: Question, exam: Exam, scores: list[Tensor], newest: int, serving: Serving
) -> float:
    evidence = {
        f
        for start, end in question.evidence_s
        for f in range(round(start * exam.fps), round(end * exam.fps))
    }
    if not evidence:
        return float("nan")
    hits = []
    for score in scores:
        past = score[0, 0, : newest + 1 - serving.recent]
        found = past.topk(min(serving.retrieved, len(past))).indices.tolist()
        hits.append(bool(evidence & {*found, newest}))
    return sum(hits) / len(hits)


def measure(
    model: LlavaOnevisionForConditionalGeneration,
    *,
    seeds: range,
    duration_s: float,
    questions_per_kind: int,
    grid_px: int,
    serving: Serving,
) -> list[Graded]:
    """Grade one exam per seed."""
    graded = []
    for seed in seeds:
        exam = make_exam(
            seed=seed, duration_s=duration_s, questions_per_kind=questions_per_kind,
            grid_px=grid_px,
        )  # fmt: skip
        graded += grade(model, exam, serving)
    return graded


def figures(graded: list[Graded], serving: Serving, duration_s: float) -> list[dict[str, Any]]:
    """Accuracy by kind: `exact` answers, most likely `option`, evidence `hit`, count `n`."""
    by_kind: dict[str, list[Graded]] = defaultdict(list)
    for one in graded:
        by_kind[one.question.kind].append(one)
        if one.question.kind == "not_seen":
            by_kind[f"not_seen, as {one.question.asked_as}"].append(one)
    return [
        {
            "duration_s": duration_s, "kind": kind, "n": len(ones),
            "exact": _mean([one.exact for one in ones]),
            "option": _mean([one.chosen for one in ones]),
            "hit": _mean([one.hit_fraction for one in ones if not math.isnan(one.hit_fraction)]),
            "crf": serving.crf, "retrieved": serving.retrieved, "recent": serving.recent,
        }
        for kind, ones in sorted(by_kind.items())
    ]  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """The rows of `figures` as text."""
    lines = [f"{'kind':26s} {'exact':>6s} {'option':>6s} {'hit':>6s} {'n':>5s}"]
    for row in rows:
        hit = "-" if row["hit"] is None else f"{row['hit']:.3f}"
        lines.append(
            f"{row['kind']:26s} {row['exact']:6.3f} {row['option']:6.3f} {hit:>6s} {row['n']:5d}"
        )
    return "\n".join(lines)


def _mean(values: list[bool] | list[float]) -> float | None:
    return sum(values) / len(values) if values else None
