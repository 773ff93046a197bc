"""`rba export`: the folder answers as the arm does, says where it comes from, and never overwrites anything."""

import json

import numpy as np
import pytest
import torch
from aligning import LORA, tiny_view
from refusals import assert_refused
from tiny import tiny_clip, tiny_processor, tiny_speech_model, tiny_tokenizer, tiny_whisper_config
from transformers import AutoModel, AutoProcessor, Qwen2Config, Qwen2ForCausalLM, WhisperModel

from rbalign.audio.io import read_audio, to_flac
from rbalign.cli.main import run_command
from rbalign.config.recipe import Recipe
from rbalign.data.dataset import DatasetWriter
from rbalign.keys import Key
from rbalign.lm.load import load_lm
from rbalign.rundir.run import RunDir
from rbalign.speechlm import RbaSpeechForConditionalGeneration
from rbalign.speechlm.configuration import AUDIO_TOKEN
from rbalign.speechlm.connector import new_model, save_connector
from rbalign.speechlm.policy import SpeechPolicy
from rbalign.stages.arms import final_folder
from rbalign.stages.export import export
from rbalign.stages.policy import open_policy
from rbalign.types import Example, View, ViewSpec

CLIPS = [tiny_view("e", index, seconds, index) for index, seconds in enumerate((0.6, 0.9, 0.7))]
LICENCES = ["| SmolLM2-135M-Instruct | Apache-2.0 |", "| Whisper tiny.en | MIT |", "| Kokoro-82M"]


def tiny(**options):
    return SpeechPolicy(tiny_speech_model(), tiny_processor(), system='Be "brief".', **options)


def save_arm(run, arm, seed, policy, scale=0.3):
    """The arm after a training that moved everything that trains."""
    noise = np.random.default_rng(seed)
    for value in policy.trainable().values():
        value.data += scale * value.data.new_tensor(noise.normal(size=value.shape))
    policy.save(final_folder(run, arm, seed))
    about = {"arm": arm, "seed": seed, "updates": 2, "examples": 3, "views": 12}
    (final_folder(run, arm, seed) / "arm.json").write_text(json.dumps(about))


def write_data(folder):
    writer = DatasetWriter(folder, {"teacher": "tiny", "recipe": "0"})
    writer.add_examples([Example("e", "train", "Hm?", "hm", "Yes.")])
    writer.commit_views("train", 0, [View("e", 0, "train", ViewSpec("af_heart"), 0.5, to_flac(tiny_clip(0.5)))])
    writer.finish()


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rbalign.stages.policy.open_policy", lambda recipe, run, **options: tiny(**options))
    recipe = Recipe.model_validate({"name": "small", "synth": {}, "align": {"lora": LORA}, "eval": {}})
    with RunDir.open(tmp_path / "runs", recipe) as opened:
        write_data(opened.path("data"))
        save_arm(opened, "sft", 0, tiny(lora=LORA, train_adapter=True))
        for seed in (0, 1):
            save_arm(opened, "rba-group", seed, tiny(lora=LORA, seed=seed))
        yield opened


def rba(*words):
    return run_command([str(word) for word in words])


def answers(policy, views, tokens):
    """Greedy ids of a policy and their log-probs: (texts, log-probs)."""
    params = policy.params(0.0, 1.0, tokens)
    with torch.no_grad():
        samples = policy.sample(policy.prompts(views), params, [[Key(0, "export")] for _ in views])
        logprobs, mask = policy(views, [[own[0].ids] for own in samples])
    return [policy.decode(own[0].ids) for own in samples], [own[0].ids for own in samples], logprobs[mask]


