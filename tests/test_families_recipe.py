"""A recipe whose [align] model is a folder: refused early or aligned, evaluated, asked and exported like any other.

The folder holds a tiny random Qwen2-Audio, written by `save_pretrained` as a release is.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from aligning import tiny_view
from families import LORA, SYSTEM, family_model, torchaudio_stand_in  # noqa: F401
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from test_eval_stage import Letters
from tiny import TEXTS, tiny_clip

from rbalign.audio.io import read_audio, to_flac
from rbalign.config.families import FAMILIES, REFUSED
from rbalign.config.load import load_recipe
from rbalign.config.recipe import Recipe
from rbalign.data.dataset import DatasetWriter
from rbalign.errors import DataError, UsageError
from rbalign.lm.load import load_lm, load_model
from rbalign.rundir.journal import read_rows
from rbalign.rundir.run import RunDir
from rbalign.speechlm import family as family_module
from rbalign.speechlm.family import FamilyPolicy, load_family
from rbalign.stages import align
from rbalign.stages import eval as eval_stage
from rbalign.stages.arms import final_folder
from rbalign.stages.ask import ask
from rbalign.stages.chain import chain
from rbalign.stages.export import export
from rbalign.stages.policy import known_texts, open_policy
from rbalign.types import Example, View, ViewSpec

ARMS = ["sft", "rba-single", "kd"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("models") / "tiny-qwen2-audio"
    for part in family_model("qwen2_audio"):
        part.save_pretrained(place)
    return place


def recipe_of(folder, **changes):
    section = {
        "model": str(folder), "arms": ARMS, "workers": 1, "updates": 2, "examples_per_update": 2, "save_every": 1,
        "sampling": {"max_new_tokens": 30}, "lora": LORA, "args": {"learning_rate": 1e-2}, "answer_system": SYSTEM,
    }  # fmt: skip
    evaluation = {
        "references": ["text", "self-cascade", "wrong-audio"], "bootstrap": 20, "workers": 1,
        "sampling": {"temperature": 0.7, "max_new_tokens": 6},
    }  # fmt: skip
    table = {"name": "theirs", "teacher": {"model": str(folder)}, "align": section | changes, "eval": evaluation}
    return Recipe.model_validate(table)


def write_data(place):
    writer = DatasetWriter(place, {"teacher": "tiny", "recipe": "none"})
    splits = ["train"] * 4 + ["test"] * 3
    examples = [
        Example(f"e{i}", split, TEXTS[i % 5], TEXTS[i % 5], "Yes, it is.", reference="tea")
        for i, split in enumerate(splits)
    ]
    writer.add_examples(examples)
    for split, voices in (("train", ("af_heart", "am_adam")), ("test", ("af_sarah", "am_michael"))):
        views = [
            View(e.id, k, split, ViewSpec(voices[k]), 0.7, to_flac(tiny_clip(0.7, seed=10 * i + k)))
            for i, e in enumerate(examples)
            if e.split == split
            for k in (0, 1)
        ]
        writer.commit_views(split, 0, views)
    writer.finish()


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """What is heard goes to this test's own cache; the embedder is 26 letters."""
    monkeypatch.setenv("RBA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(eval_stage, "text_scorers", lambda notes, examples: ({}, {"similarity": Letters()}))


def test_from_recipe_to_results_and_out_again(tmp_path, folder, offline):
    recipe = recipe_of(folder)
    with RunDir.open(tmp_path / "runs", recipe) as run:
        write_data(run.path("data"))
        made = chain(recipe, run)
        assert [(one.stage, one.skipped) for one in made] == [("align", False), ("eval", False)]
        assert all(one.skipped for one in chain(recipe, run))
        outputs = made[0].outputs
        assert set(outputs) == {f"{arm}-s0" for arm in ARMS}
        assert len(set(outputs.values())) == 3
        for arm in ARMS:
            assert [row["update"] for row in read_rows(run.path("arms", f"{arm}-s0", "metrics.jsonl"))] == [1, 2]
        results = json.loads(run.path("results.json").read_text())
        rows = {(row["arm"], row["metric"]) for row in results["rows"] if row["value"] is not None}
        assert {(subject, "nll") for subject in ("base", *ARMS)} <= rows
        assert len({row["arm"] for row in results["rows"]} & {"text", "self-cascade"}) == 2
        assert any((tmp_path / "home" / "hearing").rglob("*.safetensors"))  # each clip heard once, for all processes
        assert known_texts(recipe, run).near_duplicates(TEXTS) == []

        clip = tmp_path / "question.flac"
        clip.write_bytes(to_flac(tiny_clip(0.8, 3)))
        said = ask(clip, run=run.folder, arm="sft-s0", beside="Why?")
        assert said["model"] == "theirs/sft-s0"
        assert {"heard", "answer", "text_answer"} <= said.keys()

        out = export(run, "sft", tmp_path / "out")
        card = (out / "README.md").read_text()
        assert "from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration" in card
        assert "(Qwen2-Audio, tiny-qwen2-audio)" in card
        assert str(folder) not in card
        policy = open_policy(recipe, run)
        policy.load(final_folder(run, "sft", 0))
    views, ids = [tiny_view("a", 0, 0.9, 3)], torch.tensor([40, 50, 60])
    speech, processor, family = load_family(out, SYSTEM)
    whole = FamilyPolicy(speech, processor, family, system=SYSTEM)
    torch.testing.assert_close(whole(views, [[ids]])[0], policy(views, [[ids]])[0], atol=1e-4, rtol=0)
    inputs = inputs_as_the_card_says(card, out)
    assert inputs["input_ids"].tolist() == whole.inputs(clip=read_audio(clip), system=SYSTEM)["input_ids"].tolist()


def inputs_as_the_card_says(card, out):
    """Runs the card's own code up to the inputs, on a question.wav that is made here."""
    code = card.split("```python\n")[1].split("answer = ")[0]
    code = code.replace('from_pretrained(".")', f"from_pretrained({str(out)!r})")
    code = code.replace('soundfile.read("question.wav", dtype="float32")', "(clip, 16_000)")
    names = {"clip": np.asarray(tiny_clip(0.8, 3))}
    exec(code, names)
    return names["inputs"]


def test_the_text_teacher_is_the_speech_llm_that_hears_nothing(tmp_path, folder, offline):
    """kd's teacher: the same weights and the same prompt, whoever loads them."""
    from rbalign.teacher.local import LocalTeacher

    recipe = recipe_of(folder)
    policy = open_policy(recipe, RunDir.look(tmp_path, recipe), lora=LORA)
    teacher = LocalTeacher(load_lm(folder))
    prompts = teacher.prompts(["How do birds fly?"], SYSTEM)
    (mine,) = policy.text_prompts(["How do birds fly?"]).rows
    assert [*prompts.shared.tolist(), *prompts.rows[0].tolist()] == mine.tolist()
    answer = policy.completion_ids("tea")
    assert answer.tolist() == teacher.completion_ids("tea").tolist()
    logits, _ = policy.text_logits(["How do birds fly?"], [[answer]])
    likelihood = logits[0].log_softmax(-1).gather(1, answer[:, None]).mean()
    assert teacher.loglikelihood(["How do birds fly?"], ["tea"], SYSTEM) == [pytest.approx(float(likelihood), abs=1e-5)]


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        ({"model_type": "gemma3n"}, {}, "an input of its own, looked up by token id"),
        ({"model_type": "llama"}, {}, "'llama', no speech LLM that rba knows"),
        ({"model_type": "qwen2_audio"}, {"teacher": {"model": "elsewhere"}}, "kd reads the teacher's distribution"),
        ({"model_type": "qwen2_audio"}, {"connect": {}}, "has its own ears"),
        ({}, {}, "no speech LLM that rba knows"),
    ],
)
def test_what_cannot_be_aligned_is_refused_before_any_work(tmp_path, config, changes, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    table = recipe_of(tmp_path).model_dump(mode="json", exclude_none=True) | changes
    with pytest.raises(UsageError, match=message):
        align.check(Recipe.model_validate(table))


def test_a_missing_package_is_named_with_its_cure(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "voxtral"}))
    monkeypatch.setattr(family_module, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs mistral_common") as caught:
        align.check(recipe_of(tmp_path))
    assert caught.value.cure == "pip install mistral-common"


@pytest.mark.parametrize("changes", [{"connector": "connect"}, {"train_adapter": True}])
def test_a_whole_model_takes_no_connector_and_no_adapter(folder, changes):
    with pytest.raises(ValueError, match=r"connector|train_adapter"):
        recipe_of(folder, **changes)


def test_the_page_says_what_the_code_does(tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "models.md").read_text(encoding="utf-8")
    rows = [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)] for line in page.splitlines()]
    for model_type, family in FAMILIES.items():
        (row,) = (row for row in rows if len(row) > 3 and f"`{model_type}`" in row[2])
        assert row[1].startswith(family.name)
        assert row[4] == f"`{family.end}`"
        assert row[7] == family.proven
    for model_type, why in REFUSED.items():
        assert ["", f"`{model_type}`", why, ""] in rows
    (tmp_path / "theirs.toml").write_text(page.split("```toml\n")[1].split("```")[0])
    recipe = load_recipe(tmp_path / "theirs.toml")
    assert recipe.stages() == ["synth", "align", "eval"]
    assert recipe.align.model


