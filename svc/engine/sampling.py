"""From logits to the next token, as transformers' own `generate` does it.

Its logits processors are used as they are, in its order, with its defaults for what neither the
request nor the model's generation_config says. Logits go through float32, as there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from svc.engine.answer_request import AnswerRequest

logger = logging.getLogger(__name__)

DEFAULT_TOP_K = 50
"""What `generate` takes when nobody says otherwise."""

_UNHONOURED = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "guidance_scale",
    "min_length",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "sequence_bias",
    "stop_strings",
    "suppress_tokens",
    "top_h",
    "typical_p",
)
_NEUTRAL = (None, 0, 0.0, 1, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen: a request over the model's generation_config."""

    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float | None
    repetition_penalty: float
    seed: int | None
    eos_token_ids: frozenset[int]
    """Tokens that end an answer."""

    @classmethod
    def of(cls, request: AnswerRequest, generation_config: Any) -> Sampling:
        """Return what holds for a request on a model with this transformers generation_config."""
        config = generation_config
        temperature = request.temperature
        if temperature is None:
            do_sample = bool(config.do_sample)
            temperature = _first(config.temperature, 1.0)
        else:
            do_sample = temperature > 0
        return cls(
            do_sample=do_sample,
            temperature=temperature,
            top_k=_first(request.top_k, config.top_k, DEFAULT_TOP_K),
            top_p=_first(request.top_p, config.top_p, 1.0),
            min_p=config.min_p,
            repetition_penalty=_first(request.repetition_penalty, config.repetition_penalty, 1.0),
            seed=request.seed,
            eos_token_ids=eos_token_ids(generation_config),
        )

    def processors(self) -> LogitsProcessorList:
        """Return transformers' processors of these settings, in the order of `generate`."""
        processors = LogitsProcessorList()
        if self.repetition_penalty != 1.0:
            processors.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if not self.do_sample:
            return processors
        if self.temperature != 1.0:
            processors.append(TemperatureLogitsWarper(self.temperature))
        if self.top_k:
            processors.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1.0:
            processors.append(TopPLogitsWarper(self.top_p))
        if self.min_p is not None:
            processors.append(MinPLogitsWarper(self.min_p))
        return processors


class TokenSampler:
    """Chooses the tokens of one answer."""

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int], device: torch.device) -> None:
        """Start an answer.

        Args:
            sampling: the settings.
            prompt_ids: tokens that the repetition penalty counts as said; order and repetition
                do not matter to it.
            device: where the logits lie.
        """
        self._do_sample = sampling.do_sample
        self._processors: Any = sampling.processors()
        self._said = torch.tensor([sorted(set(prompt_ids))], dtype=torch.int64, device=device)
        self._generator = torch.Generator(device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def choose(self, logits: Tensor) -> int:
        """Return the next token for logits (vocabulary,) of any float dtype."""
        scores = self._processors(self._said, logits[None].to(torch.float32, copy=True))
        if self._do_sample:
            probabilities = torch.softmax(scores, dim=-1)
            token = torch.multinomial(probabilities, 1, generator=self._generator)
        else:
            token = scores.argmax(dim=-1, keepdim=True)
        self._said = torch.cat([self._said, token], dim=1)
        return int(token)


def eos_token_ids(generation_config: Any) -> frozenset[int]:
    """Return the tokens that end an answer; generation_config has none, one or a list."""
    eos = generation_config.eos_token_id
    if eos is None:
        return frozenset()
    return frozenset(eos if isinstance(eos, (list, tuple)) else [eos])


def warn_of_unhonoured_settings(generation_config: Any) -> None:
    """Log the model's generation settings that answers do not follow; none is in common use."""
    active = [n for n in _UNHONOURED if getattr(generation_config, n, None) not in _NEUTRAL]
    if active:
        logger.warning("generation settings of the model not followed", extra={"names": active})


def _first(*values: Any) -> Any:
    """Return the first that is not None."""
    return next(value for value in values if value is not None)
