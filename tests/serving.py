"""A rollout server of our own behind real HTTP: another process's model, as vLLM would hold it, on loopback."""

from __future__ import annotations

import base64
import threading
from pathlib import Path

from aligning import LORA, tiny_policy
from loopback import status
from safetensors.torch import load_file, save_file

from rbalign.audio.io import audio_seconds, read_audio, to_flac
from rbalign.keys import Key
from rbalign.speechlm.base import LORA_FILES
from rbalign.types import StopReason, View, ViewSpec


class Serving:
    """Answers chats about a clip with ids and log-probs, and takes LoRA under new names. `answer` is for Loopback."""

    inside, own = "language_model.", ""
    """Where the language model is in the speech LLM that a server holds, and in what our policy saves."""

    def __init__(self, policy=None):
        self.policy = policy or tiny_policy(lora=LORA)
        self.adapters: dict[str, Path] = {}
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.seeds: list[int] = []
        self.held: str | None = None
        self._lock = threading.Lock()

    def __call__(self, asked):
        with self._lock:  # one model
            if asked.path.endswith("/load_lora_adapter"):
                return self.load(asked.body)
            if asked.path.endswith("/unload_lora_adapter"):
                return self.unload(asked.body["lora_name"])
            return self.chat(asked.body)

    def load(self, body):
        name, place = body["lora_name"], Path(body["lora_path"])
        if name in self.adapters:
            return status(400, f"{name} is loaded already")
        if not place.is_dir():
            return status(404, f"no adapter in {place}")
        self.adapters[name] = place
        self.loads.append(name)
        return {"object": "success"}

    def unload(self, name):
        self.unloads.append(name)
        return {"object": "success"} if self.adapters.pop(name, None) else status(404, f"{name} is not loaded")

    def hold(self, name):
        """Take an adapter's weights, which are named by their places in the whole speech LLM."""
        if self.held == name:
            return
        own = self.adapters[name].with_name("held by the server")
        own.mkdir(exist_ok=True)
        weights = load_file(self.adapters[name] / LORA_FILES[1])
        assert all(key.startswith(f"base_model.model.{self.inside}") for key in weights)
        save_file({key.replace(self.inside, self.own, 1): value for key, value in weights.items()}, own / LORA_FILES[1])
        (own / LORA_FILES[0]).write_bytes((self.adapters[name] / LORA_FILES[0]).read_bytes())
        self.policy.load(own)
        self.held = name

    def chat(self, body):
        if body["model"] not in self.adapters:
            return status(404, f"the model {body['model']} does not exist")
        self.hold(body["model"])
        policy, ends = self.policy, body["stop_token_ids"]
        *before, turn = body["messages"]
        policy.system = before[0]["content"] if before else None
        sample = self.sample(self.view(turn["content"]), body)
        self.seeds.append(body["seed"])
        content = [{"token": "?", "logprob": value} for value in self.told(sample.logprobs.tolist())]
        ended = sample.stop is StopReason.END
        assert (sample.ids[-1] in ends) == ended
        return {
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": policy.decode(sample.ids)},
                    "token_ids": sample.ids.tolist(),
                    "logprobs": {"content": content},
                    "finish_reason": "stop" if ended else "length",
                }
            ],
            "usage": {"prompt_tokens": 30, "completion_tokens": len(sample.ids)},
        }

    def view(self, parts):
        (part,) = parts
        clip = base64.b64decode(part["input_audio"]["data"])
        heard = to_flac(read_audio(clip))
        return View("asked", 0, "train", ViewSpec("?"), audio_seconds(clip), heard)

    def sample(self, view, body):
        prompts = self.policy.prompts([view])
        params = self.policy.params(1.0, 1.0, body["max_tokens"])
        return self.policy.sample(prompts, params, [[Key(body["seed"], "served")]])[0][0]

    def told(self, logprobs):
        return logprobs


class Deaf(Serving):
    """Hears silence in every clip."""

    def view(self, parts):
        heard = super().view(parts)
        return View("asked", 0, "train", heard.spec, heard.seconds, to_flac(0.0 * read_audio(heard.flac)))


class Stale(Serving):
    """Says that it took new weights, and samples with the first."""

    def hold(self, name):
        if self.held is None:
            super().hold(name)


class Coarse(Serving):
    """Another arithmetic: its log-probs are rounded to eighths."""

    def told(self, logprobs):
        return [round(8 * value) / 8 for value in logprobs]


class Endless(Serving):
    """Leaves the end token out of ids and log-probs, as some servers do."""

    def chat(self, body):
        made = super().chat(body)
        (choice,) = made["choices"]
        if choice["finish_reason"] == "stop":
            choice["token_ids"].pop()
            choice["logprobs"]["content"].pop()
        return made
