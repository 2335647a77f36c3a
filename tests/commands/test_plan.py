"""plan: every route on classes held out for planning, and one recommendation."""

from __future__ import annotations

import csv
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from shop_kit import DIM, Shop, run, store_files
from tiny_backbone import build

from compatctl.commands.plan import Plan, _budget_note
from compatctl.core.power_law import Range
from compatctl.data import load
from compatctl.deployment.gallery import DeployedGallery
from compatctl.encoder import Encoder
from compatctl.migration.forecast import Curve, Forecast, Goal
from compatctl.migration.preflight import Preflight, planning_split
from compatctl.migration.recommendation import COMMANDS, RouteEstimate, recommend
from compatctl.migration.routes import BACKFILL_SHARES, Route
from compatctl.progress import open_stages
from compatctl.recipe import Project
from compatctl.store import Store

RECIPE = """\
format: 1
backbone:
  factory: "tiny_backbone:build"
  input: {{height: 32, width: 32, resize: bilinear, fit: stretch, mean: [200.0, 200.0, 200.0]}}
junction: {{kind: mlp, hidden: 64, dropout: 0.0}}
objective: {objective}
train: {train}
optimiser: {{epochs: 3, batch_size: 64, lr: 0.003}}
"""
PROTOTYPES = "{frame: prototypes, lambda: 1.0, scale: 16.0}"


def _recipe(shop: Shop, objective: str = PROTOTYPES, train: str = "head") -> Path:
    path = shop.path("recipe.yaml")
    path.write_text(RECIPE.format(objective=objective, train=train))
    torch.save({"state_dict": build().state_dict()}, shop.path("new.ckpt"))
    return path


def _expected(name: str, gain: float, low: float, verdict: str | None) -> RouteEstimate:
    return RouteEstimate(
        name=Route(name),
        setting="",
        gallery_passed=1.0 if name in {"lift", "re-embed"} else 0.0,
        rows=100,
        queries=50,
        hit_rate=0.5 + gain,
        gain=gain,
        low=low,
        high=gain + 0.1,
        gain_retained=0.5,
        negative_flips=0.0,
        verdict=verdict,
        encoders=1,
        query_ms=1.0,
        passes=100,
        one_time_s=1.0,
        rewritten_bytes=0,
    )


def _forecast() -> Forecast:
    curve = Curve(
        amounts=(10.0, 20.0, 40.0),
        hit_rates=(0.3, 0.35, 0.4),
        exponent=Range(value=0.1, low=0.05, high=0.15),
        doubled=Range(value=0.44, low=0.4, high=0.48),
    )
    return Forecast(
        level=0.8,
        runs=2,
        classes=curve,
        images=None,
        to_pass=Goal(hit_rate=0.5, classes=Range(value=90.0, low=60.0, high=200.0)),
        to_keep_half=Goal(hit_rate=0.6, classes=None),
        more="cannot tell",
        seconds=1.0,
    )


@pytest.mark.slow
def test_a_plan_judges_by_the_judgments(shop: Shop) -> None:
    """Judgments that repeat the labels give every route the hit rate that the labels give; those
    that name an item of another class give next to none."""
    recipe, data = _recipe(shop), load(shop.data())
    command = "plan", "--base", shop.path("new.ckpt"), "--recipe", recipe, "--no-forecast"
    qrels, plans = shop.path("qrels.txt"), []
    for same in (None, True, False):
        lines = []
        for query in data.items:
            if same is None or query.split != "validation" or query.role == "gallery":
                continue
            items = (item for item in data.items if item.role != "query" and item.id != query.id)
            found = [item.id for item in items if (item.label == query.label) == same]
            lines += [f"{query.id} 0 {item} 1\n" for item in (found if same else found[:1])]
        if lines:
            qrels.write_text("".join(lines))
            project = shop.path("compatctl.yaml").read_text().split("gate:")[0]
            shop.path("compatctl.yaml").write_text(f"{project}gate: {{qrels: {qrels}}}\n")
        result = shop.run(*command)
        assert result.code == 0, result.stderr
        plans.append({route["name"]: route["hit_rate"] for route in result.json["routes"]})
    assert plans[0] == pytest.approx(plans[1], abs=1e-12)
    assert plans[2]["keep"] < 0.5 * plans[0]["keep"]


