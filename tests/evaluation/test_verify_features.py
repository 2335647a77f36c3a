"""verify of two feature tables: no project, no store, no image."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from shop_kit import Result, Shop, run

EMOJI = Path(__file__).parents[1] / "fixtures" / "features" / "emoji.npz"
CLASSES = 60
Table = dict[str, Any]
Array = NDArray[Any]


def unit(rows: Array) -> Array:
    """Rows of length 1, float32."""
    rows = rows.astype(np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class Emoji:
    """Real features of some classes of emoji, and the same ones cleaned."""

    ids: Array
    labels: Array
    vendors: Array
    old: Array
    new: Array

    def table(self, features: Array, **more: Any) -> Table:
        """The arrays of a feature table."""
        return {"ids": self.ids, "labels": self.labels, "features": features, **more}


def emoji_of(classes: int) -> Emoji:
    """The first classes; the new features are moved towards the means of their classes."""
    with np.load(EMOJI) as archive:
        labels = archive["labels"]
        kept = np.isin(labels, np.unique(labels)[:classes])
        ids, labels, old = archive["ids"][kept], labels[kept], unit(archive["lite0"][kept])
    means = {name: old[labels == name].mean(axis=0) for name in np.unique(labels)}
    new = unit(old + 0.4 * np.stack([means[name] for name in labels]))
    vendors = np.array([item_id.split("/")[0] for item_id in ids])
    return Emoji(ids=ids, labels=labels, vendors=vendors, old=old, new=new)


@pytest.fixture(scope="module")
def real() -> Emoji:
    """60 classes of five vendors."""
    return emoji_of(CLASSES)


def write(folder: Path, old: Table, new: Table) -> tuple[Path, Path]:
    """Both tables as files."""
    for name, arrays in (("old", old), ("new", new)):
        np.savez(folder / f"{name}.npz", **arrays)
    return folder / "old.npz", folder / "new.npz"


def verify(folder: Path, old: Table, new: Table, *more: object) -> tuple[Result, dict[str, Any]]:
    """The command's result and its report; {} if none was written."""
    paths = write(folder, old, new)
    report = folder / "report.json"
    result = run("verify", *paths, "--report", report, "--json", *more)
    return result, json.loads(report.read_bytes()) if report.exists() else {}


def checks(report: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """(name, group) -> check."""
    return {(check["name"], check["group"]): check for check in report["verdict"]["checks"]}


def slow_ranks(
    table: Table, queries: Array, gallery: Array, asked: Array, searched: Array
) -> list[int]:
    """Rank of the first item of each query's class among all others; 0 if there is none."""
    results = []
    labels = table["labels"]
    for q in queries:
        others = [int(g) for g in gallery if g != q]
        every = (searched.astype(np.float64) @ asked[q].astype(np.float64)).tolist()
        scores = [every[g] for g in others]
        order = sorted(range(len(others)), key=lambda at: -scores[at])
        hits = [place for place, at in enumerate(order, 1) if labels[others[at]] == labels[q]]
        results.append(hits[0] if hits else 0)
    return results


def test_feature_tables_need_no_project_store_or_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real: Emoji
) -> None:
    """In a folder of two tables a better model passes, and only the report is written."""
    write(tmp_path, real.table(real.old), real.table(real.new))
    monkeypatch.chdir(tmp_path)
    result = run("verify", "old.npz", "new.npz")
    assert result.code == 0, result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"old.npz", "new.npz", "report.json"}
    report = json.loads(Path("report.json").read_bytes())
    assert report["verdict"]["outcome"] == "pass"
    assert (report["store"], report["ann"], report["latency"]) == (None, None, None)
    for name in ("old", "new"):
        digest = hashlib.sha256(Path(f"{name}.npz").read_bytes()).hexdigest()
        assert report[name] == {"name": f"{name}.npz", "sha256": digest, "dim": 64}


def test_the_report_says_what_could_not_be_checked(tmp_path: Path, real: Emoji) -> None:
    """Leaks, parity, index, latency, thresholds and slices are each named as not checked."""
    _, report = verify(tmp_path, real.table(real.old), real.table(real.new))
    for word in ("leaks", "parity", "ANN recall", "latency", "deploy", "--threshold", "--slice"):
        assert sum(word in note for note in report["not_checked"]) == 1, word