def test_older_recipes_keep_their_keys():
    assert "model" not in Recipe.model_validate({"name": "old", "align": {}}).model_dump()["align"]


def test_the_thinker_is_taken_out_of_a_whole_omni_release(tmp_path):
    """As Qwen/Qwen2.5-Omni-7B is laid out: `thinker.` before its weights, its configuration among those of the rest."""
    model, _ = family_model("qwen2_5_omni_thinker")
    weights = {f"thinker.{name}": value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    told = {"model_type": "qwen2_5_omni", "thinker_config": model.config.to_dict()}
    (tmp_path / "config.json").write_text(json.dumps(told))
    loaded = load_model(tmp_path, FAMILIES["qwen2_5_omni"].model_class)
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_a_folder_that_lacks_weights_is_refused(tmp_path, folder):
    """transformers goes on with random ones."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    (lost,) = (name for name in weights if "multi_modal_projector" in name and name.endswith("weight"))
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="lacks 1 of the weights"):
        load_family(tmp_path, SYSTEM)


def test_a_model_is_evaluated_without_any_training(tmp_path, folder, offline):
    recipe = recipe_of(folder, arms=[])
    with RunDir.open(tmp_path / "runs", recipe) as run:
        write_data(run.path("data"))
        align.check(recipe)
        assert align.run(recipe, run) == {}
        eval_stage.run(recipe, run)
        results = json.loads(run.path("results.json").read_text())
    assert {row["arm"] for row in results["rows"]} == {"base", "text", "self-cascade"}


def test_lora_that_a_release_came_with_is_part_of_the_model(tmp_path, monkeypatch):
    """Granite 3.3's hears with LoRA of its own: it stays on while ours is off, and its text LLM is no teacher."""
    monkeypatch.setattr(family_module, "find_spec", lambda name: object())
    model, processor = family_model("granite_speech")
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    model.config.has_lora_adapter = True
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    model.save_pretrained(str(tmp_path / "adapted"))
    for file in (tmp_path / "adapted").glob("adapter_*"):
        file.rename(tmp_path / file.name)
    speech, processor, family = load_family(tmp_path, SYSTEM)
    assert any(not torch.equal(value, plain[name]) for name, value in speech.state_dict().items())
    policy = FamilyPolicy(speech, processor, family, system=SYSTEM, lora=LORA)
    view, ids = tiny_view("a", 0, 0.9, 3), torch.tensor([40, 50, 60])
    inputs = policy.inputs(clip=read_audio(view.flac), system=SYSTEM)
    with torch.no_grad():
        prompt = model(**inputs, use_cache=True)
        after = model(input_ids=ids[None], past_key_values=prompt.past_key_values)
    released = torch.cat([prompt.logits[0, -1:], after.logits[0, :-1]]).log_softmax(-1).gather(1, ids[:, None])[:, 0]
    with policy.untouched():
        torch.testing.assert_close(policy([view], [[ids]])[0][0].detach(), released, atol=1e-4, rtol=0)
    with pytest.raises(UsageError, match="LoRA of its own"):
        align.check(recipe_of(tmp_path))
    align.check(recipe_of(tmp_path, arms=["sft", "rba-single", "grpo"]))
    with pytest.raises(UsageError, match="today's date"):
        align.check(recipe_of(tmp_path, arms=["sft"], answer_system=None))
    with pytest.raises(UsageError, match="does not read as its text LLM does"):
        load_lm(tmp_path)
