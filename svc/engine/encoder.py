"""The watching half: units of embeddings in, their keys and values out, window kept between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from svc.engine.decoder import Decoder, LayersDone
from svc.engine.prefix import PrefixKV
from svc.engine.window import WindowConfig
from svc.engine.window_cache import UnitKV, UnitSpan, WindowCache, WindowPass


class EncodingModel(Protocol):
    """What the encoder needs of a loaded model."""

    @property
    def decoder(self) -> Decoder:
        """The text model."""
        ...

    @property
    def prefix(self) -> PrefixKV:
        """The encoded prompt prefix."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UnitEmbeds:
    """One unit on its way into the text model."""

    embeds: Tensor
    """(n, hidden) of the kept tokens, of the model's dtype and device."""
    positions: Tensor
    """(axes, n) int64 on the CPU, of the kept tokens; see UnitSpan."""
    position_span: int
    """Positions that the whole unit takes, whatever was dropped."""
    deepstack: Tensor | None = None
    """(levels, n, hidden), as in `svc.engine.adapters.base.WholeUnit`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WindowUnit:
    """One unit as the store gives it back."""

    keys: Tensor
    """(layers, n, kv_heads, head_dim), before RoPE; any device."""
    values: Tensor
    """Shaped like keys."""
    positions: Tensor
    """(axes, n) int64 on the CPU, as in UnitEmbeds."""
    position_span: int


class StreamEncoder:
    """Encodes one stream, unit after unit. Not thread-safe.

    What a unit becomes does not depend on how many units a call holds, beyond rounding.
    """

    def __init__(
        self, model: EncodingModel, window: WindowConfig, advance: Sequence[int] = (1,)
    ) -> None:
        """Begin a stream; `advance` is of its `UnitLayout`."""
        self.decoder = model.decoder
        self._cache = WindowCache(model.decoder, model.prefix, window, advance)

    @property
    def window_unit_count(self) -> int:
        """Earlier units that the next unit will see."""
        return self._cache.window.unit_count

    @property
    def window_token_count(self) -> int:
        """Tokens of these units."""
        return self._cache.window.token_count

    @property
    def capacity_tokens(self) -> int:
        """Tokens that memory is held for: at most 5/4 of window and largest call together."""
        return self._cache.capacity

    def encode(self, units: Sequence[UnitEmbeds]) -> list[UnitKV]:
        """Run the units through the text model in one pass.

        When it raises, the stream is as before the call, and the units may be given again.

        Args:
            units: consecutive units in time order, following those of earlier calls.

        Raises:
            ValueError: a unit is empty, or its positions do not fit its embeddings and span.
        """
        return encode_together([(self, units)])[0]

    def begin(self, units: Sequence[UnitEmbeds]) -> WindowPass:
        """Return the attention of a pass over the units; internal to `encode_together`."""
        for unit in units:
            if unit.embeds.shape[0] != unit.positions.shape[-1]:
                raise ValueError(
                    f"{unit.embeds.shape[0]} embeddings for {unit.positions.shape[-1]} positions"
                )
        return self._cache.begin(
            [UnitSpan(positions=u.positions, position_span=u.position_span) for u in units]
        )

    def commit(self, started: WindowPass) -> list[UnitKV]:
        """Take what `begin` began into the window; internal to `encode_together`."""
        return self._cache.commit(started)

    def encode_pruned(
        self, unit: UnitEmbeds, choose: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, UnitKV]:
        """Run one whole unit through the text model, and keep what its keys decide.

        Later units see the kept tokens alone. When it raises, the stream is as before the call.

        Args:
            unit: the next one, in time order.
            choose: from keys before RoPE, (layers, n, kv_heads, head_dim), to the tokens to keep,
                ascending.

        Returns:
            kept: what `choose` returned.
            kv: of the kept tokens.
        """
        span = UnitSpan(positions=unit.positions, position_span=unit.position_span)
        started = self._cache.begin([span])
        session = _KeysAndValuesOnly([started], self.decoder.layer_count - 1)
        self.decoder.run_until_done(unit.embeds, session, unit.deepstack)
        (whole,) = self._cache.made(started)
        kept = choose(whole.keys)
        pruned = UnitKV(keys=whole.keys[:, kept], values=whole.values[:, kept])
        self._cache.refill(
            [UnitSpan(positions=unit.positions[..., kept], position_span=unit.position_span)],
            [pruned],
        )
        return kept, pruned

    def restore(self, units: Sequence[WindowUnit]) -> None:
        """Refill the window, so that the stream goes on as if it had never stopped.

        Args:
            units: the last units before the interruption, at least those from
                `window.window_start` on; earlier ones are seen by nobody and do no harm.

        Raises:
            RuntimeError: the encoder has encoded or restored before.
        """
        if self._cache.window.next_token:
            raise RuntimeError("only a new encoder can be restored: this one holds units already")
        self._cache.refill(
            [UnitSpan(positions=u.positions, position_span=u.position_span) for u in units],
            [UnitKV(keys=u.keys, values=u.values) for u in units],
        )


def encode_together(
    work: Sequence[tuple[StreamEncoder, Sequence[UnitEmbeds]]],
) -> list[list[UnitKV]]:
    """Run units of several streams of one model through it in one pass, as `encode` would each.

    Only attention mixes tokens, and each stream attends in its own window: a unit sees what it
    would see alone. When it raises, all streams are as before the call.

    Args:
        work: streams, each at most once, with their next units.

    Returns:
        Per stream what the layers made of its units.

    Raises:
        ValueError: a unit is empty, or its positions do not fit its embeddings and span.
    """
    moving = [(encoder, units) for encoder, units in work if units]
    if not moving:
        return [[] for _ in work]
    decoder = moving[0][0].decoder
    passes = [encoder.begin(units) for encoder, units in moving]
    every = [unit for _, units in moving for unit in units]
    deepstack = [unit.deepstack for unit in every if unit.deepstack is not None]
    decoder.run_until_done(
        torch.cat([unit.embeds for unit in every]),
        _KeysAndValuesOnly(passes, decoder.layer_count - 1),
        torch.cat(deepstack, dim=1) if deepstack else None,
    )
    made = iter(zip(moving, passes, strict=True))
    found: list[list[UnitKV]] = []
    for _, units in work:
        if not units:
            found.append([])
            continue
        (encoder, _), started = next(made)
        found.append(encoder.commit(started))
    return found


class _KeysAndValuesOnly:
    """Lets the streams of a row attend, each in its own window, and ends the run at the last layer.

    What follows that layer's attention is of use to an answer only: saves most of one layer, which
    is a fifth of the work of a small model.
    """

    def __init__(self, passes: Sequence[WindowPass], last_layer: int) -> None:
        self._passes = passes
        self._counts = [started.token_count for started in passes]
        self._last_layer = last_layer

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Tensor:
        keys, values = key.split(self._counts, dim=2), value.split(self._counts, dim=2)
        if layer == self._last_layer:
            for started, own_keys, own_values in zip(self._passes, keys, values, strict=True):
                started.store(layer, own_keys, own_values)
            raise LayersDone
        queries = query.split(self._counts, dim=2)
        outputs = [
            started.attend(layer, own_query, own_key, own_value, scaling)
            for started, own_query, own_key, own_value in zip(
                self._passes, queries, keys, values, strict=True
            )
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
