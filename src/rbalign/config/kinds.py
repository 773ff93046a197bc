"""What [synth] makes beside instructions, and the labels of instructions: [synth.qa], [synth.s2tt], [synth.labels]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from rbalign.config.languages import CERTAINTY, language_name
from rbalign.config.section import Fraction, Positive, Section
from rbalign.config.sections import Sampling, TeacherConfig
from rbalign.errors import UsageError

TOPICS = {
    "information seeking": "facts and explanations",
    "advice": "what to do about a problem, a choice or a person",
    "creative writing": "a story, a poem, a letter or another text to be written",
    "planning": "a schedule, a trip, an event, steps towards a goal",
    "reasoning": "puzzles, numbers, logic, cause and effect",
    "brainstorming": "many ideas, names or suggestions",
    "role play": "the assistant acts as somebody",
    "others": "anything else, such as greetings, translating and rewriting",
}
"""The paper's topics, and what each means."""

Kind = Literal["instructions", "qa", "s2tt"]

GENERAL_SYSTEM = "You are a helpful assistant. Answer in one or two short spoken sentences."
QA_SYSTEM = "Answer the question with the fact alone, in one to five words."
S2TT_SYSTEM = (
    "You are a translator. Translate what the user says into {language}, do not answer it. Say the translation \
alone."
)


class LabelsConfig(Section):
    """A tagger gives each instruction a topic (of eight) and a difficulty (of five levels). Off without this table."""

    tagger: TeacherConfig | None = None
    """Who labels, as in [teacher]: a model here scores each label, a server is asked; None: the recipe's teacher."""
    test_per_topic: Annotated[int, Field(ge=0)] = 0
    """Instructions of each topic that make the test split, in place of [synth] test; 0 leaves the split as it is."""
    budget: Positive = 2000
    """Candidates that may be written for one topic; a topic that is short then is told and stands in the manifest."""


class QaConfig(Section):
    """kind = "qa": questions with short answers, which can be told right or wrong."""

    max_answer_words: Annotated[int, Field(ge=1, le=20)] = 5
    """Longer answers are dropped."""
    aliases: bool = True
    """Ask the teacher for other ways to say each answer: all of them count as right."""


class S2ttConfig(Section):
    """kind = "s2tt": the teacher translates what is said. [synth.filters] language is what it is said in."""

    younger: ClassVar[tuple[str, ...]] = ("translator", "examples", "min_language_certainty")

    target: str = "de"
    """What to translate into (ISO 639-1)."""
    translator: str | None = None
    """A model of this machine that translates what the teacher wrote: an asset name or a folder; None: the teacher."""
    examples: tuple[tuple[str, str], ...] = ()
    """[text, translation] pairs that end the default `answer_system`. A base model (gemma-3-270m) needs them: 4 do."""
    source: str | None = None
    """A folder of recordings with transcripts; None: sentences that the teacher writes and our voices say."""
    column: Annotated[str, Field(min_length=1)] = "transcription"
    """Where metadata.jsonl or metadata.csv of `source` has the transcript."""
    max_seconds: Annotated[float, Field(gt=0.0, le=600.0)] = 30.0
    """Longer recordings are left out and counted: a Whisper window has 30 s."""
    max_copied: Fraction = 0.7
    """Similarity of word sets at which a translation is the untranslated text."""
    length_ratio: tuple[Annotated[float, Field(gt=0.0)], Annotated[float, Field(gt=0.0)]] = (0.25, 4.0)
    """Least and most bytes (UTF-8) of a translation for each byte of the text: a Chinese or Hindi letter has three."""
    min_language_certainty: Fraction = CERTAINTY
    """A translation falls only if py3langid is so sure of another language than `target`."""

    @field_validator("target")
    @classmethod
    def _known(cls, code: str) -> str:
        language_name(code)
        return code

    @field_validator("length_ratio")
    @classmethod
    def _rises(cls, given: tuple[float, float]) -> tuple[float, float]:
        if given[0] > given[1]:
            raise UsageError(f"length_ratio = {list(given)} falls", f"write [{given[1]:g}, {given[0]:g}]")
        return given


def default_answer_system(table: Mapping[str, Any]) -> str:
    """The system prompt of a kind; `table`: the keys of [synth] before it."""
    kind = table.get("kind")
    if kind == "s2tt" and "s2tt" in table:
        shown = [f"\n\n{text}\n= {translation}" for text, translation in table["s2tt"].examples]
        return S2TT_SYSTEM.format(language=language_name(table["s2tt"].target)) + "".join(shown)
    return QA_SYSTEM if kind == "qa" else GENERAL_SYSTEM


def default_answer(table: Mapping[str, Any]) -> Sampling:
    """How answers of a kind are sampled: facts and translations greedily."""
    kind = table.get("kind")
    if kind == "qa":
        return Sampling(temperature=0.0, max_new_tokens=24)
    if kind == "s2tt":
        return Sampling(temperature=0.0, max_new_tokens=128)
    return Sampling(temperature=0.7, top_p=0.95, max_new_tokens=64)
