"""backfill in steps: budgets, what is kept, kills at any moment, and other writers meanwhile."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from shop_kit import Shop, filtered_table, run, store_files, stored_rows, write_encoder

from compatctl.data import load
from compatctl.encoder import Encoder
from compatctl.errors import UsageError
from compatctl.manifest import Catalog
from compatctl.migration.backfill_budget import Amount
from compatctl.store import Store
from compatctl.store.pending_rows import PendingRows

FORCE = ("--force", "--reason", "drill")


def _catalog(shop: Shop) -> Catalog:
    return Store.open(shop.path("store")).catalog()


def _own(shop: Shop) -> set[str]:
    """The ids of the rows that the query model embedded."""
    catalog, model = _catalog(shop), shop.manifest()["query_model"]
    rows = zip(catalog.ids, catalog.model_of, strict=True)
    return {item for item, at in rows if catalog.models[at] == model}


def _kept(shop: Shop) -> int:
    """How many vectors of an unfinished step are kept."""
    kept = PendingRows.existing(shop.path("store"), shop.manifest()["query_model"])
    return 0 if kept is None else len(kept)


@pytest.mark.parametrize(
    ("text", "of_1000"),
    [("10000", 10_000), ("10%", 100), ("2.5%", 25), ("0.01%", 1), ("100%", 1000)],
)
def test_an_amount_of_items(text: str, of_1000: int) -> None:
    """A number, or a share of the gallery's rows, at least one."""
    assert Amount.parse(text, "--budget").items_of(1000) == of_1000


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("90m", 5400), ("1.5h", 5400)])
def test_an_amount_of_time(text: str, seconds: float) -> None:
    """Seconds, minutes and hours bound no number of items."""
    amount = Amount.parse(text, "--budget")
    assert (amount.seconds, amount.items_of(1000)) == (seconds, None)


@pytest.mark.parametrize(
    "text", ["", "0", "-3", "1.5", "101%", "3w", "h", "1e3", "10 000", "9" * 400, "9" * 400 + "s"]
)
def test_another_amount_is_refused(text: str) -> None:
    """The message names the option and the forms."""
    with pytest.raises(UsageError, match="--step is a time"):
        Amount.parse(text, "--step")


def test_a_budget_may_be_larger_than_any_gallery(deployed: Shop) -> None:
    """A number of 100 digits is as good as all."""
    result = deployed.run("backfill", "--budget", "9" * 100)
    assert result.code == 0, result.stderr
    assert result.json["share"] == 1.0


def test_steps_end_in_the_index_of_one_step(deployed: Shop, tmp_path: Path) -> None:
    """Each is one generation of the size that was requested; the last index is, byte for byte,
    that of all at once, and nothing is left over."""
    other = Shop(tmp_path / "at-once")
    shutil.copytree(deployed.folder, other.folder)
    result = deployed.run("backfill", "--step", "40%")
    assert result.code == 0, result.stderr
    first, rows = deployed.manifest()["generation"] - 3, len(_catalog(deployed))
    steps = result.json["steps"]
    size = int(0.4 * rows)
    assert [step["embedded"] for step in steps] == [size, size, rows - 2 * size]
    assert [step["generation"] for step in steps] == [first + 1, first + 2, first + 3]
    assert result.json["embedded"] == result.json["passed"] == rows
    assert (result.json["stopped"], result.json["share"]) == ("done", 1.0)
    at_once = other.run("backfill").json
    assert at_once["index_sha256"] == result.json["index_sha256"]
    assert len(at_once["steps"]) == 1
    assert steps[-1]["hit_rate"] == pytest.approx(at_once["steps"][0]["hit_rate"])
    assert sorted(path.name for path in deployed.path("store/backfill").iterdir()) == ["LOCK"]
    assert deployed.run("check").json["unreferenced"] == []


