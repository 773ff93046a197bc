"""Rollouts by a server of its own: it samples, this process differentiates, and what lies between them is measured.

Before an update's samples LoRA is written to a folder that the server sees, and loaded there under a name that no
earlier update had. So a reload that failed cannot answer with old weights, and no prefix cache of theirs is taken for
ours. Each sample comes with the server's own log-probs; ours on the same tokens are computed beside them. Another
arithmetic, another prompt, a server that does not hear: all of it shows in the difference. A small one is corrected by
importance weights, a large one stops training.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rbalign.audio.io import input_audio
from rbalign.config.endpoints import RolloutEndpoint
from rbalign.errors import RunError
from rbalign.keys import Key
from rbalign.lm.sampler import SamplingParams
from rbalign.remote.chat import choices, stop_of
from rbalign.remote.client import Client, EndpointError, Read, RequestError
from rbalign.remote.counts import Usage
from rbalign.remote.wire import AttemptError, Reply
from rbalign.speechlm.base import LORA_FILES, Policy
from rbalign.train.rollout import SAMPLE_BATCH, Drawn, Group, Item
from rbalign.types import StopReason, View

REPLY_BYTES = 4 << 20
NO_IDS = "it returns no token ids: vLLM does since 0.10.2, for return_token_ids"
LORA_CURE = "start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True; see docs/scale.md"
PEFT_PREFIX = "base_model.model."
"""Before every name in a file of peft's."""


@dataclass(frozen=True, slots=True)
class Served:
    """One sample as the server tells it."""

    ids: Tensor
    """(T,) int64; the end token is its last unless `stop` is LENGTH."""
    logprobs: Tensor
    """(T,) float32; NaN for an end token that the server left out."""
    stop: StopReason


