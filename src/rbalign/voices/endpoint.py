"""Voices behind any OpenAI-compatible /v1/audio/speech: named ones, or cloned from reference speakers.

Cloning has no standard. The defaults, `ref_audio` as a base64 data URL and `ref_text` beside it, are what the
documentation of vLLM-Omni (speech API, Base task) and of SGLang-Omni (TTS request parameters) gives for Qwen3-TTS
Base, Fish Speech S2 Pro, CosyVoice3 and others; SGLang-Omni also takes "references.0.audio_path" and
"references.0.text". Fish Speech under vLLM-Omni wants `clone_voice = "default"`. Fish Speech's and F5-TTS's own servers
speak other protocols. Checked against these documents and a loopback server, not against the servers themselves.
"""

from __future__ import annotations

import io
import struct
import wave
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rbalign.audio.io import Limits, read_audio
from rbalign.config.endpoints import VoiceEndpoint
from rbalign.errors import DataError, UsageError
from rbalign.remote.client import Client, EndpointError, Read, RequestError
from rbalign.remote.counts import Usage
from rbalign.remote.pace import Clock
from rbalign.remote.wire import AttemptError, Reply
from rbalign.voices.bank import endpoint_clips
from rbalign.voices.engine import RATE, Speaker, check_speed, finish
from rbalign.voices.pool import WINDOW, Clip, SpeakFailure, SpeakJob
from rbalign.voices.speakers import ReferenceClip

REPLY_BYTES = 32 << 20
"""Two minutes of 48 kHz stereo WAV are 23 MB."""
LIMITS = Limits(max_seconds=120.0)
"""Of a spoken instruction: a synthesiser that goes on for longer has lost its thread."""
SILENT = 1e-3
"""A clip whose loudest sample is below this (-60 dB) says nothing."""
PROBE_TEXT = "Hello there."


class EndpointSpeaker:
    """All voices of one [[synth.endpoint_voices]]. A `Speaker`, from several threads."""

    def __init__(self, config: VoiceEndpoint, clips: Mapping[str, ReferenceClip | None], client: Client) -> None:
        """clips: voice -> what to clone it from, or None for a voice that the server knows by name."""
        self.config, self.client = config, client
        self._clips = dict(clips)

    def speak(self, text: str, voice: str, speed: float = 1.0) -> np.ndarray:
        """One clip, (samples,) float32 at 16 kHz; the same arguments give the cached reply's samples.

        Raises RequestError if the request failed for good, EndpointError if no request can succeed.
        """
        check_speed(speed)
        body: dict[str, Any] = {"input": text, "response_format": self.config.format}
        if speed != 1.0:
            body["speed"] = speed
        clip = self._clips[voice]
        if clip is None:
            body["voice"] = voice
        else:
            self._add_reference(body, clip)
        usage = Usage(characters=len(text))
        samples: np.ndarray = self.client.post(
            "/audio/speech", body, lambda reply: Read(self._samples(reply), usage), REPLY_BYTES
        )
        return samples

    def probe(self) -> None:
        """Speak a short text. Raises UsageError if what comes is no speech, RequestError if nothing comes."""
        voice = next(iter(self._clips))
        try:
            self.speak(PROBE_TEXT, voice)
        except RequestError as failure:
            if failure.fault.kind not in ("bad", "unusable"):
                raise
            problem = f"{self.client.name} gives no clip of voice {voice!r}: {failure.fault}"
            raise UsageError(problem, "mend url, model, voices or format in [[synth.endpoint_voices]]") from None

    def _add_reference(self, body: dict[str, Any], clip: ReferenceClip) -> None:
        if self.config.clone_voice is not None:
            body["voice"] = self.config.clone_voice
        put_at(body, self.config.reference_audio, clip.encoded(self.config.reference_as))
        if self.config.reference_text and clip.transcript is not None:
            put_at(body, self.config.reference_text, clip.transcript)

    def _samples(self, reply: Reply) -> np.ndarray:
        """Mono at 16 kHz of whatever came; a reply that is no sound clip is unusable, and asked for again."""
        try:
            raw = reply.body
            sound = _pcm_as_wav(raw, self.config.pcm_rate) if self.config.format == "pcm" else with_sizes(raw)
            samples = finish([read_audio(sound, rate=RATE, limits=LIMITS)], RATE)
        except DataError as error:
            kind = f" ({reply.content_type})" if reply.content_type else ""
            raise AttemptError(f"the reply{kind} is no clip: {error.problem}", "unusable", retry=True) from None
        if np.abs(samples).max(initial=0.0) < SILENT:
            raise AttemptError("the clip is silent", "unusable", retry=True)
        return samples


