"""Worker processes of few threads each, which end with their parent however it ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from loky import ProcessPoolExecutor, process_executor

POLL_SECONDS = 1.0


def launched() -> tuple[int, int]:
    """(rank, number of processes) of this one under a launcher such as torchrun or accelerate; (0, 1) without."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def workers_that_fit(asked: int, bytes_each: int) -> int:
    """As many processes as asked; for 0 one a core, as far as half of the machine's memory allows.

    One where there is a GPU: it wants large batches from one process.
    """
    if asked:
        return asked
    import torch

    if torch.cuda.is_available():
        return 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(os.cpu_count() or 1, memory // 2 // bytes_each))


def threads_each(workers: int) -> int:
    """Each worker's equal share of the machine's cores."""
    return max(1, (os.cpu_count() or 1) // workers)


@contextmanager
def worker_pool(workers: int, threads: int = 1) -> Iterator[ProcessPoolExecutor]:
    """A pool to `submit` to; processes start with the first job, and end with the block whatever they are doing."""
    pool = ProcessPoolExecutor(
        max_workers=workers, initializer=_prepare, initargs=(os.getpid(),), env={"OMP_NUM_THREADS": str(threads)}
    )
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, kill_workers=True)


def _prepare(parent: int) -> None:
    """In the worker."""
    from tqdm import tqdm

    # Ctrl-C reaches every process of a terminal; the parent decides what becomes of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # loky takes growth by 300 MB for a leak and replaces the process, every half minute here, because two
    # synthesisers and the longest sentence so far are more than that. Measured: 4 clips a second with, 8 without.
    process_executor._MAX_MEMORY_LEAK_SIZE = 1 << 33
    # tqdm's own lock is a semaphore of the system: a worker that is ended leaves it behind, and Python warns of it.
    tqdm.set_lock(threading.RLock())
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """A parent that was killed closes no pool: its workers would speak on for nobody, with both cores."""
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)
