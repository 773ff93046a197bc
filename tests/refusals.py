"""What tests of refused commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path


def assert_refused(command: Callable[[], int], parts: Sequence[str], folder: Path, capsys) -> None:
    """The command says one line that holds `parts`, exits with 2, makes no `out` and leaves a full folder alone."""
    (folder / "full").mkdir()
    (folder / "full" / "file").write_text("mine")
    assert command() == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1, err
    for part in parts:
        assert part in err
    assert not (folder / "out").exists()
    assert (folder / "full" / "file").read_text() == "mine"
