"""One run: all streams pushed at once to one service, questions put meanwhile, memory watched."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rich.progress import Progress

from eval.soak.faults import fault_count
from eval.soak.plan import FPS, Scheduled, Stream
from eval.soak.record import Record, answered, as_json, read_records, refused
from eval.soak.sampling import Sample, take_sample
from eval.streamworld.service import OwnService, own_service
from svc.client import (
    LookbackClient,
    LookbackError,
    PushEvent,
    PushFinished,
    PushProgress,
    PushReconnecting,
    Session,
    SessionSettings,
    SessionStats,
)
from svc.video.sources import open_source

_SHARED_MEMORY = Path("/dev/shm")
_ANSWERS = "answers.jsonl"
_TOTALS = "totals.json"
_MIB = 2**20
_LINE_EVERY_S = 30.0
_WATCHED_AFTERWARDS_S = 15.0
"""Three times as long as sessions that nobody asks about go unlooked at."""
_WHOLE = {"reduction": "none", "kv_encoding": "model"}
"""Of units that are reduced and rounded already, hardly anything is left to be thinned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """How a run is watched, and when it is over."""

    sample_every_s: float
    give_up_at_s: float
    """By time.monotonic: pushes stop then, wherever they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What a run came to, in numbers."""

    pushed_s: float
    """Stream time that was visible at the end, over all sessions."""
    took_s: float
    session_disk_bytes: tuple[int, ...]
    token_count: int
    """Over all sessions, of what is remembered."""
    reconnect_count: int
    """How often a push was cut off."""
    fault_count: int
    """Lines in the service's log that tell of faults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A run that is over."""

    totals: Totals
    records: tuple[Record, ...]
    samples: tuple[Sample, ...]
    """From the first that is visible until a while after the last push ended."""


def read_outcome(folder: Path) -> Outcome | None:
    """A run that came to its end earlier, without its samples; None where none has."""
    totals = folder / _TOTALS
    if not totals.exists():
        return None
    fields = json.loads(totals.read_text())
    fields["session_disk_bytes"] = tuple(fields["session_disk_bytes"])
    records = tuple(read_records(folder / _ANSWERS))
    return Outcome(totals=Totals(**fields), records=records, samples=())


class Head:
    """How far a stream is visible; the push moves it, questions wait for it."""

    def __init__(self) -> None:
        self._moved = asyncio.Condition()
        self.ended = False
        self.visible_s = -1.0

    async def move(self, visible_s: float | None) -> None:
        """The stream is visible up to here."""
        async with self._moved:
            self.visible_s = max(self.visible_s, -1.0 if visible_s is None else visible_s)
            self._moved.notify_all()

    async def end(self) -> None:
        """It goes no further."""
        async with self._moved:
            self.ended = True
            self._moved.notify_all()

    async def reached(self, when_s: float) -> bool:
        """Returns whether the stream got there, once that is known."""
        async with self._moved:
            await self._moved.wait_for(lambda: self.visible_s >= when_s or self.ended)
            return self.visible_s >= when_s


