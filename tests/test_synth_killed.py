"""`rba synth` under SIGKILL from a parent that watches its journals, and on a full disk: nothing lost, nothing double.

The whole local stage: a test split by topic, labels, references, read-back, several files of clips; fakes for the
teacher, the voices, the tagger and the ASR, which write down in a file of their own what they make.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice
from pathlib import Path

import pytest
from killing import killed_at, killed_when
from test_readback import Ears
from test_synth import RECIPE
from test_synth_labels import Tagging
from test_synth_views import BANK

from rbalign.cli.main import run_command
from rbalign.config.load import dump_recipe
from rbalign.config.synth import SynthConfig
from rbalign.data.dataset import Dataset
from rbalign.keys import Key
from rbalign.rundir import run as rundir_run
from rbalign.rundir.environment import describe
from rbalign.rundir.journal import count_lines, read_rows
from rbalign.rundir.run import RunDir
from rbalign.stages import chain as chain_of_stages
from rbalign.stages import labelling
from rbalign.stages import synth as stage
from rbalign.synth import readback, speak, topics
from rbalign.synth.speak import in_shards, planned
from rbalign.synth.write import write_drafts

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="fork, SIGKILL and limits are POSIX")

PER_FILE = 6
"""Clips in a file."""
_CHANGES = {
    "train": 8,
    "batch_size": 2,
    "labels": {"test_per_topic": 1, "budget": 8},
    "read_back": {"share": 1.0, "other_voices": 2},
}
SMALL = RECIPE.model_copy(update={"synth": SynthConfig.model_validate(RECIPE.synth.model_dump() | _CHANGES)})
MUMBLING = [*BANK.names("train", "kokoro")[:3], *BANK.names("validation", "kokoro")]
"""Train voices that are said again by others, and all of validation, whose views are dropped."""

ENVIRONMENT = cache(describe)
"""Asked once: three calls of git and a look at every package would be a sixth of a start."""


def put_fakes(patch, log, pause):
    """Fakes that take `pause` seconds for what they make, and append a line to `log` before they hand it out."""
    order = random.Random(os.getpid())

    def made(*words):
        time.sleep(pause)
        log.write((" ".join(words) + "\n").encode())

    def write_many(teacher, config, seed, chunks, workers):
        while several := list(islice(chunks, 3)):
            for chunk in order.sample(several, len(several)):  # as worker processes do: in any order
                drafts = write_drafts(Tagging(), config, seed, chunk)
                for draft in drafts:
                    made("draft", str(seed), draft["id"])
                yield drafts

    class Teacher(Tagging):
        def answer(self, instructions, keys, params, system=None):
            for key in keys:
                made(key.stage, key.example)
            return super().answer(instructions, keys, params, system)

    class Voices(Ears):
        def speak_many(self, jobs, workers):
            jobs = list(jobs)
            for identity, clip in super().speak_many(order.sample(jobs, len(jobs)), workers):
                made("clip", identity, self.jobs[-1].voice)
                yield identity, clip

    voices = Voices(MUMBLING)
    patch.setattr(stage, "write_many", write_many)
    patch.setattr(stage, "open_teacher", lambda config: Teacher())
    patch.setattr(stage, "Transcriber", lambda *model, **workers: voices)
    patch.setattr(speak, "speak_many", voices.speak_many)
    patch.setattr(rundir_run, "describe", ENVIRONMENT)
    patch.setattr(stage, "VIEWS_PER_SHARD", PER_FILE)
    for module, name in ((labelling, "BATCH"), (topics, "GROUP"), (readback, "CHUNK")):
        patch.setattr(module, name, 3)


def synth(folder, pause=0.0):
    """`rba synth` in this process; a killed one leaves the lock to the next."""
    folder.mkdir(exist_ok=True)
    with (
        pytest.MonkeyPatch.context() as patch,
        (folder / "acts").open("ab", buffering=0) as log,
        RunDir.open(folder, SMALL) as run,
    ):
        put_fakes(patch, log, pause)
        chain_of_stages.chain(SMALL, run, only="synth")


def data_of(folder):
    return folder / "tiny/data"


def journals(folder):
    """Every journal of the run by name, its rows in their order."""
    data = data_of(folder)
    paths = (path for path in data.rglob("*.jsonl") if not path.name.startswith("examples-"))
    return {str(path.relative_to(data)): list(read_rows(path)) for path in paths}


def committed(folder):
    """(split, number) of the files of clips that are there."""
    names = [path.stem.rpartition("-") for path in data_of(folder).glob("views/[!.]*.parquet")]
    return {(split, int(number)) for split, _, number in names}


def lines(folder):
    """Rows of all journals, and a line for each file of clips."""
    paths = (path for path in data_of(folder).rglob("*.jsonl") if not path.name.startswith("examples-"))
    return sum(map(count_lines, paths)) + len(committed(folder))


def acts(folder):
    """What the fakes made, in their order."""
    return [tuple(line.split()) for line in (folder / "acts").read_text().splitlines()]


def files(folder):
    """The dataset contract, every byte: ids, texts, labels, references, clips, content hash."""
    data = data_of(folder)
    names = [*json.loads((data / "manifest.json").read_text())["files"], "manifest.json"]
    return {name: (data / name).read_bytes() for name in names}


@dataclass(frozen=True)
class Calm:
    """A run that nobody kills."""

    files: dict
    rows: dict
    lines: int
    file_of: dict
    """Id of a view -> (split, number) of its file."""
    clips: list
    """(id of the view, voice) of each clip that was made."""


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calm")
    synth(folder)
    examples = Dataset.open(data_of(folder)).examples()
    plan = chain.from_iterable(planned(examples, SMALL.synth, BANK, SMALL.seed).values())
    file_of = {view.id: (split, number) for split, number, views in in_shards(plan, PER_FILE) for view in views}
    return Calm(files(folder), in_order(journals(folder)), lines(folder), file_of, clips_in(acts(folder)))


def in_order(rows):
    return {name: sorted(own, key=lambda row: row["id"]) for name, own in rows.items()}


def clips_in(made):
    return [(view, voice) for kind, view, voice in (act for act in made if act[0] == "clip")]


def test_the_run_that_is_killed_has_all_kinds_of_rows_and_nothing_is_made_twice(calm):
    names = {"drafts.jsonl", "labels.jsonl", "references.jsonl", "heard.jsonl", "unspoken.jsonl"}
    assert names < set(calm.rows)
    assert {"topics/natural.jsonl", "topics/role-play.jsonl"} < set(calm.rows)
    assert all(calm.rows.values())
    assert len({split for split, _ in calm.file_of.values()}) == 3
    assert len(set(calm.file_of.values())) > 8
    assert len(calm.clips) == len(set(calm.clips)) > len(calm.file_of), "some are said again"
    assert calm.lines >= 200, "a line for each of the points of `make e2e`"


def places(count, total):
    """Numbers of lines, spread over a whole run."""
    return [1 + number * total // count for number in range(count)]


@pytest.mark.parametrize("nth", range(4))
def test_killed_after_any_of_20_lines_and_started_again_is_the_same(calm, tmp_path, nth):
    """A quarter of the points, each over the whole run: a group."""
    survives(calm, tmp_path, places(20, calm.lines)[nth::4])


@pytest.mark.slow
@pytest.mark.parametrize("nth", range(10))
def test_killed_after_any_of_200_lines_and_started_again_is_the_same(calm, tmp_path, nth):
    survives(calm, tmp_path, places(200, calm.lines)[nth::10])


def survives(calm, folder, points):
    """Half of the kills at least must have come in time, on however busy a machine."""
    ends = Counter(killed_after(calm, folder / str(line), line) for line in points)
    assert ends["broken"] == ends["refused"] == 0
    assert ends["killed"] * 2 >= len(points), ends


def killed_after(calm, folder, line):
    """Kill a run after its `line`-th line, start it again, compare; how the first start ended.

    What the stage promises, and no more: a draft or a reference whose row stands in its journal at the kill is not
    written again; of clips the second start makes exactly those of the files that were not committed at the kill, so
    that clips made twice are all of one file, the one that was being spoken. They are the same clips.
    """
    end = killed_when(lambda: synth(folder, pause=0.002), lambda: lines(folder) >= line)
    kept, rows, first = committed(folder), journals(folder), acts(folder)
    no_doubles(rows)
    assert killed_at(lambda: synth(folder), lambda tick: None, 0)[1] == "done", f"killed after {lines(folder)} lines"
    assert files(folder) == calm.files
    rows_now = in_order(journals(folder))
    no_doubles(rows_now)
    assert rows_now.keys() == calm.rows.keys()
    for name, own in rows_now.items():
        if "drafts" not in name and "topics" not in name:
            assert own == calm.rows[name], name
    drafts_are_the_same(calm, rows_now)
    second = acts(folder)[len(first) :]
    assert not acknowledged(rows) & set(second)
    before, after = clips_in(first), clips_in(second)
    assert sorted(after) == sorted(clip for clip in calm.clips if calm.file_of[clip[0]] not in kept)
    assert len(before) == len(set(before))
    assert len({calm.file_of[view] for view, _ in set(before) & set(after)}) <= 1
    return end


def no_doubles(rows):
    for name, own in rows.items():
        ids = [row["id"] for row in own]
        assert len(ids) == len(set(ids)), name


def drafts_are_the_same(calm, rows):
    """How many candidates were written past the last that was wanted depends on the order of workers; no text does."""
    for name in (name for name in calm.rows if "drafts" in name or "topics" in name):
        mine, theirs = ({row["id"]: row for row in own} for own in (rows[name], calm.rows[name]))
        both = mine.keys() & theirs.keys()
        assert both
        assert all(mine[identity] == theirs[identity] for identity in both), name


def acknowledged(rows):
    """The acts that would write again what stands in a journal."""
    seeds = {"drafts.jsonl": SMALL.seed} | {
        name: Key(SMALL.seed, "topic-stream", example=Path(name).stem).digest() for name in rows if "topics" in name
    }
    drafts = {("draft", str(seed), row["id"]) for name, seed in seeds.items() for row in rows.get(name, [])}
    return drafts | {("reference", row["id"]) for row in rows.get("references.jsonl", [])}


# ---- a full disk -----------------------------------------------------------------------------------------------------


def commanded(folder, limit):
    """`rba synth` in a fork whose files may not pass `limit` bytes: (exit code, what stderr said)."""
    recipe, out, err = (folder / name for name in ("tiny.toml", "out", "err"))
    recipe.write_text(dump_recipe(SMALL))

    def work():
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        with (
            pytest.MonkeyPatch.context() as patch,
            open(os.devnull, "ab", buffering=0) as log,
            out.open("w") as stdout,
            err.open("w") as stderr,
            redirect_stdout(stdout),
            redirect_stderr(stderr),
        ):
            put_fakes(patch, log, 0.0)
            code = run_command(["synth", str(recipe), "--runs", str(folder)])
            stdout.write(f"\n{code}")

    assert killed_at(work, lambda tick: None, 0)[1] == "done", err.read_text()
    return int(out.read_text().split()[-1]), err.read_text().splitlines()


CHUNK_BYTES = 1_000
"""More than the rows of one append have."""


def test_a_full_disk_is_one_line_and_the_next_start_goes_on(calm, tmp_path):
    """Room doubles after each refusal, so that journals and then files of clips meet the end."""
    room, refused, before = 2_000, [], {}
    while True:
        code, said = commanded(tmp_path, room)
        rows = journals(tmp_path)
        no_doubles(rows)
        assert all(rows[name][: len(own)] == own for name, own in before.items()), "no row is lost"
        assert not list(tmp_path.rglob("*.tmp"))
        if code == 0:
            break
        ours = [line for line in said if not re.fullmatch(r"[\w ]+: \d+/\d+ .*", line)]
        (line,) = [line for line in ours if not line.startswith("test split by topic is short")]
        found = re.fullmatch(r"rba: cannot write (\S+): File too large → free some disk space .*", line)
        assert found, line
        assert (code, said[-1]) == (1, line)
        path = Path(found[1])
        if path.suffix == ".jsonl":
            assert 0 < room - path.stat().st_size < CHUNK_BYTES, "every row is kept that there was room for"
        refused.append(path.name)
        room, before = room * 2, rows
    assert {".jsonl", ".parquet"} <= {Path(name).suffix for name in refused}, refused
    assert files(tmp_path) == calm.files
