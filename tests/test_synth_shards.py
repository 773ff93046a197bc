"""`--shard I/N` and `--merge`: whatever N, the order and the kills, the dataset is that of a plain `rba synth`."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from killing import killed_at
from test_readback import Ears
from test_synth import RECIPE, fakes  # noqa: F401
from test_synth_labels import labelled_recipe, tagged  # noqa: F401
from test_synth_views import BANK, RULE

from rbalign.config.load import dump_recipe
from rbalign.config.synth import SynthConfig
from rbalign.data.dataset import Dataset
from rbalign.errors import DataError, RunError, UsageError
from rbalign.rundir.journal import read_rows
from rbalign.rundir.run import RunDir
from rbalign.stages import synth as stage
from rbalign.stages import synth_shards
from rbalign.stages.chain import chain
from rbalign.stages.synth_merge import merge
from rbalign.stages.synth_shards import run_shard
from rbalign.synth import parts, speak
from rbalign.synth.parts import InTurn, Part, merged, part_size
from rbalign.synth.speak import in_shards, speak_shard

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="fork, SIGKILL and limits are POSIX")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Six clips to a file, so that a few instructions fill several."""
    monkeypatch.setattr(stage, "VIEWS_PER_SHARD", 6)


def changed(recipe, **fields):
    synth = recipe.synth.model_dump() | fields
    return recipe.model_copy(update={"synth": SynthConfig.model_validate(synth)})


_PLAIN = {}


def plain(recipe, runs):
    """The files of the dataset that one process writes, by name; made once for a recipe."""
    key = dump_recipe(recipe)
    if key not in _PLAIN:
        with RunDir.open(runs / "plain", recipe) as run:
            chain(recipe, run, only="synth")
        _PLAIN[key] = files_of(runs / "plain" / recipe.name / "data")
    return _PLAIN[key]


def files_of(data):
    """The dataset contract: examples, views, manifest; every byte."""
    names = [*json.loads((data / "manifest.json").read_text())["files"], "manifest.json"]
    return {name: (data / name).read_bytes() for name in names}


def all_parts(of, order=None):
    numbers = list(range(1, of + 1))
    random.Random(order).shuffle(numbers)
    return [Part(number, of) for number in numbers]


def shared(recipe, runs, of, order=None):
    """The same by `of` parts, which end in a random order."""
    for _ in range(2):
        for part in all_parts(of, order):
            run_shard(recipe, runs, part)
        merge(recipe, runs)
    return files_of(runs / recipe.name / "data")


# ---- the same dataset ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("of", "order"), [(1, 0), (3, 0), (3, 1), (5, 2)])
def test_shards_in_any_order_make_the_dataset_of_one_process(tmp_path, fakes, of, order):  # noqa: F811
    one = plain(RECIPE, tmp_path)
    assert len(one) > 10
    fakes.clear()
    assert shared(RECIPE, tmp_path / "shards", of, order) == one
    assert len(fakes) == 17 * 4, "no clip is made twice, none of an example that the merge refused"
    manifest = json.loads(one["manifest.json"])
    run = RunDir.look(tmp_path / "shards", RECIPE)
    assert run.outputs("synth") == {"dataset": manifest["content_hash"], "unspoken": "0"}


def test_every_shard_works_and_keeps_to_its_own(tmp_path, fakes):  # noqa: F811
    shared(RECIPE, tmp_path, 4)
    for number in range(1, 5):
        own = tmp_path / "tiny/shards" / f"{number}-of-4"
        ids = [int(row["id"]) for row in read_rows(own / "texts/drafts.jsonl")]
        assert ids
        assert {index % 4 for index in ids} == {number - 1}
        assert list((own / "clips/views").glob("*.parquet"))
        assert (own / "environment.json").is_file()


