"""The prompt in three pieces: prefix | stream | question, from the checkpoint's own template.

The template is rendered with marks where user text belongs. Special tokens of the template are
hard boundaries of tokenisation; between two of them, template text and user text are tokenised
together, by a tokeniser that knows no special tokens. So the pieces equal the whole, and user
text stays text: `<|im_end|>` in a question is ten characters, never the end of a turn.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from svc.engine.errors import EmptyQuestionError, QuestionTooLongError, UnsupportedModelError

_MARK = "\ue000{}\ue001"  # private-use characters: no template trims or contains them
_MARK_PATTERN = re.compile("\ue000(\\d+)\ue001")
_PROBE = "What is on screen, and since when?"
_SEARCHING_TURNS = 3
"""A follow-up to a follow-up still finds what the first one named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionPrompt:
    """The question segment: everything after the stream, up to where the answer begins."""

    token_ids: tuple[int, ...]
    """Tokens of the segment, without the adapter's lead embeddings."""
    text_positions: tuple[int, ...]
    """Places in the segment, lead embeddings counted, of the question's own text: the newest
    question without history and template. Retrieval's query is the mean over these."""
    turn_positions: tuple[tuple[int, ...], ...]
    """Places likewise of the texts of the earlier turns that are in the segment, question and
    answer of each, oldest first."""
    lead_count: int
    """Embeddings that the adapter puts before the tokens."""

    @property
    def searches(self) -> tuple[tuple[int, ...], ...]:
        """Places of each text that searches: the question, then the last turns, newest first."""
        newest_first = self.turn_positions[::-1][:_SEARCHING_TURNS]
        return (self.text_positions, *filter(None, newest_first))

    @property
    def position_count(self) -> int:
        """Positions that the whole segment takes."""
        return self.lead_count + len(self.token_ids)


