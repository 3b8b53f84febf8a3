"""Sessions as they lie in the store: created, read, renamed, finished, deleted. Calls block."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kvstore.deletion import delete_session
from kvstore.errors import KVStoreError, SessionExistsError, SessionNotFoundError
from kvstore.paths import check_session_id
from kvstore.pins import Span
from kvstore.session import (
    SessionRecord,
    change_session,
    create_session,
    list_sessions,
    load_session,
    session_ids,
)
from svc.ingest.identity import DEFAULT_FRAMES, AskedFrames, IdentityRules
from svc.ingest.keeping import KEEPING_KEY, KeepingRules
from svc.ingest.session_records import (
    Session,
    check_agrees,
    ended,
    finished_error,
    session_of,
    with_settings,
)
from svc.ingest.sources import SOURCES_KEY, SourceLabel, admit
from svc.ingest.stats import SessionStats, StatsReader

logger = logging.getLogger(__name__)


class Sessions:
    """The sessions of one store, as this process may serve them. Thread-safe."""

    def __init__(self, root: Path, *, rules: IdentityRules, model: str, unit_frames: int) -> None:
        """`model` is what people call the model; `unit_frames` are the frames of a unit."""
        self._root = root
        self._rules = rules
        self._model = model
        self._unit_frames = unit_frames
        self._stats = StatsReader(root)
        self._updating = threading.Lock()

    def create(
        self,
        session_id: str,
        *,
        display_name: str,
        sample_fps: float,
        window_tokens: int,
        reduction: str = "",
        frames: AskedFrames = DEFAULT_FRAMES,
        keeping: KeepingRules | None = None,
        exist_ok: bool,
        on_made: Callable[[], None] = lambda: None,
    ) -> Session:
        """Creates a session; 0 stands for a default. With `exist_ok` one that agrees is returned.

        `on_made` is called when it was not there before.

        Raises:
            RequestError: a setting is out of range, or the session that exists does not agree.
            KVStoreError: the name is none or is taken, or the record cannot be written.
        """
        check_session_id(session_id)
        keeping = keeping or KeepingRules()
        keeping.check()
        settings = self._rules.choose(
            sample_fps=sample_fps,
            window_tokens=window_tokens,
            reduction=reduction,
            frames=frames,
        )
        record = SessionRecord(
            session_id=session_id,
            created_unix_s=time.time(),
            unit_period_s=self._unit_frames / settings.sample_fps,
            identity=self._rules.identity(settings),
            settings={
                "display_name": display_name,
                "model": self._model,
                KEEPING_KEY: keeping.to_record(),
                **asdict(settings),
            },
        )
        try:
            create_session(self._root, record)
        except SessionExistsError:
            if not exist_ok:
                raise
            existing = load_session(self._root, session_id)
            mismatch = self._rules.mismatch(existing.identity)
            if mismatch is not None:
                raise mismatch from None
            given: dict[str, float | str] = {
                "sample_fps": sample_fps,
                "window_tokens": window_tokens,
                "reduction": reduction and settings.reduction,
                "unit_tokens": frames.unit_tokens,
            }
            check_agrees(existing, settings=given, keeping=keeping)
            return session_of(existing)
        on_made()
        logger.info("session created", extra={"session": session_id})
        return session_of(record)

    def get(self, session_id: str) -> Session:
        """Returns a session.

        Raises:
            KVStoreError: there is none, or its record is damaged.
        """
        return session_of(load_session(self._root, session_id))

    def get_pushable(self, session_id: str) -> Session:
        """Returns a session to which this process can add video.

        Raises:
            RequestError: it is finished, or was encoded in another way than would be now.
            KVStoreError: there is none, or its record is damaged.
        """
        record = load_session(self._root, session_id)
        if record.state == "finished":
            raise finished_error(session_id)
        mismatch = self._rules.mismatch(record.identity)
        if mismatch is not None:
            raise mismatch
        return session_of(record)

    def admit_source(self, session: Session, source: SourceLabel | None, *, join: bool) -> bool:
        """Keeps which video is pushed to a session that no push has open; see `sources.admit`.

        Returns whether it is joined to video of another source.

        Raises:
            RequestError: SOURCE_MISMATCH: it holds video of another source, and not to `join`.
            KVStoreError: it is gone or damaged, or its record cannot be written.
        """
        with self._updating:
            record = load_session(self._root, session.session_id)
            stored = record.settings.get(SOURCES_KEY, [])
            if source is None and not stored:
                return False
            admission = admit(
                session.session_id,
                stored,
                source,
                durable_unit_count=self.stats(session).durable_unit_count,
                join=join,
            )
            if admission.sources != stored:
                self._change(
                    session.session_id,
                    lambda record: with_settings(record, {SOURCES_KEY: admission.sources}),
                )
        return admission.joins

    def page(self, *, after: str, count: int) -> tuple[list[Session], bool]:
        """Returns up to `count` sessions with ids behind `after`, and whether there are more.

        A session whose record is damaged is left out, with an error in the log.
        """
        ids = [session_id for session_id in session_ids(self._root) if session_id > after]
        found = []
        for session_id in ids[:count]:
            try:
                found.append(self.get(session_id))
            except SessionNotFoundError:
                continue  # deleted since the ids were listed
            except KVStoreError as error:
                logger.error(
                    "session left out of a list",
                    extra={"session": session_id, "reason": str(error)},
                )
        return found, len(ids) > count

    def update(
        self,
        session_id: str,
        *,
        display_name: str | None = None,
        keeping: KeepingRules | None = None,
        keeping_fields: Collection[str] = (),
    ) -> Session:
        """Gives a session another display name, if one is given, and the named fields of `keeping`.

        Raises:
            RequestError: the rules cannot be kept to.
            KVStoreError: there is no such session, or its record cannot be read or written.
        """
        given = keeping or KeepingRules()
        given.check()

        def change(record: SessionRecord) -> SessionRecord:
            rules = KeepingRules.of_record(record.settings).changed(given, keeping_fields)
            changes: dict[str, Any] = {KEEPING_KEY: rules.to_record()}
            if display_name is not None:
                changes["display_name"] = display_name
            return with_settings(record, changes)

        with self._updating:
            return session_of(self._change(session_id, change))

    def finish(self, session_id: str) -> Session:
        """Marks a session finished that is not.

        Raises:
            RequestError: SESSION_FINISHED.
            KVStoreError, OSError: its record cannot be read or written.
        """
        with self._updating:
            finished = self._change(session_id, ended)
        logger.info("session finished", extra={"session": session_id})
        return session_of(finished)

    def delete(self, session_id: str) -> None:
        """Deletes a session with its memory; a crash leaves it whole or gone.

        Raises:
            KVStoreError: there is none, or a writer is at work.
        """
        with self._updating:
            delete_session(self._root, session_id)

    def stats(self, session: Session) -> SessionStats:
        """Returns what is remembered of a session now.

        Raises:
            KVStoreError: there is no such session, or it is damaged.
        """
        return self._stats.read(session.session_id, session.created_unix_s)

    def foreign(self) -> dict[str, str]:
        """Returns the sessions that this process cannot go on with, and what each was made with.

        Damaged records are left out, with an error in the log.
        """
        return {
            record.session_id: f"{record.settings.get('model')} {record.identity.get('model')}"
            for record in list_sessions(self._root)
            if self._rules.mismatch(record.identity) is not None
        }

    def change_pins(
        self, session_id: str, change: Callable[[tuple[Span, ...]], tuple[Span, ...]]
    ) -> Session:
        """Replaces the spans that are pinned by what `change` makes of them.

        Raises:
            KVStoreError: there is no such session, its record cannot be read or written, or the
                spans cannot be.
        """
        with self._updating:
            changed = self._change(
                session_id,
                lambda record: replace(record, pinned_spans=change(record.pinned_spans)),
            )
        return session_of(changed)

    def _change(
        self, session_id: str, change: Callable[[SessionRecord], SessionRecord]
    ) -> SessionRecord:
        return change_session(self._root, session_id, change)