def test_labels_and_a_split_by_topic_are_those_of_one_process(tmp_path, tagged):  # noqa: F811
    recipe = labelled_recipe(test_per_topic=2, budget=40)
    one = plain(recipe, tmp_path)
    assert b'"topic"' in one["examples-00000.jsonl"]
    assert shared(recipe, tmp_path / "shards", 3) == one
    labels = [list(read_rows(path)) for path in (tmp_path / "shards").glob("tiny/shards/*/clips/labels.jsonl")]
    assert all(labels), "each part labels its share"
    asked = [row["id"] for rows in labels for row in rows]
    assert len(asked) == len(set(asked)) == 13, "what was labelled for the split by topic is not labelled again"


def test_babble_and_read_back_are_those_of_one_process(tmp_path, fakes, monkeypatch):  # noqa: F811
    """Babble of a small file borrows clips of its split; what is misheard gets a voice that its example lacks."""
    ears = Ears([*BANK.names("train", "kokoro")[:3]])
    monkeypatch.setattr(speak, "speak_many", ears.speak_many)
    monkeypatch.setattr(stage, "speak_shard", speak_shard)
    monkeypatch.setattr(stage, "Transcriber", lambda *model, **workers: ears)
    rule = RULE.model_copy(update={"channels": ("clean", "noise:babble@5dB")})
    recipe = changed(RECIPE, views=[rule.model_dump()], read_back={"share": 1.0})
    one = plain(recipe, tmp_path)
    told = json.loads(one["manifest.json"])["read_back"]
    assert told["said_again"] > 0
    assert shared(recipe, tmp_path / "shards", 3) == one


def test_shards_travel_as_a_folder_and_alone(tmp_path, fakes):  # noqa: F811
    """Every machine has its own runs; the merge's has copies of the shards, they have copies of its texts."""
    one = plain(RECIPE, tmp_path)
    hub = tmp_path / "hub/tiny/shards"
    for part in all_parts(3):
        run_shard(changed(RECIPE, batch_size=2 + part.number), tmp_path / part.name, part)
        shutil.copytree(tmp_path / part.name / "tiny/shards" / part.name, hub / part.name)
    merge(RECIPE, tmp_path / "hub")
    for part in all_parts(3):
        own = tmp_path / f"other machine {part.name}"
        shutil.copytree(hub / "texts", own / "tiny/shards/texts")
        run_shard(RECIPE, own, part)
        shutil.copytree(own / "tiny/shards" / part.name / "clips", hub / part.name / "clips")
        shutil.copy(own / "tiny/shards" / part.name / "status.json", hub / part.name / "status.json")
    merge(RECIPE, tmp_path / "hub")
    assert files_of(tmp_path / "hub/tiny/data") == one


def test_a_finished_run_and_a_finished_pass_are_skipped(tmp_path, fakes):  # noqa: F811
    said = []
    run_shard(RECIPE, tmp_path, Part(1, 2), say=said.append)
    before = (tmp_path / "tiny/shards/1-of-2/texts/drafts.jsonl").read_bytes()
    run_shard(RECIPE, tmp_path, Part(1, 2), say=said.append)
    assert (tmp_path / "tiny/shards/1-of-2/texts/drafts.jsonl").read_bytes() == before
    assert said == ["shard 1/2: its texts are written; when all 2 have theirs: rba synth RECIPE --merge"] * 2
    shutil.rmtree(tmp_path / "tiny/shards")
    shared(RECIPE, tmp_path, 2)
    made = len(fakes)
    said.clear()
    run_shard(RECIPE, tmp_path, Part(1, 2), say=said.append)
    merge(RECIPE, tmp_path, say=said.append)
    assert said == ["synth: finished before, skipped"] * 2
    assert len(fakes) == made


# ---- too few after the merge -----------------------------------------------------------------------------------------


