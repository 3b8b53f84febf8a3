"""An age that costs most of a session is asked about, and what goes under it is told."""

import datetime
import math
from dataclasses import replace

import pytest

from svc.cli.ageing import loses_most, what_ages
from svc.client import (
    OnFull,
    PinnedSpan,
    RulesInForce,
    Session,
    SessionSettings,
    SessionState,
    SessionStats,
)
from tests.svc.cli.conftest import Lookback, Service
from tests.svc.client.protocol_server import StoredSession

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
HOUR_S, DAY_S = 3600.0, 86400.0


def an_hour(
    *, finished: bool, made_ago_s: float, in_force_s: float = 0.0, pins: tuple[PinnedSpan, ...] = ()
) -> Session:
    """A session of 3600 units, one a second."""
    return Session(
        session_id="yard",
        display_name="",
        state=SessionState.FINISHED if finished else SessionState.LIVE,
        create_time=NOW - datetime.timedelta(seconds=made_ago_s),
        settings=SessionSettings(sample_fps=1.0),
        stats=SessionStats(
            visible_unit_count=3600,
            durable_unit_count=3600,
            first_pts_s=0.0,
            last_visible_pts_s=3599.0,
            last_durable_pts_s=3599.0,
            token_count=3600,
            disk_bytes=2**21,
            gap_count=0,
            dropped_unit_count=0,
        ),
        model="m",
        keeping_in_force=RulesInForce(
            session_budget_bytes=0, on_full=OnFull.REFUSE, retain_s=in_force_s
        ),
        pinned_spans=pins,
    )


@pytest.mark.parametrize(
    ("session", "retain_s", "most"),
    [
        (an_hour(finished=True, made_ago_s=60.0), 7.0, True),  # days were meant
        (an_hour(finished=True, made_ago_s=60.0), 7 * DAY_S, False),
        (an_hour(finished=True, made_ago_s=30 * DAY_S), 7 * DAY_S, True),  # at once, and whole
        (an_hour(finished=True, made_ago_s=30 * DAY_S), math.inf, False),
        (an_hour(finished=True, made_ago_s=30 * DAY_S), 0.0, False),
        (an_hour(finished=True, made_ago_s=30 * DAY_S, in_force_s=60.0), 90.0, False),
        (an_hour(finished=True, made_ago_s=30 * DAY_S, in_force_s=90.0), 60.0, True),
        (an_hour(finished=False, made_ago_s=HOUR_S), 7.0, True),
        (an_hour(finished=False, made_ago_s=HOUR_S), 0.75 * HOUR_S, False),
        (
            an_hour(finished=True, made_ago_s=HOUR_S, pins=(PinnedSpan(start_s=9.0, end_s=10.0),)),
            7.0,
            False,
        ),
        (
            an_hour(finished=True, made_ago_s=HOUR_S, pins=(PinnedSpan(start_s=3e3, end_s=3.1e3),)),
            7.0,
            True,
        ),
    ],
)
def test_who_may_soon_lose_most_of_a_session_is_asked(
    session: Session, retain_s: float, most: bool
) -> None:
    assert loses_most(session, retain_s, NOW) is most


def test_an_empty_session_has_nothing_to_lose() -> None:
    session = an_hour(finished=True, made_ago_s=DAY_S)
    nothing = replace(session.stats, first_pts_s=None, last_durable_pts_s=None)
    assert not loses_most(replace(session, stats=nothing), 7.0, NOW)
    assert what_ages(replace(session, stats=nothing), 7.0, NOW) == ""


def test_what_goes_is_told_with_its_figures() -> None:
    told = what_ages(an_hour(finished=True, made_ago_s=DAY_S), 600.0, NOW)
    assert "older than 10 m goes from yard" in told
    assert "50:00.0 of its 1:00:00.0 (3600 units, 2.0 MiB) is older now" in told
    assert "of which nothing is left is deleted" in told
    assert "by the clock." not in told
    young = what_ages(an_hour(finished=False, made_ago_s=60.0), 600.0, NOW)
    assert "nothing yet by the clock. Its last segment stays" in young
    pinned = (PinnedSpan(start_s=9.0, end_s=10.0),)
    told = what_ages(an_hour(finished=True, made_ago_s=DAY_S, pins=pinned), 600.0, NOW)
    assert "0:09.0 of its 1:00:00.0" in told
    assert "deleted" not in told
    assert what_ages(an_hour(finished=True, made_ago_s=DAY_S), 0.0, NOW) == ""


def test_an_age_that_costs_a_finished_session_needs_a_yes(
    lookback: type[Lookback], service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = StoredSession(durable=[0.0, 0.5, 1.0], finished=True)
    service.server.sessions["kitchen"] = stored
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115 - closed with the process
    update = ("sessions", "update", "kitchen", "--retain", "7", *service.options)
    refused = lookback.run(*update)
    assert (refused.status, refused.out, stored.keeping.retain_s) == (2, "", 0.0)
    assert "say --yes" in refused.err
    assert "nothing is left is deleted" in refused.err
    done = lookback.run(*update, "--yes")
    assert (done.status, done.out, stored.keeping.retain_s) == (0, "changed kitchen\n", 7.0)
    assert done.err.startswith("note: what is older than 7 s goes from kitchen")
    kept = lookback.run(
        "sessions", "update", "kitchen", "--retain", "forever", "--json", *service.options
    )
    assert (kept.status, kept.err) == (0, "")
