"""`rba card`: what a dataset is, who wrote and spoke it, what was left out and how to make it again, as a README.md."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tomli_w
import yaml

from rbalign.config.recipe import Recipe
from rbalign.data.dataset import Dataset
from rbalign.data.export import data_files
from rbalign.data.shards import RATE
from rbalign.rundir.files import stable_hash
from rbalign.stages.inspect import label_rows, topic_lines, unspoken
from rbalign.stages.licences import (
    TEACHER,
    TRANSLATOR,
    UNKNOWN,
    Part,
    cell,
    hub_licences,
    is_place,
    last_name,
    licence_table,
    voice_parts,
    writer_parts,
)
from rbalign.stages.named import NamedDataset
from rbalign.synth.labels import PAPER
from rbalign.synth.recordings import voice_name

CARD = """# {name}

{summary}

## Splits

{splits}

Another speed, channel or delivery of a voice is the same voice.

## Files

{files}

## Made with

{licences}

{differ}

## How to make it again

{reproduce}

## Filters

{filters}
{labels}
## Known limits

- {speech_limit}
- {text_limit}
- {language_limit}
"""

WRITTEN_LIMIT = (
    "One teacher wrote everything. Its mistakes, tastes and gaps are in the answers; nobody has checked them."
)
TRANSLATED_LIMIT = (
    "One model wrote the texts and another translated them. Their mistakes are in the translations; nobody has checked "
    "them."
)
SYNTHETIC_LIMIT = (
    "The speech is synthetic: clean, read aloud, without the hesitations, noise and rooms of people, except where "
    "`channel`\n  or `delivery` says otherwise. Numbers measured on it do not carry over to recordings of people "
    "unchecked."
)
RECORDED_LIMIT = (
    "The speech is recordings of people, brought along with their transcripts: their licence and consent are the "
    "source's.\n  Who speaks is not known: one person may speak in several splits, unless the source keeps them apart."
)
FILES = {
    None: (
        "`views/SPLIT-NNNNN.parquet` holds the clips (`audio`: FLAC or Ogg bytes, {rate} Hz, mono) with `voice`, "
        "`speed`, `channel`, `delivery`, `seconds`; `examples-NNNNN.jsonl` the texts, joined by `example_id` = `id`; "
        "`manifest.json` counts and a hash for every file."
    ),
    "audiofolder": '`load_dataset("audiofolder", data_dir=...)`: a row of `SPLIT/metadata.jsonl` for each clip.',
    "ms-swift": "ms-swift: `SPLIT-sft.jsonl` to imitate the teacher's answers, `SPLIT-grpo.jsonl` for rewards.",
    "verl": "verl's RLHFDataset: `SPLIT.parquet`, the clips beside it.",
}
KINDS = {
    "instructions": ("instructions", "wrote the instructions and the answers"),
    "qa": ("questions", "wrote the questions, the answers and other ways to say them"),
    "s2tt": ("sentences", "wrote the sentences and translated them"),
}
"""Of a manifest: what an example is, and what the teacher did."""
MOST_VALUES = 12
"""Of a label, that the card shows; the rest is summed."""
WORDS = frozenset({"system", "answer_system", "pre_query", "stop"})
"""Keys of a recipe that hold words for a model: "</s>" is no path."""
FOLDERS = frozenset({"template", "speakers"})
"""Keys of a server's table that hold a place of this machine."""
ADDRESS = re.compile(r"(https?://)(?:[^\s/?#]*@)?([^\s?#]*)(?:[?#]\S*)?", re.IGNORECASE)
"""Scheme, user and password, what may be told, query."""
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def dataset_card(named: NamedDataset, form: str | None = None) -> str:
    """The card of a dataset folder, or of its export in a format. Reads every example once; holds no path."""
    manifest = named.dataset.manifest
    parts = _parts(named)
    front = yaml.safe_dump(_front(named, parts, form), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n" + CARD.format(
        name=cell(named.name),
        summary=_summary(manifest, parts),
        splits=_splits(manifest["splits"]),
        files=FILES[form].format(rate=manifest.get("rate", RATE)),
        licences=licence_table(parts),
        differ=_differ(parts),
        reproduce=_reproduce(named),
        filters=_filters(named),
        labels=_by_tagger(manifest) + _labels(named.dataset),
        speech_limit=RECORDED_LIMIT if _is_recorded(manifest) else SYNTHETIC_LIMIT,
        text_limit=TRANSLATED_LIMIT if "translator" in manifest else WRITTEN_LIMIT,
        language_limit=_language_limit(named.languages),
    )


def _parts(named: NamedDataset) -> list[Part]:
    """Who wrote and who spoke."""
    manifest, recipe = named.dataset.manifest, named.recipe
    spoken = recipe.synth if recipe and not _is_recorded(manifest) else None
    return writer_parts(manifest, recipe) + voice_parts(manifest, servers=spoken.endpoint_voices if spoken else ())