@contextmanager
def _watched(name: str) -> Iterator[list[float]]:
    """The shares of a stage that was done, each once, while the block runs."""
    seen: list[float] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.002):
            for part in open_stages():
                share = part.done / part.total if part.name == name and part.total else None
                if share is not None and share not in seen:
                    seen.append(share)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def test_the_estimates_of_a_real_project_add_up(shop: Shop) -> None:
    """Facts and routes add up, and the store is as it was. The forecast says how far it is from its
    first training on, epoch by epoch."""
    recipe, before = _recipe(shop), store_files(shop)
    with _watched("forecast") as seen:
        result = shop.run("plan", "--base", shop.path("new.ckpt"), "--recipe", recipe)
    assert result.code == 0, result.stderr
    assert seen == sorted(seen)
    assert 0.0 in seen
    assert len([share for share in seen if 0.0 < share < 1.0]) > 4
    sheet = {entry["name"]: entry for entry in result.json["routes"]}
    assert list(sheet)[:3] == ["keep", "finetune", "fuse"]
    assert "lazy" in sheet
    shares = [entry["gallery_passed"] for entry in sheet.values()]
    assert shares == sorted(shares)
    assert shares[:3] == [0.0, 0.0, 0.0]
    keep, ceiling = sheet["keep"], sheet["re-embed"]
    assert (keep["gain"], keep["one_time_s"], keep["rewritten_bytes"]) == (0.0, 0.0, 0)
    facts = result.json["preflight"]
    assert ceiling["rewritten_bytes"] == facts["gallery_rows"] * DIM * 4
    assert facts["dim"] == DIM
    assert not facts["born_on_simplex"]
    assert facts["random_spread"] == pytest.approx(DIM**-0.5)
    for value in sheet.values():
        assert value["gain"] == pytest.approx(value["hit_rate"] - keep["hit_rate"])
        assert value["low"] <= value["gain"] <= value["high"]
        untouched = value["rewritten_bytes"] == 0 and value["name"] != "keep"
        rewritten = value["name"] in {"lift", "re-embed"}
        assert (value["verdict"] is not None) == (untouched or rewritten)
    training = sheet["finetune"]["passes"]
    assert (keep["passes"], sheet["fuse"]["passes"]) == (0, training)
    assert ceiling["passes"] == training + facts["gallery_rows"]
    half = training + round(0.5 * facts["gallery_rows"])
    assert sheet["backfill 50%"]["passes"] == half
    assert sheet["fuse"]["query_ms"] > sheet["finetune"]["query_ms"]
    assert sheet["lift"]["rewritten_bytes"] == ceiling["rewritten_bytes"]
    assert sheet["lift"]["query_ms"] == ceiling["query_ms"]
    shares = [entry for name, entry in sheet.items() if name.startswith("backfill")]
    (of,) = {share["setting"] for share in shares}
    route = of.removeprefix("of ").split(",")[0]
    assert route in {"finetune", "fuse"}
    assert {share["query_ms"] for share in shares} == {sheet[route]["query_ms"]}
    forecast = result.json["forecast"]
    whole = forecast["classes"]["hit_rates"][-1]
    assert forecast["classes"]["amounts"][-1] == facts["training_classes"]
    assert forecast["images"]["hit_rates"][-1] == whole
    assert forecast["to_pass"]["hit_rate"] > keep["hit_rate"]
    chosen = result.json["recommended"]
    assert chosen == "keep" or sheet[chosen]["verdict"] == "pass"
    assert (result.json["recipe"] is None) == (chosen == "keep")
    assert store_files(shop) == before


