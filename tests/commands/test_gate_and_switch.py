"""verify, deploy, rollback and what stands around them, as a pipeline calls them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from shop_kit import Shop, carry, run, write_encoder

from compatctl.data import load
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import Encoder


def _verify(shop: Shop, new: str, *more: object) -> tuple[int, dict[str, object]]:
    report = shop.path("report.json")
    result = shop.run("verify", shop.path("old.onnx"), shop.path(new), "--report", report, *more)
    return result.code, json.loads(report.read_bytes()) if report.exists() else {}


def _deployable(shop: Shop) -> None:
    code, report = _verify(shop, "new.onnx")
    assert code == 0, report["verdict"]


def test_a_better_compatible_model_passes_with_the_reference_figures(shop: Shop) -> None:
    """A denoised model passes, and its hit@1 is what an explicit loop over images finds."""
    code, report = _verify(shop, "new.onnx")
    assert code == 0
    group = report["groups"][0]  # type: ignore[index]
    data = load(shop.data())
    queries = [
        i for i, item in enumerate(data.items) if (item.split, item.role) == ("test", "query")
    ]
    gallery = [i for i, item in enumerate(data.items) if item.role == "gallery"]
    old, new = (Encoder.load(shop.path(name)) for name in ("old.onnx", "new.onnx"))
    stored = old.embed(data.take(gallery)).features
    for pair, encoder, searched in (
        ("old_old", old, stored),
        ("new_old", new, stored),
        ("new_new", new, new.embed(data.take(gallery)).features),
    ):
        right = 0
        for row, feature in zip(queries, encoder.embed(data.take(queries)).features, strict=True):
            nearest = gallery[int(np.argmax(searched @ feature))]
            right += data.labels[nearest] == data.labels[row]
        assert group["hit_rate"][pair]["1"] == pytest.approx(right / len(queries), abs=2e-3)
    assert group["hit_rate"]["new_old"]["1"] > group["hit_rate"]["old_old"]["1"]


@pytest.mark.parametrize(
    ("name", "code", "outcome"),
    [
        ("old.onnx", 4, "inconclusive"),
        ("worse.onnx", 3, "fail"),
        ("turned.onnx", 3, "fail"),
    ],
)
def test_equal_worse_and_incompatible_models_never_pass(
    shop: Shop, name: str, code: int, outcome: str
) -> None:
    """The same model ends in exit 4, a noisier one and a good one in another space in exit 3."""
    exit_code, report = _verify(shop, name)
    assert exit_code == code
    assert report["verdict"]["outcome"] == outcome  # type: ignore[index]


def test_too_few_queries_are_inconclusive(shop: Shop, tmp_path: Path) -> None:
    """With fewer held-out queries than the policy asks for the exit code is 4, not a pass."""
    policy = tmp_path / "strict.yaml"
    policy.write_text("format: 4\nname: many\nmin_queries: 100000\n")
    code, report = _verify(shop, "new.onnx", "--policy", policy)
    assert code == 4
    assert report["verdict"]["outcome"] == "inconclusive"  # type: ignore[index]


def test_the_same_inputs_give_the_same_report(shop: Shop) -> None:
    """report.json holds no time and no chance: two runs write the same bytes."""
    _verify(shop, "new.onnx")
    first = shop.path("report.json").read_bytes()
    _verify(shop, "new.onnx")
    assert shop.path("report.json").read_bytes() == first


def test_deploy_and_rollback_leave_the_index_unchanged(shop: Shop) -> None:
    """verify, deploy, status and rollback switch the query model; the index keeps its bytes."""
    before = shop.manifest()
    index = shop.path(f"store/indexes/{before['index']['sha256']}.hnsw")
    stat, digest = index.stat(), hashlib.sha256(index.read_bytes()).hexdigest()
    _deployable(shop)
    deployed = shop.run("deploy").json
    assert deployed["query_model"] == Encoder.load(shop.path("new.onnx")).sha256
    assert shop.run("status").json["query_model"] == deployed["query_model"]
    restored = shop.run("rollback").json
    assert restored["query_model"] == before["query_model"]
    lines = shop.run("history").json["generations"]
    assert [line["operation"] for line in lines] == ["init", "deploy", "rollback"]
    assert {line["index_sha256"] for line in lines} == {digest}
    assert index.stat().st_mtime_ns == stat.st_mtime_ns
    assert shop.run("check").json["ok"]


def test_deploy_needs_a_report(shop: Shop) -> None:
    """Without a report deploy ends in exit 3, names the next command and changes nothing."""
    before = shop.manifest()
    result = shop.run("deploy", "--model", shop.path("new.onnx"))
    assert result.code == 3
    assert "compatctl verify" in result.stderr
    assert shop.manifest() == before


def test_deploy_refuses_a_failing_report_unless_forced_with_a_reason(shop: Shop) -> None:
    """A failing report ends in exit 3; --force alone in 2; with a reason it is recorded."""
    assert _verify(shop, "worse.onnx")[0] == 3
    assert shop.run("deploy").code == 3
    assert shop.run("deploy", "--force").code == 2
    assert shop.run("deploy", "--force", "--reason", "drill").code == 0
    assert shop.manifest()["forced_reason"] == "drill"


def test_deploy_refuses_an_inconclusive_report(shop: Shop, tmp_path: Path) -> None:
    """A report that could not tell ends in exit 4."""
    policy = tmp_path / "many.yaml"
    policy.write_text("format: 4\nname: many\nmin_queries: 100000\n")
    assert _verify(shop, "new.onnx", "--policy", policy)[0] == 4
    refused = shop.run("deploy", "--policy", policy)
    assert refused.code == 4
    assert "next: hold out more classes and items" in refused.stderr


def test_verify_warns_of_options_for_which_deploy_refuses_the_report(shop: Shop) -> None:
    """It names the flags that the project does not say; once it says them, deploy takes the same
    report, and verify is silent. A report that does not pass is not deployed anyway."""
    old, new, worse = (shop.path(f"{name}.onnx") for name in ("old", "new", "worse"))
    flags = ("--no-self-test", "--slice", "vendor")
    refused = "deploy refuses this report"
    assert refused not in shop.run("verify", old, worse, *flags).stderr
    passed = shop.run("verify", old, new, *flags)
    assert passed.code == 0
    assert f"{refused}: it was made with --no-self-test and --slice, which" in passed.stderr
    denied = shop.run("deploy")
    assert (denied.code, "the report was made with self_test no" in denied.stderr) == (3, True)
    project = shop.path("compatctl.yaml")
    project.write_text(project.read_text() + "slices: [vendor]\ngate: {self_test: false}\n")
    assert shop.run("deploy", "--dry-run").code == 0
    assert refused not in shop.run("verify", old, new).stderr
    assert shop.run("deploy").code == 0


def test_verify_warns_of_a_candidate_that_was_rolled_back(shop: Shop) -> None:
    """Its report passes, deploy refuses it, and what the warning says brings it back."""
    _deployable(shop)
    refused = "deploy refuses this candidate, as generation 3 rolled it back"
    new = shop.path("new.onnx")
    assert shop.run("deploy").code == shop.run("rollback").code == 0
    passed = shop.run("verify", new)
    assert (passed.code, f"{refused}; compatctl deploy --again --reason" in passed.stderr) == (
        0,
        True,
    )
    assert shop.run("deploy").code == 3
    assert refused not in shop.run("verify", shop.path("worse.onnx")).stderr
    assert shop.run("verify", new).code == 0
    assert shop.run("deploy", "--again", "--reason", "a drill").code == 0
    assert refused not in shop.run("verify", new).stderr


def test_deploy_refuses_a_report_with_another_digest(shop: Shop, tmp_path: Path) -> None:
    """Another model, another policy, another store end in exit 3; the same deploy twice in 0."""
    _deployable(shop)
    other = shop.run("deploy", "--model", shop.path("worse.onnx"))
    assert (other.code, "another new model" in other.stderr) == (3, True)
    loose = tmp_path / "loose.yaml"
    loose.write_text("format: 4\nname: loose\nmin_queries: 1\n")
    changed = shop.run("deploy", "--policy", loose)
    assert (changed.code, "another policy" in changed.stderr) == (3, True)
    assert shop.run("deploy").json["written"] is True
    repeated = shop.run("deploy")
    assert (repeated.code, repeated.json["written"]) == (0, False)
    assert shop.manifest()["generation"] == 2
    forced = shop.run("deploy", "--model", shop.path("worse.onnx"), "--force", "--reason", "drill")
    assert forced.code == 0
    again = shop.run("deploy")
    assert (again.code, "another old model" in again.stderr) == (3, True)


def test_deploy_refuses_a_report_from_before_an_add(shop: Shop, emoji: Path) -> None:
    """A report is for one index: after an add it no longer deploys."""
    _deployable(shop)
    table = shop.path("more.csv")
    image = next((emoji / "images" / "twemoji").iterdir())
    table.write_text(f"id,path,label\nfresh,{image},fresh\n")
    assert shop.run("add", "--data", table, "--data-root", emoji).json["added"] == 1
    refused = shop.run("deploy")
    assert (refused.code, "another index" in refused.stderr) == (3, True)


def test_dry_runs_write_nothing(shop: Shop) -> None:
    """--dry-run of deploy, rollback and add leave every byte of the store as it was."""
    _deployable(shop)
    shop.run("deploy")

    def bytes_of_store() -> dict[str, bytes]:
        paths = sorted(shop.path("store").rglob("*"))
        return {str(path): path.read_bytes() for path in paths if path.is_file()}

    before = bytes_of_store()
    assert shop.run("deploy", "--dry-run", "--force", "--reason", "look").code == 0
    assert shop.run("rollback", "--dry-run").code == 0
    assert shop.run("add", "--dry-run").code == 0
    assert bytes_of_store() == before


def test_search_finds_a_gallery_image_and_refuses_another_model(shop: Shop, emoji: Path) -> None:
    """A gallery image finds itself first; --model other than the query model is exit 5."""
    item = load(shop.data()).filter(role="gallery").items[0]
    image = emoji / "images" / f"{item.id}.png"
    hits = shop.run("search", image).json["queries"][0]["hits"]
    assert hits[0]["id"] == item.id
    assert hits[0]["score"] == pytest.approx(1.0, abs=1e-4)
    assert shop.run("search", image, "--model", shop.path("new.onnx")).code == 5


def test_import_adopts_the_file_byte_for_byte(shop: Shop, tmp_path: Path, emoji: Path) -> None:
    """The adopted store has the same index bytes, and another model is refused by its vectors."""
    manifest = shop.manifest()
    index = shop.path(f"store/indexes/{manifest['index']['sha256']}.hnsw")
    data = load(emoji / "items.csv")
    gallery = data.filter(role="gallery")
    items = tmp_path / "items.csv"
    lines = [f"{key},{entry.id},{entry.label}" for key, entry in enumerate(gallery.items)]
    items.write_text("key,id,label\n" + "\n".join(lines) + "\n")
    common = ("--items", items, "--data", emoji / "items.csv", "--json")
    result = run(
        "import", index, "--model", shop.path("old.onnx"), "--store", tmp_path / "one", *common
    )
    assert result.code == 0, result.stderr
    assert result.json["index_sha256"] == manifest["index"]["sha256"]
    assert result.json["agreement"] > 0.9999
    wrong = run(
        "import", index, "--model", shop.path("turned.onnx"), "--store", tmp_path / "two", *common
    )
    assert wrong.code == 5
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("9" * 100_000 + ",a,x", "expected a key of the index"),
        ("18446744073709551616,a,x", "larger than"),
        ("\u00b2,a,x", "expected a key of the index"),
        ("-1,a,x", "expected a key of the index"),
        ("0,a", "2 cells under 3 columns"),
        ("0, ,x", "got '0', ' ' and 'x'"),
        ("0," + "a" * 200_000 + ",x", "not CSV: field larger"),
        ("0,a,x\n0,b,y", "twice"),
    ],
    ids=[
        "endless digits",
        "beyond uint64",
        "a power",
        "negative",
        "short",
        "blank",
        "a huge cell",
        "twice",
    ],
)
def test_import_refuses_malformed_keys(shop: Shop, tmp_path: Path, line: str, says: str) -> None:
    """A key that hnswlib cannot have is an input error that names the line."""
    index = shop.path(f"store/indexes/{shop.manifest()['index']['sha256']}.hnsw")
    items = tmp_path / "items.csv"
    items.write_text(f"key,id,label\n{line}\n", encoding="utf-8")
    more = ("--items", items, "--store", tmp_path / "one", "--json")
    result = run("import", index, "--model", shop.path("old.onnx"), *more)
    assert (result.code, "items.csv" in result.stderr, says in result.stderr) == (5, True, True)


def test_data_root_can_be_a_flag_a_variable_or_a_project_entry(
    shop: Shop, emoji: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images outside the table's folder need --data-root, COMPATCTL_DATA_ROOT or data_root."""
    image = next((emoji / "images" / "twemoji").iterdir())
    table = shop.path("more.csv")
    table.write_text(f"id,path,label\nfresh,{image},fresh\n")
    add = ("add", "--dry-run", "--data", table)
    result = shop.run(*add)
    assert (result.code, "line 2" in result.stderr, "--data-root FOLDER" in result.stderr) == (
        5, True, True,
    )  # fmt: skip
    assert shop.run(*add, "--data-root", emoji).code == 0
    with monkeypatch.context() as patch:
        patch.setenv("COMPATCTL_DATA_ROOT", str(emoji))
        assert shop.run(*add).code == 0
    project = shop.path("compatctl.yaml")
    project.write_text(project.read_text() + f"data_root: {emoji}\n")
    assert shop.run(*add).code == 0


