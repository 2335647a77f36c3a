"""demo: one upgrade on real images, in a temporary folder, without a network.

The old model is a head on EfficientNet-lite0, trained on some of the classes without regard to
compatibility. The new one is EfficientNet-lite2, fine-tuned against the old model's gallery. There
are two routes: the fine-tuned model alone, or fused with the old one. The route with the better
hit rate on validation classes goes to the gate; the demo shows the held-out results of both.
The report of the chosen one is left as an HTML page.
"""

from __future__ import annotations

import csv
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from compatctl.commands.deploy import RescoringOptions, deploy
from compatctl.commands.finetune import finetune
from compatctl.commands.fuse import fuse
from compatctl.commands.init import init
from compatctl.commands.report import report as write_page
from compatctl.commands.rollback import rollback
from compatctl.commands.search import search
from compatctl.commands.verify import verify
from compatctl.core.hash_order import hash_fraction
from compatctl.deployment.project import open_store
from compatctl.errors import InputError, UsageError
from compatctl.evaluation.options import VerifyOptions
from compatctl.files import make_folders
from compatctl.index import require_hnswlib
from compatctl.progress import Progress, silent, stage
from compatctl.recipe import Project
from compatctl.report import Report
from compatctl.report.page import require_page
from compatctl.samples import emoji_source, unpack_emoji, write_demo_project

OLD_CLASSES = 300
SAMPLE = 400
UNSEEN = "unseen"
NEXT_STEPS = (
    "compatctl init --model old.onnx --data items.csv",
    "compatctl plan --base new.ckpt",
    "compatctl verify new.onnx --html report.html",
)
"""What to run on images of one's own."""

NO_PAGE = "no HTML report without jinja2: pip install 'compatctl[report]'"

Say = Callable[[str], None]
"""Shows a line of what the demo does now."""


def say_nothing(line: str) -> None:
    """Show nothing."""