def test_a_plan_searches_rows_without_an_image(shop: Shop) -> None:
    """Where gallery images are missing, routes that leave the gallery as it is search every stored
    row all the same; the others name the part that they were tried on."""
    with shop.data().open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        names, rows = list(reader.fieldnames or ()), list(reader)
    kept = [row for row in rows if (row["role"], row["split"]) != ("gallery", "test")]
    table, root = shop.path("part.csv"), shop.data().parent
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({**entry, "path": str(root / entry["path"])} for entry in kept)
    data = ("--data", table, "--data-root", root)
    result = shop.run(
        "plan", "--base", shop.path("new.ckpt"), "--recipe", _recipe(shop), "--no-forecast", *data
    )
    assert result.code == 0, result.stderr
    facts, said = result.json["preflight"], result.json["warnings"][0]
    gallery = DeployedGallery.open(Store.open(shop.path("store")))
    items = load(table, data_root=root)
    query_ids = [
        at for at, entry in enumerate(items.items)
        if entry.split == "validation" and entry.role != "gallery"
    ]  # fmt: skip
    old_features = Encoder.load(shop.path("old.onnx")).embed(items.take(query_ids)).features
    first = (old_features @ gallery.vectors().T).argmax(axis=1)
    right = np.array(gallery.catalog.labels)[first] == np.array(items.labels)[query_ids]
    assert facts["gallery_images"] < facts["gallery_rows"] == len(gallery.catalog)
    routes = {route["name"]: route for route in result.json["routes"]}
    assert routes["keep"]["hit_rate"] == pytest.approx(right.mean())
    for name in ("keep", "finetune", "fuse", "bridge", "bridge + fuse", "lazy"):
        assert routes[name]["rows"] == facts["gallery_rows"], name
        gain = routes[name]["hit_rate"] - routes["keep"]["hit_rate"]
        assert routes[name]["gain"] == pytest.approx(gain), name
    for name in ("re-embed", "lift", "backfill 25%"):
        assert routes[name]["rows"] == facts["gallery_images"], name
    assert f"{facts['gallery_images']} of {facts['gallery_rows']} gallery rows" in said


def test_a_limit_leaves_no_row_out_of_the_first_stage(shop: Shop) -> None:
    """With fewer images in the plan every route that keeps the gallery searches the whole store,
    lazy too: what its queries find first is embedded for it, up to the limit."""
    words = ("--base", shop.path("new.ckpt"), "--recipe", _recipe(shop), "--no-forecast")
    shares = []
    for limit in (140, 100):
        result = shop.run("plan", *words, "--limit", limit)
        assert result.code == 0, result.stderr
        facts = result.json["preflight"]
        routes = {route["name"]: route for route in result.json["routes"]}
        assert facts["gallery_images"] < facts["gallery_rows"]
        assert routes["lazy"]["rows"] == routes["finetune"]["rows"] == facts["gallery_rows"]
        assert 0 < facts["lazy_images"] <= limit
        assert routes["finetune"]["share_rescored"] is None
        assert "lazy" not in result.json["warnings"][0].split(" are tried on")[0]
        shares.append(routes["lazy"]["share_rescored"])
    assert 0 < min(shares) <= max(shares) <= 1.0
    shown = run("plan", *shop.args, *words, "--limit", 100)
    assert f"and {facts['lazy_images']} more to try lazy" in " ".join(shown.stdout.split())


def test_the_table_names_every_chosen_setting(capsys: pytest.CaptureFixture[str]) -> None:
    """Settings stand under the table, equal ones once: of which model the backfilled rows are."""
    from rich.console import Console

    from compatctl.render.tables import plan_table

    routes = [
        replace(_expected("keep", 0.0, 0.0, None), high=0.0),
        _expected("finetune", 0.05, 0.02, "pass"),
        replace(_expected("lift", 0.05, 0.02, "fail"), setting="mlp, epoch 3"),
        replace(_expected("backfill 25%", 0.05, 0.02, None), setting="of fuse, weight 0.5"),
        replace(_expected("backfill 50%", 0.05, 0.02, None), setting="of fuse, weight 0.5"),
    ]
    facts = Preflight(
        gallery_rows=10,
        gallery_classes=5,
        gallery_images=10,
        dim=8,
        born_on_simplex=False,
        vertices=None,
        cosine_mean=0.0,
        cosine_spread=0.1,
        random_spread=0.35,
        training_classes=3,
        training_classes_in_gallery=3,
        planning_classes=2,
        planning_queries=4,
    )
    result = Plan(
        preflight=facts,
        routes=tuple(routes),
        recommended="finetune",
        reason="it gains",
        commands=(),
        recipe=None,
        forecast=_forecast(),
        seconds=1.0,
    )
    plan_table(Console(width=200), result)
    shown = capsys.readouterr().out.splitlines()
    assert "lift: mlp, epoch 3" in shown
    assert "backfill 25%, backfill 50%: of fuse, weight 0.5" in shown
    assert not any(line.startswith("finetune:") for line in shown)
    assert any("labelled classes 10, 20, 40: hit@1 0.3000" in line for line in shown)
    assert any("images a class: too few" in line for line in shown)
    assert any("classes to pass (hit@1 0.5000): 90 (60 to 200)" in line for line in shown)
    assert any("half of re-embedding's gain (hit@1 0.6000): cannot tell" in line
               for line in shown)  # fmt: skip
    assert any("doubling helps more with: cannot tell" in line for line in shown)


