"""One client for every OpenAI-compatible server: bounded, patient, cached and counted.

A request either gives a value, or fails for itself (RequestError: the item stays unscored and is counted), or shows
that no request can succeed (EndpointError: the stage stops; everything answered so far is kept).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rbalign.config.endpoints import ChatEndpoint, EndpointConfig
from rbalign.errors import ServiceError, UsageError
from rbalign.keys import Key
from rbalign.remote.cache import Cache
from rbalign.remote.counts import Counts, Usage
from rbalign.remote.pace import Clock, Pace, seconds_of
from rbalign.remote.wire import AttemptError, Reply, Wire
from rbalign.rundir.files import stable_hash

BACKOFF_SECONDS, LONGEST_BACKOFF = 1.0, 60.0
LONGEST_RETRY_AFTER = 300.0
"""A server that asks for more is asked again after this."""
GIVE_UP_AFTER = 10
"""Requests that fail one after the other, each after all its retries: the server is down, not the requests bad."""
CACHE_FILE = "replies.sqlite"


class StoppedError(Exception):
    """Nobody waits for this request any more."""


class RequestError(ServiceError):
    """One request failed for good; `fault` says why."""

    def __init__(self, problem: str, cure: str, fault: AttemptError) -> None:
        super().__init__(problem, cure)
        self.fault = fault

    def __reduce__(self) -> tuple[type[RequestError], tuple[str, str, AttemptError]]:  # type: ignore[override]
        """A worker's error reaches its parent as it was."""
        return type(self), (self.problem, self.cure, self.fault)


class EndpointError(RequestError):
    """No request can succeed: a refused key, a wrong path or model, a server that is gone."""


@dataclass(frozen=True, slots=True)
class Read:
    """What a reply says, and what it cost."""

    value: Any
    usage: Usage


