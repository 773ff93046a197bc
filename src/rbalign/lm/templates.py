"""Chat templates as token ids: what stands around a user's words, derived from any template by a sentinel.

Text prompts and speech prompts share these ids exactly: `before + content + after`, where the content is the ids
of the written words or the embeddings of the spoken ones.
"""

from __future__ import annotations

from typing import Any

from rbalign.errors import UsageError

SENTINEL = "\u27e6user\u27e7"


def around_user(tokenizer: Any, system: str | None = None) -> tuple[list[int], list[int]]:
    """Ids before and after the user's content, the generation prompt included.

    `system=None` leaves the template's own default (SmolLM2's names itself); a string replaces it.
    """
    messages = [{"role": "user", "content": SENTINEL}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if text.count(SENTINEL) != 1:
        raise UsageError(
            f"the chat template shows the user's content {text.count(SENTINEL)} times, once is needed",
            "use a plain chat template without rewriting of the user's words",
        )
    before, after = text.split(SENTINEL)
    return _encode(tokenizer, before), _encode(tokenizer, after)


def prequery_ids(tokenizer: Any, system: str | None = None) -> list[int]:
    """Magpie's pre-query prefix: everything that the template writes before the user's first word."""
    return around_user(tokenizer, system)[0]


def chat_ids(tokenizer: Any, user: str, system: str | None = None) -> list[int]:
    """The whole prompt for a written request."""
    before, after = around_user(tokenizer, system)
    return before + _encode(tokenizer, user) + after


def end_ids(tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end a turn: the one the template writes after a user's words, and EOS."""
    after = around_user(tokenizer)[1]
    turn_end = [token for token in after[:1] if token in set(tokenizer.all_special_ids)]
    return tuple(dict.fromkeys([*turn_end, tokenizer.eos_token_id]))


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))