def test_figures_are_those_of_an_explicit_loop(tmp_path: Path, real: Emoji) -> None:
    """Hit rate, flips and mean cosines of leave-one-out are what loops over all items find."""
    table = real.table(real.old)
    _, report = verify(tmp_path, table, real.table(real.new))
    group = report["groups"][0]
    rows = np.arange(len(real.ids))
    places = {}
    for name, querying, searched in (
        ("old_old", real.old, real.old),
        ("new_old", real.new, real.old),
        ("new_new", real.new, real.new),
    ):
        places[name] = slow_ranks(table, rows, rows, querying, searched)
        for k in (1, 5, 10):
            share = np.mean([0 < place <= k for place in places[name]])
            assert group["hit_rate"][name][str(k)] == pytest.approx(share, abs=1e-12)
    both = list(zip(places["old_old"], places["new_old"], strict=True))
    assert group["positive_flips"] == pytest.approx(np.mean([a != 1 == b for a, b in both]))
    assert group["negative_flips"] == pytest.approx(np.mean([a == 1 != b for a, b in both]))
    same = [
        float(real.new[i].astype(float) @ real.old[j].astype(float))
        for i in rows
        for j in rows
        if i != j and real.labels[i] == real.labels[j]
    ]
    assert group["cos_same"]["new_old"] == pytest.approx(np.mean(same), abs=1e-6)
    assert (group["n_queries"], group["n_classes"]) == (len(rows), CLASSES)


def test_roles_say_who_searches_whom(tmp_path: Path, real: Emoji) -> None:
    """Queries search the gallery items only; those whose class is not there are left out."""
    role = np.where(real.vendors == "noto", "gallery", "query")
    role[(real.labels == real.labels[0]) & (role == "gallery")] = "query"
    tables = real.table(real.old, role=role), real.table(real.new, role=role)
    _, report = verify(tmp_path, *tables)
    queries, gallery = np.flatnonzero(role == "query"), np.flatnonzero(role == "gallery")
    group = report["groups"][0]
    places = slow_ranks(tables[0], queries, gallery, real.new, real.old)
    counted = [place for place in places if place]
    assert (group["n_queries"], group["n_without_match"]) == (len(counted), 5)
    assert len(counted) == len(queries) - 5
    for k in (1, 5):
        share = np.mean([place <= k for place in counted])
        assert group["hit_rate"]["new_old"][str(k)] == pytest.approx(share, abs=1e-12)


def test_slices_are_judged_one_by_one(tmp_path: Path) -> None:
    """A slice that the new model ruins fails; a small one is shown and does not decide."""
    emoji = emoji_of(100)
    rare = np.where(np.arange(len(emoji.ids)) % 14 == 0, "yes", "")
    new = emoji.new.copy()
    new[rare == "yes"] = unit(np.random.default_rng(0).normal(size=(int((rare != "").sum()), 64)))
    tables = [
        emoji.table(features, rare=rare, vendor=emoji.vendors) for features in (emoji.old, new)
    ]
    rows = np.arange(len(emoji.ids))
    first = [slow_ranks(tables[0], rows, rows, entry, emoji.old) for entry in (emoji.old, new)]
    gains = np.array([(b == 1) - (a == 1) for a, b in zip(*first, strict=True)], float)
    codes = {}
    for least in (20, 100):
        policy = tmp_path / f"{least}.yaml"
        policy.write_text(
            f"format: 4\nname: slices\nmin_slice_gain: -0.1\nslice_min_queries: {least}\n"
        )
        more = ("--policy", policy, "--slice", "rare", "--slice", "vendor")
        result, report = verify(tmp_path, *tables, *more)
        codes[least] = result.code
        print(
            result.code,
            [
                (
                    c["name"],
                    c["group"],
                    c["outcome"],
                    c["estimate"],
                    c["low"],
                    c["high"],
                    c["n_classes"],
                    c["decides"],
                )
                for c in report["verdict"]["checks"]
                if c["decides"] or "rare" in c["group"]
            ],
        )
        by_name = checks(report)
        slices = {group: value for (name, group), value in by_name.items() if name == "slice_gain"}
        assert len(slices) == 1 + len(set(emoji.vendors))  # the empty value is no slice
        for vendor in set(emoji.vendors):
            value = slices[f"unseen, vendor={vendor}"]
            assert value["estimate"] == pytest.approx(gains[emoji.vendors == vendor].mean())
        value = slices["unseen, rare=yes"]
        assert value["estimate"] == pytest.approx(gains[rare == "yes"].mean())
        assert (value["n"], value["estimate"] < -0.3) == (int((rare == "yes").sum()), True)
        assert value["decides"] is (least == 20)
    assert codes == {20: 3, 100: 0}


