"""An adopted index is believed once it was compared; what cannot be adopted says a way on."""

from __future__ import annotations

import json
from pathlib import Path

import hnswlib
import numpy as np
import pytest
from shop_kit import DIM, Result, Shop, run

from compatctl import encoder as onnx_files
from compatctl.core.adapters import Affine
from compatctl.data import Dataset, load
from compatctl.encoder import Encoder
from compatctl.store import Store


@pytest.fixture
def deployed(shop: Shop) -> Path:
    """The store's index as a file of its own, beside the table keys.csv of its items."""
    store = Store.open(shop.path("store"))
    path = shop.path("deployed.bin")
    path.write_bytes(store.blob_path("indexes", store.manifest.index.sha256).read_bytes())
    catalog = store.catalog()
    _table(shop, catalog.keys.tolist(), catalog.ids, catalog.labels)
    return path


def _table(shop: Shop, keys: list[int], ids: tuple[str, ...], labels: tuple[str, ...]) -> None:
    lines = [f"{key},{item},{label}" for key, item, label in zip(keys, ids, labels, strict=True)]
    shop.path("keys.csv").write_text("\n".join(["key,id,label", *lines, ""]))


def _adopt(shop: Shop, index: Path, *more: object, model: str = "old.onnx") -> Result:
    items = ("--items", shop.path("keys.csv"), "--store", shop.path("adopted"))
    return run("import", index, "--model", shop.path(model), *items, "--json", *more)


def _verify(shop: Shop, *more: object) -> Result:
    report = ("--report", shop.path("r.json"), "--store", shop.path("adopted"))
    return shop.run("verify", shop.path("old.onnx"), shop.path("new.onnx"), *report, *more)


def _proven(shop: Shop) -> bool:
    proven: bool = run("status", "--store", shop.path("adopted"), "--json").json["proven"]
    return proven


def _check(result: Result) -> dict[str, object]:
    checks = result.json["verdict"]["checks"]
    return next(entry for entry in checks if entry["name"] == "proven_store")


def test_an_index_adopted_without_images_is_unproven_until_verify_compares_it(
    shop: Shop, deployed: Path
) -> None:
    """Said on stderr, in the JSON and by status; verify compares, and deploy remembers it."""
    result = _adopt(shop, deployed)
    assert (result.code, result.json["agreement"], result.json["proven"]) == (0, None, False)
    assert "never compared" in result.stderr
    assert "never compared" in result.json["warnings"][0]
    assert not _proven(shop)
    status = run("status", "--store", shop.path("adopted"))
    assert "never compared" in status.stderr
    judged = _verify(shop)
    assert judged.code == 0, judged.stderr
    assert (_check(judged)["estimate"], _check(judged)["outcome"]) == (1.0, "pass")
    assert not _proven(shop)
    more = ("--store", shop.path("adopted"), "--report", shop.path("r.json"))
    assert shop.run("deploy", *more).code == 0
    assert _proven(shop)
    assert "proven_store" not in {
        entry["name"] for entry in _verify(shop).json.get("verdict", {}).get("checks", [])
    }


def test_a_second_import_with_images_proves_the_store(shop: Shop, deployed: Path) -> None:
    """The same import with ``--data`` is a generation that is proven and knows the images; a third
    one finds its work done, and one without images changes nothing."""
    assert _adopt(shop, deployed).code == 0
    images = ("--data", shop.data())
    result = _adopt(shop, deployed, *images)
    assert (result.code, result.json["written"], result.json["generation"]) == (0, True, 2), (
        result.stderr
    )
    assert _proven(shop)
    assert Store.open(shop.path("adopted")).catalog().digest_known.all()
    for again in (_adopt(shop, deployed, *images), _adopt(shop, deployed)):
        assert (again.code, again.json["written"], again.json["generation"]) == (0, False, 2)
    assert _proven(shop)
    assert run("check", "--store", shop.path("adopted")).code == 0


def test_verify_refuses_a_model_that_did_not_fill_the_index(shop: Shop, deployed: Path) -> None:
    """Adopted unseen with a model that did not fill it: exit 5 before anything is judged."""
    assert _adopt(shop, deployed, model="turned.onnx").code == 0
    flags = ("--report", shop.path("r.json"), "--store", shop.path("adopted"))
    result = shop.run("verify", shop.path("turned.onnx"), shop.path("new.onnx"), *flags)
    assert result.code == 5
    assert "did not fill this index" in result.stderr
    assert not shop.path("r.json").exists()


def test_without_images_of_an_unproven_index_verify_is_inconclusive(
    shop: Shop, deployed: Path
) -> None:
    """Exit 4 and a line in not_checked; a policy may do without."""
    catalog = Store.open(shop.path("store")).catalog()
    strange = tuple(f"sku {item}" for item in catalog.ids)
    _table(shop, catalog.keys.tolist(), strange, catalog.labels)
    assert _adopt(shop, deployed).code == 0
    result = _verify(shop)
    assert result.code in {3, 4}
    assert (_check(result)["outcome"], _check(result)["decides"]) == ("inconclusive", True)
    assert any("adopted index" in line for line in result.json["not_checked"])
    policy = shop.path("p.yaml")
    policy.write_text("format: 4\nname: mine\nrequire_proven_store: false\n")
    assert _check(_verify(shop, "--policy", policy))["decides"] is False