def test_too_few_texts_say_which_surplus_will_do_and_nothing_is_lost(tmp_path, fakes, monkeypatch):  # noqa: F811
    recipe = changed(RECIPE, batch_size=1)  # no chunk brings more than is asked for
    one = plain(recipe, tmp_path)
    scarce = lambda wanted, of, surplus: math.ceil(0.5 * (1 + surplus) * wanted / of)  # noqa: E731
    monkeypatch.setattr(synth_shards, "part_size", scarce)
    of, surpluses = 4, [0.0]
    while True:
        for part in all_parts(of):
            run_shard(recipe, tmp_path / "s", part, surpluses[-1])
        asked = asked_surplus(recipe, tmp_path / "s")
        if asked is None:
            break
        surpluses.append(asked)
    assert 2 <= len(surpluses) < 6
    assert surpluses == sorted(set(surpluses))
    for part in all_parts(of):
        run_shard(recipe, tmp_path / "s", part)
    merge(recipe, tmp_path / "s")
    assert files_of(tmp_path / "s/tiny/data") == one


def asked_surplus(recipe, runs):
    """What the merge asks for, None if it has enough."""
    try:
        merge(recipe, runs)
    except RunError as error:
        found = re.search(r"4 shards brought \d+ of 17 examples.* --surplus ([\d.]+)`", str(error))
        return float(found[1])


def test_a_part_brings_its_share_what_others_may_repeat_and_some_luck():
    assert part_size(1_000_000, 64, 0.05) == 16_782, "15,625, a twentieth more, three standard deviations of luck"
    assert part_size(100, 1, 0.0) == 100
    assert all(of * part_size(1000, of, 0.0) >= 1000 for of in range(1, 200))


# ---- killed, full, copied in half ------------------------------------------------------------------------------------


def in_child(work, at=0, limit=0):
    """Run `work` in a fork that kills itself at its `at`-th fsync (a journal's rows, a whole file or its folder), or
    whose files may not pass `limit` bytes. (fsyncs that were survived, how it ended: "killed", "refused" or "done")."""

    def watch(tick):
        fsync = os.fsync

        def counted(file):
            fsync(file)
            tick()

        os.fsync = counted
        if limit:
            import resource

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    return killed_at(work, watch, at)


def steps(recipe, runs, of):
    """The commands of a dataset, in order."""
    for _ in range(2):
        for part in all_parts(of, 0):
            yield lambda part=part: run_shard(recipe, runs, part)
        yield lambda: merge(recipe, runs)


SMALL = {"train": 4, "validation": 1, "test": 2, "batch_size": 4}
CALM = {}
"""Number of a step -> how many fsyncs it has when nobody kills it."""


@posix
@pytest.mark.parametrize("share", [0.1, 0.4, 0.7, 0.98])
def test_killed_in_every_step_and_started_again_is_the_same(tmp_path, fakes, share):  # noqa: F811
    """24 places: each of six steps is killed at one."""
    recipe = changed(RECIPE, **SMALL)
    one = plain(recipe, tmp_path)
    if not CALM:
        CALM.update(enumerate(in_child(work)[0] for work in steps(recipe, tmp_path / "calm", 2)))
    assert min(CALM.values()) > 8, "each step has many places to be killed at"
    for number, work in enumerate(steps(recipe, tmp_path / "s", 2)):
        before = {path: path.stat().st_ino for path in (tmp_path / "s").glob("*/shards/*/clips/views/*")}
        assert in_child(work, 1 + int(share * (CALM[number] - 1)))[1] == "killed"
        assert in_child(work)[1] == "done"
        assert all(path.stat().st_ino == inode for path, inode in before.items()), "no file of clips is made again"
    assert files_of(tmp_path / "s/tiny/data") == one
    for path in (tmp_path / "s").glob("tiny/shards/*/texts/drafts.jsonl"):
        ids = [row["id"] for row in read_rows(path)]
        assert len(ids) == len(set(ids))


