"""Topic and difficulty: what is parsed, what is scored, and a test split with as many instructions of each topic."""

import json
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loopback import Loopback, chat, status
from test_synth import RECIPE, FakeTeacher, fakes  # noqa: F401
from tiny import tiny_lm, tiny_tokenizer

from rbalign.config.endpoints import TeacherEndpoint
from rbalign.config.kinds import TOPICS, LabelsConfig
from rbalign.config.load import dump_recipe, load_recipe, packaged_recipes
from rbalign.config.recipe import Recipe
from rbalign.config.sections import TeacherConfig
from rbalign.config.synth import Domain, SynthConfig
from rbalign.data.dataset import Dataset
from rbalign.data.signatures import Signatures
from rbalign.errors import DataError, RunError, UsageError
from rbalign.keys import Key
from rbalign.lm.load import LM
from rbalign.rundir.journal import read_rows
from rbalign.rundir.run import RunDir
from rbalign.stages import synth as stage
from rbalign.stages.chain import chain, settings
from rbalign.stages.inspect import look_at
from rbalign.synth.labels import LEVELS, OPTIONS, PAPER, WITHOUT_CONTENT, ScoringTagger, label_counts, parse_labels
from rbalign.synth.topics import NATURAL_PER_PLACE, PROMPTS, TopicSplit, slug
from rbalign.teacher.base import Written
from rbalign.teacher.local import LocalTeacher


def test_the_papers_shares_are_of_the_options_and_make_a_whole():
    for kind, options in OPTIONS.items():
        assert list(PAPER[kind]) == list(options)
        assert sum(PAPER[kind].values()) == pytest.approx(100.0, abs=0.2)
    assert set(PROMPTS) == set(TOPICS)


# ---- parsing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "labels"),
    [
        ("Topic: advice\nDifficulty: easy", {"topic": "advice", "difficulty": "easy"}),
        ("**Topic:** Role-Play\n**Difficulty:** Very Hard.", {"topic": "role play", "difficulty": "very hard"}),
        (
            "topic = information_seeking; difficulty = very easy",
            {"topic": "information seeking", "difficulty": "very easy"},
        ),
        ("It is about advice, I would say.", {}),
        ("Topic: advice or planning\nDifficulty: hard", {"difficulty": "hard"}),
        ("Topic: cooking\nDifficulty: 3", {}),
        ("Difficulty: medium", {"difficulty": "medium"}),
        ("", {}),
    ],
)
def test_replies_are_parsed_or_label_nothing(reply, labels):
    assert parse_labels(reply) == labels


@given(st.sampled_from(list(TOPICS)), st.sampled_from(LEVELS), st.sampled_from([str.upper, str.title, str.lower]))
def test_every_option_is_understood_as_itself(topic, level, spell):
    reply = f"Topic: {spell(topic)}.\n\nDifficulty: `{spell(level)}`"
    assert parse_labels(reply) == {"topic": topic, "difficulty": level}


@given(st.text(max_size=200))
def test_any_reply_gives_known_labels_or_none(reply):
    for kind, value in parse_labels(reply).items():
        assert value in OPTIONS[kind]
    found = parse_labels(f"Topic: {reply}")
    assert found.get("topic") in (None, *TOPICS)


# ---- scoring ---------------------------------------------------------------------------------------------------------


def test_options_score_as_they_do_one_by_one():
    tokenizer = tiny_tokenizer()
    teacher = LocalTeacher(LM(tiny_lm(), tokenizer, "tiny", "digest"))
    requests, options = ["How do birds fly?", "Tell me a story."], ["a fact", "story", "an unlikely third option"]
    rows = teacher.option_loglikelihoods(requests, options, "Name the topic.")
    for request, row in zip(requests, rows, strict=True):
        means = teacher.loglikelihood([request] * len(options), options, "Name the topic.")
        sizes = [len(teacher.completion_ids(option)) for option in options]
        assert row == pytest.approx([mean * size for mean, size in zip(means, sizes, strict=True)], abs=1e-3)
    assert torch.is_grad_enabled()


class Scores:
    """A tagger that likes "others" and "medium" best whatever it reads, and a word of the request a little less."""

    def __init__(self):
        self.read = []

    def option_loglikelihoods(self, texts, options, system):
        self.read += list(texts)
        liked = {"others": 5.0, "medium": 5.0}
        return [[liked.get(option, 0.0) + 2.0 * (option.split()[0] in text) for option in options] for text in texts]


