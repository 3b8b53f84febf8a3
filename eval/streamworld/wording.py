"""How each kind of question is put, and the words that can answer it."""

from __future__ import annotations

from typing import Literal, get_args

from eval.streamworld.vocabulary import (
    COLOURS,
    COUNTS,
    DIGITS,
    DIRECTIONS,
    ENTITIES,
    LETTERS,
    SCENES,
    SHAPES,
)

Kind = Literal[
    "now_what", "now_object", "now_colour", "now_scene",
    "past_object", "past_colour", "past_scene", "past_text",
    "count", "order", "motion", "not_seen",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)
NOW_KINDS: tuple[Kind, ...] = ("now_what", "now_object", "now_colour", "now_scene")
# the kinds a "not seen" question can be worded as
ASKED_AS: tuple[Kind, ...] = ("past_object", "past_colour", "past_scene", "past_text", "motion")

NOT_SEEN = "not seen"
NOTHING = "nothing"
# {e} and {f} stand for entities, {c} for a colour, {g} for digit or letter
PHRASES: dict[Kind, tuple[str, ...]] = {
    "now_what": (
        "what is on screen now ?", "what is visible right now ?", "what do you see now ?",
        "what is on the screen right now ?", "what is being shown now ?",
    ),
    "now_object": (
        "which object is on screen now ?", "what object is visible right now ?",
        "what object is this ?", "which object is on the screen ?",
    ),
    "now_colour": (
        "what colour is it now ?", "what colour is the object on screen now ?",
        "what color is it right now ?", "which colour is the object on screen ?",
    ),
    "now_scene": (
        "what is the background now ?", "where is this now ?", "what scene is this ?",
        "what is the scene right now ?",
    ),
    "past_colour": (
        "what colour was the {e} ?", "which colour was the {e} ?",
        "what was the colour of the {e} ?", "what color was the {e} ?",
        "what colour did the {e} have ?",
    ),
    "past_object": (
        "which object was {c} ?", "what was {c} ?", "what object was {c} ?",
        "what was the {c} object ?", "which {c} object was seen ?",
    ),
    "past_scene": (
        "where did the {e} appear ?", "what was the background of the {e} ?", "where was the {e} ?",
        "in which scene was the {e} ?", "what was the background when the {e} was shown ?",
    ),
    "past_text": (
        "which {g} was {c} ?", "what {g} was {c} ?", "what was the {c} {g} ?",
        "which {c} {g} was shown ?",
    ),
    "motion": (
        "which way did the {e} move ?", "where did the {e} move ?",
        "in which direction did the {e} move ?", "which way did the {e} go ?",
    ),
    "count": (
        "how many times did the {e} appear ?", "how many times has the {e} been seen ?",
        "how often did the {e} appear ?", "how many times was the {e} shown ?",
    ),
    "order": (
        "which came first , the {e} or the {f} ?", "what appeared first , the {e} or the {f} ?",
        "which was first , the {e} or the {f} ?",
    ),
    "not_seen": (),
}  # fmt: skip


def answer_words(kind: Kind, answer: str) -> tuple[str, ...]:
    """The one-word answers that `answer` could be confused with, itself included."""
    if kind == "past_text":
        return DIGITS if answer in DIGITS else LETTERS
    if kind == "order":
        return ENTITIES
    groups = (
        (COUNTS,) if kind == "count" else (COLOURS, SCENES, DIRECTIONS, SHAPES, DIGITS, LETTERS)
    )
    return next(group for group in groups if answer in group)