@posix
def test_clips_that_were_committed_before_a_kill_are_not_made_again(tmp_path, fakes, monkeypatch):  # noqa: F811
    for part in all_parts(2):
        run_shard(RECIPE, tmp_path, part)
    merge(RECIPE, tmp_path)
    log = tmp_path / "made"
    real = stage.speak_shard

    def speak_and_tell(views, *rest, **more):
        for view, failure in real(views, *rest, **more):
            with log.open("a") as file:
                file.write(f"{view.id}\n")
            yield view, failure

    monkeypatch.setattr(stage, "speak_shard", speak_and_tell)
    folder = tmp_path / "tiny/shards/1-of-2/clips"
    at = 0
    while not len(list(folder.glob("views/*.parquet"))) > 2:
        at += 1
        assert in_child(lambda: run_shard(RECIPE, tmp_path, Part(1, 2)), at)[1] == "killed"
    kept = {f"{view.example_id}/{view.index}" for view in views_in(folder)}
    log.unlink()
    assert in_child(lambda: run_shard(RECIPE, tmp_path, Part(1, 2)))[1] == "done"
    made = log.read_text().split()
    assert len(made) == len(set(made))
    assert not kept & set(made)


def views_in(folder):
    from rbalign.data.shards import read_shard

    return [view for path in folder.glob("views/*.parquet") for view in read_shard(path, path.name.split("-")[0])]


@posix
def test_a_full_disk_is_one_error_and_the_next_start_goes_on(tmp_path, fakes):  # noqa: F811
    recipe = changed(RECIPE, **SMALL)
    one = plain(recipe, tmp_path)
    for work in steps(recipe, tmp_path / "s", 2):
        assert in_child(work, limit=1_500)[1] == "refused"
        assert in_child(work)[1] == "done"
    assert files_of(tmp_path / "s/tiny/data") == one


def test_half_a_shard_is_noticed_by_name(tmp_path, fakes):  # noqa: F811
    recipe = changed(RECIPE, **SMALL)
    for name in ("texts/drafts.jsonl", "clips/views/*.parquet"):
        for part in all_parts(2):
            run_shard(recipe, tmp_path, part)
        path = next((tmp_path / "tiny/shards/2-of-2").glob(name))
        whole = path.read_bytes()
        path.write_bytes(whole[:-100])
        with pytest.raises(DataError, match=r"is not what shard 2/2 wrote → copy the shard again"):
            merge(recipe, tmp_path)
        path.unlink()
        with pytest.raises(DataError, match=r"of shard 2/2 is missing → copy the shard again"):
            merge(recipe, tmp_path)
        path.write_bytes(whole)
        merge(recipe, tmp_path)
    assert files_of(tmp_path / "tiny/data") == plain(recipe, tmp_path)


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_missing_and_unfinished_shards_are_named_with_the_command(tmp_path, fakes, monkeypatch):  # noqa: F811
    with pytest.raises(RunError, match=r"no shard in .*--shard 1/N"):
        merge(RECIPE, tmp_path)
    run_shard(RECIPE, tmp_path, Part(2, 4))

    def dies(*work):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "judge", dies)
        with pytest.raises(KeyboardInterrupt):
            run_shard(RECIPE, tmp_path, Part(3, 4))
    with pytest.raises(RunError, match=r"lack their texts: 1/4, 3/4, 4/4 \(begun: 3/4\).*for i in 1 3 4; do .*\$i/4"):
        merge(RECIPE, tmp_path)
    for number in (1, 3, 4):
        run_shard(RECIPE, tmp_path, Part(number, 4))
    merge(RECIPE, tmp_path)
    for number in (1, 2, 3):
        run_shard(RECIPE, tmp_path, Part(number, 4))
    with pytest.raises(RunError, match=r"lack their clips: 4/4 → `rba synth RECIPE --shard 4/4`"):
        merge(RECIPE, tmp_path)
    with pytest.raises(UsageError, match=r"merged from 4 shards"):
        run_shard(RECIPE, tmp_path, Part(1, 5))


