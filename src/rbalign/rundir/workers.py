"""Worker processes of one thread each, which end with their parent however it ends."""

from __future__ import annotations

import os
import threading
import time

from loky import ProcessPoolExecutor, process_executor

POLL_SECONDS = 1.0


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """A pool to `submit` to; whoever takes it must `shutdown(wait=True, kill_workers=True)`."""
    return ProcessPoolExecutor(
        max_workers=workers, initializer=_prepare, initargs=(os.getpid(),), env={"OMP_NUM_THREADS": "1"}
    )


def _prepare(parent: int) -> None:
    """In the worker."""
    # loky takes growth by 300 MB for a leak and replaces the process, every half minute here, because two
    # synthesisers and the longest sentence so far are more than that. Measured: 4 clips a second with, 8 without.
    process_executor._MAX_MEMORY_LEAK_SIZE = 1 << 33
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """A parent that was killed closes no pool: its workers would speak on for nobody, with both cores."""
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)
