from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from svc.engine.text_stream import StopStrings, TextStream

WORDS = ["<unk>", "<end>", "a", "red", "star", ".", "7"]


def byte_tokenizer() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def word_tokenizer(decoder: Any) -> Any:
    prefix = "▁" if decoder is not None else ""
    names = [name if name.startswith("<") else prefix + name for name in WORDS]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    if decoder is not None:
        tokenizer.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>")


BYTES = byte_tokenizer()
PLAIN_WORDS = word_tokenizer(None)
METASPACE = word_tokenizer(decoders.Metaspace())


def stream(tokenizer: Any, ids: list[int]) -> list[str]:
    text = TextStream(tokenizer)
    return [*(text.push(token_id) for token_id in ids), text.finish()]


@given(st.text())
def test_no_delta_holds_half_a_character(text: str) -> None:
    text = text.replace("\ufffd", "")
    ids = BYTES.encode(text, add_special_tokens=False)
    deltas = stream(BYTES, ids)
    assert "".join(deltas) == text
    assert not any("\ufffd" in delta for delta in deltas)


@given(st.lists(st.integers(0, 255), max_size=40))
def test_deltas_of_any_bytes_joined_are_the_text_decoded_whole(ids: list[int]) -> None:
    assert "".join(stream(BYTES, ids)) == BYTES.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("tokenizer", [PLAIN_WORDS, METASPACE], ids=["plain", "metaspace"])
@settings(max_examples=60)
@given(ids=st.lists(st.integers(0, len(WORDS) - 1), max_size=12))
def test_words_keep_their_spaces(tokenizer: Any, ids: list[int]) -> None:
    expected = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert "".join(stream(tokenizer, ids)) == expected


@given(
    st.lists(st.text("ab\n", max_size=4), max_size=12),
    st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4),
)
def test_a_stop_string_is_found_in_the_delta_that_completes_it(
    deltas: list[str], stop: list[str]
) -> None:
    finder = StopStrings(stop)
    text = ""
    for delta in deltas:
        text += delta
        found = finder.push(delta)
        assert found == any(s in text for s in stop)
        if found:
            break
