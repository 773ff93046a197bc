"""Files of evaluation texts, which no training text may resemble: every string of every form."""

from __future__ import annotations

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rbalign.data.signatures import Signatures
from rbalign.errors import DataError, UsageError
from rbalign.synth.leakage import leakage_texts

LEAKED = "Which river flows through the old town of Prague?"
ROW = {"id": 3, "question": LEAKED, "answer": 'The Vltava, which rises in the Bohemian Forest, and "nothing" else'}


def evaluation_file(folder, ending):
    """A row with a leaked question, in the form of that ending."""
    path, conversation = folder / f"eval{ending}", [{"role": "user", "content": LEAKED}]
    if ending == ".parquet":
        clips = [{"bytes": b"RIFF", "path": None}]
        columns = {"id": [3], "audio": clips, "answer": [None], "messages": [conversation]}
        pq.write_table(pa.table(columns), path)
    elif ending in (".csv", ".tsv", ".CSV"):
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            table = csv.DictWriter(file, ROW, delimiter={".csv": ",", ".CSV": ";"}.get(ending, "\t"))
            table.writeheader()
            table.writerow(ROW)
    else:
        made = {
            ".json": json.dumps({"data": [{"rows": [ROW]}]}, indent=1),
            ".jsonl": json.dumps({"messages": conversation, "answer": ROW["answer"]}) + "\n",
        }
        path.write_text(made.get(ending, f"One question?\n{LEAKED}\n"))
    return path


@pytest.mark.parametrize("ending", [".csv", ".CSV", ".tsv", ".json", ".jsonl", ".parquet", ".txt", ""])
def test_a_leaked_question_is_found_in_every_form_of_file(tmp_path, ending):
    texts = list(leakage_texts(evaluation_file(tmp_path, ending)))
    assert LEAKED in texts
    assert Signatures.build(texts).has_near(f"{LEAKED[:-1]} please?", 0.7)


def test_files_of_evaluation_texts_give_each_string_by_itself(tmp_path):
    def read(ending, text):
        (tmp_path / f"a{ending}").write_text(text, newline="")
        return list(leakage_texts(tmp_path / f"a{ending}"))

    assert read(".txt", "One question?\r\n\nAnother, question?\n") == ["One question?", "Another, question?"]
    assert read(".jsonl", '{"id": 3, "q": "Who?", "m": [{"c": "Tell\u2028me."}]}\n\n') == ["Who?", "Tell\u2028me."]
    assert read(".json", '\ufeff[{"Who is it?": ["I", null]}, [["you"]], "she"]') == ["Who is it?", "I", "you", "she"]
    assert read(".csv", 'q,a\r\n"One, or\ntwo?", "yes"\r\n,3\r\n') == ["q", "a", "One, or\ntwo?", "yes", "3"]
    assert read(".csv", "") == []
    assert read(".tsv", 'q\ta\n"Who\tshe, "he"\nWhat\t\n') == ["q", "a", '"Who', 'she, "he"', "What"]
    many = pa.table(
        {"q": [f"Question {row}?" for row in range(3000)], "path": pa.array(["a b"] * 3000, "large_string")}
    )
    pq.write_table(many, tmp_path / "a.parquet", row_group_size=1100)
    assert list(leakage_texts(tmp_path / "a.parquet"))[::2] == many["q"].to_pylist()


@pytest.mark.parametrize(
    ("ending", "content", "match"),
    [
        (".jsonl", b'{"a": "b"}\nbroken\n', "line 2 is no JSON"),
        (".json", b'{"a": "b"}\n{"a": "b"}\n', "it is no JSON"),
        (".json", b"[" * 100_000, "nested too deep"),
        (".csv", b'q,a\n"Never closed,a\nb,c\n', "line 3: unexpected end"),
        (".csv", b"q\n" + b"x" * 200_000, "line 2: field larger"),
        (".parquet", b"PAR1, cut off", "cannot be read as parquet"),
        (".tsv", b"\xff\xfe\xfa", "no UTF-8"),
        (".txt", b"\xff\xfe\xfa", "no UTF-8"),
    ],
)
def test_a_damaged_file_of_evaluation_texts_is_refused(tmp_path, ending, content, match):
    path = tmp_path / f"a{ending}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=match):
        list(leakage_texts(path))


def test_a_file_of_evaluation_texts_must_be_there_and_hold_text(tmp_path):
    pq.write_table(pa.table({"id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column of text"):
        list(leakage_texts(tmp_path / "a.parquet"))
    with pytest.raises(UsageError, match="No such file"):
        list(leakage_texts(tmp_path / "none.parquet"))
