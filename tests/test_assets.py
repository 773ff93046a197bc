"""Assets: what is pinned arrives whole from each source, what is not pinned never does, a finished folder is enough."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fake_packages import MODEL, SOUND, TEXTS, VOICE, World, sha256, tar_bytes, write_deb, write_wheel
from pytest_httpserver import HTTPServer

from rbalign.assets import catalog as catalogs
from rbalign.assets import folder, registries
from rbalign.assets.store import MANIFEST, Store
from rbalign.errors import AssetError, UsageError


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def no_registry(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Registries that have nothing; the list of packages that they were asked for."""
    asked: list[str] = []

    def download(package: catalogs.Package, folder: Path) -> Path:
        asked.append(package.name)
        raise AssetError(f"no {package.name} here")

    monkeypatch.setattr(registries, "download", download)
    return asked


def store(world: World, *folders: Path, mirror: str = "") -> Store:
    return Store(world.root / "home", world.catalog(), folders, mirror)


def nothing_half(world: World) -> bool:
    """Whether the cache holds locks and finished folders only."""
    names = [path.name for path in (world.root / "home" / "assets").iterdir()]
    return all(name.endswith(".lock") or (world.root / "home/assets" / name / MANIFEST).exists() for name in names)


def test_every_kind_of_archive_from_a_named_folder(world: World, no_registry: list[str]) -> None:
    s = store(world, world.shelf)
    assert (s.folder("model") / "model.bin").read_bytes() == MODEL
    assert {name: (s.folder("texts") / "texts" / name).read_bytes() for name in TEXTS} == TEXTS
    assert (s.folder("voice") / "v.bin").read_bytes() == VOICE
    assert (s.folder("sound") / "s.wav").read_bytes() == SOUND
    assert no_registry == []
    assert nothing_half(world)


def test_a_finished_folder_needs_no_source(world: World, no_registry: list[str]) -> None:
    place = store(world, world.shelf).folder("model")
    shutil.rmtree(world.shelf)
    assert store(world).folder("model") == place
    assert no_registry == []
    assert store(world).verify("model") == []


def test_an_unpacked_file_by_its_name(world: World, no_registry: list[str]) -> None:
    unpacked = world.root / "mine" / "model"
    unpacked.mkdir(parents=True)
    (unpacked / "model.bin").write_bytes(MODEL)
    assert (store(world, world.root / "mine").folder("model") / "model.bin").read_bytes() == MODEL
    (world.root / "mine" / "v.bin").write_bytes(VOICE[::-1])
    with pytest.raises(AssetError, match="no rba-fake-js here"):
        store(world, world.root / "mine").folder("voice")


