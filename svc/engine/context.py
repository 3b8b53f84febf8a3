"""What one answer attends to, layer by layer: prefix, chosen units, question, answer so far.

Layout and positions of a layer: prefix at [0, P); the chosen units in time order, each at the
next free position, with gaps inside where tokens were dropped; then the question, which follows
that layer's own units; then the answer. Keys lie here rotated; each is rotated once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvstore.errors import SliceCorruptError, UnitsThinnedError
from retrieval.fusion import softmax_mean
from retrieval.query import Pooling, pooled_queries, pooled_scores
from retrieval.searches import interleaved, mixed
from svc.engine.attention import core
from svc.engine.choice import Chooser
from svc.engine.decoder import Decoder
from svc.engine.losses import Losses
from svc.engine.memory import Memory
from svc.engine.prefix import PrefixKV
from svc.engine.rope import Rope
from svc.engine.tables import PositionTables


@dataclass(frozen=True, slots=True, eq=False)
class Grounds:
    """What all answers of one model share: its geometry and its prefix, rotated in place."""

    decoder: Decoder
    tables: PositionTables
    prefix_keys: Tensor
    """(layers, kv_heads, P, head_dim), rotated."""
    prefix_values: Tensor

    @classmethod
    def of(cls, decoder: Decoder, prefix: PrefixKV) -> Grounds:
        """Rotate the prefix of a model to its place."""
        tables = PositionTables(decoder.rope, prefix.keys)
        at_start = tables.of(np.arange(prefix.token_count))
        return cls(decoder, tables, decoder.rope.apply(prefix.keys, at_start), prefix.values)

    @property
    def rope(self) -> Rope:
        """The model's rotation."""
        return self.decoder.rope

    @property
    def prefix_count(self) -> int:
        """Tokens, and positions, of the prefix."""
        return self.prefix_keys.shape[2]

    @property
    def score_scale(self) -> float:
        """What retrieval scores are multiplied by before a softmax."""
        return float((self.decoder.head_count * self.decoder.head_dim) ** -0.5)


class LayerKV:
    """Rotated keys and values of one answer in one layer, in one allocation made up front."""

    def __init__(self, keys: Tensor, values: Tensor, *, question_position: int) -> None:
        """Take over (1, kv_heads, capacity, head_dim) tensors, empty so far."""
        self._keys = keys
        self._values = values
        self.length = 0
        self.question_position = question_position
        """Position of the question's first token in this layer."""

    def put(self, keys: Tensor, values: Tensor, *, at: int) -> int:
        """Write (1, kv_heads, n, head_dim) from index `at` on; return the index after them."""
        stop = at + keys.shape[2]
        self._keys[:, :, at:stop] = keys
        self._values[:, :, at:stop] = values
        return stop

    def extend(self, keys: Tensor, values: Tensor) -> None:
        """Append (1, kv_heads, n, head_dim)."""
        self.length = self.put(keys, values, at=self.length)

    def attend(self, query: Tensor, stop: int, scaling: float | None) -> Tensor:
        """Attend to the first `stop` tokens, of which the queries are the last."""
        return core(query, self._keys[:, :, :stop], self._values[:, :, :stop], scaling=scaling)


