"""`rba inspect DATASET --page DIR`: drawn instructions with clips, spectrograms, and what was heard of them."""

from __future__ import annotations

import base64
import html
import io
import json
import re

import numpy as np
import pytest
from matplotlib.image import imread

from rbalign.audio.io import read_audio, to_flac
from rbalign.cli.main import run_command
from rbalign.data.dataset import DatasetWriter
from rbalign.errors import UsageError
from rbalign.report.dataset import picture
from rbalign.rundir.journal import Journal
from rbalign.stages import inspect_page
from rbalign.stages.inspect_page import write_page
from rbalign.stages.named import dataset_named
from rbalign.types import Example, View, ViewSpec

EVIL = "</script><script>window.owned=1</script>"
HEARD = "say number one"


def tone(frequency, seconds=0.5):
    """A clip of one frequency, which also says which it is."""
    return to_flac((0.3 * np.sin(2 * np.pi * frequency * np.arange(int(16_000 * seconds)) / 16_000)).astype(np.float32))


def write(folder, views=2, **meta):
    """Six instructions, half of them written otherwise; clips of example E are (E + 1) x 500 Hz, one is none."""
    writer = DatasetWriter(folder, {"teacher": "t", "dropped": {"too long": 7, "unfinished": 9}, **meta})
    texts = [f"say number {i}" for i in range(6)]
    written = [text if i % 2 else f"{text} {EVIL}" for i, text in enumerate(texts)]
    writer.add_examples([Example(f"e{i}", "train", written[i], text, "Two words") for i, text in enumerate(texts)])
    clips = [
        View(f"e{i}", v, "train", ViewSpec(f"voice{v}"), 0.5, b"no clip" if (i, v) == (3, 1) else tone(500 * (i + 1)))
        for i in range(6)
        for v in range(views)
    ]
    writer.commit_views("train", 0, clips)
    writer.finish()
    return dataset_named(str(folder))


def listener(wave):
    """Hears the number of every tone, and the first one's wrongly."""
    number = int(np.argmax(np.abs(np.fft.rfft(wave)))) * 2 // 500 - 1
    return "something else" if number == 0 else f"say number {number}"


def items(folder):
    text = (folder / "samples-0.js").read_text()
    return {item["id"]: item for item in json.loads(text.removeprefix("rbaSamples(").removesuffix(");\n"))}


def test_clips_are_shown_with_what_was_heard(tmp_path):
    index = write_page(write(tmp_path / "data"), tmp_path / "page", 6, listener)
    found = items(tmp_path / "page")
    assert set(found) == {f"e{i}" for i in range(6)}
    heard = {name: [(view["heard"], view["note"]) for view in item["views"]] for name, item in found.items()}
    assert heard["e2"] == [("say number 2", "0 of 3 words wrong")] * 2
    assert heard["e0"] == [("something else", "3 of 3 words wrong")] * 2
    assert heard["e3"] == [("say number 3", "0 of 3 words wrong"), (None, "")]
    assert {name: item["flags"] for name, item in found.items() if int(name[1]) < 2} == {
        "e0": ["misheard", "spoken otherwise than written"],
        "e1": [],
    }
    assert [target["name"] for target in found["e0"]["targets"]] == ["spoken", "answer"]
    clip = (tmp_path / "page" / found["e2"]["views"][0]["audio"]).read_bytes()
    assert int(np.argmax(np.abs(np.fft.rfft(read_audio(clip))))) * 2 == 1500
    page = html.unescape(index.read_text())
    assert "heard 11 clips: WER 18.2 %, 2 with more than 30 % of their words wrong." in page
    assert "16 candidates fell away, most of them for: unfinished (9), too long (7)." in page
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert titles == ["Dropped by cause", "Words of an instruction", "Words of an answer"]
    report = (tmp_path / "page" / "report.md").read_text()
    assert "| e2/0 | voice0 | 0.5 | say number 2 | say number 2 | 0 of 3 |" in report
    assert "<script>window.owned" not in page + (tmp_path / "page" / "samples-0.js").read_text() + report


def test_what_synth_heard_is_not_heard_again(tmp_path):
    named = write(tmp_path / "data")
    row = {"heard": HEARD, "errors": 1, "words": 3, "wer": 0.3333}
    with Journal(named.dataset.folder / "heard.jsonl") as journal:
        journal.append([{"id": "e1/0#0", "voice": "another", **row}, {"id": "e1/1#0", "voice": "voice1", **row}])
    asked = []
    write_page(named, tmp_path / "page", 6, lambda wave: asked.append(1) or listener(wave))
    views = items(tmp_path / "page")["e1"]["views"]
    assert [(view["heard"], view["note"][0]) for view in views] == [("say number 1", "0"), (HEARD, "1")]
    assert len(asked) == 12 - 1 - 1, "one is known, one is no clip"


def test_the_draw_is_by_key_and_grows(tmp_path):
    named = write(tmp_path / "data")
    few, more = (write_page(named, tmp_path / str(rows), rows, listener).parent for rows in (2, 4))
    assert list(items(more))[:2] == list(items(few))
    assert len(items(more)) == 4


def test_a_language_that_the_asr_does_not_know_is_not_transcribed(tmp_path):
    named = write(tmp_path / "data", languages=["ga", "en"])
    write_page(named, tmp_path / "page", 6, lambda wave: pytest.fail("Whisper base knows no Irish"))
    assert all(view["heard"] is None for item in items(tmp_path / "page").values() for view in item["views"])
    german = write(tmp_path / "german", languages=["de", "en"])
    write_page(german, tmp_path / "heard", 6, listener)
    assert any(view["heard"] for item in items(tmp_path / "heard").values() for view in item["views"])


def test_a_spectrogram_has_the_tone_where_it_is():
    low, high = (imread(io.BytesIO(base64.b64decode(picture(tone(f)).partition(",")[2]))) for f in (500, 4000))
    assert low.shape[:2] == high.shape[:2] == (128, 51)
    rows = [127 - int(np.argmax(one[..., :3].sum(-1).mean(1))) for one in (low, high)]
    assert [pytest.approx(row * 62.5, abs=63) for row in rows] == [500, 4000]
    assert picture(b"no clip") is None


def test_the_command_writes_it_and_spares_other_folders(tmp_path, capsys, monkeypatch):
    write(tmp_path / "data")
    monkeypatch.setattr(inspect_page.Transcriber, "transcribe", lambda self, wave: listener(wave))
    words = ["inspect", str(tmp_path / "data"), "--rows", "3", "--page", str(tmp_path / "page")]
    assert run_command(words) == 0
    assert run_command(words) == 0, "its own page is written anew"
    assert str(tmp_path / "page" / "index.html") in capsys.readouterr().out
    with pytest.raises(UsageError, match="holds something that is no page"):
        write_page(dataset_named(str(tmp_path / "data")), tmp_path / "data", 3, listener)
