"""The row that the application reads, and the store: they never contradict each other silently."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from engine_kit import EngineShop, adopt
from kill_kit import environment, killed
from postgres_kit import Table
from shop_kit import Shop, run

from compatctl.encoder import Encoder
from compatctl.store import Store, manifest_digest


@pytest.fixture
def verified(pg: EngineShop) -> EngineShop:
    """The project, with a report that lets the new model pass."""
    pg.done("verify", pg.path("new.onnx"), "--report", pg.path("report.json"))
    return pg


def deploy_arguments(shop: EngineShop) -> tuple[object, ...]:
    """The words of a deploy of the report."""
    return ("deploy", *shop.shop.args, "--report", shop.path("report.json"))


def test_the_row_says_what_the_manifest_says(verified: EngineShop) -> None:
    """After import, deploy and rollback: epoch, model, manifest, table and columns."""
    assert verified.table is not None
    for command in ((), deploy_arguments(verified)[:1], ("rollback",)):
        if command:
            verified.done(*command, *(("--report", verified.path("report.json")) * (
                command[0] == "deploy")))  # fmt: skip
        manifest = Store.open(verified.path("store")).manifest
        row = verified.table.row()
        assert row["epoch"] == manifest.generation
        assert row["query_model"] == manifest.query_model
        assert row["manifest"] == manifest_digest(manifest)
        assert (row["search_table"], row["id_column"], row["vector_column"], row["operator"]) == (
            "public.items", "id", "embedding", "<=>",
        )  # fmt: skip
        assert row["previous_epoch"] == (manifest.generation - 1 or None)
        assert row["switched_at"].strftime("%Y-%m-%dT%H:%M:%SZ") == manifest.created_at
    assert manifest.generation == 3


@pytest.mark.parametrize("point", ["before the history", "before the row"])
def test_a_deploy_killed_before_the_row_is_switched_changed_nothing(
    verified: EngineShop, point: str
) -> None:
    """Row and store are as before, check finds nothing, and the same deploy works after it."""
    assert verified.table is not None
    before = verified.table.row()
    killed(point, *deploy_arguments(verified))
    assert verified.table.row() == before
    assert verified.done("check").json["ok"]
    assert verified.done(*deploy_arguments(verified)[:1], *deploy_arguments(verified)[3:])
    assert verified.table.row()["epoch"] == 2
    assert verified.done("check").json["ok"]


def test_a_deploy_killed_after_the_row_is_told_and_completed(verified: EngineShop) -> None:
    """The application follows the row already: check and status say so, search refuses with exit
    code 6, and the next command that writes completes the generation."""
    assert verified.table is not None
    killed("after the row", *deploy_arguments(verified))
    row = verified.table.row()
    assert row["epoch"] == 2
    assert verified.shop.manifest()["generation"] == 1
    told = verified.run("check")
    assert told.code == 5
    assert "a commit was cut off after the row was switched" in told.json["problems"][0]
    assert "epoch 2" in verified.done("status").json["engine"]["problems"][0]
    image = next(verified.shop.data().parent.rglob("*.png"))
    searched = verified.run("search", image)
    assert searched.code == 6
    assert "is at epoch 2" in searched.json["error"]["message"]
    dry = verified.run("deploy", "--report", verified.path("report.json"), "--dry-run")
    assert dry.code == 0
    assert verified.shop.manifest()["generation"] == 1, "a dry run writes nothing"
    again = verified.done("deploy", "--report", verified.path("report.json"))
    assert not again.json["written"], "the killed deploy is the one that serves"
    assert [entry["kind"] for entry in again.json["notices"]] == ["rolled-forward"]
    assert verified.shop.manifest()["generation"] == 2
    assert verified.table.row() == row
    assert verified.done("check").json["ok"]
    assert verified.done("search", image).json["generation"] == 2


@pytest.mark.parametrize("command", ["rollback", "check"])
def test_each_command_that_writes_completes_a_cut_off_commit(
    verified: EngineShop, command: str
) -> None:
    """rollback undoes the deploy that was cut off; check --gc keeps it."""
    killed("after the row", *deploy_arguments(verified))
    verified.done(*{"rollback": ("rollback",), "check": ("check", "--gc")}[command])
    assert verified.table is not None
    assert verified.table.row()["epoch"] == (3 if command == "rollback" else 2)
    assert verified.done("check").json["ok"]


@pytest.mark.parametrize("point", ["before the history", "before the row", "after the row"])
def test_an_import_that_was_killed_is_run_again(shop: Shop, table: Table, point: str) -> None:
    """Wherever it was killed, the same command ends with one store and its row."""
    made = adopt(shop, table)
    shutil.rmtree(made.path("store"))
    table.execute("DROP TABLE compatctl_deployment")
    words = ("import", *made.shop.args, table.url, "--model", made.path("old.onnx"))
    killed(point, *words)
    left = {path for path in made.path("store").rglob("*") if path.name != "LOCK"}
    dry = made.run("import", table.url, "--model", made.path("old.onnx"), "--dry-run")
    assert dry.code == (6 if point == "after the row" else 0), "its row is there already"
    assert {path for path in made.path("store").rglob("*") if path.name != "LOCK"} == left
    made.done("import", table.url, "--model", made.path("old.onnx"))
    assert table.row()["epoch"] == 1
    assert made.done("check").json["ok"]
    assert not made.done("import", table.url, "--model", made.path("old.onnx")).json["written"]


@pytest.mark.parametrize("change", ["epoch = 9", "manifest = repeat('0', 64)", None])
def test_a_row_that_contradicts_the_store_is_refused(
    verified: EngineShop, change: str | None
) -> None:
    """Another epoch, another manifest at the same epoch, or no row: exit code 6, nothing is
    written, and check names both sides."""
    assert verified.table is not None
    verified.table.execute(
        f"UPDATE compatctl_deployment SET {change}"
        if change
        else "DELETE FROM compatctl_deployment"
    )
    before = verified.shop.manifest()
    refused = verified.run("deploy", "--report", verified.path("report.json"))
    assert refused.code == 6
    assert "generation 1" in refused.json["error"]["message"]
    assert verified.run("rollback").code == 6
    assert verified.shop.manifest() == before
    told = verified.run("check")
    assert told.code == 5
    assert "compatctl_deployment" in told.json["problems"][0]


def test_entries_of_the_row_that_were_edited_are_told(pg: EngineShop) -> None:
    """check compares every entry, not the epoch alone."""
    assert pg.table is not None
    pg.table.execute("UPDATE compatctl_deployment SET ef_search = 1")
    told = pg.run("check")
    assert told.code == 5
    assert "changed by hand" in told.json["problems"][0]


def test_of_two_copies_of_a_store_one_switches(verified: EngineShop, tmp_path: Path) -> None:
    """Two folders at the same generation deploy at once: one wins, the other is told that the row
    is of another copy, and goes on failing until it is replaced."""
    copy = tmp_path / "copy"
    shutil.copytree(verified.shop.folder, copy)
    yaml = (copy / "compatctl.yaml").read_text()
    assert "store: store" in yaml
    other = EngineShop(engine="pgvector", shop=Shop(copy), table=verified.table)
    reason = ("--force", "--reason", "the other copy", "--model", copy / "turned.onnx")
    results: dict[str, int] = {}

    def deploy(name: str, shop: EngineShop, *words: object) -> None:
        command = [sys.executable, "-m", "compatctl", "deploy", *shop.shop.args, *words]
        done = subprocess.run(
            list(map(str, command)),
            cwd=shop.shop.folder,
            env=environment(),
            capture_output=True,
            check=False,
        )
        results[name] = done.returncode

    threads = [
        threading.Thread(target=deploy, args=("first", verified, "--report", "report.json")),
        threading.Thread(target=deploy, args=("second", other, *reason)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results.values()) == [0, 6]
    assert verified.table is not None
    winner = verified if results["first"] == 0 else other
    loser = other if winner is verified else verified
    model = verified.path("new.onnx") if winner is verified else copy / "turned.onnx"
    row = verified.table.row()
    assert (row["epoch"], row["query_model"]) == (2, Encoder.load(model).sha256)
    assert winner.done("check").json["ok"]
    assert loser.run("rollback").code == 6
    assert loser.shop.manifest()["generation"] == 1


def test_a_second_store_of_the_same_table_is_refused(pg: EngineShop) -> None:
    """Before anything is written; another name of the row makes a store of its own."""
    assert pg.table is not None
    words = ("--model", pg.path("old.onnx"), "--store", pg.path("second"))
    refused = pg.run("import", pg.table.url, *words)
    assert refused.code == 6
    assert "another store switches this table" in refused.json["error"]["message"]
    assert not pg.path("second").exists()
    pg.done("import", pg.table.url + "&name=second", *words)
    assert pg.table.execute("SELECT count(*) FROM compatctl_deployment") == [(2,)]


def test_a_server_that_is_away_stops_a_deploy_and_not_the_status(
    verified: EngineShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """deploy changes nothing; status, history and rollback --dry-run read the folder."""
    before = verified.shop.manifest()
    monkeypatch.setenv("COMPATCTL_ENGINE_URL", "postgresql://postgres@127.0.0.1:1/nowhere")
    refused = verified.run("deploy", "--report", verified.path("report.json"))
    assert refused.code == 5
    assert "cannot be reached" in refused.json["error"]["message"]
    assert verified.shop.manifest() == before
    status = verified.done("status")
    assert status.json["engine"]["rows"] is None
    assert "cannot be reached" in status.stderr
    assert verified.done("history").json["generations"]


def test_readers_behind_the_fence_never_mix_models(verified: EngineShop) -> None:
    """An application that follows docs/engines.md searches while the row is switched back and
    forth: each answer is of the model that its epoch names; stale searches find nothing, and are
    repeated."""
    assert verified.table is not None
    gallery = verified.gallery()
    queries = gallery.vectors()[:40]
    deployed = {1: gallery.manifest.query_model}
    statement = (
        "SELECT id, (SELECT query_model FROM compatctl_deployment WHERE name = 'items') FROM items "
        "WHERE (SELECT epoch FROM compatctl_deployment WHERE name = 'items') = %s "
        "ORDER BY embedding <=> %s::vector LIMIT 3"
    )
    stop, wrong, counts = threading.Event(), [], {"answers": 0, "stale": 0}
    seen: list[tuple[int, str]] = []

    def read() -> None:
        assert verified.table is not None
        with verified.table.connection() as connection:
            while not stop.is_set():
                for query in queries:
                    found = connection.execute(
                        "SELECT epoch, query_model FROM compatctl_deployment WHERE name = 'items'"
                    ).fetchone()
                    assert found is not None
                    epoch, model = found
                    rows = connection.execute(statement, (epoch, str(query.tolist()))).fetchall()
                    counts["answers" if rows else "stale"] += 1
                    seen.append((epoch, model))
                    wrong.extend(row for row in rows if row[1] != model)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    report = ("--report", verified.path("report.json"))
    verified.done("deploy", *report)
    for to in (1, 2, 1, 2, 1):
        verified.done("rollback", "--to", to)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert counts["answers"] > 100
    for entry in verified.done("history").json["generations"]:
        deployed[entry["generation"]] = entry["query_model"]
    assert all(deployed[epoch] == model for epoch, model in seen)
    assert len({epoch for epoch, _ in seen}) > 2


def test_a_search_that_meets_a_switch_is_embedded_again(
    verified: EngineShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is switched between the embedding and the search: the answer is the new model's."""
    from compatctl.encoder import Encoder as Loaded

    image = next(verified.shop.data().parent.rglob("*.png"))
    embed, switched = Loaded.embed, []

    def embed_then_switch(self: Loaded, *arguments: object, **options: object) -> object:
        embedded = embed(self, *arguments, **options)  # type: ignore[arg-type]
        if not switched:
            switched.append(True)
            words = [sys.executable, "-m", "compatctl", *map(str, deploy_arguments(verified))]
            subprocess.run(
                words, check=True, capture_output=True, cwd=verified.shop.folder, env=environment()
            )
        return embedded

    monkeypatch.setattr(Loaded, "embed", embed_then_switch)
    found = verified.done("search", image, "-k", 2).json
    assert switched
    assert found["generation"] == 2
    assert found["query_model"] == Encoder.load(verified.path("new.onnx")).sha256
    assert len(found["queries"][0]["hits"]) == 2