def test_shards_of_several_wholes_are_not_mixed(tmp_path, fakes):  # noqa: F811
    run_shard(RECIPE, tmp_path, Part(1, 2))
    run_shard(RECIPE, tmp_path, Part(1, 3))
    with pytest.raises(RunError, match="shards of 2 and of 3"):
        merge(RECIPE, tmp_path)


def test_a_shard_of_another_recipe_or_version_is_refused_with_what_differs(tmp_path, fakes, monkeypatch):  # noqa: F811
    other = changed(RECIPE, train=11)
    run_shard(other, tmp_path / "other", Part(1, 2))
    with pytest.raises(RunError, match=r"shard 1/2 is of another recipe.*synth.train was 11.*is now 10.*delete"):
        run_shard(RECIPE, tmp_path / "other", Part(1, 2))
    for number in (1, 2):
        run_shard(RECIPE, tmp_path / "mine", Part(number, 2))
    place = tmp_path / "mine/tiny/shards/1-of-2"
    shutil.rmtree(place)
    shutil.copytree(tmp_path / "other/tiny/shards/1-of-2", place)
    with pytest.raises(RunError, match=r"shard 1/2 is of another recipe or version: synth.train was 11"):
        merge(RECIPE, tmp_path / "mine")
    shutil.rmtree(place)
    with monkeypatch.context() as patch:
        patch.setattr(synth_shards, "__version__", "0.0.1")
        run_shard(RECIPE, tmp_path / "mine", Part(1, 2))
    with pytest.raises(RunError, match=r"another recipe or version: an input of texts: rba was \"0.0.1\""):
        merge(RECIPE, tmp_path / "mine")
    shutil.rmtree(place)
    run_shard(RECIPE, tmp_path / "mine", Part(1, 2))
    merge(RECIPE, tmp_path / "mine")
    foreign = tmp_path / "foreign/tiny/shards"
    shutil.copytree(tmp_path / "mine/tiny/shards/texts", foreign / "texts")
    with pytest.raises(RunError, match="merged for another recipe or version"):
        run_shard(other, tmp_path / "foreign", Part(1, 2))


def test_two_writers_on_one_shard_are_refused_and_two_shards_are_not(tmp_path, fakes):  # noqa: F811
    run_shard(RECIPE, tmp_path, Part(1, 2))
    named = RECIPE.model_copy(update={"name": "1-of-2"})
    with RunDir.open(tmp_path / "tiny/shards", named):
        with pytest.raises(RunError, match=r"1-of-2 is being written by process \d+ → wait for it, stop it") as error:
            run_shard(RECIPE, tmp_path, Part(1, 2))
        assert "--fork" not in str(error.value)
        run_shard(RECIPE, tmp_path, Part(2, 2))


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "x", "1/", "3", "-1/4", "1/901", "1.5/4", "١/4 "])
def test_what_is_no_part_is_refused(text):
    with pytest.raises(UsageError, match="--shard"):
        Part.parse(text)


def test_the_command_line_makes_a_dataset_and_refuses_in_one_line(tmp_path, fakes, capsys):  # noqa: F811
    from rbalign.cli.main import run_command

    path = tmp_path / "tiny.toml"
    path.write_text(dump_recipe(RECIPE))

    def rba(*words):
        code = run_command(["synth", str(path), "--runs", str(tmp_path / "runs"), *words])
        return code, capsys.readouterr()

    for words in (
        ["--merge", "--shard", "1/2"],
        ["--surplus", "0.1"],
        ["--shard", "3/2"],
        ["--shard", "1/2", "--fork", "x"],
    ):
        code, said = rba(*words)
        assert code == 2
        assert len(said.err.strip().splitlines()) == 1
    code, said = rba("--merge", "--dry-run")
    assert (code, "no shard in" in said.err) == (1, True)
    code, said = rba("--shard", "1/2", "--dry-run")
    assert code == 0
    assert "write and answer instructions" in said.out
    assert "speak" not in said.out
    assert not (tmp_path / "runs").exists(), "a dry run leaves nothing behind"
    for _ in range(2):
        for number in (2, 1):
            assert rba("--shard", f"{number}/2")[0] == 0
        code, said = rba("--merge", "--dry-run")
        assert code == 0
        code, said = rba("--merge")
        assert code == 0
    assert "synth: done" in said.out
    assert run_command(["run", str(path), "--shard", "1/2"]) == 2
    assert "option of `rba synth`" in capsys.readouterr().err
    assert len(Dataset.open(tmp_path / "runs/tiny/data").examples()) == 17


