"""verify --log: answers that a service logged, judged by labels and by clicks."""

from __future__ import annotations

import csv
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shop_kit import Shop, run

from compatctl.data import load, read_compared_log
from compatctl.deployment.searcher import Searcher
from compatctl.encoder import Encoder
from compatctl.serving.answer_log import AnswerLog, LogLine
from compatctl.serving.batching import answer_of
from compatctl.serving.service import content_id

K = 10
POLICY = """format: 4
name: log
min_queries: 50
min_classes: 20
min_hit_gain: -0.02
"""


@pytest.fixture
def logged(shop: Shop) -> Callable[..., Path]:
    """A function that writes the log of a service with a candidate in the shadow."""
    shop.path("policy.yaml").write_text(POLICY)

    def write(candidate: str, *, by_content: bool = False, name: str = "answers.jsonl") -> Path:
        data = load(shop.data()).filter(split="test", role="query")
        log = AnswerLog(shop.path(name))
        with Searcher.open(shop.path("store")) as searcher:
            current = searcher.current
            beside = current.with_model(Encoder.load(shop.path(candidate)))
            for row, item in enumerate(data.ids):
                content = Path(str(data.sources[row])).read_bytes()
                first, second = (
                    answer_of(side.answer([side.prepare(content)], K), 0, K)
                    for side in (current, beside)
                )
                query = content_id(content) if by_content else item
                log.add(LogLine(query=query, side="current", answer=first, other=second))
        log.close()
        return shop.path(name)

    return write


def _run(shop: Shop, *arguments: object) -> Any:
    return shop.run("verify", "--policy", shop.path("policy.yaml"), *arguments)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _slow(shop: Shop, path: Path, k: int) -> tuple[float, float]:
    """hit@k of both sides by labels, one by one."""
    label_of = dict(zip(load(shop.data()).ids, load(shop.data()).labels, strict=True))
    gallery = {label_of[i] for i in load(shop.data()).filter(role="gallery").ids}
    right, n = [0, 0], 0
    for line in _lines(path):
        label = label_of[line["query"]]
        if label not in gallery:
            continue
        n += 1
        for side, hits in enumerate((line["hits"], line["candidate"]["hits"])):
            right[side] += any(label_of[hit["id"]] == label for hit in hits[:k])
    return right[0] / n, right[1] / n


def test_labels_judge_a_better_and_a_worse_candidate(
    shop: Shop, logged: Callable[..., Path]
) -> None:
    """Exit codes 0 and 3; the gains are those of a slow count; the log has no second vote."""
    for candidate, code in (("new.onnx", 0), ("worse.onnx", 3)):
        path = logged(candidate, name=f"{candidate}.jsonl")
        result = _run(shop, "--log", path)
        assert result.code == code, result.stderr + result.stdout
        told = result.json
        checks = {check["name"]: check for check in told["verdict"]["checks"]}
        for name, k in (("hit_gain", 1), ("wide_hit_gain", 5)):
            before, after = _slow(shop, path, k)
            assert checks[name]["estimate"] == pytest.approx(after - before, abs=1e-9)
        assert (told["judged_by"], told["k"], told["unknown"]) == ("labels", K, 0)
        assert told["queries"] == len(_lines(path))
    doubled = shop.path("doubled.jsonl")
    doubled.write_text(path.read_text() * 2)
    again = _run(shop, "--log", doubled).json
    assert again["repeated"] == again["queries"] == told["queries"]
    assert again["verdict"] == told["verdict"]


def test_a_log_that_does_not_pass_says_why(shop: Shop, logged: Callable[..., Path]) -> None:
    """Each check that decides and did not pass has its sentence, as in ``verify`` of models."""
    few = shop.path("few.jsonl")
    few.write_text("".join(logged("new.onnx").read_text().splitlines(keepends=True)[:40]))
    shown = run("verify", *shop.args, "--log", few)
    assert shown.code == 4, shown.stderr
    said = " ".join(shown.stdout.split())
    assert "hit_gain (logged queries): " in said
    assert "of the 200 required queries have a match." in said


def test_queries_are_known_by_their_content(shop: Shop, logged: Callable[..., Path]) -> None:
    """Where callers give no id, the sha256 of an item of the data has its label."""
    by_id = _run(shop, "--log", logged("new.onnx", name="a.jsonl")).json
    by_content = _run(shop, "--log", logged("new.onnx", name="b.jsonl", by_content=True)).json
    assert by_content["judged"] == by_id["judged"] > 0
    assert by_content["verdict"] == by_id["verdict"]


def test_clicks_cannot_fail_a_candidate_for_what_nobody_saw(
    shop: Shop, logged: Callable[..., Path]
) -> None:
    """Clicks on the query model's right answers: what only the candidate found counts against a
    pass, and for it before a failure."""
    path = logged("new.onnx")
    label_of = dict(zip(load(shop.data()).ids, load(shop.data()).labels, strict=True))
    clicks = shop.path("clicks.csv")
    with clicks.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["query_id", "item_id", "clicks"])
        for line in _lines(path):
            for hit in line["hits"]:
                if label_of[hit["id"]] == label_of[line["query"]]:
                    writer.writerow([line["query"], hit["id"], 1])
    told = _run(shop, "--log", path, "--qrels", clicks).json
    assert told["judged_by"] == "judgments"
    assert 0 < told["unknown"] <= told["judged"]
    unseen = shop.path("unseen.jsonl")
    ids = load(shop.data()).filter(role="gallery").ids
    with unseen.open("w") as file:
        for line in _lines(path):
            shown = {hit["id"] for hit in line["hits"]}
            others = [item for item in ids if item not in shown][:K]
            line["candidate"]["hits"] = [{"id": item, "score": 0.0} for item in others]
            file.write(json.dumps(line) + "\n")
    result = _run(shop, "--log", unseen, "--qrels", clicks)
    assert result.code == 4, result.stdout
    gain = result.json["verdict"]["checks"][0]
    assert (gain["name"], gain["estimate"] < -0.1) == ("hit_gain", True)
    assert "nobody judged or saw" in result.stderr


