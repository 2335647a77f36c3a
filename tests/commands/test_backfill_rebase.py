"""A step that meets a newer generation: added rows are taken over, others are judged anew."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from shop_kit import Shop, stored_rows

from compatctl.commands.add import add
from compatctl.commands.backfill import backfill
from compatctl.data import load
from compatctl.encoder import Encoder
from compatctl.errors import ConflictError
from compatctl.manifest import Catalog
from compatctl.migration.backfill_budget import Amount
from compatctl.migration.backfill_result import BackfillOptions
from compatctl.progress import Progress
from compatctl.recipe import Project
from compatctl.store import Store, write_run
from compatctl.store.pending_rows import PendingRows

FORCE = ("--force", "--reason", "drill")
ALL = Amount.parse("100%", "--step")


@pytest.fixture
def twin(deployed: Shop, tmp_path: Path) -> Shop:
    """A copy of the deployed project."""
    other = Shop(tmp_path / "twin")
    shutil.copytree(deployed.folder, other.folder)
    return other


def table_of(shop: Shop, name: str, count: int = 5) -> Path:
    """A table of new gallery items, whose images are copies of others."""
    data = load(shop.data())
    path = shop.data().with_name(f"{shop.folder.parent.name}-{name}.csv")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "path", "label"])
        for n, source in enumerate(data.sources[:count]):
            writer.writerow([f"{name} {n}", source, f"class of {name}"])
    return path


def project(shop: Shop) -> Project:
    return Project.load(shop.path("compatctl.yaml"))


def catalog(shop: Shop) -> Catalog:
    return Store.open(shop.path("store")).catalog()


def once(stage: str, work: Callable[[], None]) -> Progress:
    """A progress that does something at the end of a stage, the first time."""
    done: list[str] = []

    def report(name: str, count: int, total: int) -> None:
        if name == stage and count == total and not done:
            done.append(name)
            work()

    return report


def ran(shop: Shop, *arguments: object) -> None:
    result = shop.run(str(arguments[0]), *arguments[1:])
    assert result.code == 0, result.stderr


def test_rows_added_while_the_index_was_built_are_taken_over(deployed: Shop, twin: Shop) -> None:
    """Two generations of them; the index is, byte for byte, that of a backfill after the adding."""
    tables = [table_of(deployed, "one"), table_of(deployed, "two", 3)]

    def adding() -> None:
        for table in tables:
            ran(deployed, "add", "--data", table)

    result = backfill(project(deployed), progress=once("building the index", adding))
    assert [step.rebased for step in result.steps] == [1]
    assert (result.written, result.rows) == (True, len(catalog(deployed)))
    for table in tables:
        ran(twin, "add", "--data", table)
    after = twin.run("backfill").json
    assert after["index_sha256"] == result.index_sha256
    assert catalog(deployed).ids == catalog(twin).ids
    assert catalog(deployed).counts()[result.query_model] == result.rows == 163
    ran(deployed, "check")


def test_items_added_while_a_step_was_embedded_need_no_rebase(deployed: Shop) -> None:
    """The step is judged on the gallery that has them."""
    table = table_of(deployed, "early")
    hook = once("items embedded", lambda: ran(deployed, "add", "--data", table))
    result = backfill(project(deployed), progress=hook)
    assert (result.rows, result.steps[0].rebased) == (len(catalog(deployed)), 0)
    assert "early 0" in catalog(deployed).row_of


def test_a_removal_meanwhile_makes_the_step_anew(deployed: Shop) -> None:
    """Nothing is embedded again, and no removed item comes back."""
    gone = sorted(catalog(deployed).ids)[:4]
    hook = once("building the index", lambda: ran(deployed, "remove", *gone))
    before = len(catalog(deployed))
    result = backfill(project(deployed), progress=hook)
    assert (result.passed, result.embedded, result.rows) == (before, before - 4, before - 4)
    assert not set(gone) & set(catalog(deployed).ids)
    assert PendingRows.existing(deployed.path("store"), result.query_model) is None
    ran(deployed, "check")


def test_an_item_that_changed_meanwhile_keeps_its_newer_vector(deployed: Shop) -> None:
    """add --changed embeds another image of an item: the step that was computed leaves it."""
    data, item = load(deployed.data()), catalog(deployed).ids[0]
    other = next(source for source, name in zip(data.sources, data.ids, strict=True) if name > item)
    path = deployed.data().with_name(f"{deployed.folder.parent.name}-changed.csv")
    label = data.labels[data.row_of[item]]
    path.write_text(f"id,path,label\n{item},{other},{label}\n")
    hook = once("building the index", lambda: ran(deployed, "add", "--changed", "--data", path))
    result = backfill(project(deployed), progress=hook)
    assert result.share == 1.0
    wanted = Encoder.load(deployed.path("new.onnx")).embed(load(path)).features
    np.testing.assert_allclose(stored_rows(deployed, [item]), wanted, atol=1e-5)


def test_another_query_model_ends_the_run(deployed: Shop) -> None:
    """Exit 6: what was embedded is of a model that no longer answers."""
    hook = once("building the index", lambda: ran(deployed, "rollback"))
    with pytest.raises(ConflictError, match="another query model"):
        backfill(project(deployed), progress=hook)
    assert deployed.manifest()["operation"] == "rollback"


def test_items_are_added_to_a_generation_that_a_backfill_wrote_meanwhile(
    deployed: Shop, twin: Shop
) -> None:
    """add embeds nothing again; the index is, byte for byte, that of adding after the backfill."""
    table = table_of(deployed, "late")
    hook = once("items embedded", lambda: ran(deployed, "backfill", "--share", 0.5))
    result = add(replace(project(deployed), data=table), progress=hook)
    assert (result.added, result.written) == (5, True)
    ran(twin, "backfill", "--share", 0.5)
    after = twin.run("add", "--data", table)
    assert after.json["index_sha256"] == result.index_sha256
    assert catalog(deployed).models == catalog(twin).models
    ran(deployed, "check")


def test_a_smaller_run_takes_what_a_refused_one_embedded(shop: Shop) -> None:
    """Items whose vectors are kept come first, in whatever order."""
    ran(shop, "deploy", "--model", shop.path("worse.onnx"), *FORCE)
    assert shop.run("backfill", "--step", "100%", "--share", 0.9).code == 3
    options = BackfillOptions(share=0.5, forced_reason="drill", dry_run=True)
    model = shop.manifest()["query_model"]
    kept = PendingRows.existing(shop.path("store"), model)
    assert kept is not None
    result = shop.run("backfill", "--order", "hubs", "--budget", 1, "--share", 0.5, *FORCE)
    assert result.code == 0, result.stderr
    assert (result.json["passed"], result.json["share"]) == (0, pytest.approx(0.5, abs=0.01))
    assert backfill(project(shop), options=options).outcome == "nothing to do"


def test_what_a_run_left_that_was_killed_after_its_last_commit_is_deleted(deployed: Shop) -> None:
    """The same command then says that there is nothing to do, and cleans up; status counts what is
    kept until then."""
    store = deployed.path("store")
    ids, model = list(catalog(deployed).ids), deployed.manifest()["query_model"]
    ran(deployed, "backfill", "--step", "100%")
    kept = PendingRows.open(store, model, 32)
    kept.append(ids[:3], stored_rows(deployed, ids[:3]), catalog(deployed).digests[:3])
    write_run(store, {"identity": BackfillOptions(step=ALL).identity(model)})
    assert deployed.run("check").json["unreferenced"] == [f"backfill/{model}.rows"]
    again = deployed.run("backfill", "--step", "100%").json
    assert again["outcome"] == "nothing to do"
    assert [path.name for path in (store / "backfill").iterdir()] == ["LOCK"]


def test_status_counts_what_is_kept(deployed: Shop) -> None:
    """Rows that an unfinished backfill embedded passed, whether they are written or not."""
    ids, model = list(catalog(deployed).ids), deployed.manifest()["query_model"]
    kept = PendingRows.open(deployed.path("store"), model, 32)
    kept.append(ids[:3], stored_rows(deployed, ids[:3]), catalog(deployed).digests[:3])
    assert deployed.run("status").json["gallery_pass"]["by"] == {"pending": 3}
    ran(deployed, "check", "--gc")
    assert deployed.run("status").json["gallery_pass"]["by"] == {}
