"""Many requests in one row of the text model: split inside attention, joined everywhere else.

Everything outside attention is token-wise, so prefills of some requests ride with decode steps
of others, without padding and without masks. A request that fails in a layer is carried on with
zeros to the end of the row: the others do not notice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvstore.errors import KVStoreError
from retrieval.errors import RetrievalError
from svc.engine.context import Context, Grounds, LayerKV
from svc.engine.errors import EngineError
from svc.engine.rope import RopeTables

REQUEST_ERRORS = (EngineError, KVStoreError, RetrievalError, OSError)
"""What ends one request and leaves the others alone; anything else is a bug."""


class Segment(Protocol):
    """A run of tokens of one request in the row."""

    embeds: Tensor
    """(n, hidden)"""
    error: Exception | None

    def positions(self, layer: int, query: Tensor) -> NDArray[np.int64]:
        """Return the positions (n,) of the tokens in a layer, given their query before RoPE.

        Raises:
            one of REQUEST_ERRORS: ends this request.
        """
        ...

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Tensor:
        """Attend, with q and k rotated; shapes as in AttentionSession, n tokens."""
        ...


class QuestionSegment:
    """The whole question: opens each layer of its context, then attends causally."""

    def __init__(self, context: Context, embeds: Tensor) -> None:
        self.embeds = embeds
        self.error: Exception | None = None
        self._context = context

    def positions(self, layer: int, query: Tensor) -> NDArray[np.int64]:
        """Retrieve for the layer; the question follows what was retrieved."""
        self._context.open_layer(layer, query)
        start = self._context.layer_kv[layer].question_position
        return np.arange(start, start + self.embeds.shape[0])

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Tensor:
        """Append the question to the layer's context and attend."""
        layer_kv = self._context.layer_kv[layer]
        layer_kv.extend(key, value)
        return layer_kv.attend(query, layer_kv.length, scaling)


class TailSegment:
    """Tokens after the question: one decoded token, or one option of several."""

    def __init__(self, context: Context, embeds: Tensor, *, offset: int, keep: bool) -> None:
        """Continue a context.

        Args:
            context: opened in every layer.
            embeds: (n, hidden).
            offset: position of the first token, from the question's first.
            keep: whether later tokens attend to these. Options do not see each other.
        """
        self.embeds = embeds
        self.error: Exception | None = None
        self._layer_kv: list[LayerKV] = context.layer_kv
        self._offset = offset
        self._keep = keep

    def positions(self, layer: int, query: Tensor) -> NDArray[np.int64]:
        """Continue where the layer's question ends."""
        start = self._layer_kv[layer].question_position + self._offset
        return np.arange(start, start + self.embeds.shape[0])

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Tensor:
        """Attend to the context and to this segment's own tokens, causally."""
        layer_kv = self._layer_kv[layer]
        stop = layer_kv.put(key, value, at=layer_kv.length)
        if self._keep:
            layer_kv.length = stop
        return layer_kv.attend(query, stop, scaling)


class PackedSession:
    """Attends for one row. Used for one call of the text model."""

    def __init__(self, grounds: Grounds, segments: Sequence[Segment]) -> None:
        self._grounds = grounds
        self._segments = segments
        self._lengths = [segment.embeds.shape[0] for segment in segments]
        self._known: tuple[NDArray[np.int64], RopeTables] | None = None

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Tensor:
        """Attend segment by segment; see AttentionSession for the shapes."""
        queries = query.split(self._lengths, dim=2)
        tables = self._tables(self._positions(layer, queries))
        rotated = self._grounds.rope.apply(query, tables).split(self._lengths, dim=2)
        keys = self._grounds.rope.apply(key, tables).split(self._lengths, dim=2)
        values = value.split(self._lengths, dim=2)
        outputs = [
            segment.attend(layer, q, k, v, scaling)
            if segment.error is None
            else torch.zeros_like(q).transpose(1, 2)
            for segment, q, k, v in zip(self._segments, rotated, keys, values, strict=True)
        ]
        return torch.cat(outputs, dim=1)

    def _positions(self, layer: int, queries: Sequence[Tensor]) -> NDArray[np.int64]:
        parts: list[NDArray[np.int64]] = []
        for segment, query in zip(self._segments, queries, strict=True):
            part = np.zeros(query.shape[2], np.int64)
            if segment.error is None:
                try:
                    part = segment.positions(layer, query)
                except REQUEST_ERRORS as error:
                    segment.error = error
            parts.append(part)
        return np.concatenate(parts)

    def _tables(self, positions: NDArray[np.int64]) -> RopeTables:
        # layers whose contexts hold equal totals, the usual case, share one look-up
        if self._known is None or not np.array_equal(self._known[0], positions):
            self._known = (positions, self._grounds.tables.of(positions))
        return self._known[1]
