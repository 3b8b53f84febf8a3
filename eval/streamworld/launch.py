"""Starts the training processes."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
from contextlib import closing

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from eval.streamworld.trainer import Run, Trainer

# glibc would hand large buffers back to the system after every step and fault them in again
_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "0",
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "256000000",
}


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, name="follow-parent", daemon=True).start()


def _work(rank: int, processes: int, port: int, run: Run, resume: bool) -> None:
    _end_with_parent()
    torch.set_num_threads(1)
    if processes > 1:
        dist.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=processes
        )
    trainer = Trainer(run, rank=rank)
    if resume:
        trainer.load()
    trainer.train()
    if processes > 1:
        dist.destroy_process_group()


def launch(run: Run, *, processes: int, resume: bool) -> None:
    """Train in `processes` processes of one thread each, gradients averaged.

    Args:
        run: What to train; its directory is created.
        processes: 1 or more; 2 on a machine of two cores.
        resume: Continue the run in the directory instead of starting one.
    """
    run.directory.mkdir(parents=True, exist_ok=True)
    os.environ.update(_ENVIRONMENT)
    mp.spawn(  # type: ignore[attr-defined,no-untyped-call]
        _work, args=(processes, _free_port(), run, resume), nprocs=processes
    )
