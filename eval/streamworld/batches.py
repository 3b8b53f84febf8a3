"""Training batches of the language stages: clips, questions, and what each question may see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eval.streamworld import wording
from eval.streamworld.augment import Augmenter
from eval.streamworld.follow_ups import conversations
from eval.streamworld.model import TOKENS_PER_FRAME
from eval.streamworld.questions import (
    MOST_COUNTED,
    FrameQuestion,
    ask,
    frames_of,
    made_unanswerable,
    shows,
)
from eval.streamworld.render import FrameSpec, render
from eval.streamworld.seeds import torch_seed
from eval.streamworld.sequences import TokenTensors, segments_of, token_tensors
from eval.streamworld.vocabulary import COLOURS, ENTITIES
from eval.streamworld.wording import Kind
from eval.streamworld.world import Clip, Pace, every_kind, make_clip
from svc.engine.reduction.spec import WHOLE_EVERY_UNITS


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """What a batch holds.

    Attributes:
        clips: Number of clips.
        frames: Frames per clip.
        questions: Questions per clip.
        pace: Durations and gaps.
        kinds: Relative frequency of each kind.
        late: Exponent of the asking time's distribution; smaller asks later.
        window_frames: Sliding window of the video pass, or None for all.
        picked: Frames a layer may attend to, recent ones included.
        recent: Newest frames that are always picked.
        subset_fraction: Share of questions that see a random part of the clip only.
        unanswerable_fraction: Share of past questions whose evidence is hidden.
        drop_fraction: Share of clips in which tokens of still frames are dropped, at random.
        drop_cosine: Tokens that resemble what was last kept at their place by more are dropped, as
            in the service; None: none of them. Not together with `drop_fraction`.
        shared_history: Whether frames of the other clips count as earlier frames of every clip,
            unless they show what is asked for: a long stream full of look-alikes, for free.
        pool: Size of the entity pool of each clip, or None for all entities.
        counted_fraction: Share of clips with an entity that appears one to five times: left to
            chance, large counts are too rare to be learned.
        turns_fraction: Share of questions that continue a conversation, where the clip allows.
    """

    clips: int
    frames: int
    questions: int
    pace: Pace
    kinds: dict[Kind, float]
    late: float = 0.5
    window_frames: int | None = None
    picked: int
    recent: int = 1
    subset_fraction: float = 0.0
    unanswerable_fraction: float = 0.0
    drop_fraction: float = 0.0
    drop_cosine: float | None = None
    shared_history: bool = False
    pool: int | None = None
    counted_fraction: float = 0.0
    turns_fraction: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Tensors of a batch: c clips of f frames, n questions of at most l tokens.

    Attributes:
        images: [unique, side, side, 3] float32.
        image_of: [c, f] index into `images`.
        kept: [c, f, tokens] false where a token is dropped.
        drop_cosine: As in the plan; `eval.streamworld.dropping` drops by it.
        ages: [c] and
        ties: [c, f, tokens]: what it takes beside.
        window_frames: As in the plan.
        tokens: Of the questions and their answers.
        clip: [n].
        candidates: [n, c, f] frames the question may see.
        recent: [n, c, f].
        picked: As in the plan.
        anchors: [n, f] frames of the own clip that retrieval should rank first.
        negatives: [n, c, f] frames that it should rank below them.
        questions: The questions themselves.
    """

    images: Tensor
    image_of: Tensor
    kept: Tensor
    drop_cosine: float | None
    ages: Tensor
    ties: Tensor
    window_frames: int | None
    tokens: TokenTensors
    clip: Tensor
    candidates: Tensor
    recent: Tensor
    picked: int
    anchors: Tensor
    negatives: Tensor
    questions: list[FrameQuestion]


