"""The page of `rba inspect DATASET --page DIR`: what fell away, how long texts are, instructions with clips that play,
their spectrograms and what an independent ASR heard. No torch.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rbalign.audio.io import read_audio
from rbalign.config.sections import ReportConfig
from rbalign.errors import DataError
from rbalign.report import document, markdown, samples
from rbalign.report.drawing import INK, Figure, draw
from rbalign.rundir.files import atomic_write
from rbalign.types import Example, View

SECTIONS = (("verdict", "In short"), ("figures", "Figures"), ("samples", "Samples"), ("method", "Method"))
MISHEARD = 0.3
"""Share of a clip's words from which on it counts as misheard: the limit of [synth.read_back]."""
WINDOW, HOP = 512, 160
"""Samples at 16 kHz: 32 ms every 10 ms."""
RANGE = 70.0
"""Decibels below a clip's loudest point that are drawn."""
CAUSES = 12


@dataclass(frozen=True, slots=True)
class Heard:
    """One clip as an independent ASR heard it."""

    text: str
    errors: int
    words: int

    @property
    def wer(self) -> float:
        """Wrong words for each word that was to be said."""
        return self.errors / max(self.words, 1)


@dataclass(frozen=True)
class Shown:
    """Everything on the page."""

    name: str
    facts: Sequence[str]
    drops: Mapping[str, int]
    """Cause -> candidates that fell to it."""
    words: Mapping[str, Sequence[int]]
    """"instruction" or "answer" -> words of each, over the whole dataset."""
    examples: Sequence[Example]
    """Drawn, with all their views."""
    views: Mapping[str, Sequence[View]]
    """Example's id -> its clips."""
    heard: Mapping[str, Heard]
    """View's id -> what was heard."""
    method: Sequence[tuple[str, str]]


def build(folder: Path, shown: Shown) -> Path:
    """Write the page into `folder` anew, report.md beside it, and return its index.html."""
    figures = [_drops(shown.drops), *(_lengths(name, counts) for name, counts in shown.words.items())]
    context = {
        "figures_of": {"all": [figure for figure in figures if figure]},
        "name": shown.name,
        "description": "",
        "facts": shown.facts,
        "verdict": [{"kind": "plain", "text": line} for line in verdict(shown)],
        "method": shown.method,
        "files": {},
        "same_numbers": ["report.md"],
        "baseline": "",
        "task_label": "split",
    }
    views = {(one.split, view.id): view for one in shown.examples for view in shown.views[one.id]}
    page = document.Page("dataset.html.j2", context, SECTIONS, lambda limit: cards(shown)[:limit], views)
    index = document.write(folder, page, ReportConfig(samples=len(shown.examples)))
    atomic_write(index.with_name("report.md"), _markdown(shown))
    return index


def verdict(shown: Shown) -> list[str]:
    """What was heard of the clips, and what fell away, in a line each."""
    lines = []
    if shown.heard:
        errors, words = (sum(getattr(one, name) for one in shown.heard.values()) for name in ("errors", "words"))
        bad = sum(one.wer > MISHEARD for one in shown.heard.values())
        lines.append(
            f"An independent ASR heard {len(shown.heard)} clips: WER {100 * errors / max(words, 1):.1f} %, "
            f"{bad} with more than {100 * MISHEARD:.0f} % of their words wrong."
        )
    if shown.drops:
        most = sorted(shown.drops.items(), key=lambda pair: -pair[1])[:3]
        causes = ", ".join(f"{cause} ({count:,})" for cause, count in most)
        lines.append(f"{sum(shown.drops.values()):,} candidates fell away, most of them for: {causes}.")
    return lines or ["Nothing fell away, and no clip was heard."]


def cards(shown: Shown) -> list[dict[str, Any]]:
    """The drawn instructions, without their clips."""
    return [
        {
            "task": one.split,
            "id": one.id,
            "instruction": one.instruction,
            "targets": list(_targets(one)),
            "views": [_view(view, shown.heard.get(view.id)) for view in shown.views[one.id]],
            "gains": {},
            "flags": _flags(one, shown),
        }
        for one in shown.examples
    ]


def _targets(example: Example) -> Iterable[dict[str, Any]]:
    spoken = example.spoken if example.spoken != example.instruction else ""
    aliases = " | ".join(example.labels.get("aliases") or ())
    labels = ", ".join(str(example.labels[name]) for name in ("topic", "difficulty") if example.labels.get(name))
    texts = {"spoken": spoken, "answer": example.answer, "reference": example.reference, "accepted": aliases}
    return (samples.target(name, text) for name, text in {**texts, "labels": labels}.items() if text)