def assert_same_model(folder, policy, views, tokens=8):
    """Loaded by the Auto classes, asked as the model card says: the arm's own answers and log-probs."""
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    assert isinstance(model, RbaSpeechForConditionalGeneration)
    assert not [name for name in model.state_dict() if "lora" in name]
    assert (folder / "model.safetensors").stat().st_mode == (folder / "README.md").stat().st_mode
    texts, ids, logprobs = answers(policy, views, tokens)
    system = [] if policy.system is None else [{"role": "system", "content": policy.system}]
    messages = [*system, {"role": "user", "content": AUDIO_TOKEN}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    clips = [read_audio(view.flac) for view in views]
    said = model.generate(**processor(text=[text] * len(clips), audio=clips), max_new_tokens=tokens)
    assert [processor.decode(row, skip_special_tokens=True).strip() for row in said] == texts
    again = SpeechPolicy(model, processor, system=policy.system)
    with torch.no_grad():
        found, mask = again(views, [[row] for row in ids])
    torch.testing.assert_close(found[mask], logprobs, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("arm", "folder"), [("sft", "sft-s0"), ("rba-group-s1", "rba-group-s1"), ("base", None)])
def test_the_folder_answers_as_the_arm(run, tmp_path, arm, folder, capsys):
    assert rba("export", "runs/small", arm, "out/model") == 0
    assert "out/model" in capsys.readouterr().out
    policy, base = tiny(), tiny()
    if folder:
        policy.load(run.path("arms", folder, "final"))
        moved = (answers(policy, CLIPS, 8)[2][:1] - answers(base, CLIPS, 8)[2][:1]).abs()
        assert moved > 1e-3, "the arm must differ from base, or nothing is shown"
    assert_same_model(tmp_path / "out" / "model", policy, CLIPS)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"], "nothing is left beside it"


def test_the_card_says_what_it_is_and_holds_no_path(run, tmp_path):
    export(run, "sft", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    manifest = json.loads(run.path("data", "manifest.json").read_text())
    for part in [
        *LICENCES,
        manifest["content_hash"],
        "small: sft-s0",
        "weights of update 2 of 2 on 3 instructions in 12 clips",
    ]:
        assert part in text
    assert r'{"role": "system", "content": "Be \"brief\"."}, {"role": "user", "content": "<|audio|>"}' in text
    (block,) = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    compile(block, "README.md", "exec")
    assert (tmp_path / "out" / "recipe.toml").read_bytes() == run.path("recipe.toml").read_bytes()
    for path in (tmp_path / "out").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name
    assert json.loads((tmp_path / "out" / "config.json").read_text())["connector_only"] is False


def test_results_of_the_run_stand_in_the_card(run, tmp_path):
    row = {"task": "open", "metric": "chrf", "value": 0.25, "ci_low": 0.2, "ci_high": 0.3, "n": 32}
    rows = [{**row, "arm": arm, "seed": seed} for arm, seed in (("base", None), ("sft", 0), ("rba-group", 0))]
    run.path("results.json").write_text(json.dumps({"rows": rows}))
    export(run, "sft", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| sft | chrF | 0.250 | 0.200 to 0.300 | 32 |" in text
    assert "| base | chrF" in text
    assert "| rba-group |" not in text


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["runs/small", "sft", "full"], ["full is there and not empty", "does not exist yet"]),
        (["runs/small", "sft", "full/file"], ["full/file is there and not empty"]),
        (["runs/small", "stf", "out"], ["unknown arm 'stf'", "base, rba-group-s0, rba-group-s1, sft-s0"]),
        (["runs/small", "rba-group", "out"], ["'rba-group' has 2 seeds", "rba-group-s0, rba-group-s1"]),
        (["elsewhere", "sft", "out"], ["elsewhere is no run"]),
        (["full", "sft", "out"], ["full is no run"]),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(run, tmp_path, words, parts, capsys):
    assert_refused(lambda: rba("export", *words), parts, tmp_path, capsys)


def test_a_full_disk_leaves_nothing_half(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
    assert rba("export", "runs/small", "sft", "out") == 1
    assert "out needs 0.0 GB" in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))


def test_any_causal_lm_becomes_a_speech_llm_and_is_exported(tmp_path, monkeypatch):
    """README's own speech LLM, on another family than the embedded one: connector, policy, arm, export."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    lm = Qwen2ForCausalLM(Qwen2Config(vocab_size=320, num_key_value_heads=2, initializer_range=0.2, **shape, **ends))
    for part in (lm, tiny_tokenizer()):
        part.save_pretrained("my-model")
    WhisperModel(tiny_whisper_config()).save_pretrained("whisper")
    recipe = Recipe.model_validate(
        {
            "name": "mine",
            "teacher": {"model": "my-model"},
            "connect": {"language_model": "my-model", "encoder": "whisper"},
            "align": {"connector": "connect", "lora": LORA},
        }
    )
    with RunDir.open(tmp_path / "runs", recipe) as run:
        run.stage("connect", {}, {})  # writes recipe.toml
        speech = new_model(tmp_path / "whisper", load_lm("my-model").model, adapter_width=32, adapter_heads=4)
        save_connector(speech, run.path("connect", "connector"))
        save_arm(run, "sft", 0, open_policy(recipe, run, lora=LORA))
    assert rba("export", "runs/mine", "sft", "out") == 0
    policy = open_policy(recipe, run)
    policy.load(final_folder(run, "sft", 0))
    assert type(policy.lm).__name__ == "Qwen2ForCausalLM"
    assert_same_model(tmp_path / "out", policy, CLIPS)
    assert "| language model | my-model | see where it came from |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.assets
def test_the_embedded_model_exported(tmp_path, assets_folder):
    from rbalign.voices.engine import speaker

    assets_folder("smollm2-135m-instruct")
    clip = speaker("hibari").speak("What is the capital of France?", "hibari", 1.0)
    views = [View("q", 0, "test", ViewSpec("hibari"), len(clip) / 16_000, to_flac(clip))]
    recipe = Recipe.model_validate({"name": "real", "synth": {}, "align": {"lora": {"r": 2}}})
    with RunDir.open(tmp_path / "runs", recipe) as run:
        run.stage("align", {}, {})
        save_arm(run, "sft", 0, open_policy(recipe, run, lora=recipe.align.lora), scale=3e-3)
    export(run, "sft", tmp_path / "out")
    policy = open_policy(recipe, run)
    policy.load(final_folder(run, "sft", 0))
    assert_same_model(tmp_path / "out", policy, views, tokens=12)
