"""Questions with known answers to be spoken: people's trivia from an asset, and easy ones of our own.

IFBench's prompts, the other text asset, carry constraints and no answers: they cannot be scored as QA.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from rbalign.errors import UsageError
from rbalign.keys import Key
from rbalign.rundir.files import stable_hash
from rbalign.scorers.qa import tokens
from rbalign.text.questions import asks_yes_or_no
from rbalign.types import Example, Split, View, ViewSpec

HUMAN, OWN = "chatterbot-corpus", "rbalign"
VIEWS_PER_QUESTION = 2
"""The fewest voices that can disagree: the flip rate needs two."""
MAX_WORDS = 30

_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"'})


def all_questions(corpus: Path | None = None) -> list[Example]:
    """Every question as a test example; `labels`: `aliases` (accepted answers) and `source`.

    Two human-written ones for each of ours as long as both last, so that any prefix is mostly people's. `corpus` is
    the folder of the asset chatterbot-corpus; None fetches it.
    """
    repairs = tomllib.loads(resources.files(__package__).joinpath("questions.toml").read_text(encoding="utf-8"))
    human = [
        _example(question, [*_plain(answer), *repairs["aliases"].get(question, ())], HUMAN)
        for question, answer in _trivia(corpus)
        if question not in set(repairs["drop"]) and _askable(question, answer)
    ]
    own = [_example(question, aliases, OWN) for question, aliases in repairs["own"].items()]
    mixed: list[Example] = []
    human, own = (sorted(part, key=lambda example: example.id) for part in (human, own))
    while human or own:
        mixed += [*human[:2], *own[:1]]
        human, own = human[2:], own[1:]
    return mixed


def questions(count: int, corpus: Path | None = None) -> list[Example]:
    """The first `count` questions. Raises UsageError if there are fewer."""
    found = all_questions(corpus)
    if count > len(found):
        raise UsageError(
            f"[eval] qa = {count}, but there are {len(found)} questions", f"set qa to {len(found)} or less"
        )
    return found[:count]


def plan_views(examples: Sequence[Example], voices: Sequence[str], seed: int) -> list[View]:
    """The views of all questions, without audio: distinct voices, drawn by key, so each gets about as many."""
    views = []
    for example in examples:
        order = Key(seed, "qa-voices", example=example.id).generator().permutation(len(voices))
        for index, place in enumerate(order[:VIEWS_PER_QUESTION]):
            views.append(View(example.id, index, Split.TEST, ViewSpec(voices[place], seed=seed), 0.0))
    return views


def _trivia(corpus: Path | None) -> list[tuple[str, str]]:
    """(question, answer) pairs of trivia.yml; malformed entries (one, in 1.3.3) are passed over."""
    import yaml

    from rbalign import assets

    folder = corpus if corpus is not None else assets.folder("chatterbot-corpus")
    entries = yaml.safe_load((folder / "trivia.yml").read_text(encoding="utf-8"))["conversations"]
    pairs = [entry for entry in entries if isinstance(entry, list) and len(entry) >= 2]
    return [(_clean(str(entry[0])), _clean(str(entry[1]))) for entry in pairs]


def _clean(text: str) -> str:
    return " ".join(text.translate(_QUOTES).split())


def _plain(answer: str) -> list[str]:
    return [answer.rstrip(" .")]


def _askable(question: str, answer: str) -> bool:
    """A question, speakable, with a short answer that is not yes or no."""
    from rbalign.text.speakable import speakability

    if not question.endswith("?") or asks_yes_or_no(question) or len(question.split()) > MAX_WORDS:
        return False
    said = tokens(answer)
    return 0 < len(said) <= 6 and said[0] not in ("yes", "no") and not speakability(question)


def _example(question: str, aliases: Sequence[str], source: str) -> Example:
    from rbalign.text.spoken import spoken_form

    labels = {"aliases": list(dict.fromkeys(aliases)), "source": source}
    return Example(f"qa-{stable_hash(question)[:10]}", Split.TEST, question, spoken_form(question), labels=labels)
