"""What is kept of one session: its own rules, where it has some, over the server's defaults.

They are not part of a session's identity: what they are now decides what goes from now on.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kvstore.budget import DiskBudget, OnFull
from svc.amounts import MIN_SESSION_BUDGET_BYTES
from svc.config import Settings
from svc.ingest.budget import disk_budget
from svc.rpc.errors import Reason, RequestError

KEEPING_KEY = "keeping"
"""Where a session's record has the rules, among its settings; absent: none of its own."""
MAX_BUDGET_BYTES = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepingRules:
    """What was said for one session; what was not is as the server's settings say."""

    session_budget_bytes: int = 0
    """0: not said."""
    on_full: OnFull | None = None
    retain_s: float = 0.0
    """0: not said; infinity: for ever."""

    @classmethod
    def of_record(cls, settings: Mapping[str, Any]) -> KeepingRules:
        """Return the rules that the settings of a session's record hold."""
        stored = settings.get(KEEPING_KEY, {})
        return cls(**{**stored, "retain_s": float(stored.get("retain_s", 0.0))})

    def to_record(self) -> dict[str, Any]:
        """Return what a record holds of the rules. JSON has no infinity: it is a text there."""
        said = {
            "session_budget_bytes": self.session_budget_bytes or None,
            "on_full": self.on_full,
            "retain_s": self.retain_s if self.retain_s < math.inf else "inf",
        }
        return {name: value for name, value in said.items() if value}

    def check(self) -> None:
        """Raise unless the rules can be kept to.

        Raises:
            RequestError: INVALID_REQUEST, with the field.
        """
        low, high = MIN_SESSION_BUDGET_BYTES, MAX_BUDGET_BYTES
        if self.session_budget_bytes and not low <= self.session_budget_bytes <= high:
            allowed = f"in [{low}, {high}] bytes, or 0 for the server's default"
            raise _invalid("keeping.session_budget_bytes", self.session_budget_bytes, allowed)
        if not self.retain_s >= 0:  # NaN is not, either
            allowed = "positive, infinity to keep for ever, or 0 for the server's default"
            raise _invalid("keeping.retain_s", self.retain_s, allowed)

    def changed(self, given: KeepingRules, fields: Collection[str]) -> KeepingRules:
        """Return these rules with some fields as in others."""
        return replace(self, **{name: getattr(given, name) for name in fields})

    def differing(self, given: KeepingRules) -> str | None:
        """Return a field that was given and is another here; None: they agree."""
        for name in KEEPING_FIELDS:
            value = getattr(given, name)
            if value and value != getattr(self, name):
                return name
        return None

    def in_force(self, settings: Settings) -> RulesInForce:
        """Return what holds for the session."""
        retain_s = self.retain_s or settings.retain_s
        return RulesInForce(
            budget=replace(
                disk_budget(settings),
                session_bytes=self.session_budget_bytes or settings.session_budget_bytes,
                on_full=self.on_full or settings.on_full,
            ),
            retain_s=0.0 if math.isinf(retain_s) else retain_s,
        )


KEEPING_FIELDS = tuple(KeepingRules.__dataclass_fields__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RulesInForce:
    """The rules that hold for one session; 0: no limit."""

    budget: DiskBudget
    retain_s: float


def why_dropped(rules: RulesInForce) -> str:
    """Return, for people, why video of a session goes under the rules that hold now."""
    reasons = []
    if rules.retain_s:
        reasons.append(f"video older than {rules.retain_s:g} s is forgotten")
    if rules.budget.on_full == "drop_oldest":
        of = "budget" if rules.budget.smallest_bytes else "disk"
        reasons.append(f"the oldest goes when the {of} is full")
    return "; ".join(reasons) or "it was dropped under rules that held before"


def _invalid(field: str, given: object, allowed: str) -> RequestError:
    return RequestError(
        Reason.INVALID_REQUEST,
        f"{field} must be {allowed}, got {given}",
        field=field,
        given=given,
        allowed=allowed,
    )