def endpoint_speakers(
    endpoints: Sequence[VoiceEndpoint], cache: Path | None, clock: Clock | None = None
) -> dict[str, EndpointSpeaker]:
    """Voice -> its speaker; nothing is asked yet. `cache` is the folder of the reply cache."""
    speakers: dict[str, EndpointSpeaker] = {}
    for endpoint in endpoints:
        clips = endpoint_clips(endpoint)
        speaker = EndpointSpeaker(endpoint, clips, Client(endpoint, cache, clock))
        speakers |= dict.fromkeys(clips, speaker)
    return speakers


def speak_remote(jobs: Iterable[SpeakJob], speakers: Mapping[str, EndpointSpeaker]) -> Iterator[tuple[str, Clip]]:
    """Speak jobs by their servers; yields (id, samples or SpeakFailure) as they are ready, in any order.

    Threads, not processes: they wait. A request that fails for good becomes a SpeakFailure; EndpointError goes
    through, after the requests under way. Closing the iterator early gives up what was not sent.
    """
    source = iter(jobs)
    clients = {id(speaker): speaker.client for speaker in speakers.values()}.values()
    threads = sum(client.config.concurrency for client in clients)
    if not threads:
        return
    pool = ThreadPoolExecutor(threads, "voice")
    flying: set[Future[tuple[str, Clip]]] = set()
    try:
        while True:
            for job in islice(source, WINDOW * threads - len(flying)):
                flying.add(pool.submit(_speak, job, speakers[job.voice]))
            if not flying:
                return
            done, flying = wait(flying, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    finally:
        _give_up(pool, list(clients))


def _give_up(pool: ThreadPoolExecutor, clients: Sequence[Client]) -> None:
    """End the threads: requests under way finish (they are paid for, and cached), no other starts."""
    if clients:
        with clients[0].stopping():
            _give_up(pool, clients[1:])
    else:
        pool.shutdown(wait=True, cancel_futures=True)


def _speak(job: SpeakJob, speaker: Speaker) -> tuple[str, Clip]:
    try:
        return job.id, speaker.speak(job.text, job.voice, job.speed)
    except EndpointError:
        raise
    except Exception as error:  # like the worker processes: a job is never lost
        return job.id, SpeakFailure(job, f"{type(error).__name__}: {error}")


def put_at(body: dict[str, Any], field: str, value: Any) -> None:
    """Set a field of a JSON body; "references.0.text" goes through lists and tables and makes them where needed."""
    place: Any = body
    parts: list[str | int] = [int(part) if part.isdecimal() else part for part in field.split(".")]
    for part, following in pairwise(parts):
        place = _into(place, part, [] if isinstance(following, int) else {})
    _into(place, parts[-1], value)


def _into(place: Any, part: str | int, value: Any) -> Any:
    """What stands at a place of a list or table, after putting the value there if there was nothing."""
    if isinstance(place, dict) and isinstance(part, str):
        return place.setdefault(part, value)
    if isinstance(place, list) and isinstance(part, int):
        if part == len(place):
            place.append(value)
        return place[part]
    raise UsageError(f"the reference's field {part!r} lies inside {place!r}", "leave clone_voice out")


def with_sizes(sound: bytes) -> bytes:
    """A WAV whose header says nothing of its length, because it was streamed, with its sizes; others as they are.

    Streaming servers write 0, 0x7FFFFFFF (ElevenLabs), 0xFFFFFFFF (OpenAI, Kokoro-FastAPI) or two thousand million
    (Pocket TTS). Only sizes that no reply can have are replaced: a header that promises more than came is a cut clip.
    """
    if sound[:4] != b"RIFF" or sound[8:12] != b"WAVE":
        return sound
    start = 12
    while start + 8 <= len(sound):
        (size,) = struct.unpack_from("<I", sound, start + 4)
        if sound[start : start + 4] == b"data":
            if 0 < size <= REPLY_BYTES:
                return sound
            sizes = struct.pack("<I", len(sound) - 8), struct.pack("<I", len(sound) - start - 8)
            return sound[:4] + sizes[0] + sound[8 : start + 4] + sizes[1] + sound[start + 8 :]
        start += 8 + size + size % 2
    return sound


def _pcm_as_wav(raw: bytes, rate: int) -> bytes:
    """16-bit little-endian mono with a header before it, so that it meets the limits of every clip."""
    if not raw or len(raw) % 2:
        raise DataError(f"{len(raw)} bytes are no 16-bit samples", "ask for wav")
    sink = io.BytesIO()
    with wave.open(sink, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(raw)
    return sink.getvalue()
