"""`rba export-data`: a dataset in another trainer's format, with its card."""

from __future__ import annotations

from pathlib import Path

from rbalign.data.export import FORMATS, Exported, export_dataset
from rbalign.errors import unknown
from rbalign.rundir.files import refuse_taken
from rbalign.stages.card import dataset_card
from rbalign.stages.named import NamedDataset, dataset_named


def export_data(place: str, form: str, out: Path, system: str | None = None, runs: Path = Path("runs")) -> Exported:
    """Write the dataset of a folder, a run or a recipe to `out`, which must not exist or be empty.

    system: the system prompt of the conversations; None takes the one under which the teacher answered, where the
    recipe is known, "" leaves it out. Raises as `export_dataset` and `dataset_named`.
    """
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    refuse_taken(out)
    named = dataset_named(place, runs)
    prompt = teacher_prompt(named) if system is None else system
    return export_dataset(named.dataset, form, out, prompt, {"README.md": dataset_card(named, form)})


def teacher_prompt(named: NamedDataset) -> str | None:
    """What the teacher was told before each instruction; None if it did not answer, or nobody knows."""
    synth = named.recipe.synth if named.recipe else None
    return synth.answer_system if synth and synth.answers else None
