"""Write benchmarks/red_team_cases.jsonl: 100 held-out requests with honest samples of the text LLM that reads them.

The last 100 of the held-out set that ships: recipe `laptop` tests on the first 200, so no reward is chosen on a test.
"""

import json
from pathlib import Path

from rbalign import assets
from rbalign.data.dataset import Dataset
from rbalign.keys import Key
from rbalign.lm.load import load_lm
from rbalign.rundir.files import atomic_write
from rbalign.synth.heldout import SHIPPED, heldout_folder
from rbalign.teacher.local import LocalTeacher

CASES, HONEST, TOKENS = 100, 5, 32
SYSTEM = "You are a helpful assistant. Answer in one short spoken sentence."


def main():
    """Sample and write."""
    examples = Dataset.open(heldout_folder(SHIPPED)).examples("test")[-CASES:]
    teacher = LocalTeacher(load_lm(assets.folder("smollm2-135m-instruct")))
    asked = [(example, Key(0, "red-team", example=example.id, sample=n)) for example in examples for n in range(HONEST)]
    written = teacher.answer(
        [example.instruction for example, _ in asked],
        [key for _, key in asked],
        teacher.params(temperature=0.7, top_p=1.0, max_new_tokens=TOKENS),
        SYSTEM,
    )
    rows = []
    for place, example in enumerate(examples):
        honest = [one.text for one in written[place * HONEST : (place + 1) * HONEST]]
        row = {"prompt": example.instruction, "answer": example.answer, "reference": example.reference}
        rows.append(json.dumps({**row, "honest": honest}, ensure_ascii=False))
    out = Path(__file__).parent.parent / "benchmarks" / "red_team_cases.jsonl"
    atomic_write(out, "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
