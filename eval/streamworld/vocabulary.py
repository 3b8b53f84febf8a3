"""The words of StreamWorld and their token ids: one word, one token."""

from __future__ import annotations

import re

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
DIGITS = tuple("0123456789")
# No letter here is an English word, nor what a contraction leaves behind ("don't" -> "t"), so
# questions can be lower-cased and the letters restored without ambiguity.
LETTERS = ("H", "K", "L", "V", "X")
ENTITIES = SHAPES + DIGITS + LETTERS
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "cyan")
SCENES = ("night", "grass", "sky", "sand", "brick", "snow")
DIRECTIONS = ("left", "right", "up", "down", "nowhere")
COUNTS = tuple("012345")

SPECIALS = ("<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
_WORDS = (
    "\n . , ? ! : ' system user assistant you are a an helpful what which how many times is on "
    "screen now it this colour color was the did does do move moved moving way where when who "
    "appear appears appeared first last came come comes or after before object objects visible "
    "background place scene nothing none yes no of shown show shape digit number letter text "
    "written answer with has have had been seen see i saw current currently right at not in "
    "there that were and to for me tell please can could symbol character direction go went going "
    "often earlier ever thing image video one display displayed looking look s kind being so far "
    "up to moment just s d ve m re then time"
)
VOCABULARY_SIZE = 192


def _unique(words: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))


WORDS = _unique(
    [
        *SPECIALS,
        *_WORDS.split(" "),
        *SHAPES,
        *DIGITS,
        *LETTERS,
        *COLOURS,
        *DIRECTIONS,
        *SCENES,
    ]
)
TOKEN_ID = {word: i for i, word in enumerate(WORDS)}
PAD_ID, UNK_ID = TOKEN_ID["<pad>"], TOKEN_ID["<unk>"]
END_ID, NEWLINE_ID = TOKEN_ID["<|im_end|>"], TOKEN_ID["\n"]
IMAGE_ID, VIDEO_ID = TOKEN_ID["<image>"], TOKEN_ID["<video>"]

# Special tokens, line ends, words, single digits, single punctuation marks.
TOKEN_PATTERN = r"\n|[A-Za-z]+|[0-9]|[^\sA-Za-z0-9]"
_PIECES = re.compile(r"<\|im_start\|>|<\|im_end\|>|<image>|<video>|" + TOKEN_PATTERN)

SYSTEM_TEXT = "you are a helpful assistant ."
PREFIX_TEXT = f"<|im_start|>system\n{SYSTEM_TEXT}<|im_end|>\n<|im_start|>user\n"
TAIL_TEXT = "<|im_end|>\n<|im_start|>assistant\n"
TURN_TEXT = "<|im_end|>\n<|im_start|>user\n"


def normalise(word: str) -> str:
    """Lower case, except the letters of the world, which are upper case."""
    upper = word.upper()
    return upper if upper in LETTERS else word.lower()


def encode(text: str) -> list[int]:
    """Token ids of `text`, as the exported tokenizer gives them; unknown words become `<unk>`."""
    return [TOKEN_ID.get(normalise(piece), UNK_ID) for piece in _PIECES.findall(text)]


PREFIX_IDS = tuple(encode(PREFIX_TEXT))
TAIL_IDS = tuple(encode(TAIL_TEXT))
TURN_IDS = tuple(encode(TURN_TEXT))
