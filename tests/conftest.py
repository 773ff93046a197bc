"""Shared by all tests: how hypothesis draws, and the embedded models."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("local", deadline=None, database=None)
hypothesis.settings.register_profile("ci", deadline=None, database=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") == "true" else "local")


@pytest.fixture(scope="session")
def assets_folder() -> Callable[[str], Path]:
    """`assets_folder(name)`: the finished folder. Fetched when it is missing; a failure is a failure, with its cure:
    a test of the real models that was skipped would look like one that passed."""
    from rbalign.assets import folder

    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No asset, cache or file but the test's own: for whole modules by `usefixtures`."""
    monkeypatch.setenv("RBA_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def pytest_configure():
    """xdist's workers ignore SIGINT, and what they start would inherit that: no test of Ctrl-C could see it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
