"""Embedding on a real cluster of Ray that starts on this machine: the rows of one process."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shop_kit import Shop, write_encoder
from store_kit import begin

from compatctl.data import Dataset, load
from compatctl.deployment import bulk_embedding
from compatctl.deployment.bulk_embedding import BulkEmbedding
from compatctl.deployment.ray_embedding import LOCAL, RESTARTS, RayCluster, embed_each
from compatctl.deployment.step_embedding import embed_step
from compatctl.encoder import Encoder
from compatctl.store.pending_rows import PendingRows

# Not importorskip: Ray reads the token of its cluster when it is imported.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")

ITEMS, BLOCK = 300, 40
BROKEN = 77


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight blocks, the last one shorter."""
    monkeypatch.setattr(bulk_embedding, "BATCH", BLOCK)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A sealed encoder."""
    return write_encoder(tmp_path / "model.onnx", noise=0.3)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of image files, one of which does not decode."""
    (tmp_path / "images").mkdir()
    rng, lines = np.random.default_rng(0), ["id,path,label,role"]
    for number in range(ITEMS):
        path = tmp_path / "images" / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
        lines.append(f"item-{number},images/{number}.png,c{number % 7},gallery")
    (tmp_path / "images" / f"{BROKEN}.png").write_bytes(b"no image")
    (tmp_path / "items.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "items.csv"


@pytest.fixture
def parquet(table: Path) -> Path:
    """The same images inside a Parquet file."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    columns = {
        "id": [row[0] for row in rows],
        "image": [{"bytes": (table.parent / row[1]).read_bytes(), "path": row[1]} for row in rows],
        "label": [row[2] for row in rows],
    }
    pq.write_table(pa.table(columns), table.with_suffix(".parquet"), row_group_size=50)
    return table.with_suffix(".parquet")


def _embedded(model: Path, items: Dataset, *, ray: bool, **more: object) -> tuple[object, ...]:
    """Rows, bytes of features, digests and bad items of one pass."""
    cluster = RayCluster(address=LOCAL, model=model.read_bytes) if ray else None
    encoder = Encoder.load(model)
    given = {"skip_bad": True, "cluster": cluster, **more}
    with BulkEmbedding.of(encoder, items, **given) as done:  # type: ignore[arg-type]
        done.file.seek(0)
        return done.rows, done.file.read(), bytes(done.digests), done.bad


@pytest.mark.parametrize("form", ["table", "parquet"])
def test_rows_are_those_of_one_process(
    form: str, model: Path, request: pytest.FixtureRequest
) -> None:
    """Bits, order, digests and left-out items, of image files and of images in a Parquet file."""
    items = load(request.getfixturevalue(form))
    seen: list[tuple[int, int]] = []

    def progress(stage: str, done: int, total: int) -> None:
        seen.append((done, total))

    on_ray = _embedded(model, items, ray=True, progress=progress)
    here = _embedded(model, items, ray=False)
    assert on_ray == here
    rows, _, _, bad = here
    assert rows == [row for row in range(ITEMS) if row != BROKEN]
    assert bad == [items.ids[BROKEN]]
    assert seen == [(min(done, ITEMS), ITEMS) for done in range(BLOCK, ITEMS + BLOCK, BLOCK)]


def test_a_killed_worker_is_started_again(table: Path, model: Path) -> None:
    """SIGKILL of every worker after the first block: the same rows, each once."""
    killed: list[int] = []

    def kill(stage: str, done: int, total: int) -> None:
        if not killed:
            killed.extend(_workers())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    items = load(table)
    on_ray = _embedded(model, items, ray=True, progress=kill)
    assert killed
    assert on_ray == _embedded(model, items, ray=False)


def test_a_step_of_a_backfill_is_that_of_one_process(
    parquet: Path, model: Path, tmp_path: Path
) -> None:
    """A step that stops early has whole blocks. In the next one vectors that are kept do not pass
    again, and the others do."""
    items = load(parquet)
    encoder, found = Encoder.load(model), []
    for name, cluster in (
        ("here", None),
        ("ray", RayCluster(address=LOCAL, model=model.read_bytes)),
    ):
        kept = PendingRows.open(begin(tmp_path / name).path, encoder.sha256, encoder.dim)
        first = items.take(range(0, ITEMS, 3))
        given = {"block": BLOCK, "skip_bad": True, "cluster": cluster}
        calls = iter([False, True])
        for part, stop in ((first, lambda: next(calls)), (items, lambda: False)):  # noqa: B023
            step = embed_step(encoder, part, kept, stop=stop, **given)  # type: ignore[arg-type]
            step.features.file.seek(0)
            rows = step.features.file.read()
            found.append((name, step.passed, step.tried, step.features.rows, rows))
            assert bytes(step.features.digests) == b"".join(
                bytes.fromhex(part.digest(row)) for row in step.features.rows
            )
    assert [part[1:] for part in found[:2]] == [part[1:] for part in found[2:]]
    assert found[0][1:3] == (2 * BLOCK, 2 * BLOCK)  # the broken image is not in the first step
    assert found[1][1] == ITEMS - 1 - found[0][1]


def test_workers_that_always_die_end_the_command(table: Path, model: Path) -> None:
    """As where a model needs more memory than the machine has: an error, and no endless retry,
    nothing written, and no process left."""
    with _killer():
        done = _init(table, model, "--ray", LOCAL)
    assert done.returncode == 5, done.stderr
    assert f"a worker died {RESTARTS + 1} times" in done.stderr
    _wait_for_no_processes_of_ray()


def test_an_image_that_does_not_decode_is_named_as_in_one_process(table: Path, model: Path) -> None:
    """Without --skip-bad: the same error and exit code; the blocks after it do not run on."""
    on_ray = _init(table, model, "--ray", LOCAL)
    here = _init(table, model)
    assert on_ray.returncode == here.returncode == 5, on_ray.stderr
    assert on_ray.stderr.endswith(here.stderr)  # after what Ray itself prints
    assert f"item-{BROKEN}" in here.stderr
    _wait_for_no_processes_of_ray()


def test_a_pass_that_is_left_early_leaves_no_thread(table: Path, model: Path) -> None:
    """Ray would end the process in which a thread of its own calls it after its end."""
    items, encoder = load(table), Encoder.load(model)
    parts = (items.take(range(at, at + 10)) for at in range(BROKEN + 1, ITEMS - 10, 10))
    cluster = RayCluster(address=LOCAL, model=model.read_bytes)
    with contextlib.closing(embed_each(encoder, parts, cluster, skip_bad=False)) as blocks:
        assert len(next(blocks).rows) == 10
        assert _threads_of_ray_data(), "the others are embedded meanwhile"
    assert not _threads_of_ray_data()


def test_init_and_add_give_the_store_of_one_process(table: Path, model: Path) -> None:
    """The same index and counts, and JSON alone on stdout."""
    results = {}
    for name, flags in (("here", []), ("ray", ["--ray", LOCAL])):
        shop = Shop(table.parent / name)
        shop.folder.mkdir()
        few = table.with_name("few.csv")
        few.write_text("\n".join(table.read_text().splitlines()[:200]) + "\n")
        project = f"format: 1\ndata: {few}\n"
        shop.path("compatctl.yaml").write_text(project)
        first = _command("init", *shop.args, "--model", str(model), "--skip-bad", *flags)
        shop.path("compatctl.yaml").write_text(project.replace("few.csv", table.name))
        second = _command("add", *shop.args, "--skip-bad", *flags)
        assert first.returncode == second.returncode == 0, first.stderr + second.stderr
        results[name] = [{**_json_of(done), "store": ""} for done in (first, second)]
    assert results["here"] == results["ray"]
    assert results["here"][1]["added"] == ITEMS - 199


def test_an_address_without_a_cluster_is_refused(table: Path, model: Path) -> None:
    """By its address, with exit code 5 and nothing written."""
    shop = Shop(table.parent / "shop")
    shop.folder.mkdir()
    flags = ["--data", str(table), "--store", str(shop.path("store")), "--ray", "127.0.0.1:1"]
    done = _command("init", "--model", str(model), *flags)
    assert done.returncode == 5, done.stderr
    assert "no cluster of Ray at 127.0.0.1:1" in done.stderr
    assert not shop.path("store").exists()


def _init(table: Path, model: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """``init`` of the table; no store may be there afterwards."""
    store = table.with_name("store")
    done = _command(
        "init", "--model", str(model), "--data", str(table), "--store", str(store), *flags
    )
    assert not store.exists()
    return done


def _threads_of_ray_data() -> list[str]:
    """Threads that call Ray by themselves."""
    names = ("StreamingExecutor", "ray-data-metadata-prefetch", "iter_threaded")
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(names)]


def _json_of(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    """The JSON on stdout, which holds nothing else."""
    value: dict[str, object] = json.loads(done.stdout)
    return value


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "compatctl", *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def _workers(name: bytes = b"ray::MapWorker") -> list[int]:
    """The processes of Ray that embed: they change their names."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(name):
                found.append(int(path.parent.name))
        except OSError:
            continue  # it ended meanwhile
    return found


def _wait_for_no_processes_of_ray() -> None:
    """Ray's processes end by themselves, soon after the one that started them."""
    deadline = time.monotonic() + 30
    while left := _workers(b"ray::"):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@contextlib.contextmanager
def _killer() -> Iterator[None]:
    """Kill every worker that there is, again and again."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.05):
            for pid in _workers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
