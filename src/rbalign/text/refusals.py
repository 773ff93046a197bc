"""Answers that refuse or speak of themselves as an AI, and instructions in an assistant's voice: nobody wants to learn
the former from a teacher or asks the latter. English patterns, made from what SmolLM2 and Llama write."""

from __future__ import annotations

import re

_NOT = r"(?:can(?:'|’)?t|cannot|can not|won(?:'|’)?t|unable|not able)"
_AI = r"an? (?:ai|artificial intelligence|(?:large |helpful )?language model|computer program)\b"
_HELP = r"(?:help|assist|provide|answer|comply|fulfill?|do that|create|generate|access|browse|offer|recommend)"

REFUSAL = re.compile(
    rf"\bas {_AI}|\bi(?:'|’| a)?m (?:just |only )?{_AI}"
    rf"|\bi(?:'|’| a)?m (?:sorry|afraid)\b[^.!?]{{0,60}}\b{_NOT}\b"
    rf"|\bi (?:am )?{_NOT} (?:to )?{_HELP}\b|\bi(?:'|’| a)?m (?:currently )?{_NOT} to {_HELP}\b",
    re.IGNORECASE,
)
BOILERPLATE = re.compile(
    r"^(?:(?:hello|hi|hey|welcome|sure|certainly|of course|absolutely|thank you|thanks|great)\b[^.!?,]{0,40}[.!,]\s*)*"
    r"(?:how (?:can|may) i (?:help|assist) you\b|what can i (?:help you|do for you)\b"
    r"|i(?:'|’| a)?m (?:here|happy|glad|ready) to (?:help|assist)\b|(?:sure|certainly|of course)[,!] (?:here|i)\b)"
    r"|\bas an? (?:ai|artificial intelligence|language model)\b(?=[^.!?]{0,30}\bi\b)",
    re.IGNORECASE,
)


def refuses(answer: str) -> bool:
    """Whether an answer declines, or says that it is a machine."""
    return bool(REFUSAL.search(answer))


def is_boilerplate(instruction: str) -> bool:
    """Whether an instruction is what an assistant says, not what people ask one."""
    return bool(BOILERPLATE.search(instruction))
