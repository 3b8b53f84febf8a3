"""Threads for blocking work that may hang: none of them keeps the process from ending."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DaemonThreads(Executor):
    """Runs every call on a new thread; whoever submits bounds how many there are.

    The threads of `ThreadPoolExecutor` are joined when the interpreter ends, also after
    `shutdown(wait=False)`: one that hangs in a decoder would hold up the exit for ever.
    """

    def __init__(self, name: str) -> None:
        """`name` is what the threads are called."""
        self._name = name

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Runs `fn` on a thread of its own."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - it travels to whoever waits
                future.set_exception(error)

        threading.Thread(target=run, name=self._name, daemon=True).start()
        return future
