"""A real HTTP server on loopback for tests: it answers as told, remembers every request, and can misbehave."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import soundfile

from rbalign.data.dataset import Dataset
from rbalign.remote.pace import Clock
from rbalign.rundir.run import RunDir
from rbalign.stages.chain import chain


@dataclass(frozen=True)
class Asked:
    """One request."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):  # the name that http.server asks for
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.owner.serve(self, Asked(self.path, dict(self.headers.items()), body))

    def log_message(self, *args):
        pass

    def send(self, body: bytes, status: int = 200, kind: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", headers.pop("length", str(len(body))))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


class Loopback:
    """`answer(asked)` gives a dict (JSON), bytes (a clip) or a function of the handler (anything else)."""

    def __init__(self, answer: Callable[[Asked], Any]) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.answered: list[Asked] = []
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def serve(self, handler: Handler, asked: Asked) -> None:
        with self._lock:
            self.asked.append(asked)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            answer = self.answer(asked)
            with self._lock:  # before the bytes go out: the client may be quicker than the rest of this function
                self.at_once -= 1
                self.answered.append(asked)
            if callable(answer):
                answer(handler)
            elif isinstance(answer, bytes):
                handler.send(answer, kind="audio/wav")
            else:
                handler.send(json.dumps(answer).encode())
        except (BrokenPipeError, ConnectionResetError):  # the client was killed, or has read enough
            handler.close_connection = True

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()


class Scripted:
    """Misbehaves once for each fault, in order, then answers."""

    def __init__(self, answer: Callable[[Asked], Any], *faults: Any) -> None:
        self.answer, self.faults = answer, list(faults)

    def __call__(self, asked: Asked) -> Any:
        return self.faults.pop(0) if self.faults else self.answer(asked)


def chat(text: str = "Boil the water first.", finish: str = "stop", tokens: tuple[int, int] = (10, 5)) -> dict:
    return {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
        "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)},
    }


def completion(text: str = "How do I make tea?", finish: str | None = "stop", **more: Any) -> dict:
    return {
        "choices": [{"index": 0, "text": text, "finish_reason": finish, **more}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 6},
    }


# ---- faults ------------------------------------------------------------------------------------------------------


def status(code: int, words: str = "something is wrong", **headers: str) -> Callable[[Handler], None]:
    body = json.dumps({"error": {"message": words}}).encode()
    return lambda handler: handler.send(body, code, **headers)


def truncated(handler: Handler) -> None:
    """Promises more than comes, then hangs up."""
    handler.send(b'{"choices": [{"text": "How do', length="500")
    handler.close_connection = True


def stalls(handler: Handler) -> None:
    """Sends a part, then nothing for longer than any test waits."""
    handler.send(b'{"choices": [', length="500")
    time.sleep(30.0)
    handler.close_connection = True


def trickles(handler: Handler) -> None:
    """A byte at a time: every read succeeds, the reply never ends."""
    handler.send(b"", length="100000")
    for _ in range(3000):
        handler.wfile.write(b" ")
        time.sleep(0.02)
    handler.close_connection = True


def wrong_json(handler: Handler) -> None:
    handler.send(b"<html>Bad gateway</html>", kind="text/html")


def promises_huge(handler: Handler) -> None:
    handler.send(b"{", length=str(10**12))
    handler.close_connection = True


def streams_huge(handler: Handler) -> None:
    """Chunks without end and without a promised length."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    block = b"x" * (1 << 20)
    for _ in range(200):
        handler.wfile.write(f"{len(block):x}\r\n".encode() + block + b"\r\n")


def redirects(target: str) -> Callable[[Handler], None]:
    return lambda handler: handler.send(b"", 307, Location=target)


# ---- time and sound ----------------------------------------------------------------------------------------------


class FakeTime:
    """Waiting takes no time and is remembered."""

    def __init__(self) -> None:
        self.now, self.waits = 1000.0, []
        self._lock = threading.Lock()
        self.clock = Clock(now=lambda: self.now, wall=lambda: 1_800_000_000.0 + self.now, wait=self._wait)

    def _wait(self, event: threading.Event, seconds: float) -> None:
        with self._lock:
            self.waits.append(seconds)
            self.now += seconds


def clip(seconds: float = 0.5, rate: int = 24_000, pitch: float = 200.0, kind: str = "WAV") -> bytes:
    """A tone as a file."""
    sink = io.BytesIO()
    tone = 0.3 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)
    soundfile.write(sink, tone.astype(np.float32), rate, format=kind, subtype="PCM_16")
    return sink.getvalue()


def start(recipe, runs):
    """Run synth, or go on with it; the dataset."""
    with RunDir.open(runs, recipe) as run:
        chain(recipe, run, only="synth")
        return Dataset.open(run.path("data"))


def content(data):
    """Examples, and views with their bytes, in one order."""
    return data.examples(), [(v.id, v.spec, v.flac) for v in sorted(data.views(), key=lambda v: v.id)]


def bodies(asked):
    """Requests as comparable texts."""
    return [json.dumps([one.path, one.body], sort_keys=True) for one in asked]
