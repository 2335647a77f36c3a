"""Several processes embed for one backfill, through a queue in PostgreSQL."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from engine_kit import EngineShop
from kill_kit import environment
from shop_kit import Shop, filtered_table

from compatctl.data import load
from compatctl.deployment import shared_embedding
from compatctl.deployment.ray_embedding import Block
from compatctl.deployment.shared_embedding import read_block, write_block
from compatctl.encoder import Encoder
from compatctl.migration import backfill_estimate

FORCE = ("--force", "--reason", "drill")
WORKER = "from compatctl.cli import main; main()"
STUCK = """
import time
from pathlib import Path
from compatctl.cli import main
from compatctl.deployment import shared_embedding

def embed_block(*arguments, **options):
    Path({mark!r}).touch()
    time.sleep(600)

shared_embedding.embed_block = embed_block
main()
"""
"""A worker that takes a block and never ends it."""


@pytest.fixture
def deployed(pg: EngineShop, monkeypatch: pytest.MonkeyPatch) -> EngineShop:
    """The better model over the rows of the noisy one; its backfill has blocks of ten items, and
    takes a while over each."""
    pg.done("deploy", "--model", pg.path("new.onnx"), *FORCE)
    monkeypatch.setattr(backfill_estimate, "MIN_BLOCK", 10)
    monkeypatch.setattr(backfill_estimate, "MAX_BLOCK", 10)
    embed = shared_embedding.embed_block

    def slowly(*arguments: object, **options: object) -> Block:
        time.sleep(0.5)
        return embed(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(shared_embedding, "embed_block", slowly)
    return pg


def worker(shop: EngineShop, code: str = WORKER, *words: object) -> subprocess.Popen[str]:
    """A worker in a process of its own."""
    options = [*shop.shop.args, "--json", "--worker", "8s", *words]
    return subprocess.Popen(
        [sys.executable, "-c", code, "backfill", *map(str, options)],
        env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def started(shop: EngineShop, process: subprocess.Popen[str]) -> None:
    """Wait until the worker looks at the queue."""
    assert shop.table is not None
    for _ in range(600):
        assert process.poll() is None, process.communicate()
        found = shop.table.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'compatctl' "
            "AND datname = current_database()"
        )
        if found[0][0]:
            return
        time.sleep(0.1)
    raise AssertionError("the worker does not connect")


def is_filled(shop: EngineShop) -> bool:
    """Whether every row of the gallery is what the new model makes of its item, one by one."""
    gallery, data = shop.gallery(), load(shop.shop.data())
    items = data.take([data.row_of[item] for item in gallery.catalog.ids])
    fresh = Encoder.load(shop.path("new.onnx")).embed(items).features
    return all(np.allclose(row, new, atol=1e-5)
               for row, new in zip(gallery.vectors(), fresh, strict=True))  # fmt: skip


def test_a_worker_embeds_for_a_backfill(deployed: EngineShop) -> None:
    """It takes blocks that the backfill does not have yet; every row is the model's, none is passed
    twice, and the queue is empty at the end."""
    assert deployed.table is not None
    process = worker(deployed)
    started(deployed, process)
    result = deployed.done("backfill", *FORCE).json
    out, err = process.communicate(timeout=60)
    done = json.loads(out)
    assert process.returncode == 0, err
    assert done["blocks"] >= 3
    assert 0 < done["items"] < result["rows"]
    assert (result["passed"], result["share"]) == (result["rows"], 1.0)
    assert is_filled(deployed)
    assert deployed.table.execute("SELECT count(*) FROM compatctl_queue") == [(0,)]
    assert deployed.done("check").json["ok"]


def test_the_block_of_a_killed_worker_goes_to_another(deployed: EngineShop, tmp_path: Path) -> None:
    """A worker takes a block and is killed by SIGKILL: the backfill embeds that block, and ends
    with every row."""
    mark = tmp_path / "taken"
    process = worker(deployed, STUCK.format(mark=str(mark)))
    started(deployed, process)

    def kill() -> None:
        while not mark.exists():
            time.sleep(0.05)
        time.sleep(2.0)
        process.send_signal(signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    result = deployed.done("backfill", *FORCE).json
    thread.join()
    process.communicate()
    assert mark.exists(), "it had taken a block"
    assert process.returncode == -signal.SIGKILL
    assert (result["passed"], result["share"]) == (result["rows"], 1.0)
    assert is_filled(deployed)


def test_a_worker_with_other_data_is_refused(deployed: EngineShop) -> None:
    """It lacks items of the backfill: exit code 5, the block goes to the backfill."""
    gallery = set(deployed.gallery().catalog.ids)
    fewer = filtered_table(deployed.shop, lambda entry: entry["id"] not in gallery)
    process = worker(deployed, WORKER, "--data", fewer)
    started(deployed, process)
    assert deployed.done("backfill", *FORCE).json["share"] == 1.0
    _, err = process.communicate(timeout=60)
    assert process.returncode == 5
    assert "the data of this worker have no item" in err
    assert is_filled(deployed)


def test_a_worker_needs_the_queue(shop: Shop, pg: EngineShop) -> None:
    """Of a store in a folder it is a usage error; with nothing to do it ends by itself; and options
    of the backfill itself have no effect."""
    done = pg.done("backfill", "--worker", "1s").json
    assert (done["blocks"], done["items"]) == (0, 0)
    refused = pg.run("backfill", "--worker", "1s", "--share", 0.5)
    assert refused.code == 2
    assert "--share has no effect" in refused.stderr
    assert pg.run("backfill", "--worker", "10%").code == 2
    copy = shop.path("elsewhere")
    made = shop.run("init", "--model", shop.path("old.onnx"), "--store", copy)
    assert made.code == 0, made.stderr
    folder = shop.run("backfill", "--worker", "1s", "--store", copy)
    assert folder.code == 2
    assert "is for a store whose rows are in a table of PostgreSQL" in folder.stderr


def test_a_block_is_what_was_written() -> None:
    """Rows, features, digests and ids that do not decode, also of an empty block."""
    rng = np.random.default_rng(0)
    for n in (5, 0):
        block = Block(
            rows=np.arange(n) * 2,
            features=rng.standard_normal((n, 7)).astype(np.float32),
            digests=rng.integers(0, 256, (n, 32)).astype(np.uint8),
            bad=("ünreadable", "b"),
        )
        back = read_block(write_block(block))
        assert np.array_equal(back.rows, block.rows)
        assert np.array_equal(back.features, block.features)
        assert np.array_equal(back.digests, block.digests)
        assert back.bad == block.bad