def test_registry_then_runner_up_then_mirror(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(package: catalogs.Package, folder: Path) -> Path:
        asked.append(package.name)
        if package.name != "rba-fake-runner-up":
            raise AssetError(f"no {package.name} here")
        return Path(shutil.copy(world.shelf / package.archive, folder))

    monkeypatch.setattr(registries, "download", download)
    assert (store(world).folder("model") / "model.bin").read_bytes() == MODEL
    assert asked == ["rba-fake-part-one", "rba-fake-runner-up"]
    assert '"rba-fake-runner-up"' in (world.root / "home/assets/model" / MANIFEST).read_text()
    place = store(world, mirror=str(world.shelf)).folder("voice")
    assert (place / "v.bin").read_bytes() == VOICE
    assert asked[2:] == ["rba-fake-js"]


def test_mirror_by_address(world: World, no_registry: list[str], httpserver: HTTPServer) -> None:
    archive = world.shelf / "rba-fake-deb_1.0_all.deb"
    httpserver.expect_request(f"/base/{archive.name}").respond_with_data(archive.read_bytes())
    s = store(world, mirror=httpserver.url_for("/base/"))
    assert (s.folder("sound") / "s.wav").read_bytes() == SOUND
    with pytest.raises(AssetError, match=r"mirror could not give rba-fake-js-1\.0\.tgz: HTTP Error 500"):
        s.folder("voice")


def test_all_reasons_and_the_cure_in_one_line(world: World, no_registry: list[str]) -> None:
    with pytest.raises(AssetError) as caught:
        store(world).folder("model")
    assert "no rba-fake-part-one here; no rba-fake-runner-up here" in str(caught.value)
    assert "--from FOLDER" in caught.value.cure
    assert nothing_half(world)


def test_a_wrong_archive_is_never_opened(world: World, no_registry: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Same name, other content: from a folder it is left aside, from a registry or mirror it is refused."""
    write_wheel(world.shelf, "rba-fake-part-one", "1.0", {"one/part.bin": b"evil"})
    write_wheel(world.shelf, "rba-fake-runner-up", "1.0", {"all/model.bin": b"evil"})

    def opened(path: Path) -> None:
        raise AssertionError(f"{path} was opened")

    monkeypatch.setattr("rbalign.assets.archives.opened", opened)
    with pytest.raises(AssetError, match=r"sha256 .* pinned is"):
        store(world, world.shelf, mirror=str(world.shelf)).folder("model")
    assert no_registry == ["rba-fake-part-one", "rba-fake-runner-up"]
    assert nothing_half(world)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sha256": "0" * 64}, "not the file that the catalogue pins"),
        ({"bytes": len(VOICE) + 1}, "not the file that the catalogue pins"),
        ({"bytes": len(VOICE) - 1}, "longer than the 999 bytes"),
        ({"from": ["rba-fake-js:package/other"]}, "holds no 'package/other'"),
    ],
)
def test_a_member_must_be_what_is_pinned(
    world: World, no_registry: list[str], change: dict[str, object], said: str
) -> None:
    entry = World.one("v.bin", VOICE, "rba-fake-js:package/voices/v.bin")
    world.declare("voice", file=[entry | change])
    with pytest.raises(AssetError, match=said):
        store(world, world.shelf).folder("voice")
    assert nothing_half(world)


def test_a_tree_must_be_what_is_pinned(world: World, no_registry: list[str]) -> None:
    (entry,) = world.table["asset"]["texts"]["tree"]  # type: ignore[misc]
    for change in ({"count": 3}, {"sha256": "0" * 64}, {"bytes": 12}):
        world.declare("texts", tree=[entry | change])
        with pytest.raises(AssetError, match="not what the catalogue pins"):
            store(world, world.shelf).folder("texts")
    assert nothing_half(world)


def test_paths_that_leave_the_folder_are_refused(world: World, no_registry: list[str]) -> None:
    path = write_deb(world.shelf / "rba-fake-deb_1.0_all.deb", {"./in/../../../out.txt": b"x"})
    world.table["package"]["rba-fake-deb"] |= {"sha256": sha256(path.read_bytes()), "bytes": path.stat().st_size}
    tree = {"from": "rba-fake-deb:./in/", "into": "", "count": 1, "bytes": 1, "sha256": "0" * 64}
    world.declare("sound", tree=[tree])
    with pytest.raises(AssetError, match="leaves the asset's folder"):
        store(world, world.shelf).folder("sound")
    world.declare("voice", file=[World.one("../v.bin", VOICE, "rba-fake-js:package/voices/v.bin")])
    with pytest.raises(AssetError, match="leaves the asset's folder"):
        world.catalog()


def test_an_archive_that_is_none(world: World, no_registry: list[str]) -> None:
    """A pinned hash does not make a zip: the error says so instead of a traceback."""
    broken = {"rba-fake-js": b"no gzip", "rba-fake-deb": b"!<arch>\nno deb"}
    for name, content in broken.items():
        package = world.table["package"][name]
        (world.shelf / str(package["archive"])).write_bytes(content)
        package |= {"sha256": sha256(content), "bytes": len(content)}
    for asset in ("voice", "sound"):
        with pytest.raises(AssetError, match=r"not a readable archive|not a Debian package|holds no data.tar"):
            store(world, world.shelf).folder(asset)


def test_verify_sees_each_kind_of_damage(world: World, no_registry: list[str]) -> None:
    s = store(world, world.shelf)
    assert s.verify("texts") == ["not fetched"]
    place = s.folder("texts")
    (place / "texts/a.txt").write_bytes(b"alphA\n")
    (place / "texts/deep/b.txt").unlink()
    assert s.verify("texts") == ["texts/a.txt has changed", "texts/deep/b.txt is missing"]


def test_a_truncated_or_missing_file_is_made_again(world: World, no_registry: list[str]) -> None:
    s = store(world, world.shelf)
    (s.folder("model") / "model.bin").write_bytes(MODEL[:-1])
    assert not s.has("model")
    assert (s.folder("model") / "model.bin").read_bytes() == MODEL
    (s.folder("model") / "model.bin").unlink()
    assert (s.folder("model") / "model.bin").read_bytes() == MODEL
    (s.folder("model") / MANIFEST).write_text("{")
    assert (s.folder("model") / "model.bin").read_bytes() == MODEL
    assert s.verify("model") == []


def test_a_changed_declaration_makes_the_folder_anew(world: World, no_registry: list[str]) -> None:
    store(world, world.shelf).folder("voice")
    write_wheel(world.shelf, "rba-fake-js", "2.0", {"v": b"new"})
    archive = world.shelf / "rba-fake-js-2.0.tgz"
    archive.write_bytes(tar_bytes({"package/v": b"new"}, "w:gz"))
    world.table["package"]["rba-fake-js"] |= {"archive": archive.name, "sha256": sha256(archive.read_bytes())}
    world.declare("voice", file=[World.one("v.bin", b"new", "rba-fake-js:package/v")])
    assert store(world).verify("voice") == [
        "made from another declaration",
    ]
    assert (store(world, world.shelf).folder("voice") / "v.bin").read_bytes() == b"new"


def test_remove_and_fetch_again(world: World, no_registry: list[str]) -> None:
    s = store(world, world.shelf)
    s.fetch(["model", "texts"])
    s.remove("model")
    assert (s.has("model"), s.has("texts")) == (False, True)
    assert nothing_half(world)


def test_an_archive_that_two_assets_share_is_downloaded_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(package: catalogs.Package, folder: Path) -> Path:
        asked.append(package.name)
        return Path(shutil.copy(world.shelf / package.archive, folder))

    monkeypatch.setattr(registries, "download", download)
    store(world).fetch(["model", "texts"])
    assert asked == ["rba-fake-part-one", "rba-fake-part-two"]
    assert [path.name for path in (world.root / "home/downloads").iterdir() if path.suffix != ".lock"] == []


def test_too_little_space_is_said_before_the_fetch(
    world: World, no_registry: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(10, 9, 1)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(AssetError, match=r"needs .* for a moment") as caught:
        store(world, world.shelf).folder("model")
    assert "RBA_HOME" in caught.value.cure
    assert no_registry == []


def test_a_home_that_cannot_be_written(world: World) -> None:
    (world.root / "home").write_text("a file")
    with pytest.raises(AssetError, match="cannot be written") as caught:
        store(world, world.shelf).folder("model")
    assert "RBA_HOME" in caught.value.cure


def test_unknown_names_suggest_the_near_one() -> None:
    with pytest.raises(UsageError, match="did you mean 'kokoro'"):
        folder("kokorro")


def test_a_catalogue_must_declare_its_packages(world: World) -> None:
    world.declare("voice", file=[World.one("v.bin", VOICE, "rba-fake-sj:package/voices/v.bin")])
    with pytest.raises(AssetError, match="'rba-fake-sj', not declared"):
        world.catalog()


def test_the_shipped_catalogue() -> None:
    """Facts that other modules rely on: 28 English voices, the pins of the two models that have public hashes."""
    shipped = catalogs.default()
    voices = [sources[0].name for sources in shipped.asset("kokoro").files if sources[0].name.startswith("voices/")]
    by_accent = [sum(name.startswith(f"voices/{kind}_") for name in voices) for kind in ("af", "am", "bf", "bm")]
    assert by_accent == [11, 9, 4, 4]
    assert shipped.asset("whisper-tiny.en").files[0][0].sha256.startswith("d3dd57d32accea0b295c96e26691aa14")
    assert shipped.asset("smollm2-135m-instruct").files[0][0].sha256.startswith("b179c9523d0e6a0f98a330c7562b6827")
    default = [asset for asset in shipped.assets.values() if asset.when == "default"]
    kinds = {shipped.packages[name].kind for asset in default for name in asset.packages}
    assert kinds == {"wheel", "npm"}, "a bare fetch needs no apt"
    for asset in shipped.assets.values():
        assert asset.licence
        assert asset.title
