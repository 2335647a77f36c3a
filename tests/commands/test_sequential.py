"""The life of one store: fine-tuned, grown, fine-tuned from its memory, taken back, replaced."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from shop_kit import Shop
from tiny_backbone import build

from compatctl.data import Dataset, read_memory

PER_CLASS = 3
VERTICES = 34
"""Of the simplex: the training classes of the first three versions and one."""
HELD_OUT = 40
"""Classes that train nothing."""
SHARES = {"v1": (0, 15), "v2": (15, 25), "v3": (25, 33), "v4": (33, 34)}
"""Of the training classes, in order: what is new to each version."""

RECIPE = """\
format: 1
backbone:
  factory: "tiny_backbone:build"
  args: {{width: {width}}}
  input: {{height: 16, width: 16, resize: bilinear, fit: stretch, mean: [200.0, 200.0, 200.0]}}
junction: {{kind: linear}}
objective: {{frame: {frame}, lambda: {weight}, scale: null, dim: {dim}}}
optimiser: {{epochs: {epochs}, batch_size: 64, lr: {lr}}}
rehearsal: {{per_class: {per_class}}}
"""


@dataclass(frozen=True)
class Life:
    """A project whose data change from version to version."""

    shop: Shop
    labels: Sequence[str]
    """The training classes, sorted"""

    def classes(self, version: str) -> list[str]:
        """The training classes that are new to a version."""
        first, stop = SHARES[version]
        return list(self.labels[first:stop])

    def data(self, version: str, *, added: bool = True) -> None:
        """The version's table: its own training images, and all that is held out.

        ``added``: with the gallery items of the second half of the held-out classes.
        """
        classes = set(self.classes(version))
        rows = list(csv.DictReader(self.shop.path("all.csv").open(newline="", encoding="utf-8")))
        late = {row["label"] for row in rows if row["split"] == "test"}
        late = set(sorted(late)[len(late) // 2 :])
        with self.shop.path("items.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(
                row
                for row in rows
                if (row["label"] in classes if row["split"] == "train" else True)
                and (added or row["role"] == "query" or row["label"] not in late)
            )

    def recipe(self, *, frame: str = "prototypes", **more: object) -> None:
        """The recipe of the next fine-tuning."""
        settings = {"width": 64, "epochs": 1, "lr": 0.003, "weight": "1.0", "per_class": PER_CLASS}
        text = RECIPE.format(frame=frame, dim=VERTICES - 1, **settings | more)
        self.shop.path("recipe.yaml").write_text(text)

    def finetune(self, base: str, *more: object) -> Any:
        """Make the candidate; its training record."""
        result = self.shop.run("finetune", "--base", self.shop.path(base), *more)
        assert result.code == 0, result.stderr
        return json.loads(self.shop.path("build/candidate/training.json").read_bytes())

    def verify(self) -> Any:
        """The report on the candidate; data so small may pass, fail or say nothing."""
        manifest = self.shop.manifest()
        old = self.shop.path(f"store/models/{manifest['query_model']}.onnx")
        result = self.shop.run("verify", old, self.shop.path("build/candidate/model.onnx"))
        assert result.code in {0, 3, 4}, result.stderr
        return result.json

    def deploy(self) -> dict[str, Any]:
        """Make the candidate the query model whatever the gate said; the new manifest."""
        result = self.shop.run("deploy", "--force", "--reason", "a life in miniature")
        assert result.code == 0, result.stderr
        shutil.copy(self.shop.path("build/candidate/weights.safetensors"), self.shop.folder)
        checked = self.shop.run("check")
        assert checked.code == 0, checked.stdout
        return self.shop.manifest()

    def memory(self) -> Dataset:
        """What the store remembers now."""
        return read_memory(self.shop.path(f"store/memories/{self.shop.manifest()['memory']}.npz"))

    def vertices(self) -> list[str]:
        """The store's class registry now."""
        path = self.shop.path(f"store/registries/{self.shop.manifest()['registry']}.json")
        vertices: list[str] = json.loads(path.read_bytes())["vertices"]
        return vertices

    def images(self, label: str) -> dict[str, Path]:
        """The training images of a class: id -> file."""
        rows = csv.DictReader(self.shop.path("all.csv").open(newline="", encoding="utf-8"))
        return {row["id"]: self.shop.path(row["path"]) for row in rows if row["label"] == label}

    def chosen(self, label: str) -> set[str]:
        """The ids that a memory keeps of a class, by an explicit rule."""
        ids = sorted(
            self.images(label), key=lambda entry: hashlib.sha256(entry.encode()).hexdigest()
        )
        return set(ids[:PER_CLASS])