def test_a_budget_of_items_is_kept_and_the_next_run_goes_on(deployed: Shop) -> None:
    """Exactly so many pass, the sample of the estimate included; a second run passes the next."""
    rows = len(_catalog(deployed))
    first = deployed.run("backfill", "--budget", 50, "--step", 20, *FORCE)
    assert first.code == 0, first.stderr
    assert (first.json["passed"], first.json["stopped"]) == (50, "budget")
    assert [step["embedded"] for step in first.json["steps"]] == [20, 20, 10]
    assert len(_own(deployed)) == 50
    share = deployed.run("backfill", "--budget", "10%", *FORCE).json
    assert (share["passed"], share["resumed"]) == (rows // 10, False)
    assert len(_own(deployed)) == 50 + rows // 10
    assert "passed: " in run("backfill", *deployed.args, "--budget", 1, *FORCE).stdout


def test_a_budget_of_time_ends_a_run(deployed: Shop) -> None:
    """Without room for a step nothing is written; with room for some, some are."""
    files = store_files(deployed)
    little = deployed.run("backfill", "--budget", "0.001s", "--dry-run")
    assert (little.code, little.json["estimate"]["items"]) == (0, 0)
    assert store_files(deployed) == files
    none = deployed.run("backfill", "--budget", "0.001s", *FORCE)
    assert (none.code, none.json["stopped"], none.json["written"]) == (0, "budget", False)
    began = time.monotonic()
    whole = deployed.run("backfill", "--step", 5, "--dry-run").json["estimate"]["total_s"]
    some = deployed.run("backfill", "--budget", f"{whole / 3:.2f}s", "--step", 5, *FORCE).json
    assert (some["written"], some["stopped"]) == (True, "budget")
    assert time.monotonic() - began < 30
    assert some["share"] < 1.0


def test_the_cost_is_said_before_it_starts(deployed: Shop) -> None:
    """What can be reached first, then items, speed, steps and times, on stderr and in the JSON; a
    dry run in steps embeds a sample alone."""
    lost = set(sorted(_catalog(deployed).ids)[:30])
    table = filtered_table(deployed, lambda row: row["id"] not in lost)
    rows, files = len(_catalog(deployed)), store_files(deployed)
    result = deployed.run("backfill", "--data", table, "--step", 50, "--dry-run")
    assert (result.code, result.json["stopped"]) == (0, "dry run")
    assert store_files(deployed) == files
    before = result.json["estimate"]
    assert (before["rows"], before["own"], before["missing"]) == (rows, 0, 30)
    assert (before["reachable"], before["items"]) == (rows - 30, rows - 30)
    assert (before["steps"], before["step_items"]) == (-(-(rows - 30) // 50), 50)
    assert before["items_per_s"] > 0
    steps = before["steps"] * (before["judge_s"] + before["index_s"])
    assert before["total_s"] == pytest.approx(before["embed_s"] + steps)
    first, second = result.stderr.splitlines()[:2]
    assert f"of {rows} rows {1 - 30 / rows:.2%} can be of the query model" in first
    assert "items/s" in second
    assert 16 < result.json["passed"] <= 16 + 256


def test_what_cannot_work_is_refused_before_anything_is_embedded(deployed: Shop) -> None:
    """A curve that could not be written, and an order without a name."""
    for words, code, said in (
        (("--curve", deployed.path("no/curve.json")), 5, "no folder"),
        (("--curve", deployed.path("store")), 5, "is a folder"),
        (("--curve", "/dev/null"), 2, "--curve names a file"),
        (("--order", ""), 2, "--order is empty"),
    ):
        refused = deployed.run("backfill", "--step", 10, *words, *FORCE)
        assert (refused.code, said in refused.stderr) == (code, True)
        assert "to embed" not in refused.stderr
    assert deployed.manifest()["generation"] == 2


def test_a_refused_step_is_not_written_and_what_it_embedded_is_kept(shop: Shop) -> None:
    """Exit 3 at the first step that would hurt; the same again passes nothing through the network,
    and forced it is written."""
    assert shop.run("deploy", "--model", shop.path("worse.onnx"), *FORCE).code == 0
    before = shop.manifest()
    refused = shop.run("backfill", "--step", "100%")
    assert (refused.code, refused.json["stopped"]) == (3, "refused")
    assert shop.manifest() == before
    assert _kept(shop) == refused.json["passed"] == refused.json["embedded"]
    assert refused.json["gallery_pass"]["passed"] == refused.json["embedded"]
    again = shop.run("backfill", "--step", "100%").json
    assert (again["passed"], again["outcome"]) == (0, "fail")
    assert again["estimate"]["kept"] == refused.json["embedded"]
    forced = shop.run("backfill", "--step", "100%", *FORCE).json
    assert (forced["passed"], forced["embedded"]) == (0, forced["rows"])
    assert shop.manifest()["forced_reason"] == "drill; backfill: drill"
    assert _kept(shop) == 0


def test_another_backfill_meanwhile_is_refused(deployed: Shop) -> None:
    """Exit 6 at once, while another process holds the lock; a dry run works."""
    from compatctl.store import backfill_lock

    with backfill_lock(deployed.path("store")):
        refused = deployed.run("backfill", "--step", 10)
        assert (refused.code, "locked by process" in refused.stderr) == (6, True)
        assert deployed.run("backfill", "--share", 0.1, "--dry-run").code in {0, 3, 4}


@pytest.fixture
def slow(shop: Shop) -> Iterator[Shop]:
    """A gallery of 465 rows, most of them copies with classes of their own, and a better model, so
    large that it embeds some ten items a second."""
    table = shop.data().with_name(f"{shop.folder.parent.name}-copies.csv")
    with shop.data().open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    gallery = [row for row in rows if row["role"] == "gallery"]
    for n in range(2):
        rows += [{**row, "id": f"{n} {row['id']}", "label": f"{n} {n}"} for row in gallery]
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    settings = shop.path("compatctl.yaml")
    settings.write_text(settings.read_text().replace(str(shop.data()), str(table)))
    slow_encoder(shop.path("slow.onnx"))
    for command in (("add",), ("deploy", "--model", shop.path("slow.onnx"), *FORCE)):
        result = shop.run(*command)
        assert result.code == 0, result.stderr
    yield shop
    table.unlink()


def slow_encoder(path: Path) -> None:
    """The better model with a detour of some billion products an item, which changes nothing."""
    write_encoder(path, noise=0.05)
    model = onnx.load(path)
    nodes, size = list(model.graph.node), 768
    at = next(n for n, node in enumerate(nodes) if node.output[0] == "x") + 1
    matrix = np.full((size, size), 1e-3, np.float32)
    added = {"detour": matrix, "last": np.array([2], np.int64), "middle": np.array([1], np.int64)}
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in added.items())
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.0), "nothing"))
    detour = [
        helper.make_node("Unsqueeze", ["x", "last"], ["column"]),
        helper.make_node("Unsqueeze", ["x", "middle"], ["line"]),
        helper.make_node("MatMul", ["column", "line"], ["square"]),
        helper.make_node("MatMul", ["square", "detour"], ["once"]),
        helper.make_node("MatMul", ["once", "detour"], ["twice"]),
        helper.make_node("ReduceSum", ["twice", "last"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "nothing"], ["gone"]),
        helper.make_node("Add", ["x", "gone"], ["straight"]),
    ]
    for node in nodes[at:]:
        node.input[:] = ["straight" if name == "x" else name for name in node.input]
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:at], *detour, *nodes[at:]])
    path.write_bytes(model.SerializeToString())