def test_what_a_tagger_likes_without_reading_is_taken_off():
    teacher = Scores()
    tagger = ScoringTagger(teacher)
    keys = [Key(1, "label")] * 2
    (first, second) = tagger(["Give me advice, an easy one.", "A hard planning task."], keys)
    assert (first, second) == (
        {"topic": "advice", "difficulty": "easy"},
        {"topic": "planning", "difficulty": "hard"},
    )
    asked = len(teacher.read)
    assert tagger(["A hard planning task."], keys[:1]) == [second]
    assert len(teacher.read) == asked + 2, "requests without content are scored once"


# ---- the stage -------------------------------------------------------------------------------------------------------


TOPIC_OF = {"violin": "creative writing", "market": "planning", "doctor": "advice", "winter": "reasoning"}


class Tagging(FakeTeacher):
    """Labels by words: violins are creative writing. "tea" is what role play asks for; brainstorming never comes."""

    def write_instructions(self, keys, params, systems):
        written = super().write_instructions(keys, params, systems)
        role = PROMPTS["role play"]
        return [
            Written(w.text.replace("How do I", "Be a pirate. How do I"), w.stop, w.tokens) if role in (s or "") else w
            for w, s in zip(written, systems, strict=True)
        ]

    def option_loglikelihoods(self, texts, options, system):
        return [[float(self._is(option, text)) for option in options] for text in texts]

    def _is(self, option, text):
        found = "role play" if "pirate" in text else next((t for w, t in TOPIC_OF.items() if w in text), "others")
        empty = any(text.startswith(f"Request: {nothing}\n") for nothing in WITHOUT_CONTENT)
        return not empty and option in (found, "easy")


@pytest.fixture
def tagged(fakes, monkeypatch):  # noqa: F811
    from rbalign.synth.write import write_drafts

    def write_many(teacher, config, seed, chunks, workers):
        for chunk in chunks:
            yield write_drafts(Tagging(), config, seed, chunk)

    opened = []
    monkeypatch.setattr(stage, "write_many", write_many)
    monkeypatch.setattr(stage, "open_teacher", lambda config: opened.append(config) or Tagging())
    return opened


def labelled_recipe(**labels):
    synth = RECIPE.synth.model_copy(update={"labels": LabelsConfig(**labels)})
    return RECIPE.model_copy(update={"synth": synth})


def test_labels_stand_in_examples_manifest_and_inspect(tmp_path, tagged):
    recipe = labelled_recipe()
    with RunDir.open(tmp_path / "a", recipe) as run:
        first = stage.run(recipe, run)
        data = Dataset.open(run.path("data"))
        for example in data.examples():
            assert example.labels["topic"] == next(
                (topic for word, topic in TOPIC_OF.items() if word in example.instruction), "others"
            )
            assert example.labels["difficulty"] == "easy"
        told = data.manifest["labels"]
        assert told["tagger"] == "smollm2-135m-instruct"
        assert told["topic"] == dict(Counter(example.labels["topic"] for example in data.examples()))
        assert told["difficulty"] == {"easy": 17}
        shown = {tuple(row[:2]): row[2:] for row in look_at(run.folder).labels}
        assert shown["difficulty", "easy"] == ["17", "100.0 %", "39.2 %"]
        assert shown["topic", "information seeking"] == ["0", "0.0 %", "60.3 %"]
        opened = len(tagged)
        assert stage.run(recipe, run) == first
        assert len(tagged) == opened, "a second start opens no tagger"
    with RunDir.open(tmp_path / "b", RECIPE) as run:
        stage.run(RECIPE, run)
        plain = Dataset.open(run.path("data"))
    texts = [(e.id, e.split, e.instruction, e.answer, e.reference) for e in data.examples()]
    assert texts == [(e.id, e.split, e.instruction, e.answer, e.reference) for e in plain.examples()]
    assert {e.labels.get("topic") for e in plain.examples()} == {None}
    assert "labels" not in plain.manifest


BY_TOPIC = {"test_per_topic": 2, "budget": 40}