def test_an_unknown_column_is_refused(tmp_path: Path, real: Emoji) -> None:
    """--slice of an unknown column ends in exit 5 and lists the known ones."""
    tables = [real.table(features, vendor=real.vendors) for features in (real.old, real.new)]
    result, report = verify(tmp_path, *tables, "--slice", "vendro")
    assert (result.code, report) == (5, {})
    assert "vendro" in result.stderr
    assert "vendor" in result.stderr.replace("vendro", "")


def test_two_slices_of_one_name_are_refused(tmp_path: Path, real: Emoji) -> None:
    """Column ``a`` with the value ``b=c`` and column ``a=b`` with ``c``: one name, exit 5."""
    some = np.where(np.arange(len(real.ids)) < 50, "c", "d")
    more = {"a": np.full(len(real.ids), "b=c"), "a=b": some}
    tables = [real.table(features, **more) for features in (real.old, real.new)]
    result, report = verify(tmp_path, *tables, "--slice", "a", "--slice", "a=b")
    assert (result.code, report, "a=b=c" in result.stderr) == (5, {}, True)


def test_lengths_and_number_types_do_not_matter(tmp_path: Path, real: Emoji) -> None:
    """Rows of any length, in half, single or double precision, give one and the same report."""
    rng = np.random.default_rng(0)
    scale = (2.0 ** rng.integers(-20, 20, len(real.ids)))[:, None]
    half = [features.astype(np.float16) for features in (real.old, real.new)]
    bodies = set()
    for change in (
        lambda array: array,
        lambda array: array.astype(np.float64),
        lambda array: np.asfortranarray(array.astype(np.float32)),
        lambda array: array.astype(np.float64) * scale,
    ):
        both = (real.table(change(part), similarity=np.array("cosine")) for part in half)
        result, report = verify(tmp_path, *both)
        assert result.code == 0
        report["old"].pop("sha256")
        report["new"].pop("sha256")
        report.pop("checksum")
        bodies.add(json.dumps(report, sort_keys=True))
    assert len(bodies) == 1


def _hit_rate(queries: Array, gallery: Array, labels: Array, kind: str) -> float:
    """hit@1, leave-one-out, by a loop over the queries in float64."""
    right = 0
    rows = gallery.astype(np.float64)
    for at, query in enumerate(queries.astype(np.float64)):
        score = rows @ query if kind == "dot" else -((rows - query) ** 2).sum(axis=1)
        score[at] = -np.inf
        right += labels[int(np.argmax(score))] == labels[at]
    return right / len(queries)


@pytest.mark.parametrize("kind", ["dot", "l2"])
@pytest.mark.parametrize("away", [0.0, 30.0])
def test_norms_count_for_dot_and_l2(tmp_path: Path, real: Emoji, kind: str, away: float) -> None:
    """By dot and by l2 every hit rate is that of a slow loop over the rows as they are, also far
    from the origin; by the cosine it is another; nothing of cosines is reported."""
    rng = np.random.default_rng(1)
    scale = np.exp(rng.normal(0.0, 0.5, len(real.ids)))[:, None]
    old, new = real.old * scale + away * real.old[0], real.new * scale[::-1] + away * real.old[0]
    columns = {"similarity": np.array(kind)}
    outcome, report = verify(tmp_path, real.table(old, **columns), real.table(new, **columns))
    assert outcome.code in {0, 3, 4}, outcome.stderr
    result = report["groups"][0]["hit_rate"]
    for name, queries, gallery in (
        ("old_old", old, old), ("new_old", new, old), ("new_new", new, new), ("old_new", old, new)
    ):  # fmt: skip
        assert result[name]["1"] == pytest.approx(
            _hit_rate(queries, gallery, real.labels, kind), abs=1e-9
        )
    assert report["data"]["name"] == f"features, {kind}"
    assert not {"same_class", "different_class"} & {
        check["name"] for check in report["verdict"]["checks"]
    }
    assert any("cosines" in line for line in report["not_checked"])
    flag = verify(tmp_path, real.table(old), real.table(new), "--similarity", kind)[1]
    assert flag["groups"][0]["hit_rate"] == result
    _, cosine = verify(tmp_path, real.table(old), real.table(new), "--similarity", "cosine")
    assert cosine["groups"][0]["hit_rate"] != result


