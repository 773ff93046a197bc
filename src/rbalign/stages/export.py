"""`rba export RUN ARM OUT`: one arm as an ordinary transformers folder, LoRA merged, with a model card."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbalign.config.recipe import Recipe
from rbalign.data.dataset import Dataset
from rbalign.errors import DataError, UsageError
from rbalign.eval.metrics import METRICS
from rbalign.rundir.files import atomic_write, new_folder, refuse_taken
from rbalign.rundir.run import RunDir
from rbalign.stages.licences import Part, licence_table, part, voice_parts, writer_parts
from rbalign.stages.named import BASE, arm_weights
from rbalign.stages.policy import backbone
from rbalign.stages.voices import bank_of_dataset

if TYPE_CHECKING:
    from rbalign.speechlm.base import Policy
    from rbalign.speechlm.family import FamilyPolicy

READS_ALONG = " While it hears, this merged LLM reads along; in the run the one before alignment did."
CARD = """---
library_name: transformers
pipeline_tag: audio-text-to-text
---
# {title}

A speech LLM ({what}) that answers spoken requests in text.
{history}

```python
{usage}
```

Training data: {data}. Recipe: `recipe.toml`.
{results}
## Licences

What it was made with; the weights follow the licences of the language model and the encoder.

{licences}
"""

USAGE = """import rbalign.speechlm  # tells transformers about the model type
import soundfile
from transformers import AutoModel, AutoProcessor

model, processor = AutoModel.from_pretrained(".").eval(), AutoProcessor.from_pretrained(".")
samples, rate = soundfile.read("question.wav", dtype="float32")  # mono, 16 kHz
messages = {messages}
text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
answer = model.generate(**processor(text=text, audio=samples), max_new_tokens=64)
print(processor.decode(answer[0], skip_special_tokens=True))"""
FAMILY_USAGE = """import soundfile
from transformers import AutoProcessor, {model_class}

model, processor = {model_class}.from_pretrained("."), AutoProcessor.from_pretrained(".")
samples, rate = soundfile.read("question.wav", dtype="float32")  # mono, 16 kHz
messages = {messages}
text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
inputs = processor(text=[text], audio=[samples], return_tensors="pt"{call})
answer = model.generate(**inputs, max_new_tokens=64)[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(answer, skip_special_tokens=True)[0])"""
WHOLE_USAGE = """from transformers import AutoProcessor, {model_class}