def test_fuse_chooses_its_weight_and_is_judged_like_any_model(shop: Shop) -> None:
    """The fused file's weight is the best of the trials on validation classes; its gain, measured
    on the other half of the classes, has an interval, as does the weight."""
    fused = shop.run(
        "fuse", shop.path("old.onnx"), shop.path("new.onnx"), "-o", shop.path("fused.onnx")
    )
    assert fused.code == 0, fused.stderr
    result, search = fused.json, fused.json["search"]
    assert len(search["trials"]) == 9
    best = max(trial["hit_rate"] for trial in search["trials"])
    assert best == next(t["hit_rate"] for t in search["trials"] if t["weight"] == result["weight"])
    assert search["weight_low"] <= result["weight"] <= search["weight_high"]
    assert search["low"] <= search["gain"] <= search["high"]
    assert search["gain"] <= best - search["old_hit_rate"]
    assert len(search["half_weights"]) == 2
    code, report = _verify(shop, "fused.onnx")
    assert code == 0
    assert report["new"]["sha256"] == result["sha256"]  # type: ignore[index]


def test_slices_that_are_too_small_to_decide_are_named(shop: Shop) -> None:
    """With 90 queries of each vendor and 100 required, the report says that none was judged."""
    report = shop.run("verify", shop.path("new.onnx"), "--slice", "vendor").json
    (note,) = [note for note in report["not_checked"] if note.startswith("slices")]
    assert "fewer than 100 queries" in note
    assert all(f"vendor={name}" in note for name in ("emojione", "noto-v1", "twemoji"))


