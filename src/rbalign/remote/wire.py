"""One attempt at a request: JSON out, bounded bytes in, through the `openai` client. No retries, no cache.

The client is told neither the key nor anything of this machine: what leaves in the headers is decided here. Its
environment variables (organisation, project, extra headers) are meant for one cloud and would reach every server.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import rbalign

CONNECT_SECONDS = 10.0
EXCERPT = 200
"""Characters of a server's own words in an error."""
ERROR_BYTES, ERROR_SECONDS = 4096, 5.0
"""How much of a refusal's body is read for them, and how long."""
LEAST_KEY = 8
"""A key this long is struck out of replies too; "none" or "EMPTY" may be words of an answer."""
_KEPT = frozenset({"host", "content-type", "content-length", "transfer-encoding", "x-stainless-raw-response"})
_REQUIRED = {
    "/chat/completions": ("model", "messages"),
    "/completions": ("model", "prompt"),
    "/audio/speech": ("model", "input", "voice"),
}

Kind = Literal["refused", "missing", "bad", "busy", "lost", "unusable"]
"""Of a failure: the key or account; the path or model; this request; the server just now; the connection; the reply."""


class AttemptError(Exception):
    """Why an attempt failed, in one line without the key; whether another may do better, and how soon (seconds)."""

    def __init__(self, problem: str, kind: Kind, retry: bool, after: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.kind: Kind = kind
        self.retry = retry
        self.after = after
        """The Retry-After header as it came."""

    def __reduce__(self) -> tuple[type[AttemptError], tuple[str, Kind, bool, str | None]]:
        """All of it survives the way from a worker to its parent."""
        return type(self), (self.problem, self.kind, self.retry, self.after)


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer with status 200."""

    body: bytes
    content_type: str = ""


class Wire:
    """The connections to one server. Safe for several threads."""

    def __init__(self, url: str, key: str | None, timeout: float) -> None:
        import openai

        self._url, self._key, self._timeout = url.rstrip("/"), key, timeout
        self._http = openai.DefaultHttpxClient(
            event_hooks={"request": [self._dress], "response": [self._judge]}, follow_redirects=False
        )
        self._client = openai.OpenAI(
            api_key="not-sent",
            base_url=url,
            timeout=openai.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
            max_retries=0,
            http_client=self._http,
        )

    def send(self, path: str, body: dict[str, Any], cap: int) -> Reply:
        """Post a body to a path of the API, or of a server's own; at most `cap` bytes come back.

        Raises AttemptError for everything else than a complete reply with status 200 within the timeout.
        """
        import openai

        deadline = time.monotonic() + self._timeout
        if path not in _REQUIRED:
            return self._send_plainly(path, body, cap, deadline)
        try:
            with self._create(path)(**_arguments(path, body)) as response:
                return self._read(response, cap, deadline)
        except AttemptError:
            raise
        except openai.OpenAIError as error:  # before a response: the client wraps what its transport or a hook raised
            if isinstance(error.__cause__, AttemptError):
                raise error.__cause__ from None
            if isinstance(error, openai.APITimeoutError):
                raise self._late() from None
            reason = self.clean(str(error.__cause__ or error))
            raise AttemptError(f"no connection ({reason})", "lost", retry=True) from None

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def clean(self, text: str) -> str:
        """The start of a server's words as one printable line without the key."""
        if self._key:
            text = text.replace(self._key, "[key]")
        line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return line if len(line) <= EXCERPT else line[:EXCERPT] + "..."

    def _send_plainly(self, path: str, body: dict[str, Any], cap: int, deadline: float) -> Reply:
        """A path that the client has no method for, over the connections that it has."""
        try:
            with self._http.stream("POST", self._url + path, json=body, timeout=self._timeout) as response:
                return self._read(response, cap, deadline)
        except AttemptError:
            raise
        except Exception as error:
            raise self._broken(error, "no connection") from None

    def _create(self, path: str) -> Callable[..., Any]:
        resource: Any = self._client.completions
        if path == "/chat/completions":
            resource = self._client.chat.completions
        elif path == "/audio/speech":
            resource = self._client.audio.speech
        create: Callable[..., Any] = resource.with_streaming_response.create
        return create

    def _dress(self, request: Any) -> None:
        """Before sending: our headers only. Uncompressed replies, so that the cap bounds memory."""
        for name in [name for name in request.headers if name.lower() not in _KEPT]:
            del request.headers[name]
        ours = {"accept": "*/*", "accept-encoding": "identity", "user-agent": f"rbalign/{rbalign.__version__}"}
        if self._key:
            ours["authorization"] = f"Bearer {self._key}"
        request.headers.update(ours)

    def _judge(self, response: Any) -> None:
        """After the headers of a reply: anything but 200 ends here, before the client reads a body without bound."""
        status: int = response.status_code
        if status == 200:
            return
        if 300 <= status < 400:
            target = self.clean(response.headers.get("location", "nowhere"))
            raise AttemptError(f"{status}: it redirects to {target}, which rba does not follow", "missing", retry=False)
        words = self.clean(_message(_start_of(response).decode("utf-8", "replace")))
        kind, retry = _meaning(status)
        raise AttemptError(
            f"{status}: {words or response.reason_phrase}", kind, retry, response.headers.get("retry-after")
        )

    def _read(self, response: Any, cap: int, deadline: float) -> Reply:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise AttemptError("the reply is compressed although plain bytes were asked for", "unusable", retry=False)
        huge = AttemptError(f"the reply is larger than {cap:,} bytes", "unusable", retry=False)
        promised = response.headers.get("content-length", "")
        if promised.isdecimal() and int(promised) > cap:
            raise huge
        body = bytearray()
        try:
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > cap:
                    raise huge
                if time.monotonic() > deadline:  # the client's own timeout begins anew with every chunk
                    raise self._late()
        except AttemptError:
            raise
        except Exception as error:
            raise self._broken(error, "the reply broke off") from None
        if self._key and len(self._key) >= LEAST_KEY:
            body = body.replace(self._key.encode(), b"[key]")
        return Reply(bytes(body), response.headers.get("content-type", ""))

    def _broken(self, error: Exception, words: str) -> AttemptError:
        """What an error of the transport means: httpx's or its successor's, whichever this client stands on."""
        if "timeout" in type(error).__name__.lower():
            return self._late()
        return AttemptError(f"{words} ({self.clean(str(error))})", "lost", retry=True)

    def _late(self) -> AttemptError:
        return AttemptError(f"no complete reply within {self._timeout:g} s", "lost", retry=True)


def _arguments(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The body as the client takes it: required fields by name, all others beside them."""
    import openai

    required: dict[str, Any] = {name: body.get(name, openai.NOT_GIVEN) for name in _REQUIRED[path]}
    return required | {"extra_body": {name: value for name, value in body.items() if name not in required}}


def _start_of(response: Any) -> bytes:
    """The first bytes of a refusal, if they come soon."""
    start, end = bytearray(), time.monotonic() + ERROR_SECONDS
    try:
        for chunk in response.iter_raw():
            start += chunk
            if len(start) >= ERROR_BYTES or time.monotonic() > end:
                break
    except Exception:  # the status says enough
        pass
    return bytes(start[:ERROR_BYTES])


def _message(body: str) -> str:
    """The message in an error of the OpenAI form, else the body as it is."""
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return body
    return message if isinstance(message, str) else body


def _meaning(status: int) -> tuple[Kind, bool]:
    """What a status tells, and whether to try again."""
    if status in (401, 402, 403):
        return "refused", False
    if status in (404, 405, 501):
        return "missing", False
    if status in (408, 409, 425, 429) or status >= 500:
        return "busy", True
    return "bad", False