model, processor = {model_class}.from_pretrained("."), AutoProcessor.from_pretrained(".")
messages = {messages}
inputs = processor.apply_chat_template(messages, return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens=64)[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(answer, skip_special_tokens=True)[0])"""


def export(run: RunDir, arm: str, out: Path) -> Path:
    """Write the arm, or `base`, to `out`, which must not exist or be empty; returns it.

    Written aside and renamed: `out` is whole or not there.
    """
    from rbalign.speechlm.whole import save_whole, size_of
    from rbalign.stages.policy import open_policy

    weights = arm_weights(run, arm)
    refuse_taken(out)
    if run.recipe.align is None and run.recipe.connect is None:
        raise UsageError(f"run {run.recipe.name} has no speech LLM", "give a run that connects or aligns one")
    policy = open_policy(run.recipe, run)
    if weights is not None:
        policy.load(weights)
    with new_folder(out, size_of(policy)) as aside:
        save_whole(policy, aside)
        atomic_write(aside / "README.md", card(run, weights, policy))
        shutil.copyfile(run.path("recipe.toml"), aside / "recipe.toml")
    return out


def card(run: RunDir, weights: Path | None, policy: Policy) -> str:
    """The model card: what it is, how to ask it, what it was made from, under which licences."""
    from rbalign.speechlm import family

    arm = weights.parent.name if weights else BASE
    parts = _parts(run)
    named = {each.role: each.name for each in parts}
    if isinstance(policy, family.FamilyPolicy):
        what, usage, more = f"{policy.family.name}, {named['speech LLM']}", _family_usage(policy), ""
    else:
        system = [{"role": "system", "content": policy.system}] if policy.system is not None else []
        messages = [*system, {"role": "user", "content": policy.processor.audio_token}]
        what = f"{named.get('speech encoder', 'Whisper')} encoder, {policy.speech.config.adapter_type} adapter, "
        what += named["language model"]
        usage = USAGE.format(messages=json.dumps(messages, ensure_ascii=False))
        more = READS_ALONG if weights and policy.speech.fusion else ""
    return CARD.format(
        title=f"{run.recipe.name}: {arm}",
        what=what,
        usage=usage,
        history=_history(arm, weights) + more,
        data=_data(run),
        results=_results(run, arm),
        licences=licence_table(parts),
    )


def _family_usage(policy: FamilyPolicy) -> str:
    """Code that asks the model as the run did."""
    family = policy.family
    call = "".join(f", {name}={value!r}" for name, value in family.call.items())
    whole = family.turn == "whole"
    template, clip = (WHOLE_USAGE, {"path": "question.wav"}) if whole else (FAMILY_USAGE, {})
    messages = json.dumps(policy.messages(clip=clip, system=policy.system), ensure_ascii=False)
    return template.format(model_class=family.model_class, messages=messages, call=call)


def _history(arm: str, weights: Path | None) -> str:
    if weights is None:
        return "It is not aligned: the start of every arm of the run."
    about = json.loads((weights / "arm.json").read_text(encoding="utf-8"))
    return (
        f"Arm `{arm}` of an rba run: objective {about['arm']}, the weights of update "
        f"{about.get('selected_update', about['updates'])} of {about['updates']} on {about['examples']} instructions "
        f"in {about['views']} clips, seed {about['seed']}; LoRA merged into the weights."
    )


def _data(run: RunDir) -> str:
    try:
        return f"self-synthesised, content hash `{Dataset.open(run.path('data')).content_hash}`"
    except DataError:
        return "not in the run's folder any more"


def _results(run: RunDir, arm: str) -> str:
    """The arm's headline metrics beside base's, where the run was evaluated."""
    try:
        rows = json.loads(run.path("results.json").read_text(encoding="utf-8"))["rows"]
    except (OSError, ValueError, KeyError):
        return ""
    name, _, seed = arm.rpartition("-s")
    shown = [(BASE, None)] if arm == BASE else [(BASE, None), (name, int(seed))]
    lines = [
        f"| {subject} | {METRICS[row['metric']].label} | {row['value']:.3f} | "
        f"{row['ci_low']:.3f} to {row['ci_high']:.3f} | {row['n']} |"
        for subject, wanted in shown
        for row in rows
        if (row["arm"], row["seed"]) == (subject, wanted) and row["task"] in ("open", "qa")
        if row["metric"] in METRICS and METRICS[row["metric"]].headline and row["value"] is not None
    ]
    head = "\n| arm | metric | value | 95 % interval | instructions |\n|---|---|---|---|---|\n"
    return head + "\n".join(lines) + "\n" if lines else ""


def _parts(run: RunDir) -> list[Part]:
    """All that the weights and the data were made with."""
    recipe = run.recipe
    whole = recipe.align is not None and recipe.align.model is not None
    found = [part("speech LLM" if whole else "language model", backbone(recipe))]
    if not whole and (encoder := _encoder(recipe, run)):
        found.append(part("speech encoder", encoder))
    try:
        data = Dataset.open(run.path("data"))
    except DataError:  # it may not be here any more
        return [*found, *writer_parts({"teacher": recipe.teacher.author}, recipe)]
    servers = recipe.synth.endpoint_voices if recipe.synth else ()
    voices = voice_parts(data.manifest, bank_of_dataset(recipe, data), servers)
    return [*found, *writer_parts(data.manifest, recipe), *voices]


def _encoder(recipe: Recipe, run: RunDir) -> str | None:
    """The encoder that the connector was made from; None where a connector does not say."""
    from rbalign.stages.policy import connector_of

    try:
        made_by: dict[str, Any] = tomllib.loads((connector_of(recipe, run) / "recipe.toml").read_text("utf-8"))
        return str(made_by["connect"]["encoder"])
    except (OSError, ValueError, KeyError):
        return None
