"""`lookback ask`: a question, its answer as it comes, and the moments it rests on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    from svc.client import Answer, AskOptions


class Retrieval(Enum):
    """Who chooses the moments that are recalled."""

    PER_LAYER = "per_layer"
    SHARED = "shared"


_RETRIEVAL = "Retrieval"
_DECODING = "Decoding"
_SHOWN_LOSSES = 5


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
        typer.Option(
            help="Whether each layer of the model recalls its own moments, or all the same. ",
            rich_help_panel=_RETRIEVAL,
            show_default="per_layer",
        ),
    ] = None,
    units: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Units recalled, the recent ones included.",
            rich_help_panel=_RETRIEVAL,
            show_default="the model's",
        ),
    ] = None,
    recent: Annotated[
        int | None,
        typer.Option(
            min=0, help="Newest units, always seen.", rich_help_panel=_RETRIEVAL, show_default="1"
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of memory per layer.",
            rich_help_panel=_RETRIEVAL,
            show_default="what the model has room for",
        ),
    ] = None,
    unit_index: Annotated[
        list[int] | None,
        typer.Option(
            min=0,
            help="See exactly this unit; give each. Takes the place of retrieval.",
            rich_help_panel=_RETRIEVAL,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of the answer at most.",
            rich_help_panel=_DECODING,
            show_default="64",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="0: the most likely token each time.",
            rich_help_panel=_DECODING,
            show_default="the model's",
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Probability that the tokens considered reach together.",
            rich_help_panel=_DECODING,
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=0, help="Tokens considered; 0: all.", rich_help_panel=_DECODING),
    ] = None,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(help="Above 1: repeat less.", rich_help_panel=_DECODING),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of sampling.", rich_help_panel=_DECODING)
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="A string that ends the answer; give each.", rich_help_panel=_DECODING),
    ] = None,
    server: ServerOption = None,
    ingest_address: IngestAddressOption = None,
    qa_address: QaAddressOption = None,
) -> None:
    """Asks a question about a session, and shows the moments its answer rests on."""
    from svc.client import DecodingOptions, RetrievalMode, RetrievalOptions

    if before and at is None:
        raise typer.BadParameter("--before needs --at: before which time?", param_hint="--before")
    if unit_index and (retrieval or units or tokens or recent is not None):
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
    answer = asyncio.run(_ask(where, session, question, options, stream=not as_json))
    if as_json:
        sys.stdout.write(json.dumps(answer_json(session, question, answer)) + "\n")
    else:
        sys.stdout.write(_moments(answer, choice or []))
        sys.stderr.write(_warning(answer))
    if history is not None:
        append_turn(history, question, answer.text)


async def _ask(
    where: Endpoints, session: str, question: str, options: AskOptions, *, stream: bool
) -> Answer:
    from svc.client import TextDelta

    async with where.client() as client:
        if not stream:
            return await client.answer(session, question, **options)
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


def answer_json(session: str, question: str, answer: Answer) -> dict[str, Any]:
    """Returns the object that `--json` prints."""
    fields: dict[str, Any] = {
        "session": session,
        "question": question,
        "asked_at_s": answer.asked_at_s,
        "answer": answer.text,
        "evidence": [
            {
                "start_s": moment.start_s,
                "end_s": moment.end_s,
                "score": moment.score,
                "tier": moment.tier.value,
            }
            for moment in answer.evidence
        ],
        "evidence_lost": [
            {
                "start_s": lost.start_s,
                "end_s": lost.end_s,
                "first_unit_index": lost.first_unit_index,
                "unit_count": lost.unit_count,
                "reason": lost.reason.value,
                "first_layer_index": lost.first_layer_index,
            }
            for lost in answer.evidence_lost
        ],
        "evidence_until_s": answer.evidence_until_s,
        "remembers_from_s": answer.remembers_from_s,
        "retrieved_unit_count": answer.retrieved_unit_count,
        "retrieved_token_count": answer.retrieved_token_count,
        "prompt_token_count": answer.prompt_token_count,
        "ttft_s": answer.ttft_s,
        "total_s": answer.total_s,
        "model": answer.model,
    }
    if answer.choice_index is not None:
        fields["choice_index"] = answer.choice_index
        fields["choice_log_likelihoods"] = list(answer.choice_log_likelihoods)
    return fields


def _warning(answer: Answer) -> str:
    """Returns the line that says what the answer had to do without; empty where nothing."""
    if not answer.evidence_lost:
        return ""
    units = sum(lost.unit_count for lost in answer.evidence_lost)
    spans = ", ".join(
        f"{format_time(lost.start_s)} - {format_time(lost.end_s)} ({lost.reason.value})"
        for lost in answer.evidence_lost[:_SHOWN_LOSSES]
    )
    more = len(answer.evidence_lost) - _SHOWN_LOSSES
    rest = f" and {more} more" if more > 0 else ""
    return f"warning: {units} damaged units were left out of this answer: {spans}{rest}\n"


def _moments(answer: Answer, choices: list[str]) -> str:
    lines = [""]
    if answer.remembers_from_s is not None:
        lines.append(f"(the session remembers from {format_time(answer.remembers_from_s)} on)")
    if answer.choice_index is not None:
        for index, choice in enumerate(choices):
            mark = "*" if index == answer.choice_index else " "
            likelihood = answer.choice_log_likelihoods[index]
            lines.append(f" {mark} {choice}  (log-likelihood {likelihood:.3f})")
        lines.append("")
    lines.append("rests on" if answer.evidence else "rests on no moment in particular")
    for moment in answer.evidence:
        span = f"{format_time(moment.start_s)} - {format_time(moment.end_s)}"
        lines.append(f"  {span:<21} score {moment.score:.3f}  {moment.tier.value}")
    lines.append(
        f"seen up to {format_time(answer.evidence_until_s)}; {answer.retrieved_unit_count} of "
        f"{answer.snapshot_unit_count} units; first token after {answer.ttft_s:.2f} s, "
        f"all after {answer.total_s:.2f} s"
    )
    return "\n".join(lines) + "\n"
