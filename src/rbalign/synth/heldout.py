"""Ready held-out examples and clips: from a dataset folder, or the set that ships with rba as Ogg Opus.

Recipes that share them test on the same texts and voices, and a laptop saves half an hour of speaking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rbalign.audio.io import read_audio, to_flac
from rbalign.data.dataset import MANIFEST, Dataset
from rbalign.data.shards import RATE
from rbalign.data.signatures import Signatures
from rbalign.errors import DataError, UsageError
from rbalign.types import Example, Split, View

SHIPPED = "shipped"
"""As `[synth] test_views`: the set in this package, made by recipes/heldout.toml and dev/ship_heldout.py."""
SHIPPED_FOLDER = Path(__file__).parent.parent / "heldout"


def heldout_folder(name: str) -> Path:
    """Where the set of `[synth] test_views` lies. UsageError if there is no finished dataset."""
    folder = SHIPPED_FOLDER if name == SHIPPED else Path(name)
    if not (folder / MANIFEST).is_file():
        raise UsageError(
            f"test_views {name!r} is no finished dataset", f'use "{SHIPPED}", or a folder that `rba synth` finished'
        )
    return folder


def held_out(
    name: str, count: int, teacher: str, seen: Sequence[Signatures], max_leakage: float
) -> tuple[list[Example], list[View]]:
    """The first `count` test examples that resemble nothing in `seen`, and their views (audio still on disk).

    Raises UsageError if another teacher wrote the references, DataError if too few examples are left.
    """
    data = Dataset.open(heldout_folder(name))
    data.verify()
    if data.manifest["teacher"] != teacher:
        raise UsageError(
            f"{data.manifest['teacher']!r} wrote the references of test_views {name!r}, the recipe has {teacher!r}",
            "leave test_views out: then the recipe's own teacher writes the test split",
        )
    fresh = [e for e in data.examples(Split.TEST) if all(s.worst(e.instruction) < max_leakage for s in seen)]
    if len(fresh) < count:
        raise DataError(
            f"test_views {name!r} has {len(fresh)} test examples that neither connector nor leakage files have seen, "
            f"the recipe asks for {count}",
            "lower [synth] test, or leave test_views out",
        )
    chosen = {example.id for example in fresh[:count]}
    return fresh[:count], [view for view in data.views(Split.TEST) if view.example_id in chosen]


def as_flac(views: Sequence[View]) -> list[View]:
    """The views decoded from whatever they ship as, like any clip that a voice just spoke."""
    return [replace(view, flac=to_flac(read_audio(view.flac, rate=RATE), RATE)) for view in views]
