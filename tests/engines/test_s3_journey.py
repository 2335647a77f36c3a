"""The commands on a store in a bucket, each on one of two machines, with real models."""

from __future__ import annotations

import csv
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from free_kit import serve_rescored, with_free
from s3_kit import Proxy, S3Server, objects, proxy
from shop_kit import Result, Shop, run, write_encoder

from compatctl.deployment.searcher import Searcher
from compatctl.store import Store, store_path

FOLLOW_S = 0.1


class Machines:
    """One project on machines that share a bucket and nothing else."""

    def __init__(self, shop: Shop, url: str, caches: Path, patch: pytest.MonkeyPatch) -> None:
        self.shop, self.url = shop, url
        self._caches, self._patch = caches, patch

    def on(self, machine: str) -> None:
        """From here on, this process is that machine."""
        self._patch.setenv("COMPATCTL_CACHE", str(self._caches / machine))

    def run(self, machine: str, command: str, *arguments: object) -> Result:
        """Run a command on a machine; it must succeed."""
        self.on(machine)
        result = self.shop.run(command, *arguments)
        assert result.code == 0, (command, result.stderr, result.stdout)
        return result


@pytest.fixture
def between(s3: S3Server) -> Iterator[Proxy]:
    """A proxy before the server that counts requests."""
    with proxy(s3) as state:
        yield state


@pytest.fixture
def machines(
    s3: S3Server, between: Proxy, emoji: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Machines:
    """A project whose compatctl.yaml names a new URL, with a store of one generation there."""
    for name, value in s3.env(endpoint=between.endpoint).items():
        monkeypatch.setenv(name, value)
    url = f"s3://stores/{secrets.token_hex(8)}"
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "compatctl.yaml").write_text(
        f"format: 1\nstore: {url}\ndata: {emoji / 'items.csv'}\npolicy: default\n"
        "max_gallery_pass: 1.0\n"
    )
    write_encoder(folder / "old.onnx", noise=0.6)
    write_encoder(folder / "new.onnx", noise=0.05)
    made = Machines(Shop(folder), url, tmp_path / "caches", monkeypatch)
    assert made.run("ci", "init", "--model", folder / "old.onnx").json["store"] == url
    return made


def _query(machines: Machines) -> Path:
    """The image of a held-out query."""
    table = machines.shop.data()
    with table.open(newline="", encoding="utf-8") as file:
        row = next(r for r in csv.DictReader(file) if (r["split"], r["role"]) == ("test", "query"))
    return table.parent / row["path"]


def test_what_ci_deploys_serves_on_another_machine_and_rolls_back_there(machines: Machines) -> None:
    """CI verifies and deploys; the other machine searches with the new model at its next command,
    rolls back, and CI sees that. The index is fetched once, and CI's own files never."""
    old = machines.shop.path("old.onnx")
    first = machines.run("serving", "search", _query(machines)).json
    machines.run("ci", "verify", old, machines.shop.path("new.onnx"))
    deployed = machines.run("ci", "deploy").json["query_model"]
    assert machines.run("serving", "status").json["query_model"] == deployed
    second = machines.run("serving", "search", _query(machines)).json
    assert first != second
    assert machines.run("serving", "rollback").json["generation"] == 3
    assert machines.run("ci", "status").json["query_model"] != deployed
    third = machines.run("serving", "search", _query(machines)).json
    assert {**third, "generation": 1} == first
    assert [g["operation"] for g in machines.run("ci", "history").json["generations"]] == [
        "init",
        "deploy",
        "rollback",
    ]


def test_a_light_command_fetches_nothing_heavy(machines: Machines, between: Proxy) -> None:
    """status, history and a rollback of a deploy on a fresh machine fetch no model, index or
    catalogue, and a second status costs one request without a body."""
    machines.run("ci", "verify", machines.shop.path("old.onnx"), machines.shop.path("new.onnx"))
    machines.run("ci", "deploy")
    between.requests.clear()
    machines.run("fresh", "status")
    machines.run("fresh", "history")
    machines.run("fresh", "rollback")
    assert not [r for kind in ("models", "indexes", "catalogs") for r in between.got("GET", kind)]
    between.requests.clear()
    machines.run("fresh", "status")
    assert {(r.method, r.status, r.answered) for r in between.requests} == {("GET", 304, 0)}


def test_every_command_that_changes_the_gallery_works_from_any_machine(
    machines: Machines, emoji: Path, tmp_path: Path
) -> None:
    """backfill, remove, add and gc, each on another machine: one history without a problem, and
    what was erased leaves the bucket and the other machine's copy."""
    machines.run("ci", "verify", machines.shop.path("old.onnx"), machines.shop.path("new.onnx"))
    machines.run("ci", "deploy")
    machines.run("serving", "search", _query(machines))
    machines.run("worker", "backfill", "--share", "0.3")
    machines.on("serving")
    before = Store.open(machines.url)
    item = before.catalog().ids[0]
    kept = before.verified_path("catalogs", before.manifest.catalog)
    removed = machines.run("worker", "remove", item).json
    assert removed["removed"] == 1
    machines.run("serving", "status")
    assert not kept.exists()
    assert item not in Store.open(machines.url).catalog().ids
    machines.run("ci", "add", "--data", emoji / "items.csv")
    report = machines.run("worker", "check", "--gc", "--keep", "1").json
    assert report["ok"]
    for machine in ("ci", "serving", "fresh"):
        assert machines.run(machine, "check").json["problems"] == []


