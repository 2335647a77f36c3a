"""How often each command opens an image file: seldom more than once to hash and once to decode."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from shop_kit import Shop
from tiny_backbone import build

from compatctl.data import Dataset, from_files, load, read_memory
from compatctl.encoder import parity_items, sampled_items
from compatctl.errors import InputError

RECIPE = """\
format: 1
backbone:
  factory: "tiny_backbone:build"
  input: {height: 32, width: 32, resize: bilinear, fit: stretch, mean: [200.0, 200.0, 200.0]}
junction: {kind: linear}
objective: {frame: prototypes, lambda: 0.5, scale: 16.0}
optimiser: {epochs: 1, batch_size: 64, lr: 0.003}
rehearsal: {per_class: 2}
"""

_counters: list[Counter[str]] = []


def _count(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _counters and isinstance(arguments[0], str | Path):
        _counters[-1][os.fspath(arguments[0])] += 1


@pytest.fixture(scope="module", autouse=True)
def _hook() -> None:
    sys.addaudithook(_count)


@contextmanager
def _counted() -> Iterator[Counter[str]]:
    """How often each file is opened, by its path."""
    _counters.append(Counter())
    try:
        yield _counters[-1]
    finally:
        _counters.pop()


def _opens(shop: Shop, *command: object) -> dict[str, int]:
    """Item id -> how often a command opens its image."""
    data = load(shop.data())
    with _counted() as counter:
        result = shop.run(*command)
    assert result.code in {0, 3}, result.stderr
    return {
        item_id: counter[str(source)]
        for item_id, source in zip(data.ids, data.sources, strict=True)
    }


def _once(data: Dataset) -> Counter[str]:
    return Counter(data.ids)


def test_opens_of_finetune_and_of_verify_with_looks(shop: Shop) -> None:
    """finetune hashes an image and decodes it once a network; verify decodes it once for both
    models, and a query once before that, for its look."""
    recipe = shop.path("recipe.yaml")
    recipe.write_text(RECIPE)
    torch.save({"state_dict": build().state_dict()}, shop.path("new.ckpt"))
    data = load(shop.data())
    tried = _once(sampled_items(data))
    opens = _opens(shop, "finetune", "--base", shop.path("new.ckpt"), "--recipe", recipe)
    memory = read_memory(shop.path("build/candidate/memory.npz"))
    extra = tried + _once(parity_items(data)) + _once(memory)
    for item in data.items:
        used = item.split == "train" or (item.split, item.role) == ("validation", "query")
        assert opens[item.id] == 2 * used + extra[item.id], item
    opens = _opens(shop, "verify", shop.path("old.onnx"), shop.path("new.onnx"))
    for item in data.items:
        reads = 1 if item.role == "gallery" else 2 * (item.split == "test")
        assert opens[item.id] == reads + 2 * tried[item.id], item


def test_opens_of_deploy_and_add(shop: Shop) -> None:
    """deploy hashes the held-out queries once, and add the items that the store holds."""
    assert shop.run("verify", shop.path("old.onnx"), shop.path("new.onnx")).code == 0
    data = load(shop.data())
    opens = _opens(shop, "deploy")
    queries = data.filter(split="test", role="query")
    assert {item_id: count for item_id, count in opens.items() if count} == _once(queries)
    opens = _opens(shop, "add")
    assert {item_id: count for item_id, count in opens.items() if count} == _once(
        data.filter(role="gallery")
    )


def test_a_file_that_changes_after_its_digest_was_read_is_refused(tmp_path: Path) -> None:
    """What is embedded is what was hashed: decoding other bytes than were hashed is an error."""
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8), "red").save(path)
    data = from_files([path])
    digest = data.take([0]).digest(0)
    image, again = data.read_hashed(0, look=True)
    assert (again.hex(), image.size) == (digest, (8, 8))
    Image.new("RGB", (8, 8), "blue").save(path)
    assert data.digest(0) == digest
    with pytest.raises(InputError, match="changed while the command ran"):
        data.read_hashed(0)


def test_looks_of_a_view_are_known_to_the_data(tmp_path: Path) -> None:
    """A view learns for the data set that it was taken from, and neither opens a file again."""
    for name in ("a", "b", "c"):
        Image.new("RGB", (8, 8), (ord(name), 9, 200)).save(tmp_path / f"{name}.png")
    data = from_files([tmp_path / f"{name}.png" for name in ("a", "b", "none", "c")])
    with _counted() as counter:
        few, _ = data.take([3, 1]).looks([0, 1])
        looks, positions = data.looks(range(4))
        digests = [data.digest(row) for row in (0, 1, 3)]
    assert positions.tolist() == [0, 1, 3]
    assert (looks[[2, 1]] == few).all()
    assert len({*digests}) == 3
    assert all(counter[str(path)] == 1 for path in data.sources)
