"""demo --vectors: the upgrade of ``demo --text`` where both models are behind an API.

Each text model embeds the WordNet texts once, as an API would, and its file is deleted: from then
on a table of ids and vectors is all that there is of a model. Nothing is trained but the map
between the two spaces, which is orthogonal and needs no torch.

With ``--old-model-gone`` half of the queries have a vector of the old model, from a log; the others
never had one. What would run the old model on a query is left out, the gate compares on the logged
held-out queries, and the demo says what could not be checked.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from compatctl.commands.bridge import bridge
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
from compatctl.commands.fuse import fuse
from compatctl.commands.init import init
from compatctl.commands.plan import plan_ready
from compatctl.commands.verify import verify
from compatctl.core.arrays import Bools, Vectors
from compatctl.core.hash_order import hash_fraction
from compatctl.data import Dataset, ItemVectors, load
from compatctl.deployment.data import load_data
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.project import open_store
from compatctl.encoder import Encoder
from compatctl.errors import EvidenceError
from compatctl.evaluation.options import VerifyOptions
from compatctl.index import require_hnswlib
from compatctl.progress import Progress, silent
from compatctl.recipe import Project
from compatctl.report import Report
from compatctl.text_samples import write_text_project

RESCORED = 10
"""How many first answers of a query the last route ranks again."""

LOGGED = 0.5
"""The share of the queries whose old vector was logged while the old model ran."""

MAP = "orthogonal"
"""The adapter between the spaces; the mlp would need torch, and minutes."""

NEXT_STEPS = (
    "compatctl init --vectors old=old.npz",
    "compatctl plan --new new --vectors old=old.npz --vectors new=new.npz",
    "compatctl verify bridged.onnx --html report.html",
)
"""What to run on vectors of one's own; ``plan`` names the command that makes ``bridged.onnx``."""

OLD, NEW = "l3", "l6"
"""The names of the two spaces: paraphrase-MiniLM-L3 and all-MiniLM-L6."""

TEXTS = "texts.csv"
"""What the vectors are of: no command but the report, for people, reads it."""

DOCUMENTS_ONLY = "without-a-log"
"""The table of the old model's vectors of documents alone."""

PROJECT = """\
# Two models behind an API: a table of ids and vectors is all that there is of each.
format: 1
store: store
vectors: {l3: l3.npz, l6: l6.npz}
report: report.json
max_gallery_pass: 1.0
"""
GONE = """\
old_model_gone: true
"""


def demo_vectors(
    *,
    old_model_gone: bool = False,
    keep: Path | None = None,
    progress: Progress = silent,
    say: Say = say_nothing,
) -> DemoResult:
    """Run the upgrade. ``old_model_gone``: the old model answers no new query.

    Raises:
        InputError: ``keep`` is not empty, the demo's models are not installed, or there is no
            place for the page of the report.
    """
    require_hnswlib()
    began = time.monotonic()
    page = page_path("compatctl-demo-vectors.html", keep, say)
    with ExitStack() as stack:
        folder = demo_folder(stack, keep)
        say("1/4 Data: two models embed WordNet's texts once; then their files are deleted")
        write_tables(folder, logged=LOGGED if old_model_gone else 1.0, progress=progress)
        (folder / "compatctl.yaml").write_text(PROJECT + GONE * old_model_gone, encoding="utf-8")
        project = Project.load(folder / "compatctl.yaml")
        say("2/4 Store: the old model's vectors become the index")
        init(project, model=Path(OLD), progress=progress)
        say("3/4 New model: ways to answer on these vectors, judged")
        run = _gone_routes if old_model_gone else _routes
        tried = run(project, folder, _Gate(project=project, progress=progress, say=say))
        report, queries = tried.report, _Queries.sample(project)
        say_switch("4/4", report, say)
        switched = switch(
            project,
            folder / report.new.name,
            report,
            lambda: queries.tables(project, folder),
            queries.data.labels,
            RescoringOptions(rescore=RESCORED),
            say=say,
        )
        leave_page(replace(project, data=folder / TEXTS, vectors={}), page)
        return demo_result(
            list(tried.routes),
            report,
            route=tried.routes[-1],
            switched=switched,
            kept=keep,
            page=page,
            next_steps=NEXT_STEPS,
            seconds=time.monotonic() - began,
            more=(*tried.story, _not_checked(report)),
        )


def write_tables(folder: Path, *, logged: float, progress: Progress = silent) -> None:
    """Write each model's table of the WordNet texts into ``folder``: ids, vectors (N, 384) float32
    of unit length, labels and roles; and the texts, as ``TEXTS``. ``logged`` is the share
    of the queries, by a hash of the id, that the old model's table has; below 1 a second table,
    ``DOCUMENTS_ONLY``, has none of them.

    Raises:
        InputError: the demo's models are not installed.
    """
    with tempfile.TemporaryDirectory(prefix="compatctl-") as scratch:
        models = Path(scratch)
        write_text_project(models)
        texts = load(models / "texts.csv")
        shutil.copyfile(models / "texts.csv", folder / TEXTS)
        for space, file in ((OLD, "old.onnx"), (NEW, "new.onnx")):
            rows = Encoder.load(models / file).embed(texts, progress=progress).features
            if space == OLD and logged < 1.0:
                is_document = np.array([item.role == "gallery" for item in texts.items])
                in_log = np.array([hash_fraction(f"logged {item}") < logged for item in texts.ids])
                _write_table(folder / f"{DOCUMENTS_ONLY}.npz", texts, rows, is_document)
                _write_table(folder / f"{OLD}.npz", texts, rows, is_document | in_log)
            else:
                _write_table(folder / f"{space}.npz", texts, rows)


