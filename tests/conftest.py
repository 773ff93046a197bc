"""Shared by all tests: how hypothesis draws, and the embedded models."""

from __future__ import annotations

import os
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
