"""A process that writes a ring without pause, which tests start and kill."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from kvstore.readtrace import RECORD_WORDS, ReadTrace

_BATCH = 1500


def main() -> None:
    """Write records of four equal words, which count up."""
    root = Path(sys.argv[1])
    trace = ReadTrace.create(root, shm_dir=root, capacity=4096)
    start = 0
    while True:
        words = np.arange(start, start + _BATCH, dtype=np.uint64)
        trace.write(np.repeat(words[:, None], RECORD_WORDS, axis=1))
        if start == 0:
            print("writing", flush=True)
        start += _BATCH


if __name__ == "__main__":
    main()
