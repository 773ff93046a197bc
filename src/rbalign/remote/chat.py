"""What a reply of /v1/chat/completions or /v1/completions holds, read with suspicion."""

from __future__ import annotations

import json
from typing import Any

from rbalign.remote.client import Read
from rbalign.remote.counts import Usage
from rbalign.remote.wire import AttemptError, Reply
from rbalign.types import StopReason

CHARACTERS_PER_TOKEN = 4
"""To reserve tokens before a server counts them."""
STOPS = {"stop": StopReason.END, "length": StopReason.LENGTH}


def choices(reply: Reply) -> tuple[list[Any], Usage]:
    """The choices of a JSON reply, and its usage where it tells one."""
    table = json.loads(reply.body)
    usage = table.get("usage") or {}
    counted = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
    return table["choices"], Usage(*(number if isinstance(number, int) else 0 for number in counted))


def content(message: Any) -> str:
    """The text of a message. A thinking model that spent its tokens on thoughts has none: an answer cut short."""
    text = message["content"]
    return "" if text is None else sound(text)


def sound(text: Any) -> str:
    """A string that UTF-8 holds: JSON may bring halves of surrogate pairs. TypeError for what is no string."""
    if not isinstance(text, str):
        raise TypeError("the text is no string")
    return text.encode("utf-8", "replace").decode("utf-8")


def stop_of(choice: Any) -> StopReason:
    """Why a choice ended. AttemptError for a reason that leaves no usable text (a content filter)."""
    stop = STOPS.get(choice["finish_reason"])
    if stop is None:
        raise AttemptError(f"the reply ended as {choice['finish_reason']!r}"[:200], "unusable", retry=False)
    return stop


def read_answer(reply: Reply) -> Read:
    """(text, StopReason) of a chat reply with one choice."""
    (choice,), usage = choices(reply)
    return Read((content(choice["message"]).strip(), stop_of(choice)), usage)