DOCS = (Path(__file__).parent.parent / "docs/datasets.md").read_text(encoding="utf-8")
SECTION = DOCS[DOCS.index("## On several machines") :]


def spelt_out(line):
    """`for i in 1 2; do COMMAND $i; done` -> each command; another line is its own."""
    loop = re.fullmatch(r"for i in ([\d ]+); do (.*); done", line)
    return [loop[2].replace("$i", number) for number in loop[1].split()] if loop else [line]


@pytest.fixture
def big(tmp_path, fakes, monkeypatch):  # noqa: F811
    """The recipe of the page, in the working folder; its dataset by one process."""
    recipe = RECIPE.model_copy(update={"name": "big"})
    monkeypatch.chdir(tmp_path)
    Path("big.toml").write_text(dump_recipe(recipe))
    return plain(recipe, tmp_path / "plain")


def test_the_page_s_commands_make_the_dataset(big):
    from rbalign.cli.main import run_command

    block = re.search(r"```bash\n(.*?)```", SECTION, re.DOTALL)[1]
    commands = [command for line in block.splitlines() for command in spelt_out(line.split("#")[0].strip())]
    assert len(commands) == 10
    for command in commands:
        assert command.startswith("rba ")
        assert run_command(command.split()[1:]) == 0
    assert files_of(Path("runs/big/data")) == big
    for folder in re.findall(r"^runs/big/\S+", SECTION, re.MULTILINE):
        assert Path(folder.replace("I-of-N", "3-of-4")).is_dir()


def test_the_page_s_python_makes_the_dataset(big):
    exec(re.search(r"```python\n(.*?)```", SECTION, re.DOTALL)[1], {})
    assert files_of(Path("runs/big/data")) == big


# ---- the pieces ------------------------------------------------------------------------------------------------------


@given(st.integers(1, 7), st.integers(0, 40), st.randoms(use_true_random=False))
def test_drafts_of_all_parts_come_by_index_up_to_the_first_that_nobody_has(of, hole, chance):
    rows = [[] for _ in range(of)]
    for index in (i for i in range(60) if i != hole):
        rows[index % of].append({"id": parts.draft_id(index)})
    for own in rows:
        chance.shuffle(own)
    assert [int(draft["id"]) for draft in merged(rows)] == list(range(hole))


def test_drafts_wait_only_while_their_turn_has_not_come():
    turn = InTurn(Part(2, 3))
    assert [d["id"] for d in turn.give([{"id": "000004"}, {"id": "000001"}, {"id": "000007"}])] == [
        "000001",
        "000004",
        "000007",
    ]
    assert not turn._early


def test_views_fill_shards_by_split_in_their_order(tmp_path, fakes):  # noqa: F811
    with RunDir.open(tmp_path, RECIPE) as run:
        chain(RECIPE, run, only="synth")
    views = Dataset.open(tmp_path / "tiny/data").views()
    made = list(in_shards(views, 10))
    assert sorted((split, index) for split, index, _ in made) == sorted({(s, i) for s, i, _ in made})
    for split in ("train", "validation", "test"):
        own = [view.id for name, _, part in sorted(made, key=lambda job: job[:2]) if name == split for view in part]
        assert own == [view.id for view in views if view.split == split]
    assert {len(part) for *_, part in made} <= {10, 12 % 10, 16 % 10, 40 % 10} | {10}