def test_a_log_that_says_nothing_is_refused(shop: Shop, logged: Callable[..., Path]) -> None:
    """No candidate, several of them, no log, too few answers, nothing relevant, other options."""
    path = logged("new.onnx")
    text = path.read_text()
    cases = {
        "alone": ("".join(_without(line) for line in text.splitlines()), "no line has an answer"),
        "several": (text + text.replace(_lines(path)[0]["candidate"]["query_model"], "f" * 64),
                    "2 pairs of models"),
        "no log": ("query,answer\n", "no JSON"),
        "hits": ('{"query": "q", "query_model": "a", "hits": 3, "candidate": '
                 '{"query_model": "b", "hits": []}}\n', "objects with an id"),
        "strangers": (text.replace('"query": "', '"query": "x'), "something relevant"),
    }  # fmt: skip
    for name, (content, said) in cases.items():
        bad = shop.path(f"{name}.jsonl")
        bad.write_text(content)
        result = _run(shop, "--log", bad)
        assert (result.code, said in result.stderr) == (5, True), result.stderr
    several = shop.path("several.jsonl")
    assert _run(shop, "--log", several, shop.path("new.onnx")).code == 0
    assert _run(shop, "--log", path, "--latency").code == 2
    assert _run(shop).code == 2


def test_a_line_that_is_cut_off_is_left_out_and_said(
    shop: Shop, logged: Callable[..., Path]
) -> None:
    """The last one, be it cut within a character, or one after which a service was started again;
    --strict refuses it."""
    text = logged("new.onnx").read_text().replace('"query": "', '"query": "é').encode()
    last = text[:-1].rindex(b"\n") + 1
    cut = shop.path("cut.jsonl")
    for end in (len(text) - 40, text.index("é".encode(), last) + 1):
        cut.write_bytes(text[:end].replace(b"\xc3\xa9", b""))
        if text[:end].endswith(b"\xc3"):
            assert cut.read_bytes().endswith(b"\xc3")
        read = _run(shop, "--log", cut).json
        assert read["lines"] == text.count(b"\n") - 1
        assert [(one["kind"], one["count"]) for one in read["notices"]] == [("cut-line", 1)]
        assert _run(shop, "--log", cut, "--strict").code == 5
    text = text.replace(b"\xc3\xa9", b"")
    first = text.index(b"\n") + 1
    cut.write_bytes(text[: first - 9] + b"\n" + text[first:])
    read = _run(shop, "--log", cut).json
    assert read["lines"] == text.count(b"\n") - 1
    assert read["notices"][0]["names"] == ["line 1"]


def test_no_line_is_appended_to_what_is_left_of_another(
    shop: Shop, logged: Callable[..., Path]
) -> None:
    """A kill left a torn line before, and a disk that was full tore one of its own: both are left
    out, all others are read, and written and dropped are what the file says."""
    lines = _lines(logged("new.onnx"))
    path = shop.path("torn.jsonl")
    path.write_text('{"query": "of a service that was killed", "hi')
    with Searcher.open(shop.path("store")) as searcher:
        current = searcher.current
        query = Path(str(load(shop.data()).sources[0])).read_bytes()
        answer = answer_of(current.answer([current.prepare(query)], K), 0, K)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = AnswerLog(path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        for number in range(20):
            log.add(LogLine(query=f"q{number}", side="current", answer=answer, other=answer))
        _until(lambda: log.written + log.dropped == 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    torn = log.written
    assert 0 < torn < 20
    log.add(LogLine(query=lines[0]["query"], side="current", answer=answer, other=answer))
    log.close()
    assert (log.written, log.dropped) == (torn + 1, 20 - torn)
    read = read_compared_log(path)
    names = {f"q{number}" for number in range(torn)} | {lines[0]["query"]}
    assert {logged.query for logged in read.queries} == names
    assert path.read_bytes().count(b'{"query') == 1


def _until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_the_log_of_another_store_is_said(shop: Shop, logged: Callable[..., Path]) -> None:
    """A query model that never served this store is a warning; one that once did is none."""
    path = logged("new.onnx")
    assert "never a query model" not in _run(shop, "--log", path).stderr
    given = ("--model", shop.path("new.onnx"), "--force", "--reason", "drill")
    assert shop.run("deploy", *given).code == 0
    assert _run(shop, "--log", path).json["served"]
    path.write_text(path.read_text().replace(_lines(path)[0]["query_model"], "a" * 64))
    foreign = _run(shop, "--log", path)
    assert "aaaaaaaaaaaa was never a query model of this store" in foreign.stderr
    assert not foreign.json["served"]


def _without(line: str) -> str:
    entry = json.loads(line)
    del entry["candidate"]
    return json.dumps(entry) + "\n"
