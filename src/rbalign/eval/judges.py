"""Judges: an LLM behind an OpenAI-compatible server, or a scorer against the reference where there is no key. No torch.

Prompts have versions (judges.toml); replies are cached by address, model and prompt (`remote.cache`). A judgement that
cannot be read, or that a server never gave, is None: callers count it and keep its item.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Protocol

from rbalign.config.endpoints import JudgeEndpoint
from rbalign.errors import DataError
from rbalign.remote.chat import CHARACTERS_PER_TOKEN, choices, content
from rbalign.remote.client import Client, EndpointError, Read, RequestError
from rbalign.remote.wire import Reply
from rbalign.rundir.files import stable_hash
from rbalign.scorers.base import Scorer, as_text

REPLY_BYTES = 1 << 20
TIE = 1e-9
"""Scores of an offline judge nearer than this are equal."""

_PLACE = re.compile(r"\{(\w+)\}")
_VERDICT = re.compile(r"\bverdict\s*:\W*(1|2|tie)\b", re.IGNORECASE)
_RESULT = re.compile(r"\bresult\s*:\W*(yes|no)\b", re.IGNORECASE)
_SCORE = re.compile(r"""\bscore\s*:[\s*_"'<(\[]*([0-9]{1,3}(?:\.[0-9]{1,3})?)(?![\w.]*[0-9])""", re.IGNORECASE)
"""A digit further on in the same word belongs to another number: 1234 and 1.2.3 are no scores, and -3 has no match."""
WORST, BEST = 1.0, 10.0
"""Of a rating."""
PREFERENCE = {"1": 1.0, "2": 0.0, "tie": 0.5}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one request, in the order in which they are shown."""

    request: str
    first: str
    second: str
    reference: str | None = None


class PairwiseJudge(Protocol):
    """Says which of two answers is better."""

    name: str
    protocol: str
    """One line: who judges, by which prompt."""
    llm: bool
    """It has an LLM's taste for length, which the prior of `eval.winrate` is fitted on."""

    def prefer(self, pairs: Sequence[Pair]) -> list[float | None]:
        """For each pair 1.0 (the first is better), 0.0, 0.5 (a tie), or None."""
        ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a judge is asked, and its name: version and hash of its words."""

    name: str
    system: str
    user: str

    def filled(self, **parts: str) -> str:
        """The user's turn; what the parts hold is never read as a place."""
        return _PLACE.sub(lambda place: parts.get(place[1], place[0]), self.user)


@cache
def prompt(kind: str) -> Prompt:
    """The prompt of judges.toml for "pairwise", "answer", "reasoning" or "rating"."""
    table = tomllib.loads(resources.files(__package__).joinpath("judges.toml").read_text(encoding="utf-8"))[kind]
    system, user = table["system"].strip(), table["user"].strip()
    return Prompt(f"{table['version']} ({stable_hash([system, user])[:8]})", system, user)


