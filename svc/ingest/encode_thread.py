"""The one thread of the process that touches the model and the stores.

Every live session has a lane: a bounded queue of units, and jobs (open, flush, close) that run in
order with them. The thread serves the lanes that have work in turn: a job, or a bounded number of
units, of as many lanes as have some. So a session that is far behind does not hold up the others,
and many live ones share a pass of the model.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import islice, takewhile
from typing import Any, Generic, TypeAlias, TypeVar, cast

S = TypeVar("S")
U = TypeVar("U")
T = TypeVar("T")

Encode: TypeAlias = Callable[[Sequence[tuple[S, Sequence[U]]]], Sequence[Exception | None]]
"""(streams, each with its next units) -> per stream what went wrong."""


class LaneFailedError(Exception):
    """Units of this lane could not be encoded; the cause is `__cause__`."""


class Lane(Generic[S, U]):
    """A session's place in the encode thread. Units and jobs run in the order they came.

    After a failed encode the lane takes no units, and drops those that wait; jobs still run, for
    the session has to be closed.
    """

    def __init__(
        self,
        thread: EncodeThread[S, U],
        stream: S,
        told: Callable[[Exception | None], None],
        *,
        capacity_units: int,
    ) -> None:
        """Internal: use `EncodeThread.lane`."""
        self.stream = stream
        self._thread = thread
        self._told = told
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

    def take_job(self) -> Callable[[], None] | None:
        """Takes what is next off the queue, if that is a job."""
        if not isinstance(self._waiting[0], _Job):
            return None
        job = self._waiting.popleft()
        assert isinstance(job, _Job)
        return job.run

    def next_units(self, most: int) -> int:
        """Returns how many units are next, up to `most`."""
        ahead = takewhile(lambda work: not isinstance(work, _Job), self._waiting)
        return sum(1 for _ in islice(ahead, most))

    def take_units(self, count: int) -> list[U]:
        """Takes the next `count` units off the queue."""
        self._waiting_units -= count
        return [cast(U, self._waiting.popleft()) for _ in range(count)]

    def tell(self, error: Exception | None) -> None:
        """Says how the units went that were taken; called on the thread."""
        if error is not None:
            with self._thread.changed:
                self._failure = error
                had_work = self.has_work
                self._waiting = deque(w for w in self._waiting if isinstance(w, _Job))
                self._waiting_units = 0
                if had_work and not self.has_work:
                    self._thread.ready.remove(self)
                self._thread.changed.notify_all()
        self._told(error)

    @property
    def failure(self) -> Exception | None:
        """Why units could not be encoded, if so."""
        return self._failure

    @property
    def has_work(self) -> bool:
        """Whether anything waits."""
        return bool(self._waiting)


class _Job:
    """A function in a lane; a class of its own tells it from a unit."""

    def __init__(self, run: Callable[[], None]) -> None:
        self.run = run


class EncodeThread(Generic[S, U]):
    """Serves lanes in turn. Make lanes from any thread; `stop` once nothing more will come."""

    def __init__(self, encode: Encode[S, U], *, units_per_pass: int) -> None:
        """Start the thread.

        Args:
            encode: called on it with the next units of each of some lanes' streams.
            units_per_pass: most units of one call. Lanes share it evenly.
        """
        self.changed = threading.Condition()
        self.ready: deque[Lane[Any, Any]] = deque()
        """The lanes with work, next one first; guarded by `changed`."""
        self._encode = encode
        self._units_per_pass = units_per_pass
        self._stopping = False
        # A daemon: a pass that hangs must not keep a process alive that was told to stop.
        self._thread = threading.Thread(target=self._run, name="encode", daemon=True)
        self._thread.start()

    def lane(self, stream: S, told: Callable[[Exception | None], None]) -> Lane[S, U]:
        """Makes a lane; it needs no removal, an empty lane costs nothing.

        Args:
            stream: whose units come.
            told: called on the thread after each call that held units of it, with what went wrong.
        """
        return Lane(self, stream, told, capacity_units=2 * self._units_per_pass)

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Runs `function` on the thread, in its turn among the lanes; never blocks."""
        jobs: Lane[Any, Any] = Lane(self, None, lambda error: None, capacity_units=1)
        return jobs.submit(function)

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
                step = self._next_step()
                self.changed.notify_all()
            step()

    def _next_step(self) -> Callable[[], None]:
        """Takes the next lane's job, or units of it and of the lanes after it that have some."""
        first = self.ready[0]
        job = first.take_job()
        if job is not None:
            self._send_back([first])
            return job
        waiting = {lane: lane.next_units(self._units_per_pass) for lane in self.ready}
        lanes = [lane for lane, count in waiting.items() if count][: self._units_per_pass]
        counts = shared([waiting[lane] for lane in lanes], self._units_per_pass)
        taken = [(lane, lane.take_units(count)) for lane, count in zip(lanes, counts, strict=True)]
        self._send_back(lanes)
        return partial(self._run_units, taken)

    def _send_back(self, lanes: Sequence[Lane[Any, Any]]) -> None:
        """Puts lanes that were served behind all others, or nowhere when they have no work."""
        for lane in lanes:
            self.ready.remove(lane)
            if lane.has_work:
                self.ready.append(lane)

    def _run_units(self, taken: Sequence[tuple[Lane[S, U], list[U]]]) -> None:
        try:
            found = list(self._encode([(lane.stream, units) for lane, units in taken]))
        except Exception as error:  # noqa: BLE001 - it travels to whoever puts or waits
            found = [error] * len(taken)
        for (lane, _), fault in zip(taken, found, strict=True):
            lane.tell(fault)


def shared(wanted: Sequence[int], total: int) -> list[int]:
    """Returns how much of `total` each gets: evenly, and no more than it wants."""
    given = [0] * len(wanted)
    left = min(total, sum(wanted))
    while left:
        for index, want in enumerate(wanted):
            if left and given[index] < want:
                given[index] += 1
                left -= 1
    return given
