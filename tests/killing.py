"""A child that kills itself at a chosen point, or is killed by whoever watches it: what the tests of kills share."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from rbalign.errors import DataError


def killed_at(work: Callable[[], None], watch: Callable[[Callable[[], None]], None], at: int) -> tuple[int, str]:
    """Run `work` in a fork in which `watch(tick)` has `tick` called at every point; it kills itself at the `at`-th.

    Returns the points that were survived and how it ended: "killed", "refused" (DataError), "done" or "broken".
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        seen = 0

        def tick() -> None:
            nonlocal seen
            seen += 1
            os.write(write, b".")
            if seen == at:
                os.kill(os.getpid(), signal.SIGKILL)

        watch(tick)
        _work_and_leave(work)
    os.close(write)
    survived = 0
    while chunk := os.read(read, 4096):
        survived += len(chunk)
    os.close(read)
    return survived, _how_it_ended(os.waitpid(child, 0)[1])


def killed_when(work: Callable[[], None], ripe: Callable[[], bool]) -> str:
    """Run `work` in a fork that knows nothing of it; SIGKILL comes from here as soon as `ripe()`, asked all the time.

    Returns how it ended, as above: not "killed" if it was done before.
    """
    child = os.fork()
    if child == 0:
        _work_and_leave(work)
    try:
        while not ripe():
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return _how_it_ended(status)
            time.sleep(0.001)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    os.kill(child, signal.SIGKILL)
    return _how_it_ended(os.waitpid(child, 0)[1])


def _work_and_leave(work: Callable[[], None]) -> NoReturn:
    try:
        work()
        os._exit(0)
    except DataError:
        os._exit(3)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(9)


def _how_it_ended(status: int) -> str:
    return "killed" if os.WIFSIGNALED(status) else {0: "done", 3: "refused"}.get(os.WEXITSTATUS(status), "broken")