def test_two_similarities_and_options_about_cosines_are_refused(
    tmp_path: Path, real: Emoji
) -> None:
    """One table by dot and one by l2, thresholds, pairs and margins by dot, or a model: named."""
    dot, l2 = ({"similarity": np.array(kind)} for kind in ("dot", "l2"))
    result, report = verify(tmp_path, real.table(real.old, **dot), real.table(real.new, **l2))
    assert (result.code, report) == (5, {})
    assert "one similarity" in result.stderr
    tables = real.table(real.old, **dot), real.table(real.new)
    assert verify(tmp_path, *tables)[0].code in {0, 4}
    for more in (("--threshold", 0.5), ("--policy", "strict"), ("--similarity", "l2")):
        (tmp_path / "report.json").unlink(missing_ok=True)
        result, report = verify(tmp_path, *tables, *more)
        assert (result.code, report) == (5 if "l2" in more else 2, {})
    assert verify(tmp_path, *tables, "--similarity", "angle")[0].code == 2


def test_pairs_are_judged_on_features_too(tmp_path: Path, real: Emoji) -> None:
    """--pairs: the inequality means are those of an explicit loop over exactly these pairs."""
    rows = [(i, i + step) for step in (1, CLASSES) for i in range(40)]
    pairs = tmp_path / "pairs.csv"
    lines = [
        f"{real.ids[i]},{real.ids[j]},{int(real.labels[i] == real.labels[j])}" for i, j in rows
    ]
    pairs.write_text("id_a,id_b,same\n" + "\n".join(lines) + "\n")
    _, report = verify(tmp_path, real.table(real.old), real.table(real.new), "--pairs", pairs)
    moved: dict[bool, list[float]] = {True: [], False: []}
    for i, j in rows:
        change = (real.new[i].astype(float) - real.old[i]) @ real.old[j]
        moved[bool(real.labels[i] == real.labels[j])].append(float(change))
    by_name = checks(report)
    assert by_name["same_class", "pairs"]["estimate"] == pytest.approx(np.mean(moved[True]))
    assert by_name["different_class", "pairs"]["estimate"] == pytest.approx(-np.mean(moved[False]))
    assert (report["pairs"]["n_same"], report["pairs"]["n_diff"]) == tuple(
        len(moved[kind]) for kind in (True, False)
    )


def test_pairs_against_the_labels_or_of_nearly_known_ids_are_named(
    tmp_path: Path, real: Emoji
) -> None:
    """Where same is 1 for different items, a notice; an id in another case is refused, and shown
    beside the one that was meant."""
    rows = [(i, i + step) for step in (1, CLASSES) for i in range(40)]
    lines = [
        f"{real.ids[i]},{real.ids[j]},{int(real.labels[i] != real.labels[j])}" for i, j in rows
    ]
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("id_a,id_b,same\n" + "\n".join(lines) + "\n")
    tables = real.table(real.old), real.table(real.new)
    result, _ = verify(tmp_path, *tables, "--pairs", pairs)
    told = {entry["kind"]: entry for entry in result.json["notices"]}
    assert told["pair-differs"]["count"] == len(rows)
    assert told["pair-differs"]["names"][0] == f"{real.ids[0]} {real.ids[1]}"
    upper = str(real.ids[0]).upper()
    pairs.write_text(pairs.read_text().replace(f"{real.ids[0]},", f"{upper},"))
    result, _ = verify(tmp_path, *tables, "--pairs", pairs)
    assert result.code == 5
    assert f"'{upper}' and '{real.ids[0]}'" in result.stderr


def test_a_file_that_is_read_is_not_replaced_by_one_that_is_written(
    tmp_path: Path, real: Emoji
) -> None:
    """A report in the place of a table, a policy or the pairs, by a link too, or two outputs in one
    file: exit 2, and every file is as it was."""
    old, new = write(tmp_path, real.table(real.old), real.table(real.new))
    (tmp_path / "link.json").symlink_to(new)
    policy, pairs = tmp_path / "mine.yaml", tmp_path / "pairs.csv"
    policy.write_text("format: 4\nname: mine\n")
    pairs.write_text("id_a,id_b,same\n")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for flags in (
        ("--report", new),
        ("--report", old),
        ("--report", tmp_path / "link.json"),
        ("--html", policy, "--policy", policy),
        ("--junit", pairs, "--pairs", pairs),
        ("--report", tmp_path / "r", "--junit", tmp_path / "r"),
    ):
        result = run("verify", old, new, *flags)
        assert result.code == 2, result.stderr
        assert "would be " in result.stderr
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    nowhere = ("--report", "/dev/null", "--junit", "/dev/null")
    assert run("verify", old, new, *nowhere).code in {0, 4}


def without(name: str) -> Callable[[Table], Table]:
    """The table without one array."""
    return lambda table: {key: value for key, value in table.items() if key != name}


