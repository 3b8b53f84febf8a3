"""The stock model, unchanged transformers code, as the baseline of both benchmarks."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer, DynamicCache

from svc.cli.bench.stream import frame_pixels
from svc.engine.checkpoint import Checkpoint
from svc.engine.model import DTYPES, ModelConfig
from svc.engine.preprocess import load_pixel_rules

_VISION_BATCH = 64


class StockModel:
    """A checkpoint as transformers loads it, sdpa attention, with our preprocessing of frames."""

    def __init__(self, config: ModelConfig, thread_count: int) -> None:
        torch.set_num_threads(thread_count)
        loader: Any = AutoModelForImageTextToText
        self._model = loader.from_pretrained(config.path, dtype=DTYPES[config.dtype]).eval()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(config.path)
        self._preprocessor = load_pixel_rules(Checkpoint(config.path)).at_fixed_size()

    @torch.inference_mode()
    def first_token_s(self, frame_count: int, question: str) -> float:
        """Seconds from decoded frames to the first token of an answer over all of them."""
        frames = [frame_pixels(index) for index in range(frame_count)]
        started = time.perf_counter()
        video = torch.cat(
            [self._features(frames[i : i + _VISION_BATCH]) for i in range(0, len(frames), 64)]
        )
        before, after = self._prompt(question)
        embeds = torch.cat([before, video, self._newline(), after])[None]
        output = self._model.model.language_model(inputs_embeds=embeds, use_cache=True)
        self._model.lm_head(output.last_hidden_state[0, -1]).argmax().item()
        return time.perf_counter() - started

    @torch.inference_mode()
    def frames_per_s(self, frame_count: int, per_pass: int, window_tokens: int) -> float:
        """Frames per second of vision tower and text model over a window, and nothing else."""
        frames = [frame_pixels(index) for index in range(frame_count)]
        text: Any = self._model.model.language_model
        before, _ = self._prompt("")
        cache: Any = DynamicCache(config=text.config)
        text(inputs_embeds=before[None], past_key_values=cache, use_cache=True)
        started = time.perf_counter()
        for start in range(0, frame_count - per_pass + 1, per_pass):
            features = self._features(frames[start : start + per_pass])
            text(inputs_embeds=features[None], past_key_values=cache, use_cache=True)
            cache = _window(cache, text, len(before), window_tokens)
        return frame_count / (time.perf_counter() - started)

    def _features(self, frames: list[np.ndarray[Any, Any]]) -> torch.Tensor:
        """(tokens of all frames, hidden), the newline at the end left out."""
        pixels = self._preprocessor(frames).to(self._model.dtype)
        features: torch.Tensor = self._model.get_video_features(pixels[None]).pooler_output
        return features.reshape(-1, features.shape[-1])[:-1]

    def _newline(self) -> torch.Tensor:
        newline: torch.Tensor = self._model.model.image_newline[None]
        return newline

    def _prompt(self, question: str) -> tuple[torch.Tensor, torch.Tensor]:
        content = [{"type": "video"}, {"type": "text", "text": question}]
        text: str = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return tuple(self._embed(part) for part in text.split("<video>"))  # type: ignore[return-value]

    def _embed(self, text: str) -> torch.Tensor:
        ids = self._tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids[0]
        embeds: torch.Tensor = self._model.get_input_embeddings()(ids)
        return embeds


def _window(cache: Any, text: Any, prefix_count: int, window_count: int) -> Any:
    """A cache of the prefix and the last tokens: what a sliding window leaves."""
    kept: Any = DynamicCache(config=text.config)
    for index, layer in enumerate(cache.layers):
        length = layer.keys.shape[2]
        tail = max(prefix_count, length - window_count)
        keys = torch.cat([layer.keys[:, :, :prefix_count], layer.keys[:, :, tail:]], 2)
        values = torch.cat([layer.values[:, :, :prefix_count], layer.values[:, :, tail:]], 2)
        kept.update(keys, values, index)
    return kept
