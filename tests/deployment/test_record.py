"""What a model has seen travels in its file: leaks are found wherever the file goes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from shop_kit import Shop, carry, write_encoder

from compatctl.core.perceptual_hash import LIMIT
from compatctl.core.simplex import Registry
from compatctl.data import Dataset, load, look_of
from compatctl.deployment.record_files import ModelHeader, find_record
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import Encoder, with_record
from compatctl.errors import InputError


def queries(data: Dataset) -> list[int]:
    """Rows of the held-out queries."""
    return [
        i for i, entry in enumerate(data.items) if (entry.split, entry.role) == ("test", "query")
    ]


def entries(data: Dataset, rows: Sequence[int]) -> list[dict[str, str]]:
    """Entries of a training record."""
    return [{"id": data.ids[row], "sha256": data.digest(row)} for row in rows]


def record(**more: Any) -> dict[str, Any]:
    """A training record."""
    return {"items": [], "unlabelled": [], "classes": [], "parity": 1e-6} | more


def verify(shop: Shop, model: Path, *more: object) -> Any:
    """Verify a model; the report goes to report.json."""
    return shop.run(
        "verify", shop.path("old.onnx"), model, "--report", shop.path("report.json"), *more
    )


def test_a_moved_model_keeps_its_training_record(shop: Shop, tmp_path: Path) -> None:
    """Moved alone to another folder under another name, the model still says what it trained on."""
    data = load(shop.data())
    row = queries(data)[11]
    carry(shop.path("new.onnx"), TrainingRecord.from_json(record(items=entries(data, [row]))))
    moved = tmp_path / "elsewhere" / "copy.onnx"
    moved.parent.mkdir()
    moved.write_bytes(shop.path("new.onnx").read_bytes())
    result = verify(shop, moved)
    assert (result.code, data.ids[row] in result.stderr) == (5, True)


def test_a_better_model_without_a_record_is_inconclusive(shop: Shop) -> None:
    """Exit 4 and a warning for a better model, which deploy refuses; exit 3 for a worse one; the
    project's policy, or a file that it names, can say otherwise."""
    good = write_encoder(shop.path("good.onnx"), noise=0.05, recorded=False)
    bad = write_encoder(shop.path("bad.onnx"), noise=1.5, recorded=False)
    result = verify(shop, good)
    assert result.code == 4
    assert "carries no training record" in result.stderr
    (check,) = (
        entry for entry in result.json["verdict"]["checks"] if entry["name"] == "training_record"
    )
    assert (check["outcome"], check["decides"], check["estimate"]) == ("inconclusive", True, 0.0)
    assert "require_training_record: false" in result.json["next_step"]
    assert shop.run("deploy", "--model", good).code == 4
    assert verify(shop, bad).code == 3
    policy = shop.path("own.yaml")
    policy.write_text("format: 4\nname: own\nrequire_training_record: false\n")
    free = verify(shop, good, "--policy", policy)
    assert free.code == 0
    assert any(line.startswith("leaks") for line in free.json["not_checked"])
    fields = record(models=[Encoder.load(good).sha256])
    shop.path("good.training.json").write_text(json.dumps(fields))
    assert verify(shop, good).code == 4  # nobody named the file
    assert verify(shop, good, "--training", shop.path("good.training.json")).code == 0


@pytest.mark.parametrize(
    "change",
    [
        {"items": [{"id": "another", "sha256": "0" * 64}]},
        {"unlabelled": []},
        {"classes": ["x"]},
        {"parity": 0.5},
    ],
)
def test_file_and_model_must_agree(shop: Shop, change: dict[str, Any]) -> None:
    """An edited training.json beside a model that carries its record ends in exit 5."""
    data = load(shop.data())
    train = [i for i, entry in enumerate(data.items) if entry.split == "train"][:5]
    fields = record(unlabelled=entries(data, train), classes=["a", "b"])
    carry(shop.path("new.onnx"), TrainingRecord.from_json(fields))
    fields["models"] = [Encoder.load(shop.path("new.onnx")).sha256]
    path = shop.path("new.training.json")
    path.write_text(json.dumps(fields))
    assert verify(shop, shop.path("new.onnx")).code == 0
    path.write_text(json.dumps(fields | change))
    result = verify(shop, shop.path("new.onnx"))
    assert (result.code, "record that the model carries" in result.stderr) == (5, True)


def jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    """Another encoding."""

    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file).convert("RGB")

    return change


def pixel(image: Image.Image) -> Image.Image:
    """One changed pixel."""
    image = image.copy()
    image.putpixel((3, 5), (255, 0, 128))
    return image


