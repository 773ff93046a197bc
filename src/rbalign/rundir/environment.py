"""What a run was made with: versions, git commit, platform, threads. No host, user, path, variable or key."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import rbalign


def describe() -> dict[str, Any]:
    """The environment as a JSON value, equal for two starts in the same environment."""
    return {
        "rbalign": rbalign.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": {
            "system": platform.system(),
            "release": platform.release(),
            "machine": platform.machine(),
            "byte_order": sys.byteorder,
        },
        "threads": {"cores": os.cpu_count(), "usable": _usable_cores()},
        "packages": _packages(),
    }


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _packages() -> dict[str, str]:
    """Version of each direct dependency; a package that is not installed is left out."""
    versions = {}
    for requirement in metadata.requires("rbalign") or []:
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return dict(sorted(versions.items()))


def _commit() -> str | None:
    """Commit of the checkout that this package is a tracked part of, "-dirty" if changed; None when installed."""
    folder = Path(rbalign.__file__).parent
    try:
        # ls-files fails where a virtual environment merely lies inside somebody else's repository.
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")
        dirty = "-dirty" if _git(folder, "status", "--porcelain", "--untracked-files=no", ".") else ""
        return _git(folder, "rev-parse", "HEAD") + dirty
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