def test_a_searcher_follows_deploys_and_outages(
    machines: Machines, s3: S3Server, between: Proxy
) -> None:
    """A searcher on another machine switches within seconds of a deploy from CI, goes on with its
    generation while the server is away, and says why."""
    machines.on("serving")
    with Searcher.open(machines.url, follow_s=FOLLOW_S) as searcher:
        assert searcher.manifest.generation == 1
        machines.run("ci", "verify", machines.shop.path("old.onnx"), machines.shop.path("new.onnx"))
        machines.run("ci", "deploy")
        _until(lambda: searcher.manifest.generation == 2)
        answers = searcher.search([_query(machines)], 3)

        def cut(method: str, path: str) -> None:
            raise ConnectionError

        between.before = cut
        _until(lambda: searcher.problem is not None)
        assert machines.url in str(searcher.problem)
        again = searcher.search([_query(machines)], 3)
        assert again.rows.tolist() == answers.rows.tolist()
        assert again.generation == answers.generation == 2
        between.before = lambda method, path: None
        _until(lambda: searcher.problem is None)


def _until(holds: object) -> None:
    deadline = time.monotonic() + 60
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_fresh_runner_does_not_begin_to_count_attempts_at_zero(machines: Machines) -> None:
    """A second verify with another seed, on a machine without a cache, is attempt 2; a report of
    attempt 1 that a third machine makes with yet another seed is attempt 3."""
    models = machines.shop.path("old.onnx"), machines.shop.path("new.onnx")
    numbers = [
        machines.run(f"runner-{seed}", "verify", *models, "--seed", seed).json["attempt"]["number"]
        for seed in range(3)
    ]
    assert numbers == [1, 2, 3]


def test_who_may_only_read_verifies_uncounted_and_cannot_deploy(
    machines: Machines, s3: S3Server, between: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With credentials that may only read, verify judges and its report has no attempt, as beside a
    folder that must not be written to; deploy is exit code 5 and changes nothing."""
    for name, value in s3.env("reader", between.endpoint).items():
        monkeypatch.setenv(name, value)
    models = machines.shop.path("old.onnx"), machines.shop.path("new.onnx")
    assert machines.run("reader", "verify", *models).json["attempt"] is None
    result = machines.shop.run("deploy")
    assert result.code == 5
    assert "access denied" in result.stderr
    assert machines.run("reader", "status").json["generation"] == 1


def test_inspect_describes_a_store_by_its_url(machines: Machines) -> None:
    """``inspect s3://BUCKET/PREFIX`` says what lies there."""
    result = run("inspect", machines.url, "--json")
    assert result.code == 0, result.stderr
    assert (result.json["kind"], result.json["path"]) == ("store", machines.url)


def test_free_vectors_are_of_one_machine_and_no_limit_is_exceeded_by_several(
    machines: Machines,
) -> None:
    """Re-scoring keeps free vectors in one machine's copy; an erased item's go on every machine.
    With a limit, which machines cannot count together, no image is embedded, and status says so."""
    shop = machines.shop
    weak = write_encoder(shop.path("weak.onnx"), noise=0.5)
    with_free(shop.path("both.onnx"), weak, write_encoder(shop.path("best.onnx"), noise=0.02))
    machines.on("ci")
    serve_rescored(shop, 10, force=True)
    found = machines.run("serving", "search", _query(machines)).json["queries"][0]["hits"]
    assert all(hit["rescored"] for hit in found)
    kept = machines.run("serving", "status").json["free_vectors"]["count"]
    assert kept >= len(found)
    assert machines.run("other", "status").json["free_vectors"] is None
    machines.run("ci", "remove", found[0]["id"])
    assert machines.run("serving", "status").json["free_vectors"] is None
    project = shop.path("compatctl.yaml")
    project.write_text(
        project.read_text().replace("max_gallery_pass: 1.0", "max_gallery_pass: 0.9")
    )
    result = machines.run("serving", "search", _query(machines)).json["queries"][0]["hits"]
    assert not any(hit["rescored"] for hit in result)
    status = machines.run("serving", "status")
    assert status.json["free_vectors"] is None
    assert "cannot count together what passed" in status.stderr


def test_an_edited_manifest_stops_every_command(machines: Machines, s3: S3Server) -> None:
    """A damaged manifest is exit code 5 with the object's URL."""
    obstore.put(objects(s3, machines.url), "manifest.json", b"{}")
    machines.on("fresh")
    for command in ("status", "history", "check"):
        result = machines.shop.run(command)
        assert result.code == 5, (command, result)
        assert f"{machines.url}/manifest.json" in result.stderr


def test_the_project_file_that_init_writes_names_the_url(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``init --store URL`` without a project writes one here, and further commands use it."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    url = f"{machines.url}-other"
    result = run(
        "init", "--store", url, "--model", machines.shop.path("old.onnx"),
        "--data", machines.shop.data(), "--json",
    )  # fmt: skip
    assert result.code == 0, result.stderr
    assert f"store: {url}\n" in (folder / "compatctl.yaml").read_text()
    assert run("status", "--json").json["store"] == url
    assert [path.name for path in folder.iterdir()] == ["compatctl.yaml"]
    assert store_path(url).is_dir()
    assert not Path(__file__).parents[2].joinpath("compatctl.yaml").exists()
