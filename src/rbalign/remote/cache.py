"""Replies on disk, by the hash of their request: what a server answered once is never asked again.

One sqlite file for all runs, threads and processes of a user. A put is one transaction: after a crash it is there or
not. No key is in it: requests enter as hashes, and keys are struck out of replies before they come here. The plain
rollback journal, not WAL: home directories of clusters lie on network file systems, where WAL is unsafe.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

from rbalign.errors import DataError
from rbalign.remote.wire import Reply

MOST_BYTES = 4 << 30
"""The file stays about this small: the oldest tenth of the replies leaves when it is reached."""
PATIENCE = 60.0
"""Seconds to wait for another process's transaction."""
FORMAT = 1
_TABLE = """CREATE TABLE IF NOT EXISTS replies
    (key TEXT PRIMARY KEY, content_type TEXT NOT NULL, body BLOB NOT NULL, at REAL NOT NULL)"""


class Cache:
    """An open cache file. Safe for several threads; open it anew in another process."""

    def __init__(self, path: Path, most_bytes: int = MOST_BYTES) -> None:
        """Raises DataError if the file is damaged, of another version, or the disk refuses."""
        self.path, self._most = Path(path), most_bytes
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch(mode=0o600)  # answers may be private
            self._base = sqlite3.connect(self.path, PATIENCE, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise DataError(f"cannot open {self.path}: {error}", "mend its rights, or set RBA_HOME") from None
        (version,) = self._do("PRAGMA user_version")[0]
        if version not in (0, FORMAT):
            raise DataError(f"{self.path} is of another version of rba", "delete it: it only saves time and money")
        if version != FORMAT:
            self._do(_TABLE)
            self._do(f"PRAGMA user_version = {FORMAT}")

    def get(self, key: str) -> Reply | None:
        """The reply that was put under this hash, or None."""
        rows = self._do("SELECT body, content_type FROM replies WHERE key = ?", key)
        return Reply(*rows[0]) if rows else None

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply; the first one under a key stays. When this returns, it is on the disk."""
        row = (key, reply.content_type, reply.body, time.time())
        self._do("INSERT OR IGNORE INTO replies (key, content_type, body, at) VALUES (?, ?, ?, ?)", *row)
        if self._bytes() > self._most:
            oldest = "SELECT rowid FROM replies ORDER BY rowid LIMIT (SELECT 1 + count(*) / 10 FROM replies)"
            self._do(f"DELETE FROM replies WHERE rowid IN ({oldest})")

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._base.close()

    def __len__(self) -> int:
        count: int = self._do("SELECT count(*) FROM replies")[0][0]
        return count

    def _bytes(self) -> int:
        """Bytes in use, without counting rows."""
        pages, free, size = (self._do(f"PRAGMA {name}")[0][0] for name in ("page_count", "freelist_count", "page_size"))
        return int((pages - free) * size)

    def _do(self, statement: str, *values: Any) -> list[Any]:
        with self._lock:
            try:
                return self._base.execute(statement, values).fetchall()
            except sqlite3.OperationalError as error:  # full, locked, read-only
                raise DataError(f"cannot use {self.path}: {error}", "free some space or mend its rights") from None
            except sqlite3.DatabaseError as error:
                raise DataError(f"{self.path} is damaged: {error}", "delete it: it only saves time") from None
