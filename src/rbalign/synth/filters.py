"""Which instructions people would say aloud: each filter has a name, and what it drops is counted under it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from rbalign.assets import model_folder
from rbalign.config.languages import NOT_LATIN
from rbalign.config.synth import RATING, FilterConfig, SynthConfig
from rbalign.scorers.base import Scorer
from rbalign.scorers.form import novel
from rbalign.scorers.registry import build
from rbalign.synth.qa import pair_cause, question_cause
from rbalign.synth.translate import transcript_cause, translation_cause
from rbalign.text.language import count_words, speaks
from rbalign.text.refusals import is_boilerplate, refuses
from rbalign.text.speakable import speakability
from rbalign.types import StopReason

TEACHER_FAILED = "teacher-failed"
"""The cause under which requests that a server never answered are counted."""

MATHEMATICS = re.compile(
    r"\b(solve|equation|integral|derivative|theorem|polynomial|matrix|eigenvalue|quadratic|logarithm|factorial"
    r"|probability of|calculate the (area|volume|sum|value|perimeter|angle)|square root|prime factor)\b"
    r"|\d\s*[-+*/^=×÷]\s*\d|\b[a-z]\s*[=^]\s*[\w(]",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+")


def drop_cause(text: str, stop: StopReason, config: FilterConfig) -> str | None:
    """The name of the first filter that drops an instruction, or None. No state: near-duplicates come later."""
    if stop is not StopReason.END:
        return TEACHER_FAILED if stop is StopReason.FAILED else "unfinished"
    return text_cause(text, config)


def text_cause(text: str, config: FilterConfig) -> str | None:
    """The filters that look at the text alone."""
    words = count_words(text, config.language)
    if words < config.min_words:
        return "too short"
    if words > config.max_words:
        return "too long"
    limits = config.speakable
    if config.language in NOT_LATIN:
        limits = limits.model_copy(update={"max_foreign_share": 1.0})
    asked = text.replace(";", "?") if config.language == "el" else text  # the Greek question mark looks like code
    reasons = speakability(asked, limits, config.mathematics)
    if reasons:
        return f"not speakable: {reasons[0]}"
    if not config.mathematics and MATHEMATICS.search(text):
        return "mathematics"
    if not config.refusals and is_boilerplate(text):
        return "boilerplate"
    return None if speaks(text, config.language, config.min_language_certainty) else "other language"


def answer_cause(text: str, stop: StopReason, config: FilterConfig) -> str | None:
    """y_ref must be complete with its end token, and there must be one."""
    if stop is not StopReason.END:
        return TEACHER_FAILED if stop is StopReason.FAILED else "answer unfinished"
    if not text:
        return "answer empty"
    return "refusal" if not config.refusals and refuses(text) else None


def instruction_cause(text: str, stop: StopReason, config: SynthConfig) -> str | None:
    """Why a text is worth no answer: `drop_cause`, and what the recipe's kind asks for."""
    if config.recordings is not None:
        return transcript_cause(text, config.filters)
    return drop_cause(text, stop, config.filters) or (question_cause(text) if config.kind == "qa" else None)


def draft_cause(draft: Mapping[str, Any], config: SynthConfig) -> str | None:
    """Why a draft (see write.py) becomes no example. No state: near-duplicates come later."""
    text, stop = draft["text"], StopReason(draft["stop"])
    return instruction_cause(text, stop, config) or (answered_cause(draft, config) if config.answers else None)


def answered_cause(draft: Mapping[str, Any], config: SynthConfig) -> str | None:
    """Why the answer of a draft is none: `answer_cause`, and what the recipe's kind asks for."""
    if "answer" not in draft:
        return "answer missing"  # an earlier version of rba thought the text worth none
    text, answer = draft["text"], draft["answer"]
    cause = answer_cause(answer, StopReason(draft["answer_stop"]), config.filters)
    if cause is not None:
        return cause
    if config.kind == "instructions":
        wanted = config.filters.min_novelty
        return "echo" if wanted and novel(text, answer) < wanted else None
    if config.kind == "s2tt":
        return translation_cause(text, answer, config.s2tt, config.filters.language)
    failed = draft.get("aliases_stop") == StopReason.FAILED
    return pair_cause(text, answer, config.qa) or (TEACHER_FAILED if failed else None)


def score_cause(text: str, answer: str, config: SynthConfig) -> str | None:
    """The scorer whose minimum an answer misses; None too where it gives no number.

    A score depends on this pair alone, so that a restart and a merge, which score anew, decide alike: pairs are scored
    one by one, since in a batch padding moves a model's last digits.
    """
    for name in RATING:  # in one order, however the recipe is written
        if (minimum := config.filters.scorers.get(name)) is None:
            continue
        (score,) = _scorer(name, config)([text], [answer], [None])
        if score is not None and score < minimum:
            return f"score below minimum: {name}"
    return None


def _scorer(name: str, config: SynthConfig) -> Scorer:
    if name == "language":
        return _built(name, expected=config.s2tt.target if config.kind == "s2tt" else config.filters.language)
    if name == "reward-model":
        return _built(name, folder=config.filters.reward_model)
    return _built(name)


@cache
def _built(name: str, **resources: Any) -> Scorer:
    """A scorer, built once in a process."""
    if "folder" in resources:
        resources["folder"] = model_folder(resources["folder"])
    return build(name, **resources)


def sentences(text: str) -> list[str]:
    """Split a text at sentence ends; a last piece without one is left out, for it may be cut off."""
    pieces = [piece.strip() for piece in SENTENCE_END.split(" ".join(text.split()))]
    return [piece for piece in pieces if re.search(r"[.!?][\"')\]]*$", piece)]
