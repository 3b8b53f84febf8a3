"""What the commands about sessions share: arguments, options, and how a session is printed."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from svc.cli.keeping import KEEPING_FLAGS
from svc.cli.session_view import session_json

if TYPE_CHECKING:
    from svc.client import Session

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SessionArgument = Annotated[str, typer.Argument(help="Name of the session.", metavar="SESSION")]
NameOption = Annotated[str | None, typer.Option("--name", help="Text for people.")]
FpsOption = Annotated[
    float | None,
    typer.Option(
        "--fps",
        min=0.01,
        help="Frames that are kept per second of video; fixed when the session is created. ",
        show_default="the server's",
    ),
]
ReductionOption = Annotated[
    str | None,
    typer.Option(
        "--reduction",
        metavar="POLICY[:PRESET]",
        help="Which visual tokens are kept: none, last_kept, dtd, dtd_pixel, budget or key_norm; "
        "with :light, :balanced or :aggressive, or a strength of its own; fixed when the session "
        "is created. ",
        show_default="the server's",
    ),
]
UnitTokensOption = Annotated[
    int | None,
    typer.Option(
        "--unit-tokens",
        min=1,
        max=16384,
        help="Tokens that a picture becomes at most, for models that size frames by it; fixed when "
        "the session is created. ",
        show_default="the server's",
    ),
]
FrameSizeOption = Annotated[
    str | None,
    typer.Option(
        "--frame-size",
        metavar="WxH",
        help="Size of the source's frames in pixels: some models keep its shape; fixed when the "
        "session is created. ",
        show_default="1280x720",
    ),
]

FLAGS = {
    "sample_fps": "--fps",
    "reduction": "--reduction",
    "unit_tokens": "--unit-tokens",
    "frame_width": "--frame-size",
    "display_name": "--name",
    **KEEPING_FLAGS,
}
"""Options by the fields that they set."""


def parse_frame_size(text: str | None) -> tuple[int, int]:
    """Returns width and height of "1280x720"; (0, 0) for nothing.

    Raises:
        typer.BadParameter: the text is neither.
    """
    if text is None:
        return 0, 0
    width, separator, height = text.partition("x")
    if not (separator and width.isdecimal() and height.isdecimal() and int(width) * int(height)):
        raise typer.BadParameter(
            f"{text!r} is no size, give one as in 1280x720", param_hint="--frame-size"
        )
    return int(width), int(height)


def tell(session: Session, as_json: bool, text: str) -> None:
    """Prints what was done: the session as it is now, or a line."""
    if as_json:
        print_json(session_json(session))
    else:
        sys.stdout.write(f"{text}\n")


def print_json(value: object) -> None:
    """Prints one JSON value in a line."""
    sys.stdout.write(json.dumps(value) + "\n")