def draw_questions(clip: Clip, plan: BatchPlan, rng: np.random.Generator) -> list[FrameQuestion]:
    """Up to `plan.questions` questions, at random times or at the end of conversations."""
    kinds = list(plan.kinds)
    weight = np.array([plan.kinds[k] for k in kinds])
    weight = weight / weight.sum()
    drawn: list[FrameQuestion] = []
    continuing = int(rng.binomial(plan.questions, plan.turns_fraction))
    if continuing:
        talks = [question for _, question in conversations(clip, rng)]
        drawn = [talks[i] for i in rng.permutation(len(talks))[:continuing]]
    for _ in range(plan.questions * 8):
        if len(drawn) == plan.questions:
            break
        last = clip.frame_count - 1
        asked_at = (
            last if rng.random() < 0.15 else int(clip.frame_count * rng.random() ** plan.late)
        )
        question = ask(clip, min(asked_at, last), kinds[rng.choice(len(kinds), p=weight)], rng)
        if question is not None:
            drawn.append(question)
    return drawn


def _visible(
    clip: Clip, question: FrameQuestion, plan: BatchPlan, rng: np.random.Generator
) -> tuple[FrameQuestion, np.ndarray]:
    """Which frames the question may see; hiding its evidence makes it unanswerable."""
    visible = np.arange(clip.frame_count) <= question.asked_at
    past = question.kind in wording.ASKED_AS and not question.turns
    if past and rng.random() < plan.unanswerable_fraction:
        for event in clip.events:
            if shows(event, question.about):
                visible[list(frames_of(event, question.asked_at))] = False
        if visible.any():
            return made_unanswerable(question), visible
        visible = np.arange(clip.frame_count) <= question.asked_at
    if rng.random() < plan.subset_fraction:
        part = rng.random(clip.frame_count) < rng.choice([0.1, 0.25, 0.5])
        part[max(0, question.asked_at - 1) : question.asked_at + 1] = True
        evidence = list(question.evidence)
        if question.kind in ("motion", "order", "count"):
            part[evidence] = True
        elif evidence:
            part[evidence[int(rng.integers(len(evidence)))]] = True
        visible &= part
    return question, visible