def _view(view: View, heard: Heard | None) -> dict[str, Any]:
    answers = [] if view.said is None else [samples.target("said", view.said)]
    return {
        "index": view.index,
        "voice": samples.condition(view.spec),
        "audio": None,
        "picture": picture(view.flac),
        "seconds": round(view.seconds, 2),
        "heard": None if heard is None else heard.text,
        "note": "" if heard is None else f"{heard.errors} of {heard.words} words wrong",
        "answers": answers,
        "aside": [],
    }


def _flags(example: Example, shown: Shown) -> list[str]:
    heard = [shown.heard[view.id] for view in shown.views[example.id] if view.id in shown.heard]
    flags = {"misheard"} if any(one.wer > MISHEARD for one in heard) else set()
    return sorted(flags | ({"spoken otherwise than written"} if example.spoken != example.instruction else set()))


def picture(flac: bytes) -> str | None:
    """A clip's spectrogram, 0 to 8 kHz upwards, as a PNG's data: URL; None where it cannot be read."""
    from matplotlib.image import imsave
    from scipy.signal import stft

    try:
        wave = read_audio(flac)
    except DataError:
        return None
    _, _, bins = stft(wave, nperseg=WINDOW, noverlap=WINDOW - HOP, padded=len(wave) < WINDOW)
    power = 20 * np.log10(np.abs(bins[1:]) + 1e-8)
    coarse = power.reshape(len(power) // 2, 2, -1).max(1)  # 128 rows: 62.5 Hz each
    out = io.BytesIO()
    imsave(out, coarse, format="png", origin="lower", cmap="magma", vmin=coarse.max() - RANGE, vmax=coarse.max())
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def _drops(drops: Mapping[str, int]) -> Figure | None:
    most = sorted(drops.items(), key=lambda pair: -pair[1])[:CAUSES]
    if not most:
        return None

    def paint(axes: Any) -> None:
        bars = axes.barh(range(len(most)), [count for _, count in reversed(most)], color=INK, alpha=0.55)
        axes.bar_label(bars, fmt="{:,.0f}", padding=3)
        axes.margins(x=0.15)
        axes.set_yticks(range(len(most)), [cause for cause, _ in reversed(most)])
        axes.set_xlabel("candidates")
        axes.grid(axis="x")

    said = "; ".join(f"{cause} {count:,}" for cause, count in most)
    return draw(0.8 + 0.26 * len(most), paint, "Dropped by cause", f"Dropped by cause: {said}.")


def _lengths(name: str, counts: Sequence[int]) -> Figure | None:
    if not counts:
        return None
    low, middle, high = np.percentile(counts, (5, 50, 95))

    def paint(axes: Any) -> None:
        axes.hist(counts, bins=np.arange(min(counts), max(counts) + 2) - 0.5, color=INK, alpha=0.55)
        axes.set_xlabel("words")
        axes.set_ylabel(f"{name}s")
        axes.grid(axis="y")

    title = f"Words of an {name}"
    said = f"median {middle:.0f}, 5 % under {low:.0f}, 5 % over {high:.0f}"
    return draw(2.4, paint, title, f"{title}: {said}.")


def _markdown(shown: Shown) -> str:
    """report.md: the page's words, and every clip with what was heard of it."""
    rows = [
        [view.id, samples.condition(view.spec), f"{view.seconds:.1f}", one.spoken, *_told(shown.heard.get(view.id))]
        for one in shown.examples
        for view in shown.views[one.id]
    ]
    columns = ("clip", "voice", "seconds", "spoken", "heard", "words wrong")
    blocks = [f"# {markdown.plain(shown.name)}", "\n".join(f"- {markdown.plain(fact)}" for fact in shown.facts)]
    blocks += ["\n".join(f"- {markdown.plain(line)}" for line in verdict(shown))]
    blocks += ["## Clips", markdown.table(columns, rows), "## How it was made", markdown.terms(shown.method)]
    return "\n\n".join(blocks) + "\n"


def _told(heard: Heard | None) -> tuple[str, str]:
    return ("", "–") if heard is None else (heard.text, f"{heard.errors} of {heard.words}")