def test_a_test_split_by_topic_is_filled_and_what_is_short_is_said(tmp_path, tagged, capsys):
    recipe = labelled_recipe(**BY_TOPIC)
    with RunDir.open(tmp_path, recipe) as run:
        stage.run(recipe, run)
        data = Dataset.open(run.path("data"))
    found = Counter(example.labels["topic"] for example in data.examples("test"))
    wanted = {"advice": 2, "creative writing": 2, "planning": 2, "reasoning": 2, "role play": 2, "others": 2}
    assert found == wanted
    table = data.manifest["topics"]
    assert {topic: row["found"] for topic, row in table.items() if row["found"]} == wanted
    assert table["brainstorming"] == {"wanted": 2, "found": 0, "own_candidates": 40}
    assert table["others"]["own_candidates"] == 0, "ordinary candidates were enough"
    assert 0 < table["role play"]["own_candidates"] < 40
    said = [line for line in capsys.readouterr().err.splitlines() if "short" in line]
    assert len(said) == 1
    assert "information seeking 0 of 2, brainstorming 0 of 2" in said[0]
    assert [len(data.examples(split)) for split in ("train", "validation")] == [10, 3]
    known = Signatures.build(example.instruction for example in data.examples("test"))
    others = [e for split in ("train", "validation") for e in data.examples(split)]
    assert max(known.worst(example.instruction) for example in others) < recipe.synth.filters.max_leakage
    assert all(example.reference for example in data.examples("test"))
    assert {view.example_id for view in data.views("test")} == {example.id for example in data.examples("test")}
    assert data.manifest["candidates"] == sum(data.manifest["dropped"].values()) + len(data.examples())
    assert stage.plan(recipe, RunDir.look(tmp_path / "new", recipe)).rows[0].count == 16 + 13


def test_the_split_by_topic_does_not_depend_on_batches_or_on_being_stopped(tmp_path, tagged, monkeypatch):
    contents = set()
    for size in (3, 64):
        recipe = labelled_recipe(**BY_TOPIC)
        recipe = recipe.model_copy(update={"synth": recipe.synth.model_copy(update={"batch_size": size})})
        with RunDir.open(tmp_path / str(size), recipe) as run:
            stage.run(recipe, run)
            contents.add(json.dumps(sorted((run.path("data") / "examples-00000.jsonl").read_text().splitlines())))
    assert len(contents) == 1

    asked = Tagging.option_loglikelihoods
    calls = []

    def dies(self, texts, options, system):
        calls.append(list(texts))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return asked(self, texts, options, system)

    recipe = labelled_recipe(**BY_TOPIC)
    monkeypatch.setattr(Tagging, "option_loglikelihoods", dies)
    with RunDir.open(tmp_path / "stopped", recipe) as run:
        with pytest.raises(KeyboardInterrupt):
            stage.run(recipe, run)
        known = {row["id"] for row in read_rows(run.path("data", "labels.jsonl"))}
        assert known
        stage.run(recipe, run)
        contents.add(json.dumps(sorted((run.path("data") / "examples-00000.jsonl").read_text().splitlines())))
        ids = [row["id"] for row in read_rows(run.path("data", "labels.jsonl"))]
        assert len(ids) == len(set(ids))
    assert len(contents) == 1


def test_a_topic_takes_the_recipes_own_domain(tagged):
    own = Domain(name="role-play", system="You are an actor.")
    config = SynthConfig(domains=(Domain(name="all"), own), labels=LabelsConfig(test_per_topic=1, budget=7))
    asked = {}

    def open_drafts(stream, with_config, seed):
        asked[stream] = (with_config.domains, with_config.system, seed)
        return iter([])

    split = TopicSplit(config, 3, [])
    split.fill(open_drafts, lambda pairs: [])
    assert asked["natural"][0] == config.domains
    assert asked["role-play"][:2] == ((own,), None)
    assert asked["others"][0] == (Domain(name="others", system=f"You are a helpful assistant. {PROMPTS['others']}"),)
    assert len({seed for *_, seed in asked.values()}) == 9
    assert set(asked) == {"natural", *map(slug, TOPICS)}
    assert "role play 0 of 1" in split.shortage()


def test_budgets_bound_what_is_written():
    config = SynthConfig(labels=LabelsConfig(test_per_topic=1, budget=7))
    used = Counter()

    def open_drafts(stream, with_config, seed):
        for number in range(10_000):
            used[stream] += 1
            yield {"id": f"{number:06d}", "text": "no", "stop": "end"}

    split = TopicSplit(config, 3, [])
    split.fill(open_drafts, lambda pairs: [])
    assert used == {"natural": NATURAL_PER_PLACE * 8, **{slug(topic): 7 for topic in TOPICS}}
    assert split.acceptance.seen == sum(used.values()) == split.acceptance.causes["too short"]


def test_no_test_instruction_at_all_is_an_error(tmp_path, tagged, monkeypatch):
    recipe = labelled_recipe(test_per_topic=1, budget=3)
    strict = recipe.synth.model_copy(update={"filters": recipe.synth.filters.model_copy(update={"max_words": 5})})
    recipe = recipe.model_copy(update={"synth": strict})
    with RunDir.open(tmp_path, recipe) as run, pytest.raises(DataError, match=r"any topic; dropped: .*too long"):
        stage.run(recipe, run)


# ---- a tagger behind a server ----------------------------------------------------------------------------------------


