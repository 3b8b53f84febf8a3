"""Which ownership the settings ask for: of everything, or by leases of a registry."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from kvstore.errors import KVStoreError
from svc.config import ConfigError, Settings
from svc.ingest.ownership import Ownership, SoleOwner
from svc.ingest.registered import RegisteredOwner, StoredSession
from svc.ingest.sessions import Sessions
from svc.registry import leases
from svc.registry.connection import Connection
from svc.registry.process import this_process
from svc.registry.root import RootIdDamagedError, make_root_id, root_is_locked
from svc.rpc.server import Address

logger = logging.getLogger(__name__)

_PAGE_COUNT = 1000


def open_ownership(settings: Settings, sessions: Sessions, address: Address) -> Ownership:
    """Returns what decides whose sessions are; it touches the registry when it is started.

    Raises:
        ConfigError: the root cannot be named, or the registry's address is none.
    """
    if settings.redis_url is None:
        return SoleOwner()
    root = settings.data_dir
    try:
        root_id = make_root_id(root)
        connection = Connection(settings.redis_url)
    except (RootIdDamagedError, OSError, ValueError) as error:
        raise ConfigError(f"the registry cannot be used: {error}") from error
    process = this_process(
        "ingest", root_id=root_id, address=settings.advertised(address.host, address.port)
    )
    locked = root_is_locked(root)
    logger.info(
        "sessions are owned by leases",
        extra={"process_id": process.process_id, "root": root_id, "root_is_locked": locked},
    )
    return RegisteredOwner(
        connection,
        process,
        root,
        root_is_locked=locked,
        stored=lambda: _stored(sessions),
        lease_s=leases.LEASE_S,
    )


def _stored(sessions: Sessions) -> Iterator[StoredSession]:
    """What the files say of every session that can be read; the others are logged."""
    after, more = "", True
    while more:
        found, more = sessions.page(after=after, count=_PAGE_COUNT)
        if not found:
            return
        after = found[-1].session_id
        for session in found:
            try:
                stats = sessions.stats(session)
            except KVStoreError as error:
                logger.error(
                    "session not told to the registry",
                    extra={"session": session.session_id, "reason": str(error)},
                )
                continue
            yield StoredSession(
                session_id=session.session_id,
                state=session.state,
                durable_unit_count=stats.durable_unit_count,
                durable_pts_s=stats.last_durable_pts_s,
            )
