"""Names of the keys. All keys of a session share its hash tag, so its scripts stay in one slot."""

from __future__ import annotations


def session_key(session_id: str) -> str:
    """Hash: root, state, owner and lease, how far it is published."""
    return f"lookback:{{{session_id}}}:session"


def events_key(session_id: str) -> str:
    """Stream: what was published, trimmed; the hash has the latest."""
    return f"lookback:{{{session_id}}}:events"


def processes_key(root_id: str) -> str:
    """Hash: the processes that serve a root, with the time at which each counts as gone."""
    return f"lookback:{{root-{root_id}}}:processes"
