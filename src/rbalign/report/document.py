"""A static page: index.html, which a double click opens, samples-N.js and audio/ beside it, single.html. No network."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rbalign.config.sections import ReportConfig
from rbalign.report import samples
from rbalign.rundir.files import atomic_write

INDEX, SINGLE = "index.html", "single.html"


@dataclass(frozen=True)
class Page:
    """What one page shows."""

    template: str
    """In templates/."""
    context: Mapping[str, Any]
    """What the template and its layout name, but for the samples."""
    sections: Sequence[tuple[str, str]]
    """(id, title) of the sections that stand on it; "samples" goes where there are none."""
    items: Callable[[int], list[dict[str, Any]]]
    """Cards of up to so many instructions of each task, without their clips."""
    views: samples.Views


def write(folder: Path, page: Page, config: ReportConfig) -> Path:
    """Write the page anew into `folder`, and return its index.html; single.html, if asked for, stands beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    items = page.items(config.samples)
    shutil.rmtree(folder / "audio", ignore_errors=True)
    if config.audio and items:
        samples.write_audio(folder / "audio", items, page.views)
    chunks = samples.write_chunks(folder, items)
    (folder / SINGLE).unlink(missing_ok=True)
    if config.single_file:
        few = page.items(config.single_file)
        samples.inline_audio(few, page.views)
        atomic_write(folder / SINGLE, render(page, few, chunks=0, single=True))
    atomic_write(folder / INDEX, render(page, items, chunks))
    return folder / INDEX


def render(page: Page, items: Sequence[dict[str, Any]], chunks: int, single: bool = False) -> str:
    """The page. Everything that is not made by drawing.py goes through jinja2's autoescape or `script_json`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("rbalign.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    more = {
        "css": Markup(_asset("page.css")),
        "js": Markup(_asset("page.js")),
        "sections": [pair for pair in page.sections if items or pair[0] != "samples"],
        "sample_count": len(items),
        "sample_tasks": sorted({item["task"] for item in items}),
        "sample_arms": sorted({arm for item in items for arm in item["gains"]}),
        "sample_flags": sorted({flag for item in items for flag in item["flags"]}),
        "sample_voices": sorted({view["voice"] for item in items for view in item["views"]}),
        "chunks": chunks,
        "inline": Markup(samples.script_json(list(items) if single else [])),
        "single": single,
    }
    return environment.get_template(page.template).render({**page.context, **more})


def _asset(name: str) -> str:
    return resources.files("rbalign.report").joinpath("templates", name).read_text(encoding="utf-8")
