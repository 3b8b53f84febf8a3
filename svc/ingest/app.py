"""What the ingest process is made of once the model is there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial

import torch
from transformers.utils import logging as transformers_logging

from kvstore.arena import Arena
from kvstore.deletion import sweep_tombstones
from kvstore.hotfile import clean_stale_hot_tails
from kvstore.incoming import sweep_incoming
from kvstore.limits import BlockLimits
from kvstore.paths import session_hash
from kvstore.sharedfile import clean_stale_files
from kvstore.space import check_room
from svc.config import Settings
from svc.data_dir import make_data_dir
from svc.engine.ingest_session import FrameUnit, StoreOptions, StreamIngest
from svc.engine.model import LoadedModel, load_model
from svc.engine.reduction.spec import ReductionSpec
from svc.engine.serving import model_config, serving_defaults
from svc.ingest.budget import disk_budget
from svc.ingest.changes import Changes
from svc.ingest.convert import Opening
from svc.ingest.identity import IdentityRules
from svc.ingest.media_worker import MediaReport, MediaWorker
from svc.ingest.ownership import Owned, Ownership, SoleOwner
from svc.ingest.pinning import spans_to_keep_of
from svc.ingest.push import Push
from svc.ingest.pushes import Pushes
from svc.ingest.ram import open_arena
from svc.ingest.repairs import IndexRepairs
from svc.ingest.session_records import Session
from svc.ingest.sessions import Sessions
from svc.ingest.sources import JoinedDecoder
from svc.ingest.stream import MakeWorker, StreamThread
from svc.ingest.sweeper import Sweeper
from svc.ingest.unit_builder import UnitBuilder
from svc.video.decoder import Decoder, open_decoder
from svc.video.frames import Media
from svc.video.limits import MIB, VideoLimits
from svc.video.sampler import Sampler, SamplerState
from svc.video.spool import Spool

logger = logging.getLogger(__name__)

SPOOL_FOLDER_NAME = "spool"
"""Beside the sessions: where files lie that cannot be decoded before they are complete."""
_FOREIGN_SHOWN = 10
MEDIA_LIMITS = VideoLimits(max_chunk_bytes=MIB)


class App:
    """Model, sessions and pushes of the process. Made on the encode thread, used on the loop."""

    def __init__(
        self,
        settings: Settings,
        model: LoadedModel,
        sessions: Sessions,
        encode_thread: StreamThread,
        media_threads: Executor,
        arena: Arena | None,
    ) -> None:
        """Internal: use `load`."""
        self.arena = arena
        """The RAM tier; whoever has the app closes it."""
        self.settings = settings
        self.sessions = sessions
        self.pushes = Pushes(max_pushes=settings.max_live_pushes)
        self.ownership: Ownership = SoleOwner()
        """Whose sessions are; set once, before calls are served."""
        self.changes = Changes(
            settings, sessions, self.pushes, lambda: self.ownership, self._forget
        )
        self.index_repairs = IndexRepairs(
            settings.data_dir,
            limits=BlockLimits(
                min_free_bytes=settings.min_free_bytes,
                budget=replace(disk_budget(settings), on_full="refuse"),
            ),
            shm_dir=settings.shm_dir,
            arena=arena,
            pushes=self.pushes,
            take=lambda session_id: self.ownership.take(session_id),
        )
        self.sweeper = Sweeper(
            settings,
            sessions,
            pushes=self.pushes,
            take=lambda session_id: self.ownership.take(session_id),
            delete=self.changes.delete_owned,
        )
        self._model = model
        self._encode_thread = encode_thread
        self._media_threads = media_threads

    @classmethod
    def load(cls, settings: Settings, encode_thread: StreamThread, media_threads: Executor) -> App:
        """Load the model, look the store over, and finish what a crash left there.

        Raises:
            EngineError: there is no such model, or it cannot be served.
            ConfigError: the settings do not fit the model.
            KVStoreError: an interrupted deletion cannot be finished.
        """
        root = make_data_dir(settings.data_dir)
        torch.set_num_threads(settings.threads_of("ingest"))
        config = replace(
            model_config(settings.model, settings.dtype, settings.device),
            vision_attention=settings.vision_attention,
        )
        defaults = serving_defaults(config)
        transformers_logging.disable_progress_bar()  # it would write between the lines of the log
        model = load_model(config, vision=True)
        sweep_tombstones(root)
        sweep_incoming(root)
        _spool(settings).clean()
        clean_stale_hot_tails(root, shm_dir=settings.shm_dir)
        clean_stale_files(root, "ram", shm_dir=settings.shm_dir)
        clean_stale_files(root, "use", shm_dir=settings.shm_dir)
        rules = IdentityRules(model, defaults, settings)
        sessions = Sessions(
            root,
            rules=rules,
            model=model.name,
            unit_frames=model.adapter.frames_per_unit,
        )
        _warn_of_foreign(sessions, model)
        arena = open_arena(settings, model, rules.kv_encoding)
        return cls(settings, model, sessions, encode_thread, media_threads, arena)

    async def open_push(self, opening: Opening) -> tuple[Push, Session, bool]:
        """Starts a push to a session, which is looked at once it is free.

        Returns the push, the session, and whether it joins video of another source.

        Raises:
            RequestError: it is finished, does not fit the model or holds another video, another
                process has it, or no push is admitted.
            KVStoreError: there is no such session, or its record is damaged.
        """
        session_id, source = opening.session_id, opening.source
        async with self.pushes.admission(session_id):
            await self.changes.find(session_id)  # a lease is of a session that is here
            owned = await self.ownership.take(session_id)
            try:
                session = await asyncio.to_thread(self.sessions.get_pushable, session_id)
                joins = await asyncio.to_thread(
                    self.sessions.admit_source, session, source, join=opening.join_source
                )
                push = self._make_push(session, opening.media, owned, joins=joins)
                self.pushes.start(push)
            except BaseException:
                await owned.release()
                raise
        return push, session, joins

    def _forget(self, session_id: str) -> None:
        if self.arena is not None:
            self.arena.forget(session_hash(session_id))

    def _make_push(self, session: Session, media: Media, owned: Owned, *, joins: bool) -> Push:
        spool = _spool(self.settings)
        return Push(
            session_id=session.session_id,
            owned=owned,
            open_stream=lambda: self._open_stream(session, owned),
            make_worker=_worker_factory(self._model, session, media, spool, joins=joins),
            finish_session=lambda: self.sessions.finish(session.session_id),
            encode_thread=self._encode_thread,
            media_threads=self._media_threads,
            credit_items=self.settings.credit_items,
        )

    def _open_stream(self, session: Session, owned: Owned) -> StreamIngest:
        settings = self.settings
        limits = session.settings.block_limits(settings, session.keeping.in_force(settings))
        if limits.budget.on_full == "refuse":  # now, rather than when the first block is full
            check_room(settings.data_dir, session.session_id, limits)
        store = StoreOptions(
            root=settings.data_dir,
            limits=limits,
            encoding=session.settings.kv_encoding,
            shm_dir=settings.shm_dir,
            hot_tail_bytes=settings.hot_tail_bytes or None,
            may_commit=owned.held,
            min_epoch=owned.epoch,
            arena=self.arena,
            pinned=partial(spans_to_keep_of, settings.data_dir, session.session_id),
        )
        return StreamIngest.open(
            self._model,
            session.settings.window,
            session.session_id,
            store,
            ReductionSpec.parse(session.settings.reduction),
            self._model.adapter.shaped(session.settings.shape),
        )


def _warn_of_foreign(sessions: Sessions, model: LoadedModel) -> None:
    """Tells once of sessions that cannot be gone on with; each call about one is refused."""
    foreign = sessions.foreign()
    if foreign:
        names = list(foreign)
        logger.warning(
            "the store holds sessions that the served model cannot go on with",
            extra={
                "session_count": len(names),
                "sessions": ", ".join(names[:_FOREIGN_SHOWN]),
                "made_with": ", ".join(sorted(set(foreign.values()))[:_FOREIGN_SHOWN]),
                "serving": f"{model.name} {model.digest}",
            },
        )


def _spool(settings: Settings) -> Spool:
    return Spool(
        folder=settings.data_dir / SPOOL_FOLDER_NAME, min_free_bytes=settings.min_free_bytes
    )


def _worker_factory(
    model: LoadedModel, session: Session, media: Media, spool: Spool, *, joins: bool
) -> MakeWorker:
    """Returns what makes the media side of a push, given where the session stopped."""

    def make_worker(
        resume: bytes | None,
        put: Callable[[FrameUnit], None],
        report: Callable[[MediaReport], None],
    ) -> MediaWorker:
        state = None if resume is None else SamplerState.from_json(resume)
        sampler = Sampler(session.settings.sampling, state)
        decoder: Decoder = open_decoder(media, MEDIA_LIMITS, spool)
        if joins and state is not None:
            decoder = JoinedDecoder(decoder, state.last_pts_s)
        return MediaWorker(
            decoder=decoder,
            sampler=sampler,
            units=UnitBuilder(model.adapter.shaped(session.settings.shape)),
            put=put,
            report=report,
        )

    return make_worker
