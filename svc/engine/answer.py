"""Answers questions from memory: several at once, joining and leaving between steps.

Start reading here, then `answering` (one answer), `context` (what it attends to) and `packed`
(how many share a row).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from retrieval.selection import Budget
from svc.engine.answer_request import (
    AnswerLimits,
    AnswerRequest,
    NothingVisibleError,
    RequestError,
)
from svc.engine.answering import Answering, Plan
from svc.engine.choice import BestScored, Chooser, FixedUnits
from svc.engine.context import Context, Grounds
from svc.engine.losses import Losses
from svc.engine.memory import Memory
from svc.engine.model import LoadedModel
from svc.engine.packed import PackedSession, Segment
from svc.engine.prompt import QuestionPrompt
from svc.engine.sampling import Sampling, TokenSampler, warn_of_unhonoured_settings
from svc.engine.text_stream import TextStream
from svc.engine.whole_newest import WholeNewest


class AnswerEngine:
    """Answers with one model. All calls come from one thread; `Answering.cancel` from any."""

    def __init__(self, model: LoadedModel, limits: AnswerLimits | None = None) -> None:
        """Prepare to answer; the model may be loaded without its vision tower."""
        self.limits = limits or AnswerLimits()
        self._model = model
        self._grounds = Grounds.of(model.decoder, model.prefix)
        warn_of_unhonoured_settings(model.generation_config)

    def start(self, request: AnswerRequest, memory: Memory) -> Answering:
        """Check a request and bring it into a form that `step` can advance; runs no model.

        Args:
            request: what is asked.
            memory: the snapshot to answer from; used until the answer is finished.

        Raises:
            RequestError: a field is outside what is allowed, or the budget beyond the model.
            EmptyQuestionError, QuestionTooLongError: of the question's text.
            NothingVisibleError: the snapshot is empty.
        """
        request.check(self.limits)
        if memory.unit_count == memory.first_unit:
            raise NothingVisibleError
        model = self._model
        if request.newest_whole and not request.unit_indices:
            whole = WholeNewest(memory)
            limit = request.token_count
            if limit is None or whole.token_counts[-1] <= limit:  # else it is shown as it is
                memory = whole
        choice_ids = tuple(self._encode_choice(text) for text in request.choices)
        answer_count = max(map(len, choice_ids), default=request.max_new_tokens)
        prompt = self._prompt(request, memory, answer_count)
        tail_count = prompt.position_count + answer_count
        chooser = self._chooser(request, memory, tail_count)
        losses = Losses(
            memory.unit_count,
            first_unit=memory.first_unit,
            max_fraction=self.limits.max_lost_fraction,
        )
        sampling = Sampling.of(request, model.generation_config)
        said = (*model.prompt.prefix_ids, model.adapter.video_token_id, *prompt.token_ids)

        def open_context(chooser: Chooser) -> Context:
            return Context(
                self._grounds,
                memory,
                chooser,
                losses,
                searches=prompt.searches,
                pooling=request.pooling,
                repeats_searched=request.repeats_searched or bool(request.unit_indices),
                tail_capacity=tail_count,
            )

        return Answering(
            Plan(
                request=request,
                memory=memory,
                chooser=chooser,
                losses=losses,
                question_embeds=model.adapter.question_embeds(prompt.token_ids),
                choice_ids=choice_ids,
                eos_token_ids=sampling.eos_token_ids,
                sampler=TokenSampler(sampling, said, model.decoder.device),
                text=TextStream(model.tokenizer),
                embed=model.decoder.embed,
                open_context=open_context,
                prefix_count=self._grounds.prefix_count,
                history_turn_count=len(prompt.turn_positions),
            )
        )

    def step(self, active: Sequence[Answering]) -> None:
        """Advance every answer that is not finished by one pass of the model, all in one row.

        New ones take their question through it, the others their last token or their options.
        Cancelled ones end here. What fails one answer is set as its `error` and ends it alone.
        """
        moving: list[Answering] = []
        for answering in active:
            answering.text_delta = ""
            if answering.finished:
                continue
            if answering.cancelled:
                answering.finish_cancelled()
            else:
                moving.append(answering)
        if not moving:
            return
        segments: list[Segment] = []
        rows: list[int] = []
        row_counts: list[int] = []
        row_start = 0
        for answering in moving:
            own = answering.next_segments()
            wanted = answering.rows_wanted()
            rows += [row_start + row for row in wanted]
            row_counts.append(len(wanted))
            segments += own
            row_start += sum(segment.embeds.shape[0] for segment in own)
        self._run(moving, segments, rows, row_counts)

    def _run(
        self,
        moving: Sequence[Answering],
        segments: Sequence[Segment],
        rows: Sequence[int],
        row_counts: Sequence[int],
    ) -> None:
        decoder = self._model.decoder
        embeds = torch.cat([segment.embeds for segment in segments])
        hidden = decoder.run(embeds, PackedSession(self._grounds, segments))
        logits = decoder.logits(hidden[torch.tensor(rows, dtype=torch.int64)])
        for answering, own in zip(moving, torch.split(logits, list(row_counts)), strict=True):
            try:
                answering.accept(own)
            except Exception as error:  # noqa: BLE001 - told to whoever waits for this answer
                answering.fail(error)

    def _prompt(self, request: AnswerRequest, memory: Memory, answer_count: int) -> QuestionPrompt:
        """Return the question after as many turns as leave room for what is asked to be read."""
        make, limit = self._model.prompt.question, self.limits.max_question_tokens
        alone = make(request.question, max_token_count=limit)
        if not request.history:
            return alone
        tail_count = alone.position_count + answer_count
        self._chooser(request, memory, tail_count)  # what is refused alone is refused here
        spare = max(0, self._room(memory, tail_count) - _wanted_positions(request, memory))
        return make(
            request.question,
            request.history,
            max_token_count=min(limit, len(alone.token_ids) + spare),
        )

    def _encode_choice(self, text: str) -> tuple[int, ...]:
        ids = self._model.prompt.encode_text(text)
        if not 1 <= len(ids) <= self.limits.max_choice_tokens:
            raise RequestError(
                "choices", text, f"texts of 1 to {self.limits.max_choice_tokens} tokens"
            )
        return ids

    def _room(self, memory: Memory, tail_count: int) -> int:
        """Return the positions that are left for units."""
        taken = self._grounds.prefix_count + memory.layout.overhang + tail_count
        return self._model.decoder.max_position_count - taken

    def _chooser(self, request: AnswerRequest, memory: Memory, tail_count: int) -> Chooser:
        """Return what chooses units within the positions that the model has left for them."""
        room = self._room(memory, tail_count)
        if room < 1:
            raise RequestError(
                "question and max_new_tokens", tail_count, f"at least {1 - room} tokens less"
            )
        if request.unit_indices:
            units = np.array(request.unit_indices, np.int64)
            if units[0] < memory.first_unit or units[-1] >= memory.unit_count:
                allowed = f"in [{memory.first_unit}, {memory.unit_count})"
                raise RequestError("unit_indices", request.unit_indices, allowed)
            span = int(memory.position_spans[units].sum())
            if span > room:
                raise RequestError("positions of unit_indices", span, f"<= {room}")
            return FixedUnits(units)
        token_count = room if request.token_count is None else request.token_count
        if token_count > room:
            raise RequestError("token_count", token_count, f"<= {room}")
        budget = Budget(
            unit_count=request.unit_count,
            token_count=token_count,
            position_count=room,
            recent_unit_count=request.recent_unit_count,
        )
        return BestScored(memory, budget)


def _wanted_positions(request: AnswerRequest, memory: Memory) -> int:
    """Return the positions that the units which are asked for take at most.

    `token_count` counts tokens: where units keep only some of theirs, positions on average.
    """
    spans = memory.position_spans
    if request.unit_indices:
        return int(spans[list(request.unit_indices)].sum())
    held = spans[memory.first_unit :]
    wanted = int(np.sort(held)[-request.unit_count :].sum())
    if request.token_count is not None:
        token_total = int(memory.token_counts[memory.first_unit :].sum())
        wanted = min(wanted, -(-request.token_count * int(held.sum()) // token_total))
    return wanted
