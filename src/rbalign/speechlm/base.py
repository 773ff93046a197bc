"""What training and evaluation need of a speech LLM, whichever it is: one object that they share.

It holds one copy of the language model, which serves three: the student (LoRA on), the text teacher and, while LoRA
is all that trains, the reference (LoRA off). Where its own weights train, a frozen copy of them is kept for that. What
a policy hears, a subclass says: `policy.SpeechPolicy` is the embedded speech LLM, `family.FamilyPolicy` one of
transformers' own.
"""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rbalign.errors import DataError, UsageError
from rbalign.keys import Key
from rbalign.lm.branches import branch_hidden
from rbalign.lm.checkpointing import checkpointed
from rbalign.lm.fused import FusedSampler
from rbalign.lm.logprobs import completion_hidden, completion_logits
from rbalign.lm.sampler import Prompts, Sample, Sampler, SamplingParams, Watch, whole_rows
from rbalign.lm.untouched import forget_start, starts, train_whole, untouched
from rbalign.speechlm.clipcache import ClipCache, ClipFolder
from rbalign.speechlm.ctc import log_sum_exp_rows
from rbalign.teacher.local import best_sampler
from rbalign.types import View

LORA_FILES = ("adapter_config.json", "adapter_model.safetensors")
FULL_FILE = "decoder.safetensors"
"""An arm's own decoder weights, after full fine-tuning."""
CACHE_BYTES = 1 << 30
"""Room for about 30,000 clips of audio positions (25 x 576 float32 each), or 3,000 of encoder frames."""
REPEAT = "Repeat the user's words exactly."
"""System prompt under which a model without a transcript of its own is taught, and asked, to say what it hears."""
REPEATED_A_SECOND = 6
"""Tokens at most, and eight more: fast speech has about four and a half. A model that does not hear would go on."""

Wanted = Literal["logprobs", "logits"]


