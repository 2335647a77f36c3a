"""demo --text: one upgrade of a text model on WordNet, in a temporary folder, without a network.

Glosses are the queries, lemmas the documents. The old model is paraphrase-MiniLM-L3, the new one
all-MiniLM-L6 with weights of 8 bits; both are encoders from elsewhere. The two are related, so
that the new model's queries find some documents with nothing done: the gate compares with what the
old model finds. There are five routes: the new model as it is; with a head behind it that trains on
labelled texts against the gallery (where torch is installed); bridged into the gallery's space by
pairs of vectors without labels; the bridged one fused with the old; and the fused one whose first
answers the new model's own vectors rank again. Only the last one passes gallery items through the
new model: those that queries touch.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from compatctl.commands.bridge import Bridged, bridge
from compatctl.commands.demo import (
    SAMPLE,
    DemoResult,
    Route,
    demo_folder,
    demo_result,
    route_of,
    switch,
)
from compatctl.commands.deploy import RescoringOptions
from compatctl.commands.finetune import finetune
from compatctl.commands.fuse import fuse
from compatctl.commands.init import init
from compatctl.commands.search import search
from compatctl.commands.verify import verify
from compatctl.deployment.data import load_data
from compatctl.evaluation.options import VerifyOptions
from compatctl.index import require_hnswlib
from compatctl.migration.adapters import available_kinds
from compatctl.progress import Progress, silent
from compatctl.recipe import Project
from compatctl.report import Report
from compatctl.text_samples import write_text_project

RESCORED = 10
"""How many first answers of a query the last route ranks again."""

QUESTION = "a vehicle with two wheels that is moved by pedals"


def demo_text(*, keep: Path | None = None, progress: Progress = silent) -> DemoResult:
    """Run the upgrade.

    Raises:
        InputError: ``keep`` is not empty, or the demo's models are not installed.
    """
    require_hnswlib()
    began = time.monotonic()
    with ExitStack() as stack:
        folder = demo_folder(stack, keep)
        write_text_project(folder)
        project = Project.load(folder / "compatctl.yaml")
        init(project, model=folder / "old.onnx", progress=progress)
        routes, report, bridged = _routes(project, folder, progress)
        texts, labels = zip(*_sample(project), strict=True)
        rescoring, model = RescoringOptions(rescore=RESCORED), folder / report.new.name
        switched = switch(project, model, report, lambda: texts, labels, rescoring)
        return demo_result(
            routes,
            report,
            route=routes[-1],
            switched=switched,
            kept=keep,
            seconds=time.monotonic() - began,
            more=(_adapters(bridged), _answer(project)),
        )


def _routes(
    project: Project, folder: Path, progress: Progress
) -> tuple[list[Route], Report, Bridged]:
    """The results of all routes, the report of the last one, which alone stays on disk, and how the
    map was chosen."""
    old, new, bridged, fused = (
        folder / f"{name}.onnx" for name in ("old", "new", "bridged", "fused")
    )
    trial = VerifyOptions(dry_run=True)
    alone = verify(project, old=old, new=new, options=trial, progress=progress)
    result = bridge(project, new=new, output=bridged, share=0.0, progress=progress)
    mapped = verify(project, old=old, new=bridged, options=trial, progress=progress)
    fusion = fuse(project, old=old, new=bridged, output=fused, progress=progress)
    mixed = verify(project, old=old, new=fused, options=trial, progress=progress)
    rescored = VerifyOptions(rescore=RESCORED)
    report = verify(project, old=old, new=fused, options=rescored, progress=progress)
    routes = [
        route_of("the new model, nothing done", alone),
        *_trained(project, folder, progress),
        route_of(f"bridged ({result.kind})", mapped),
        route_of(f"bridged and fused, weight {fusion.weight:g}", mixed),
        route_of(f"bridged, fused, first {RESCORED} re-scored", report),
    ]
    return routes, report, result


def _trained(project: Project, folder: Path, progress: Progress) -> list[Route]:
    """The new model with a head that the default recipe trains; none without torch."""
    if "mlp" not in available_kinds():
        return []
    tuned = replace(project, output=folder / "tuned.onnx", candidate=folder / "candidate")
    finetune(tuned, base=folder / "new.onnx", progress=progress)
    trial = VerifyOptions(dry_run=True)
    report = verify(
        project, old=folder / "old.onnx", new=tuned.output, options=trial, progress=progress
    )
    return [route_of("a head behind it, trained", report)]


def _adapters(result: Bridged) -> str:
    """The best trial of each kind of map."""
    best: dict[str, float] = {}
    for trial in result.trials:
        best[trial.kind] = max(best.get(trial.kind, 0.0), trial.hit_rate)
    listed = ", ".join(f"{kind} {hit_rate:.4f}" for kind, hit_rate in best.items())
    return (
        f"maps from the new space to the old, fitted on {sum(result.pairs.values())} pairs without "
        f"labels, hit@1 on validation classes: {listed}"
    )


def _answer(project: Project) -> str:
    """The first document for one question, by the model that serves at the end."""
    (query,) = search(project, queries=[QUESTION], k=1).queries
    return f"search {QUESTION!r}: {query.hits[0].id}, cosine {query.hits[0].cosine:.4f}"


def _sample(project: Project) -> list[tuple[str, str]]:
    """At most SAMPLE held-out queries, evenly spaced, each with its label."""
    held_out = load_data(project).filter(split="test", role="query")
    rows = range(0, len(held_out), max(1, len(held_out) // SAMPLE))[:SAMPLE]
    return [(str(held_out.content(row)), held_out.labels[row]) for row in rows]
