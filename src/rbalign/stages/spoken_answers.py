"""Speech to speech: a voice says each answer and the independent ASR writes down what it hears; that is scored.

TASK/NAME.KEY.VOICE.heard.jsonl   one row an answer (append-only), keyed like the answers and by voice and ASR
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rbalign.errors import DataError, UsageError
from rbalign.rundir.journal import Journal
from rbalign.rundir.progress import progress
from rbalign.text.normalise import word_errors
from rbalign.text.spoken import spoken_form
from rbalign.voices.bank import load_bank
from rbalign.voices.pool import Clip, SpeakFailure, SpeakJob, speak_many

ASR = "whisper-base-ct2"
ENGINES = ("kokoro", "hibari")


def check_voice(voice: str) -> None:
    """UsageError for a voice that this machine cannot speak with. Any split will do: nothing is trained."""
    info = load_bank().voice(voice)
    if info.engine not in ENGINES:
        raise UsageError(f"voice {voice} is {info.engine}'s, which rba does not run", "use a kokoro voice or hibari")


def say_and_hear(rows: Sequence[Mapping[str, Any]], path: Path, voice: str, workers: int, label: str) -> None:
    """Say and hear the answers of `rows` that the journal at `path` lacks; a row is on the disk before the next one.

    An answer without a word is heard as nothing. One that the voice cannot say is a failed item, all its words lost.
    """
    with Journal(path) as journal:
        answered = {row["id"]: row["answer"] for row in rows if not row["error"]}
        todo = {name: text for name, text in answered.items() if name not in journal}
        with progress(len(answered), label, len(answered) - len(todo), "answers said") as advance:
            for name, heard, failure in _heard(todo, voice, workers):
                errors, words = word_errors(todo[name], heard or "")
                row = {"id": name, "voice": voice, "asr": ASR, "heard": heard, "errors": errors, "words": words}
                journal.append([{**row, "error": failure}])
                advance()


def _heard(answers: Mapping[str, str], voice: str, workers: int) -> Iterator[tuple[str, str | None, str | None]]:
    """(id, transcript, why there is none) of each answer, as they are ready."""
    from rbalign.asr.whisper import Transcriber

    listener = Transcriber(ASR)
    jobs = []
    for name, text in answers.items():
        if text.strip():
            jobs.append(SpeakJob(name, spoken_form(text), voice))
        else:
            yield name, "", None
    for name, clip in speak_many(jobs, workers):
        yield name, *_transcript(clip, listener)


def _transcript(clip: Clip, listener: Any) -> tuple[str | None, str | None]:
    if isinstance(clip, SpeakFailure):
        return None, f"not spoken: {clip.reason}"
    try:
        return listener.transcribe(clip), None
    except DataError as error:
        return None, str(error)