class Policy(nn.Module, ABC):
    """A speech LLM that answers in text; LoRA, or the decoder's own weights, train if asked. No dropout: eval mode."""

    def __init__(
        self,
        speech: Any,
        processor: Any,
        end_ids: tuple[int, ...],
        *,
        system: str | None = None,
        lora: Mapping[str, Any] | None = None,
        full: bool = False,
        seed: int = 0,
        heard: ClipFolder | None = None,
    ) -> None:
        """Freeze `speech` (no copy is made), add LoRA by peft's LoraConfig fields, or let the decoder train if `full`.

        `end_ids` end an answer, the first one those of the teacher. `seed` starts LoRA. Fields that would not start it
        at zero, or draw without a key, are refused. `heard` keeps what this very model hears, for other processes, too.
        """
        super().__init__()
        self.speech = speech.eval().requires_grad_(False)
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.system, self.end_ids = system, end_ids
        self.operations = 0.0
        """Floating-point operations of the language model's matrix products so far."""
        self.gradient_checkpointing = False
        """Compute what lies between the layers' inputs again for the backward pass, where `measure` has one."""
        self.cache = ClipCache(CACHE_BYTES, heard)
        self._peft: list[Any] = []  # a list hides it from nn.Module: its tensors are those of `speech`
        self._sampler: Sampler | None = None
        self._sampler_holds: Literal["policy", "base"] | None = None
        self._sizes = _Sizes.of(self.lm)
        if full:
            train_whole(self.lm)
        elif lora is not None:
            self._add_lora(lora, seed)
        self._branching = FusedSampler.supports(self.lm)
        self.register_load_state_dict_post_hook(_forgive_frozen)  # type: ignore[no-untyped-call]

    @property
    @abstractmethod
    def lm(self) -> Any:
        """The causal language model."""

    @property
    def may_differ(self) -> bool:
        """Whether the language model may differ from the untouched one: it has LoRA, or its own weights train."""
        return bool(self._peft or starts(self.lm))

    def at_start(self) -> bool:
        """Whether the language model is the untouched one, exactly."""
        lora = all(not value.any() for name, value in self.trainable().items() if "lora_B" in name)
        return lora and all(torch.equal(value, start) for value, start in starts(self.lm).values())

    def restored(self) -> set[str]:
        """Names of the parameters that `untouched` puts back to the start."""
        own = {id(value) for value, _ in starts(self.lm).values()}
        return {name for name, value in self.trainable().items() if "lora_" in name or id(value) in own}

    @property
    def has_transcript(self) -> bool:
        """Whether what was understood is known beside the answer; else the model is asked to repeat the words."""
        return False

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that training moves, by their names in `state_dict()`."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    # Hearing and prompts

    @abstractmethod
    def audio(self, views: Sequence[View]) -> list[Tensor]:
        """Audio positions (N_i, D) of each view in the language model's input space; computed once while frozen."""

    @abstractmethod
    def heard(self, views: Sequence[View]) -> list[str]:
        """What was understood, as words: what the self-cascade reads."""

    @abstractmethod
    def prompts(self, views: Sequence[View], beside: str = "") -> Prompts:
        """Speech prompts: each clip inside what the template writes, and an instruction written `beside` it."""

    @abstractmethod
    def text_prompts(self, texts: Sequence[str]) -> Prompts:
        """The same prompts with written words in the place of the audio."""

    def turn(self) -> tuple[str | None, str]:
        """What a chat with one clip says besides: the system prompt, and words after the clip in the user's turn."""
        return self.system, ""

    def _repeated(self, prompts: Prompts, views: Sequence[View]) -> list[str]:
        """What the untouched language model says where `prompts` ask it to repeat the words of these clips."""
        caps = [8 + int(REPEATED_A_SECOND * view.seconds) for view in views]
        keys = [[Key(0, "repeat", example=view.id)] for view in views]
        said = self.sample(prompts, self.params(0.0, 1.0, max(caps)), keys, base=True)
        return [self.decode(own[0].ids[:cap]) for own, cap in zip(said, caps, strict=True)]

    def completion_ids(self, answer: str) -> Tensor:
        """Ids of a complete answer (T,): its tokens and the end token."""
        return torch.tensor([*self.tokenizer.encode(answer, add_special_tokens=False), self.end_ids[0]])

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of a completion, without its end token."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()

    def params(self, temperature: float, top_p: float, max_new_tokens: int) -> SamplingParams:
        """Sampling parameters with this tokenizer's end tokens."""
        return SamplingParams(max_new_tokens, temperature, top_p, self.end_ids)

    # Sampling

    def refresh(self) -> None:
        """The weights have changed: the next sample merges LoRA anew."""
        if self._sampler_holds == "policy":
            self._sampler_holds = None

    @torch.no_grad()
    def sample(
        self,
        prompts: Prompts,
        params: SamplingParams,
        keys: Sequence[Sequence[Key]],
        *,
        base: bool = False,
        watch: Watch | None = None,
    ) -> list[list[Sample]]:
        """Samples of the policy, or of the untouched language model if `base`; see `lm.sampler.Sampler`."""
        wanted: Literal["policy", "base"] = "base" if base or not self.may_differ else "policy"
        with self.untouched() if base else nullcontext():
            if self._sampler is None:
                self._sampler = best_sampler(self.lm)
            elif self._sampler_holds != wanted:
                self._sampler.refresh()
            self._sampler_holds = wanted
            samples = self._sampler.sample(prompts, params, keys, watch)
        self.count_sampling(prompts, [len(sample.ids) for own in samples for sample in own])
        return samples

    def count_sampling(self, prompts: Prompts, lengths: Sequence[int]) -> None:
        """Add what samples of these lengths cost, wherever they were drawn."""
        shared = 0 if prompts.shared is None else len(prompts.shared)
        positions = shared + sum(map(len, prompts.rows)) + sum(lengths)
        self.operations += self._sizes.forward(positions, sum(lengths))

    # Log-probs

    def forward(
        self, views: Sequence[View], completions: Sequence[Sequence[Tensor]], want: Wanted = "logprobs"
    ) -> tuple[Tensor, Tensor]:
        """Of each view's completions: log-probs (R,T) of their tokens, or logits (R,T,V), and bool mask (R,T).

        R counts completions, view by view. Training calls this through the (possibly DDP-wrapped) module.
        """
        return self.measure(self.prompts(views), completions, want)

    def measure(
        self, prompts: Prompts, completions: Sequence[Sequence[Tensor]], want: Wanted = "logprobs"
    ) -> tuple[Tensor, Tensor]:
        """`forward` on any prompts. Prompt and shared prefix are run once, whatever hangs on them."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            prompts = Prompts(whole_rows(self.lm, prompts))  # a cache of the shared prefix would be filled twice
            with checkpointed(self.lm):
                return self._measure(prompts, completions, want)
        return self._measure(prompts, completions, want)

    def _measure(
        self, prompts: Prompts, completions: Sequence[Sequence[Tensor]], want: Wanted
    ) -> tuple[Tensor, Tensor]:
        flat = [ids for branches in completions for ids in branches]
        self._count(prompts, completions)
        head = self.lm.get_output_embeddings()
        if not self._branching:
            logits, mask = completion_logits(self.lm, _a_row_each(prompts, completions), flat)
            return _taken(logits, mask.bool(), flat, want)
        hidden, mask = branch_hidden(self.lm, prompts, completions)
        if want == "logits":
            return head(hidden), mask
        states = hidden[mask]
        ids = torch.cat(flat).to(states.device)
        # No (R,T,V) tensor is kept for the backward pass: 16 answers of 32 tokens would be 100 MB.
        taken = (states * head.weight[ids]).sum(-1) - log_sum_exp_rows(states, head.weight)
        return torch.zeros(mask.shape, dtype=taken.dtype, device=taken.device).masked_scatter(mask, taken), mask

    @torch.no_grad()
    def text_logits(self, texts: Sequence[str], completions: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
        """The text teacher: logits (R,T,V) of the untouched language model on written prompts, and mask (R,T)."""
        with self.untouched():
            return self.measure(self.text_prompts(texts), completions, "logits")

    @torch.no_grad()
    def states(self, prompts: Prompts, completions: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
        """Hidden states of every layer before each token of each completion: (R,T,L,D), and bool mask (R,T)."""
        self._count(prompts, completions, predicts=False)
        if self._branching:
            return branch_hidden(self.lm, prompts, completions, layers=True)
        flat = [ids for branches in completions for ids in branches]
        hidden, mask = completion_hidden(self.lm, _a_row_each(prompts, completions), flat, layers=True)
        return hidden, mask.bool()

    def untouched(self) -> AbstractContextManager[None]:
        """The untouched language model, for as long as the block runs."""
        return untouched(self.lm)

    def _count(self, prompts: Prompts, completions: Sequence[Sequence[Tensor]], predicts: bool = True) -> None:
        shared = 0 if prompts.shared is None else len(prompts.shared)
        if self._branching:
            positions = shared + sum(map(len, prompts.rows)) + sum(len(ids) - 1 for own in completions for ids in own)
        else:
            pairs = zip(prompts.rows, completions, strict=True)
            positions = sum(shared + len(row) + len(ids) - 1 for row, own in pairs for ids in own)
        predicted = sum(len(ids) for own in completions for ids in own) if predicts else 0
        passes = 1
        if torch.is_grad_enabled() and self.trainable():
            passes = 3 if starts(self.lm) else 2  # frozen weights need no gradient of their own
        self.operations += passes * self._sizes.forward(positions, predicted)

    # Arms

    def save(self, folder: Path) -> None:
        """Write what was trained: LoRA in peft's own format, or the decoder's weights."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        if self._peft:
            self._peft[0].save_pretrained(folder)
        if own := starts(self.lm):
            save_file({name: value.detach().contiguous() for name, (value, _) in own.items()}, folder / FULL_FILE)

    def restart(self, seed: int) -> None:
        """As if made anew with this seed, for the next arm: LoRA, or the decoder's weights, at the start."""
        if self._peft:
            self._start_lora(seed)
        self._set_decoder({name: start for name, (_, start) in starts(self.lm).items()})
        self.refresh()

    def load(self, folder: Path) -> None:
        """Take over an arm that `save` wrote; LoRA layers, or the copy of the start, are made if there are none yet."""
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        if (folder / FULL_FILE).is_file():
            if not starts(self.lm):
                train_whole(self.lm)
            self._set_decoder(load_file(folder / FULL_FILE))
            self.refresh()
            return
        settings, weights = (folder / name for name in LORA_FILES)
        if not weights.is_file() or not settings.is_file():
            raise UsageError(f"{folder} holds no arm: {' and '.join(LORA_FILES)} are needed", "run `rba align` first")
        config = json.loads(settings.read_text(encoding="utf-8"))
        if not self._peft:
            fields = ("r", "lora_alpha", "target_modules", "use_rslora")
            self._add_lora({name: config[name] for name in fields if config.get(name) is not None}, seed=0)
        result = set_peft_model_state_dict(self._peft[0], load_file(weights))
        if result.unexpected_keys or any("lora_" in name for name in result.missing_keys):
            raise DataError(f"the LoRA weights in {folder} do not fit this language model", "use the arm's own model")
        self.refresh()

    @torch.no_grad()
    def _set_decoder(self, weights: Mapping[str, Tensor]) -> None:
        own = starts(self.lm)
        if set(weights) != set(own) or any(weights[name].shape != value.shape for name, (value, _) in own.items()):
            raise DataError(f"the weights in {FULL_FILE} do not fit this language model", "use the arm's own model")
        for name, (value, _) in own.items():
            value.copy_(weights[name])

    def merge(self) -> None:
        """What was trained is the language model's own from now on: text teacher and reference are gone with it."""
        forget_start(self.lm)
        if self._peft:
            self._peft.pop().merge_and_unload()
        self._sampler = self._sampler_holds = None

    def _add_lora(self, lora: Mapping[str, Any], seed: int) -> None:
        from peft import LoraConfig, get_peft_model

        try:
            config = LoraConfig(task_type="CAUSAL_LM", **lora, **self._lora_scope())
        except TypeError as error:
            raise UsageError(f"[align.lora]: {error}", "use the field names of peft's LoraConfig") from error
        if config.lora_dropout:
            raise UsageError("lora_dropout draws from a global generator", "leave it 0: every draw here is keyed")
        if config.init_lora_weights not in (True, "gaussian") or config.use_dora:
            raise UsageError(
                f"LoRA started by {config.init_lora_weights!r}, use_dora={config.use_dora} does not start at zero",
                "leave both at their defaults: LoRA off must be the reference and the teacher",
            )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # peft 0.21 asks transformers 5.23 for a property by its old name.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            self._peft.append(get_peft_model(self.lm, config).eval())
        self._start_lora(seed)
        self._sizes = _Sizes.of(self.lm)

    def _lora_scope(self) -> dict[str, Any]:
        """LoraConfig's fields that keep LoRA on the language model, where `lm` is more than that."""
        return {}

    def _start_lora(self, seed: int) -> None:
        """A by keyed noise, B zero."""
        from peft.tuners.lora import LoraLayer

        config = self._peft[0].peft_config["default"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(Key(seed, "lora").digest() % 2**63)
            for module in self.lm.modules():
                if isinstance(module, LoraLayer):
                    module.reset_lora_parameters("default", config.init_lora_weights)


class _Sizes:
    """What a position and a predicted token cost, in floating-point operations of matrix products."""

    def __init__(self, body: int, head: int) -> None:
        self.body, self.head = body, head

    @classmethod
    def of(cls, lm: Any) -> _Sizes:
        """Count the decoder's linear weights (LoRA's among them) and the output layer's."""
        linear = sum(m.weight.numel() for m in lm.get_decoder().modules() if isinstance(m, nn.Linear))
        return cls(linear, lm.get_output_embeddings().weight.numel())

    def forward(self, positions: int, predicted: int) -> float:
        """One forward pass. A backward pass through frozen weights costs the same again; attention is left out."""
        return 2.0 * (positions * self.body + predicted * self.head)


def _a_row_each(prompts: Prompts, completions: Sequence[Sequence[Tensor]]) -> Prompts:
    """A prompt for each completion, for models whose prompts cannot branch."""
    return Prompts([row for row, own in zip(prompts.rows, completions, strict=True) for _ in own], prompts.shared)


def _taken(logits: Tensor, mask: Tensor, completions: list[Tensor], want: Wanted) -> tuple[Tensor, Tensor]:
    from rbalign.lm.logprobs import token_logprobs

    return (logits, mask) if want == "logits" else (token_logprobs(logits, completions), mask)


def _forgive_frozen(policy: nn.Module, result: Any) -> None:
    """A checkpoint holds only what trains; that the rest is missing from it is no fault."""
    trained = {name for name, value in policy.named_parameters() if value.requires_grad}
    result.missing_keys[:] = [name for name in result.missing_keys if name in trained]