def test_deploy_requires_a_report_that_compared_an_unproven_index(
    shop: Shop, deployed: Path
) -> None:
    """A report from which the check was taken out is refused."""
    assert _adopt(shop, deployed).code == 0
    assert _verify(shop).code == 0
    path = shop.path("r.json")
    raw = json.loads(path.read_bytes())
    checks = raw["verdict"]["checks"]
    raw["verdict"]["checks"] = [entry for entry in checks if entry["name"] != "proven_store"]
    path.write_text(json.dumps(raw))
    result = shop.run("deploy", "--store", shop.path("adopted"), "--report", path)
    assert result.code in {3, 5}
    assert Store.open(shop.path("adopted")).manifest.generation == 1


def _alike(shop: Shop, name: str, of: str) -> Path:
    """An encoder whose features are all alike: the one of ``of``, far from the origin."""
    bias = np.zeros(DIM, np.float32)
    bias[0] = 12.0
    adapter = Affine(matrix=np.eye(DIM, dtype=np.float32), bias=bias)
    path = shop.path(of)
    shop.path(name).write_bytes(onnx_files.bridge(path.read_bytes(), path, adapter))
    return shop.path(name)


def test_import_refuses_vectors_whose_neighbours_differ(shop: Shop) -> None:
    """Where all features are alike, another model has cosines over 0.99: its own images do not
    find their vectors, and it is refused; the right one is taken, with digests of the images."""
    adopted, other = (
        _alike(shop, "mine.onnx", "old.onnx"),
        _alike(shop, "other.onnx", "turned.onnx"),
    )
    data: Dataset = load(shop.data()).filter(role="gallery")
    rows = Encoder.load(adopted).embed(data).features
    assert (Encoder.load(other).embed(data).features * rows).sum(axis=1).min() > 0.985
    _index(shop.path("alike.bin"), rows)
    _table(shop, list(range(len(data))), data.ids, data.labels)
    images = ("--data", shop.data())
    wrong = _adopt(shop, shop.path("alike.bin"), *images, model="other.onnx")
    assert wrong.code == 5
    assert "did not fill this index" in wrong.stderr
    right = _adopt(shop, shop.path("alike.bin"), *images, model="mine.onnx")
    assert right.code == 0, right.stderr
    assert (right.json["in_top_3"], right.json["proven"], right.json["warnings"]) == (1.0, True, [])
    catalog = Store.open(shop.path("adopted")).catalog()
    assert catalog.digest_known.all()
    assert catalog.digests[0].tobytes().hex() == data.digest(data.ids.index(catalog.ids[0]))


def _index(
    path: Path, rows: np.ndarray, space: str = "cosine", deleted: tuple[int, ...] = ()
) -> None:
    index = hnswlib.Index(space=space, dim=rows.shape[1])
    index.init_index(len(rows) + 7, allow_replace_deleted=True)
    index.add_items(rows, np.arange(len(rows)))
    for key in deleted:
        index.mark_deleted(key)
    index.save_index(str(path))


def test_rows_that_are_marked_deleted_can_be_dropped(shop: Shop) -> None:
    """Without the flag the tip names it; with it they are gone and counted, whether the table names
    them or not, and the same command again finds its work done."""
    data: Dataset = load(shop.data()).filter(role="gallery")
    rows = Encoder.load(shop.path("old.onnx")).embed(data).features
    gone = (0, 3, len(rows) - 1)
    path = shop.path("marked.bin")
    _index(path, rows, deleted=gone)
    _table(shop, list(range(len(data))), data.ids, data.labels)
    refused = _adopt(shop, path)
    assert refused.code == 5
    assert "import --drop-deleted" in refused.json["error"]["tip"]
    dry = _adopt(shop, path, "--drop-deleted", "--dry-run")
    assert (dry.code, dry.json["dropped"], shop.path("adopted").exists()) == (0, 3, False)
    result = _adopt(shop, path, "--drop-deleted", "--data", shop.data())
    assert result.code == 0, result.stderr
    assert (result.json["dropped"], result.json["rows"]) == (3, len(rows) - 3)
    assert (result.json["written"], result.json["proven"]) == (True, True)
    catalog = Store.open(shop.path("adopted")).catalog()
    assert not set(gone) & set(catalog.keys.tolist())
    assert set(catalog.ids) == set(data.ids) - {data.ids[position] for position in gone}
    again = _adopt(shop, path, "--drop-deleted", "--data", shop.data())
    assert (again.code, again.json["written"]) == (0, False)
    assert run("check", "--store", shop.path("adopted")).code == 0
    live = [position for position in range(len(data)) if position not in gone]
    _table(
        shop,
        live,
        tuple(data.ids[position] for position in live),
        tuple(data.labels[position] for position in live),
    )
    assert _adopt(shop, path, "--drop-deleted").json["written"] is False


