"""One conversation at the command line: puts questions, shows answers, keeps the turns."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from svc.cli.answer_view import answer_json, moments, warning
from svc.cli.failures import CommandError
from svc.cli.history import append_turn, read_history
from svc.cli.remote import Endpoints
from svc.cli.text import printable
from svc.cli.times import format_time

if TYPE_CHECKING:
    from svc.client import Answer, QuestionOptions


class Talk:
    """Puts one question after another about one session. A context manager."""

    def __init__(
        self,
        where: Endpoints,
        session: str,
        options: QuestionOptions,
        *,
        history: Path | None,
        as_json: bool,
    ) -> None:
        """Begins a conversation, or goes on with the one in a file.

        Args:
            where: the service.
            session: whom all questions are about.
            options: of all questions, but for their times.
            history: JSON file of the turns, read now and added to; None: they are not kept.
            as_json: each answer is one line of JSON, not text as it comes.

        Raises:
            CommandError: HISTORY_INVALID.
        """
        from svc.client import Conversation

        turns = () if history is None else read_history(history)
        self._client = where.client()
        self._conversation = Conversation(self._client, session, turns)
        self._options = options
        self._history = history
        self._as_json = as_json
        self._runner = asyncio.Runner()  # the loop rests while people think

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *error: object) -> None:
        with self._runner as runner:
            runner.run(self._client.__aexit__(None, None, None))

    def put(self, question: str, at_s: float | None, choices: Sequence[str]) -> None:
        """Asks as of a time, or now, and shows the answer.

        Raises:
            LookbackError, CommandError: the question was refused, or its turn could not be kept.
        """
        session, earlier_count = self._conversation.session_id, len(self._conversation.turns)
        options = self._options.copy()
        options["asked_at_s"] = at_s
        options["choices"] = choices
        with _times_as_written(session):
            answer, note = self._runner.run(self._ask(question, options))
        if self._as_json:
            sys.stdout.write(json.dumps(answer_json(session, question, answer)) + "\n")
        else:
            sys.stdout.write(moments(answer, list(choices)))
            sys.stderr.write(warning(answer))
        sys.stdout.flush()
        for text in (note, _left_out(earlier_count, answer)):
            if text:
                sys.stderr.write(f"note: {text}\n")
        if self._history is not None:
            append_turn(self._history, self._conversation.turns[-1])

    async def _ask(self, question: str, options: QuestionOptions) -> tuple[Answer, str]:
        """Returns the answer, and what is to be said beside it, if anything is."""
        if self._as_json:
            answer = await self._conversation.answer(question, **options)
        else:
            answer = await self._streamed(question, options)
        return answer, await self._note(answer)

    async def _streamed(self, question: str, options: QuestionOptions) -> Answer:
        """Shows the text as it comes."""
        from svc.client import TextDelta

        begun = False
        try:
            async with contextlib.aclosing(self._conversation.ask(question, **options)) as parts:
                async for part in parts:
                    if not isinstance(part, TextDelta):
                        return part
                    begun = True
                    sys.stdout.write(printable(part.text))
                    sys.stdout.flush()
        finally:
            if begun:
                sys.stdout.write("\n")
        raise AssertionError("ask ends with an Answer or raises")

    async def _note(self, answer: Answer) -> str:
        """Says so where the time that was asked about is one that the video never had."""
        from svc.client import LookbackError, SessionState

        seen_s, asked_s = answer.evidence_until_s, answer.asked_at_s
        if asked_s <= seen_s:
            return ""
        try:
            found = await self._client.get_session(self._conversation.session_id)
        except LookbackError as error:  # the answer stands, whatever cannot be said about it
            return f"nothing after {format_time(seen_s)} was seen ({error.message})"
        if found.stats is None:
            return (
                f"nothing after {format_time(seen_s)} was seen "
                "(how long the video is cannot be read)"
            )
        end_s = found.stats.last_visible_pts_s
        if found.state is not SessionState.FINISHED or end_s is None:
            return ""
        if asked_s <= end_s + 1 / found.settings.sample_fps:  # the last frame was still on screen
            return ""
        return (
            f"the video ended at {format_time(end_s)}, before {format_time(asked_s)}: "
            "this is the answer as of its end"
        )


def _left_out(earlier_count: int, answer: Answer) -> str:
    """Says how many turns the answer went without."""
    count = earlier_count - answer.history_turn_count
    if count <= 0:
        return ""
    return f"{count} of {earlier_count} earlier turns left out: they saw later video or do not fit"


@contextlib.contextmanager
def _times_as_written(session: str) -> Iterator[None]:
    """Says of a time outside the video what was given and what there is, as people write times.

    Raises:
        CommandError: in place of the server's refusal.
    """
    from svc.client import LookbackError

    try:
        yield
    except LookbackError as error:
        asked_s = error.metadata.get("asked_at_s", "")
        received_s, first_s = (
            error.metadata.get(name, "") for name in ("received_pts_s", "first_pts_s")
        )
        if error.reason == "ASKED_AT_NOT_RECEIVED" and asked_s and received_s:
            there = f"has come up to {format_time(float(received_s))} so far"
        elif error.reason == "ASKED_AT_BEFORE_START" and asked_s and first_s:
            there = f"can be asked about from {format_time(float(first_s))} on"
            if error.message.endswith("forgotten"):
                there += "; what came before was forgotten"
        else:
            raise
        at = format_time(float(asked_s))
        message = f"--at {at} lies outside the video: {session} {there}"
        raise CommandError(error.reason, message) from error
