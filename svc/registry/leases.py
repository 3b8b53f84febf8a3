"""Leases on sessions, with fencing epochs: at most one process may write a session at a time.

`acquire` gives a lease that ends by Redis' clock unless it is renewed, and an epoch above all
before it. Whoever acts on a lease names its epoch, and is refused once a later one was given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from svc.registry import scripts
from svc.registry.connection import Connection
from svc.registry.errors import (
    LeaseHeldError,
    LeaseLostError,
    RangeGapError,
    SessionDeletedError,
    SessionElsewhereError,
)
from svc.registry.keys import events_key, session_key
from svc.registry.process import ProcessInfo

LEASE_S = 10.0
"""How long a lease runs unless it is renewed. All processes of one Redis must agree on it: after
a restart of Redis it is also how long new leases wait for those that Redis may have forgotten."""
EVENTS_KEPT = 1000
"""Announcements kept per session, about; readers that come later read the hash."""
DELETED_KEPT_S = 3600.0
"""How long a deleted session's name still tells late readers that it was deleted."""

SessionState = Literal["live", "finished"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What `acquire` gave. Whether it still runs, the holder must reckon (`kept.KeptLease`)."""

    session_id: str
    epoch: int
    """Above every epoch given before, and above the floor that was asked for."""
    published_unit_count: int
    """Units published so far, by anyone."""


class Leases:
    """The leases of one process."""

    def __init__(
        self, connection: Connection, process: ProcessInfo, *, lease_s: float = LEASE_S
    ) -> None:
        """Leases run for `lease_s` from their last renewal."""
        self.lease_s = lease_s
        self._connection = connection
        self._process = process
        self._lease_ms = int(lease_s * 1000)

    async def acquire(self, session_id: str, *, floor_epoch: int) -> Lease:
        """Take the lease of a session whose files lie in this process' root.

        A lease that this process has already is replaced, with a new epoch: an answer that was
        lost can be asked for again.

        Args:
            floor_epoch: the highest epoch that the files know of.

        Raises:
            LeaseHeldError: another process has it, or Redis may have forgotten who has.
            SessionElsewhereError: the session lies under another root.
            SessionDeletedError: it was deleted.
            RegistryUnavailableError: no answer.
        """
        process = self._process
        status, *rest = await self._run(
            scripts.ACQUIRE,
            session_id,
            [process.process_id, process.address, process.root_id, self._lease_ms, floor_epoch],
            "acquire",
        )
        match status:
            case "granted":
                return Lease(
                    session_id=session_id, epoch=int(rest[0]), published_unit_count=int(rest[1])
                )
            case "held":
                raise LeaseHeldError(session_id, rest[0], rest[1], int(rest[2]) / 1000)
            case "elsewhere":
                raise SessionElsewhereError(session_id, rest[0])
            case "deleted":
                raise SessionDeletedError(session_id)
        raise _unknown(status)

    async def renew(self, lease: Lease) -> None:
        """Let the lease run anew from now; puts it back into a Redis that has forgotten it.

        Only while the lease runs by the holder's own clock, or something else than the lease
        keeps others from writing: a forgotten one may have been given to somebody else.

        Raises:
            LeaseLostError: a later lease was given, or the session was deleted.
            RegistryUnavailableError: no answer.
        """
        process = self._process
        status, *rest = await self._run(
            scripts.RENEW,
            lease.session_id,
            [process.process_id, process.address, process.root_id, self._lease_ms, lease.epoch],
            "renew",
        )
        if status == "lost":
            raise LeaseLostError(lease.session_id, lease.epoch, int(rest[0]))

    async def release(self, lease: Lease) -> None:
        """Give the lease back; once is enough, more does no harm.

        Raises:
            LeaseLostError: it was no longer ours.
            RegistryUnavailableError: no answer; the lease ends by itself.
        """
        status, *rest = await self._run(
            scripts.RELEASE, lease.session_id, [self._process.process_id, lease.epoch], "release"
        )
        if status == "lost":
            raise LeaseLostError(lease.session_id, lease.epoch, int(rest[0]))

    async def publish(
        self,
        lease: Lease,
        *,
        start_unit: int,
        stop_unit: int,
        durable_pts_s: float | None,
        state: SessionState | None = None,
    ) -> int:
        """Announce units [start, stop) as durable, and renew the lease; return what is published.

        Saying again what was said changes nothing.

        Args:
            state: what has become of the session; None: as it was.

        Raises:
            LeaseLostError: a later lease was given, or Redis has forgotten this one.
            RangeGapError: the range does not follow what is published; nothing was changed.
            RegistryUnavailableError: no answer; it may have been carried out.
        """
        if not 0 <= start_unit <= stop_unit:
            raise ValueError(f"need 0 <= start <= stop, got {start_unit=} {stop_unit=}")
        pts_text = "" if durable_pts_s is None else repr(durable_pts_s)
        status, *rest = await self._run(
            scripts.PUBLISH,
            lease.session_id,
            [
                self._process.process_id,
                lease.epoch,
                self._lease_ms,
                start_unit,
                stop_unit,
                pts_text,
                state or "",
                EVENTS_KEPT,
            ],
            "publish",
        )
        match status:
            case "published":
                return int(rest[0])
            case "gap":
                raise RangeGapError(lease.session_id, start_unit, int(rest[0]))
            case "lost":
                raise LeaseLostError(lease.session_id, lease.epoch, int(rest[0]))
        raise _unknown(status)

    async def delete(self, lease: Lease) -> None:
        """Announce that the holder has deleted the session; ends the lease.

        Raises:
            LeaseLostError: it was no longer ours.
            RegistryUnavailableError: no answer; it may have been carried out.
        """
        status, *rest = await self._run(
            scripts.DELETE,
            lease.session_id,
            [self._process.process_id, lease.epoch, int(DELETED_KEPT_S * 1000), EVENTS_KEPT],
            "delete",
        )
        if status == "lost":
            raise LeaseLostError(lease.session_id, lease.epoch, int(rest[0]))

    async def _run(
        self, script: str, session_id: str, args: list[str | int | float], operation: str
    ) -> list[Any]:
        keys = [session_key(session_id), events_key(session_id)]
        return await self._connection.run(
            script, keys=keys, args=args, operation=f"{operation} of session {session_id!r}"
        )


def _unknown(status: str) -> RuntimeError:
    return RuntimeError(f"a script answered {status!r}, which no script of this version does")