@pytest.fixture(scope="module")
def born(emoji: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose first model was born on the simplex: nothing was there before it."""
    folder = tmp_path_factory.mktemp("life") / "shop"
    shutil.copytree(emoji / "images", folder / "images")
    lines = (emoji / "items.csv").read_text(encoding="utf-8").splitlines()
    left_out = set(sorted({line.split(",")[2] for line in lines if ",test," in line})[HELD_OUT:])
    kept = (line for line in lines if line.split(",")[2] not in left_out)
    text = "\n".join(line for line in kept if ",validation," not in line)
    (folder / "all.csv").write_text(text + "\n", encoding="utf-8")
    (folder / "compatctl.yaml").write_text(
        "format: 1\nstore: store\ndata: items.csv\nrecipe: recipe.yaml\n"
        "factories: [tiny_backbone]\n"
    )
    life = _life(folder)
    life.data("v1", added=False)
    life.recipe(frame="simplex", epochs=40, lr=0.03)
    torch.save({"state_dict": build().state_dict()}, folder / "first.ckpt")
    record = life.finetune("first.ckpt")
    assert (record["memory_items"], record["remembered"]) == (0, 15 * PER_CLASS)
    begun = life.shop.run("init", "--model", folder / "build/candidate/model.onnx")
    assert begun.code == 0, begun.stderr
    shutil.copy(folder / "build/candidate/weights.safetensors", folder)
    return folder


def _life(folder: Path) -> Life:
    rows = csv.DictReader((folder / "all.csv").open(newline="", encoding="utf-8"))
    return Life(Shop(folder), sorted({row["label"] for row in rows if row["split"] == "train"}))


@pytest.fixture
def life(born: Path, tmp_path: Path) -> Life:
    """A copy of that project, for one test to live on."""
    return _life(Path(shutil.copytree(born, tmp_path / "shop")))


def test_four_versions_in_sequence(life: Life) -> None:
    """Each version rehearses from the store alone, keeps the vertices, and is held to the chain;
    the second and fourth train towards class means, the third towards vertices."""
    shop, first = life.shop, life.shop.manifest()
    assert life.vertices() == life.classes("v1")
    _remembers(life, ["v1"])
    known = life.memory().original(0, 1 << 20)
    assert isinstance(known, bytes)
    for label in life.classes("v1"):
        for path in life.images(label).values():
            path.unlink()

    life.data("v2")
    life.recipe(weight="0.5")
    planned = shop.run("finetune", "--base", shop.path("weights.safetensors"), "--dry-run")
    assert planned.json["rehearsed_items"] == 15 * PER_CLASS
    assert planned.json["frames"] == ["prototypes"]
    record = life.finetune("weights.safetensors")
    assert record["base"]["junction"]
    assert (record["classifier"]["frame"], record["dropped_classes"]) == ("prototypes", [])
    assert record["memory_items"] == 15 * PER_CLASS
    assert record["classes"] == sorted(life.classes("v1") + life.classes("v2"))
    assert sum(record["old_features"].values()) == len(record["items"])
    _refuses_what_was_rehearsed(life, known)
    _refuses_what_the_base_trained_on(life)
    alone = life.verify()
    assert any("chain of versions" in line for line in alone["not_checked"])
    second = life.deploy()
    assert second["index"] == first["index"]
    assert life.vertices() == life.classes("v1")
    _remembers(life, ["v1", "v2"])
    assert shop.run("status").json["memory"] == second["memory"] != first["memory"]
    added = shop.run("add")
    assert added.code == 0, added.stderr
    shares = {entry["sha256"]: entry["rows"] for entry in shop.manifest()["models"]}
    assert shares[second["query_model"]] == added.json["added"] > 10

    torch.save({"state_dict": build(width=48).state_dict()}, shop.path("better.ckpt"))
    life.data("v3")
    life.recipe(width=48, frame="simplex")
    life.finetune("better.ckpt")
    _chained(life.verify(), shares)
    third = life.deploy()
    new = sorted(life.classes("v2") + life.classes("v3"))
    assert life.vertices() == life.classes("v1") + new
    _remembers(life, ["v1", "v2", "v3"])

    back = shop.run("rollback")
    assert back.code == 0, back.stderr
    manifest = shop.manifest()
    assert (manifest["memory"], manifest["registry"]) == (second["memory"], second["registry"])
    _remembers(life, ["v1", "v2"])
    assert life.deploy()["memory"] == third["memory"]

    life.data("v4")
    shutil.copy(shop.path("weights.safetensors"), shop.path("third.safetensors"))
    life.recipe(width=48, weight="0.5")
    life.finetune("third.safetensors")
    _chained(life.verify(), shares)
    fourth = life.deploy()
    assert life.vertices() == life.classes("v1") + new
    assert fourth["registry"] == third["registry"]
    _remembers(life, ["v1", "v2", "v3", "v4"])
    kept = shop.run("check", "--gc", "--keep", "2")
    assert kept.code == 0, kept.stderr
    assert shop.path(f"store/memories/{fourth['memory']}.npz").exists()
    assert not shop.path(f"store/memories/{first['memory']}.npz").exists()


def test_begin_is_finetune_and_init_in_one_command(life: Life) -> None:
    """The same model, registry, memory and index; a dry run counts; a repetition is no error."""
    shop, first = life.shop, life.shop.manifest()
    shutil.rmtree(shop.path("store"))
    life.data("v1", added=False)
    life.recipe(epochs=40, lr=0.03)
    begin = ("begin", "--base", shop.path("first.ckpt"), "--dim", VERTICES - 1)
    planned = shop.run(*begin, "--dry-run")
    assert planned.code == 0, planned.stderr
    assert (planned.json["classes"], planned.json["vertices"]) == (15, VERTICES)
    assert not shop.path("store").exists()
    for _ in range(2):
        begun = shop.run(*begin)
        assert begun.code == 0, begun.stderr
        assert begun.json["rows"] == planned.json["rows"]
        manifest = shop.manifest()
        same = ("generation", "query_model", "registry", "memory", "index")
        assert [manifest[key] for key in same] == [first[key] for key in same]


def test_begin_needs_a_vertex_for_each_class_and_no_later_generation(life: Life) -> None:
    """Too small a dimension, and a store that has moved on, end in exit 5 before training."""
    life.data("v1", added=False)
    begin = ("begin", "--base", life.shop.path("first.ckpt"))
    small = life.shop.run(*begin, "--dim", 3)
    assert (small.code, "15 training classes" in small.stderr) == (5, True), small.stderr
    life.data("v1")
    assert life.shop.run("add").code == 0
    later = life.shop.run(*begin)
    assert (later.code, "at generation 2" in later.stderr) == (5, True), later.stderr


def _remembers(life: Life, versions: Sequence[str]) -> None:
    """The memory holds the chosen items of every class so far, each in the bytes it trained in."""
    memory = life.memory()
    labels = [label for version in versions for label in life.classes(version)]
    remembered = dict(zip(memory.ids, memory.labels, strict=True))
    assert remembered == {item_id: label for label in labels for item_id in life.chosen(label)}
    for row, entry in enumerate(memory.ids):
        path = life.images(memory.labels[row])[entry]
        if path.exists():
            assert memory.digest(row) == hashlib.sha256(path.read_bytes()).hexdigest()
        assert memory.read(row).size > (0, 0)
    assert {item.split for item in memory.items} == {"train"}


def _refuses_what_was_rehearsed(life: Life, image: bytes) -> None:
    """A held-out query that is a rehearsed image under another id is found by its bytes: exit 5."""
    table, whole = life.shop.path("items.csv"), life.shop.path("items.csv").read_text()
    life.shop.path("images/again.png").write_bytes(image)
    lines = whole.splitlines()
    names = lines[0].split(",")
    held = next(line for line in lines if ",test,query" in line).split(",")
    held[names.index("id")], held[names.index("path")] = "again", "images/again.png"
    table.write_text("\n".join([*lines, ",".join(held), ""]))
    old = life.shop.path(f"store/models/{life.shop.manifest()['query_model']}.onnx")
    result = life.shop.run("verify", old, life.shop.path("build/candidate/model.onnx"))
    assert (result.code, "again" in result.stderr) == (5, True), result.stderr
    table.write_text(whole)


def _refuses_what_the_base_trained_on(life: Life) -> None:
    """A held-out query that trained the first version, and is not rehearsed, is found by its id."""
    table, whole = life.shop.path("items.csv"), life.shop.path("items.csv").read_text()
    label = life.classes("v1")[0]
    item = next(iter(set(life.images(label)) - life.chosen(label)))
    lines = whole.splitlines()
    names = lines[0].split(",")
    held = next(line for line in lines if ",test,query" in line).split(",")
    held[names.index("id")] = item
    table.write_text("\n".join([*lines, ",".join(held), ""]))
    old = life.shop.path(f"store/models/{life.shop.manifest()['query_model']}.onnx")
    result = life.shop.run("verify", old, life.shop.path("build/candidate/model.onnx"))
    assert (result.code, item in result.stderr) == (5, True), result.stderr
    table.write_text(whole)


def _chained(report: Any, owners: dict[str, int]) -> None:
    """There is a link for each version that embedded rows."""
    links = {
        check["group"] for check in report["verdict"]["checks"] if check["name"] == "chain_gain"
    }
    assert links == {f"gallery of {sha256[:12]}" for sha256 in owners}
    assert not any("chain of versions" in line for line in report["not_checked"])


def test_more_classes_than_vertices_are_refused(life: Life) -> None:
    """One class more than there are vertices is refused by number; nothing of it is written."""
    before = life.shop.path("build/candidate/training.json").read_bytes()
    first, stop = SHARES["v1"]
    more = life.labels[stop : stop + VERTICES - (stop - first) + 1]
    table = life.shop.path("all.csv").read_text().splitlines()
    kept = [line for line in table[1:] if ",train," not in line or line.split(",")[2] in more]
    life.shop.path("items.csv").write_text("\n".join([table[0], *kept]) + "\n")
    result = life.shop.run("finetune", "--base", life.shop.path("weights.safetensors"))
    said = f"{VERTICES + 1} classes and only {VERTICES} vertices"
    assert (result.code, said in result.stderr) == (5, True), result.stderr
    assert life.shop.path("build/candidate/training.json").read_bytes() == before


def test_a_memory_of_another_candidate_is_refused(life: Life) -> None:
    """deploy: a memory that is gone, or another one, is exit 5, and the store stays as it was."""
    shop, path = life.shop, life.shop.path("build/candidate/memory.npz")
    model = shop.path("build/candidate/model.onnx")
    manifest = shop.manifest()
    for spoil in (lambda: path.write_bytes(path.read_bytes()[:-1] + b"?"), path.unlink):
        spoil()
        result = shop.run("deploy", "--force", "--reason", "x", "--model", model)
        assert (result.code, "rehearsal memory" in result.stderr) == (5, True), result.stderr
    assert shop.manifest() == manifest


def test_a_damaged_memory_is_found(life: Life) -> None:
    """A flipped bit in the store's memory: check and finetune end in exit 5 and name the file."""
    path = life.shop.path(f"store/memories/{life.shop.manifest()['memory']}.npz")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.chmod(0o644)
    path.write_bytes(data)
    for command in (("check",), ("finetune", "--base", life.shop.path("weights.safetensors"))):
        result = life.shop.run(*command)
        assert (result.code, path.name in result.stdout + result.stderr) == (5, True), result.stderr
