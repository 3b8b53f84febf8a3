"""Which earlier units a unit sees: the longest suffix of whole units within both limits."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowConfig:
    """How much of the stream a unit sees besides the prompt prefix."""

    window_tokens: int = 8192
    """Kept tokens of earlier units, at most."""
    window_positions: int = 16384
    """Positions that these units span, dropped tokens counted, at most. Bounds the distance
    that attention must bridge: many units of few kept tokens each span far more than they hold."""

    def __post_init__(self) -> None:
        if self.window_tokens < 1 or self.window_positions < 1:
            raise ValueError(
                f"both must be >= 1, got {self.window_tokens=} {self.window_positions=}"
            )


def window_start(
    token_counts: Sequence[int], position_spans: Sequence[int], config: WindowConfig
) -> int:
    """Return the index of the first unit that the unit after all these would see.

    Args:
        token_counts: kept tokens of each unit, in time order.
        position_spans: positions that the full grid of each unit takes.
        config: the limits.

    Returns:
        In [0, units]; equal to the count of units when not even the last one fits.
    """
    tokens = positions = 0
    for index in range(len(token_counts) - 1, -1, -1):
        tokens += int(token_counts[index])
        positions += int(position_spans[index])
        if tokens > config.window_tokens or positions > config.window_positions:
            return index + 1
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPlace:
    """Where one unit and its window lie in the stream. Half-open, counted from its start."""

    window_token: int
    """Index of the first token that the unit sees."""
    window_position: int
    """Position at which the first unit that it sees begins."""
    first_token: int
    """Index of the unit's own first token."""
    token_count: int
    position: int
    """Position at which the unit begins."""


class Window:
    """Follows the window along a stream, in counts alone. Not thread-safe."""

    def __init__(self, config: WindowConfig) -> None:
        self.config = config
        self._units: deque[tuple[int, int]] = deque()
        self.first_token = 0
        self.next_token = 0
        self._first_position = 0
        self._next_position = 0

    @property
    def unit_count(self) -> int:
        """Units that the next unit would see."""
        return len(self._units)

    @property
    def token_count(self) -> int:
        """Tokens that the next unit would see."""
        return self.next_token - self.first_token

    def copy(self) -> Window:
        """Return a window that goes on from here on its own."""
        other = Window(self.config)
        other._units = self._units.copy()
        other.first_token, other.next_token = self.first_token, self.next_token
        other._first_position = self._first_position
        other._next_position = self._next_position
        return other

    def push(self, token_count: int, position_span: int) -> UnitPlace:
        """Append a unit, forget what no later unit sees, and return where the unit lies."""
        place = UnitPlace(
            window_token=self.first_token,
            window_position=self._first_position,
            first_token=self.next_token,
            token_count=token_count,
            position=self._next_position,
        )
        self._units.append((token_count, position_span))
        self.next_token += token_count
        self._next_position += position_span
        while (
            self.token_count > self.config.window_tokens
            or self._next_position - self._first_position > self.config.window_positions
        ):
            evicted_tokens, evicted_span = self._units.popleft()
            self.first_token += evicted_tokens
            self._first_position += evicted_span
        return place
