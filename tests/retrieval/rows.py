"""Random rows, and indexes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.index_writer import KeyIndexWriter

LAYERS, DIM, CHUNK = 3, 10, 4


def make_rows(count: int, seed: int = 0) -> NDArray[np.float32]:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((count, LAYERS, DIM), dtype=np.float32)


def create(path: Path, rows: NDArray[np.float32], *, epoch: int = 1) -> KeyIndexWriter:
    writer = KeyIndexWriter.create(
        path, layer_count=LAYERS, dim=DIM, epoch=epoch, chunk_row_count=CHUNK
    )
    for row in rows:
        writer.append(row)
    return writer
