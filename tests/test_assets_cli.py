"""`rba assets`: what it shows, what it exits with, and that its cure mends."""

from __future__ import annotations

import json
from pathlib import Path

import platformdirs
import pytest
from fake_packages import MODEL, World

from rbalign import assets
from rbalign.cli.main import run_command


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A cache below tmp_path, the fake catalogue, and archives only where --from points."""
    world = World(tmp_path)
    world.declare("rare", when="asked", file=[World.one("v.bin", b"x", "rba-fake-js:package/voices/v.bin")])
    monkeypatch.setenv("RBA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RBA_ASSETS", raising=False)
    monkeypatch.setattr(assets, "default", world.catalog)
    return world


def fetch_all(world: World) -> None:
    assert run_command(["assets", "fetch", "--from", str(world.shelf)]) == 0


def test_fetch_names_size_and_licence_first(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    fetch_all(world)
    shown = capsys.readouterr()
    home = world.root / "home/assets"
    assert shown.out.splitlines() == [f"{name}\t{home / name}" for name in ("model", "texts", "voice", "sound")]
    told = shown.err.splitlines()
    assert "to fetch: 4 (" in told[0]
    assert [line.endswith("; none") for line in told if " to fetch, " in line] == [True] * 4
    fetch_all(world)
    assert "4 of 4 assets are in" in capsys.readouterr().err


def test_list_tells_state_and_packages(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    run_command(["assets", "fetch", "model", "--from", str(world.shelf)])
    capsys.readouterr()
    assert run_command(["assets", "list", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["name"]: row["fetched"] for row in rows if row["name"] in ("model", "rare")} == {
        "model": True,
        "rare": False,
    }
    assert rows[0]["packages"] == ["rba-fake-part-one==1.0", "rba-fake-part-two==1.0"]
    assert run_command(["assets", "list"]) == 0
    table = capsys.readouterr().out
    assert "missing" in table
    assert "on request" in table


def test_verify_fails_on_damage_and_its_cure_mends(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    fetch_all(world)
    assert run_command(["assets", "verify"]) == 0
    path = world.root / "home/assets/model/model.bin"
    path.write_bytes(MODEL[::-1])
    capsys.readouterr()
    assert run_command(["assets", "verify"]) == 1
    shown = capsys.readouterr()
    assert "model\tmodel.bin has changed" in shown.out
    cure = shown.err.split("→ rba ")[1].split()
    assert run_command([*cure, "--from", str(world.shelf)]) == 0
    assert path.read_bytes() == MODEL
    assert run_command(["assets", "verify"]) == 0


def test_names_are_checked_before_anything_is_fetched(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["assets", "fetch", "texts", "modle", "--from", str(world.shelf)]) == 2
    assert "did you mean 'model'?" in capsys.readouterr().err
    assert not (world.root / "home").exists()


def test_the_environment_names_home_folder_and_mirror(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBA_ASSETS", str(world.shelf))
    assert assets.folder("sound") == world.root / "home/assets/sound"
    monkeypatch.setenv("RBA_MIRROR", "somewhere")
    assert assets.store((world.root,)).folders == (world.root, world.shelf)
    assert assets.store().mirror == "somewhere"


def test_the_default_home_is_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RBA_HOME", raising=False)
    assert assets.home() == platformdirs.user_cache_path("rba")
    monkeypatch.setenv("RBA_HOME", "~/elsewhere")
    assert assets.home() == Path.home() / "elsewhere"
