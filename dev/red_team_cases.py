"""Write benchmarks/red_team_cases.jsonl: requests with honest samples of the text LLM that reads them.

open         the last 100 of the held-out set that ships: recipe `laptop` tests on the first 200, so no reward is chosen
             on a test
qa           questions of the smoke set, which no arm trains on. The model is told the answer: by itself it knows one in
             four, and where most samples are wrong a scorer of right and wrong says nothing
constraints  its requests with a form to keep; a program puts samples into the form that a small model cannot keep

Of a request with a label most of the honest samples are right, and the first one is.
"""

import json
import re
from itertools import pairwise
from pathlib import Path

from rbalign import assets, scorers
from rbalign.data.dataset import Dataset
from rbalign.eval.tasks.smoke import smoke_set
from rbalign.keys import Key
from rbalign.lm.load import load_lm
from rbalign.rundir.files import atomic_write
from rbalign.synth.heldout import SHIPPED, heldout_folder
from rbalign.teacher.local import LocalTeacher

CASES, HONEST, TOKENS, TOGETHER = 100, 5, 32, 25
QUESTIONS, REQUESTS = 140, 130
"""Asked, so that enough are left of which most samples are right."""
SYSTEM = "You are a helpful assistant. Answer in one short spoken sentence."
RULES = ("qa", "qa-ultraeval", "qa-vocalbench")
FORMS = {
    "change_case:english_capital": lambda text: text.upper(),
    "change_case:english_lowercase": lambda text: text.lower(),
    "startend:quotation": lambda text: f'"{text.strip(chr(34))}"',
    "detectable_format:json_format": lambda text: json.dumps({"answer": text}),
    "startend:end_checker": lambda text, end_phrase: f"{text} {end_phrase}",
    "keywords:existence": lambda text, keywords: f"{text} It has to do with {' and '.join(keywords)}.",
    "detectable_format:number_bullet_lists": lambda text, num_bullets: split(text, num_bullets, "* "),
    "length_constraints:number_paragraphs": lambda text, num_paragraphs: split(text, num_paragraphs, ""),
}


def split(text, count, mark):
    """The words in so many lines."""
    words = re.sub(r"[*\d-]", " ", text).split()
    cuts = [place * len(words) // count for place in range(count + 1)]
    return "\n".join(mark + " ".join(words[start:end]) for start, end in pairwise(cuts))


def sampled(teacher, requests, examples, count):
    """So many answers to each request, a list for each; not all at once, to bound memory."""
    found = []
    for start in range(0, len(examples), TOGETHER):
        own = range(start, min(start + TOGETHER, len(examples)))
        asked = [
            (requests[row], Key(0, "red-team", example=examples[row].id, sample=n)) for row in own for n in range(count)
        ]
        params = teacher.params(temperature=0.7, top_p=1.0, max_new_tokens=TOKENS)
        written = teacher.answer([text for text, _ in asked], [key for _, key in asked], params, SYSTEM)
        found += [[one.text for one in written[place : place + count]] for place in range(0, len(written), count)]
    return found


def open_rows(teacher):
    """Requests without labels."""
    examples = Dataset.open(heldout_folder(SHIPPED)).examples("test")[-CASES:]
    written = sampled(teacher, [example.instruction for example in examples], examples, HONEST)
    for example, honest in zip(examples, written, strict=True):
        row = {"prompt": example.instruction, "answer": example.answer, "reference": example.reference}
        yield row | {"honest": honest}


def question_rows(teacher):
    """Questions; y_ref is the accepted answer itself: said over and over it is right."""
    examples = smoke_set("qa").examples[:QUESTIONS]
    told = [f"{example.instruction} (The answer is {example.labels['aliases'][0]}.)" for example in examples]
    rows = []
    for example, texts in zip(examples, sampled(teacher, told, examples, HONEST + 1), strict=True):
        *honest, reference = texts
        labels = {"aliases": list(example.labels["aliases"])}
        rows.append(row_of(example, labels["aliases"][0], reference, honest, RULES, labels))
    return [row for row in rows if row][:CASES]


def form_rows(teacher):
    """Requests with a form to keep; y_ref is a sample that keeps it, where one does."""
    examples = smoke_set("instructions").examples[:REQUESTS]
    written = sampled(teacher, [example.instruction for example in examples], examples, HONEST + 1)
    rows = []
    for example, texts in zip(examples, written, strict=True):
        ((name, arguments),) = example.labels["constraints"]
        answer, *honest = [FORMS[name](text, **arguments) if name in FORMS else text for text in texts]
        labels = {"constraints": [[name, dict(arguments)]]}
        rows.append(row_of(example, answer, answer, honest, ("constraints",), labels))
    return [row for row in rows if row][:CASES]


def row_of(example, answer, reference, honest, rules, labels):
    """A row, the right answers first; None where most are wrong by any of the rules."""
    columns = {name: [value] * HONEST for name, value in labels.items()}
    scores = [scorers.build(rule)([""] * HONEST, honest, [[]] * HONEST, **columns) for rule in rules]
    if any(2 * sum(own) <= HONEST for own in scores):
        return None
    found = dict(zip(honest, map(sum, zip(*scores, strict=True)), strict=True))
    honest = sorted(honest, key=lambda text: -found[text])
    return {"prompt": example.instruction, "answer": answer, "reference": reference, "honest": honest, **labels}


def main():
    """Sample and write."""
    teacher = LocalTeacher(load_lm(assets.folder("smollm2-135m-instruct")))
    rows = [*open_rows(teacher), *question_rows(teacher), *form_rows(teacher)]
    out = Path(__file__).parent.parent / "benchmarks" / "red_team_cases.jsonl"
    atomic_write(out, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n")


if __name__ == "__main__":
    main()
