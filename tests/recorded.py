"""Made-up recordings: sentences of our own, said by tones."""

from __future__ import annotations

import json

import numpy as np
import soundfile

PLACES = ("town", "street", "valley", "school")
BUILDINGS = ("bakery", "bridge", "museum", "garden", "harbor")
PEOPLE = ("mother", "uncle", "teacher", "neighbor", "doctor", "sister", "painter", "farmer", "singer", "judge")
DOINGS = ("visits", "repairs", "paints", "sells", "watches", "describes", "buys", "cleans", "likes", "forgets")
SENTENCES = [
    f"My {PEOPLE[n % 10]} {DOINGS[(n * 3 + n // 10) % 10]} the {BUILDINGS[n % 5]} behind that {PLACES[n // 5]} again."
    for n in range(20)
]


def tone(path, seconds=0.3, rate=8000, pitch=300.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate), rate)


def audiofolder(folder, sentences=SENTENCES, column="transcription", split=None):
    """Two recordings of the first sentence, one of each other."""
    below = folder / split if split else folder
    rows = []
    for number, text in enumerate([sentences[0], *sentences]):
        tone(below / f"clips/{number:03d}.wav", pitch=200 + 20 * number)
        rows.append({"file_name": f"clips/{number:03d}.wav", column: text})
    (below / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
