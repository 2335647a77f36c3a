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
    Say,
    demo_folder,
    demo_result,
    leave_page,
    page_path,
    route_of,
    say_nothing,
    say_route,
    say_switch,
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

NEXT_STEPS = (
    "compatctl init --model old.onnx --data texts.csv",
    "compatctl plan --new new.onnx",
    "compatctl verify new.onnx --html report.html",
)
"""What to run on texts of one's own."""

QUESTION = "a vehicle with two wheels that is moved by pedals"


def demo_text(
    *, keep: Path | None = None, progress: Progress = silent, say: Say = say_nothing
) -> DemoResult:
    """Run the upgrade.

    Raises:
        InputError: ``keep`` is not empty, the demo's models are not installed, or there is no
            place for the page of the report.
    """
    require_hnswlib()
    began = time.monotonic()
    page = page_path("compatctl-demo-text.html", keep, say)
    with ExitStack() as stack:
        folder = demo_folder(stack, keep)
        say("1/4 Data: WordNet's glosses are the queries, the words explained the gallery")
        write_text_project(folder)
        project = Project.load(folder / "compatctl.yaml")
        say("2/4 Store: the old model, paraphrase-MiniLM-L3, embeds the gallery, once")
        init(project, model=folder / "old.onnx", progress=progress)
        say("3/4 New model, all-MiniLM-L6: ways to answer on these vectors, judged")
        routes, report, bridged = _routes(project, folder, progress, say)
        say_switch("4/4", report, say)
        texts, labels = zip(*_sample(project), strict=True)
        rescoring, model = RescoringOptions(rescore=RESCORED), folder / report.new.name
        switched = switch(project, model, report, lambda: texts, labels, rescoring, say=say)
        leave_page(project, page)
        return demo_result(
            routes,
            report,
            route=routes[-1],
            switched=switched,
            kept=keep,
            page=page,
            next_steps=NEXT_STEPS,
            seconds=time.monotonic() - began,
            more=(_adapters(bridged), _answer(project)),
        )


def _routes(
    project: Project, folder: Path, progress: Progress, say: Say
) -> tuple[list[Route], Report, Bridged]:
    """The results of all routes, the report of the last one, which alone stays on disk, and how the
    map was chosen."""
    old, new, bridged, fused = (
        folder / f"{name}.onnx" for name in ("old", "new", "bridged", "fused")
    )
    trial = VerifyOptions(dry_run=True)
    routes: list[Route] = []

    def gate(name: str, model: Path, options: VerifyOptions = trial) -> Report:
        report = verify(project, old=old, new=model, options=options, progress=progress)
        routes.append(say_route(route_of(name, report), report, say))
        return report

    gate("the new model, nothing done", new)
    if (tuned := _trained(project, folder, progress)) is not None:
        gate("a head behind it, trained", tuned)
    result = bridge(project, new=new, output=bridged, share=0.0, progress=progress)
    gate(f"bridged ({result.kind})", bridged)
    fusion = fuse(project, old=old, new=bridged, output=fused, progress=progress)
    gate(f"bridged and fused, weight {fusion.weight:g}", fused)
    rescored = VerifyOptions(rescore=RESCORED)
    report = gate(f"bridged, fused, first {RESCORED} re-scored", fused, rescored)
    return routes, report, result


def _trained(project: Project, folder: Path, progress: Progress) -> Path | None:
    """The new model with a head that the default recipe trains; None without torch."""
    if "mlp" not in available_kinds():
        return None
    tuned = replace(project, output=folder / "tuned.onnx", candidate=folder / "candidate")
    finetune(tuned, base=folder / "new.onnx", progress=progress)
    return tuned.output


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
