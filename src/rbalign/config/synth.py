"""[synth]: what the teacher writes, which of it is kept, and who says it how. See `sections.py` for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, FiniteFloat, ValidationInfo, field_validator, model_validator

from rbalign.config.endpoints import VoiceEndpoint
from rbalign.config.kinds import (
    TOPICS,
    Kind,
    LabelsConfig,
    QaConfig,
    S2ttConfig,
    default_answer,
    default_answer_system,
)
from rbalign.config.languages import CERTAINTY, KNOWN_TO_WHISPER, UNHEARD
from rbalign.config.section import Fraction, Positive, Section
from rbalign.config.sections import Sampling, TeacherConfig
from rbalign.config.views import canonical_channel, canonical_delivery, parse_channel
from rbalign.errors import UsageError

Temperature = Annotated[float, Field(gt=0.0, le=5.0)]
Nucleus = Annotated[float, Field(gt=0.0, le=1.0)]
RATING = ("language", "repetition", "novelty", "reward-model")
"""Scorers that rate a request and its answer alone, the cheap ones first. The others compare with a second answer,
accepted answers or other views, or ask a server, which may rate the same answer differently when asked again."""


class Writing(Section):
    """How the teacher writes instructions: one value for all, or [lowest, highest], of which each draws its own."""

    temperature: Annotated[float, Field(ge=0.0, le=5.0)] | tuple[Temperature, Temperature] = 1.0
    """The paper: 1.0 to 1.2. Hotter is more varied, and more of it falls to the filters."""
    top_p: Nucleus | tuple[Nucleus, Nucleus] = 0.99
    """The paper: 0.99 to 1.0."""
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 48
    """A longer instruction is unfinished, and dropped."""

    @field_validator("temperature", "top_p")
    @classmethod
    def _rises(cls, given: Any, info: ValidationInfo) -> Any:
        if isinstance(given, tuple) and given[0] > given[1]:
            raise UsageError(f"{info.field_name} = {list(given)} falls", f"write [{given[1]:g}, {given[0]:g}]")
        return given


class Domain(Section):
    """One part of the mixture that instructions come from."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,31}$")]
    """Each example's label "domain"."""
    weight: Annotated[float, Field(gt=0.0)] = 1.0
    """Share of the candidates, relative to the other domains."""
    system: str | None = None
    """The system prompt before the pre-query template, for figure 1 of the paper; without one the template's own."""


class SpeakableConfig(Section):
    """What a text may hold and still be said aloud. Code, markdown, tables, addresses and LaTeX never may."""

    max_words: Positive = 80
    """About 30 s of speech: one Whisper window. Instructions are mostly held shorter by [synth.filters] max_words."""
    max_sentence_words: Positive = 40
    """Longer sentences are read, not said (15 s without a full stop)."""
    max_items: Annotated[int, Field(ge=0)] = 6
    """Of lists."""
    max_list_depth: Positive = 1
    """2 also lets lists in lists pass."""
    max_number_digits: Positive = 7
    """Digits of one number."""
    max_digit_share: Fraction = 0.12
    """Of the characters that are no space; it counts from five numbers on."""
    max_symbol_share: Fraction = 0.03
    """The same for what is neither letter, digit nor a mark with a sound."""
    max_foreign_share: Fraction = 0.02
    """Of the letters, those outside the Latin script. For a language that has another one it does not count."""


