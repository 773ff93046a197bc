"""The house: what the lock holds, what an import costs, where the source may point, how long a file may be."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
LOCK = ROOT / "requirements.lock"
NOT_LOCKED = ("torch", "triton", "nvidia", "cuda")


def locked() -> dict[str, str]:
    """Package name -> its whole entry in the lock (version, markers, hashes)."""
    entries = re.split(r"\n(?=[^\s#])", LOCK.read_text(encoding="utf-8"))
    return {entry.split("==")[0]: entry for entry in entries if "==" in entry}


def test_the_lock_holds_no_torch_and_no_cuda() -> None:
    names = set(locked())
    assert {"transformers", "numpy", "pytest"} <= names
    assert not [name for name in names if re.split(r"[-_]", name)[0] in NOT_LOCKED]


def test_the_lock_names_no_host_and_no_path() -> None:
    text = LOCK.read_text(encoding="utf-8")
    assert not re.findall(r"://|@ |file:|^-|\.\./|^\s*--(?!hash=sha256:)", text, flags=re.MULTILINE)
    assert not re.findall(r"(?:^|\s)/\w+", text)


def test_every_locked_package_is_pinned_by_hash() -> None:
    for name, entry in locked().items():
        assert re.match(r"[a-z0-9-]+==[\w.+!]+( ;[^\\]*)?( \\)?\n", entry), name
        assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}", entry)) >= 1, name


def test_the_lock_covers_every_dependency() -> None:
    """A dependency added to pyproject without `make lock` would be missing in a fresh installation (--no-deps)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[<>=!~;\[ ]", requirement)[0].lower() for requirement in wanted}
    assert names - set(locked()) == {"torch"}


def test_pyproject_gives_ranges() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        assert re.fullmatch(r"[a-z0-9-]+>=[\d.]+(,<\d+)?", requirement), requirement


def test_the_makefile_installs_a_torch_that_pyproject_allows() -> None:
    (version,) = re.findall(r"^TORCH\s+:= ([\d.]+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    (least,) = re.findall(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert tuple(map(int, version.split("."))) >= tuple(map(int, least.split(".")))


NO_TORCH = """
import sys
{code}
heavy = [name for name in ("torch", "transformers", "onnxruntime", "pyarrow", "matplotlib") if name in sys.modules]
print(*heavy)
"""


def heavy_modules(code: str) -> str:
    """Which of the heavy modules a fresh interpreter holds after `code`."""
    command = [sys.executable, "-c", NO_TORCH.format(code=code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "words", [["--help"], ["run", "--help"], ["assets", "--help"], ["assets", "list", "--json"], ["list", "scorers"]]
)
def test_help_and_lists_import_no_torch(words: list[str]) -> None:
    code = f"""
sys.argv = ["rba", *{words!r}]
from rbalign.cli.main import main
try:
    main()
except SystemExit as end:
    assert end.code in (None, 0), end.code
"""
    assert heavy_modules(code) == ""


@pytest.mark.parametrize(
    "module",
    ["rbalign.config", "rbalign.data", "rbalign.report", "rbalign.rundir", "rbalign.voices.bank", "rbalign.assets"],
)
def test_light_layers_import_no_torch(module: str) -> None:
    assert "torch" not in heavy_modules(f"import {module}").split()


def test_the_project_names_no_host_and_no_machine() -> None:
    """Packages come by name through the ordinary clients: no registry's host and no path of one machine stands here."""
    forbidden = re.compile(
        r"pypi\.org|pythonhosted|npmjs|debian\.org|huggingface\.co/|pytorch\.org|/work/|/root/|/opt/pypi"
    )
    tracked = [*SOURCES, *(ROOT / "src").rglob("*.toml"), ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / ".ci/run"]
    found = [
        f"{path.relative_to(ROOT)}: {hit}" for path in tracked for hit in forbidden.findall(path.read_text("utf-8"))
    ]
    assert found == []


def test_files_and_functions_stay_small() -> None:
    """Files under 400 lines, functions under 60 without their docstrings."""
    long = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT)
        if text.count("\n") >= 400:
            long.append(f"{name}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                docstring = node.body[0] if ast.get_docstring(node) is not None else None
                lines = (node.end_lineno or 0) - node.lineno + 1
                if docstring is not None:
                    lines -= (docstring.end_lineno or 0) - docstring.lineno + 1
                if lines >= 60:
                    long.append(f"{name}: {node.name} {lines} lines")
    assert long == []


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="a source archive has no git")
def test_ci_runs_the_tracked_script() -> None:
    listed = subprocess.run(["git", "ls-files", "-s", ".ci/run"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert listed.stdout.startswith("100755 ")
    checked = subprocess.run(["bash", "-n", ROOT / ".ci/run"], env=os.environ, check=False)
    assert checked.returncode == 0