def test_a_narrow_terminal_shows_the_share_passed(capsys: pytest.CaptureFixture[str]) -> None:
    """In 80 columns the first column keeps its figures."""
    from rich.console import Console

    from compatctl.render.tables import _plan_routes

    _plan_routes(Console(width=80), [replace(_expected("lift", 0.05, 0.02, "fail"), passes=10**7)])
    shown = [line for line in capsys.readouterr().out.splitlines() if "lift" in line]
    assert [line.split()[0] for line in shown] == ["100%", "100%"]


def test_a_repeated_plan_is_the_same(shop: Shop) -> None:
    """Two runs say the same of every route, but for times."""
    recipe = _recipe(shop)
    command = ("plan", "--base", shop.path("new.ckpt"), "--recipe", recipe, "--no-forecast")
    runs = [shop.run(*command) for _ in range(2)]
    assert runs[0].json["forecast"] is None
    timeless = [
        [
            {k: v for k, v in route.items() if not k.endswith(("_s", "_ms"))}
            for route in run.json["routes"]
        ]
        for run in runs
    ]
    assert timeless[0] == timeless[1]


def test_a_plan_leaves_out_what_runs_an_old_model_that_is_gone(shop: Shop) -> None:
    """Neither fuse nor bridge + fuse nor a backfill by fuse, and a warning says so."""
    project = shop.path("compatctl.yaml")
    project.write_text(project.read_text() + "old_model_gone: true\n")
    base, recipe = shop.path("new.ckpt"), _recipe(shop)
    result = shop.run("plan", "--base", base, "--recipe", recipe, "--no-forecast")
    assert result.code == 0, result.stderr
    routes = {route["name"]: route for route in result.json["routes"]}
    assert set(Route) - set(routes) == {Route.FUSE, Route.BRIDGE_FUSE}
    assert {routes[name]["setting"] for name in BACKFILL_SHARES} == {"of finetune"}
    assert routes["keep"]["hit_rate"] > 0
    assert "fuse and bridge + fuse are left out" in result.json["warnings"][-1]


def test_a_gallery_without_most_images_is_trained_against_whole(shop: Shop) -> None:
    """Where no gallery item of a training class has an image, the stored vectors serve: the head
    is trained against all of them, and the table says what can be judged on the rest."""
    with shop.data().open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        names, rows = list(reader.fieldnames or ()), list(reader)
    validation = [r["id"] for r in rows if (r["role"], r["split"]) == ("gallery", "validation")]
    kept = [r for r in rows if r["role"] != "gallery" or r["id"] in validation[:2]]
    table, root = shop.path("part.csv"), shop.data().parent
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({**row, "path": str(root / row["path"])} for row in kept)
    more = ("--data", table, "--data-root", root, "--no-forecast")
    result = shop.run("plan", "--base", shop.path("new.ckpt"), "--recipe", _recipe(shop), *more)
    assert result.code == 0, result.stderr
    facts = result.json["preflight"]
    assert facts["training_classes_in_gallery"] == facts["training_classes"] > 0
    routes = {route["name"]: route for route in result.json["routes"]}
    assert routes["lazy"]["rows"] == routes["finetune"]["rows"] == facts["gallery_rows"]
    assert (routes["re-embed"]["rows"], facts["gallery_images"]) == (2, 2)
    assert routes["re-embed"]["queries"] < routes["keep"]["queries"] == facts["planning_queries"]
    few, missing = result.json["warnings"][1], result.json["warnings"][0]
    assert "queries have something to find there" in missing
    assert "the policy requires 200 of 20" in few
    assert "RuntimeWarning" not in result.stderr