def start(shop: Shop, command: str, *arguments: object) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    argv = [sys.executable, "-m", "compatctl", command, *shop.args, "--json", *map(str, arguments)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(happens: Any, process: subprocess.Popen[str]) -> None:
    """Until something happens while the process runs."""
    until = time.monotonic() + 120
    while not happens():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.005)


def second_step(shop: Shop, process: subprocess.Popen[str]) -> None:
    """Until the second step of a run has kept its first block."""
    first = shop.manifest()["generation"]
    wait_for(lambda: shop.manifest()["generation"] > first and _kept(shop) == 0, process)
    wait_for(lambda: _kept(shop) > 0, process)


def test_a_run_killed_in_a_step_goes_on_without_embedding_again(slow: Shop) -> None:
    """kill -9 while the second step is embedded: the first generation is there, what was embedded
    is kept, and the same command passes the rest of the budget alone."""
    step, budget = 130, 290
    arguments = ("--step", step, "--budget", budget, *FORCE)
    process = start(slow, "backfill", *arguments)
    second_step(slow, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(_own(slow)) == step
    kept = _kept(slow)
    assert 0 < kept <= step  # a block has what two seconds embed
    assert slow.run("check").code == 0
    again = slow.run("backfill", *arguments)
    assert again.code == 0, again.stderr
    assert (again.json["resumed"], again.json["stopped"]) == (True, "budget")
    assert again.json["estimate"]["kept"] >= kept
    assert (again.json["passed"], len(_own(slow))) == (budget, budget)
    assert [entry["embedded"] for entry in again.json["steps"]] == [step, budget - 2 * step]
    ids = sorted(_own(slow))[::5]
    wanted = Encoder.load(slow.path("slow.onnx")).embed(_items(slow, ids)).features
    np.testing.assert_allclose(stored_rows(slow, ids), wanted, atol=1e-5)
    assert _kept(slow) == 0


def _items(shop: Shop, ids: list[str]) -> Any:
    data = load(shop.data())
    return data.take([data.row_of[item] for item in ids])


def test_ctrl_c_ends_a_run_with_what_it_wrote(slow: Shop) -> None:
    """Exit 130 and the steps so far as JSON; the same command continues."""
    process = start(slow, "backfill", "--step", 130, *FORCE)
    second_step(slow, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    result = json.loads(out)
    assert (result["stopped"], len(result["steps"])) == ("interrupted", 1)
    assert slow.run("backfill", "--step", 130, *FORCE).json["resumed"]
    assert len(_own(slow)) == len(_catalog(slow))


def fresh_table(shop: Shop, name: str, count: int) -> Path:
    """A table of ``count`` new gallery items, whose images are copies of others."""
    data = load(shop.data())
    folder = shop.data().parent
    path = folder / f"{shop.folder.parent.name}-{name}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "path", "label"])
        for n, source in enumerate(data.sources[:count]):
            writer.writerow([f"{name} {n}", source, f"class of {name}"])
    return path


@pytest.fixture
def adding(slow: Shop) -> Iterator[tuple[Shop, list[Path]]]:
    """The shop, and tables of new items."""
    tables = [fresh_table(slow, f"new{n}", 7) for n in range(4)]
    yield slow, tables
    for table in tables:
        table.unlink()


def test_items_are_added_and_searched_meanwhile(adding: tuple[Shop, list[Path]]) -> None:
    """Other processes add items while steps are embedded and written, and search; no one fails, and
    the last index is that of a gallery into which everything was put in one go."""
    shop, tables = adding
    before = _catalog(shop)
    query = load(shop.data()).filter(split="test", role="query").sources[0]
    process = start(shop, "backfill", "--step", 130, *FORCE)
    wait_for(lambda: _kept(shop) > 0, process)
    for table in tables:
        added = start(shop, "add", "--data", table)
        out, err = added.communicate(timeout=120)
        assert added.returncode == 0, err
        assert json.loads(out)["added"] == 7
        found = start(shop, "search", query)
        out, err = found.communicate(timeout=120)
        assert found.returncode == 0, err
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    catalog = _catalog(shop)
    new = [item for item in catalog.ids if item not in before.row_of]
    assert (len(new), len(catalog)) == (28, len(before) + 28)
    assert _own(shop) == set(catalog.ids)
    assert shop.run("check").code == 0
    model = Encoder.load(shop.path("slow.onnx"))
    ids = list(before.ids)[::7]
    np.testing.assert_allclose(
        stored_rows(shop, ids), model.embed(_items(shop, ids)).features, atol=1e-5
    )
    for table in tables:
        items = load(table)
        np.testing.assert_allclose(
            stored_rows(shop, list(items.ids)), model.embed(items).features, atol=1e-5
        )
