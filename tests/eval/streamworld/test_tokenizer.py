"""The exported tokenizer gives the ids that training used, however a question is typed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from eval.streamworld.tokenizer import build_tokenizer
from eval.streamworld.vocabulary import PREFIX_TEXT, TAIL_TEXT, WORDS, encode

TOKENIZER = build_tokenizer()


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids


@settings(max_examples=200, deadline=None)
@given(words=st.lists(st.sampled_from([*WORDS[6:], "zebra", "Don't", "H2", "(x)"]), max_size=12))
def test_ids_equal_the_training_vocabularys(words: list[str]) -> None:
    text = " ".join(words)
    assert _ids(TOKENIZER, text) == encode(text)


@pytest.mark.parametrize(
    ("typed", "trained"),
    [
        ("What colour was the Star?", "what colour was the star ?"),
        ("WHICH CAME FIRST,the h or the 5?", "which came first , the H or the 5 ?"),
        ("where did the  x appear ?", "where did the X appear ?"),
    ],
)
def test_case_and_glued_punctuation_do_not_matter(typed: str, trained: str) -> None:
    assert _ids(TOKENIZER, typed) == _ids(TOKENIZER, trained) == encode(trained)


def test_a_single_letter_is_no_article() -> None:
    assert _ids(TOKENIZER, "a") != _ids(TOKENIZER, "h")
    assert TOKENIZER.decode(_ids(TOKENIZER, "a red h")) == "a red H"


def test_the_chat_template_gives_the_trained_prompt() -> None:
    question = "what colour was the star ?"
    content: Any = [{"type": "video"}, {"type": "text", "text": question}]
    text = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    assert text == f"{PREFIX_TEXT}<video>\n{question}{TAIL_TEXT}"
    pieces = (PREFIX_TEXT, "<video>", "\n", question, TAIL_TEXT)
    assert _ids(TOKENIZER, text) == [i for piece in pieces for i in _ids(TOKENIZER, piece)]
