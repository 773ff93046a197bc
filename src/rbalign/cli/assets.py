"""`rba assets list | fetch | verify`: the models, voices and texts that rba runs on by default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Models, voices and texts by name, version and hash.")

Names = Annotated[list[str] | None, typer.Argument(help="Asset names; without any: all that a bare fetch brings.")]


@app.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False) -> None:
    """Every asset with licence, size and whether it is in the cache."""
    from rich.console import Console
    from rich.table import Table

    from rbalign import assets

    store = assets.store()
    rows = [
        {
            "name": asset.name,
            "title": asset.title,
            "licence": asset.licence,
            "provenance": asset.provenance,
            "fetched": store.has(asset.name),
            "download_bytes": store.catalog.download_bytes(asset),
            "disk_bytes": asset.disk,
            "when": asset.when,
            "packages": [f"{name}=={store.catalog.packages[name].version}" for name in asset.packages],
        }
        for asset in store.catalog.assets.values()
    ]
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row))
        return
    table = Table(title=f"assets in {store.home}", title_justify="left", box=None, pad_edge=False)
    for header in ("name", "download", "on disk", "state", "licence", "what"):
        table.add_column(header, no_wrap=header not in ("what", "licence"))
    for row, asset in zip(rows, store.catalog.assets.values(), strict=True):
        state = "fetched" if row["fetched"] else "missing" if asset.when == "default" else "on request"
        sizes = assets.megabytes(store.catalog.download_bytes(asset)), assets.megabytes(asset.disk)
        table.add_row(asset.name, *sizes, state, asset.licence, asset.title)
    Console().print(table)


@app.command()
def fetch(
    names: Names = None,
    from_: Annotated[
        Path | None,
        typer.Option("--from", exists=True, file_okay=False, help="A folder with package archives or unpacked files."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also what is otherwise fetched by name only.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Throw the cached folder away first.")] = False,
) -> None:
    """Fetch assets, check them, convert them once. What is there already costs nothing."""
    from rbalign import assets

    store = assets.store((from_,) if from_ else ())
    default = [asset.name for asset in store.catalog.assets.values() if everything or asset.when == "default"]
    wanted = [store.catalog.asset(name).name for name in dict.fromkeys(names or default)]
    missing = [name for name in wanted if again or not store.has(name)]
    declared = [store.catalog.asset(name) for name in missing]
    archives = {package for asset in declared for package in asset.packages}
    download = sum(store.catalog.packages[package].bytes for package in archives)
    typer.echo(
        f"{len(wanted) - len(missing)} of {len(wanted)} assets are in {store.home}; to fetch: {len(missing)} "
        f"({assets.megabytes(download)}, {assets.megabytes(sum(asset.disk for asset in declared))} on disk)",
        err=True,
    )
    if again:
        for name in missing:
            store.remove(name)
    store.fetch(missing)
    for name in wanted:
        typer.echo(f"{name}\t{store.folder(name)}")


@app.command()
def verify(names: Names = None) -> None:
    """Read every cached file again and compare its hash; exit code 1 when one has changed."""
    from rbalign import assets
    from rbalign.errors import AssetError

    store = assets.store()
    chosen = names or [name for name in store.catalog.assets if store.has(name)]
    damaged = []
    for name in chosen:
        problems = store.verify(name)
        typer.echo(f"{name}\t{'; '.join(problems) or 'whole'}")
        if problems:
            damaged.append(name)
    if damaged:
        raise AssetError(f"damaged: {', '.join(damaged)}", f"rba assets fetch --again {' '.join(damaged)}")
    if not chosen:
        typer.echo("nothing is fetched yet: rba assets fetch", err=True)
