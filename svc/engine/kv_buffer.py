"""Keys and values of a stream's window, in memory that does not grow with the stream."""

from __future__ import annotations

import torch
from torch import Tensor

from svc.engine.decoder import Decoder


class KVBuffer:
    """Holds a run of consecutive tokens, addressed by their index in the stream.

    New tokens go to the end; when the end is reached, the tokens still wanted move to the front.
    A quarter of spare room keeps that to a few copies per token, and memory at 5/4 of the most
    that was ever wanted at once.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._base = 0  # stream index of slot 0
        self._allocate(0)

    @property
    def capacity(self) -> int:
        """Tokens that the buffer has room for."""
        return self._positions.shape[1]

    def reserve(self, start: int, stop: int, new_stop: int) -> None:
        """Keep tokens [start, stop), make room for [stop, new_stop), forget all before."""
        if new_stop - self._base <= self.capacity:
            return
        kept = slice(start - self._base, stop - self._base)
        kept_count, needed = stop - start, new_stop - start
        keys, values = self._keys[:, :, kept], self._values[:, :, kept]
        positions = self._positions[:, kept].clone()
        if needed > self.capacity:
            self._allocate(needed + needed // 4)
        elif kept_count > kept.start:  # the ranges overlap: copy_ between them is undefined
            keys, values = keys.clone(), values.clone()
        self._keys[:, :, :kept_count] = keys
        self._values[:, :, :kept_count] = values
        self._positions[:, :kept_count] = positions
        self._base = start

    def place(self, first: int, positions: Tensor) -> None:
        """Set the stream positions, (axes, n) int64 on the CPU, of tokens from `first` on."""
        start = first - self._base
        self._positions[:, start : start + positions.shape[1]] = positions

    def write(self, layer: int, first: int, keys: Tensor, values: Tensor) -> None:
        """Set keys and values, (1, kv_heads, n, head_dim), of tokens from index `first` on."""
        slots = slice(first - self._base, first - self._base + keys.shape[2])
        self._keys[layer, :, slots] = keys[0]
        self._values[layer, :, slots] = values[0]

    def read(self, layer: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return views of keys and values of tokens [start, stop), (1, kv_heads, n, head_dim)."""
        slots = slice(start - self._base, stop - self._base)
        return self._keys[layer, None, :, slots], self._values[layer, None, :, slots]

    def positions(self, start: int, stop: int) -> Tensor:
        """Return a view of the stream positions of tokens [start, stop), (axes, n) int64."""
        return self._positions[:, start - self._base : stop - self._base]

    def copy_out(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return own copies of keys and values, (layers, n, kv_heads, head_dim)."""
        slots = slice(start - self._base, stop - self._base)
        keys = self._keys[:, :, slots].transpose(1, 2).contiguous()
        values = self._values[:, :, slots].transpose(1, 2).contiguous()
        return keys, values

    def _allocate(self, capacity: int) -> None:
        decoder = self._decoder
        shape = (decoder.layer_count, decoder.kv_head_count, capacity, decoder.head_dim)
        self._keys = torch.empty(shape, dtype=decoder.dtype, device=decoder.device)
        self._values = torch.empty_like(self._keys)
        self._positions = torch.empty((decoder.rope.axis_count, capacity), dtype=torch.int64)