def resized(side: int) -> Callable[[Image.Image], Image.Image]:
    """Another size."""
    return lambda image: image.resize((side, side), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "change",
    [jpeg(40), jpeg(85), pixel, resized(40), resized(200)],
    ids=["jpeg 40", "jpeg 85", "pixel", "40 pixels", "200 pixels"],
)
def test_near_copies_of_held_out_queries_are_found(
    begun: Path, change: Callable[[Image.Image], Image.Image]
) -> None:
    """Training images that are held-out ones in another encoding, size, or with another pixel,
    under other ids: 97 of 100 are found."""
    data = load(Shop(begun).data())
    rows = queries(data)[:100]
    looks = np.stack([look_of(change(data.read(row))) for row in rows])
    own = np.stack([look_of(data.read(row)) for row in rows])
    near = np.abs(looks.astype(int) - own).max(axis=1) <= LIMIT
    assert near.mean() >= 0.97


def test_near_copies_do_not_decide_but_too_many_are_inconclusive(shop: Shop) -> None:
    """They are a group of their own; over the policy's share the gate cannot tell."""
    data = load(shop.data())
    held_out = queries(data)
    for share, code in ((0.02, 0), (0.5, 4)):
        rows = held_out[: round(share * len(held_out))]
        images = tuple(np.asarray(jpeg(60)(data.read(row))) for row in rows)
        copies = Dataset(items=tuple(data.items[row] for row in rows), sources=images)
        trained = TrainingRecord.from_json(record(items=entries(copies, range(len(rows)))))
        items = trained.with_looks(copies).items
        renamed = [replace(item, id=f"copy {number}") for number, item in enumerate(items)]
        carry(shop.path("new.onnx"), TrainingRecord.of(items=renamed, parity=trained.parity))
        result = verify(shop, shop.path("new.onnx"))
        assert result.code == code, result.stderr
        sizes = {entry["name"]: entry["n_queries"] for entry in result.json["groups"]}
        assert len(rows) <= sizes["near copies"] <= len(rows) + 0.1 * len(held_out)
        assert sizes["near copies"] + sizes["unseen"] == len(held_out)
        assert "look like items that went through the new model" in result.stderr
        if code:
            more = ("--policy", shop.path("own.yaml"))
            more[1].write_text("format: 4\nname: own\nmin_queries: 50\nmax_near_copies: null\n")
            assert verify(shop, shop.path("new.onnx"), *more).code == 0


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"ids": [10, "AAAA"]},
        {"ids": [10**12, ""]},
        {"ids": 3},
        {"looks": [1, ""]},
        {"registry": "{}"},
        {"registry": 7},
        {"parity": "small"},
        {"parity": None, "more": 1},
        {"memory_sha256": "x"},
    ],
)
def test_a_malformed_carried_record_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    """Another format, sets of other sizes, other entries: an InputError that names the model."""
    text = TrainingRecord(parity=0.1).with_classes(["a", "b"]).to_text()
    assert TrainingRecord.from_text(text, tmp_path).to_text() == text
    for bad in (json.dumps(json.loads(text) | change), "[]", "{", "\ud800", "{" * 2000):
        with pytest.raises(InputError, match="training record that it carries"):
            TrainingRecord.from_text(bad, tmp_path / "model.onnx")


def test_a_model_carries_exactly_one_record(shop: Shop) -> None:
    """A record takes the place of the one before; the same record gives the same bytes."""
    path = shop.path("new.onnx")
    before = path.read_bytes()
    carry(path, TrainingRecord().with_classes(["a"]))
    changed = path.read_bytes()
    carry(path, TrainingRecord())
    assert path.read_bytes() == before != changed
    with pytest.raises(InputError, match="over"):
        with_record(before, path, "x" * (257 << 20))