class FilterConfig(Section):
    """Which instructions people would say aloud. Every filter counts what it drops, by name."""

    younger: ClassVar[tuple[str, ...]] = (
        "refusals", "min_novelty", "speakable", "min_language_certainty", "scorers", "reward_model",
    )  # fmt: skip

    min_words: Positive = 4
    """Shorter instructions are dropped. Where no spaces stand between words, two letters count as one."""
    max_words: Positive = 30
    """Longer ones too: nobody says them in one breath."""
    speakable: SpeakableConfig = SpeakableConfig()
    """What can be said aloud."""
    max_near_duplicate: Fraction = 0.7
    """Estimated Jaccard similarity of word sets at which a later instruction is a near-duplicate. The same words again,
    in any case and with any marks, are a duplicate and dropped whatever stands here."""
    max_leakage: Fraction = 0.7
    """The same against texts that the connector was trained on and against `leakage_files`."""
    leakage_files: tuple[str, ...] = ()
    """Evaluation sets that no instruction may resemble: every string of .csv, .tsv, .json, .jsonl and .parquet, every
    line of other files."""
    language: str = "en"
    """What the instructions must be written in, as py3langid names it."""
    min_language_certainty: Fraction = CERTAINTY
    """An instruction that the teacher wrote falls only if py3langid is so sure of another language."""
    mathematics: bool = False
    """True keeps instructions that need written mathematics, LaTeX aside; the paper drops them."""
    refusals: bool = True
    """False drops answers that refuse or call themselves an AI, and instructions in an assistant's voice (English)."""
    min_novelty: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Answers that say the instruction again are dropped: fewer of their runs of three words are new. 0 keeps them."""
    scorers: dict[str, FiniteFloat] = Field(default_factory=dict)
    """NAME = MINIMUM: answers that one of these scorers rates lower are dropped; what it leaves unscored stays.
    language, repetition, novelty and reward-model rate a request and its answer alone."""
    reward_model: str | None = None
    """Folder of the model that the scorer reward-model asks: a sequence classifier with one label, or ArmoRM."""

    @model_validator(mode="after")
    def _can_rate(self) -> Self:
        for name in self.scorers:
            if name not in RATING:
                raise UsageError(
                    f"scorers: {name!r} is no scorer that rates a request and its answer alone",
                    f"choose from {', '.join(RATING)}; see `rba list scorers`",
                )
        if "reward-model" in self.scorers and self.reward_model is None:
            raise UsageError(
                "the scorer reward-model has no model to ask", 'add to [synth.filters]: reward_model = "FOLDER"'
            )
        return self


class ViewPlan(Section):
    """A rule that says which views an example gets. Several rules add up. docs/views.md has channels and deliveries."""

    younger: ClassVar[tuple[str, ...]] = ("channels", "deliveries")

    voices: str | tuple[str, ...] = "kokoro"
    """Names from the voice bank, or an engine whose voices of the split are meant ("kokoro", "hibari", "endpoint")."""
    splits: tuple[Literal["train", "validation", "test"], ...] = ("train", "validation", "test")
    """Which splits the rule speaks; every split uses its own voices only."""
    per_example: Positive = 4
    """Distinct voices for each example, drawn by key from `voices`."""
    fraction: Fraction = 1.0
    """The share of examples that this rule speaks, drawn by key."""
    speeds: tuple[Annotated[float, Field(ge=0.5, le=2.0)], ...] = (1.0,)
    """One of them for each view, drawn by key; 1.0 is the voice's own pace."""
    channels: tuple[str, ...] = ("clean",)
    """The same for how the clip arrives: "noise:babble@5dB+telephone". What stands twice is drawn twice as often."""
    deliveries: tuple[str, ...] = ("fluent",)
    """The same for how the text is said: "filler", "correction", "stutter+pause". The example keeps its fluent text."""
    of: Literal["all", "written", "vocabulary"] = "all"
    """Which examples: those that the teacher wrote, the practice sentences that `vocabulary` makes of them, or both."""

    @field_validator("speeds", "channels", "deliveries")
    @classmethod
    def _has_one(cls, given: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        if not given:
            raise UsageError(f"{info.field_name} is empty", "name at least one, or leave the key out")
        return given

    @field_validator("channels", "deliveries")
    @classmethod
    def _canonical(cls, given: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        spell = canonical_channel if info.field_name == "channels" else canonical_delivery
        return tuple(spell(each) for each in given)


class ReadBackConfig(Section):
    """An independent ASR hears what the voices said. Counts and words stand in data/heard.jsonl."""

    share: Fraction = 0.0
    """Of the clips, drawn by key: 1 hears every one, 0 none. A clip costs Whisper base about 1.5 CPU seconds."""
    max_wer: Annotated[float, Field(ge=0.0)] = 0.3
    """Word error rate above which a clip is not understood; where no spaces stand between words, of characters."""
    other_voices: Annotated[int, Field(ge=0)] = 2
    """Voices that may say it after that, one after the other; then it is dropped and counted."""
    model: str = "whisper-base-ct2"
    """Asset name of the ASR."""


def _default_filters(table: Mapping[str, Any]) -> FilterConfig:
    """Questions may have three words: "Who wrote Hamlet?"."""
    return FilterConfig(min_words=3) if table.get("kind") == "qa" else FilterConfig()


def _default_views(table: Mapping[str, Any]) -> tuple[ViewPlan, ...]:
    """Four voices for an instruction, as in the paper, and one for a question or a sentence."""
    return (ViewPlan() if table.get("kind", "instructions") == "instructions" else ViewPlan(per_example=1),)


class SynthConfig(Section):
    """`rba synth`: the teacher writes instructions and answers, voices speak them."""

    younger: ClassVar[tuple[str, ...]] = (
        "noise_folder", "endpoint_voices", "vocabulary_pieces", "vocabulary_of", "vocabulary_share", "domains",
        "read_back", "kind", "labels", "qa", "s2tt",
    )  # fmt: skip

    kind: Kind = "instructions"
    """What is written: requests with answers, short questions with short answers, or texts with translations. "qa" and
    "s2tt" answer greedily, under system prompts of their own, and by default one voice says each example."""
    qa: QaConfig = QaConfig()
    """For kind = "qa"."""
    s2tt: S2ttConfig = S2ttConfig()
    """For kind = "s2tt"."""
    train: Annotated[int, Field(ge=0)] = 64
    """Accepted instructions for training."""
    validation: Annotated[int, Field(ge=0)] = 16
    """For tuning and checkpoint choice, spoken by validation voices."""
    test: Annotated[int, Field(ge=0)] = 48
    """Held out, spoken by test voices."""
    system: str | None = None
    """A domain system prompt before the pre-query template (figure 1 of the paper)."""
    domains: tuple[Domain, ...] = ()
    """A weighted mixture of such prompts instead; each candidate draws its domain by key."""
    instruction: Writing = Writing()
    """How the teacher writes instructions."""
    answers: bool = True
    """False writes instructions only: enough for connecting, half the time."""
    sentences: bool = False
    """True also turns each sentence of each answer into an example (connecting wants many texts)."""
    vocabulary: Annotated[int, Field(ge=0)] = 0
    """Practice sentences beside `train`, in which the LLM's own words come one after the other, for connecting."""
    vocabulary_pieces: Annotated[int, Field(ge=1, le=4)] = 1
    """Above 1 they also hold names and the lexicon's words of up to so many tokens, a quarter as often each."""
    vocabulary_of: Literal["lexicon", "inflected", "all"] = "lexicon"
    """Words that the lexicon lists; plurals, -s, -ed and -ing forms of one token that it derives; or both."""
    vocabulary_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.6
    """Share of a practice sentence's words that are replaced."""
    answer_system: str = Field(default_factory=default_answer_system)
    """The system prompt under which the teacher answers."""
    answer: Sampling = Field(default_factory=default_answer)
    """How it answers; an answer that does not end within max_new_tokens is dropped."""
    filters: FilterConfig = Field(default_factory=_default_filters)
    """Which instructions are kept."""
    labels: LabelsConfig | None = None
    """Topic and difficulty of each instruction, and a test split by topic."""
    noise_folder: str | None = None
    """Audio files of yours, in this folder and below, for the channel noise:folder."""
    views: tuple[ViewPlan, ...] = Field(default_factory=_default_views)
    """Who speaks them."""
    read_back: ReadBackConfig = ReadBackConfig()
    """Whether they were understood."""
    endpoint_voices: tuple[VoiceEndpoint, ...] = ()
    """Servers whose voices join the bank as engine "endpoint"; see docs/endpoints.md."""
    batch_size: Positive = 96
    """Instructions sampled at once; any value gives the same texts."""
    workers: Annotated[int, Field(ge=0, le=256)] = 0
    """Speaking processes; 0 takes one a core."""
    test_views: str | None = None
    """Ready test examples and views: "shipped" (300 x 4 voices), or a finished dataset's folder; None makes them."""

    @property
    def recordings(self) -> str | None:
        """The folder of recordings that the examples are made of; None where voices say them."""
        return self.s2tt.source if self.kind == "s2tt" else None

    @property
    def translator(self) -> TeacherConfig | None:
        """Who answers in the teacher's place: the model that translates; None where the teacher does."""
        model = self.s2tt.translator if self.kind == "s2tt" else None
        return TeacherConfig(model=model) if model else None

    def size(self, split: str) -> int:
        """Examples that the teacher writes, or that come ready, for "train", "validation" or "test"."""
        by_topic = len(TOPICS) * self.labels.test_per_topic if self.labels and split == "test" else 0
        return by_topic or {"train": self.train, "validation": self.validation, "test": self.test}[split]

    @field_validator("domains")
    @classmethod
    def _distinct(cls, domains: tuple[Domain, ...], info: ValidationInfo) -> tuple[Domain, ...]:
        names = [domain.name for domain in domains]
        if len(set(names)) < len(names):
            raise UsageError(f"two domains have one name: {names}", "name each domain once")
        if domains and info.data.get("system") is not None:
            raise UsageError("[synth] has a system prompt and domains", "give each domain its own system prompt")
        return domains

    @field_validator("read_back")
    @classmethod
    def _is_heard(cls, read_back: ReadBackConfig, info: ValidationInfo) -> ReadBackConfig:
        language = info.data["filters"].language if "filters" in info.data else "en"
        deaf = language not in KNOWN_TO_WHISPER or (".en" in read_back.model and language != "en")
        if read_back.share and deaf:
            raise UsageError(
                f"{read_back.model} does not hear {language!r}",
                "set [synth.read_back] share = 0; whisper-base-ct2 hears those of config/languages.py without "
                f"{', '.join(sorted(UNHEARD))}",
            )
        return read_back

    @field_validator("views")
    @classmethod
    def _can_be_made(cls, views: tuple[ViewPlan, ...], info: ValidationInfo) -> tuple[ViewPlan, ...]:
        asked = [c for rule in views for c in rule.channels if any(s.kind == "folder" for s in parse_channel(c))]
        if asked and info.data.get("noise_folder") is None:
            raise UsageError(f"channel {asked[0]!r} has no folder", "set [synth] noise_folder to recordings of yours")
        language = info.data["filters"].language if "filters" in info.data else "en"
        if language != "en" and any(set(rule.deliveries) != {"fluent"} for rule in views):
            raise UsageError(f"disfluencies are English, the instructions {language!r}", "leave deliveries out")
        return views

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        if self.kind != "instructions" and (self.sentences or not self.answers):
            raise UsageError(f"kind {self.kind!r} is nothing without answers", "leave answers and sentences out")
        if self.filters.scorers and (self.sentences or not self.answers):
            raise UsageError("[synth.filters] scorers rate answers, and no example has one", "leave scorers out")
        if self.kind != "instructions" and self.labels is not None:
            raise UsageError(f"labels are for instructions, and kind is {self.kind!r}", "leave [synth.labels] out")
        if self.kind == "s2tt" and self.s2tt.target == self.filters.language:
            raise UsageError(
                f"s2tt from {self.filters.language!r} to {self.s2tt.target!r} is no translation",
                "set [synth.s2tt] target, or [synth.filters] language for what is said",
            )
        if self.kind == "s2tt" and self.s2tt.source and (self.vocabulary or self.test_views):
            raise UsageError("s2tt from recordings makes no vocabulary and takes no test_views", "leave them out")
        if self.kind == "s2tt" and self.test_views == "shipped":
            raise UsageError("the shipped test set holds answers, no translations", "leave test_views out")
        if self.labels and self.labels.test_per_topic and (self.test_views or self.sentences):
            raise UsageError(
                "test_per_topic makes the test split itself, of whole instructions",
                "leave test_views and sentences out",
            )
        return self