class Context:
    """The keys and values of one answer, filled as the question passes through the layers."""

    def __init__(
        self,
        grounds: Grounds,
        memory: Memory,
        chooser: Chooser,
        losses: Losses,
        *,
        searches: Sequence[tuple[int, ...]],
        pooling: Pooling,
        repeats_searched: bool,
        tail_capacity: int,
    ) -> None:
        """Prepare an empty context.

        Args:
            grounds: of the model.
            memory: the snapshot.
            chooser: which units each layer reads.
            losses: of the answer; what a layer cannot read, the next ones do not choose.
            searches: places in the question segment of each text whose mean query searches: the
                question's own first, then those of the turns before it.
            pooling: how the queries of a text search.
            repeats_searched: see `AnswerRequest`.
            tail_capacity: tokens of question and answer that there must be room for.
        """
        self._grounds = grounds
        self._memory = memory
        self._chooser = chooser
        self._losses = losses
        device = grounds.decoder.device
        self._searches = [torch.tensor(positions, device=device) for positions in searches]
        self._pooling = pooling
        self._repeats_searched = repeats_searched
        self._tail_capacity = tail_capacity
        self.layer_kv: list[LayerKV] = []
        self.layer_units: list[NDArray[np.int64]] = []
        self._layer_token_counts: list[int] = []
        self.layer_scores: list[NDArray[np.floating]] = []
        self._layer_searches: list[list[NDArray[np.float32]]] = []
        self.retrieval_s = 0.0

    def open_layer(self, layer: int, query: Tensor) -> None:
        """Choose and load the layer's units, at the question's first pass through it.

        A unit that is damaged is left out, here and in the layers to come, and the next best
        takes its place. A unit that was thinned since the question came is read as it is now.
        Layers that were opened before keep theirs.

        Args:
            layer: the next one not opened yet.
            query: (1, heads, question tokens, head_dim), before RoPE.

        Raises:
            KVStoreError, RetrievalError: of the memory, or no unit fits the budget.
            EvidenceLostError: too much of what the layer chose is damaged.
        """
        started = time.perf_counter()
        searches = [
            self._search(layer, query[0][:, positions].to("cpu", torch.float64).numpy())
            for positions in self._searches
        ]
        units, layer_kv = self._read_layer(layer, interleaved(searches))
        self.layer_kv.append(layer_kv)
        self.layer_units.append(units)
        self.layer_scores.append(mixed(searches, self.score_scale))
        self._layer_searches.append(searches)
        self.retrieval_s += time.perf_counter() - started

    @property
    def score_scale(self) -> float:
        """What the layers' scores are multiplied by before a softmax."""
        return self._grounds.score_scale

    def _search(self, layer: int, text_query: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return each unit's score for one text, of (heads, tokens, head_dim) queries."""
        vectors = pooled_queries(text_query, self._grounds.decoder.kv_head_count, self._pooling)
        found = np.stack([self._memory.scores(layer, vector) for vector in vectors])
        if not self._repeats_searched:
            found[:, self._repeats()] = -np.inf
        return pooled_scores(found, self.score_scale)

    def _repeats(self) -> NDArray[np.int64]:
        """Return the units that repeat what is before them, but for the newest."""
        return np.flatnonzero(self._memory.repeats[:-1])

    def shared_scores(self) -> NDArray[np.floating]:
        """Return what all opened layers choose by together: their softmax scores, averaged."""
        scale = self.score_scale
        return interleaved(
            [softmax_mean(scores, scale) for scores in zip(*self._layer_searches, strict=True)]
        )

    def token_counts(self) -> list[int]:
        """Return per opened layer the tokens of its units."""
        return list(self._layer_token_counts)

    def _read_layer(
        self, layer: int, scores: NDArray[np.floating]
    ) -> tuple[NDArray[np.int64], LayerKV]:
        """Choose and load until everything that was chosen could be read."""
        losses = self._losses
        units = wanted = self._chooser.choose(scores, losses.dropped)
        missed: set[int] = set()
        while True:
            if losses:
                missed.update(wanted[losses.mask[wanted]].tolist())
                losses.check(missed, self._chooser.judged_by(wanted))
                units = self._chooser.choose(scores, losses.mask)
            try:
                return units, self._load(layer, units)
            except UnitsThinnedError as error:
                self._memory.meet(error)
            except SliceCorruptError as error:
                losses.add(error.damaged)
                damaged = {slice_error.unit_index for slice_error in error.damaged}
                missed.update(damaged.intersection(units.tolist()))  # others only lent tokens

    def _load(self, layer: int, units: NDArray[np.int64]) -> LayerKV:
        grounds = self._grounds
        prefix_keys = grounds.prefix_keys[layer][None]
        spans = self._memory.position_spans[units]
        counts = self._memory.token_counts[units]
        layout = self._memory.layout
        starts = np.outer(layout.advance, np.repeat(np.cumsum(spans) - spans, counts))
        local = layout.local_positions(self._memory.cells(units), counts)
        positions = grounds.prefix_count + starts + local
        token_count = positions.shape[1]
        capacity = grounds.prefix_count + token_count + self._tail_capacity
        _, kv_head_count, _, head_dim = prefix_keys.shape
        shape = (1, kv_head_count, capacity, head_dim)
        layer_kv = LayerKV(
            prefix_keys.new_empty(shape),
            prefix_keys.new_empty(shape),
            question_position=grounds.prefix_count + layout.question_offset(spans),
        )
        layer_kv.extend(prefix_keys, grounds.prefix_values[layer][None])
        if len(units):
            keys, values = (
                part.to(prefix_keys.device).transpose(0, 1)[None]
                for part in self._memory.load(layer, units)
            )
            layer_kv.extend(grounds.rope.apply(keys, grounds.tables.of(positions)), values)
        self._layer_token_counts.append(token_count)
        return layer_kv
