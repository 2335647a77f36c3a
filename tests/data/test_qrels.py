"""Relevance judgments in every form: what is read, what adds up, what is refused and why."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from compatctl.data import Judgments, read_qrels
from compatctl.errors import InputError
from compatctl.notices import Notices, collected

TRUTH = {("q1", "007"): 3.0, ("q1", "d,2"): 1.0, ("q2", "007"): 2.0}
IRRELEVANT = ("q3", "d9")


def read(path: Path, text: str, encoding: str = "utf-8") -> tuple[Judgments, Notices]:
    """The judgments of a file with this text, and the notices of reading it."""
    path.write_bytes(text.encode(encoding))
    with collected() as notices:
        return read_qrels(path), notices


def graded(judged: Judgments) -> dict[tuple[str, str], float]:
    """(query, item) -> grade."""
    return dict(zip(judged.pairs, judged.grades.tolist(), strict=True))


def table(separator: str, header: str, end: str = "\n") -> str:
    """A table of TRUTH and of an irrelevant pair, with cells in quotes where they must be."""
    rows = [*((*pair, f"{grade:g}") for pair, grade in TRUTH.items()), (*IRRELEVANT, "0")]
    lines = [
        separator.join(f'"{cell}"' if separator in cell else cell for cell in row) for row in rows
    ]
    return end.join([header.replace(",", separator), *lines, ""])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("test.tsv", table("\t", "query-id,corpus-id,score")),
        ("test.tsv", "\ufeff" + table("\t", "query-id,corpus-id,score", "\r\n")),
        ("j.csv", table(",", "query_id,doc_id,relevance")),
        ("j.csv", table(",", "Query ID,Item-Id,Grade")),
        ("j.txt", table(",", "qid,docid,rel")),
    ],
)
def test_tables_with_a_header_are_read(tmp_path: Path, name: str, text: str) -> None:
    """BEIR's header and others, separators of the ending, marks and line ends: the same grades."""
    judged, notices = read(tmp_path / name, text)
    assert graded(judged) == TRUTH
    assert (judged.form, notices.messages()) == ("a table", [])
    assert judged.query_ids == ("q1", "q2", "q3")
    assert set(judged.item_ids) == {"007", "d,2", "d9"}


@pytest.mark.parametrize("names", ["query-id corpus-id score", "query_id doc_id relevance"])
def test_json_lines_are_read(tmp_path: Path, names: str) -> None:
    """Ids are texts or whole numbers, grades numbers; further keys and empty lines are allowed."""
    query, item, grade = names.split()
    rows = [{query: q, item: i, grade: g, "note": None} for (q, i), g in TRUTH.items()]
    rows.append({query: 7, item: "x", grade: 0.5})
    text = "\n\n".join(json.dumps(row) for row in rows)
    judged, notices = read(tmp_path / "j.jsonl", text)
    assert graded(judged) == {**TRUTH, ("7", "x"): 0.5}
    assert notices.messages() == []
    assert graded(read(tmp_path / "plain.txt", text)[0]) == graded(judged)


@pytest.mark.parametrize("form", [".csv", ".jsonl"])
def test_weights_of_a_click_log_add_up(tmp_path: Path, form: str) -> None:
    """A pair's weights are summed, in any order; a sum of 0 or less is not relevant."""
    log = [("q1", "a", 1.5), ("q1", "a", 2), ("q2", "b", 1), ("q2", "b", -1), ("q2", "a", 0.25)]
    random.Random(3).shuffle(log)
    if form == ".csv":
        text = "query_id,item_id,weight\n" + "".join(f"{q},{i},{w}\n" for q, i, w in log)
    else:
        text = "".join(json.dumps({"query_id": q, "item_id": i, "clicks": w}) + "\n"
                       for q, i, w in log)  # fmt: skip
    judged, notices = read(tmp_path / f"log{form}", text)
    assert graded(judged) == {("q1", "a"): 3.5, ("q2", "a"): 0.25}
    assert judged.form.startswith("a click log")
    assert notices.messages() == []


