"""The sections of a recipe: validated data, frozen, every key known and every bound checked at construction.

`[train.args]`-like tables (`args`, `lora`, `sampling`) use the field names of TrainingArguments, LoraConfig and
GenerationConfig verbatim; the libraries themselves check those values when the stage starts.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, FiniteFloat, ValidationInfo, field_validator, model_validator

from rbalign.config.endpoints import JudgeEndpoint, RolloutEndpoint, TeacherEndpoint
from rbalign.config.mixtures import ARMS, MATCHED, MATCHING, TERMS, objective
from rbalign.config.section import Fraction, Positive, Section
from rbalign.errors import unknown


class Sampling(Section):
    """How to sample; names of transformers' GenerationConfig. Temperature 0 is greedy."""

    temperature: Annotated[float, Field(ge=0.0, le=5.0)] = 1.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """The smallest set of tokens with this much probability; 1 keeps all."""
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 64
    """A sample that is longer is cut and flagged."""


class TeacherConfig(Section):
    """Who writes: an asset name or a folder that holds a causal LM with a chat template, or a server."""

    younger: ClassVar[tuple[str, ...]] = ("endpoint",)

    model: str = "smollm2-135m-instruct"
    """An asset name (`rba list models`) or a folder. With `endpoint`: the LLM that learns, if [connect] names none."""
    endpoint: TeacherEndpoint | None = None
    """A server that writes instead; see docs/endpoints.md."""

    @property
    def author(self) -> str:
        """The name of whoever writes, as manifests state it."""
        return self.endpoint.model if self.endpoint else self.model


class FusionConfig(Section):
    """How the LLM reads along with the ctc adapter: a beam search over what both expect (speechlm/fusion.py)."""

    beams: Annotated[int, Field(ge=0)] = 4
    """Transcripts kept at a time; 0 is greedy CTC, without the LLM."""
    lm_weight: Annotated[float, Field(ge=0.0)] = 0.5
    """Of the LLM's log-probability of a token beside the ctc adapter's."""
    token_bonus: float = 1.0
    """Nats added for each token: to the LLM each of them is a cost, silence is none."""
    path_share: Fraction = 0.5
    """Of an audio position: the token that the search chose; the rest is spread over all tokens as they were heard."""