def test_bridge_and_fuse_merge_the_records_of_their_parts(shop: Shop) -> None:
    """Pairs and all that the encoders behind have seen; of one without a record nobody knows."""
    data = load(shop.data())
    train = data.filter(split="train")
    carry(shop.path("new.onnx"), TrainingRecord(parity=1e-6).with_classes(["only new"]))
    fused, bridged = shop.path("fused.onnx"), shop.path("bridged.onnx")
    models = shop.path("old.onnx"), shop.path("new.onnx")
    assert shop.run("fuse", *models, "-o", fused, "--weight", "0.5").code == 0
    seen = TrainingRecord.from_text(Encoder.load(fused).record or "", fused)
    assert (seen.knows_class("only new"), seen.whole) == (True, True)
    shop.path("fused.training.json").unlink()
    result = shop.run("bridge", fused, "-o", bridged, "--kind", "orthogonal")
    assert result.code == 0, result.stderr
    seen = TrainingRecord.from_text(Encoder.load(bridged).record or "", bridged)
    assert all(seen.knows_class(entry) for entry in ("only new", train.labels[0]))
    assert seen.has_seen(train.ids).all()
    assert not seen.has_seen([data.ids[row] for row in queries(data)]).any()
    assert verify(shop, bridged).code != 5
    bare = write_encoder(shop.path("bare.onnx"), noise=0.05, recorded=False)
    assert shop.run("bridge", bare, "-o", bridged, "--kind", "orthogonal").code == 0
    assert not TrainingRecord.from_text(Encoder.load(bridged).record or "", bridged).whole
    result = verify(shop, bridged)
    assert (result.code, "made of one that carries no training record" in result.stderr) == (
        4,
        True,
    )


def test_a_store_takes_the_registry_of_its_model(shop: Shop) -> None:
    """Alone, from any folder; where a store that is there has another one that is a conflict."""
    registry = Registry(("a", "b"), 8)
    alone = shop.path("moved") / "old.onnx"
    alone.parent.mkdir()
    alone.write_bytes(shop.path("old.onnx").read_bytes())
    carry(alone, TrainingRecord(registry=registry.to_json()))
    store = shop.path("second")
    command = ("init", "--model", alone, "--store", store)
    assert shop.run(*command).code == 0
    manifest = json.loads((store / "manifest.json").read_text())
    assert manifest["registry"] == registry.digest
    (held,) = store.glob(f"registries/{registry.digest}*")
    assert held.read_text() == registry.to_json()
    again = shop.run(*command)
    assert (again.code, again.json["written"]) == (0, False)


def test_a_repeated_init_with_another_registry_is_a_conflict(shop: Shop) -> None:
    """A registry that lies beside the model now, and did not when the store began: exit 6."""
    bare = write_encoder(shop.path("bare.onnx"), noise=0.6, recorded=False)
    command = ("init", "--model", bare, "--store", shop.path("second"))
    assert shop.run(*command).code == 0
    registry = Registry(("a", "b"), 8)
    shop.path("registry.json").write_text(registry.to_json())
    fields = record(models=[Encoder.load(bare).sha256], registry_sha256=registry.digest)
    shop.path("bare.training.json").write_text(json.dumps(fields))
    result = shop.run(*command)
    assert (result.code, registry.digest[:12] in result.stderr) == (6, True)
    shop.path("registry.json").unlink()
    result = shop.run(*command)
    assert (result.code, "class registry" in result.stderr) == (5, True)


def test_a_fused_model_shows_that_a_part_has_no_record(shop: Shop) -> None:
    """Whatever is fused as the old model: only the store's own may have no record."""
    write_encoder(shop.path("leaky.onnx"), noise=0.05, recorded=False)
    fused = shop.path("fused.onnx")
    result = shop.run("fuse", shop.path("leaky.onnx"), shop.path("worse.onnx"), "-o", fused,
                    "--weight", 0.1)  # fmt: skip
    assert result.code == 0, result.stderr
    result = verify(shop, fused)
    assert (result.code, "made of one that carries no training record" in result.stderr) == (
        4,
        True,
    )


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"classes": "c1"}, "classes is no list"),
        ({"items": {}}, "items is no list"),
        ({"items": None}, "items is no list"),
        ({"classes": [1]}, "classes has an entry"),
        ({"unlabelled": [{"id": 3, "sha256": "0" * 64}]}, "unlabelled has an entry"),
        ({"unlabelled": [{"id": "a"}]}, "lacks 'sha256'"),
        ({"parity": -1.0}, "parity"),
        ({"parity": True}, "parity"),
        ({"memory_sha256": 5}, "no sha256"),
        ({"registry_sha256": 5}, "no sha256"),
    ],
)
def test_a_malformed_training_json_is_refused(shop: Shop, more: dict[str, Any], says: str) -> None:
    """A text in the place of a list would be read as other classes, a mapping as no item."""
    bare = write_encoder(shop.path("bare.onnx"), noise=0.05, recorded=False)
    path = shop.path("told.json")
    path.write_text(json.dumps(record(models=[Encoder.load(bare).sha256]) | more))
    with pytest.raises(InputError, match=says) as caught:
        find_record(bare, ModelHeader(sha256=Encoder.load(bare).sha256, record=None), named=path,
             candidate=shop.path("none"))  # fmt: skip
    assert "told.json is not a training record" in caught.value.message
