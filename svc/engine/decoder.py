"""The text model as the engine runs it: embeddings in, hidden states out, one row, no cache."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from svc.engine.attention import KEYWORD, AttentionSession
from svc.engine.rope import Rope


class LayersDone(Exception):  # noqa: N818 - not an error: says that the rest is not needed
    """Raised by a session in the middle of a run of which it has all that it wants."""


class Decoder:
    """The text model of a checkpoint with its token table, its output head and its rotation.

    Safe to call from one thread at a time. All calls run in inference mode.
    """

    def __init__(self, model: Any) -> None:
        self.text_model: Any = model.get_decoder()
        self.lm_head: Any = model.get_output_embeddings()
        self.embed_tokens: Any = model.get_input_embeddings()
        config: Any = self.text_model.config
        self.layer_count = int(config.num_hidden_layers)
        self.head_count = int(config.num_attention_heads)
        self.kv_head_count = int(getattr(config, "num_key_value_heads", None) or self.head_count)
        self.hidden_size = int(config.hidden_size)
        head_dim = getattr(config, "head_dim", None)
        self.head_dim = int(head_dim or self.hidden_size // self.head_count)
        self.max_position_count = int(config.max_position_embeddings)
        self.rope = Rope(self.text_model)

    @property
    def dtype(self) -> torch.dtype:
        """Element type of weights, embeddings, keys and values."""
        dtype: torch.dtype = self.embed_tokens.weight.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """Where the embeddings must lie."""
        device: torch.device = self.embed_tokens.weight.device
        return device

    @torch.inference_mode()
    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Return the embeddings of the tokens, (n, hidden_size)."""
        ids = torch.tensor(list(token_ids), dtype=torch.int64, device=self.device)
        embeds: Tensor = self.embed_tokens(ids)
        return embeds

    @torch.inference_mode()
    def run(self, embeds: Tensor, session: AttentionSession) -> Tensor:
        """Run the layers over one row of tokens; the session attends in each layer.

        Args:
            embeds: (n, hidden_size), of the model's dtype and device. May hold the tokens of
                several units or requests: only attention mixes tokens, and the session attends.
            session: sees every layer once, in order.

        Returns:
            (n, hidden_size): the last hidden states, after the final norm.
        """
        hidden: Tensor = self._call(embeds, session).last_hidden_state
        return hidden[0]

    @torch.inference_mode()
    def run_until_done(
        self, embeds: Tensor, session: AttentionSession, deepstack: Tensor | None = None
    ) -> None:
        """Like `run`, for a session that wants keys and values only: it may raise LayersDone.

        Args:
            embeds, session: as for `run`.
            deepstack: (levels, n, hidden_size), added to the states after the first layers, for
                models that take such.
        """
        options: dict[str, Any] = {}
        if deepstack is not None:
            everywhere = torch.ones((1, embeds.shape[0]), dtype=torch.bool, device=embeds.device)
            options = {
                "visual_pos_masks": everywhere,
                "deepstack_visual_embeds": list(deepstack.to(embeds)),
            }
        with suppress(LayersDone):
            self._call(embeds, session, **options)

    @torch.inference_mode()
    def run_layers(self, embeds: Tensor, session: AttentionSession) -> list[Tensor]:
        """Like `run`, but return the states after every layer, the last one after the norm."""
        output = self._call(embeds, session, output_hidden_states=True)
        return [state[0] for state in output.hidden_states[1:]]

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Return (n, vocabulary) for hidden states (n, hidden_size), in the model's dtype."""
        logits: Tensor = self.lm_head(hidden)
        return logits

    def _call(self, embeds: Tensor, session: AttentionSession, **options: Any) -> Any:
        # position 0 everywhere: the model's own rotation becomes the identity (see attention.py)
        zeros = torch.zeros((1, embeds.shape[0]), dtype=torch.int64, device=embeds.device)
        return self.text_model(
            inputs_embeds=embeds[None],
            position_ids=zeros,
            use_cache=False,
            **{KEYWORD: session},
            **options,
        )
