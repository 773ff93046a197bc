"""What the actors of test_synth_ray do in their processes: run_shard over fakes, killed where a test wants it.

A module of its own, because each actor imports it anew: test_synth_shards would add three seconds to every start.
"""

from __future__ import annotations

import os
import signal
import time

import pytest
from test_synth import RECIPE, put_fakes

from rbalign.errors import UsageError
from rbalign.stages import synth as stage
from rbalign.stages.synth_shards import run_shard

SMALL = RECIPE.model_copy(update={"synth": RECIPE.synth.model_copy(update={"batch_size": 4})})


def faked(recipe, runs, part, surplus, log=None, watch=lambda patch, part: None):
    """In an actor. `log` gets a line for every clip that is made; `watch` may put more in place."""
    with pytest.MonkeyPatch.context() as patch:
        put_fakes(patch)
        patch.setattr(stage, "VIEWS_PER_SHARD", 6)
        watch(patch, part)
        real = stage.speak_shard

        def speak_and_tell(views, *rest, **more):
            for view, failure in real(views, *rest, **more):
                if log is not None:
                    with log.open("a") as file:
                        file.write(f"{os.getpid()} {view.id}\n")
                yield view, failure

        patch.setattr(stage, "speak_shard", speak_and_tell)
        run_shard(recipe, runs, part, surplus)


def meet(folder, patch, part):
    """Of two parts neither goes on before the other is made, too: one actor alone would wait for ever."""
    mine, other = folder / f"met {part.number}", folder / f"met {3 - part.number}"
    with mine.open("a") as file:
        file.write(".")
    while not other.exists() or other.stat().st_size < mine.stat().st_size:
        time.sleep(0.05)


def kill_once(mark):
    """SIGKILL for this process, unless one has died here before."""
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def dies_in_the_middle(folder, patch, part):
    """The first part's actor is killed at its third chunk of texts, and at the second clip of its second file."""
    if part.number != 1:
        return
    write, speak, files = stage.write_many, stage.speak_shard, []

    def write_many(*given):
        for number, drafts in enumerate(write(*given)):
            if number == 2:
                kill_once(folder / "killed writing")
            yield drafts

    def speak_shard(*given, **more):
        files.append(1)
        for number, spoken in enumerate(speak(*given, **more)):
            if (len(files), number) == (2, 1):
                kill_once(folder / "killed speaking")
            yield spoken

    patch.setattr(stage, "write_many", write_many)
    patch.setattr(stage, "speak_shard", speak_shard)


def slow(patch, part):
    """Half a second a file of clips: long enough to be killed in between."""
    real = stage.speak_shard
    patch.setattr(stage, "speak_shard", lambda *given, **more: time.sleep(0.5) or real(*given, **more))


def refuses(recipe, runs, part, surplus):
    raise UsageError(f"shard {part} cannot", "mend it")