class ConnectConfig(Section):
    """`rba connect`: train encoder and adapter on self-synthesised speech so that the LLM can hear."""

    younger: ClassVar[tuple[str, ...]] = ("letters", "speller_layers", "start", "keep_start", "fusion")

    encoder: str = "whisper-tiny.en"
    """An asset name or folder of a Whisper model; its encoder is used."""
    language_model: str = "smollm2-135m-instruct"
    """An asset name or folder of the LLM that will hear."""
    adapter: Literal["ctc", "mlp"] = "ctc"
    """CTC over the LLM's vocabulary, or a frame-stacking MLP."""
    letters: Annotated[int, Field(ge=0)] = 0
    """Width of the rows that tell the ctc adapter how tokens are written, for words that it seldom meets; 0: none."""
    speller_layers: Annotated[int, Field(ge=0)] = 0
    """Layers of a branch that hears letters before the ctc adapter hears tokens; it needs `letters`. 0: none."""
    start: str | None = None
    """A connector's folder, or "default" for the one that ships, whose weights training starts from."""
    keep_start: Fraction = 0.0
    """At the end go this share of the way back to `start`, so that less of what it knew is forgotten (WiSE-FT)."""
    fusion: FusionConfig = FusionConfig()
    """How the LLM reads along with the ctc adapter, once it is trained."""
    width: Positive = 384
    """Of the adapter's layers."""
    layers: Positive = 3
    """Of the adapter."""
    heads: Positive = 6
    """Attention heads of an adapter layer; they divide `width`."""
    stack: Annotated[int, Field(ge=1, le=16)] = 4
    """Encoder frames (50 a second) joined into one adapter frame: 4 gives 12.5 Hz."""
    train_encoder: bool = True
    """False keeps the encoder as it is."""
    encoder_start: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    """The encoder joins after this share of all updates: a random adapter would make it unlearn; frozen costs half."""
    encoder_lr_scale: Fraction = 0.2
    """Learning rate of the encoder relative to the adapter's."""
    spec_augment: bool = True
    """Mask bands of time and frequency while training."""
    augment: bool = True
    """Speed (the pitch goes with it), room, telephone, noise and gain, keyed by (epoch, view)."""
    splice: Fraction = 0.15
    """Share of training items that are two to four clips in one, so that 20 to 30 s instructions work."""
    seconds_per_batch: Annotated[float, Field(gt=1.0)] = 120.0
    """Audio in one update."""
    args: dict[str, Any] = Field(default_factory=dict)
    """TrainingArguments by their own names: learning_rate, num_train_epochs, warmup_steps, eval_steps..."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.adapter == "mlp" and (self.letters or self.speller_layers):
            raise ValueError("letters and speller_layers belong to the ctc adapter, and this is mlp")
        if self.speller_layers and (self.stack % 2 or not self.letters):
            raise ValueError(f"a speller needs letters above 0 and an even stack, not {self.letters} and {self.stack}")
        if self.keep_start and self.start is None:
            raise ValueError(f"keep_start = {self.keep_start:g} needs a connector to start from")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class GrpoConfig(Section):
    """The coefficients that make GRPO, Dr.GRPO or DAPO of one term."""

    advantage: Literal["std", "none"] = "std"
    """Divide the centred scores of an instruction by their standard deviation, or (Dr.GRPO) do not."""
    clip_low: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    """Lower bound of the probability ratio is 1 - clip_low; it binds where samples are stale."""
    clip_high: Annotated[float, Field(gt=0.0)] = 0.2
    """Upper bound is 1 + clip_high (DAPO: 0.28)."""
    kl: Annotated[float, Field(ge=0.0)] = 0.02
    """Weight of the divergence from the reference policy; 0 drops it, which is known to collapse on long runs."""
    kl_estimator: Literal["k2", "k3"] = "k2"
    """k2 has the gradient of KL(policy || reference), the published k3 that of KL(reference || policy)."""
    reduction: Literal["token_mean", "sample_mean", "constant"] = "token_mean"
    """Over all tokens (DAPO), over each sample's tokens and then samples (GRPO), or sums over the cap (Dr.GRPO)."""


