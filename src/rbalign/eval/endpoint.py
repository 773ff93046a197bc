"""A speech LLM behind a server as someone who answers: clips go out as `input_audio` parts, many requests at once.

A request that failed for good is a failed item, which stays in the denominator; a server that cannot go on at all
(EndpointError) ends the evaluation, and what it answered is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from threading import Lock
from typing import Any

from rbalign.audio.io import input_audio
from rbalign.config.endpoints import SpeechEndpoint
from rbalign.config.sections import Sampling
from rbalign.errors import DataError
from rbalign.eval.collect import Answered, Batch, failed
from rbalign.eval.items import Item
from rbalign.remote.chat import CHARACTERS_PER_TOKEN, read_answer
from rbalign.remote.client import Client, EndpointError, RequestError
from rbalign.types import View

REPLY_BYTES = 4 << 20
TOKENS_A_SECOND = 25
"""Of audio, to reserve tokens before a server counts them: what most speech LLMs take."""
IN_FLIGHT = 2
"""Requests for each slot of the server: one under way, one whose clip is being encoded."""


@dataclass
class EndpointAnswerer:
    """Answers items of one kind: by their clips, in writing (`written`), or by what `transcribe` hears."""

    config: SpeechEndpoint
    client: Client
    sampling: Sampling
    seed: int
    system: str | None = None
    written: bool = False
    transcribe: Callable[[Sequence[View]], list[str]] | None = None

    def __post_init__(self) -> None:
        self._listening = Lock()

    def batches(self, batches: Sequence[Sequence[Item]]) -> Iterator[Batch]:
        """See `AnswerBatches`: each item by itself, as its answer arrives. Raises EndpointError."""
        items = iter([item for batch in batches for item in batch])
        threads = ThreadPoolExecutor(self.config.concurrency, "answer")
        flying: dict[Future[tuple[Answered, float]], Item] = {}
        try:
            while True:
                for item in islice(items, IN_FLIGHT * self.config.concurrency - len(flying)):
                    flying[threads.submit(self._timed, item)] = item
                if not flying:
                    return
                for future in wait(flying, return_when=FIRST_COMPLETED).done:
                    item = flying.pop(future)
                    answer, seconds = future.result()
                    yield [item], [answer], seconds
        finally:
            with self.client.stopping():  # nobody waits for what is still on its way
                threads.shutdown(cancel_futures=True)

    def _timed(self, item: Item) -> tuple[Answered, float]:
        began = time.perf_counter()
        try:
            answer = self._one(item)
        except EndpointError:
            raise
        except (RequestError, DataError) as error:
            answer = failed(item, error)
        return answer, time.perf_counter() - began

    def _one(self, item: Item) -> Answered:
        heard, prompt = None, f"<{item.view.id}>"
        if self.transcribe is not None:
            with self._listening:  # the ASR has threads of its own
                (heard,) = self.transcribe([item.view])
        if heard is None and not self.written:
            content: Any = _parts(item, self.config.audio_format)
            tokens = int(TOKENS_A_SECOND * item.view.seconds) + len(item.beside) // CHARACTERS_PER_TOKEN
        else:
            content = prompt = item.written(heard)
            tokens = len(prompt) // CHARACTERS_PER_TOKEN
        messages: list[dict[str, Any]] = [] if self.system is None else [{"role": "system", "content": self.system}]
        body = {"messages": [*messages, {"role": "user", "content": content}], **self._sampling(item)}
        cap = self.sampling.max_new_tokens
        text, stop = self.client.post("/chat/completions", body, read_answer, REPLY_BYTES, tokens + cap)
        return Answered(text, str(stop), prompt, heard)

    def _sampling(self, item: Item) -> dict[str, Any]:
        """The cap, the warmth, and 53 bits of the item's key as its seed: what every JSON number holds exactly."""
        asked: dict[str, Any] = {self.config.length_field: self.sampling.max_new_tokens}
        if self.config.sampling:
            asked |= {"temperature": self.sampling.temperature, "top_p": self.sampling.top_p}
        if self.config.seed_field:
            asked[self.config.seed_field] = item.key(self.seed).digest() >> 11
        return asked


def _parts(item: Item, form: str) -> list[dict[str, Any]]:
    """The user's turn: the clip, and the instruction beside it."""
    audio = input_audio(item.view.flac, form)
    return [audio, {"type": "text", "text": item.beside}] if item.beside else [audio]
