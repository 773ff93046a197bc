"""What requests took: how many, tokens, money. Kept over the starts of a run in one small file."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbalign.config.endpoints import ChatEndpoint, EndpointConfig, VoiceEndpoint
from rbalign.rundir.files import atomic_write

MILLION = 1e6


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one reply."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    characters: int = 0
    """Of a text that was spoken."""

    @property
    def tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


class Counts:
    """Counters of one client. Safe for several threads. Cache hits cost nothing and count no tokens."""

    FIELDS = ("requests", "cache_hits", "retries", "failures", "prompt_tokens", "completion_tokens", "characters")

    def __init__(self, prices: EndpointConfig) -> None:
        self._lock = threading.Lock()
        self._table = dict.fromkeys(self.FIELDS, 0)
        self._price_in = prices.price_in if isinstance(prices, ChatEndpoint) else 0.0
        self._price_out = prices.price_out if isinstance(prices, ChatEndpoint) else 0.0
        self._price_characters = prices.price_characters if isinstance(prices, VoiceEndpoint) else 0.0

    def hit(self) -> None:
        """A request was answered by the cache."""
        self._add(cache_hits=1)

    def sent(self, again: bool) -> None:
        """An attempt goes out; `again` if it is not the first of its request."""
        self._add(requests=1, retries=int(again))

    def failed(self) -> None:
        """A request failed for good."""
        self._add(failures=1)

    def answered(self, usage: Usage) -> None:
        """A usable reply came."""
        self._add(
            prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens, characters=usage.characters
        )

    def table(self) -> dict[str, Any]:
        """Every counter, and the cost at the recipe's prices."""
        with self._lock:
            table: dict[str, Any] = dict(self._table)
        spent = (
            table["prompt_tokens"] * self._price_in
            + table["completion_tokens"] * self._price_out
            + table["characters"] * self._price_characters
        )
        return table | {"cost": spent / MILLION}

    def _add(self, **more: int) -> None:
        with self._lock:
            for name, count in more.items():
                self._table[name] += count


class Ledger:
    """A file with the counters of several clients, summed over all starts of a run."""

    def __init__(self, path: Path, counts: Mapping[str, Counts]) -> None:
        self._path, self._counts = path, dict(counts)
        try:
            self._before: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._before = {}

    def totals(self) -> dict[str, dict[str, Any]]:
        """Client -> its counters, those of earlier starts included."""
        totals = dict(self._before)
        for name, counts in self._counts.items():
            before = self._before.get(name, {})
            totals[name] = {field: value + before.get(field, 0) for field, value in counts.table().items()}
        return totals

    def save(self) -> None:
        """Put the totals on the disk."""
        if self._counts:
            atomic_write(self._path, json.dumps(self.totals(), indent=2) + "\n")


def summed(tables: Iterable[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """What several ledgers say together: client -> its counters."""
    total: dict[str, dict[str, Any]] = {}
    for table in tables:
        for name, counts in table.items():
            own = total.setdefault(name, {})
            own.update({field: own.get(field, 0) + value for field, value in counts.items()})
    return total


def in_words(totals: Mapping[str, Any]) -> str:
    """`1,204 requests (31 again, 2 failed), 96 from the cache, 51,204 + 30,911 tokens, cost 0.12`."""
    parts = [f"{totals['requests']:,} requests ({totals['retries']:,} again, {totals['failures']:,} failed)"]
    parts.append(f"{totals['cache_hits']:,} from the cache")
    if totals["prompt_tokens"] or totals["completion_tokens"]:
        parts.append(f"{totals['prompt_tokens']:,} + {totals['completion_tokens']:,} tokens")
    if totals["characters"]:
        parts.append(f"{totals['characters']:,} characters")
    if totals["cost"]:
        parts.append(f"cost {totals['cost']:.2f}")
    return ", ".join(parts)
