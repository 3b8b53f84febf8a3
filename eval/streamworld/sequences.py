"""What the decoder reads of a question: earlier turns, its words, its answer, as the service's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.streamworld.questions import FrameQuestion, Turn
from eval.streamworld.vocabulary import END_ID, NEWLINE_ID, PAD_ID, TAIL_IDS, TURN_IDS, encode

IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Token ids of a question, of the turns before it and of its answer.

    Attributes:
        ids: All that is read; the first, image_newline's, is never looked up.
        targets: The answer and its end: predicted from the last len(targets) of `ids`.
        texts: Places in `ids` of each text that searches: the question's own first, then the
            turns', question and answer of each, newest first.
    """

    ids: list[int]
    targets: list[int]
    texts: list[list[int]]


def segment(text: str, answer: str, turns: Sequence[Turn] = ()) -> Segment:
    """The ids of a question with its answer, after `turns`, oldest first."""
    ids = [PAD_ID, NEWLINE_ID]
    texts: list[list[int]] = []

    def put(words: str, after: Sequence[int]) -> list[int]:
        own = encode(words)
        places = list(range(len(ids), len(ids) + len(own)))
        ids.extend((*own, *after))
        return places

    for question, answered in turns:
        asked = put(question, TAIL_IDS)
        texts.insert(0, asked + put(answered, TURN_IDS))
    texts.insert(0, put(text, TAIL_IDS))
    targets = encode(answer)
    return Segment(ids=[*ids, *targets], targets=[*targets, END_ID], texts=texts)


@dataclass(frozen=True, kw_only=True)
class TokenTensors:
    """Segments of n questions, of at most l tokens and s searching texts.

    Attributes:
        ids: [n, l]; position 0 stands for image_newline.
        labels: [n, l] id to predict at each position, or IGNORED.
        lengths: [n].
        text_weight: [n, s, l], 1/count on a text's words; 0 where a question has fewer texts.
    """

    ids: Tensor
    labels: Tensor
    lengths: Tensor
    text_weight: Tensor


def token_tensors(segments: Sequence[Segment]) -> TokenTensors:
    """The segments, padded."""
    length = max(len(each.ids) for each in segments)
    ids = torch.full((len(segments), length), PAD_ID)
    labels = torch.full_like(ids, IGNORED)
    weight = torch.zeros(len(segments), max(len(each.texts) for each in segments), length)
    for row, each in enumerate(segments):
        end = len(each.ids)
        ids[row, :end] = torch.tensor(each.ids)
        # a label stands at the position that predicts it, one before the token itself
        labels[row, end - len(each.targets) : end] = torch.tensor(each.targets)
        for number, places in enumerate(each.texts):
            weight[row, number, places] = 1 / len(places)
    lengths = torch.tensor([len(each.ids) for each in segments])
    return TokenTensors(ids=ids, labels=labels, lengths=lengths, text_weight=weight)


def segments_of(questions: Sequence[FrameQuestion]) -> list[Segment]:
    """`segment` of each."""
    return [segment(each.text, each.answer, each.turns) for each in questions]