class RolloutServer:
    """Draws the policy's samples elsewhere. One for each arm and process; only the first process loads weights."""

    def __init__(self, config: RolloutEndpoint, client: Client, folder: Path, name: str) -> None:
        """`folder`: where LoRA is put, seen by the server under the same path; `name`: of the arm, unlike any other."""
        self.config, self._client = config, client
        self._folder, self._name = folder, name
        self._adapter = ""

    def load(self, policy: Policy, update: int, leads: bool) -> None:
        """Make the server sample with the policy's weights as they are now; who `leads` sends them.

        Raises EndpointError or RequestError where it does not take them.
        """
        before, self._adapter = self._adapter, f"{self._name}-{update}"
        if not leads:
            return
        place = self._folder / self._adapter
        shutil.rmtree(place, ignore_errors=True)
        policy.save(place)
        _name_as_the_whole(place, policy)
        self._unload(self._adapter)  # a run that was killed may have left one of this name, with other weights
        body = {"lora_name": self._adapter, "lora_path": str(place.resolve())}
        try:
            self._client.post("/load_lora_adapter", body, _taken, REPLY_BYTES)
        except EndpointError as error:
            if error.fault.kind == "missing":
                raise EndpointError(error.problem, LORA_CURE, error.fault) from None
            raise
        if before:
            self._unload(before)
            shutil.rmtree(self._folder / before, ignore_errors=True)

    def close(self) -> None:
        """Leave nothing behind, on the server or on the disk."""
        if self._folder.joinpath(self._adapter or ".").is_dir() and self._adapter:
            self._unload(self._adapter)
            shutil.rmtree(self._folder / self._adapter, ignore_errors=True)
        self._client.close()

    def draw(
        self, policy: Policy, items: Sequence[Item], params: SamplingParams, key: Key, samples_per_view: int = 1
    ) -> list[Group]:
        """As `rollout.draw_groups`, with `served` beside our log-probs. The same keys name the requests' seeds.

        Raises RequestError if a sample cannot be had: leaving it out would favour what is short and easy.
        RunError where the log-probs on both sides have nothing to do with each other.
        """
        groups = [Group(item) for item in items]
        views = [(group, view) for group in groups for view in group.item.views]
        rows = [(group, view, number) for group, view in views for number in range(samples_per_view)]
        system, words = policy.turn()
        messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]

        def ask(row: tuple[Group, View, int]) -> Served:
            _, view, number = row
            own = key.at(example=view.example_id, view=view.index, sample=number)
            content = [input_audio(view.flac, self.config.audio_format)]
            content += [{"type": "text", "text": words}] if words else []
            return self._sample([*messages, {"role": "user", "content": content}], params, own)

        with ThreadPoolExecutor(self.config.concurrency, "rollout") as threads:
            try:
                told = list(threads.map(ask, rows))
            except BaseException:
                with self._client.stopping():
                    threads.shutdown(cancel_futures=True)
                raise
        for (group, view, number), one in zip(rows, told, strict=True):
            text = policy.decode(one.ids)
            group.drawn.append(Drawn(view, number, one.ids, one.logprobs, one.stop, text, served=one.logprobs))
        policy.count_sampling(policy.prompts([view for _, view in views]), [len(one.ids) for one in told])
        self._compare(policy, groups)
        return groups

    def _sample(self, messages: list[dict[str, Any]], params: SamplingParams, key: Key) -> Served:
        ends = params.stop_ids

        def read(reply: Reply) -> Read:
            (choice,), usage = choices(reply)
            return Read(_served(choice, ends, params.max_new_tokens), usage)

        body = {
            "model": self._adapter,
            "messages": messages,
            self.config.length_field: params.max_new_tokens,
            "temperature": 1.0,
            "top_p": 1.0,
            "seed": key.digest() >> 11,  # what every JSON number holds exactly
            "logprobs": True,
            "return_token_ids": True,
            "stop_token_ids": list(ends),
        }
        served: Served = self._client.post("/chat/completions", body, read, REPLY_BYTES, params.max_new_tokens)
        return served

    @torch.no_grad()
    def _compare(self, policy: Policy, groups: Sequence[Group]) -> None:
        """Put our own log-probs beside the server's; an end token that it did not tell counts as agreed."""
        drawn = [one for group in groups for one in group.drawn]
        by_view: dict[str, list[Drawn]] = {}
        for one in drawn:
            by_view.setdefault(one.view.id, []).append(one)
        samples = list(by_view.values())
        step = max(1, SAMPLE_BATCH // max(map(len, samples), default=1))
        for start in range(0, len(samples), step):
            batch = samples[start : start + step]
            ours, mask = policy([own[0].view for own in batch], [[one.ids for one in own] for own in batch])
            for one, row, keep in zip([one for own in batch for one in own], ours, mask, strict=True):
                one.logprobs = row[keep].float().cpu()
                assert one.served is not None
                one.served = torch.where(one.served.isnan(), one.logprobs, one.served)
        gap = float(torch.cat([one.log_ratios() for one in drawn]).abs().mean()) if drawn else 0.0
        if not gap <= self.config.max_gap:
            raise RunError(
                f"{self._client.name} differs from our policy by {gap:.2f} nats a token, and max_gap is "
                f"{self.config.max_gap:g}: it has other weights, writes another prompt, or does not hear the clips",
                "serve the very folder of [align] model, with LoRA switched on; see docs/scale.md",
            )

    def _unload(self, adapter: str) -> None:
        """That there was none is no fault."""
        with suppress(RequestError):
            self._client.post("/unload_lora_adapter", {"lora_name": adapter}, _taken, REPLY_BYTES, vital=False)


def _served(choice: Any, ends: Sequence[int], cap: int) -> Served:
    """A choice with `token_ids` and `logprobs.content`, one of each for every token."""
    ids, stop = choice.get("token_ids"), stop_of(choice)
    if not isinstance(ids, list):
        raise AttemptError(NO_IDS, "missing", retry=False)
    logprobs = [float(one["logprob"]) for one in choice["logprobs"]["content"]]
    if len(logprobs) != len(ids) or not all(isinstance(token, int) for token in ids):
        raise AttemptError(f"{len(ids)} token ids with {len(logprobs)} log-probs", "unusable", retry=True)
    if stop is StopReason.END and (not ids or ids[-1] not in ends):
        ids, logprobs = [*ids, ends[0]], [*logprobs, float("nan")]
    if stop is StopReason.LENGTH and len(ids) != cap:
        raise AttemptError(f"{len(ids)} tokens, cut at {cap}", "unusable", retry=False)
    return Served(torch.tensor(ids, dtype=torch.long), torch.tensor(logprobs, dtype=torch.float32), stop)


def _taken(reply: Reply) -> Read:
    return Read(None, Usage())


def _name_as_the_whole(folder: Path, policy: Policy) -> None:
    """Name LoRA's weights by their places in the whole speech LLM, which is what a server loads."""
    from safetensors.torch import load_file, save_file

    place = next(name for name, module in policy.speech.named_modules() if module is policy.lm)
    if place:
        path = folder / LORA_FILES[1]
        weights = load_file(path)
        before = f"{PEFT_PREFIX}{place}."
        save_file({before + name.removeprefix(PEFT_PREFIX): value for name, value in weights.items()}, path)