def _write_table(path: Path, texts: Dataset, vectors: Vectors, kept: Bools | None = None) -> None:
    rows = np.arange(len(texts)) if kept is None else np.flatnonzero(kept)
    with path.open("wb") as file:
        np.savez(
            file,
            ids=np.array(texts.ids)[rows],
            vectors=vectors[rows],
            labels=np.array(texts.labels)[rows],
            role=np.array([str(texts.items[row].role) for row in rows]),
        )


@dataclass(frozen=True, kw_only=True)
class _Tried:
    """Every route's result, the report of the last one, which alone stays on disk, and lines of
    what else was found."""

    routes: tuple[Route, ...]
    report: Report
    story: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Gate:
    """Judges routes against the store's query model, and shows what it finds of each."""

    project: Project
    progress: Progress
    say: Say

    @property
    def old(self) -> Path:
        return DeployedGallery.open(open_store(self.project)).model_path

    def __call__(self, name: str, new: Path, rescore: int | None = None) -> tuple[Route, Report]:
        """A route's result and report, which stays on disk if it re-scores."""
        options = VerifyOptions(dry_run=rescore is None, rescore=rescore)
        report = verify(
            self.project, old=self.old, new=new, options=options, progress=self.progress
        )
        return say_route(route_of(name, report), report, self.say), report


def _routes(project: Project, folder: Path, gate: _Gate) -> _Tried:
    """Bridged; fused with the old model; and with the first answers re-scored."""
    planned, bridged = _planned(project, gate), _bridged(project, folder, gate)
    fused = folder / "fused.onnx"
    mapped, _ = gate(f"bridged ({MAP})", bridged)
    fusion = fuse(project, old=gate.old, new=bridged, output=fused, progress=gate.progress)
    mixed, _ = gate(f"bridged and fused, weight {fusion.weight:g}", fused)
    rescored, report = gate(f"bridged, fused, first {RESCORED} re-scored", fused, RESCORED)
    return _Tried(routes=(mapped, mixed, rescored), report=report, story=(planned,))


def _gone_routes(project: Project, folder: Path, gate: _Gate) -> _Tried:
    """Bridged, and with the first answers re-scored: neither runs the old model on a query."""
    planned, bridged = _planned(project, gate), _bridged(project, folder, gate)
    mapped, _ = gate(f"bridged ({MAP})", bridged)
    rescored, report = gate(f"bridged, first {RESCORED} re-scored", bridged, RESCORED)
    held_out, compared = len(_held_out(project)), len(_Queries.all(project).data)
    return _Tried(
        routes=(mapped, rescored),
        report=report,
        story=(
            planned,
            "left out: fusing with the old model, which would have to embed each new query",
            f"not compared: {held_out - compared} of {held_out} held-out queries, of which no "
            "vector of the old model was logged",
            f"with no logged query at all: {_without_a_log(project, folder, gate.old, bridged)}",
        ),
    )


def _bridged(project: Project, folder: Path, gate: _Gate) -> Path:
    """The new model behind a map into the gallery's space."""
    output = folder / "bridged.onnx"
    bridge(project, new=Path(NEW), output=output, kind=MAP, share=0.0, progress=gate.progress)
    return output


def _planned(project: Project, gate: _Gate) -> str:
    """What plan recommends before anything is made."""
    result = plan_ready(project, new=Path(NEW), kind=MAP, progress=gate.progress)
    return f"plan recommends: {result.recommended}: {result.reason}"


def _without_a_log(project: Project, folder: Path, old: Path, new: Path) -> str:
    """What the gate says where the old model's vectors of documents are all that is left of it."""
    tables = {**project.vectors, OLD: str(folder / f"{DOCUMENTS_ONLY}.npz")}
    try:
        verify(
            replace(project, vectors=tables),
            old=old,
            new=new,
            options=VerifyOptions(rescore=RESCORED, dry_run=True),
        )
    except EvidenceError as error:
        return f"the gate cannot tell (exit code {error.exit_code}): {error}"
    return "the gate compares all the same"


def _not_checked(report: Report) -> str:
    return f"not checked: {'; '.join(report.not_checked)}"


def _held_out(project: Project) -> Dataset:
    """The held-out queries."""
    return load_data(project).filter(split="test", role="query")


@dataclass(frozen=True, kw_only=True)
class _Queries:
    """Held-out queries that have a vector in both spaces."""

    data: Dataset

    @classmethod
    def all(cls, project: Project) -> _Queries:
        """Every one that the old model has a vector of."""
        queries, old = _held_out(project), DeployedGallery.open(open_store(project)).encoder
        answered = old.can_embed(queries, np.arange(len(queries)))
        return cls(data=queries.take(np.flatnonzero(answered)))

    @classmethod
    def sample(cls, project: Project) -> _Queries:
        """At most SAMPLE of them, evenly spaced."""
        queries = cls.all(project).data
        step = max(1, len(queries) // SAMPLE)
        return cls(data=queries.take(range(0, len(queries), step)[:SAMPLE]))

    def tables(self, project: Project, folder: Path) -> list[str]:
        """SPACE=FILE for each space of the store's query model; the files are written."""
        encoder = DeployedGallery.open(open_store(project)).encoder
        files = {space: folder / f"queries-{space}.npz" for space in encoder.spaces}
        for space, path in files.items():
            _write_table(path, self.data, self._vectors(space))
        return [f"{space}={path}" for space, path in files.items()]

    def _vectors(self, space: str) -> Vectors:
        """(Q, D) float32 rows of the queries in one space."""
        items = (self.data.content(row) for row in range(len(self.data)))
        rows = [item.take(space) for item in items if isinstance(item, ItemVectors)]
        return np.array(rows, np.float32)