class AlignConfig(Section):
    """`rba align`: reinforcement on the model's own samples, beside its distillation baselines."""

    younger: ClassVar[tuple[str, ...]] = (
        "model",
        "mixtures",
        "grpo",
        "min_score_gap",
        "args_of",
        "patience",
        "gradient_checkpointing",
        "full_finetuning",
        "reward_model",
        "judge",
        "rollout",
        "answers_every",
    )

    model: str | None = None
    """A folder with a speech LLM of transformers (docs/models.md), in the place of connector and language model."""
    connector: str = "default"
    """"default" is the one that ships; a folder takes your own; "connect" takes this run's."""
    arms: tuple[str, ...] = ("sft", "rba-single")
    """What to train, each from the same start: names of `rba list objectives` and of `mixtures`; sft-matched and
    kd-matched train on to the compute of the run's RBA arm."""
    mixtures: dict[str, dict[str, Annotated[float, Field(ge=0.0)]]] = Field(default_factory=dict)
    """Arms of your own: NAME = {TERM = WEIGHT}, for instance {single = 1.0, opd = 0.2}."""
    grpo: GrpoConfig = GrpoConfig()
    """Coefficients of the term grpo."""
    seeds: tuple[int, ...] = (0,)
    """Each arm is trained once for each."""
    updates: Annotated[int, Field(ge=0)] = 20
    """Optimiser steps of each arm."""
    examples_per_update: Positive = 4
    """All views of this many instructions make one update."""
    micro_batch: Positive = 4
    """Views in one forward and backward; changes memory and time, never the result."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input for the backward pass and compute the rest again: less memory, about a third more
    time in the step, the same gradients."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Arms that train side by side, a process each; 0 takes one a core as far as the memory allows, and one beside a
    GPU or under a launcher."""
    beta: Annotated[float, Field(gt=0.0)] = 0.1
    """Scale of the pair terms (0.1 in the paper)."""
    ce_weight: Annotated[float, Field(ge=0.0)] = 0.2
    """The paper's lambda: weight of the supervised term beside the pair term."""
    ce_reduction: Literal["sum", "token_mean"] = "token_mean"
    """Sum or mean over tokens: two different balances with the pair term."""
    length_normalise: bool = False
    """Pair terms on mean instead of summed token log-probs; wanted when the reference is dropped."""
    reference: str = Field(default="fixed", pattern=r"^(fixed|none|refresh:[1-9][0-9]*)$")
    """"fixed" is the policy at the start; "refresh:K" copies the policy every K updates; "none" drops it."""
    sample_refresh: Literal["step", "epoch"] = "step"
    """Draw the policy's samples at every update, or once an epoch."""
    min_score_gap: Annotated[float, Field(ge=0.0)] = 0.0
    """RBA-Group: best and worst samples whose scores lie closer make no pair; ties never do."""
    conditioning: Literal["own", "cross"] = "own"
    """RBA-Group: score each answer on its own audio (paper), or both answers on both audios."""
    samples_per_view: Positive = 1
    """Own samples for each clip."""
    scorer: str | dict[str, FiniteFloat] = Field(
        default_factory=lambda: {"similarity": 1.0, "novelty": 0.75, "repetition": 0.5}
    )
    """What ranks samples for rba-group and rewards grpo, or several with weights; `rba list scorers` says which are
    unsafe alone, and those are refused without their guard."""
    reward_model: str | None = None
    """Folder of the model that the scorer reward-model asks: a sequence classifier with one label, or ArmoRM."""
    judge: JudgeEndpoint | None = None
    """The server that the scorer judge asks, from each training process."""
    rollout: RolloutEndpoint | None = None
    """A server that samples in the place of this process; it takes LoRA anew before every update (docs/scale.md)."""
    train_adapter: bool = False
    """True also trains the adapter; the encoder stays frozen."""
    answer_system: str | None = None
    """The system prompt of the speech LLM; None takes the one of [synth]."""
    sampling: Sampling = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=64)
    """How the policy samples; its cap is the answers' cap."""
    lora: dict[str, Any] = Field(default_factory=lambda: {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"})
    """LoraConfig by its own names."""
    full_finetuning: bool = False
    """Train the decoder's own weights in the place of LoRA, all but embeddings and output layer. A frozen copy of them
    stays as teacher and reference; with Adam's two moments that is five times the weights in memory. Give a lower
    learning_rate."""
    args: dict[str, Any] = Field(default_factory=lambda: {"learning_rate": 2e-4})
    """TrainingArguments by their own names."""
    args_of: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """ARM = {...} over `args` for one arm, and for the arm that matches it: what equal tuning chose for each."""
    select_by: Literal["last", "validation"] = "last"
    """Which checkpoint of an arm is evaluated: the last, or the best on the validation split."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Stop an arm after so many checkpoints in a row without a better one on validation; 0 trains to the end."""
    answers_every: Annotated[int, Field(ge=0)] = 0
    """Updates between greedy answers to the same four validation clips, kept in answers.jsonl to be read; 0: none."""
    save_every: Positive = 10
    """Updates between checkpoints; a resume starts from the last."""

    @field_validator("mixtures")
    @classmethod
    def _known_terms(cls, given: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        for name, terms in given.items():
            if name in ARMS or not re.fullmatch(r"[a-z0-9][a-z0-9+.]*(-[a-z0-9+.]+)*", name) or name.endswith(MATCHED):
                raise ValueError(f"{name!r} is no name for a mixture: small letters, digits, + . and single dashes")
            for term in terms:
                if term not in TERMS:
                    raise ValueError(f"mixture {name} has no term {term!r}; there are: {', '.join(TERMS)}")
            if not any(terms.values()):
                raise ValueError(f"mixture {name} needs a term with a weight above 0")
        return given

    @model_validator(mode="after")
    def _known_arms(self) -> Self:
        rivals = {"rba-single", "rba-group"}.intersection(self.arms)
        for arm in self.arms:
            if arm not in (known := [*ARMS, *MATCHING, *self.mixtures]):
                raise unknown("[align] arm", arm, known, "or a name of your own in [align.mixtures]")
            if arm.endswith(MATCHED) and not (rivals and objective(arm) in self.arms):
                raise ValueError(f"{arm} needs {objective(arm)} and an rba arm beside it, whose operations it matches")
        for arm in self.args_of:
            if arm not in (known := [*ARMS, *self.mixtures]):
                raise unknown("[align.args_of] arm", arm, known, "a matched arm takes those of the arm that it matches")
        return self

    @model_validator(mode="after")
    def _stops_by_validation(self) -> Self:
        if self.patience and self.select_by != "validation":
            raise ValueError(f'patience = {self.patience} watches validation: set select_by = "validation"')
        return self

    @model_validator(mode="after")
    def _full_or_lora(self) -> Self:
        if self.full_finetuning and self.lora != type(self)().lora:
            raise ValueError("full_finetuning trains the weights themselves: leave out [align.lora]")
        return self

    @model_validator(mode="after")
    def _server_takes_lora(self) -> Self:
        if self.rollout is not None and (self.full_finetuning or self.train_adapter):
            other = "full_finetuning" if self.full_finetuning else "train_adapter"
            raise ValueError(f"rollout sends LoRA to its server and no other weights: leave out {other}")
        return self

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if self.model is not None and self.connector != "default":
            raise ValueError(f"model is a whole speech LLM and takes no connector, such as {self.connector!r}")
        if self.model is not None and self.train_adapter:
            raise ValueError(
                "train_adapter is for the embedded model: the projector of a model of its own stays frozen"
            )
        return self

    def of_arm(self, arm: str, updates: int) -> Self:
        """What one arm trains by: its own arguments over the common ones, for so many updates."""
        args = {**self.args, **self.args_of.get(objective(arm), {})}
        return self.model_copy(update={"updates": updates, "args": args, "args_of": {}})

    def mixture(self, arm: str) -> dict[str, float]:
        """The terms of an arm with their weights; a weight of 0 is no term."""
        chosen = self.mixtures.get(arm) or ARMS[objective(arm)]
        weighed = {term: self.ce_weight if weight is None else weight for term, weight in chosen.items()}
        return {term: weight for term, weight in weighed.items() if weight > 0}

    @field_validator("lora", "args")
    @classmethod
    def _keep_defaults(cls, given: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """`lora = {r = 8}` keeps `target_modules`: without it PEFT would adapt other layers."""
        default = cls.model_fields[info.field_name or ""].get_default(call_default_factory=True, validated_data={})
        return {**default, **given}


class EvalConfig(Section):
    """`rba eval`: arms beside references on held-out instructions and voices."""

    references: tuple[Literal["text", "cascade", "self-cascade", "wrong-audio"], ...] = (
        "text", "cascade", "self-cascade", "wrong-audio",
    )  # fmt: skip
    """The text LLM; an independent ASR before it; the model's own transcript before it; another item's clip."""
    split: Literal["validation", "test"] = "test"
    """Tune on validation; open test once."""
    limit: Positive | None = None
    """Instructions at most; None takes the whole split."""
    sampling: Sampling = Sampling(temperature=0.7, top_p=1.0, max_new_tokens=64)
    """How open-ended answers are sampled, with one fixed key for each item."""
    consistency_samples: Annotated[int, Field(ge=2)] = 2
    """Samples on the same audio that give consistency its ceiling."""
    qa: Annotated[int, Field(ge=0)] = 0
    """Human-written questions spoken by test voices and answered greedily; 0 leaves QA out."""
    bootstrap: Positive = 2000
    """Resamples of instructions behind each interval."""
    batch_size: Positive = 64
    """Clips answered at once; any value gives the same answers."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Answering processes; 0 takes one a core as far as the memory allows, and one beside a GPU."""


class ReportConfig(Section):
    """`rba report`: one static page that reads run folders only."""

    samples: Annotated[int, Field(ge=0)] = 60
    """Instructions shown with every arm's answer."""
    audio: bool = True
    """Copy their clips beside the page."""
    single_file: Annotated[int, Field(ge=0)] = 0
    """Samples of a task in report/single.html, one file with their clips inside, to mail. 0: none.
    `rba report --single-file` asks for 8."""