def _front(named: NamedDataset, parts: Sequence[Part], form: str | None) -> dict[str, Any]:
    """The YAML that dataset hubs read."""
    splits = named.dataset.manifest["splits"]
    clips = sum(table["views"] for table in splits.values())
    licences = hub_licences(parts)
    licence: dict[str, Any] = {"license": licences if len(licences) > 1 else licences[0]}
    if "other" in licences:
        licence = {"license": "other", "license_name": "see-made-with"}
    return {
        "pretty_name": named.name,
        **licence,
        "language": named.languages,
        "task_categories": ["audio-text-to-text", "automatic-speech-recognition"],
        "size_categories": [next((name for most, name in SIZES if clips < most), "n>1M")],
        "tags": ["speech", "synthetic", "instruction-following", "rbalign"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": path} for name, path in data_files(form, splits).items()],
            }
        ],
    }


def _summary(manifest: Mapping[str, Any], parts: Sequence[Part]) -> str:
    splits = manifest["splits"].values()
    clips, texts = sum(table["views"] for table in splits), sum(table["examples"] for table in splits)
    hours = sum(table["seconds"] for table in splits) / 3600
    voices = len({voice for table in splits for voice in table["voices"]})
    wrote = next((cell(each.name) for each in parts if each.role == TEACHER), None)
    what, work = KINDS.get(manifest.get("kind", ""), KINDS["instructions"])
    if _is_recorded(manifest):
        work = "translated the transcripts"
    if translator := next((cell(each.name) for each in parts if each.role == TRANSLATOR), None):
        work = f"wrote the {what}, {translator} translated them"
    text = f"{texts:,} {what} in {clips:,} clips ({hours:.2f} h, {voices} distinct voices), made with rba: "
    text += f"{wrote} {work}. " if wrote else "the manifest names no teacher. "
    if wrote and all(each.licence != UNKNOWN for each in parts):
        text += "Synthesised voices speak them; no human wrote, spoke or labelled any of it."
    return f"{text.rstrip()}\n\nContent hash: `{manifest['content_hash']}`"


def _is_recorded(manifest: Mapping[str, Any]) -> bool:
    voices = {voice for table in manifest["splits"].values() for voice in table["voices"]}
    return any(voice_name(split) in voices for split in manifest["splits"])


def _language_limit(languages: Sequence[str]) -> str:
    if len(languages) > 1:
        return f"One direction only: {cell(languages[0])} is said, {cell(languages[1])} is written."
    return "English only." if languages == ["en"] else f"One language only: {cell(languages[0])}."


def _splits(splits: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            f"{table['examples']:,}",
            f"{table['views']:,}",
            f"{table['seconds'] / 3600:.2f}",
            table["distinct_voices"],
            ", ".join(map(last_name, table["voices"])) or "none",
        ]
        for name, table in splits.items()
    ]
    return _table(["split", "instructions", "clips", "hours", "distinct voices", "voices"], rows)


def _differ(parts: Sequence[Part]) -> str:
    """Whether one licence covers everything."""
    licences = sorted({each.licence for each in parts})
    if len(licences) == 1 and licences[0] != UNKNOWN:
        return f"All parts are {licences[0]}."
    text = "The parts differ: texts follow the licences of whoever wrote and translated them, clips the one of the "
    text += "engine that speaks their voice."
    if UNKNOWN in licences:
        text += " Where none stands, ask where that part came from before passing the dataset on."
    return text


def _reproduce(named: NamedDataset) -> str:
    manifest, recipe = named.dataset.manifest, named.recipe
    told = str(manifest.get("recipe", "unknown"))
    before = f"Seed {manifest['seed']}. " if "seed" in manifest else ""
    if "made_from" in manifest:
        before += f"Its clips were encoded again, from the dataset with content hash `{manifest['made_from']}`. "
    if recipe is None or recipe.synth is None:
        return (
            f"{before}There is no recipe beside this dataset, so the card says only what the manifest knows: hash of "
            f"the recipe's [synth] section `{told}`."
        )
    own = stable_hash(recipe.synth.model_dump(mode="json"))[:16]
    if own == told:
        made = "The manifest names this recipe by its hash."
    else:
        made = f"The manifest names a recipe with hash `{told}`; as this version of rba reads the one below, it is"
        made += f" `{own}`: keys were added since, or it was changed."
    return (
        f"{before}{_environment(named)}With this as `recipe.toml` (of folders, only the last names are shown)\n\n"
        f"```bash\nrba synth recipe.toml\n```\n\nwrites it to `runs/{recipe.name}/data`; the manifest.json there shows "
        f"the same content hash if nothing else differed. {made}\n\n```toml\n{_toml(recipe)}```"
    )


