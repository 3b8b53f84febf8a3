"""Tokens to text while they come: never half a character, and where an answer stops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_INCOMPLETE = "\ufffd"


class TextStream:
    """Detokenises one answer as it grows.

    The deltas joined equal the answer decoded whole. Text is held back while it ends in bytes
    that are no character yet. Special tokens give no text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer: Any = tokenizer
        self._ids: list[int] = []
        # Decoding starts one piece of text early, so that what a tokenizer does at the start of
        # a text (dropping a space) happens to text that was given out already.
        self._start = 0
        self._given_out = 0

    def push(self, token_id: int) -> str:
        """Add a token; return the text that it completes, "" when it completes none."""
        self._ids.append(token_id)
        return self._advance(final=False)

    def finish(self) -> str:
        """Return what was held back: bytes that never became a character."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        given_out = self._decode(self._ids[self._start : self._given_out])
        text = self._decode(self._ids[self._start :])
        if len(text) <= len(given_out) or (text.endswith(_INCOMPLETE) and not final):
            return ""
        self._start, self._given_out = self._given_out, len(self._ids)
        return text[len(given_out) :]

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


class StopStrings:
    """Finds the stop strings in an answer's text as it grows.

    transformers' own StopStringCriteria finds the same end, but it takes seconds per string to
    prepare on a large vocabulary, and fails on tokenizers that cannot read its probe text.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._keep = max(map(len, self._stop), default=1) - 1
        self._tail = ""

    def push(self, delta: str) -> bool:
        """Add text; return whether a stop string ends in it."""
        text = self._tail + delta
        self._tail = text[-self._keep :] if self._keep else ""
        return any(stop in text for stop in self._stop)
