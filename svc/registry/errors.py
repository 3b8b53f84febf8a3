"""Every error the registry raises on purpose: one class per decision the caller can make."""

from __future__ import annotations


class RegistryError(Exception):
    """Base of every error that the registry raises on purpose."""


class RegistryUnavailableError(RegistryError):
    """Redis did not answer, or not as asked; whether the call was carried out is not known."""

    def __init__(self, operation: str, cause: str) -> None:
        super().__init__(f"the registry did not answer to {operation}: {cause}")
        self.operation = operation
        self.cause = cause


class LeaseHeldError(RegistryError):
    """Another process holds the session's lease, or may hold one that Redis has forgotten."""

    def __init__(self, session_id: str, owner: str, address: str, wait_s: float) -> None:
        """`owner` and `address` are empty where they are not known."""
        who = f"process {owner} at {address}" if owner else "a process that Redis has forgotten"
        super().__init__(
            f"session {session_id!r} is held by {who}; its lease ends in {wait_s:.1f} s "
            "unless it is renewed"
        )
        self.session_id = session_id
        self.owner = owner
        self.address = address
        self.wait_s = wait_s


class LeaseLostError(RegistryError):
    """The lease of this epoch is no longer ours: its holder must not write or acknowledge."""

    def __init__(self, session_id: str, epoch: int, current_epoch: int) -> None:
        super().__init__(
            f"the lease of epoch {epoch} on session {session_id!r} is lost, "
            f"the registry is at epoch {current_epoch}"
        )
        self.session_id = session_id
        self.epoch = epoch
        self.current_epoch = current_epoch


class SessionElsewhereError(RegistryError):
    """The session's files lie under another root than the caller's."""

    def __init__(self, session_id: str, root_id: str) -> None:
        super().__init__(f"the files of session {session_id!r} lie in root {root_id}")
        self.session_id = session_id
        self.root_id = root_id


class SessionDeletedError(RegistryError):
    """The session was deleted a short while ago."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"session {session_id!r} was deleted")
        self.session_id = session_id


class RangeGapError(RegistryError):
    """What was to be published does not follow what was published."""

    def __init__(self, session_id: str, start_unit: int, next_unit: int) -> None:
        super().__init__(
            f"session {session_id!r} is published up to unit {next_unit}, got units "
            f"from {start_unit}"
        )
        self.session_id = session_id
        self.start_unit = start_unit
        self.next_unit = next_unit