class LlmJudge:
    """Any OpenAI-compatible chat model. Many requests at once; judgements come in the order of what was asked."""

    llm = True

    def __init__(self, config: JudgeEndpoint, client: Client) -> None:
        self.config, self._client = config, client
        self.name = config.model
        warmth = "" if config.temperature == "none" else f", temperature {config.temperature:g}"
        self._who = f"judge {config.model}{warmth}"
        self.protocol = self.described("pairwise")

    @property
    def counts(self) -> dict[str, Any]:
        """Requests, cache hits, tokens and cost."""
        return self._client.counts.table()

    def described(self, kind: str) -> str:
        """Who judges by which prompt, for a protocol line."""
        return f"{self._who}, prompt {prompt(kind).name}"

    def prefer(self, pairs: Sequence[Pair]) -> list[float | None]:
        """See `PairwiseJudge`. Answers are shown as long as scorers read them."""
        told = self._told(
            "pairwise", [{"request": one.request, "first": one.first, "second": one.second} for one in pairs]
        )
        return [None if (verdict := last(_VERDICT, text)) is None else PREFERENCE[verdict] for text in told]

    def right(
        self, requests: Sequence[str], answers: Sequence[str], accepted: Sequence[Sequence[str]]
    ) -> list[bool | None]:
        """Whether each answer states an accepted one."""
        parts = [
            {"request": request, "answer": answer, "accepted": "\n".join(f"- {alias}" for alias in aliases)}
            for request, answer, aliases in zip(requests, answers, accepted, strict=True)
        ]
        return [yes(text) for text in self._told("answer", parts)]

    def reasons(self, requests: Sequence[str], answers: Sequence[str]) -> list[bool | None]:
        """Whether each answer shows reasoning."""
        parts = [{"request": request, "answer": answer} for request, answer in zip(requests, answers, strict=True)]
        return [yes(text) for text in self._told("reasoning", parts)]

    def rate(self, requests: Sequence[str], answers: Sequence[str]) -> list[float | None]:
        """How good each answer is, from 0 (a rating of 1) to 1 (of 10); None for a rating of anything else."""
        parts = [{"request": request, "answer": answer} for request, answer in zip(requests, answers, strict=True)]
        return [rating(text) for text in self._told("rating", parts)]

    def close(self) -> None:
        """Let go of connections and cache."""
        self._client.close()

    def _told(self, kind: str, parts: Sequence[Mapping[str, str]]) -> list[str | None]:
        asked = prompt(kind)
        turns = [asked.filled(**{name: as_text(text) for name, text in own.items()}) for own in parts]
        with ThreadPoolExecutor(self.config.concurrency, "judge") as threads:
            try:
                return list(threads.map(lambda turn: self._one(asked.system, turn), turns))
            except BaseException:
                with self._client.stopping():  # nobody waits for the others any more
                    threads.shutdown(cancel_futures=True)
                raise

    def _one(self, system: str, turn: str) -> str | None:
        body: dict[str, Any] = {
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": turn}],
            self.config.length_field: self.config.max_tokens,
        }
        if self.config.temperature != "none":
            body["temperature"] = self.config.temperature
        tokens = (len(system) + len(turn)) // CHARACTERS_PER_TOKEN + self.config.max_tokens
        try:
            text: str | None = self._client.post("/chat/completions", body, _read, REPLY_BYTES, tokens)
        except EndpointError:
            raise
        except RequestError:
            return None
        return text


class ReferenceJudge:
    """Prefers the answer that a scorer puts nearer to the reference. No key, no server; not an LLM's taste."""

    llm = False

    def __init__(self, name: str, scorer: Scorer) -> None:
        """scorer: one that holds answers against the column `reference`."""
        self.name, self._scorer = name, scorer
        self._known: dict[tuple[str, str], float | None] = {}
        self.protocol = f"offline judge: {name} to the reference"

    def prefer(self, pairs: Sequence[Pair]) -> list[float | None]:
        """See `PairwiseJudge`. DataError if a pair has no reference."""
        if any(not (pair.reference or "").strip() for pair in pairs):
            raise DataError(
                f"the judge {self.name} needs a reference answer, which this data has not", "give --judge JUDGE.toml"
            )
        shown = {(text, pair.reference or ""): pair for pair in pairs for text in (pair.first, pair.second)}
        new = [one for one in shown if one not in self._known]  # each answer comes twice: both orders are asked for
        texts, references = [text for text, _ in new], [reference for _, reference in new]
        requests = [shown[one].request for one in new]
        told = self._scorer(requests, texts, [[]] * len(new), reference=references)
        self._known.update(zip(new, told, strict=True))
        return [self._preferred(pair) for pair in pairs]

    def _preferred(self, pair: Pair) -> float | None:
        first, second = (self._known[text, pair.reference or ""] for text in (pair.first, pair.second))
        if first is None or second is None:
            return None
        return 0.5 if abs(first - second) < TIE else float(first > second)


def last(pattern: re.Pattern[str], text: str | None) -> str | None:
    """The last match's group, lower-cased: a judge may quote the form before it fills it in."""
    found = pattern.findall(text or "")
    return found[-1].lower() if found else None


def rating(text: str | None) -> float | None:
    """Of `Score: 1` .. `Score: 10` as 0..1; None of none and of a number beyond."""
    found = last(_SCORE, text)
    if found is None or not WORST <= float(found) <= BEST:
        return None
    return (float(found) - WORST) / (BEST - WORST)


def yes(text: str | None) -> bool | None:
    """Of `Result: YES` or `Result: NO`; None of neither."""
    found = last(_RESULT, text)
    return None if found is None else found == "yes"


def _read(reply: Reply) -> Read:
    """The judgement, however it ended: what cannot be read counts as such."""
    found, usage = choices(reply)
    return Read(content(found[0]["message"]), usage)
