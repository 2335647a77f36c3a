"""The way of a lazy upgrade in processes of their own: verify, deploy, search, warm, promote with
kills, rollback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from free_kit import with_free
from shop_kit import Shop, turned, write_encoder

from compatctl.data import load
from compatctl.store import side_size

K, WIDTH = 6, 48
INSTANTS = (0.35, 0.6, 0.75, 0.85, 0.95)
"""Shares of the time of a promotion at which one is killed."""


def start(shop: Shop, *words: object) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    argv = [sys.executable, "-m", "compatctl", words[0], *shop.args, "--json", *words[1:]]
    return subprocess.Popen(
        list(map(str, argv)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(shop: Shop, *words: object) -> Any:
    """The result of a command that must succeed."""
    process = start(shop, *words)
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    return json.loads(out)


def answers(shop: Shop, image: Path) -> list[str]:
    """The ids that search finds."""
    return [hit["id"] for hit in run(shop, "search", image)["queries"][0]["hits"]]


@pytest.fixture(scope="module")
def served(begun: Path) -> Shop:
    """A store that re-scores: one search was made, and half of the gallery is warm."""
    shop = Shop(begun)
    weak = write_encoder(begun / "weak.onnx", noise=0.5)
    write_encoder(begun / "best.onnx", noise=0.02)
    free = turned(shop, "free.onnx", of="best.onnx", dim=WIDTH)
    with_free(begun / "both.onnx", weak, free)
    report, models = ("--report", shop.path("report.json")), ("old.onnx", "both.onnx")
    verified = run(shop, "verify", *map(shop.path, models), *report, "--rescore", K)
    assert verified["verdict"]["outcome"] == "pass"
    run(shop, "deploy", *report, "--rescore", K)
    data = load(shop.data())
    query = next(i for i, item in enumerate(data.items) if item.role == "query")
    assert run(shop, "search", data.sources[query])["rescoring"]["passed"] > 0
    gallery = [item.id for item in data.items if item.role == "gallery"]
    shop.path("log.txt").write_text("\n".join(gallery[: len(gallery) // 2]))
    assert run(shop, "warm", shop.path("log.txt"))["covered_share"] == 1.0
    return shop


def test_a_killed_promotion_leaves_a_store_that_serves(served: Shop, tmp_path: Path) -> None:
    """Whatever the instant, the store is the re-scored or the promoted one, whole; the command
    again reaches the same promoted store, and a rollback the re-scored one."""
    data = load(served.data())
    query = data.sources[next(i for i, item in enumerate(data.items) if item.role == "query")]
    before, rescored = served.manifest(), answers(served, query)
    whole = Shop(tmp_path / "whole")
    shutil.copytree(served.folder, whole.folder)
    began = time.monotonic()
    promoted = run(whole, "promote")
    seconds = time.monotonic() - began
    assert promoted["kept"] + promoted["embedded"] == promoted["rows"]
    found = answers(whole, query)
    for number, share in enumerate(INSTANTS):
        shop = Shop(tmp_path / f"killed{number}")
        shutil.copytree(served.folder, shop.folder)
        process = start(shop, "promote")
        try:
            process.wait(share * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
        state = shop.manifest()
        assert (state["query_model"], state["index"]) in (
            (before["query_model"], before["index"]),
            (promoted["query_model"], whole.manifest()["index"]),
        )
        assert shop.run("check").code == 0
        again = shop.run("promote")
        assert again.code == 0, again.stderr
        assert shop.manifest()["query_model"] == promoted["query_model"]
        assert shop.manifest()["index"]["dim"] == WIDTH
    assert answers(shop, query) == found
    run(shop, "rollback")
    assert shop.manifest()["index"] == before["index"]
    assert answers(shop, query) == rescored
    assert run(shop, "search", query)["rescoring"]["passed"] == 0
    assert shop.run("check", "--gc").code == 0


def copied(served: Shop, folder: Path) -> Shop:
    """A copy of the project."""
    shutil.copytree(served.folder, folder)
    return Shop(folder)


def has_every_free_vector(shop: Shop) -> bool:
    """Whether the side file of the query model is complete."""
    manifest = shop.manifest()
    size = side_size(shop.path("store"), manifest["query_model"])
    return size is not None and size.records >= manifest["index"]["count"]


def test_of_two_promotions_at_once_one_is_written(served: Shop, tmp_path: Path) -> None:
    """The one that is overtaken before it writes ends with exit code 6 and says so; the store is
    the other's, whole, and the command again finds nothing to do."""
    shop = copied(served, tmp_path / "shop")
    slow = start(shop, "promote")
    while not has_every_free_vector(shop):
        assert slow.poll() is None, slow.communicate()
        time.sleep(0.002)
    time.sleep(0.05)  # the lock of the side files is released
    os.kill(slow.pid, signal.SIGSTOP)
    fast = run(shop, "promote")
    assert (fast["written"], fast["embedded"]) == (True, 0)
    promoted = shop.manifest()
    os.kill(slow.pid, signal.SIGCONT)
    _, errors = slow.communicate()
    assert slow.returncode == 6, errors
    assert "moved on to generation 3 (promote)" in errors
    assert "run the command again" in errors
    assert shop.manifest() == promoted
    assert run(shop, "promote")["outcome"] == "nothing to do"
    assert shop.run("check").code == 0


def test_promotions_and_searches_at_once_leave_one_whole_store(
    served: Shop, tmp_path: Path
) -> None:
    """Three promotions that begin together, and searches meanwhile: each ends as documented, one
    generation is written, and no answer mixes two spaces."""
    shop = copied(served, tmp_path / "shop")
    data = load(shop.data())
    query = data.sources[next(i for i, item in enumerate(data.items) if item.role == "query")]
    promotions = [start(shop, "promote") for _ in range(3)]
    searches = []
    while any(process.poll() is None for process in promotions):
        searches.append(run(shop, "search", query))
    codes = sorted(process.wait() for process in promotions)
    assert codes[0] == 0
    assert {*codes} <= {0, 6}
    results = [json.loads(process.communicate()[0]) for process in promotions]
    assert sum(result.get("written", False) for result in results) == 1
    operations = [line["operation"] for line in run(shop, "history")["generations"]]
    assert operations == ["init", "deploy", "promote"]
    by_generation = {found["generation"]: found for found in searches}
    for found in searches:
        assert found["queries"] == by_generation[found["generation"]]["queries"]
        assert (found["rescoring"] is None) == (found["generation"] == 3)
    assert shop.run("check").code == 0
