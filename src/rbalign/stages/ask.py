"""`rba ask`: what the speech LLM heard, its answer as it streams, and the answer to the same words as text."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rbalign.config.recipe import Recipe
from rbalign.errors import UsageError

MAX_NEW_TOKENS = 96


def ask(
    clip: Path | None,
    text: str | None = None,
    on_token: Callable[[str], None] | None = None,
    run: Path | None = None,
    arm: str | None = None,
    beside: str = "",
) -> dict[str, Any]:
    """Answer a clip, a written request, or both, greedily.

    Returns heard (see `Policy.heard`; None without a clip), answer, text_answer (the untouched text LLM on
    `text`, else on what was heard) and seconds. `run` takes that run's model, `arm` one of its trained arms.
    `beside` is an instruction written beside the clip.
    """
    from rbalign.audio.io import read_audio, to_flac
    from rbalign.types import View, ViewSpec

    started = time.perf_counter()
    policy, recipe = _open(run, arm)
    heard = None
    prompts = policy.text_prompts([text or ""])
    if clip is not None:
        samples = read_audio(clip)
        view = View("ask", 0, "test", ViewSpec("user"), len(samples) / 16_000, to_flac(samples, 16_000))
        prompts = policy.prompts([view], beside)
        heard = policy.heard([view])[0]
    answer = _greedy(policy, prompts, on_token)
    words = text or heard
    with policy.untouched():
        text_answer = _greedy(policy, policy.text_prompts([words]), None, base=True) if words else None
    return {
        "heard": heard,
        "answer": answer,
        "text_answer": text_answer,
        "seconds": round(time.perf_counter() - started, 2),
        "model": f"{recipe.name}/{arm or 'base'}",
    }


def _open(run: Path | None, arm: str | None) -> tuple[Any, Recipe]:
    """The policy of a run (with an arm's weights), or the one that ships."""
    from rbalign.rundir.run import RunDir
    from rbalign.stages.named import BASE, arm_weights, run_named
    from rbalign.stages.policy import open_policy
    from rbalign.stages.subjects import embedded_recipe

    if run is None:
        recipe = embedded_recipe()
        return open_policy(recipe, RunDir.look(Path("runs"), recipe)), recipe
    found = run_named(str(run))
    weights = arm_weights(found, arm or BASE)
    policy = open_policy(found.recipe, found)
    if weights is not None:
        policy.load(weights)
    return policy, found.recipe


def _greedy(policy: Any, prompts: Any, on_token: Callable[[str], None] | None, base: bool = False) -> str:
    """One greedy answer; `on_token` hears each new piece of text."""
    from rbalign.keys import Key

    if len(prompts.rows[0]) == 0:
        raise UsageError("nothing to ask", "give a clip with speech, or --text")
    said, drawn = "", []

    def watch(_: int, token: int) -> None:
        nonlocal said
        drawn.append(token)
        whole = policy.tokenizer.decode(drawn, skip_special_tokens=True)
        if on_token is not None and not whole.endswith("\ufffd"):  # half of a multi-byte character: wait for the rest
            on_token(whole[len(said) :])
            said = whole

    samples = policy.sample(prompts, policy.params(0.0, 1.0, MAX_NEW_TOKENS), [[Key(0, "ask")]], base=base, watch=watch)
    answer: str = policy.decode(samples[0][0].ids)
    return answer