def _imported(shop: Shop, labelled: Callable[[str], bool]) -> tuple[object, ...]:
    """Options that name an imported store, in which other items have no class, and data without
    gallery items but one of a training class."""
    catalog = Store.open(shop.path("store")).catalog()
    items, table, root = shop.path("named.csv"), shop.path("part.csv"), shop.data().parent
    with items.open("w", newline="", encoding="utf-8") as file:
        rows = zip(catalog.keys.tolist(), catalog.ids, catalog.labels, strict=True)
        lines = [(key, item, label if labelled(label) else "") for key, item, label in rows]
        csv.writer(file).writerows([("key", "id", "label"), *lines])
    index = shop.path(f"store/indexes/{shop.manifest()['index']['sha256']}.hnsw")
    named = ("--items", items, "--store", shop.path("bare"))
    imported = run("import", index, "--model", shop.path("old.onnx"), *named)
    assert imported.code == 0, imported.stderr
    with shop.data().open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        names, entries = list(reader.fieldnames or ()), list(reader)
    gallery = [e for e in entries if (e["role"], e["split"]) == ("gallery", "train")][:1]
    kept = [*gallery, *(e for e in entries if e["role"] != "gallery")]
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({**entry, "path": str(root / entry["path"])} for entry in kept)
    options = ("--recipe", _recipe(shop), "--no-forecast", "--data-root", root)
    return (
        "--base",
        shop.path("new.ckpt"),
        "--store",
        shop.path("bare"),
        "--data",
        table,
        *options,
    )


def test_rows_of_unknown_class_are_no_class(shop: Shop) -> None:
    """They are counted apart and named with what to do; what no query can measure is no number in
    the table, and no route to settle."""
    validation = {item.label for item in load(shop.data()).items if item.split == "validation"}
    words = _imported(shop, lambda label: label in validation)
    result = shop.run("plan", *words)
    assert result.code == 0, result.stderr
    facts = result.json["preflight"]
    assert facts["gallery_classes"] == len(validation)
    assert 0 < facts["unknown_rows"] < facts["gallery_rows"]
    rows = (
        f"the class of {facts['unknown_rows']} of {facts['gallery_rows']} gallery rows is unknown"
    )
    assert any(
        warning.startswith(rows) and "--items of compatctl import" in warning
        for warning in result.json["warnings"]
    )
    routes = {route["name"]: route for route in result.json["routes"]}
    assert (routes["re-embed"]["queries"], routes["re-embed"]["gain"]) == (0, None)
    assert "re-embedding cannot be tried: no query finds" in result.json["reason"]
    assert "Undecided" not in result.json["reason"] or "lift" not in result.json["reason"]
    shown = run("plan", *shop.args, *words)
    assert "nan" not in shown.stdout
    assert f"and {facts['unknown_rows']} rows of unknown class" in shown.stdout


def test_a_plan_without_anything_to_find_is_refused(shop: Shop) -> None:
    """Where no row has a known class no route is trained; the tip says where classes are named."""
    refused = shop.run("plan", *_imported(shop, lambda label: False))
    assert refused.code == 5
    assert "planning queries has an item of its class in the gallery" in refused.stderr
    assert "by their ids, or in the --items of compatctl import" in refused.stderr


@pytest.mark.parametrize(
    ("left_out", "word"),
    [
        ("train", "two labelled classes"),
        ("validation", "validation: 0.1"),
        ("gallery", "put gallery items into the data"),
    ],
)
def test_what_a_plan_lacks_is_named(shop: Shop, left_out: str, word: str) -> None:
    """Without training classes, queries or gallery images the tip says which to give."""
    with shop.data().open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        names, rows = list(reader.fieldnames or ()), list(reader)
    table, root = shop.path("part.csv"), shop.data().parent
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(
            {**row, "path": str(root / row["path"])}
            for row in rows
            if left_out not in {row["split"], row["role"]}
        )
    more = ("--data", table, "--data-root", root)
    result = shop.run("plan", "--base", shop.path("new.ckpt"), "--recipe", _recipe(shop), *more)
    assert result.code == 5
    assert word in result.stderr


