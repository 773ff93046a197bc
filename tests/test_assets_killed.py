"""A fetch that is killed anywhere leaves nothing half, and two at once fetch once. Real processes, real SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_packages import MODEL, World
from killing import killed_at

from rbalign.assets.store import Store

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="fork and SIGKILL are POSIX")


def in_child(work: Callable[[], None], kill_at: int) -> tuple[int, bool]:
    """Run `work` in a fork that kills itself at its `kill_at`-th audited operation (open, rename, mkdir, link, process
    start, folder scan: PEP 578). Returns (operations that were survived, whether it was killed)."""

    def watch(tick: Callable[[], None]) -> None:
        def count(event: str, arguments: tuple[object, ...]) -> None:
            if event.split(".")[0] in {"open", "os", "shutil", "tempfile", "subprocess"}:
                tick()

        sys.addaudithook(count)

    survived, how = killed_at(work, watch, kill_at)
    return survived, how == "killed"


def check_whole(store: Store) -> None:
    """What a killed fetch left is finished or absent, and the next fetch is whole with nothing beside it."""
    if store.has("model"):
        assert store.verify("model") == []
    assert (store.folder("model") / "model.bin").read_bytes() == MODEL
    assert store.verify("model") == []
    deadline = time.monotonic() + 20  # a client whose parent was killed may write for a moment yet
    while list(store.assets.glob(".partial*")) and time.monotonic() < deadline:
        time.sleep(0.1)
        store.folder("model")
    assert list(store.assets.glob(".partial*")) == []
    assert [path.name for path in (store.home / "downloads").glob("*") if path.suffix != ".lock"] == []


@pytest.mark.parametrize("damaged", [False, True], ids=["new", "replacing a damaged folder"])
def test_killed_at_every_operation(tmp_path: Path, damaged: bool) -> None:
    world = World(tmp_path)
    catalog = world.catalog()
    n, killed = 0, True
    while killed:
        n += 1
        store = Store(tmp_path / f"home{n}", catalog, (world.shelf,))
        if damaged:
            (store.folder("model") / "model.bin").write_bytes(b"short")
        killed = in_child(lambda s=store: s.fetch(["model"]), kill_at=n)[1]  # type: ignore[misc]
        check_whole(store)
    assert n > 25, "the hook sees the fetch's operations"


@pytest.fixture
def pip_reads_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """pip without any index: the real client, its archives from one folder."""

    def only(folder: Path) -> None:
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(folder))

    return only


def test_killed_while_pip_downloads(tmp_path: Path, pip_reads_only: Callable[[Path], None]) -> None:
    world = World(tmp_path)
    catalog = world.catalog()
    pip_reads_only(world.shelf)
    total, _ = in_child(lambda: Store(tmp_path / "free", catalog).fetch(["model"]), kill_at=0)
    killed = 0
    for n in range(1, total, max(total // 4, 1)):
        store = Store(tmp_path / f"home{n}", catalog)
        killed += in_child(lambda s=store: s.fetch(["model"]), kill_at=n)[1]  # type: ignore[misc]
        check_whole(store)
    assert killed >= 3


FETCH = """
import sys
from pathlib import Path
from rbalign.assets.catalog import load
from rbalign.assets.store import Store
print(Store(Path(sys.argv[1]), load(Path(sys.argv[2]))).folder("model"))
"""
NO_SOCKETS = """
import socket
def refuse(*args, **kwargs):
    raise AssertionError("a socket was asked for")
socket.socket.__init__ = socket.create_connection = socket.getaddrinfo = refuse
"""


def start(world: World, code: str = FETCH) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, str(world.root / "home"), str(world.catalog_path())]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_fetch_once(tmp_path: Path, pip_reads_only: Callable[[Path], None]) -> None:
    world = World(tmp_path)
    pip_reads_only(world.shelf)
    both = [start(world), start(world)]
    outs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outs
    assert outs[0][0] == outs[1][0]
    assert sum("ready in" in err for _, err in outs) == 1
    assert sum("another process is fetching it" in err for _, err in outs) <= 1


def test_offline_after_the_first_fetch(tmp_path: Path, pip_reads_only: Callable[[Path], None]) -> None:
    """First through the real pip; then in a process whose sockets and indexes are gone, the folder is still there."""
    world = World(tmp_path)
    pip_reads_only(world.shelf)
    first = start(world)
    assert first.communicate(timeout=120)[0].strip() == str(tmp_path / "home/assets/model")
    pip_reads_only(tmp_path / "nowhere")
    second = start(world, NO_SOCKETS + FETCH)
    out, err = second.communicate(timeout=120)
    assert out.strip() == str(tmp_path / "home/assets/model"), err
    assert err == ""


def test_a_registry_without_the_package_is_quoted(tmp_path: Path, pip_reads_only: Callable[[Path], None]) -> None:
    world = World(tmp_path)
    pip_reads_only(tmp_path)
    process = start(world)
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert "No matching distribution found for rba-fake-part-one==1.0" in err
    assert "--from FOLDER" in err


def test_interrupt_ends_pip_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the client runs: no orphan goes on downloading, and the work folder is gone."""
    world = World(tmp_path)
    marker = tmp_path / "pid"
    slow = f"import os, time; open({str(marker)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"""
import sys
from rbalign.assets import registries
registries._pip_command = lambda: (sys.executable, "-c", {slow!r})
{FETCH}"""
    process = start(world, code)
    deadline = time.monotonic() + 60
    while not (marker.exists() and marker.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    with pytest.raises(ProcessLookupError):
        os.kill(int(marker.read_text()), 0)
    assert [path for path in (tmp_path / "home/assets").iterdir() if path.name.startswith(".partial")] == []
