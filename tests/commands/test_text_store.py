"""A store of texts goes through every command that serves it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from text_shop_kit import CLASSES, TextShop, write_models, write_table

from compatctl.data import load
from compatctl.encoder import Encoder

ORTHOGONAL = ("--kind", "orthogonal")


@pytest.fixture
def shop(tmp_path: Path) -> TextShop:
    """A text project whose store the old model embedded."""
    shop = TextShop(tmp_path)
    shop.done("init", "--model", shop.models["old"])
    return shop


def test_a_search_finds_the_nearest_documents_of_texts(shop: TextShop, tmp_path: Path) -> None:
    """Texts on the command line and in a file give what a product of matrices gives."""
    data = load(shop.data)
    texts = [str(data.content(row)) for row in range(0, 12, 2)]
    file = tmp_path / "more.txt"
    file.write_text("\n".join(texts[3:]) + "\n")
    found = shop.done("search", *texts[:3], "--texts", file, "-k", 2, "--json").json["queries"]
    encoder = Encoder.load(shop.models["old"])
    gallery = data.filter(role="gallery")
    rows = encoder.embed(gallery).features
    queries = encoder.embed(data.take(range(0, 12, 2))).features
    assert [query["query"] for query in found] == texts
    for query, vector in zip(found, queries, strict=True):
        nearest = np.argsort(-(rows @ vector))[:2]
        assert [hit["id"] for hit in query["hits"]] == [gallery.ids[row] for row in nearest]


def test_a_search_says_what_it_cannot_take(shop: TextShop) -> None:
    """A file in the place of a text, an empty text and no query at all are each refused."""
    for arguments, message in (
        ([shop.data], "is a file, and the store's query model takes texts"),
        ([" "], "its text is empty"),
        ([], "there is no query"),
    ):
        result = shop.run("search", *arguments)
        assert result.code == 5, result.stdout
        assert message in result.stderr


def test_a_better_model_is_verified_deployed_and_taken_back(shop: TextShop) -> None:
    """The gate passes it; it answers queries on the gallery that it did not embed; canaries hold;
    and a rollback restores the old one."""
    old, new = shop.models["old"], shop.models["better"]
    report = shop.done("verify", old, new, "--json").json
    assert report["verdict"]["outcome"] == "pass"
    assert any("near copies of texts" in note for note in report["not_checked"])
    shop.done("deploy")
    assert shop.done("status", "--json").json["query_model"] == Encoder.load(new).sha256
    shop.done("search", "red car")
    shop.set(max_gallery_pass=0.5)
    shop.done("backfill", "--share", 0.5, "--force", "--reason", "too little evidence")
    shop.done("check")
    shop.done("matrix", old, new)
    shop.done("rollback")
    assert shop.done("status", "--json").json["query_model"] == Encoder.load(old).sha256


def test_a_model_of_another_space_fails_and_its_bridge_passes(
    shop: TextShop, tmp_path: Path
) -> None:
    """A rotated model fails the gate; mapped by pairs of texts without labels it passes; and fused
    with the old one, and lifted, it goes through."""
    old, turned = shop.models["old"], shop.models["turned"]
    refused = shop.run("verify", old, turned, "--json")
    assert refused.code == 3
    assert "compatctl bridge" in refused.json["next_step"]
    bridged = tmp_path / "bridged.onnx"
    shop.done("bridge", turned, "-o", bridged)
    assert shop.done("verify", old, bridged, "--json").json["verdict"]["outcome"] == "pass"
    data = load(shop.data).take(range(20))
    assert Encoder.load(bridged).embed(data).features.shape == (20, Encoder.load(old).dim)
    shop.done("fuse", old, bridged, "-o", tmp_path / "fused.onnx")
    assert shop.run("lift", turned, "--dry-run").code in {0, 3, 4}


def test_a_rescored_store_of_texts_is_warmed_promoted_and_restored(
    shop: TextShop, tmp_path: Path
) -> None:
    """The documents of a log are embedded first, then all; promoted, the index has the new model's
    own vectors; a rollback brings the old rows back, and every file still has its digest."""
    shop.set(max_gallery_pass=1.0)
    bridged, log = tmp_path / "bridged.onnx", tmp_path / "log.csv"
    shop.done("bridge", shop.models["turned"], "-o", bridged, *ORTHOGONAL, "--share", 0)
    shop.done("verify", shop.models["old"], bridged, "--rescore", 5)
    shop.done("deploy", "--rescore", 5, "--passes", 5)
    index = shop.done("status", "--json").json["index_sha256"]
    log.write_text("id,count\n" + "".join(f"g{number},{9 - number}\n" for number in range(9)))
    assert shop.done("warm", log, "--json").json["passed"] == 9
    log.write_text("".join(f"g{number}\n" for number in range(CLASSES)))
    rest = shop.done("warm", log, "--json").json
    assert (rest["cached"], rest["passed"]) == (9, CLASSES - 9)
    shop.done("promote", "--force", "--reason", "too little evidence")
    text = str(load(shop.data).content(1))
    hit = shop.done("search", text, "-k", 1, "--json").json["queries"][0]["hits"][0]
    assert hit["id"] == "g0"
    assert hit["cosine"] == pytest.approx(1.0, abs=1e-4)
    assert shop.done("status", "--json").json["index_sha256"] != index
    shop.done("rollback")
    assert shop.done("status", "--json").json["index_sha256"] == index
    shop.done("check")


def test_a_model_that_was_fitted_on_the_held_out_texts_is_found_out(
    shop: TextShop, tmp_path: Path
) -> None:
    """A map of pairs of every class but the validation ones is refused with the queries it was
    fitted on; set apart by --allow-seen, they leave nothing to judge."""
    leaky, everything = tmp_path / "leaky.onnx", tmp_path / "everything.csv"
    validation = set(load(shop.data).filter(split="validation").labels)
    with shop.data.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with everything.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "split"])
        writer.writeheader()
        for row in rows:
            split = "validation" if row["label"] in validation else "train"
            writer.writerow({**row, "split": split})
    shop.done("bridge", shop.models["turned"], "-o", leaky, *ORTHOGONAL, "--data", everything)
    refused = shop.run("verify", shop.models["old"], leaky)
    assert refused.code == 5, refused.stdout
    assert "held-out queries were trained on" in refused.stderr
    assert shop.run("verify", shop.models["old"], leaky, "--allow-seen").code == 4
    honest = tmp_path / "honest.onnx"
    shop.done("bridge", shop.models["turned"], "-o", honest, *ORTHOGONAL)
    assert shop.run("verify", shop.models["old"], honest).code == 0


@pytest.mark.slow
def test_a_plan_estimates_the_routes_of_a_model_that_exists(shop: TextShop) -> None:
    """plan --new measures, without training, the routes of a text model on held-out texts."""
    plan = shop.done("plan", "--new", shop.models["turned"], "--json").json
    names = {route["name"] for route in plan["routes"]}
    assert {"bridge", "lift", "re-embed"} <= names


def test_texts_are_added_and_removed(tmp_path: Path) -> None:
    """Rows of a table that the store lacks are embedded; removed ones are found no more."""
    shop = TextShop(tmp_path)
    whole = shop.data.read_text().splitlines()
    shop.data.write_text("\n".join(whole[:-10]) + "\n")
    shop.done("init", "--model", shop.models["old"])
    shop.data.write_text("\n".join(whole) + "\n")
    assert shop.done("add", "--json").json["added"] == 5
    last = next(csv.reader([whole[-1]]))
    hits = shop.done("search", last[1], "-k", 1, "--json").json["queries"][0]["hits"]
    assert hits[0]["id"] == last[0]
    shop.done("remove", last[0])
    hits = shop.done("search", last[1], "-k", 1, "--json").json["queries"][0]["hits"]
    assert hits[0]["id"] != last[0]


def test_a_model_of_two_prefixes_needs_roles(tmp_path: Path) -> None:
    """Where a query and a document of one text have different vectors, items without a role are
    refused by every command that compares, with the column to write."""
    shop = TextShop(tmp_path, roles=False, query_prefix="query ", document_prefix="passage ")
    shop.done("init", "--model", shop.models["old"])
    for command in (
        ("verify", shop.models["old"], shop.models["better"]),
        ("matrix", shop.models["old"], shop.models["better"]),
        ("bridge", shop.models["better"], "-o", tmp_path / "b.onnx"),
        ("fuse", shop.models["old"], shop.models["better"], "-o", tmp_path / "f.onnx"),
    ):
        result = shop.run(*command)
        assert result.code == 5, command
        assert "'q0' has no role" in result.stderr
        assert "column role" in result.stderr
    write_table(shop.data)
    assert shop.run("verify", shop.models["old"], shop.models["better"]).code in {0, 3, 4}


def test_an_image_store_refuses_texts_and_a_text_store_images(tmp_path: Path) -> None:
    """The data's kind and the model's are compared before anything is embedded."""
    models = write_models(tmp_path)
    (tmp_path / "i.csv").write_text("id,path,label\na,a.png,x\n")
    shop = TextShop(tmp_path)
    result = shop.run("init", "--model", models["old"], "--data", tmp_path / "i.csv")
    assert result.code == 5
    assert "takes texts; the data has images" in result.stderr
