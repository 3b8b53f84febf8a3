"""The exported tokenizer: one word, one token; case and glued punctuation do not matter."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from eval.streamworld.vocabulary import (
    LETTERS,
    SPECIALS,
    SYSTEM_TEXT,
    TOKEN_ID,
    TOKEN_PATTERN,
    VOCABULARY_SIZE,
)

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + SYSTEM_TEXT + "<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif part['type'] == 'image' %}{{ '<image>\n' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A WordLevel tokenizer that gives the ids of `vocabulary.encode`, with the chat template.

    It has no decoder: words are joined by spaces.
    """
    ids = TOKEN_ID | {f"<unused{i}>": i for i in range(len(TOKEN_ID), VOCABULARY_SIZE)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    # questions are lower-cased, then a letter that stands alone becomes upper case again
    restore = [
        normalizers.Replace(Regex(rf"(?<![A-Za-z]){letter.lower()}(?![A-Za-z])"), letter)
        for letter in LETTERS
    ]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *restore])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(TOKEN_PATTERN), behavior="removed", invert=True
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=[s for s in SPECIALS if s not in ("<pad>", "<unk>")],
        chat_template=CHAT_TEMPLATE,
    )
