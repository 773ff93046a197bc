import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from rbalign.errors import UsageError
from rbalign.voices import pool
from rbalign.voices.pool import SpeakFailure, SpeakJob, speak_many


class FakeSpeaker:
    """Speaks len(text) samples of its process id; "raise" and "die" in a text do that."""

    def speak(self, text, voice, speed=1.0):
        if "raise" in text:
            raise ValueError(f"cannot say {text}")
        if "die" in text:
            time.sleep(0.05)
            os._exit(9)
        return np.full(len(text), os.getpid(), dtype=np.float32)


def open_fake(voice):
    return FakeSpeaker()


def jobs(*texts):
    return [SpeakJob(f"job-{i}", text, "af_heart") for i, text in enumerate(texts)]


def test_every_job_comes_back_once_with_its_own_clip():
    wanted = jobs(*("x" * n for n in range(1, 40)))
    clips = list(speak_many(wanted, 2, open_fake))
    assert sorted((id, len(clip)) for id, clip in clips) == sorted((job.id, len(job.text)) for job in wanted)


def test_a_failing_job_is_a_named_failure_and_the_rest_goes_on():
    clips = dict(speak_many(jobs("a", "raise b", "c"), 2, open_fake))
    failure = clips["job-1"]
    assert isinstance(failure, SpeakFailure)
    assert failure.reason == "ValueError: cannot say raise b"
    assert failure.job.text == "raise b"
    assert isinstance(clips["job-0"], np.ndarray)
    assert isinstance(clips["job-2"], np.ndarray)


def test_a_job_that_kills_its_worker_fails_alone():
    texts = ["x" * (n + 1) for n in range(30)]
    texts[5] = texts[22] = "die"
    results = list(speak_many(jobs(*texts), 2, open_fake))
    assert sorted(id for id, _ in results) == sorted(f"job-{n}" for n in range(30))
    failures = {id: clip.reason for id, clip in results if isinstance(clip, SpeakFailure)}
    assert set(failures) == {"job-5", "job-22"}
    assert all(reason.startswith("the worker process died") for reason in failures.values())


def test_no_job_is_lost_when_the_pool_breaks_between_two_results():
    """A slow consumer: the pool is broken when the next job is handed to it."""
    results = []
    for identity, _ in speak_many(jobs("a", "die", *"cdefghijklmnopqrst"), 2, open_fake):
        time.sleep(1.0 if not results else 0.0)
        results.append(identity)
    assert sorted(results) == sorted(f"job-{n}" for n in range(20))


def test_no_job_is_lost_when_the_crash_shows_on_one_future_first(monkeypatch):
    real_wait = pool.wait

    def first_only(futures, return_when):
        done = real_wait(futures, return_when=return_when).done
        return SimpleNamespace(done=sorted(done, key=list(futures).index)[:1])

    monkeypatch.setattr(pool, "wait", first_only)
    results = [identity for identity, _ in speak_many(jobs("die", *"bcdefghij"), 2, open_fake)]
    assert sorted(results) == sorted(f"job-{n}" for n in range(10))


def test_jobs_are_read_as_needed_and_closing_early_ends_the_workers():
    read = []

    def endless():
        number = 0
        while True:
            read.append(number)
            yield SpeakJob(f"job-{number}", "x", "af_heart")
            number += 1

    stream = speak_many(endless(), 2, open_fake)
    pids = {int(next(stream)[1][0]) for _ in range(20)}
    stream.close()
    assert len(read) < 40
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not [thread for thread in threading.enumerate() if "ExecutorManager" in thread.name]


def test_no_worker_is_no_pool():
    with pytest.raises(UsageError, match="0 voice workers"):
        next(speak_many(jobs("a"), 0, open_fake))


def test_no_job_starts_nothing():
    assert list(speak_many([], 2, open_fake)) == []


ORPHANS = """
import sys
sys.path.insert(0, {tests!r})
from test_voices_pool import jobs, open_slow
from rbalign.voices.pool import speak_many
for identity, clip in speak_many(jobs(*"abcdefgh"), 2, open_slow):
    print(int(clip[0]), flush=True)
"""


class SlowSpeaker:
    """Tells its process id, then speaks for a minute."""

    said = False

    def speak(self, text, voice, speed=1.0):
        if SlowSpeaker.said:
            time.sleep(60)
        SlowSpeaker.said = True
        return np.full(1, os.getpid(), dtype=np.float32)


def open_slow(voice):
    return SlowSpeaker()


def test_workers_end_with_a_parent_that_was_killed():
    code = ORPHANS.format(tests=os.path.dirname(__file__))
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    workers = {int(parent.stdout.readline()) for _ in range(2)}
    parent.kill()
    parent.wait()
    for _ in range(300):
        alive = {pid for pid in workers if runs(pid)}
        if not alive:
            return
        time.sleep(0.1)
    pytest.fail(f"workers {alive} outlived their parent")


def runs(pid):
    """A zombie has ended: whoever inherits it has only not looked yet."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


BARS = """
import sys
sys.path.insert(0, {here!r})
from bars import show
from rbalign.rundir.workers import worker_pool
if __name__ == "__main__":
    with worker_pool(2) as pool:
        print(sum(future.result() for future in [pool.submit(show) for _ in range(4)]))
"""


def test_workers_that_show_bars_leave_no_semaphores_behind(tmp_path):
    (tmp_path / "bars.py").write_text("from tqdm.auto import tqdm\ndef show():\n    return len(list(tqdm(range(3))))\n")
    (tmp_path / "main.py").write_text(BARS.format(here=str(tmp_path)))
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, tmp_path / "main.py"], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    assert done.stdout.strip() == "12", done.stderr
    assert "leaked" not in done.stderr