@dataclass(frozen=True, kw_only=True)
class Route:
    """Hit@1 of one route on the unseen classes, and the gate's verdict.

    ``passed`` is the share of the gallery that went through the new model to make the route's
    model, or to re-score the answers of these queries, labelled training items aside; None: the
    model has no record of it.
    """

    passed: float | None
    name: str
    new_old: float
    new_new: float
    negative_flips: float
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Served:
    """Share of sample queries whose nearest item in the deployed index has the right label."""

    queries: int
    before: float
    after: float
    rolled_back: float


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Hit@1 on unseen classes.

    ``new_old`` and ``new_new`` belong to the deployed route, or to the last one if none passed.
    ``page`` is the file of the HTML report; None: jinja2, which writes it, is not installed.
    ``next_steps`` are commands for data of one's own.
    """

    old_old: float
    new_old: float
    new_new: float
    verdict: str
    deployed_route: str | None
    routes: tuple[Route, ...]
    classes: int
    queries: int
    served: Served | None
    index_sha256_before: str
    index_sha256_after: str
    rolled_back: bool
    sabotage: bool
    seed: int
    story: tuple[str, ...]
    page: str | None
    next_steps: tuple[str, ...]
    seconds: float


def demo(
    *,
    keep: Path | None = None,
    seed: int = 0,
    sabotage: bool = False,
    progress: Progress = silent,
    say: Say = say_nothing,
) -> DemoResult:
    """Run the upgrade. With ``sabotage``, the candidate learns a shuffled class-to-vertex map.

    Raises:
        InputError: ``keep`` is not empty, the demo's backbones are not installed, or there is no
            place for the page of the report.
    """
    require_hnswlib()
    began = time.monotonic()
    page = page_path("compatctl-demo.html", keep, say)
    with ExitStack() as stack:
        folder = demo_folder(stack, keep)
        project = prepare(folder, seed=seed, progress=progress, say=say)
        say("4/6 New model, EfficientNet-lite2: fine-tuned to answer on the stored vectors")
        tuned = finetune(
            project,
            base=folder / "new.ckpt",
            seed=seed,
            shuffle_map=sabotage,
            progress=progress,
        )
        say("5/6 The gate: do queries of classes that no model saw find more than today?")
        routes, chosen = _routes(
            project,
            folder,
            tuned.validation_hit_rate,
            sabotage=sabotage,
            progress=progress,
            say=say,
        )
        say_switch("6/6", chosen, say)
        paths, labels = zip(*_sample(folder / "data" / "items.csv"), strict=True)
        model = folder / chosen.new.name
        switched = switch(project, model, chosen, lambda: paths, labels, say=say)
        leave_page(project, page)
        return demo_result(
            routes,
            chosen,
            route=routes[0 if chosen.new.name == "new.onnx" else -1],
            switched=switched,
            sabotage=sabotage,
            seed=seed,
            kept=keep,
            page=page,
            next_steps=NEXT_STEPS,
            seconds=time.monotonic() - began,
        )


def prepare(
    folder: Path, *, seed: int, progress: Progress = silent, say: Say = say_nothing
) -> Project:
    """Make the project folder before the upgrade: data, old model, store."""
    say("1/6 Data: one vendor's emoji are the gallery, four other vendors' the queries")
    progress("unpacking images", 0, 1)
    table = unpack_emoji(emoji_source(), folder / "data")
    progress("unpacking images", 1, 1)
    write_demo_project(folder)
    _old_classes(table, folder / "data" / "old.csv")
    say("2/6 Old model: a head on EfficientNet-lite0 is trained, with no upgrade in mind")
    legacy = Project.load(folder / "legacy.yaml")
    finetune(legacy, base=folder / "old.ckpt", seed=seed, progress=progress)
    project = Project.load(folder / "compatctl.yaml")
    say("3/6 Store: the old model embeds the gallery, once")
    init(project, model=folder / "old.onnx", progress=progress)
    return project


def _routes(
    project: Project,
    folder: Path,
    validation: float | None,
    *,
    sabotage: bool,
    progress: Progress,
    say: Say,
) -> tuple[list[Route], Report]:
    """The results of all routes, and the report of the chosen one, which alone stays on disk.

    ``validation``: hit@1 of the fine-tuned model on validation classes; the fused model is
    chosen only if it is better. A sabotaged candidate is verified alone.
    """
    old, new, fused = (folder / name for name in ("old.onnx", "new.onnx", "fused.onnx"))
    alone = verify(project, old=old, new=new, progress=progress)
    routes = [say_route(route_of("fine-tuned", alone), alone, say)]
    if sabotage:
        return routes, alone
    fusion = fuse(project, old=old, new=new, output=fused, progress=progress)
    assert fusion.search is not None
    enough = (validation or 0.0) >= max(trial.hit_rate for trial in fusion.search.trials)
    fused_report = verify(
        project, old=old, new=fused, options=VerifyOptions(dry_run=enough), progress=progress
    )
    both = route_of("fused with the old model", fused_report)
    routes.append(say_route(both, fused_report, say))
    return routes, alone if enough else fused_report


@dataclass(frozen=True, kw_only=True)
class Switched:
    """What a deploy and a rollback showed; ``index``: digests of its file before and between.

    ``served``: None where the gate did not pass, and nothing was deployed.
    """

    served: Served | None
    index: tuple[str, str]
    rolled_back: bool


def switch(  # noqa: PLR0917
    project: Project,
    model: Path,
    report: Report,
    queries: Callable[[], Sequence[str]],
    labels: Sequence[str],
    rescoring: RescoringOptions | None = None,
    *,
    say: Say = say_nothing,
) -> Switched:
    """Deploy the model that passed and roll back; search before, between and after.

    ``queries`` gives at each search what the query model of that moment takes; the answers are as
    many as ``labels``.
    """

    def right(when: str) -> float:
        with stage(f"{len(labels)} searches"):
            share = _served(project, queries(), labels)
        say(f"    {when}: {share:.4f} of {len(labels)} searches give a right first answer")
        return share

    manifest = open_store(project).manifest
    index = manifest.index.sha256
    if report.verdict.outcome != "pass":
        return Switched(served=None, index=(index, index), rolled_back=False)
    before = right("today")
    with stage("deploying"):
        deploy(project, model=model, rescoring=rescoring)
    after = right("deployed")
    between = open_store(project).manifest.index.sha256
    with stage("rolling back"):
        restored = rollback(project, to=None, dry_run=False).query_model
    again = right("rolled back")
    return Switched(
        served=Served(queries=len(labels), before=before, after=after, rolled_back=again),
        index=(index, between),
        rolled_back=restored == manifest.query_model,
    )


def _served(project: Project, queries: Sequence[str], labels: Sequence[str]) -> float:
    """Share of queries whose first hit in the deployed index has the right label."""
    answers = search(project, queries=queries, k=1).queries
    right = [answer.hits[0].label == label for answer, label in zip(answers, labels, strict=True)]
    return sum(right) / len(right)


def _sample(table: Path) -> list[tuple[str, str]]:
    """At most SAMPLE held-out queries of the table, evenly spaced."""
    with table.open(newline="", encoding="utf-8") as lines:
        queries = [
            (str(table.parent / row["path"]), row["label"])
            for row in csv.DictReader(lines)
            if row["split"] == "test" and row["role"] == "query"
        ]
    return queries[:: max(1, len(queries) // SAMPLE)][:SAMPLE]


def _old_classes(table: Path, target: Path) -> None:
    """Write the table of the old model's classes: the first OLD_CLASSES by hash."""
    with table.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        names, rows = list(reader.fieldnames or ()), [*reader]
    train = {row["label"] for row in rows if row["split"] == "train"}
    known = set(sorted(train, key=hash_fraction)[:OLD_CLASSES])
    with target.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, names)
        writer.writeheader()
        writer.writerows(row for row in rows if row["label"] in known)


