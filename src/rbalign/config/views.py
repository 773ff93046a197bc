"""The two small languages of a view: its channel ("noise:babble@5dB+telephone") and its delivery ("filler+stutter").

They stand in a recipe and, in one canonical spelling, in the metadata of every view. What they do is in
`audio.channel` and `text.disfluency`. Both are applied from left to right.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rbalign.errors import UsageError, unknown

CLEAN, FLUENT = "clean", "fluent"

NOISES = ("white", "pink", "brown", "babble", "folder")
"""What `noise:` takes. Babble is made of other clips, folder is the user's recordings ([synth] noise_folder)."""

DELIVERIES = (
    "filler",
    "word-repetition",
    "phrase-repetition",
    "stutter",
    "pause",
    "prolongation",
    "restart",
    "reback",
    "correction",
)  # fmt: skip
RETRACTING = ("restart", "correction")
"""Deliveries that take something back: one of them in a delivery, because a view keeps one retracted value."""

_NUMBER = r"(?P<amount>[+-]?\d{1,3}(?:\.\d{1,2})?)\s*"


@dataclass(frozen=True, slots=True)
class _Form:
    """How a step of a channel is written, and the bounds of its amount."""

    example: str
    pattern: re.Pattern[str]
    bounds: tuple[float, float] = (0.0, 0.0)


_FORMS = {
    "noise": _Form("noise:white@10dB", re.compile(rf"(?::(?P<kind>[\w-]+))?(?:@{_NUMBER}dB)?", re.I), (-20.0, 60.0)),
    "room": _Form("room", re.compile("")),
    "telephone": _Form("telephone", re.compile("")),
    "gain": _Form("gain:-6dB", re.compile(rf":{_NUMBER}dB", re.I), (-60.0, 40.0)),
    "clipping": _Form("clipping:10%", re.compile(rf":{_NUMBER}%"), (0.1, 50.0)),
    "packet-loss": _Form("packet-loss:5%", re.compile(rf":{_NUMBER}%"), (0.1, 50.0)),
}
_NAME = re.compile(r"[a-z-]+")
_JOINT = re.compile(r"\+(?=\s*[a-z])")
"""A plus before a letter joins two steps; one before a digit is a sign."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a channel; `str` gives its canonical spelling."""

    name: str
    kind: str | None = None
    """Of noise, one of NOISES; None draws a colour."""
    amount: float | None = None
    """dB of noise (signal to noise; None draws it) and gain, percent of clipping and packet loss."""

    def __str__(self) -> str:
        kind = f":{self.kind}" if self.kind else ""
        if self.amount is None:
            return self.name + kind
        unit = "%" if self.name in ("clipping", "packet-loss") else "dB"
        return f"{self.name}{kind}{'@' if self.name == 'noise' else ':'}{self.amount:g}{unit}"


def parse_channel(text: str) -> tuple[Step, ...]:
    """The steps of a channel in their order; () for "clean". UsageError for one that is not in the language."""
    if text.strip() == CLEAN:
        return ()
    return tuple(_step(part.strip()) for part in _JOINT.split(text))


def canonical_channel(text: str) -> str:
    """The one spelling of a channel: no spaces, no needless zeros. UsageError as `parse_channel`."""
    return "+".join(map(str, parse_channel(text))) or CLEAN


def parse_delivery(text: str) -> tuple[str, ...]:
    """The kinds of a delivery in their order; () for "fluent". UsageError for an unknown or repeated one."""
    if text.strip() == FLUENT:
        return ()
    kinds = tuple(part.strip() for part in text.split("+"))
    for kind in kinds:
        if kind not in DELIVERIES:
            raise unknown("delivery", kind, (FLUENT, *DELIVERIES), 'join several with "+"')
    if len(set(kinds)) < len(kinds) or set(RETRACTING) <= set(kinds):
        raise UsageError(
            f"delivery {text!r} has a kind twice, or two that take something back",
            f"name each kind once, and one of {', '.join(RETRACTING)} at most",
        )
    return kinds


def canonical_delivery(text: str) -> str:
    """The one spelling of a delivery. UsageError as `parse_delivery`."""
    return "+".join(parse_delivery(text)) or FLUENT


def _step(text: str) -> Step:
    if text == CLEAN:
        raise UsageError("the channel clean stands alone", 'leave it out: "room+telephone"')
    name = _NAME.match(text)
    form = _FORMS.get(name[0]) if name else None
    if name is None or form is None:
        examples = (CLEAN, "noise", *(form.example for form in _FORMS.values()))
        raise unknown("channel", text, examples, 'join steps with "+"')
    found = form.pattern.fullmatch(text, name.end())
    if found is None:
        raise UsageError(f"channel {text!r} is not written like {form.example!r}", "see docs/views.md")
    given = found.groupdict()
    kind = given.get("kind")
    if kind is not None and kind not in NOISES:
        raise unknown("noise", kind, NOISES)
    if given.get("amount") is None:
        return Step(name[0], kind)
    amount = float(given["amount"]) + 0.0  # never -0
    low, high = form.bounds
    if not low <= amount <= high:
        raise UsageError(f"channel {text!r} is out of bounds", f"use {low:g} to {high:g}, as in {form.example!r}")
    return Step(name[0], kind, amount)
