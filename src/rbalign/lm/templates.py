"""Chat templates as token ids: what stands around a user's words, derived from any template by a sentinel.

Text prompts and speech prompts share these ids exactly: `before + content + after`, where the content is the ids
of the written words or the embeddings of the spoken ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from jinja2 import TemplateError

from rbalign.errors import UsageError

SENTINEL = "\u27e6user\u27e7"
APART = "\n\n"
"""Between a system prompt and the user's words, where a template has no place of its own for it."""
DAY = date(2024, 7, 26)
"""What "today" is in every prompt (Llama's own default): a run that goes on tomorrow must write the same texts."""
_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
"""How templates ask for the date. transformers lets no argument stand in for its `strftime_now`."""


def around_user(tokenizer: Any, system: str | None = None) -> tuple[list[int], list[int]]:
    """Ids before and after the user's content, the generation prompt included.

    `system=None` leaves the template's own default (SmolLM2's names itself); a string replaces it. A template that
    refuses or drops system prompts (Gemma's, Mistral's) gets the string at the beginning of the user's turn.
    """
    before, after = _split(_asked(tokenizer, system))
    return _encode(tokenizer, before), _encode(tokenizer, after)


def prequery_ids(tokenizer: Any, system: str | None = None) -> list[int]:
    """Magpie's pre-query prefix: everything that the template writes before the user's first word.

    But for a space at its end (Mistral's): words begin with their space, and after a lone one a model is lost.
    """
    return _encode(tokenizer, _split(_asked(tokenizer, system))[0].rstrip(" "))


def chat_ids(tokenizer: Any, user: str, system: str | None = None) -> list[int]:
    """The whole prompt for a written request."""
    before, after = around_user(tokenizer, system)
    return before + _encode(tokenizer, user) + after


def end_ids(tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end a turn: first what the template writes after an answer, then after a user's words, and EOS.

    They differ in Mistral's template: `</s>` and `[/INST]`.
    """
    answered = [{"role": "user", "content": "?"}, {"role": "assistant", "content": SENTINEL}]
    eos = tokenizer.eos_token_id
    of_answer = _end_of_turn(tokenizer, _split(_rendered(tokenizer, answered))[1])
    of_user = _end_of_turn(tokenizer, _split(_asked(tokenizer, None))[1])
    return tuple(dict.fromkeys([*(of_answer or [eos]), *of_user, eos]))


def _asked(tokenizer: Any, system: str | None) -> str:
    """A user's turn, the sentinel in the place of the words, and the header of the answer."""
    user = {"role": "user", "content": SENTINEL}
    if system is None:
        return _rendered(tokenizer, [user], add_generation_prompt=True)
    try:
        text = _rendered(tokenizer, [{"role": "system", "content": system}, user], add_generation_prompt=True)
        dropped = system.strip() not in text and text == _rendered(tokenizer, [user], add_generation_prompt=True)
    except UsageError:
        dropped = True
    if dropped:
        words = system + APART + SENTINEL if system else SENTINEL
        return _rendered(tokenizer, [{"role": "user", "content": words}], add_generation_prompt=True)
    return text


def _rendered(tokenizer: Any, messages: Sequence[Mapping[str, str]], **settings: Any) -> str:
    """The chat as text, on `DAY`."""
    template = tokenizer.get_chat_template()
    fixed = _TODAY.sub(lambda call: f"{call[1]}{DAY.strftime(call[2])}{call[1]}", template)
    try:
        text: str = tokenizer.apply_chat_template(messages, chat_template=fixed, tokenize=False, **settings)
    except TemplateError as error:
        roles = " and ".join(message["role"] for message in messages)
        raise UsageError(
            f"the chat template refuses a chat of {roles}: {error}",
            "use the template that the model was released with, or another model",
        ) from None
    return text


def _split(text: str) -> tuple[str, str]:
    if text.count(SENTINEL) != 1:
        raise UsageError(
            f"the chat template shows what is said {text.count(SENTINEL)} times, once is needed",
            "use a plain chat template without rewriting of the words",
        )
    before, after = text.split(SENTINEL)
    return before, after


def _end_of_turn(tokenizer: Any, after: str) -> list[int]:
    """The token that `after` begins with, if it is one that no words make."""
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return [token for token in _encode(tokenizer, after)[:1] if token in special]


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))
