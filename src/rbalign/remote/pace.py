"""How fast requests may start: so many a minute, so many tokens a minute, and not before a server said.

Starts are spread evenly instead of in bursts: a minute's quota used in its first second is what servers refuse.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class Clock:
    """Time as the client knows it; tests bring their own."""

    now: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    wait: Callable[[threading.Event, float], object] = threading.Event.wait
    """Wait so many seconds, or until the event is set."""


class Pace:
    """Says when the next request may start. Safe for several threads."""

    def __init__(self, rpm: int | None, tpm: int | None, clock: Clock) -> None:
        self._rpm, self._tpm, self._clock = rpm, tpm, clock
        self._lock = threading.Lock()
        self._requests_free = self._tokens_free = self._held = clock.now()

    def reserve(self, tokens: int) -> float:
        """Take the next place for a request of about so many tokens; seconds to wait before it starts."""
        with self._lock:
            now = self._clock.now()
            start = max(now, self._requests_free, self._tokens_free)
            if self._rpm:
                self._requests_free = start + MINUTE / self._rpm
            if self._tpm:
                self._tokens_free = start + tokens * MINUTE / self._tpm
            return start - now

    def settle(self, reserved: int, used: int) -> None:
        """Correct a reservation by what the request really took."""
        if self._tpm:
            with self._lock:
                self._tokens_free += (used - reserved) * MINUTE / self._tpm

    def held(self) -> float:
        """Seconds until the time that a server asked for is over."""
        with self._lock:
            return max(0.0, self._held - self._clock.now())

    def hold(self, seconds: float) -> None:
        """No request starts for so long: the server asked for it."""
        with self._lock:
            self._held = max(self._held, self._clock.now() + seconds)


def seconds_of(retry_after: str | None, clock: Clock) -> float | None:
    """A Retry-After header in seconds: a number or a date (RFC 9110); None if it says nothing usable."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - clock.wall())
    except (ValueError, TypeError, OverflowError):
        return None
