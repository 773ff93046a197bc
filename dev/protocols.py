"""Writes docs/protocols.md from the code: `python dev/protocols.py`; `--check` only compares.

Tasks come from eval/tasks/tasks.toml, scorers' rules from their docstrings, prompts from eval/judges.toml, the keys of
judges and of models behind servers from their schemas.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from textwrap import wrap

from recipe_reference import field_docs, table

from rbalign.config.endpoints import JudgeEndpoint, SpeechEndpoint
from rbalign.eval.judges import prompt
from rbalign.eval.tasks.registry import Task, tasks
from rbalign.scorers.registry import SCORERS

TARGET = Path(__file__).parent.parent / "docs" / "protocols.md"
HEAD = """# Protocols: what every number of a benchmark means

Written by `python dev/protocols.py` from the code. `rba list tasks` has the short form.

```bash
rba score --task NAME --data FOLDER FILE.jsonl                                # predictions made anywhere
rba score --task spoken-alpaca --data FOLDER mine.jsonl --against base.jsonl --judge judge.toml
rba compare mine.web-questions-twinkstart.json base.web-questions-twinkstart.json
rba score --suite rba-paper FOLDER                                            # the paper's rows beside ours
rba eval --model M --tasks smoke,NAME --data NAME=FOLDER --output DIR         # answers and scores: docs/evaluation.md
```

**Predictions** are JSONL with `id` and `response` (null where the model failed), as in docs/predictions.md; each task
says below what its ids are. An unknown, repeated or broken line stops everything before anything is scored.

**Data** is a local copy in FOLDER. Its columns and types must be those below; others beside them are not read; clips
by `rba eval --model` alone. `--data hf:` fetches the named files of the hub dataset at that revision into the hub's
cache, the clips in them, too (Spoken-Alpaca: 13.7 GB); `hf:OWNER/NAME@REVISION` names another. A name such as main
moves: what was scored is named by the content hash beside every figure.
Nothing of these sets comes with rba, the smoke sets apart; their licences are theirs.

**Denominators.** Missing, failed and unreadable items stay in; how many there are stands beside every result. What
cannot be scored at all (no accepted answer, no judge) is left open and counted: unscored is not zero.

**Intervals** are 95 % percentile bootstrap over instructions (10,000 resamples, the same ones for every file), all
answers to one instruction together. `rba compare` adds the paired bootstrap p, the exact sign test, the effect size
(mean difference over its standard deviation) and the samples that flipped. Scorers read at most 8,000 characters.

**Output**: `FILE.TASK.json` (figures, protocols, every sample) and `FILE.TASK.md`. Every figure names task, data hash,
scorer or judge, and how failures count.
"""
NO_TASKS = """
### What is no task here

The official VocalBench-DF set is not published. OpenAudioBench's and fixie-ai's copies of the questions are other
samples than TwinkStart's. COMET needs other versions of half of rba's libraries.
"""
JUDGES = """
## Judges

`--judge chrf`, `wordllama` or `minilm` needs no key: the answer whose score against the reference is higher wins, equal
scores tie. It checks a pipeline; it is not an LLM's judgement, and gets no length control. `--judge JUDGE.toml` names
any OpenAI-compatible chat server:

```toml
url = "https://api.example.com/v1"
model = "judge-model-2026-01-01"
key_env = "JUDGE_KEY"
```

Replies are cached by address, model and whole request, so a second start pays nothing. The last `Verdict: 1|2|tie` or
`Result: YES|NO` of a reply counts. A reply without one, or a request that failed for good, is an unreadable judgement:
a tie of its order in a comparison, NO elsewhere, counted in each case. A server that refuses the key or is gone stops
the scoring; what it answered is kept.
"""
SERVERS = """## Models behind servers

The keys of the FILE.toml that `rba eval --model` takes (docs/evaluation.md):
"""


def task_section(task: Task) -> list[str]:
    """A task as a paragraph and its columns."""
    rule = wrap(f"{task.title}. {' '.join(task.rule.split())}", 118, break_long_words=False, break_on_hyphens=False)
    lines = [f"### {task.name}", "", *rule, ""]
    lines.append(f"- Data: {task.place}. Licence: {task.licence}.")
    lines.append(f"- Ids: {task.ids}.")
    if task.scorers:
        lines.append(f"- Scorers: {', '.join(f'`{name}`' for name in task.scorers)}.")
    if task.against:
        lines.append(f"- `--against`: {task.against}.")
    for source in task.files:
        part = f"{source.part}: " if source.part else ""
        names = " or ".join(f"`{name}`" for name in source.names)
        columns = ", ".join(f"`{name}` ({kind})" for name, kind in source.columns.items())
        clip = f" Clip: {' or '.join(f'`{name}`' for name in source.clip)}." if source.clip else ""
        lines.append(f"- File, {part}{names}: {columns}.{clip}")
    return [*lines, ""]


def scorer_section(name: str) -> str:
    """A scorer's own words, of its class; of a module that holds a single rule, the module's."""
    own = SCORERS[name]
    text = inspect.getdoc(getattr(importlib.import_module(f"rbalign.scorers.{own.module}"), own.kind)) or ""
    return f"- `{name}`: {' '.join(text.split())}"


def page() -> str:
    """The whole page."""
    parts = [HEAD, "## Tasks", ""]
    for task in tasks().values():
        parts += task_section(task)
    parts += [NO_TASKS.strip("\n"), ""]
    parts.append(JUDGES.strip("\n"))
    parts += ["", table(JudgeEndpoint, field_docs()), ""]
    for kind in ("pairwise", "answer", "reasoning", "rating"):
        asked = prompt(kind)
        parts += [f"Prompt {asked.name}:", "", "```text", asked.system, "", asked.user, "```", ""]
    parts += [SERVERS, table(SpeechEndpoint, field_docs()), ""]
    parts += ["## Scorers of single answers", "", *map(scorer_section, sorted(SCORERS)), ""]
    return "\n".join(parts)


if __name__ == "__main__":
    made = page()
    if "--check" in sys.argv and TARGET.read_text(encoding="utf-8") != made:
        sys.exit(f"{TARGET} is not current: run python dev/protocols.py")
    if "--check" not in sys.argv:
        TARGET.write_text(made, encoding="utf-8")