def test_a_server_labels_and_what_it_says_wrongly_is_counted_never_dropped(tmp_path, tagged, monkeypatch):
    monkeypatch.setenv("RBA_HOME", str(tmp_path / "home"))
    from rbalign.synth.write import open_teacher

    def answer(asked):
        text = asked.body["messages"][-1]["content"]
        if text == "Say hello.":
            return chat("Hello.")
        if "violin" in text:
            return status(400)
        if "market" in text:
            return chat("I would rather talk about cheese.")
        return chat("Topic: planning\nDifficulty: hard")

    with Loopback(answer) as server:
        endpoint = TeacherEndpoint(url=server.url, model="tagger", can=("chat",), retries=0, concurrency=2)
        recipe = labelled_recipe(tagger=TeacherConfig(endpoint=endpoint))
        monkeypatch.setattr(stage, "open_teacher", lambda c: open_teacher(c) if c.endpoint else Tagging())
        with RunDir.open(tmp_path / "runs", recipe) as run:
            chain(recipe, run, only="synth")
            data = Dataset.open(run.path("data"))
        asked = len(server.asked)
        examples = data.examples()
        assert len(examples) == 17
        silent = [e for e in examples if "violin" in e.instruction or "market" in e.instruction]
        assert silent
        assert all("topic" not in e.labels and "difficulty" not in e.labels for e in silent)
        told = data.manifest["labels"]
        assert told["topic"] == {"planning": 17 - len(silent), "unlabelled": len(silent)}
        assert told["tagger"] == "tagger"
        assert all(asked.body["temperature"] == 0.0 for asked in server.asked)
        ledger = json.loads((tmp_path / "runs/tiny/data/remote.json").read_text())
        assert [name.split(" at ")[0] for name in ledger] == ["tagger tagger"]
        with RunDir.open(tmp_path / "runs", recipe) as run:
            chain(recipe, run, only="synth")
        assert len(server.asked) == asked

        def changed(**fields):
            return labelled_recipe(tagger=TeacherConfig(endpoint=endpoint.model_copy(update=fields)))

        with RunDir.open(tmp_path / "runs", changed(concurrency=7)) as run:
            chain(changed(concurrency=7), run, only="synth")
        with pytest.raises(RunError, match="labels"), RunDir.open(tmp_path / "runs", changed(model="x")) as run:
            chain(changed(model="x"), run, only="synth")


# ---- recipes ---------------------------------------------------------------------------------------------------------


def test_recipes_without_labels_keep_their_keys(tmp_path):
    for name in packaged_recipes():
        synth = load_recipe(name).synth
        if synth.labels is None and synth.kind == "instructions":
            assert not {"labels", "kind", "qa", "s2tt"} & set(settings(load_recipe(name), "synth")["synth"])
    path = tmp_path / "r.toml"
    path.write_text("name = 'x'\n[synth]\n[synth.labels]\n")
    recipe = load_recipe(path, ["--synth.labels.budget", "9"])
    assert recipe.synth.labels == LabelsConfig(budget=9)
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path) == recipe
    assert recipe.synth.size("test") == 48
    assert SynthConfig(labels=LabelsConfig(test_per_topic=5)).size("test") == 40


@pytest.mark.parametrize("more", [{"kind": "qa"}, {"test_views": "shipped"}, {"sentences": True}])
def test_what_labels_do_not_fit_is_refused(more):
    labels = LabelsConfig(test_per_topic=1)
    with pytest.raises((UsageError, ValueError), match=r"labels|test_per_topic"):
        SynthConfig(labels=labels, **more)


def test_counts_are_in_the_order_of_the_options():
    rows = [{"topic": "others"}, {"topic": "advice", "difficulty": "hard"}]
    assert label_counts(rows) == {"topic": {"advice": 1, "others": 1}, "difficulty": {"hard": 1, "unlabelled": 1}}
    assert Recipe(name="x", synth=SynthConfig(labels=LabelsConfig())).synth.labels.tagger is None


def test_the_label_decides_not_the_prompt():
    config = SynthConfig(answers=False, labels=LabelsConfig(test_per_topic=1, budget=5))

    def open_drafts(stream, with_config, seed):
        return iter([{"id": f"{n:06d}", "text": f"How can {stream} number {n} be?", "stop": "end"} for n in range(5)])

    split = TopicSplit(config, 3, [])
    split.fill(
        open_drafts, lambda pairs: [{"topic": "others"} for _ in pairs] if "natural" not in pairs[0][0] else [{}] * 5
    )
    assert {example.id for example in split.acceptance.examples} == {"others-000000"}
    assert split.acceptance.causes == {"other topic": 7 * 5, "without topic": 5}
