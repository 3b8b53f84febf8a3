"""Sliding-window attention over a stream: every unit sees [prefix | its window | itself].

Positions are re-based: for each unit, the first unit of its window begins right after the
prefix, so a stream of weeks stays in the trained range. RoPE being relative, one pass can hold
several units: all window keys are rotated once, from one origin, and the prefix is rotated anew
for each window start, so that it always ends right before that window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from svc.engine.attention import core, lower_right_mask
from svc.engine.decoder import Decoder
from svc.engine.kv_buffer import KVBuffer
from svc.engine.prefix import PrefixKV
from svc.engine.window import UnitPlace, Window, WindowConfig

_GROUP_TOKENS = 256
"""Units are attended together up to this many tokens: one call costs more than the keys of a
neighbour, masked, while units are small; larger ones go alone and waste nothing."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UnitKV:
    """What the layers made of one unit."""

    keys: Tensor
    """(layers, n, kv_heads, head_dim), before RoPE."""
    values: Tensor
    """Shaped like keys."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UnitSpan:
    """The places of one unit's kept tokens."""

    positions: Tensor
    """(axes, n) int64 on the CPU, from where the unit begins; (n,) of a model of one axis. On
    axes along which units follow one another, within [0, position_span)."""
    position_span: int

    @property
    def token_count(self) -> int:
        """Kept tokens."""
        return self.positions.shape[-1]

    def check(self, advance: Tensor) -> None:
        """Raise ValueError unless the positions are as told above; `advance` as in WindowCache."""
        if not self.token_count:
            raise ValueError("a unit must keep at least one token, got none")
        positions = self.positions.view(-1, self.token_count)
        if len(positions) != len(advance):
            raise ValueError(f"positions of {len(positions)} axes, the model has {len(advance)}")
        following = positions[advance[:, 0] == 1]
        first, last = int(positions.min()), int(following.max())
        if first < 0 or last >= self.position_span:
            raise ValueError(
                f"positions must lie in [0, {self.position_span}), got {first} to {last}"
            )
        if len(advance) == 1 and bool((positions[0, 1:] <= positions[0, :-1]).any()):
            raise ValueError("positions of a unit must ascend strictly")