def put(name: str, change: Callable[[Array], Array]) -> Callable[[Table], Table]:
    """The table with one array changed."""
    return lambda table: {**table, name: change(table[name].copy())}


def at(row: int, value: Any) -> Callable[[Array], Array]:
    """One row of an array set."""

    def change(rows: Array) -> Array:
        rows = rows.astype("U40") if rows.dtype.kind == "U" else rows
        rows[row] = value
        return rows

    return change


BAD: dict[str, tuple[Callable[[Table], Table], str]] = {
    "no ids": (without("ids"), "ids"),
    "no labels": (without("labels"), "labels"),
    "no features": (without("features"), "features"),
    "pickled ids": (put("ids", lambda one: one.astype(object)), "pickle"),
    "pickled features": (put("features", lambda one: one.astype(object)), "pickle"),
    "bytes as ids": (put("ids", lambda one: one.astype("S40")), "ids"),
    "whole features": (put("features", lambda one: (100 * one).astype(int)), "features"),
    "flat features": (put("features", lambda one: one.ravel()), "features"),
    "NaN": (put("features", at(7, np.nan)), "row 7"),
    "infinity": (put("features", at(7, np.inf)), "row 7"),
    "a zero row": (put("features", at(7, 0.0)), "row 7"),
    "an id twice": (put("ids", lambda one: at(1, one[0])(one)), "twice"),
    "an empty id": (put("ids", at(3, "")), "row 3"),
    "an empty label": (put("labels", at(3, "")), "row 3"),
    "no row": (lambda table: {key: one[:0] for key, one in table.items()}, "features"),
    "fewer labels": (put("labels", lambda one: one[:-1]), "labels"),
    "another word as role": (lambda table: {**table, "role": table["labels"]}, "role"),
}


@pytest.mark.parametrize("which", ["old", "new"])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_table_is_named_and_never_judged(
    tmp_path: Path, real: Emoji, name: str, which: str
) -> None:
    """Whichever table is bad, the exit code is 5, the message names it, no report is written."""
    change, word = BAD[name]
    tables = {"old": real.table(real.old), "new": real.table(real.new)}
    tables[which] = change(tables[which])
    result, report = verify(tmp_path, tables["old"], tables["new"])
    assert (result.code, report) == (5, {}), result.stderr
    assert str(tmp_path / f"{which}.npz") in result.stderr
    assert word in result.stderr


def reordered(table: Table) -> Table:
    """The first two items, exchanged."""
    order = np.r_[1, 0, 2 : len(table["ids"])]
    return {key: value[order] for key, value in table.items()}