def _environment(named: NamedDataset) -> str:
    """Which versions of rba worked on the run."""
    if named.run is None:
        return ""
    try:
        entries = json.loads((named.run / "environment.json").read_text(encoding="utf-8"))
        versions = dict.fromkeys((str(entry["rbalign"]), str(entry["commit"])) for entry in entries)
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    made = [version + ("" if commit == "None" else f" (commit {commit})") for version, commit in versions]
    return f"Made with rba {', '.join(made)}. "


def _toml(recipe: Recipe) -> str:
    """What `rba synth` reads: it refuses texts that the run's connector has heard, so that is in it, too."""
    table = recipe.model_dump(mode="json", exclude_none=True, include={"name", "seed", "teacher", "synth", "connect"})
    if recipe.connect is None and recipe.align is not None:
        chosen = {"model": recipe.align.model} if recipe.align.model else {"connector": recipe.align.connector}
        table["align"] = chosen
    return tomli_w.dumps(_without_paths(table))


def _without_paths(value: Any, named: bool = False) -> Any:
    """The same value with every path cut to its last name, and no address with a password or a query.

    Words for a model stay as they are. So do a server's names for things ("Qwen/Qwen3-8B": `named`), unless they
    are places of a machine; elsewhere whatever holds a slash and no space may be one.
    """
    if isinstance(value, dict):
        named = named or "url" in value
        return {
            key: inner if key in WORDS else _without_paths(inner, (named or key == "voices") and key not in FOLDERS)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_without_paths(inner, named) for inner in value]
    if not isinstance(value, str):
        return value
    public = ADDRESS.sub(r"\1\2", value)
    return last_name(public) if is_place(value) or not (named or re.search(r"\s", value)) else public


def _filters(named: NamedDataset) -> str:
    """Thresholds, and what fell to which filter."""
    manifest, recipe = named.dataset.manifest, named.recipe
    text = ""
    if recipe is not None and recipe.synth is not None:
        rules = _without_paths(recipe.synth.filters.model_dump(mode="json"))
        shown = [
            [f"`{name}`", (", ".join(value) or "none") if isinstance(value, list) else value]
            for name, value in rules.items()
        ]
        text = _table(["filter", "value"], shown) + "\n\n"
    candidates, dropped = manifest.get("candidates"), Counter(manifest.get("dropped", {}))
    if candidates is None:
        text += "The manifest does not say what was dropped."
    else:
        accepted = candidates - dropped.total()
        rows = [
            ["candidates", f"{candidates:,}", "100.0 %"],
            ["**accepted**", f"{accepted:,}", _share(accepted, candidates)],
        ]
        rows += [[cell(cause), f"{count:,}", _share(count, candidates)] for cause, count in dropped.most_common()]
        text += _table(["what became of them", "how many", "share"], rows)
    if lost := unspoken(named.dataset.folder):
        reasons = ", ".join(f"{len(views):,} {cell(reason)}" for reason, views in lost.items())
        text += f"\n\nClips that no voice could make: {reasons}."
    return text


def _by_tagger(manifest: Mapping[str, Any]) -> str:
    """Topic and difficulty beside the paper's shares; "" if nobody labelled."""
    rows = label_rows(manifest)
    if not rows:
        return ""
    lines = [f"{line[0].upper()}{line[1:]}." for line in topic_lines(manifest)]
    tagger = cell(last_name(manifest["labels"]["tagger"]))
    text = f"{tagger} labelled the instructions; nobody has checked that. The paper is RBA."
    table = _table(["label", "value", "instructions", "share", "share in the paper"], rows)
    return "\n## Topics and difficulty\n\n" + "\n\n".join([text, *lines, table]) + "\n"


def _labels(dataset: Dataset) -> str:
    """How the examples' other labels are distributed; "" if they have none. Lists and tables are only counted."""
    values: dict[str, Counter[str]] = {}
    total, by_tagger = 0, "labels" in dataset.manifest
    for example in dataset.iter_examples():
        total += 1
        for key, value in example.labels.items():
            if key in PAPER and by_tagger:
                continue
            word = "(several values)" if isinstance(value, list | dict) else str(value)
            values.setdefault(key, Counter())[word if len(word) <= 60 else word[:59] + "…"] += 1
    rows: list[list[str]] = []
    for key, counts in sorted(values.items()):
        shown = counts.most_common(MOST_VALUES)
        if rest := counts.total() - sum(count for _, count in shown):
            shown.append((f"({len(counts) - MOST_VALUES:,} others)", rest))
        rows += [[cell(key), cell(value), f"{count:,}", _share(count, total)] for value, count in shown]
    if not rows:
        return ""
    return "\n## Labels\n\n" + _table(["label", "value", "instructions", "share"], rows) + "\n"


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:.1f} %" if total else "-"


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])