def draw_clip(plan: BatchPlan, grid_px: int, rng: np.random.Generator) -> Clip:
    """A random clip of the plan's length and pace."""
    entities = [int(e) for e in rng.permutation(len(ENTITIES))[: plan.pool]]
    planned: dict[int, tuple[int, int]] = {}
    if len(entities) > 2 and rng.random() < plan.counted_fraction:
        counted = entities.pop()
        expected = max(1, int(plan.frames / plan.pace.mean_frames))
        # the larger of two draws: a question often comes before the last appearance
        times = min(int(rng.integers(1, MOST_COUNTED + 1, 2).max()), (expected + 1) // 2)
        # one appearance right after another would look like one
        places = np.sort(rng.permutation(expected + 1 - times)[:times]) + np.arange(times)
        planned = {int(place): (counted, int(rng.integers(len(COLOURS)))) for place in places}
    pool = set(entities)
    kinds = [k for k in every_kind() if k[0] in pool]
    return make_clip(
        plan.frames, rng, pace=plan.pace, grid_px=grid_px, kinds=kinds, planned=planned
    )


def make_batch(
    plan: BatchPlan, *, grid_px: int, augment: Augmenter, rng: np.random.Generator
) -> Batch:
    """Draw a batch."""
    clips, questions, owner, visible = [], [], [], []
    for index in range(plan.clips):
        clip = draw_clip(plan, grid_px, rng)
        clips.append(clip)
        for question in draw_questions(clip, plan, rng):
            seen_question, mask = _visible(clip, question, plan, rng)
            questions.append(seen_question)
            owner.append(index)
            visible.append(mask)
    specs: list[FrameSpec] = []
    offsets: list[int] = []
    for clip in clips:
        offsets.append(len(specs))
        specs += clip.images
    damage = torch.Generator().manual_seed(torch_seed(rng))
    images = augment(torch.from_numpy(render(specs)), damage)
    image_of = np.stack([np.array(c.image_of) + o for c, o in zip(clips, offsets, strict=True)])
    own_visible = torch.from_numpy(np.stack(visible))
    kept = _kept_tokens(image_of, plan.drop_fraction, rng)
    ages = torch.from_numpy(rng.integers(0, WHOLE_EVERY_UNITS, plan.clips))
    ties = torch.from_numpy(rng.random(kept.shape, np.float32))
    clip_of = torch.tensor(owner)
    asked_at = torch.tensor([q.asked_at for q in questions])
    frame = torch.arange(plan.frames)
    newest = (frame <= asked_at[:, None]) & (frame > asked_at[:, None] - plan.recent)
    anchors, negatives = _retrieval_targets(clips, questions, owner, own_visible)
    rows = torch.arange(len(questions))
    candidates = torch.zeros_like(negatives)
    if plan.shared_history:
        candidates |= negatives
        candidates[torch.tensor([q.kind in wording.NOW_KINDS for q in questions])] = True
    candidates[rows, clip_of] = own_visible
    recent = torch.zeros_like(negatives)
    recent[rows, clip_of] = newest & own_visible
    # a frame that lost all its tokens is not in the index
    held = kept.any(-1)
    candidates = (candidates & held) | recent
    negatives, anchors = negatives & held, anchors & held[clip_of]
    return Batch(
        images=images, image_of=torch.from_numpy(image_of), kept=kept,
        drop_cosine=plan.drop_cosine, ages=ages, ties=ties,
        window_frames=plan.window_frames, clip=clip_of, candidates=candidates, recent=recent,
        picked=plan.picked, anchors=anchors, negatives=negatives, questions=questions,
        tokens=token_tensors(segments_of(questions)),
    )  # fmt: skip


def _kept_tokens(image_of: np.ndarray, drop_fraction: float, rng: np.random.Generator) -> Tensor:
    """Tokens of frames that repeat the frame before are dropped at a random rate per clip."""
    still = np.zeros(image_of.shape, bool)
    still[:, 1:] = image_of[:, 1:] == image_of[:, :-1]
    clips = len(image_of)
    rate = (rng.random(clips) < drop_fraction) * rng.random(clips)
    chance = rng.random((*image_of.shape, TOKENS_PER_FRAME))
    return torch.from_numpy(~(still[:, :, None] & (chance < rate[:, None, None])))


def _retrieval_targets(
    clips: list[Clip], questions: list[FrameQuestion], owner: list[int], candidates: Tensor
) -> tuple[Tensor, Tensor]:
    """Anchor frames, and negatives: the rest of the own clip, and frames of other clips that do
    not show what is asked for."""
    frames = candidates.shape[1]
    entity = np.full((len(clips), frames), -1)
    colour = np.full((len(clips), frames), -1)
    for c, clip in enumerate(clips):
        for event in clip.events:
            entity[c, event.start : event.end] = event.entity
            colour[c, event.start : event.end] = event.colour
    anchors = np.zeros((len(questions), frames), bool)
    negatives = np.zeros((len(questions), len(clips), frames), bool)
    for n, question in enumerate(questions):
        if question.kind in wording.NOW_KINDS:
            continue
        anchors[n, list(question.anchors)] = True
        shown = np.isin(entity, list(question.about[0])) & np.isin(colour, list(question.about[1]))
        negatives[n] = ~shown
        negatives[n, owner[n]] = np.arange(frames) <= question.asked_at
        if question.kind not in ("count", "order", "motion"):
            # other frames of the same event answer as well: neither anchor nor negative
            negatives[n, owner[n], list(question.evidence)] = False
    anchored = torch.from_numpy(anchors) & candidates
    rows = torch.arange(len(questions))
    negative = torch.from_numpy(negatives)
    negative[rows, torch.tensor(owner)] &= ~torch.from_numpy(anchors)
    return anchored, negative