def test_only_validation_classes_query_and_only_training_classes_train(shop: Shop) -> None:
    """Nothing of the test split but gallery items takes part; those that choose do not ask."""
    data = load(shop.data())
    stored = data.filter(role="gallery").ids
    before = {item.id: item for item in data.items}
    for most, choosing in ((10_000, False), (10_000, True), (100, False)):
        split = planning_split(data, stored, most, choosing=choosing)
        query_ids = {split.data.ids[row] for row in split.query_rows}
        for now in split.data.items:
            was = before[now.id]
            assert was.split != "test" or was.role == "gallery"
            assert now.split != "train" or was.split == "train"
            assert now.id not in query_ids or (was.split == "validation" and was.role == "query")
        choose = {item.label for item in split.data.items if item.split == "validation"}
        assert bool(choose) == choosing
        assert choose.isdisjoint(before[item_id].label for item_id in query_ids)
        assert {split.data.ids[row] for row in split.gallery_rows} <= set(stored)
    few = planning_split(data, stored, 100, choosing=False)
    assert sum(item.split == "train" for item in few.data.items) <= 100
    assert len(few.gallery_rows) < len(stored)


def test_the_recommendation_is_the_passing_route_that_gains_most() -> None:
    """A route that fails is not recommended however large its estimate; with none, keep."""
    keep = replace(_expected("keep", 0.0, 0.0, None), high=0.0)
    ceiling = _expected("re-embed", 0.2, 0.15, None)
    tuned = _expected("finetune", 0.05, 0.02, "pass")
    fuse = _expected("fuse", 0.08, 0.04, "pass")
    wild = _expected("bridge", 0.3, -0.1, "inconclusive")
    assert recommend((keep, ceiling, tuned, fuse, wild), classes=50)[0] == "fuse"
    assert recommend((keep, ceiling, tuned, wild), classes=50)[0] == "finetune"
    name, why = recommend((keep, ceiling, wild), classes=50)
    assert name == "keep"
    assert "re-embedding all of it: +0.2000 (+0.1500 to +0.3000)" in why
    assert "Undecided here: bridge +0.3000 (-0.1000 to +0.4000)" in why
    assert "takes about 89 validation classes, not 50" in why
    lost = replace(wild, gain=-0.2, verdict="fail")
    assert "Undecided" not in recommend((keep, ceiling, lost), classes=50)[1]


def test_lift_is_recommended_only_if_no_route_that_keeps_the_gallery_passes() -> None:
    """However much more it gains; then the reason says what it rewrites, and how to go back."""
    keep = replace(_expected("keep", 0.0, 0.0, None), high=0.0)
    ceiling = _expected("re-embed", 0.2, 0.15, None)
    tuned = _expected("finetune", 0.05, 0.02, "pass")
    lift = replace(_expected("lift", 0.3, 0.2, "pass"), rewritten_bytes=538112)
    assert recommend((keep, ceiling, tuned, lift), classes=50)[0] == "finetune"
    open_route = replace(tuned, verdict="inconclusive")
    name, why = recommend((keep, ceiling, open_route, lift), classes=50)
    assert name == "lift"
    assert "no route is shown to gain with the gallery as it is" in why
    assert "+0.3000 (+0.2000 to +0.4000)" in why
    assert "the whole index, all 538,112 bytes of its vectors" in why
    assert "rollback undoes it" in why
    bridge = replace(tuned, name=Route.BRIDGE, gain=0.1, gallery_passed=0.9)
    assert recommend((keep, ceiling, tuned, bridge, lift), classes=50)[0] == "finetune"
    assert recommend((keep, ceiling, open_route, bridge, lift), classes=50)[0] == "bridge"
    for verdict in ("fail", "inconclusive"):
        assert recommend((keep, ceiling, replace(lift, verdict=verdict)), classes=50)[0] == "keep"
    _, why = recommend(
        (keep, ceiling, open_route, replace(lift, verdict="inconclusive")), classes=50
    )
    assert "Undecided here: finetune" in why
    _, why = recommend((keep, ceiling, replace(lift, verdict="inconclusive")), classes=50)
    assert "Undecided here: lift" in why