OTHER: dict[str, tuple[Callable[[Table], Table], str]] = {
    "an item less": (lambda table: {key: one[:-1] for key, one in table.items()}, "ids"),
    "another order": (reordered, "row 0"),
    "another id": (put("ids", at(5, "other")), "'other'"),
    "another label": (put("labels", at(5, "other")), "'other'"),
    "roles in one": (
        lambda table: {**table, "role": np.where(np.arange(len(table["ids"])) % 2, "query",
                                                 "gallery")},
        "roles",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
def test_tables_of_other_items_are_never_compared(tmp_path: Path, real: Emoji, name: str) -> None:
    """Missing, added, exchanged or renamed items: exit 5, both files are named, no report."""
    change, word = OTHER[name]
    good = real.table(real.old), real.table(real.new)
    for tables in ((good[0], change(good[1])), (change(good[0]), good[1])):
        result, report = verify(tmp_path, *tables)
        assert (result.code, report) == (5, {}), result.stderr
        assert word in result.stderr
        assert str(tmp_path / "old.npz") in result.stderr
        assert str(tmp_path / "new.npz") in result.stderr


def test_tables_with_other_values_of_a_named_column_are_not_compared(
    tmp_path: Path, real: Emoji
) -> None:
    """A column that only the old table has says enough; one that only the new one has, or that
    differs, is refused."""
    old, new = real.table(real.old), real.table(real.new)
    vendors, others = {"vendor": real.vendors}, {"vendor": np.roll(real.vendors, 1)}
    assert verify(tmp_path, old | vendors, new, "--slice", "vendor")[0].code == 0
    for tables in ((old, new | vendors), (old | others, new | vendors)):
        for flag in ("--slice", "--cluster", "--ignore-same"):
            result, _ = verify(tmp_path, *tables, flag, "vendor")
            assert result.code == 5
            assert "the values of vendor of the two tables differ" in result.stderr


def test_other_dimensions_are_refused(tmp_path: Path, real: Emoji) -> None:
    """A candidate of a smaller dimension ends in exit 5, and both dimensions are named."""
    result, report = verify(tmp_path, real.table(real.old), real.table(unit(real.new[:, :48])))
    assert (result.code, report) == (5, {})
    assert "64" in result.stderr
    assert "48" in result.stderr


def test_a_table_and_a_model_are_not_compared(tmp_path: Path, real: Emoji, begun: Path) -> None:
    """One .npz with one .onnx, either way: exit 5, the model's file is named, no report."""
    write(tmp_path, real.table(real.old), real.table(real.new))
    report = tmp_path / "report.json"
    model = begun / "new.onnx"
    for pair in ((tmp_path / "old.npz", model), (model, tmp_path / "new.npz")):
        result = run("verify", *pair, "--report", report)
        assert (result.code, str(model) in result.stderr, report.exists()) == (5, True, False)


def test_files_that_are_no_archive_are_refused(tmp_path: Path, real: Emoji) -> None:
    """No file, a text, half an archive: exit 5, the file is named, no report."""
    old, new = write(tmp_path, real.table(real.old), real.table(real.new))
    good = new.read_bytes()
    report = tmp_path / "report.json"
    for bad in (b"", b"text", good[: len(good) // 2], good.replace(b"features", b"featurez", 1)):
        new.write_bytes(bad)
        result = run("verify", old, new, "--report", report)
        assert (result.code, str(new) in result.stderr, report.exists()) == (5, True, False)
    new.unlink()
    result = run("verify", old, new, "--report", report)
    assert (result.code, str(new) in result.stderr, report.exists()) == (5, True, False)


def _archive(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def _npy(rows: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, rows)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["one array", "texts as arrays", "a text beside the arrays"])
def test_archives_of_another_form_are_refused(tmp_path: Path, real: Emoji, kind: str) -> None:
    """A .npy under the name .npz, and archives with members that are no arrays: exit 5."""
    old, new = write(tmp_path, real.table(real.old), real.table(real.new))
    arrays = {f"{key}.npy": _npy(value) for key, value in real.table(real.new).items()}
    new.write_bytes({
        "one array": _npy(real.new),
        "texts as arrays": _archive(ids=b"a", labels=b"b", features=b"c"),
        "a text beside the arrays": _archive(**arrays, **{"README.txt": b"emoji"}),
    }[kind])  # fmt: skip
    report = tmp_path / "report.json"
    result = run("verify", old, new, "--report", report)
    assert (result.code, str(new) in result.stderr, report.exists()) == (5, True, False)


@pytest.mark.parametrize("name", ["ids", "labels", "vendor"])
def test_text_that_does_not_decode_is_refused(tmp_path: Path, real: Emoji, name: str) -> None:
    """A lone surrogate in an id, a label or a slice can be written nowhere: exit 5."""
    change = put(name, at(4, "a\ud800"))
    tables = [
        change(real.table(features, vendor=real.vendors)) for features in (real.old, real.new)
    ]
    result, report = verify(tmp_path, *tables, "--slice", "vendor", "--markdown", tmp_path / "m.md")
    assert (result.code, report) == (5, {})
    assert "row 4" in result.stderr


POOR: dict[str, tuple[Callable[[Table], Table], int]] = {
    "no query": (lambda table: {**table, "role": np.full(len(table["ids"]), "gallery")}, 5),
    "no gallery item": (lambda table: {**table, "role": np.full(len(table["ids"]), "query")}, 5),
    "one class": (put("labels", lambda one: np.full(len(one), "x")), 4),
    "one item a class": (lambda table: {**table, "labels": table["ids"]}, 4),
    "one feature for all": (put("features", np.ones_like), 4),
    "three items": (lambda table: {key: one[:3] for key, one in table.items()}, 4),
    "one item": (lambda table: {key: one[:1] for key, one in table.items()}, 4),
}


@pytest.mark.parametrize("name", POOR)
@pytest.mark.parametrize("least", ["default", "nothing"])
def test_poor_evidence_never_passes(tmp_path: Path, real: Emoji, name: str, least: str) -> None:
    """With nothing or little to find, the outcome is inconclusive or an error, under the
    default policy and under one that asks for one query, one class and no gain."""
    change, code = POOR[name]
    policy: list[object] = []
    if least == "nothing":
        policy = ["--policy", tmp_path / "nothing.yaml"]
        (tmp_path / "nothing.yaml").write_text(
            "format: 4\nname: nothing\nmin_queries: 1\nmin_classes: 1\n"
            "different_class_margin: null\n"
        )
    tables = change(real.table(real.old)), change(real.table(real.new))
    result, report = verify(tmp_path, *tables, "--threshold", "0.9", *policy)
    assert result.code == code
    assert report.get("verdict", {}).get("outcome") == (None if code == 5 else "inconclusive")


def test_a_report_of_features_deploys_nothing(tmp_path: Path, shop: Shop, real: Emoji) -> None:
    """A pass of two tables has no index and no model: deploy ends in exit 3."""
    result, _ = verify(tmp_path, real.table(real.old), real.table(real.new))
    before = shop.manifest()
    more = ("--report", tmp_path / "report.json", "--model", shop.path("new.onnx"))
    refused = shop.run("deploy", *more)
    assert (result.code, refused.code, "another old model" in refused.stderr) == (0, 3, True)
    assert shop.manifest() == before


def shrunk(rows: Array, cosine: float) -> Array:
    """The rows (N, D) with one more dimension, which shrinks their cosines to a flat row."""
    return np.hstack([cosine * rows, np.full((len(rows), 1), np.sqrt(1 - cosine**2), rows.dtype)])


def flat(rows: Array) -> Array:
    """The rows (N, D) with one more dimension, which is 0."""
    return np.hstack([rows, np.zeros((len(rows), 1), rows.dtype)])


def scaled(real: Emoji) -> tuple[Table, Table]:
    """Tables of a better model whose cosines to the old gallery are a third; ranks stay."""
    roles = np.where(real.vendors == real.vendors[0], "gallery", "query")
    new = np.where((roles == "query")[:, None], shrunk(real.new, 1 / 3), flat(real.new))
    return real.table(flat(real.old), role=roles), real.table(new, role=roles)


def test_a_model_that_rejects_every_match_does_not_pass(tmp_path: Path, real: Emoji) -> None:
    """It finds more, accepts nothing in error, and nothing at all at the deployed threshold."""
    old, new = scaled(real)
    result, report = verify(tmp_path, old, new, "--threshold", "0.6")
    by_name = checks(report)
    assert by_name["hit_gain", "unseen"]["outcome"] == "pass"
    assert by_name["far_ratio", "unseen"]["estimate"] == 0.0
    rejects = by_name["frr_increase", "unseen"]
    assert rejects["estimate"] > 0.5
    assert (result.code, rejects["outcome"], rejects["decides"]) == (3, "fail", True)
    assert report["warnings"] == []  # what was measured at the threshold says it better


def test_the_advised_threshold_of_a_model_of_another_scale_passes(
    tmp_path: Path, real: Emoji
) -> None:
    """The next step names the threshold that keeps the false accepts; with it the model passes."""
    old, new = scaled(real)
    _, first = verify(tmp_path, old, new, "--threshold", "0.6")
    advice = re.search(r"--new-threshold (\S+)", first["next_step"])
    assert advice
    more = ("--threshold", "0.6", "--new-threshold", advice[1])
    result, report = verify(tmp_path, old, new, *more)
    assert result.code == 0, report["summary"]
    rates = report["groups"][0]["error_rates"]
    assert rates["far"]["new"] <= rates["far"]["old"]


@pytest.mark.parametrize("better", [True, False])
def test_a_model_of_a_space_of_its_own_is_told_from_a_worse_one(
    tmp_path: Path, real: Emoji, better: bool
) -> None:
    """Turned, neither finds anything in the old gallery. Only the one that finds more in its own is
    advised to be mapped, or everything to be embedded again."""
    rng, dim = np.random.default_rng(0), real.old.shape[1]
    turn = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    rows = real.new if better else real.old + 0.05 * rng.standard_normal(real.old.shape)
    result, report = verify(tmp_path, real.table(real.old), real.table(unit(rows @ turn)))
    assert result.code == 3
    gain = checks(report)["self_test_gain", "unseen"]
    assert (gain["low"] > 0) == better
    assert report["next_step"].startswith("keep the old model")
    assert ("compatctl bridge" in report["next_step"]) == better


def test_moved_scores_are_warned_of_without_a_threshold(tmp_path: Path, real: Emoji) -> None:
    """The warning is on stderr, in the report and in the summary; unmoved scores give none."""
    page = tmp_path / "page.md"
    result, report = verify(tmp_path, *scaled(real), "--markdown", page)
    (warning,) = report["warnings"]
    means = report["groups"][0]["cos_same"]
    assert f"{means['new_old'] - means['old_old']:+.2f} to items of its class" in warning
    assert "--threshold" in warning
    assert f"compatctl: warning: {warning}" in result.stderr
    assert "Warning: scores moved" in page.read_text()
    assert json.loads(result.stdout)["warnings"] == [warning]
    same = real.table(real.old)
    _, report = verify(tmp_path, same, same)
    assert report["warnings"] == []


def test_both_models_thresholds_at_a_false_accept_rate_are_reported(
    tmp_path: Path, real: Emoji
) -> None:
    """At FAR .01, with or without a threshold: the lowest that keeps it, and its FRR, by a loop."""
    old, new = scaled(real)
    _, report = verify(tmp_path, old, new)
    point = next(row for row in report["groups"][0]["operating_points"] if row["far"] == 0.01)
    for name, table in (("old", old), ("new", new)):
        querying, searched = (old["role"] == role for role in ("query", "gallery"))
        scores = unit(table["features"])[querying] @ unit(old["features"])[searched].T
        same = old["labels"][querying][:, None] == old["labels"][searched][None]
        at = point["threshold"][name]
        assert (scores[~same] >= at).mean() <= 0.01 < (scores[~same] >= at - 2**-13).mean()
        assert point["frr"][name] == pytest.approx((scores[same] < at).mean(), abs=2 / same.sum())


def test_with_judgments_a_threshold_is_judged_by_the_judged_pairs(
    tmp_path: Path, real: Emoji
) -> None:
    """FRR is the share of judged pairs below it; items of other labels are false accepts."""
    old, new = scaled(real)
    querying, searched = (np.flatnonzero(old["role"] == role) for role in ("query", "gallery"))
    pairs = [
        (q, next(g for g in searched if old["labels"][g] == old["labels"][q]))
        for q in querying
        if (old["labels"][searched] == old["labels"][q]).any()
    ]
    qrels = tmp_path / "judged.qrels"
    qrels.write_text("".join(f"{real.ids[q]} 0 {real.ids[g]} 1\n" for q, g in pairs))
    result, report = verify(tmp_path, old, new, "--qrels", qrels, "--threshold", "0.6")
    assert result.code == 3
    rates = report["groups"][0]["error_rates"]
    for name, table in (("old", old), ("new", new)):
        rows, stored = unit(table["features"]), unit(old["features"])
        scores = np.array([rows[q] @ stored[g] for q, g in pairs])
        assert rates["frr"][name] == pytest.approx((scores < 0.6).mean(), abs=1 / len(pairs))
    assert checks(report)["frr_increase", "unseen"]["n"] == len(pairs)
    assert any("nobody judged" in line for line in report["not_checked"])


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_queries_that_lie_in_the_tables_gallery_are_left_out(
    tmp_path: Path, real: Emoji, share: float
) -> None:
    """A query whose vector is in the gallery under another id is left out."""
    n = len(real.ids)
    copied = np.arange(n) < share * n
    ids = np.concatenate([real.ids, [f"copy of {item_id}" for item_id in real.ids[copied]]])
    labels = np.concatenate([real.labels, real.labels[copied]])
    role = np.repeat(["gallery", "query"], [n, copied.sum()])
    role[:n][~copied] = np.where(np.arange((~copied).sum()) % 2, "query", "gallery")
    both = [
        {"ids": ids, "labels": labels, "role": role, "features": np.r_[features, features[copied]]}
        for features in (real.old, real.new)
    ]
    result, report = verify(tmp_path, *both)
    group = report["groups"][0]
    assert group["n_same_image"] == copied.sum()
    assert group["n_queries"] == (role == "query").sum() - copied.sum()
    assert "under another id" in result.stderr
    assert share < 1 or report["verdict"]["outcome"] == "inconclusive"


@pytest.mark.parametrize("flag", [(), ("--no-self-test",)])
def test_duplicates_by_the_old_model_alone_are_kept(
    tmp_path: Path, real: Emoji, flag: tuple[str, ...]
) -> None:
    """A query that is in the gallery by the old vectors alone counts: else every one that the new
    model loses would be left out."""
    n = len(real.ids)
    ids = np.concatenate([real.ids, [f"copy of {item_id}" for item_id in real.ids]])
    labels, role = np.tile(real.labels, 2), np.repeat(["gallery", "query"], n)
    lost = np.r_[real.new, np.roll(real.new, n // 2, axis=0)]
    both = [
        {"ids": ids, "labels": labels, "role": role, "features": features}
        for features in (np.r_[real.old, real.old], lost)
    ]
    result, report = verify(tmp_path, *both, *flag)
    group = report["groups"][0]
    assert (group["n_same_image"], group["n_queries"]) == (0, n)
    assert any(note.startswith("copies of queries") for note in report["not_checked"]) == bool(flag)
    assert result.code == 3
