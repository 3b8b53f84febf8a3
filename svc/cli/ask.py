"""`lookback ask`: questions, their answers as they come, and the moments they rest on."""

from __future__ import annotations

from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from svc.cli.chat import chat as chat_by_line
from svc.cli.flags import naming
from svc.cli.remote import (
    IngestAddressOption,
    QaAddressOption,
    ServerOption,
    endpoints,
)
from svc.cli.talk import Talk
from svc.cli.times import parse_time_s

if TYPE_CHECKING:
    from svc.client import QuestionOptions


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
    question: Annotated[
        str | None,
        typer.Argument(help="The question; with --chat the first one.", metavar="QUESTION"),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="Go on with a question a line, from a terminal or standard input, each asked with "
            "the turns before it. A line may have its own time: @1:30 what is it ?",
        ),
    ] = False,
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
            help="Keep a conversation in this JSON file: the last 32 turns are sent along, but "
            "for those that saw what is after --at, and this one is added.",
            metavar="FILE",
            dir_okay=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each answer as one line of JSON.")
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
) -> int:
    """Asks a question about a session, and shows the moments its answer rests on."""
    from svc.client import DecodingOptions, RetrievalMode, RetrievalOptions

    if question is None and not chat:
        raise typer.BadParameter("give one, or --chat", param_hint="QUESTION")
    if before and at is None and not chat:
        raise typer.BadParameter("--before needs --at: before which time?", param_hint="--before")
    if unit_index and (retrieval or each_token or units or tokens or recent is not None):
        raise typer.BadParameter(
            "takes the place of the other options of retrieval", param_hint="--unit-index"
        )
    options: QuestionOptions = {
        "before": before,
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
    with Talk(where, session, options, history=history, as_json=as_json) as talk:

        def put(text: str, at_s: float | None) -> None:
            with naming(_FLAGS):
                talk.put(text, at_s, choice or ())

        if question is not None:
            put(question, at)
        return chat_by_line(put, at_s=at) if chat else 0
