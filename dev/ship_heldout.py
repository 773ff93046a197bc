"""Turn a finished held-out run into the set that ships: `rba synth recipes/heldout.toml && python dev/ship_heldout.py`.

Clips become Ogg Opus: 1,200 of them in 9.4 MB instead of 107. Ids get a prefix that no run's candidate has.
"""

from __future__ import annotations

import io
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import soundfile

from rbalign.audio.io import read_audio
from rbalign.data.dataset import Dataset, DatasetWriter
from rbalign.data.shards import RATE
from rbalign.synth.heldout import SHIPPED_FOLDER
from rbalign.types import Split, View

PREFIX = "heldout-"
LEVEL = 0.98
"""libsndfile's compression level for Opus: 0.95 is 19 kbit/s here, 0.98 is 12, 1 the lowest (8)."""


def to_opus(flac: bytes) -> bytes:
    """FLAC -> Ogg Opus at 16 kHz."""
    sink = io.BytesIO()
    soundfile.write(sink, read_audio(flac, rate=RATE), RATE, format="OGG", subtype="OPUS", compression_level=LEVEL)
    return sink.getvalue()


def shipped(view: View) -> View:
    """The view as it ships."""
    return replace(view, example_id=PREFIX + view.example_id, flac=to_opus(view.flac))


def main(run: Path) -> None:
    """Write src/rbalign/heldout anew from the dataset in `run`."""
    data = Dataset.open(run / "data")
    data.verify()
    meta = {
        name: data.manifest[name] for name in ("teacher", "recipe", "seed", "candidates", "dropped", "dropped_texts")
    }
    with ThreadPoolExecutor() as pool:  # libsndfile runs without Python's lock
        clips = list(pool.map(shipped, data.views(Split.TEST)))
    shutil.rmtree(SHIPPED_FOLDER, ignore_errors=True)
    writer = DatasetWriter(SHIPPED_FOLDER, {**meta, "made_from": data.content_hash})
    writer.add_examples(replace(example, id=PREFIX + example.id) for example in data.examples(Split.TEST))
    writer.commit_views(Split.TEST, 0, clips)
    writer.finish()
    shutil.copyfile(run / "recipe.toml", SHIPPED_FOLDER / "recipe.toml")
    size = sum(path.stat().st_size for path in SHIPPED_FOLDER.rglob("*") if path.is_file())
    sys.stdout.write(f"{SHIPPED_FOLDER}: {len(data.views(Split.TEST))} clips, {size / 1e6:.1f} MB\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/heldout"))