def test_an_index_without_a_deleted_row_is_adopted_as_it_is(shop: Shop, deployed: Path) -> None:
    """The flag changes nothing where there is nothing to drop: the file stays byte for byte."""
    result = _adopt(shop, deployed, "--drop-deleted")
    assert (result.code, result.json["dropped"]) == (0, 0)
    assert result.json["index_sha256"] == shop.manifest()["index"]["sha256"]


def test_an_index_in_which_every_row_is_deleted_is_refused(shop: Shop) -> None:
    """There is nothing to adopt."""
    _index(shop.path("none.bin"), np.eye(DIM, dtype=np.float32), deleted=tuple(range(DIM)))
    result = _adopt(shop, shop.path("none.bin"), "--drop-deleted")
    assert result.code == 5
    assert "every row" in result.stderr


@pytest.mark.parametrize("space", ["ip", "l2"])
def test_rows_that_are_not_unit_length_are_refused_with_a_tip(shop: Shop, space: str) -> None:
    """An index of the dot product whose rows have norms is refused, and what to do is said."""
    rows = np.random.default_rng(0).standard_normal((50, DIM)).astype(np.float32)
    _index(shop.path("raw.bin"), rows, space=space)
    result = _adopt(shop, shop.path("raw.bin"), "--space", space)
    assert result.code == 5
    assert "norm" in result.stderr
    assert "compatctl init" in result.json["error"]["tip"]


@pytest.mark.parametrize(
    ("position", "value"),
    [(8, 2**62), (8, 2**63 - 1), (8, 2**40), (88, 0), (88, 2**62)],
    ids=["room 2^62", "room 2^63", "room 2^40", "no ef", "ef 2^62"],
)
def test_impossible_header_values_are_refused(
    shop: Shop, deployed: Path, position: int, value: int
) -> None:
    """A capacity or a width beyond all memory is damage, by import as by every reader."""
    raw = bytearray(deployed.read_bytes())
    raw[position : position + 8] = value.to_bytes(8, "little")
    deployed.write_bytes(raw)
    result = _adopt(shop, deployed)
    assert result.code == 5
    assert "header" in result.stderr
    assert not shop.path("adopted").exists()


TORCHVISION = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
OF_BYTES = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}


@pytest.mark.parametrize(
    ("numbers", "tip"),
    [
        (TORCHVISION, '"scale": 0.00392'),
        ({"mean": TORCHVISION["mean"]}, '"scale": 0.00392'),
        ({"std": TORCHVISION["std"]}, '"scale": 0.00392'),
        (OF_BYTES | {"scale": 1 / 255}, '"scale": 1'),
        ({"mean": [0.5] * 3, "std": [0.5] * 3}, '"scale": 0.00392'),
    ],
    ids=["torchvision", "mean", "std", "of bytes", "halves"],
)
def test_mean_and_std_of_another_pixel_range_are_refused(
    shop: Shop, numbers: dict[str, object], tip: str
) -> None:
    """The constants that everybody copies go with one range of pixels; the right entry is named,
    and what is meant so can be said so."""
    model, preprocessing = _foreign(shop), shop.path("told.json")
    preprocessing.write_text(json.dumps(_SIZE | numbers))
    words = (
        "init",
        "--model",
        model,
        "--preprocessing",
        preprocessing,
        "--store",
        shop.path("adopted"),
    )
    result = shop.run(*words)
    assert result.code == 5
    assert tip in result.json["error"]["tip"]
    preprocessing.write_text(json.dumps(_SIZE | numbers | {"unusual": True}))
    assert "do not fit pixels" not in shop.run(*words).stderr


@pytest.mark.parametrize(
    "numbers",
    [
        {},
        TORCHVISION | {"scale": 1 / 255},
        OF_BYTES,
        {"scale": 1 / 255},
        {"scale": 1 / 127.5, "mean": [1.0] * 3},
        {"mean": [103.939, 116.779, 123.68], "channels": "BGR"},
        {"mean": [127.5] * 3, "std": [127.5] * 3},
        {"mean": [127.5] * 3, "std": [128.0] * 3},
    ],
)
def test_common_preprocessings_are_accepted(shop: Shop, numbers: dict[str, object]) -> None:
    """Those of torchvision, timm, Keras and Caffe, in either range of pixels."""
    preprocessing = shop.path("told.json")
    preprocessing.write_text(json.dumps(_SIZE | numbers))
    words = ("--preprocessing", preprocessing, "--store", shop.path("adopted"), "--dry-run")
    result = shop.run("init", "--model", _foreign(shop), *words)
    assert result.code == 0, result.stderr


_SIZE = {"format": 1, "height": 16, "width": 16, "layout": "NHWC"}


def _foreign(shop: Shop) -> Path:
    """An encoder that takes float pixels (batch, 16, 16, 3) and says nothing of them."""
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(3)
    weight = rng.standard_normal((16 * 16 * 3, DIM)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weight"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes, "foreign",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16, 16, 3])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", DIM])],
        [numpy_helper.from_array(weight, "weight")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = shop.path("foreign.onnx")
    save(model, path)
    return path
