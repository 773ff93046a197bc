"""Models, voices and texts by name: `folder(name)` is a finished folder in the cache, fetched and checked on demand.

Sources in order: the cache, the folder that RBA_ASSETS names, the package registries through their ordinary
clients (with runner-up packages), the mirror that RBA_MIRROR names. The cache is RBA_HOME, by default the user's
cache directory; once a folder is there, no network is touched.
"""

from __future__ import annotations

import os
from pathlib import Path

from rbalign.assets.catalog import default
from rbalign.assets.store import Store
from rbalign.assets.telling import megabytes

__all__ = ["Store", "folder", "home", "megabytes", "model_folder", "store"]


def home() -> Path:
    """RBA_HOME, or the user's cache directory for rba."""
    named = os.environ.get("RBA_HOME")
    if named:
        return Path(named).expanduser().absolute()
    import platformdirs

    return platformdirs.user_cache_path("rba")


def store(extra: tuple[Path, ...] = ()) -> Store:
    """The store that the environment describes; `extra` folders are searched before RBA_ASSETS."""
    named = os.environ.get("RBA_ASSETS")
    folders = (*extra, Path(named).expanduser()) if named else extra
    return Store(home(), default(), folders, os.environ.get("RBA_MIRROR", ""))


def folder(name: str) -> Path:
    """The ready-to-load folder of asset `name` (see catalog.toml), made on demand.

    Raises UsageError for an unknown name; AssetError when the bytes cannot be had or are not the pinned ones.
    """
    return store().folder(name)


def model_folder(name: str) -> Path:
    """A model by asset name or by path: a folder that exists is taken as it is."""
    path = Path(name).expanduser()
    return path if path.is_dir() else folder(name)