class PromptFormat:
    """Turns questions into token ids the way one checkpoint was taught. Thread-safe."""

    def __init__(
        self,
        path: str,
        tokenizer: Any,
        template: str | None,
        *,
        video_mark: Sequence[int],
        lead_count: int,
    ) -> None:
        """Read the template and check that it can be taken apart.

        Args:
            path: the checkpoint, for messages.
            tokenizer: its transformers tokenizer, of the fast kind.
            template: its chat template; None takes the tokenizer's.
            video_mark: tokens of the template that the video takes the place of.
            lead_count: embeddings that the adapter puts before the question's tokens.

        Raises:
            UnsupportedModelError: no fast tokenizer, no template, or one that cannot be split.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise UnsupportedModelError(path, "its tokenizer has no fast backend")
        if template is None and not tokenizer.chat_template:
            raise UnsupportedModelError(path, "it has no chat template")
        self._path = path
        self._tokenizer: Any = tokenizer
        self._template = template
        self._lead_count = lead_count
        special = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        self._special_ids: dict[str, int] = special
        longest_first = sorted(map(re.escape, special), key=len, reverse=True)
        self._special_pattern = re.compile("(" + "|".join(longest_first) + ")")
        # own copy: the flag is state of the tokenizer, and others use theirs with special tokens
        self._plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._plain.encode_special_tokens = True
        self._video_ids = list(video_mark)
        self._video = "".join(tokenizer.convert_ids_to_tokens(self._video_ids))
        prefix, _ = self._render_apart([_PROBE])
        self._prefix_text = prefix
        self.prefix_ids: tuple[int, ...] = self._encode_pieces([prefix], [])[0]
        self._check_pieces_equal_whole()

    def question(
        self,
        question: str,
        history: Sequence[tuple[str, str]] = (),
        *,
        max_token_count: int | None = None,
    ) -> QuestionPrompt:
        """Return the question segment, with as many of the newest turns as fit, each whole.

        Args:
            question: what the user asks, any text.
            history: earlier (question, answer) turns of the conversation, oldest first.
            max_token_count: tokens at most, template and history included.

        Raises:
            EmptyQuestionError: the question tokenises to nothing.
            QuestionTooLongError: it takes more than `max_token_count` tokens without any turn.
        """
        prompt = self._segment(question, history)
        if max_token_count is None or len(prompt.token_ids) <= max_token_count:
            return prompt

        def fits(turns_left_out: int) -> bool:
            shorter = self._segment(question, history[turns_left_out:])
            return len(shorter.token_ids) <= max_token_count

        turns_left_out = bisect_left(range(len(history) + 1), True, lo=1, key=fits)
        prompt = self._segment(question, history[turns_left_out:])
        if len(prompt.token_ids) > max_token_count:
            raise QuestionTooLongError(len(prompt.token_ids), max_token_count)
        return prompt

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Return the tokens of plain text; special-token strings in it are plain text too."""
        return tuple(self._plain.encode(text, add_special_tokens=False).ids)

    def _segment(self, question: str, turns: Sequence[tuple[str, str]]) -> QuestionPrompt:
        texts = [text for turn in turns for text in turn] + [question]
        _, tail = self._render_apart(texts)
        token_ids, places = self._encode_pieces(*_cut(tail, texts))
        *of_turns, own_places = (
            tuple(self._lead_count + place for place in of_text) for of_text in places
        )
        if not own_places:
            raise EmptyQuestionError
        return QuestionPrompt(
            token_ids=token_ids,
            text_positions=own_places,
            turn_positions=tuple(
                asked + answered
                for asked, answered in zip(of_turns[::2], of_turns[1::2], strict=True)
            ),
            lead_count=self._lead_count,
        )

    def _render_apart(self, texts: Sequence[str]) -> tuple[str, str]:
        """Return the template's text before and after the video, with marks for the texts."""
        marks = [_MARK.format(index) for index in range(len(texts))]
        rendered = self._render(marks)
        pieces = rendered.split(self._video)
        if len(pieces) != 2:
            raise UnsupportedModelError(
                self._path,
                f"its template renders {len(pieces) - 1} of {self._video!r} for one video",
            )
        found = [int(index) for index in _MARK_PATTERN.findall(pieces[1])]
        if found != list(range(len(texts))):
            raise UnsupportedModelError(
                self._path, "its template does not render each turn once, after the video"
            )
        return pieces[0], pieces[1]

    def _render(self, texts: Sequence[str]) -> str:
        messages: list[dict[str, Any]] = []
        for index, text in enumerate(texts):
            content: list[dict[str, str]] = [{"type": "text", "text": text}]
            if index == 0:
                content.insert(0, {"type": "video"})
            messages.append({"role": "assistant" if index % 2 else "user", "content": content})
        rendered: str = self._tokenizer.apply_chat_template(
            messages, chat_template=self._template, tokenize=False, add_generation_prompt=True
        )
        return rendered

    def _encode_pieces(
        self, template_texts: Sequence[str], user_texts: Sequence[str]
    ) -> tuple[tuple[int, ...], list[list[int]]]:
        """Tokenise template and user texts in turn; return the ids, and which are of which text.

        Args:
            template_texts: special tokens are recognised in these.
            user_texts: one after each template text but the last; nothing is recognised here.

        Returns:
            ids, and per user text the places of its tokens among them.
        """
        ids: list[int] = []
        places: list[list[int]] = [[] for _ in user_texts]
        run = ""
        spans: list[tuple[int, int, list[int]]] = []  # of user texts in the run

        def flush() -> None:
            nonlocal run
            encoding = self._plain.encode(run, add_special_tokens=False)
            for token_id, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
                for text_start, text_stop, of_text in spans:
                    if start < text_stop and stop > text_start:
                        of_text.append(len(ids))
                ids.append(token_id)
            run = ""
            spans.clear()

        for index, template_text in enumerate(template_texts):
            for part in self._special_pattern.split(template_text):
                if part in self._special_ids:
                    flush()
                    ids.append(self._special_ids[part])
                else:
                    run += part
            if index < len(user_texts) and user_texts[index]:
                spans.append((len(run), len(run) + len(user_texts[index]), places[index]))
                run += user_texts[index]
        flush()
        return tuple(ids), places

    def _check_pieces_equal_whole(self) -> None:
        """Refuse a tokenizer whose special tokens are no hard boundaries."""
        texts = [_PROBE, "A cat.", "And\nnow?"]
        _, tail = self._render_apart(texts)
        apart, _ = self._encode_pieces(*_cut(tail, texts))
        whole = self._tokenizer.encode(self._render(texts), add_special_tokens=False)
        if [*self.prefix_ids, *self._video_ids, *apart] != whole:
            raise UnsupportedModelError(
                self._path, "its template tokenised in pieces differs from tokenised whole"
            )
        if set(self._video_ids) & set(self.encode_text(self._video)):
            raise UnsupportedModelError(
                self._path, f"its tokenizer cannot read {self._video!r} as plain text"
            )


def _cut(tail: str, texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the tail's text between the marks, and the texts the marks stand for."""
    return _MARK_PATTERN.split(tail)[::2], list(texts)