class WindowCache:
    """Keys and values of one stream's window. Not thread-safe."""

    def __init__(
        self,
        decoder: Decoder,
        prefix: PrefixKV,
        config: WindowConfig,
        advance: Sequence[int] = (1,),
    ) -> None:
        """Begin a stream.

        Args:
            decoder, prefix, config: of the model, of its prompt, of the stream.
            advance: per axis of positions 1 where units follow one another, 0 where all begin at
                the same place, as the height and width of M-RoPE may.

        Raises:
            ValueError: the model's positions have another number of axes.
        """
        if len(advance) != decoder.rope.axis_count:
            raise ValueError(f"{advance=} for a model of {decoder.rope.axis_count} axes")
        self._advance = torch.tensor(advance)[:, None]
        self._decoder = decoder
        self._prefix = prefix
        self._buffer = KVBuffer(decoder)
        self.window = Window(config)

    @property
    def capacity(self) -> int:
        """Tokens that memory is held for."""
        return self._buffer.capacity

    @torch.inference_mode()
    def begin(self, units: Sequence[UnitSpan]) -> WindowPass:
        """Return the attention session of a pass over the units, one row, in time order.

        Nothing is seen by later passes until `commit`; a pass that failed is simply dropped.
        """
        for unit in units:
            unit.check(self._advance)
        window = self.window.copy()
        places = [window.push(u.token_count, u.position_span) for u in units]
        self._buffer.reserve(self.window.first_token, self.window.next_token, window.next_token)
        for unit, place in zip(units, places, strict=True):
            self._buffer.place(place.first_token, unit.positions + place.position * self._advance)
        return WindowPass(self._decoder, self._prefix, self._buffer, places, window, self._advance)

    @torch.inference_mode()
    def commit(self, finished: WindowPass) -> list[UnitKV]:
        """Take a finished pass into the window and return what the layers made of its units."""
        self.window = finished.window
        return self.made(finished)

    @torch.inference_mode()
    def made(self, finished: WindowPass) -> list[UnitKV]:
        """Return copies of what the layers made of the units of a pass, before the next begins."""
        made = []
        for place in finished.places:
            stop = place.first_token + place.token_count
            keys, values = self._buffer.copy_out(place.first_token, stop)
            made.append(UnitKV(keys=keys, values=values))
        return made

    @torch.inference_mode()
    def refill(self, spans: Sequence[UnitSpan], made: Sequence[UnitKV]) -> None:
        """Append units whose keys and values are known already."""
        for span, unit in zip(spans, made, strict=True):
            started = self.begin([span])
            first = started.places[0].first_token
            for layer in range(self._decoder.layer_count):
                keys = unit.keys[layer].transpose(0, 1)[None]
                values = unit.values[layer].transpose(0, 1)[None]
                self._buffer.write(layer, first, keys, values)
            self.window = started.window


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Units that are attended in one call."""

    rows: slice
    """Their tokens in the pass."""
    columns: slice
    """The stream's tokens that they see, in the pass's run of rotated keys."""
    sink_keys: Tensor
    """(layers, kv_heads, windows * prefix tokens, head_dim), rotated: once per window start."""
    sink_values: Tensor
    mask: Tensor | None


class WindowPass:
    """Attends for the units of one pass; made by `WindowCache.begin`."""

    def __init__(
        self,
        decoder: Decoder,
        prefix: PrefixKV,
        buffer: KVBuffer,
        places: Sequence[UnitPlace],
        window: Window,
        advance: Tensor,
    ) -> None:
        self._advance = advance
        self.places = tuple(places)
        self.window = window
        self._rope = decoder.rope
        self._buffer = buffer
        self._prefix = prefix
        self._start = places[0].window_token
        self._first = places[0].first_token
        self._stop = places[-1].first_token + places[-1].token_count
        self._origin = places[0].window_position
        positions = buffer.positions(self._start, self._stop) - self._origin * advance
        positions += prefix.token_count
        self._key_tables = self._rope.tables(positions, prefix.keys)
        self._query_tables = self._key_tables.tail(self._stop - self._first)
        self._groups = [self._group(members) for members in _grouped(self.places)]

    @property
    def token_count(self) -> int:
        """Tokens of the units in the pass."""
        return self._stop - self._first

    def store(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Store the layer's new keys and values, (1, kv_heads, tokens, head_dim), only."""
        self._buffer.write(layer, self._first, key, value)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Tensor:
        """Store the layer's new keys and values, and attend (see AttentionSession)."""
        self.store(layer, key, value)
        keys, values = self._buffer.read(layer, self._start, self._stop)
        keys = self._rope.apply(keys, self._key_tables)
        query = self._rope.apply(query, self._query_tables)
        outputs = [
            core(
                query[:, :, group.rows],
                torch.cat([group.sink_keys[layer, None], keys[:, :, group.columns]], dim=2),
                torch.cat([group.sink_values[layer, None], values[:, :, group.columns]], dim=2),
                scaling=scaling,
                mask=group.mask,
            )
            for group in self._groups
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def _group(self, members: Sequence[UnitPlace]) -> _Group:
        first, last = members[0], members[-1]
        stop = last.first_token + last.token_count
        shifts = sorted({place.window_position - self._origin for place in members})
        sinks = torch.arange(self._prefix.token_count)
        tables = self._rope.tables(
            torch.cat([sinks + shift * self._advance for shift in shifts], dim=1), self._prefix.keys
        )
        repeated = self._prefix.keys.repeat(1, 1, len(shifts), 1)
        return _Group(
            rows=slice(first.first_token - self._first, stop - self._first),
            columns=slice(first.window_token - self._start, stop - self._start),
            sink_keys=self._rope.apply(repeated, tables),
            sink_values=self._prefix.values.repeat(1, 1, len(shifts), 1),
            mask=self._mask(members, shifts),
        )

    def _mask(self, members: Sequence[UnitPlace], shifts: Sequence[int]) -> Tensor | None:
        """Return who of the group sees what: (tokens, sinks and columns) bool."""
        device = self._prefix.keys.device
        first, last = members[0], members[-1]
        stop = last.first_token + last.token_count
        sink_count = self._prefix.token_count
        if len(members) == 1:
            key_count = sink_count + stop - first.window_token
            return lower_right_mask(first.token_count, key_count, device)
        counts = torch.tensor([place.token_count for place in members])
        starts = torch.tensor([place.window_token for place in members])
        windows = torch.tensor([shifts.index(p.window_position - self._origin) for p in members])
        rows = torch.arange(first.first_token, stop)[:, None]
        columns = torch.arange(first.window_token, stop)[None]
        own = (columns <= rows) & (columns >= starts.repeat_interleave(counts)[:, None])
        sink_window = torch.arange(len(shifts)).repeat_interleave(sink_count)[None]
        sinks = sink_window == windows.repeat_interleave(counts)[:, None]
        return torch.cat([sinks, own], dim=1).to(device)


def _grouped(places: Sequence[UnitPlace]) -> list[Sequence[UnitPlace]]:
    """Return runs of units of at most `_GROUP_TOKENS` tokens each, or of one unit."""
    starts, tokens = [0], 0
    for index, place in enumerate(places):
        tokens += place.token_count
        if tokens > _GROUP_TOKENS and index > starts[-1]:
            starts.append(index)
            tokens = place.token_count
    return [places[start:stop] for start, stop in pairwise([*starts, len(places)])]