def test_a_fused_model_that_loses_is_not_told_to_fuse(shop: Shop) -> None:
    """Its next step names the other routes; that of the same model alone is to fuse."""
    old, worse, fused = (shop.path(f"{name}.onnx") for name in ("old", "worse", "fused"))
    assert shop.run("fuse", old, worse, "-o", fused, "--weight", 0.9).code == 0
    alone, both = shop.run("verify", old, worse), shop.run("verify", old, fused)
    assert (alone.code, both.code) == (3, 3)
    assert "compatctl fuse" in alone.json["next_step"]
    assert "fuse" not in both.json["next_step"]


def test_where_the_old_model_is_gone_no_candidate_may_run_it(shop: Shop) -> None:
    """Exit 2 for fuse, and for a fused or re-fused candidate, even one whose report passes."""
    old, new, fused = (shop.path(f"{name}.onnx") for name in ("old", "new", "fused"))
    again = shop.path("again.onnx")
    assert shop.run("fuse", old, new, "-o", fused, "--weight", 0.5).code == 0
    assert shop.run("fuse", fused, new, "-o", again, "--weight", 0.5).code == 0
    assert shop.run("verify", old, fused).code == 0
    project = shop.path("compatctl.yaml")
    project.write_text(project.read_text() + "old_model_gone: true\n")
    refused = shop.run("deploy")
    assert (refused.code, "fused.onnx runs the old model" in refused.stderr) == (2, True)
    refused = shop.run("fuse", old, new, "-o", shop.path("other.onnx"))
    assert (refused.code, "old_model_gone: true" in refused.stderr) == (2, True)
    assert "compatctl finetune" in refused.stderr
    assert not shop.path("other.onnx").exists()
    for name in ("fused.onnx", "again.onnx"):
        refused = shop.run("verify", old, shop.path(name))
        assert (refused.code, f"{name} runs the old model" in refused.stderr) == (2, True)
    assert shop.run("verify", old, new).code == 0