def test_a_log_without_weights_counts_its_lines(tmp_path: Path) -> None:
    """Every line of a query and an item is one click."""
    judged, _ = read(tmp_path / "log.csv", "user,query,item\nx,q,a\ny,q,a\ny,q,b\n")
    assert graded(judged) == {("q", "a"): 2.0, ("q", "b"): 1.0}


def test_a_pair_judged_again_with_the_same_grade_is_one_and_named(tmp_path: Path) -> None:
    """The notice counts the repetitions; the order is that of the file."""
    judged, notices = read(tmp_path / "q.txt", "q 0 b 2\nq 0 a 1\nq 0 b 2\nq 0 b 2\n")
    assert judged.pairs == (("q", "b"), ("q", "a"))
    (entry,) = notices.entries()
    assert (entry["kind"], entry["count"]) == ("repeated-judgment", 2)


BEIR = "query-id\tcorpus-id\tscore\n"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("j.csv", "a,b,c\n1,2,3\n", ["header", "'a', 'b', 'c'"]),
        ("pairs.csv", "id_a,id_b,same\na,b,1\n", ["'id_a', 'id_b', 'same'"]),
        ("j.csv", "query_id,query-id,doc_id\nq,q,d\n", ["'query_id', 'query-id'"]),
        ("j.csv", "query_id,doc_id,score,clicks\nq,d,1,2\n", ["a grade or a weight", "'clicks'"]),
        ("j.tsv", BEIR + "q\td\tmuch\n", ["line 2", "score must be a number", "'much'"]),
        ("j.tsv", BEIR + "q\td\t1\nq\te\tnan\n", ["line 3", "'nan'"]),
        ("j.tsv", BEIR + "q\td\t1\nq\t \t1\n", ["line 3", "corpus-id must be an id"]),
        (
            "j.tsv",
            BEIR + "q\td\t1\nq\td\t2\n",
            ["line 3", "judged twice", "2 here and 1 in line 2"],
        ),
        ("j.tsv", BEIR + "q\td\t0\n", ["read as a table", "relevant"]),
        ("j.tsv", BEIR + "q\td\n", ["line 2", "2 cells under 3"]),
        ("j.jsonl", '{"query_id": "q", "doc_id": "d", "score": true}\n', ["line 1", "True"]),
        ("j.jsonl", '{"query_id": null, "doc_id": "d", "score": 1}\n', ["query_id must be an id"]),
        ("j.jsonl", '{"q": "q", "d": "d"}\n', ["its keys are 'q', 'd'"]),
        ("j.jsonl", "[1]\n", ["line 1", "not a JSON object"]),
        (
            "j.jsonl",
            '{"query_id": "q", "doc_id": "d", "score": 1}\n{"query_id": "q", "doc_id": "e"}\n',
            ["line 2", "earlier lines"],
        ),
        ("log.csv", "query,item,weight\nq,a,1\nq,a,-1\n", ["click log", "relevant"]),
    ],
)
def test_bad_judgments_are_refused_by_name(
    tmp_path: Path, name: str, text: str, words: list[str]
) -> None:
    """An unknown header (with its columns), an ambiguous one, no number, no id, two grades."""
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        read_qrels(path)
    assert str(path) in refused.value.message
    for word in words:
        assert word in refused.value.message


def test_many_judgments_are_those_of_a_loop(tmp_path: Path) -> None:
    """Codes, grades and order agree with a dict that is filled line by line."""
    rng = random.Random(0)
    lines = [(f"q{rng.randrange(60)}", f"d{rng.randrange(40)}") for _ in range(3000)]
    grades = {pair: rng.randrange(-1, 4) for pair in lines}
    text = "".join(f"{q} 0 {d} {grades[q, d]}\n" for q, d in dict.fromkeys(lines))
    judged, _ = read(tmp_path / "j.qrels", text)
    slow = {pair: grades[pair] for pair in dict.fromkeys(lines) if grades[pair] > 0}
    assert list(graded(judged).items()) == list(slow.items())
    assert graded(Judgments.from_pairs(tuple(slow), list(slow.values()))) == slow
