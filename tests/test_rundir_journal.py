"""The journal: nothing acknowledged is lost, nothing is doubled, whatever stops the writer."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rbalign.errors import DataError
from rbalign.rundir.journal import Journal, read_rows

BATCH, ROW_BYTES = 3, 200_000  # larger than a page many times over, so that a kill can tear a write

# Appends for ever; says each key on stdout once it was acknowledged.
WRITER = f"""
import sys
from rbalign.rundir.journal import Journal
with Journal(sys.argv[1]) as journal:
    n = len(journal)
    while True:
        rows = [{{"id": f"row-{{n + i}}", "text": "x" * {ROW_BYTES}}} for i in range({BATCH})]
        journal.append(rows)
        n += {BATCH}
        print("\\n".join(row["id"] for row in rows), flush=True)
"""


def keys(path: Path) -> list[str]:
    return [row["id"] for row in read_rows(path)]


@pytest.mark.parametrize("quarter_rows", [1, 3, 6, 11, 17, 26, 38, 61])
def test_a_killed_writer_loses_nothing_acknowledged_and_doubles_nothing(tmp_path: Path, quarter_rows: int) -> None:
    path = tmp_path / "journal.jsonl"
    for _ in range(2):  # killed, started again, killed again
        size = path.stat().st_size if path.exists() else 0
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        try:
            while writer.poll() is None and (path.stat().st_size if path.exists() else 0) - size < (
                quarter_rows * ROW_BYTES // 4
            ):
                time.sleep(0.0005)
        finally:
            writer.send_signal(signal.SIGKILL)
            acknowledged = writer.communicate()[0].split()
        assert writer.returncode == -signal.SIGKILL, "the writer must not have stopped by itself"
        on_disk = keys(path)
        assert set(acknowledged) <= set(on_disk)
        assert len(on_disk) == len(set(on_disk))
    with Journal(path) as journal:
        journal.append({"id": key} for key in [*on_disk, "new"])
        assert keys(path) == [*on_disk, "new"]
        assert len(journal) == len(on_disk) + 1
    assert path.read_bytes().endswith(b'"new"}\n')


def test_a_tail_torn_at_any_byte_is_cut_on_open(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append([{"id": 1, "text": "é\n"}, {"id": 2}])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        path.write_bytes(whole[:end])
        assert keys(path) == [1], "a reader passes over the torn line"
        with Journal(path) as journal:
            assert (1 in journal, 2 in journal) == (True, False)
            assert path.stat().st_size == first
            assert journal.append([{"id": 1}, {"id": 2}]) == 1
        assert path.read_bytes() == whole


def test_zeros_that_a_power_cut_left_behind_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"id": "a"}\n' + bytes(500))
    with Journal(path) as journal:
        journal.append([{"id": "b"}])
    assert keys(path) == ["a", "b"]


def test_repeated_keys_are_ignored_within_a_batch_and_across_openings(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path, key="name") as journal:
        assert journal.append([{"name": "a", "n": 1}, {"name": "a", "n": 2}, {"name": "b", "n": 3}]) == 2
        assert journal.append([{"name": "b", "n": 4}]) == 0
    with Journal(path, key="name") as journal:
        assert journal.append([{"name": "a", "n": 5}]) == 0
        assert [row["n"] for row in journal.rows()] == [1, 3]


def test_one_write_and_one_fsync_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real_write, real_fsync = os.write, os.fsync
    with Journal(tmp_path / "journal.jsonl") as journal:
        monkeypatch.setattr(os, "write", lambda *a: calls.append("write") or real_write(*a))
        monkeypatch.setattr(os, "fsync", lambda *a: calls.append("fsync") or real_fsync(*a))
        journal.append({"id": n} for n in range(50))
    assert calls == ["write", "fsync"]


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits are POSIX")
def test_a_full_disk_leaves_the_acknowledged_rows_and_no_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    program = """
import resource, sys
from rbalign.errors import DataError
from rbalign.rundir.journal import Journal
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
with Journal(sys.argv[1]) as journal:
    try:
        for n in range(100):
            journal.append([{"id": f"{n}-{i}", "text": "x" * 30} for i in range(3)])
            print(n, flush=True)
    except DataError as error:
        print(error, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    acknowledged = [int(line) for line in done.stdout.split()]
    assert acknowledged, "the limit must leave room for a first batch"
    assert "cannot write" in done.stderr
    assert "free some disk space" in done.stderr
    assert keys(path) == [f"{n}-{i}" for n in acknowledged for i in range(3)]
    assert path.read_bytes().endswith(b"\n"), "the part of the batch that fitted is rolled back"
    with Journal(path) as journal:
        assert journal.append([{"id": "later"}]) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_dev_full_raises_a_data_error_and_closes_the_journal() -> None:
    with Journal(Path("/dev/full")) as journal:
        with pytest.raises(DataError, match="No space left"):
            journal.append([{"id": "a"}])
        assert "a" not in journal
        with pytest.raises(DataError, match="closed"):
            journal.append([{"id": "a"}])


def test_an_interrupt_between_write_and_fsync_takes_the_batch_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append([{"id": "a"}])
        real, calls = os.fsync, []

        def interrupted(file: int) -> None:
            calls.append(file)
            if len(calls) == 1:
                raise KeyboardInterrupt
            real(file)

        monkeypatch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal.append([{"id": "b"}])
    assert keys(path) == ["a"]


@pytest.mark.parametrize(
    ("row", "part"),
    [({"id": "a", "loss": float("nan")}, "'a'"), ({"id": "a", "x": object()}, "'a'"), ({"x": 1}, "'id'")],
)
def test_a_row_that_is_not_json_is_refused_whole(tmp_path: Path, row: dict[str, object], part: str) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        with pytest.raises(DataError, match=part):
            journal.append([{"id": "before"}, row])
        assert path.read_bytes() == b""
        assert journal.append([{"id": "before"}]) == 1


def test_a_damaged_line_inside_is_named_and_nothing_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"id": 1}\nrubbish\n{"id": 3}\n')
    before = path.read_bytes()
    with pytest.raises(DataError, match="line 2"), Journal(path):
        pass
    assert path.read_bytes() == before


texts = st.text(st.characters(), max_size=20)  # line separators and NULs too


# Lone surrogates have no UTF-8, but may come out of a broken decoder.
@example([("a", "\udc80"), ("b", "x\ud800y")])
@given(st.lists(st.tuples(st.text("abc", max_size=2), texts), max_size=12))
def test_rows_come_back_as_they_were(tmp_path_factory, pairs: list[tuple[str, str]]) -> None:
    path = tmp_path_factory.mktemp("journal") / "j.jsonl"
    first: dict[str, str] = {}
    for key, text in pairs:
        first.setdefault(key, text)
    with Journal(path) as journal:
        for key, text in pairs:
            journal.append([{"id": key, "text": text}])
    with Journal(path) as journal:
        assert {row["id"]: row["text"] for row in journal.rows()} == first
        assert len(journal) == len(first)
        assert all(json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1])
