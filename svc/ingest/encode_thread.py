"""The one thread of the process that touches the model and the stores.

Every live session has a lane: a bounded queue of units, and jobs (open, flush, close) that run in
order with them. The thread serves the lanes that have work in turn, a bounded number of units at a
time, so one session that is far behind does not hold up the others.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

U = TypeVar("U")
T = TypeVar("T")


class LaneFailedError(Exception):
    """Units of this lane could not be encoded; the cause is `__cause__`."""


class Lane(Generic[U]):
    """A session's place in the encode thread. Units and jobs run in the order they came.

    After a failed encode the lane takes no units, and drops those that wait; jobs still run, for
    the session has to be closed.
    """

    def __init__(
        self,
        thread: EncodeThread,
        encode: Callable[[Sequence[U]], None],
        *,
        capacity_units: int,
    ) -> None:
        """`encode` is called on the thread with 1 to `units_per_pass` consecutive units."""
        self._thread = thread
        self._encode = encode
        self._capacity_units = capacity_units
        self._waiting: deque[U | _Job] = deque()
        self._waiting_units = 0
        self._failure: Exception | None = None

    def put(self, unit: U) -> None:
        """Queues a unit; blocks while `capacity_units` of this lane wait.

        Raises:
            LaneFailedError: an earlier unit could not be encoded.
        """
        changed = self._thread.changed
        with changed:
            while self._waiting_units >= self._capacity_units and self._failure is None:
                changed.wait()
            if self._failure is not None:
                raise LaneFailedError from self._failure
            self._waiting_units += 1
            self._enter(unit)

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Runs `function` on the thread, after everything queued before; never blocks."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # from here it cannot be cancelled: it will run

        def run() -> None:
            try:
                future.set_result(function())
            except Exception as error:  # noqa: BLE001 - it travels to whoever waits
                future.set_exception(error)

        with self._thread.changed:
            self._enter(_Job(run))
        return future

    def _enter(self, work: U | _Job) -> None:
        if not self._waiting:
            self._thread.ready.append(self)
        self._waiting.append(work)
        self._thread.changed.notify_all()

    def take(self, unit_count: int) -> Callable[[], None]:
        """Takes the next step off the queue: one job, or up to `unit_count` units."""
        first = self._waiting.popleft()
        if isinstance(first, _Job):
            return first.run
        units = [first]
        while len(units) < unit_count and self._waiting:
            head = self._waiting[0]
            if isinstance(head, _Job):
                break
            units.append(head)
            self._waiting.popleft()
        self._waiting_units -= len(units)
        return lambda: self._run_units(units)

    def _run_units(self, units: list[U]) -> None:
        try:
            self._encode(units)
        except Exception as error:  # noqa: BLE001 - it travels to whoever puts or waits
            with self._thread.changed:
                self._failure = error
                had_work = self.has_work
                self._waiting = deque(w for w in self._waiting if isinstance(w, _Job))
                self._waiting_units = 0
                if had_work and not self.has_work:
                    self._thread.ready.remove(self)
                self._thread.changed.notify_all()

    @property
    def failure(self) -> Exception | None:
        """Why units could not be encoded, if so."""
        return self._failure

    @property
    def has_work(self) -> bool:
        """Whether anything waits."""
        return bool(self._waiting)


def _no_units(units: Sequence[Any]) -> None:
    raise AssertionError("a lane of jobs only")


class _Job:
    """A function in a lane; a class of its own tells it from a unit."""

    def __init__(self, run: Callable[[], None]) -> None:
        self.run = run


class EncodeThread:
    """Serves lanes in turn. Make lanes from any thread; `stop` once nothing more will come."""

    def __init__(self, *, units_per_pass: int) -> None:
        """`units_per_pass`: units of one lane that are encoded before another lane's turn."""
        self.changed = threading.Condition()
        self.ready: deque[Lane[Any]] = deque()
        """The lanes with work, next one first; guarded by `changed`."""
        self._units_per_pass = units_per_pass
        self._stopping = False
        # A daemon: a pass that hangs must not keep a process alive that was told to stop.
        self._thread = threading.Thread(target=self._run, name="encode", daemon=True)
        self._thread.start()

    def lane(self, encode: Callable[[Sequence[U]], None]) -> Lane[U]:
        """Makes a lane; it needs no removal, an empty lane costs nothing."""
        return Lane(self, encode, capacity_units=2 * self._units_per_pass)

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Runs `function` on the thread, in its turn among the lanes; never blocks."""
        return Lane[Any](self, _no_units, capacity_units=1).submit(function)

    def stop(self, timeout_s: float) -> bool:
        """Runs what is queued, then ends the thread; False if that took longer than allowed."""
        with self.changed:
            self._stopping = True
            self.changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self.changed:
                while not self.ready and not self._stopping:
                    self.changed.wait()
                if not self.ready:
                    return
                lane = self.ready.popleft()
                step = lane.take(self._units_per_pass)
                if lane.has_work:
                    self.ready.append(lane)
                self.changed.notify_all()
            step()