def test_matrix_of_versions(shop: Shop) -> None:
    """M is lower triangular, AC counts the compatible pair, and a turned model counts nothing."""
    data = ("--data", shop.data())
    good = run("matrix", shop.path("old.onnx"), shop.path("new.onnx"), *data, "--json").json
    assert [len(row) for row in good["values"]] == [1, 2]
    assert good["ac"] == 1.0
    bad = run("matrix", shop.path("old.onnx"), shop.path("turned.onnx"), *data, "--json").json
    assert bad["ac"] == 0.0


def test_verify_refuses_an_old_model_that_is_not_deployed(shop: Shop) -> None:
    """Against a store, the old model must be its query model."""
    result = shop.run("verify", shop.path("worse.onnx"), shop.path("new.onnx"))
    assert result.code == 5
    assert "query model" in result.stderr


def test_trained_items_are_found_in_the_held_out_data(shop: Shop) -> None:
    """Leaks by id are an error; with --allow-seen they are a group of their own."""
    data = load(shop.data())
    leaked = [i for i in data.items if (i.split, i.role) == ("test", "query")][:7]
    record = {
        "items": [{"id": item.id, "sha256": "0" * 64} for item in leaked],
        "unlabelled": [],
        "classes": [],
    }
    carry(shop.path("new.onnx"), TrainingRecord.from_json(record))
    report = shop.path("report.json")
    refused = shop.run("verify", shop.path("old.onnx"), shop.path("new.onnx"), "--report", report)
    assert (refused.code, "trained on" in refused.stderr) == (5, True)
    code, report = _verify(shop, "new.onnx", "--allow-seen")
    assert code == 0
    sizes = {group["name"]: group["n_queries"] for group in report["groups"]}  # type: ignore[attr-defined]
    assert sizes["trained"] == 7


def test_a_foreign_model_keeps_one_identity(shop: Shop, tmp_path: Path) -> None:
    """Two copies of a model have one sha256; another seed another."""
    copy = tmp_path / "copy.onnx"
    shutil.copyfile(shop.path("old.onnx"), copy)
    other = write_encoder(tmp_path / "other.onnx", noise=0.35, seed=1)
    shas = [Encoder.load(path).sha256 for path in (shop.path("old.onnx"), copy, other)]
    assert shas[0] == shas[1] != shas[2]
