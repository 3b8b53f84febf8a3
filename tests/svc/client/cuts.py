"""Where a server is told to fail."""

from __future__ import annotations

from dataclasses import dataclass, field


class Cut(Exception):  # noqa: N818 - not an error: an order
    """The server is to vanish here."""


@dataclass
class Failures:
    """Says at which of the server's steps a call is cut: each entry is used up once."""

    cuts: list[tuple[str, int]] = field(default_factory=list)
    """(step, how many times that step passes before it is cut)."""
    clean_end: bool = False
    """End the call with OK in place of UNAVAILABLE."""
    _passed: dict[str, int] = field(default_factory=dict)

    def at(self, step: str) -> None:
        passed = self._passed[step] = self._passed.get(step, 0) + 1
        for cut in self.cuts:
            if cut[0] == step and cut[1] < passed:
                self.cuts.remove(cut)
                raise Cut(step)