def test_the_password_is_needed_and_written_nowhere(
    shop: Shop, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A role with a password: import and doctor have it in the URL or from the environment, later
    commands from the environment; it is in no file of the project, not in the row, and in no
    output, of refusals either."""
    secret = "s3cr3t-Passw0rd"
    made = adopt(shop, table)
    shutil.rmtree(made.path("store"))
    table.execute("DROP TABLE compatctl_deployment")
    table.execute(f"CREATE ROLE guarded SUPERUSER LOGIN PASSWORD '{secret}'")
    url = table.url.replace("postgres@", f"guarded:{secret}@")
    results = [made.done("import", url, "--model", made.path("old.onnx")), run("doctor", url)]
    assert results[-1].code == 0
    without = made.run("check")
    assert without.code == 5
    assert "no password supplied" in without.json["problems"][0]
    with monkeypatch.context() as environment:
        environment.setenv("COMPATCTL_ENGINE_URL", url)
        plain = table.url.replace("postgres@", "guarded@")
        results.append(run("doctor", plain))
        shutil.rmtree(made.path("store"))
        table.execute("DROP TABLE compatctl_deployment")
        results.append(made.done("import", plain, "--model", made.path("old.onnx")))
        assert results[-2].code == 0, results[-2].stderr
    wrong = run("doctor", url.replace(secret, secret + "x"))
    assert wrong.code == 5
    for name, value in (("PGPASSWORD", secret), ("COMPATCTL_ENGINE_URL", url)):
        with monkeypatch.context() as environment:
            environment.setenv(name, value)
            results += [made.done("check"), made.done("status")]
            assert results[-1].json["engine"]["problems"] == []
            environment.setenv("COMPATCTL_ENGINE_URL", url.replace("@127.0.0.1", "@127.0.0.2"))
            results.append(made.run("status"))
    table.execute("REASSIGN OWNED BY guarded TO postgres")
    table.execute("DROP ROLE guarded")
    for result in (*results, without, wrong):
        assert secret not in result.stdout + result.stderr
    for path in made.shop.folder.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path
    assert secret not in json.dumps(table.row(), default=str)
