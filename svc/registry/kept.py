"""A lease that is kept: renewed in the background, and reckoned by the holder's own clock.

The rule by which a holder knows that it may write:

1. A lease runs, for its holder, from the moment *before* its last successful renewal was sent, for
   nine tenths of the lease time, on CLOCK_BOOTTIME. Redis counts from the moment the renewal
   arrived, for all of it: so nobody else can have the lease yet. The clock goes on while the
   machine or the process sleeps: a holder that was paused finds its lease run out.
2. A lease that has run out is lost for good; it is never picked up again.
3. Except in an outage of Redis on a root that is locked by the kernel (`root_is_locked`): when a
   renewal failed *while the lease still ran*, the lease goes on until Redis answers. Nobody gets
   a lease from a Redis that nobody reaches; and should others reach the Redis that we do not, the
   kernel's lock on the session keeps them from writing as long as we live, and a session is never
   written under two roots. A pause is not taken for an outage: after one, the failure is noticed
   when the lease has run out already.
4. When Redis answers again it decides: renewed (put back where it was forgotten), or lost.

On shared storage no lock of the kernel holds between machines, so there the lease alone counts:
work stops when it runs out, nothing is acknowledged after, and new leases wait for Redis.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from svc.boot_time import boot_time_s
from svc.registry.errors import (
    LeaseLostError,
    RangeGapError,
    RegistryError,
    RegistryUnavailableError,
)
from svc.registry.leases import Lease, Leases, SessionState

logger = logging.getLogger(__name__)

_RUNS_FRACTION = 0.9
RENEWALS_PER_LEASE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class _News:
    """What is to be announced."""

    unit_count: int
    pts_s: float | None
    state: SessionState | None


class KeptLease:
    """A lease from `take` to `release`. Made on the event loop; `held` is for any thread."""

    def __init__(
        self,
        leases: Leases,
        lease: Lease,
        *,
        taken_s: float,
        root_is_locked: bool,
        clock_s: Callable[[], float],
    ) -> None:
        """Made by `take`."""
        self.lease = lease
        self.lost = asyncio.Event()
        """Set soon after the lease was lost; `held` knows at once."""
        self._leases = leases
        self._root_is_locked = root_is_locked
        self._clock_s = clock_s
        self._runs_until_s = taken_s + leases.lease_s * _RUNS_FRACTION
        self._outage = False
        self._is_lost = False
        self._told_unit_count = lease.published_unit_count
        self._news: _News | None = None
        self._wake = asyncio.Event()
        self._renewing: asyncio.Task[None] | None = None

    @classmethod
    async def take(
        cls,
        leases: Leases,
        session_id: str,
        *,
        floor_epoch: int,
        root_is_locked: bool,
        clock_s: Callable[[], float] = boot_time_s,
    ) -> KeptLease:
        """Acquire a session's lease and begin to renew it.

        Args:
            floor_epoch: the highest epoch that the session's files know of.
            root_is_locked: whether a lock of the kernel keeps every other process that can reach
                the files from writing them.
            clock_s: a seam for tests.

        Raises:
            RegistryError: as `Leases.acquire`.
        """
        taken_s = clock_s()
        lease = await leases.acquire(session_id, floor_epoch=floor_epoch)
        kept = cls(leases, lease, taken_s=taken_s, root_is_locked=root_is_locked, clock_s=clock_s)
        kept._renewing = asyncio.create_task(kept._keep(), name=f"lease {session_id}")
        return kept

    @property
    def in_outage(self) -> bool:
        """Whether Redis does not answer and the lease goes on under the kernel's lock."""
        return self._outage

    def held(self) -> bool:
        """Whether its holder may still write and acknowledge. Once False, False for good."""
        if not self._is_lost and not self._outage and self._clock_s() >= self._runs_until_s:
            self._is_lost = True
        return not self._is_lost

    def announce(
        self, unit_count: int, pts_s: float | None, *, state: SessionState | None = None
    ) -> None:
        """Have it announced that so many units are durable; what is not told yet is replaced."""
        self._news = _News(unit_count=unit_count, pts_s=pts_s, state=state)
        self._wake.set()

    async def release(self) -> None:
        """Announce what is still to be announced, and give the lease back.

        When Redis does not answer, the lease ends by itself.
        """
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        if not self.held():
            return
        try:
            await self._tell()
            self._is_lost = True
            await self._leases.release(self.lease)
        except RegistryError as error:
            logger.warning(
                "lease not given back",
                extra={"session": self.lease.session_id, "reason": str(error)},
            )
        finally:
            self._is_lost = True

    async def delete(self) -> None:
        """Announce that the session was deleted, and end the lease.

        Raises:
            RegistryError: it was not announced.
        """
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        self._is_lost = True
        await self._leases.delete(self.lease)

    async def _keep(self) -> None:
        interval_s = self._leases.lease_s / RENEWALS_PER_LEASE
        try:
            while self.held():
                try:
                    async with asyncio.timeout(interval_s):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                self._wake.clear()
                await self._renew()
        except LeaseLostError as error:
            self._is_lost = True
            logger.warning("lease lost", extra={"session": error.session_id, "reason": str(error)})
        finally:
            if not self.held():
                self.lost.set()

    async def _renew(self) -> None:
        sent_s = self._clock_s()
        if not self.held():
            return
        try:
            await self._leases.renew(self.lease)
            self._runs_until_s = sent_s + self._leases.lease_s * _RUNS_FRACTION
            if self._outage:
                self._outage = False
                logger.info("registry is back", extra={"session": self.lease.session_id})
            await self._tell()
        except RegistryUnavailableError as error:
            if not self._root_is_locked or self._outage:
                return
            # First the outage, then the clock: a pause in between must not make the lease endless.
            self._outage = True
            if self._clock_s() >= self._runs_until_s:
                self._is_lost = True
                return
            logger.warning(
                "registry does not answer; the session's writer goes on under its lock",
                extra={"session": self.lease.session_id, "reason": str(error)},
            )

    async def _tell(self) -> None:
        """Publish the news, from where the registry is: behind, when it has forgotten some."""
        news = self._news
        if news is None:
            return
        try:
            self._told_unit_count = await self._publish(news, self._told_unit_count)
        except RangeGapError as gap:
            self._told_unit_count = await self._publish(news, gap.next_unit)
        if self._news is news:
            self._news = None

    async def _publish(self, news: _News, start_unit: int) -> int:
        return await self._leases.publish(
            self.lease,
            start_unit=min(start_unit, news.unit_count),
            stop_unit=news.unit_count,
            durable_pts_s=news.pts_s,
            state=news.state,
        )
