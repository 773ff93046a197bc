"""`rba list ...`: the names that recipes may use."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, help="The names that recipes may use.")


@app.command()
def recipes() -> None:
    """Recipes that come with the package, for `rba run NAME`."""
    from rbalign.cli.show import table
    from rbalign.config.load import load_recipe, packaged_recipes

    loaded = [load_recipe(name) for name in packaged_recipes()]
    rows = [[recipe.name, " ".join(recipe.stages()), recipe.description] for recipe in loaded]
    table("recipes", ("name", "stages", "what"), rows)


@app.command()
def models() -> None:
    """Models that rba can fetch, and families of speech LLMs that it can align."""
    from rbalign import assets
    from rbalign.cli.show import size, table
    from rbalign.config.families import FAMILIES, REAL, REFUSED

    store = assets.store()
    rows = [
        [asset.name, "fetched" if store.has(asset.name) else "missing", size(asset.disk), asset.licence, asset.title]
        for asset in store.catalog.assets.values()
    ]
    table("models", ("name", "state", "disk", "licence", "what"), rows, right=("disk",))
    own = ["the embedded one", "rba_speech", REAL, "[align] connector"]
    types: dict[str, list[str]] = {}
    for model_type, family in FAMILIES.items():
        types.setdefault(family.name, []).append(model_type)
    proven = {family.name: family.proven for family in FAMILIES.values()}
    theirs = [[name, " ".join(found), proven[name], "[align] model = FOLDER"] for name, found in types.items()]
    table("speech LLMs", ("family", "model_type", "proven with", "recipe"), [own, *theirs])
    refused = [[model_type, why] for model_type, why in REFUSED.items()]
    table("speech LLMs that cannot be aligned", ("model_type", "why"), refused)


@app.command()
def voices() -> None:
    """Every voice with the split that it may serve."""
    from rbalign.cli.show import table
    from rbalign.voices.bank import load_bank

    bank = load_bank()
    infos = [bank.voice(name) for name in bank.names()]
    rows = [[info.name, str(info.split), info.engine, info.accent, info.gender] for info in infos]
    table("voices", ("name", "split", "engine", "accent", "gender"), rows)


@app.command()
def objectives() -> None:
    """What `[align] arms` may name."""
    from rbalign.cli.show import table
    from rbalign.config.mixtures import ARMS, MATCHING, TERMS

    arms = [[name, " + ".join(terms), TERMS[next(iter(terms))]] for name, terms in ARMS.items()]
    matching = [[name, name.partition("-")[0], what] for name, what in MATCHING.items()]
    own = [["your own", "any of " + " ".join(TERMS), "[align.mixtures] NAME = {TERM = WEIGHT}"]]
    table("objectives", ("arm", "terms", "what"), [*arms, *matching, *own])


@app.command()
def scorers() -> None:
    """What `[align] scorer` may name."""
    from rbalign.cli.show import table
    from rbalign.scorers.registry import SCORERS, names

    rows = []
    for name in names():
        own = SCORERS[name]
        guard = " ".join(f"{guard}={weight:g}" for guard, weight in own.guard.items())
        beside = guard if own.reads else "a scorer that reads answers"
        rows.append([name, "unsafe alone" if own.unsafe_alone else "", beside, ", ".join(own.falls_for)])
    table("scorers", ("name", "as a reward", "mix in, for each 1 of it", "falls for"), rows)


@app.command()
def tasks() -> None:
    """What `rba eval` asks, the metrics of its table, and the benchmarks of `rba score --task`."""
    from rbalign.cli.show import table
    from rbalign.eval.metrics import METRICS
    from rbalign.eval.tasks.registry import tasks as benchmarks

    rows = [
        ["open", "held-out instructions of the dataset, answered at one fixed key for each item"],
        ["qa", "human-written questions spoken by test voices, answered greedily ([eval] qa = N)"],
    ]
    table("tasks", ("name", "what"), rows)
    table(
        "metrics",
        ("name", "what", "held against", "may carry a claim"),
        [[m.name, m.label, m.reference, "yes" if m.headline else "no"] for m in METRICS.values()],
    )
    table(
        "benchmarks: rba eval --model M --tasks NAME (smoke: all that ship); rba score --task NAME FILE.jsonl",
        ("name", "what", "scorers", "ids", "data"),
        [[one.name, one.title, " ".join(one.scorers), one.ids, one.place] for one in benchmarks().values()],
    )
