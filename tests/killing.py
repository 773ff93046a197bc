"""A child that counts what it does and kills itself at a chosen point: what the tests of kills share."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable

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
        try:
            work()
            os._exit(0)
        except DataError:
            os._exit(3)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(9)
    os.close(write)
    survived = 0
    while chunk := os.read(read, 4096):
        survived += len(chunk)
    os.close(read)
    _, status = os.waitpid(child, 0)
    how = "killed" if os.WIFSIGNALED(status) else {0: "done", 3: "refused"}.get(os.WEXITSTATUS(status), "broken")
    return survived, how
