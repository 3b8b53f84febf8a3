"""One answer in the making: which tokens it puts into the next row, and what it makes of logits.

A question passes once through the layers, twice where all layers share one choice of units: the
first time it sees prefix and recent units only, and every layer's scores are gathered; their
softmax, summed over the layers, decides, and the second pass answers. Then either tokens are
decoded one by one, or all options are scored in one row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from svc.engine.answer_request import AnswerRequest
from svc.engine.answer_result import AnswerResult, AnswerTimings, FinishReason
from svc.engine.choice import BestScored, Chooser, SharedScores
from svc.engine.context import Context
from svc.engine.losses import Losses
from svc.engine.memory import Memory
from svc.engine.packed import QuestionSegment, Segment, TailSegment
from svc.engine.sampling import TokenSampler
from svc.engine.text_stream import StopStrings, TextStream

_EMPTY = torch.empty(0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """What the engine worked out about a request before its first step."""

    request: AnswerRequest
    memory: Memory
    chooser: Chooser
    losses: Losses
    question_embeds: Tensor
    """(question tokens, hidden)"""
    choice_ids: tuple[tuple[int, ...], ...]
    eos_token_ids: frozenset[int]
    sampler: TokenSampler
    text: TextStream
    embed: Callable[[Sequence[int]], Tensor]
    open_context: Callable[[Chooser], Context]
    prefix_count: int
    history_turn_count: int
    """Earlier turns that are before the question in `question_embeds`."""


class Answering:
    """A request in progress. Its owner steps it through `AnswerEngine.step`, from one thread."""

    def __init__(self, plan: Plan) -> None:
        """Begin; time counts from here."""
        self.text_delta = ""
        """What became text in the last step."""
        self.finished = False
        self.result: AnswerResult | None = None
        """Set when finished without an error."""
        self.error: Exception | None = None
        """Why the request failed, set together with `finished`."""
        self._plan = plan
        self._started = time.perf_counter()
        self._first_token_at: float | None = None
        self._cancelled = False
        self._token_ids: list[int] = []
        self._text = ""
        self._stop_strings = StopStrings(plan.request.stop)
        self._earlier_retrieval_s = 0.0
        self._after_question = _EMPTY  # logits (vocabulary,) where the answer begins
        self._probe: BestScored | None = None  # set while gathering scores for a shared choice
        if plan.request.retrieval != "per_layer" and isinstance(plan.chooser, BestScored):
            self._probe = plan.chooser
            agreed = plan.request.retrieval == "agreed"
            self._context = plan.open_context(plan.chooser if agreed else plan.chooser.recent())
        else:
            self._context = plan.open_context(plan.chooser)
        self._segments: list[Segment] = []
        self._asked = False

    def cancel(self) -> None:
        """Ask the answer to end before the next step. May be called from any thread."""
        self._cancelled = True

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled

    def next_segments(self) -> list[Segment]:
        """Return the runs of tokens that this request puts into the next row."""
        plan = self._plan
        question_count = plan.question_embeds.shape[0]
        if not self._asked:
            self._segments = [QuestionSegment(self._context, plan.question_embeds)]
        elif plan.choice_ids:
            self._segments = [
                TailSegment(self._context, plan.embed(ids), offset=question_count, keep=False)
                for ids in plan.choice_ids
            ]
        else:
            offset = question_count + len(self._token_ids) - 1
            embeds = plan.embed(self._token_ids[-1:])
            self._segments = [TailSegment(self._context, embeds, offset=offset, keep=True)]
        return self._segments

    def rows_wanted(self) -> list[int]:
        """Return which tokens of `next_segments`, counted through, logits are wanted of."""
        count = sum(segment.embeds.shape[0] for segment in self._segments)
        if not self._asked:
            return [count - 1] if self._probe is None else []
        return list(range(count))

    def accept(self, logits: Tensor) -> None:
        """Take the logits (rows wanted, vocabulary) of the row that the segments were in."""
        error = next((s.error for s in self._segments if s.error is not None), None)
        if error is not None:
            self._end(error=error)
        elif self._probe is not None:
            self._share_choice(self._probe)
        elif not self._asked:
            self._asked = True
            if self._plan.choice_ids:
                self._after_question = logits[0]
            else:
                self._take(self._plan.sampler.choose(logits[0]))
        elif self._plan.choice_ids:
            self._score_choices(logits)
        else:
            self._take(self._plan.sampler.choose(logits[0]))

    def fail(self, error: Exception) -> None:
        """End with an error; those in the same row go on."""
        self.result = None
        self._end(error=error)

    def finish_cancelled(self) -> None:
        """End as cancelled, with the text so far."""
        self._finish("cancelled")

    def _share_choice(self, chooser: BestScored) -> None:
        """Choose once for all layers by the sum of their softmax scores, and start over."""
        scores = self._context.shared_scores()
        self._earlier_retrieval_s = self._context.retrieval_s
        self._context = self._plan.open_context(SharedScores(chooser, scores))
        self._probe = None

    def _take(self, token_id: int) -> None:
        """Add a decoded token, and end where the answer ends."""
        if self._first_token_at is None:
            self._first_token_at = time.perf_counter()
        request, plan = self._plan.request, self._plan
        self._token_ids.append(token_id)
        if token_id in plan.eos_token_ids and not request.ignore_eos:
            self._finish("stop")
            return
        self._give_out(plan.text.push(token_id))
        if self._stop_strings.push(self.text_delta):
            self._finish("stop")
        elif len(self._token_ids) >= request.max_new_tokens:
            self._finish("length")

    def _score_choices(self, logits: Tensor) -> None:
        """Score every option as the whole answer, the end after it included."""
        likelihoods: list[float] = []
        start = 0
        for ids in self._plan.choice_ids:
            after = torch.cat([self._after_question[None], logits[start : start + len(ids)]])
            likelihoods.append(log_likelihood(after, ids, self._plan.eos_token_ids))
            start += len(ids)
        best = int(np.argmax(likelihoods))
        self._first_token_at = time.perf_counter()
        self._give_out(self._plan.request.choices[best])
        self._finish("choice", choice_index=best, likelihoods=tuple(likelihoods))

    def _give_out(self, text: str) -> None:
        self.text_delta += text
        self._text += text

    def _finish(
        self,
        reason: FinishReason,
        *,
        choice_index: int | None = None,
        likelihoods: tuple[float, ...] = (),
    ) -> None:
        if reason != "choice":
            self._give_out(self._plan.text.finish())
        plan, context = self._plan, self._context
        now = time.perf_counter()
        token_counts = context.token_counts()
        question_count = plan.question_embeds.shape[0]
        first = self._first_token_at
        self.result = AnswerResult(
            text=self._text,
            token_ids=tuple(self._token_ids),
            finish_reason=reason,
            choice_index=choice_index,
            choice_log_likelihoods=likelihoods,
            layer_units=tuple(context.layer_units),
            layer_scores=tuple(context.layer_scores),
            score_scale=context.score_scale,
            tiers=dict(plan.memory.tiers),
            coarsened=tuple(sorted(plan.memory.coarsened)),
            lost=plan.losses.units(),
            context_unit_count=max(map(len, context.layer_units), default=0),
            context_token_count=max(token_counts, default=0),
            prompt_token_count=plan.prefix_count + max(token_counts, default=0) + question_count,
            history_turn_count=plan.history_turn_count,
            snapshot_unit_count=plan.memory.unit_count,
            timings=AnswerTimings(
                ttft_s=None if first is None else first - self._started,
                total_s=now - self._started,
                retrieval_s=self._earlier_retrieval_s + context.retrieval_s,
            ),
        )
        self._end()

    def _end(self, error: Exception | None = None) -> None:
        self.error = error
        self.finished = True
        self._segments = []
        self._context.layer_kv.clear()  # the memory goes now, not when the owner lets go


def log_likelihood(
    logits: Tensor, token_ids: Sequence[int], eos_token_ids: frozenset[int]
) -> float:
    """Return the log-probability that the answer is exactly these tokens.

    Args:
        logits: (len(token_ids) + 1, vocabulary): before each token, and after the last.
        token_ids: of the answer.
        eos_token_ids: any of them ends it; where there is none, the end is not counted.
    """
    log_probabilities = torch.log_softmax(logits.to(torch.float64), dim=-1)
    index = torch.tensor([list(token_ids)], device=logits.device)
    total = log_probabilities[:-1].gather(1, index.T).sum()
    if eos_token_ids:
        ends = torch.tensor(sorted(eos_token_ids), device=logits.device)
        total = total + torch.logsumexp(log_probabilities[-1, ends], dim=0)
    return float(total)