def route_of(name: str, report: Report) -> Route:
    """A route's row of the result, from the report of its model.

    Of a route that re-scores: with nothing kept from earlier queries, and what these ones pass.
    """
    group = next(group for group in report.groups if group.name == UNSEEN)
    passed = None if report.gallery_pass is None else report.gallery_pass.share
    found = group.hit_rate["new_old"]["1"]
    if report.rescoring is not None:
        cold = report.rescoring.states[0]
        passed, found = cold.passed_share, cold.hit_rate["1"]
    return Route(
        passed=passed,
        name=name,
        new_old=found,
        new_new=group.hit_rate["new_new"]["1"],
        negative_flips=group.negative_flips,
        verdict=report.verdict.outcome,
    )


def say_route(route: Route, report: Report, say: Say) -> Route:
    """Show what the gate found of a route, which is returned."""
    today = next(group for group in report.groups if group.name == UNSEEN).hit_rate["old_old"]["1"]
    say(f"    {route.name}: hit@1 {route.new_old:.4f}, today {today:.4f}: {route.verdict}")
    return route


def say_switch(number: str, report: Report, say: Say) -> None:
    """Show what follows the verdict."""
    passed = report.verdict.outcome == "pass"
    say(f"{number} " + ("Deploy, search, roll back" if passed else "Nothing is deployed"))


def demo_result(
    routes: list[Route],
    report: Report,
    *,
    route: Route,
    switched: Switched,
    sabotage: bool = False,
    seed: int = 0,
    kept: Path | None,
    page: Path | None,
    next_steps: tuple[str, ...],
    seconds: float,
    more: Sequence[str] = (),
) -> DemoResult:
    """What the demo shows: ``route`` is the chosen one, and ``report`` that of its model."""
    group = next(group for group in report.groups if group.name == UNSEEN)
    passed = report.verdict.outcome == "pass"
    assert report.gallery_pass is not None, "the demo has a store and training records"
    made = "" if report.rescoring is None else "to make the model, before any query: "
    story = [*more, report.summary, made + report.gallery_pass.text]
    served, index = switched.served, switched.index
    if served is not None:
        story.append(
            f"the same {served.queries} held-out queries through the whole index, right at the "
            f"first hit: before {served.before:.4f}, deployed {served.after:.4f}, rolled back "
            f"{served.rolled_back:.4f}"
        )
    story.append("index file: the same bytes" if index[0] == index[1] else "index file: CHANGED")
    if page is None:
        story.append(NO_PAGE)
    if kept is not None:
        story.append(f"the project folder is {kept}")
    return DemoResult(
        old_old=group.hit_rate["old_old"]["1"],
        new_old=route.new_old,
        new_new=route.new_new,
        verdict=report.verdict.outcome,
        deployed_route=route.name if passed else None,
        routes=tuple(routes),
        classes=group.n_classes,
        queries=group.n_queries,
        served=served,
        index_sha256_before=index[0],
        index_sha256_after=index[1],
        rolled_back=switched.rolled_back,
        sabotage=sabotage,
        seed=seed,
        story=tuple(story),
        page=None if page is None else str(page),
        next_steps=next_steps,
        seconds=round(seconds, 1),
    )


def demo_folder(stack: ExitStack, keep: Path | None) -> Path:
    """``keep``, made if it is missing; None: a temporary folder, until the ``stack`` is left.

    Raises:
        InputError: something is in ``keep``.
    """
    if keep is None:
        scratch = tempfile.TemporaryDirectory(prefix="compatctl-")
        stack.callback(_delete, scratch)
        return Path(scratch.name)
    if keep.exists() and any(keep.iterdir()):
        raise InputError(f"{keep} is not empty", tip="name a new folder for --keep")
    make_folders(keep)
    return keep


def page_path(name: str, keep: Path | None, say: Say) -> Path | None:
    """Where the page of the report will be: in ``keep``, or as ``name`` in the working folder.

    None where jinja2 is missing, which the demo then says before it works for minutes.

    Raises:
        InputError: nothing can be written into the working folder.
    """
    try:
        require_page()
    except UsageError:
        say(NO_PAGE)
        return None
    if keep is not None:
        return keep.resolve() / "report.html"
    try:
        with tempfile.TemporaryFile(dir=os.curdir):
            pass
    except OSError as problem:
        raise InputError(
            f"{name} cannot be written into the working folder: {problem.strerror}",
            tip="compatctl demo --keep DIR",
        ) from problem
    return Path.cwd() / name


def leave_page(project: Project, page: Path | None) -> None:
    """Write the page of the project's report, if it has a place."""
    if page is not None:
        with stage("writing the report"):
            write_page(project, output=page)


def _delete(scratch: tempfile.TemporaryDirectory[str]) -> None:
    """Delete the demo's thousands of files, which can take seconds."""
    with stage("deleting the demo's own files"):
        scratch.cleanup()
