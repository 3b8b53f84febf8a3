"""Options that say what is kept of a session."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from svc.cli.amounts import BUDGET_RULE, DEFAULT, parse_budget_bytes, parse_duration_s

if TYPE_CHECKING:
    from svc.client import KeepingRules, OnFull

_PANEL = "What is kept"

KEEPING_FLAGS = {
    "session_budget_bytes": "--budget",
    "on_full": "--on-full",
    "retain_s": "--retain",
}
"""Options by the fields that they set."""


class WhenFull(Enum):
    """What happens when there is no room."""

    REFUSE = "refuse"
    DROP_OLDEST = "drop_oldest"
    THIN = "thin"
    DEFAULT = DEFAULT


BudgetOption = Annotated[
    int | None,
    typer.Option(
        "--budget",
        parser=parse_budget_bytes,
        metavar="SIZE",
        help="Disk that the session may take, its index included: bytes, or as 500MiB or 2GiB; "
        f"{BUDGET_RULE}. ",
        show_default="the server's",
        rich_help_panel=_PANEL,
    ),
]
OnFullOption = Annotated[
    WhenFull | None,
    typer.Option(
        "--on-full",
        help="When there is no room: refuse what is pushed, drop the oldest, or thin what is old. ",
        show_default="the server's",
        rich_help_panel=_PANEL,
    ),
]
RetainOption = Annotated[
    float | None,
    typer.Option(
        "--retain",
        parser=parse_duration_s,
        metavar="DURATION",
        help="Forget what is older: seconds, or as 30m, 12h, 7d; `forever`: nothing; `default`: as "
        "the server says for all. ",
        show_default="the server's",
        rich_help_panel=_PANEL,
    ),
]


def keeping_rules(
    budget: int | None, on_full: WhenFull | None, retain_s: float | None
) -> KeepingRules:
    """Returns the rules that the options give; what was not said is the server's."""
    from svc.client import KeepingRules

    chosen = on_full_of(on_full)
    return KeepingRules(
        session_budget_bytes=budget or 0,
        on_full=None if chosen == "default" else chosen,
        retain_s=retain_s or 0.0,
    )


def on_full_of(chosen: WhenFull | None) -> OnFull | Literal["default"] | None:
    """Returns what the client takes for the option."""
    from svc.client import OnFull

    if chosen is None:
        return None
    return "default" if chosen is WhenFull.DEFAULT else OnFull(chosen.value)
