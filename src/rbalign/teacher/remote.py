"""A teacher behind an OpenAI-compatible server: vLLM, llama.cpp, SGLang, a cloud.

chat      /v1/chat/completions
continue  /v1/completions with the raw pre-query prefix: ids by the model's own tokenizer folder, or a literal text
score     /v1/completions with the log-probs of given ids: `echo` + `logprobs` (vLLM, SGLang), or vLLM's
          `prompt_logprobs`. llama.cpp takes both fields and gives neither: the probe finds that out.

Each sample's `seed` is its key's digest. A request that fails for good gives a text that ended as FAILED: it is
counted, never retried in this run, never a target. A server that cannot go on at all raises EndpointError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from rbalign.config.endpoints import TeacherEndpoint
from rbalign.errors import UsageError
from rbalign.keys import Key
from rbalign.lm.sampler import TEMPERATURE_AT, TOP_P_AT, Level, SamplingParams, own_levels
from rbalign.lm.templates import around_user, end_ids, prequery_ids
from rbalign.remote.chat import CHARACTERS_PER_TOKEN, choices, content, sound, stop_of
from rbalign.remote.client import Client, EndpointError, Read, RequestError
from rbalign.remote.counts import Counts
from rbalign.remote.wire import AttemptError, Reply
from rbalign.rundir.files import stable_hash
from rbalign.teacher.base import Written
from rbalign.types import StopReason

REPLY_BYTES = 16 << 20
"""A reply of 4,096 tokens with log-probs is about 1 MB."""
FAILED = Written("", StopReason.FAILED, 0)
PROBE_TOKENS = 8


class RemoteTeacher:
    """Writes, answers and scores over HTTP, many requests at once. Results come in the order of what was asked."""

    def __init__(self, config: TeacherEndpoint, client: Client, tokenizer: Any = None) -> None:
        """tokenizer: of the folder `config.template`; None with a literal `pre_query` or without continue and score."""
        self.config, self._client, self._tokenizer = config, client, tokenizer
        self.can = frozenset[str](config.can)
        self.name = client.name
        self.tokenizer_hash = stable_hash(tokenizer.get_vocab())[:16] if tokenizer else ""
        ends = [tokenizer.decode([token]) for token in end_ids(tokenizer)] if tokenizer else []
        self._stop = list(dict.fromkeys([*config.stop, *ends]))
        self._threads = ThreadPoolExecutor(config.concurrency, "teacher")

    @property
    def counts(self) -> Counts:
        """What its requests took."""
        return self._client.counts

    def params(self, temperature: Level, top_p: Level, max_new_tokens: int) -> SamplingParams:
        """Sampling parameters; the server knows its own end tokens."""
        return SamplingParams(max_new_tokens, temperature, top_p)

    def write_instructions(
        self, keys: Sequence[Key], params: SamplingParams, systems: Sequence[str | None]
    ) -> list[Written]:
        """Magpie (arXiv 2406.08464): continue the bare pre-query prefix; the model plays the user."""
        stop: dict[str, Any] = {"stop": self._stop} if self._stop else {}
        bodies = {system: {"prompt": self._prefix(system), **stop} for system in set(systems)}
        pairs = list(zip(keys, systems, strict=True))
        return self._each(lambda pair: self._continued(bodies[pair[1]], pair[0], params), pairs)

    def answer(
        self, instructions: Sequence[str], keys: Sequence[Key], params: SamplingParams, system: str | None = None
    ) -> list[Written]:
        """Answer written requests through the server's own chat template."""
        pairs = list(zip(instructions, keys, strict=True))
        return self._each(lambda pair: self._chatted(pair[0], pair[1], params, system), pairs)

    def loglikelihood(
        self, instructions: Sequence[str], answers: Sequence[str], system: str | None = None
    ) -> list[float | None]:
        """Mean log-prob per token (nats, end token included) of each answer; None: empty, or the request failed."""
        pairs = list(zip(instructions, answers, strict=True))
        return self._each(lambda pair: self._scored(pair[0], pair[1], system), pairs)

    def probe(self) -> None:
        """Try each declared capability with one small request. Raises UsageError for one that is not there."""
        tries: dict[str, Callable[[], object]] = {
            "chat": lambda: self._chat("Say hello.", Key(0, "probe"), self.params(0.0, 1.0, PROBE_TOKENS), None),
            "continue": lambda: self._continue(
                {"prompt": self._prefix(None)}, Key(0, "probe"), self.params(0.0, 1.0, PROBE_TOKENS)
            ),
            "score": lambda: self._score("Say hello.", "Hello.", None),
        }
        for capability in sorted(self.can):
            try:
                tries[capability]()
            except RequestError as failure:
                if failure.fault.kind in ("refused", "busy", "lost"):
                    raise
                raise UsageError(
                    f"{self.name} cannot {capability}: {failure.fault}",
                    f'mend url and model, or take "{capability}" out of [teacher.endpoint] can',
                ) from None

    def stopping(self) -> AbstractContextManager[None]:
        """Inside, nobody waits for texts any more: what was not sent yet is given up."""
        return self._client.stopping()

    def close(self) -> None:
        """Let go of threads and connections."""
        self._threads.shutdown(cancel_futures=True)
        self._client.close()

    def _each(self, work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return list(self._threads.map(work, items))

    def _continued(self, body: dict[str, Any], key: Key, params: SamplingParams) -> Written:
        return _or_failed(lambda: self._continue(body, key, params))

    def _chatted(self, instruction: str, key: Key, params: SamplingParams, system: str | None) -> Written:
        return _or_failed(lambda: self._chat(instruction, key, params, system))

    def _scored(self, instruction: str, answer: str, system: str | None) -> float | None:
        try:
            return self._score(instruction, answer, system) if answer.strip() else None
        except EndpointError:
            raise
        except RequestError:
            return None

    def _continue(self, body: dict[str, Any], key: Key, params: SamplingParams) -> Written:
        asked = body | {"max_tokens": params.max_new_tokens} | self._sampling(key, params)
        return self._post("/completions", asked, lambda choice: choice["text"], params.max_new_tokens)

    def _chat(self, instruction: str, key: Key, params: SamplingParams, system: str | None) -> Written:
        messages = [{"role": "system", "content": system}] if system is not None else []
        asked = {
            "messages": [*messages, {"role": "user", "content": instruction}],
            self.config.length_field: params.max_new_tokens,
            **self._sampling(key, params),
        }
        return self._post("/chat/completions", asked, lambda choice: content(choice["message"]), params.max_new_tokens)

    def _post(self, path: str, body: dict[str, Any], text: Callable[[Any], str], most: int) -> Written:
        def read(reply: Reply) -> Read:
            (choice,), usage = choices(reply)
            return Read(Written(sound(text(choice)).strip(), stop_of(choice), usage.completion_tokens), usage)

        written: Written = self._client.post(path, body, read, REPLY_BYTES, _estimate(body) + most)
        return written

    def _score(self, instruction: str, answer: str, system: str | None) -> float:
        before, after = around_user(self._tokenizer, system)
        encode = self._tokenizer.encode
        prompt = [*before, *encode(instruction, add_special_tokens=False), *after]
        completion = [*encode(answer, add_special_tokens=False), end_ids(self._tokenizer)[0]]
        ids = prompt + completion
        echo = self.config.score_by == "echo"
        asked = {"echo": True, "logprobs": 1} if echo else {"prompt_logprobs": 0}
        # One token is generated, for no server agrees with another on what max_tokens = 0 means.
        body = {"prompt": ids, "max_tokens": 1, "temperature": 0.0, **asked}

        def read(reply: Reply) -> Read:
            (choice,), usage = choices(reply)
            found = _echoed(choice, len(ids)) if echo else _of_prompt(choice, ids)
            values = found[len(prompt) : len(ids)]
            if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
                raise AttemptError("the log-probs of the answer are not all numbers", "unusable", retry=False)
            return Read(sum(values) / len(values), usage)

        value: float = self._client.post("/completions", body, read, REPLY_BYTES, len(ids) + 1)
        return value

    def _sampling(self, key: Key, params: SamplingParams) -> dict[str, Any]:
        """The seed is 53 bits of the key's digest: what every JSON number holds exactly."""
        digest = key.digest()
        row = np.array([digest], dtype=np.uint64)
        temperature = float(own_levels(params.temperature, row, TEMPERATURE_AT)[0])
        top_p = float(own_levels(params.top_p, row, TOP_P_AT)[0])
        return {"temperature": temperature, "top_p": top_p, self.config.seed_field: digest >> 11}

    def _prefix(self, system: str | None) -> list[int] | str:
        """What stands before the user's first word: ids by the tokenizer, or the recipe's literal text."""
        if self._tokenizer is not None:
            return prequery_ids(self._tokenizer, system)
        literal = self.config.pre_query or ""
        if system is not None and "{system}" not in literal:
            raise UsageError(
                "[synth] system needs a place in the pre-query prefix",
                "write {system} into [teacher.endpoint] pre_query, or give template instead",
            )
        return literal.replace("{system}", system or "")


def _or_failed(write: Callable[[], Written]) -> Written:
    """A request that failed for good is a text that ended as FAILED; a server that is down ends the stage."""
    try:
        return write()
    except EndpointError:
        raise
    except RequestError:
        return FAILED


def _estimate(body: dict[str, Any]) -> int:
    """About how many prompt tokens a body has."""
    prompt = body.get("prompt") or "".join(message["content"] for message in body.get("messages", ()))
    return len(prompt) if isinstance(prompt, list) else len(prompt) // CHARACTERS_PER_TOKEN


def _echoed(choice: Any, wanted: int) -> list[Any]:
    """Log-probs by `echo`: one for each prompt token (none for the first), then the generated one."""
    found: list[Any] = (choice.get("logprobs") or {}).get("token_logprobs") or []
    if len(found) not in (wanted, wanted + 1):
        raise AttemptError(f"it gave {len(found)} log-probs for {wanted} prompt tokens", "unusable", retry=False)
    return found


def _of_prompt(choice: Any, ids: Sequence[int]) -> list[Any]:
    """Log-probs by `prompt_logprobs`: for each token a table by token id; the first is None."""
    found = choice.get("prompt_logprobs") or []
    if len(found) != len(ids):
        raise AttemptError(f"it gave {len(found)} log-probs for {len(ids)} prompt tokens", "unusable", retry=False)
    tables = zip(ids, found, strict=True)
    return [table[str(token)]["logprob"] if table else None for token, table in tables]