def test_lazy_is_recommended_where_no_route_without_passes_is() -> None:
    """Before bridge and lift; where another passes and lazy gains more, the reason says so."""
    keep = replace(_expected("keep", 0.0, 0.0, None), high=0.0)
    ceiling = _expected("re-embed", 0.2, 0.15, "pass")
    fuse = _expected("fuse", 0.05, 0.02, "pass")
    lazy = _expected("lazy", 0.15, 0.1, "pass")
    bridge = replace(_expected("bridge", 0.16, 0.1, "pass"), gallery_passed=0.9)
    name, why = recommend((keep, fuse, lazy, bridge, ceiling), classes=50)
    assert name == "fuse"
    assert "lazy gains +0.1500 (+0.1000 to +0.2500), at up to 10 items a query" in why
    name, why = recommend((keep, replace(fuse, verdict="fail"), lazy, bridge, ceiling), classes=50)
    assert name == "lazy"
    assert "up to 10 of its answers" in why
    failed = replace(lazy, verdict="inconclusive")
    assert "lazy" not in recommend((keep, fuse, failed, ceiling), classes=50)[1]


def test_re_embedding_is_recommended_last_and_with_its_cost() -> None:
    """Only where it is shown to gain and no other route is; then with passes, seconds and bytes."""
    keep = replace(_expected("keep", 0.0, 0.0, None), high=0.0)
    ceiling = replace(
        _expected("re-embed", 0.2, 0.15, "pass"),
        passes=1_234_567,
        one_time_s=3600.0,
        rewritten_bytes=512_000,
    )
    tuned = _expected("finetune", 0.05, 0.02, "pass")
    lift = _expected("lift", 0.1, 0.05, "pass")
    assert recommend((keep, tuned, lift, ceiling), classes=50)[0] == "finetune"
    assert recommend((keep, replace(tuned, verdict="fail"), lift, ceiling), classes=50)[0] == "lift"
    open_route = replace(tuned, verdict="inconclusive")
    name, why = recommend((keep, open_route, replace(lift, verdict="fail"), ceiling), classes=50)
    assert name == "re-embed"
    for part in ("1,234,567 passes", "3,600 s", "512,000 bytes", "no route is shown to gain"):
        assert part in why
    for verdict in ("fail", "inconclusive"):
        assert (
            recommend((keep, open_route, replace(ceiling, verdict=verdict)), classes=50)[0]
            == "keep"
        )


def test_every_command_that_a_plan_names_exists() -> None:
    """The command line knows each verb and each option of every route's next steps."""
    for lines in COMMANDS.values():
        for line in lines:
            verb, *words = line.split()[1:]
            help_text = run(verb, "--help").stdout
            for word in words:
                assert not word.startswith("-") or word in help_text, line


@pytest.mark.parametrize(
    ("objective", "train", "word"),
    [
        ("{frame: free, lambda: 1.0, dim: 8}", "head", "frame: free"),
        ("{frame: prototypes, lambda: 1.0}", "full", "train: full"),
    ],
)
def test_recipes_that_cannot_be_planned_are_refused(
    shop: Shop, objective: str, train: str, word: str
) -> None:
    """A recipe without a gallery, or one that trains the backbone, is refused in a sentence."""
    recipe = _recipe(shop, objective, train)
    result = shop.run("plan", "--base", shop.path("new.ckpt"), "--recipe", recipe)
    assert result.code == 5
    assert word in result.stderr


def test_the_reason_names_the_limit_that_the_commands_need() -> None:
    """Lazy re-scoring needs 1, an adapter the share of its pairs; re-embedding and 0% nothing."""
    estimates = [
        replace(_expected("fuse", 0.1, 0.05, "pass"), gallery_passed=0.0),
        replace(_expected("bridge", 0.1, 0.05, "pass"), gallery_passed=0.3),
        replace(_expected("lazy", 0.1, 0.05, "pass"), gallery_passed=0.0),
        replace(_expected("re-embed", 0.1, 0.05, "pass"), gallery_passed=1.0),
    ]
    project = Project(max_gallery_pass=0.25)
    notes = {entry.name: _budget_note(estimates, entry.name, project) for entry in estimates}
    assert notes["fuse"] == notes["re-embed"] == ""
    assert "need max_gallery_pass: 0.3 in compatctl.yaml" in notes["bridge"]
    assert "need max_gallery_pass: 1 in" in notes["lazy"]
    assert _budget_note(estimates, Route.LAZY, replace(project, max_gallery_pass=1.0)) == ""
