"""How much neighbouring layers agree on which frames matter: what reading ahead could save.

`python -m eval.streamworld.layer_overlap` prints, for the built-in model on one generated stream,
overlap@k of layers l and l+1: the share of the k best-scored frames of layer l+1 that are among the
k best of layer l. The idea of reading for the next layer what this one chose is InfiniGen's (Lee et
al., arXiv:2406.19707).
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration

from eval.streamworld.exam import make_exam
from eval.streamworld.measure import Serving, answer_likelihoods, encode_stream, exam_features

_CHECKPOINT = Path(__file__).parent / "checkpoint"
_COUNTS = (7, 16)


def overlap(scores: Sequence[Tensor], count: int) -> list[float]:
    """Share of each layer's `count` best frames that are among those of the layer before.

    Args:
        scores: per layer (frames,).
        count: frames that a layer picks.

    Returns:
        One number in [0, 1] per layer but the first.
    """
    best = [set(score.topk(min(count, len(score))).indices.tolist()) for score in scores]
    return [len(a & b) / len(b) for a, b in itertools.pairwise(best)]


@torch.no_grad()
def measure_overlap(
    model: LlavaOnevisionForConditionalGeneration,
    *,
    seed: int,
    duration_s: float,
    questions_per_kind: int,
    count: int,
) -> tuple[list[float], int]:
    """Mean overlap@count per pair of layers over one exam's questions, and how many these are.

    The newest frame, which every layer reads, is no part of it. Questions about a time with fewer
    than ten times as many frames are left out: there, layers agree for want of choice.
    """
    exam = make_exam(seed=seed, duration_s=duration_s, questions_per_kind=questions_per_kind)
    serving = Serving(retrieved=count)
    features = exam_features(model, exam, serving.crf)
    memories = encode_stream(model, features, serving.window_frames)
    pairs: list[list[float]] = []
    for question in exam.questions:
        newest = round(question.asked_at_s * exam.fps)
        if newest < 10 * count:
            continue
        row = (question.text, question.answer, newest)
        _, _, scores = answer_likelihoods(model, memories, len(features), [row], serving)
        pairs.append(overlap([score[0, 0, :newest] for score in scores], count))
    if not pairs:
        raise ValueError(f"no question of {duration_s} s has {10 * count} frames before it")
    means: list[float] = torch.tensor(pairs).mean(0).tolist()
    return means, len(pairs)


def main() -> None:
    """Prints a line per k."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=_CHECKPOINT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--duration-s", type=float, default=3600.0)
    parser.add_argument("--questions-per-kind", type=int, default=8)
    arguments = parser.parse_args()
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(arguments.checkpoint).eval()
    for count in _COUNTS:
        pairs, questions = measure_overlap(
            model,
            seed=arguments.seed,
            duration_s=arguments.duration_s,
            questions_per_kind=arguments.questions_per_kind,
            count=count,
        )
        each = "  ".join(f"{layer}-{layer + 1} {share:.3f}" for layer, share in enumerate(pairs))
        mean = sum(pairs) / len(pairs)
        sys.stdout.write(f"overlap@{count}: {mean:.3f}  ({each}; {questions} questions)\n")


if __name__ == "__main__":
    main()