class Run:
    """Runs once, by `outcome`."""

    def __init__(
        self,
        folder: Path,
        streams: Sequence[Stream],
        settings: Mapping[str, object],
        watch: Watch,
        progress: Progress,
    ) -> None:
        """`folder`: of its own, emptied first; holds the store, the log and every answer."""
        self._folder = folder
        self._streams = streams
        self._settings = settings
        self._watch = watch
        self._progress = progress
        self._length_s = sum(stream.length_s for stream in streams)
        self._bar = progress.add_task(folder.name, total=self._length_s, state="")
        self._heads = {stream.session_id: Head() for stream in streams}
        self._stop = asyncio.Event()
        self._records: list[Record] = []
        self._samples: list[Sample] = []
        self._reconnect_count = 0
        self._next_line_s = 0.0

    async def outcome(self) -> Outcome:
        """Pushes, asks, watches.

        Raises:
            ServiceFailedError: the service did not come up.
            LookbackError: a push failed.
        """
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        log = self._folder / "service.log"
        with tempfile.TemporaryDirectory(prefix="lookback-soak-", dir=_SHARED_MEMORY) as shared:
            settings = {"shm_dir": shared, "drain_s": 2.0, **_WHOLE, **self._settings}
            with own_service(self._folder / "data", log, "builtin", settings) as service:
                began_s = time.monotonic()
                where = service.addresses
                async with (
                    LookbackClient(where.ingest, where.qa) as client,
                    self._watched(service, Path(shared), began_s),
                ):
                    await self._push_and_ask(client)
                    took_s = time.monotonic() - began_s
                    stats = [
                        _stats_of(await client.get_session(stream.session_id))
                        for stream in self._streams
                    ]
                    await asyncio.sleep(_WATCHED_AFTERWARDS_S)
        lines = log.read_text(errors="replace").splitlines()
        totals = Totals(
            pushed_s=self._pushed_s(),
            took_s=took_s,
            session_disk_bytes=tuple(each.disk_bytes for each in stats),
            token_count=sum(each.token_count for each in stats),
            reconnect_count=self._reconnect_count,
            fault_count=fault_count(lines),
        )
        (self._folder / "samples.json").write_text(json.dumps([asdict(s) for s in self._samples]))
        (self._folder / _TOTALS).write_text(json.dumps(asdict(totals)))
        return Outcome(totals=totals, records=tuple(self._records), samples=tuple(self._samples))

    async def _push_and_ask(self, client: LookbackClient) -> None:
        with (self._folder / _ANSWERS).open("w") as file:

            async def ask_all(stream: Stream) -> None:
                head = self._heads[stream.session_id]
                for asked in stream.questions:
                    if not await head.reached(asked.when_s):
                        return
                    record = await self._ask(client, stream, asked, head.visible_s)
                    self._records.append(record)
                    file.write(as_json(record) + "\n")

            try:
                async with asyncio.TaskGroup() as group:
                    for stream in self._streams:
                        group.create_task(self._push(client, stream))
                        group.create_task(ask_all(stream))
            except ExceptionGroup as faults:
                raise faults.exceptions[0] from faults  # the first ended the others

    async def _push(self, client: LookbackClient, stream: Stream) -> None:
        head = self._heads[stream.session_id]
        settings = SessionSettings(sample_fps=float(FPS))
        await client.create_session(stream.session_id, settings=settings)
        source = open_source(str(stream.clip))
        pushing = client.push(stream.session_id, source, stop=self._stop)
        try:
            async with contextlib.aclosing(pushing) as events:
                async for event in events:
                    await self._heard(head, event)
        finally:
            await head.end()

    async def _heard(self, head: Head, event: PushEvent) -> None:
        match event:
            case PushReconnecting():
                self._reconnect_count += 1
            case PushProgress():
                await head.move(event.visible_pts_s)
            case PushFinished(progress=progress):
                await head.move(progress.visible_pts_s)
            case _:
                pass
        self._progress.update(self._bar, completed=self._pushed_s())

    def _pushed_s(self) -> float:
        """Stream time that is visible, over all sessions."""
        return sum(head.visible_s + float(1 / FPS) for head in self._heads.values())

    async def _ask(
        self, client: LookbackClient, stream: Stream, asked: Scheduled, visible_s: float
    ) -> Record:
        question = asked.question
        choices = question.options if asked.as_choice else ()
        try:
            answer = await client.answer(
                stream.session_id,
                question.text,
                asked_at_s=question.asked_at_s,
                choices=choices,
            )
        except LookbackError as error:
            return refused(stream.session_id, asked, visible_s, error)
        return answered(stream.session_id, asked, visible_s, answer)

    @contextlib.asynccontextmanager
    async def _watched(
        self, service: OwnService, shared: Path, began_s: float
    ) -> AsyncIterator[None]:
        """Takes samples while the block lasts, and stops the pushes when time is up."""

        async def watch() -> None:
            data = self._folder / "data"
            while True:
                heads = self._heads.values()
                all_pushed = all(head.visible_s >= 0 and not head.ended for head in heads)
                look = partial(
                    take_sample,
                    service,
                    data,
                    shared,
                    began_s,
                    all_pushed=all_pushed,
                    pushed_fraction=self._pushed_s() / self._length_s,
                )
                sample = await asyncio.to_thread(look)
                if any(head.visible_s >= 0 for head in heads):
                    self._samples.append(sample)
                    self._show(sample)
                if time.monotonic() >= self._watch.give_up_at_s:
                    self._stop.set()
                await asyncio.sleep(self._watch.sample_every_s)

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching

    def _show(self, sample: Sample) -> None:
        memory = ", ".join(
            f"{name} {process.memory.anonymous / _MIB:.0f} MiB"
            for name, process in sample.processes.items()
        )
        state = (
            f"{len(self._records)} answers; {memory}; shared {sample.shared_bytes / _MIB:.0f} MiB; "
            f"disk {sample.disk_bytes / _MIB:.0f} MiB"
        )
        self._progress.update(self._bar, state=state)
        if not self._progress.console.is_terminal and time.monotonic() > self._next_line_s:
            self._next_line_s = time.monotonic() + _LINE_EVERY_S
            done_h = sum(head.visible_s for head in self._heads.values()) / 3600
            line = f"{self._folder.name}: {done_h:.2f} h; {state}"
            self._progress.console.print(line, soft_wrap=True)


def _stats_of(session: Session) -> SessionStats:
    if session.stats is None:
        raise RuntimeError(f"what session {session.session_id!r} holds cannot be read")
    return session.stats
