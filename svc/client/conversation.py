"""A conversation about one session: every question is asked with the turns before it."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from typing import Unpack

from svc.client.questions import QuestionCalls, QuestionOptions
from svc.client.types import Answer, TextDelta, Turn

MAX_TURNS = 32
MAX_CHARS = 64_000
"""Of all turns together. Both are what the protocol allows a question to carry."""


class Conversation:
    """Keeps the turns, the newest `MAX_TURNS`, and sends those that a question may see.

    A question as of an earlier time goes without the turns whose answers saw later video; they
    stay, for questions as of later times. A question that failed or was given up leaves no turn.
    For one event loop, one question at a time.
    """

    def __init__(
        self,
        client: QuestionCalls,
        session_id: str,
        turns: Iterable[Turn] = (),
        *,
        max_turn_count: int = MAX_TURNS,
    ) -> None:
        """Begins a conversation, or goes on with one.

        Args:
            client: asks; to be open as long as questions are asked.
            session_id: the session that all questions are about.
            turns: earlier turns, oldest first.
            max_turn_count: turns to keep, in [0, MAX_TURNS]; the oldest go.
        """
        if not 0 <= max_turn_count <= MAX_TURNS:
            raise ValueError(f"max_turn_count must be in [0, {MAX_TURNS}], got {max_turn_count}")
        self.session_id = session_id
        self._client = client
        self._turns = deque(turns, maxlen=max_turn_count)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """What was asked and answered, oldest first."""
        return tuple(self._turns)

    async def ask(
        self, question: str, **options: Unpack[QuestionOptions]
    ) -> AsyncGenerator[TextDelta | Answer, None]:
        """Asks, and yields the text as it is decoded, then the whole answer.

        Args:
            question: 1 to 8,000 characters; it may lean on the turns before it.
            **options: of this question alone; see QuestionOptions.

        Raises:
            LookbackError: as of `LookbackClient.ask`.
        """
        history = self._sent(options.get("asked_at_s"), before=options.get("before", False))
        parts = self._client.ask(self.session_id, question, **options, history=history)
        async with contextlib.aclosing(parts):
            async for part in parts:
                if isinstance(part, Answer):
                    until_s = part.evidence_until_s
                    turn = Turn(question=question, answer=part.text, evidence_until_s=until_s)
                    self._turns.append(turn)
                yield part

    async def answer(self, question: str, **options: Unpack[QuestionOptions]) -> Answer:
        """Asks like `ask`, and returns the whole answer."""
        async with contextlib.aclosing(self.ask(question, **options)) as parts:
            async for part in parts:
                if isinstance(part, Answer):
                    return part
        raise AssertionError("ask ends with an Answer or raises")

    def _sent(self, asked_at_s: float | None, *, before: bool) -> list[Turn]:
        """Returns the newest turns that the question may see and that are not too long together."""
        newest_first: list[Turn] = []
        chars = 0
        for turn in reversed(self._turns):
            if _tells_of_later(turn, asked_at_s, before=before):
                continue
            chars += len(turn.question) + len(turn.answer)
            if chars > MAX_CHARS:
                break
            newest_first.append(turn)
        return newest_first[::-1]


def _tells_of_later(turn: Turn, asked_at_s: float | None, *, before: bool) -> bool:
    until_s = turn.evidence_until_s
    if asked_at_s is None or until_s is None:
        return False
    return until_s > asked_at_s or (before and until_s == asked_at_s)
