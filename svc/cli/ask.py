"""`lookback ask`: a question, its answer as it comes, and the moments it rests on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from svc.cli.answer_view import answer_json, moments, warning
from svc.cli.failures import CommandError
from svc.cli.flags import naming
from svc.cli.history import append_turn, read_history
from svc.cli.remote import (
    Endpoints,
    IngestAddressOption,
    QaAddressOption,
    ServerOption,
    endpoints,
)
from svc.cli.text import printable
from svc.cli.times import format_time, parse_time_s

if TYPE_CHECKING:
    from svc.client import Answer, AskOptions, LookbackClient


class Retrieval(Enum):
    """Who chooses the moments that are recalled."""

    PER_LAYER = "per_layer"
    SHARED = "shared"
    AGREED = "agreed"


_FLAGS = {
    "asked_at_s": "--at",
    "cut": "--before",
    "choices": "--choice",
    "characters of history": "--history: characters",
    "timeout_s": "--timeout",
    "mode": "--retrieval",
    "unit_count": "--units",
    "recent_unit_count": "--recent",
    "token_count": "--tokens",
    "unit_indices": "--unit-index",
    "search_each_token": "--each-token",
    "max_new_token_count": "--max-new-tokens",
    "max_new_tokens": "--max-new-tokens",
    "temperature": "--temperature",
    "top_p": "--top-p",
    "top_k": "--top-k",
    "repetition_penalty": "--repetition-penalty",
    "seed": "--seed",
    "stop": "--stop",
}
"""Options by the fields of a question that they set."""

_recall_option = partial(typer.Option, rich_help_panel="Retrieval")
_decoding_option = partial(typer.Option, rich_help_panel="Decoding")


def ask(
    context: typer.Context,
    session: Annotated[str, typer.Argument(help="Session to ask about.", metavar="SESSION")],
    question: Annotated[str, typer.Argument(help="The question.", metavar="QUESTION")],
    at: Annotated[
        float | None,
        typer.Option(
            "--at",
            parser=parse_time_s,
            metavar="TIME",
            help="Time in the video at which the question is asked (seconds, mm:ss or h:mm:ss): "
            "nothing after it is seen.",
            show_default="now",
        ),
    ] = None,
    before: Annotated[
        bool, typer.Option("--before", help="With --at: see what is before that time only.")
    ] = False,
    choice: Annotated[
        list[str] | None,
        typer.Option("--choice", help="An option; give each. The most likely one is picked."),
    ] = None,
    history: Annotated[
        Path | None,
        typer.Option(
            help="Keep a conversation in this JSON file: earlier turns are sent along, "
            "this one is added.",
            metavar="FILE",
            dir_okay=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the answer as one JSON object.")
    ] = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.001, help="Seconds the answer may take.")
    ] = 120.0,
    retrieval: Annotated[
        Retrieval | None,
        _recall_option(
            help="Whether each layer of the model recalls its own moments, or all the same: shared "
            "from a first look at the newest, agreed after each looked for its own.",
            show_default="per_layer",
        ),
    ] = None,
    each_token: Annotated[
        bool,
        _recall_option(
            "--each-token",
            help="Search by each word too, for questions that name several things.",
        ),
    ] = False,
    units: Annotated[
        int | None,
        _recall_option(
            min=1, help="Units recalled, the recent ones included.", show_default="the model's"
        ),
    ] = None,
    recent: Annotated[
        int | None,
        _recall_option(min=0, help="Newest units, always seen.", show_default="1"),
    ] = None,
    tokens: Annotated[
        int | None,
        _recall_option(
            min=1, help="Tokens of memory per layer.", show_default="what the model has room for"
        ),
    ] = None,
    unit_index: Annotated[
        list[int] | None,
        _recall_option(
            min=0, help="See exactly this unit; give each. Takes the place of retrieval."
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        _decoding_option(min=1, help="Tokens of the answer at most.", show_default="64"),
    ] = None,
    temperature: Annotated[
        float | None,
        _decoding_option(
            min=0.0, help="0: the most likely token each time.", show_default="the model's"
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        _decoding_option(help="Probability that the tokens considered reach together."),
    ] = None,
    top_k: Annotated[
        int | None,
        _decoding_option(min=0, help="Tokens considered; 0: all."),
    ] = None,
    repetition_penalty: Annotated[
        float | None,
        _decoding_option(help="Above 1: repeat less."),
    ] = None,
    seed: Annotated[int | None, _decoding_option(help="Seed of sampling.")] = None,
    stop: Annotated[
        list[str] | None,
        _decoding_option(help="A string that ends the answer; give each."),
    ] = None,
    server: ServerOption = None,
    ingest_address: IngestAddressOption = None,
    qa_address: QaAddressOption = None,
) -> None:
    """Asks a question about a session, and shows the moments its answer rests on."""
    from svc.client import DecodingOptions, RetrievalMode, RetrievalOptions

    if before and at is None:
        raise typer.BadParameter("--before needs --at: before which time?", param_hint="--before")
    if unit_index and (retrieval or each_token or units or tokens or recent is not None):
        raise typer.BadParameter(
            "takes the place of the other options of retrieval", param_hint="--unit-index"
        )
    options: AskOptions = {
        "asked_at_s": at,
        "before": before,
        "choices": choice or (),
        "history": () if history is None else read_history(history),
        "retrieval": RetrievalOptions(
            mode=None if retrieval is None else RetrievalMode(retrieval.value),
            unit_count=units,
            recent_unit_count=recent,
            token_count=tokens,
            unit_indices=tuple(unit_index or ()),
            search_each_token=each_token,
        ),
        "decoding": DecodingOptions(
            max_new_token_count=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=tuple(stop or ()),
        ),
        "timeout_s": timeout_s,
    }
    where = endpoints(context, server, ingest_address, qa_address)
    with naming(_FLAGS), _times_as_written(session):
        answer, note = asyncio.run(_ask(where, session, question, options, stream=not as_json))
    if as_json:
        sys.stdout.write(json.dumps(answer_json(session, question, answer)) + "\n")
    else:
        sys.stdout.write(moments(answer, choice or []))
        sys.stderr.write(warning(answer))
    sys.stdout.flush()
    if note:
        sys.stderr.write(f"note: {note}\n")
    if history is not None:
        append_turn(history, question, answer.text)


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


async def _ask(
    where: Endpoints, session: str, question: str, options: AskOptions, *, stream: bool
) -> tuple[Answer, str]:
    """Returns the answer, and what is to be said beside it, if anything is."""
    async with where.client() as client:
        if stream:
            answer = await _streamed(client, session, question, options)
        else:
            answer = await client.answer(session, question, **options)
        return answer, await _note(client, session, answer)


async def _streamed(
    client: LookbackClient, session: str, question: str, options: AskOptions
) -> Answer:
    """Shows the text as it comes."""
    from svc.client import TextDelta

    begun = False
    try:
        async with contextlib.aclosing(client.ask(session, question, **options)) as parts:
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


async def _note(client: LookbackClient, session: str, answer: Answer) -> str:
    """Says so where the time that was asked about is one that the video never had."""
    from svc.client import LookbackError, SessionState

    seen_s, asked_s = answer.evidence_until_s, answer.asked_at_s
    if asked_s <= seen_s:
        return ""
    try:
        found = await client.get_session(session)
    except LookbackError as error:  # the answer stands, whatever cannot be said about it
        return f"nothing after {format_time(seen_s)} was seen ({error.message})"
    if found.stats is None:
        return (
            f"nothing after {format_time(seen_s)} was seen (how long the video is cannot be read)"
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