class Client:
    """Requests to one server. Safe for several threads; one process."""

    def __init__(self, config: EndpointConfig, cache: Path | None = None, clock: Clock | None = None) -> None:
        """`cache` is the folder of the cache file. UsageError if the key's variable is not set or no key."""
        self.config = config
        self._wire = Wire(config.url, _key(config.key_env), config.timeout)
        self.name = f"{config.model} at {urlsplit(config.url).netloc}"
        self.counts = Counts(config)
        self._clock = clock or Clock()
        self._pace = Pace(config.rpm, config.tpm if isinstance(config, ChatEndpoint) else None, self._clock)
        self._slots = threading.BoundedSemaphore(config.concurrency)
        self._cache = Cache(cache / CACHE_FILE) if cache is not None and config.cache else None
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._failed_in_a_row = 0
        self._down: EndpointError | None = None

    def post(
        self,
        path: str,
        body: dict[str, Any],
        read: Callable[[Reply], Read],
        cap: int,
        tokens: int = 0,
        *,
        vital: bool = True,
    ) -> Any:
        """The value that `read` finds in the reply to `body`; from the cache if it was answered before.

        read: raises AttemptError for a reply that cannot be used. cap: bytes of a reply at most. tokens: about how
        many the request will take, for `tpm`. vital: whether its failure may mean that no request can succeed. Raises
        RequestError, EndpointError, or StoppedError inside `stopping`.
        """
        body = {"model": self.config.model, **body, **self.config.extra_body}
        key = _identity(self.config.url, path, body)
        known = self._cache.get(key) if self._cache is not None else None
        if known is not None:
            try:
                value = _understood(read, known).value
            except AttemptError:  # kept by a version that read replies otherwise
                pass
            else:
                self.counts.hit()
                return value
        found, reply = self._persist(path, body, read, cap, tokens, key, vital)
        if self._cache is not None:
            self._cache.put(key, reply)
        return found.value

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Inside, nobody waits any more: requests that wait or would retry raise StoppedError; sent ones finish."""
        self._stop.set()
        try:
            yield
        finally:
            if self._down is None:
                self._stop.clear()

    def close(self) -> None:
        """Let go of connections and cache."""
        self._wire.close()
        if self._cache is not None:
            self._cache.close()

    def _persist(
        self,
        path: str,
        body: dict[str, Any],
        read: Callable[[Reply], Read],
        cap: int,
        tokens: int,
        key: str,
        vital: bool,
    ) -> tuple[Read, Reply]:
        """Attempts until one succeeds or no further one is worth it."""
        attempts = self.config.retries + 1
        for attempt in range(1, attempts + 1):
            self._wait(self._pace.reserve(tokens))
            self._wait(self._pace.held())  # asked for by a reply to another request, perhaps while this one waited
            try:
                with self._slots:
                    self._wait(0.0)
                    self.counts.sent(again=attempt > 1)
                    reply = self._wire.send(path, body, cap)
                found = _understood(read, reply)
            except AttemptError as fault:
                self._pace.settle(tokens, 0)
                delay = self._delay(fault, attempt, key)
                if not fault.retry or attempt == attempts:
                    raise self._failed(fault, attempt, vital) from None
                self._wait(delay)
            else:
                self._pace.settle(tokens, found.usage.tokens or tokens)
                self.counts.answered(found.usage)
                with self._lock:
                    self._failed_in_a_row = 0
                return found, reply
        raise AssertionError("unreachable")

    def _delay(self, fault: AttemptError, attempt: int, key: str) -> float:
        """Seconds before the next attempt: what the server asks for, else doubling with jitter drawn by key."""
        asked = seconds_of(fault.after, self._clock)
        if asked is not None:
            asked = min(asked, LONGEST_RETRY_AFTER)
            self._pace.hold(asked)
            return asked
        jitter = float(Key(0, "retry", update=attempt, example=key).generator().random())
        return min(LONGEST_BACKOFF, BACKOFF_SECONDS * 2.0 ** (attempt - 1)) * (0.5 + 0.5 * jitter)

    def _wait(self, seconds: float) -> None:
        if seconds > 0 and not self._stop.is_set():
            self._clock.wait(self._stop, seconds)
        if self._down is not None:
            raise self._down
        if self._stop.is_set():
            raise StoppedError

    def _failed(self, fault: AttemptError, attempts: int, vital: bool) -> RequestError:
        """What to raise for a request that failed for good; the first sign that none can succeed ends all others."""
        self.counts.failed()
        with self._lock:
            self._failed_in_a_row += vital
            row = self._failed_in_a_row
            if vital and self._down is None and (fault.kind in ("refused", "missing") or row >= GIVE_UP_AFTER):
                self._down = self._verdict(fault, row)
                self._stop.set()
            if self._down is not None:
                return self._down
        times = f" {attempts} times" if attempts > 1 else ""
        cure = "see that the server runs, then start again" if fault.kind in ("busy", "lost") else ""
        return RequestError(f"{self.name} failed{times}: {fault}", cure, fault)

    def _verdict(self, fault: AttemptError, row: int) -> EndpointError:
        if fault.kind == "refused":
            held = self.config.key_env
            cure = f"put a valid key into {held}" if held else "name the variable that holds its key: key_env = ..."
            return EndpointError(f"{self.name} refuses ({fault})", cure, fault)
        if fault.kind == "missing":
            cure = "check its url (up to /v1) and its model"
            return EndpointError(f"{self.name} does not serve this ({fault})", cure, fault)
        problem = f"{self.name} failed {row} requests in a row, the last: {fault}"
        return EndpointError(problem, "mend the server and start again: what it answered is kept", fault)


def _understood(read: Callable[[Reply], Read], reply: Reply) -> Read:
    """What `read` finds; a reply of another shape than it expects is a AttemptError, whatever it stumbles over."""
    try:
        return read(reply)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        said = f"{type(error).__name__}: {str(error)[:80]}"
        raise AttemptError(f"the reply has not the expected form ({said})", "unusable", retry=True) from None


def _identity(url: str, path: str, body: dict[str, Any]) -> str:
    """Names a request in the cache. The model is in the body; the key is in none of it."""
    return stable_hash([url.rstrip("/"), path, body])


def _key(variable: str | None) -> str | None:
    """The key in an environment variable. No message shows its value."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UsageError(f"the environment variable {variable} is not set", f"export {variable}=..., or mend key_env")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(f"the value of {variable} is no key: keys are printable ASCII", "copy it again")
    return key
