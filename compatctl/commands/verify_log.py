"""verify --log: judge the answers that a service gave, and a candidate's beside them."""

from __future__ import annotations

from pathlib import Path

from compatctl.data import read_compared_log, read_qrels
from compatctl.deployment.data import load_data
from compatctl.deployment.project import open_store
from compatctl.encoder import read_model_bytes
from compatctl.evaluation.logged_answers import LogResult, judge_log
from compatctl.files import sha256_bytes
from compatctl.recipe import Project, gate_policy
from compatctl.store import Store


def verify_log(
    project: Project, log: Path, *, candidate: Path | None, qrels: Path | None, seed: int | None
) -> LogResult:
    """Compare the query model's answers in a log with a candidate's beside them.

    ``candidate``: its file, where the log has several. ``qrels``, or the project's: judgments of
    the logged queries, such as clicks; without, the labels of the project's data decide.

    Raises:
        InputError: the log, the judgments or the data cannot be used, or nothing can be judged.
        DamagedError: the store is damaged.
    """
    digest = None if candidate is None else sha256_bytes(read_model_bytes(candidate))
    answers = read_compared_log(log, digest)
    store = open_store(project)
    qrels = qrels or project.gate.qrels
    has_data = project.source is not None and project.source.exists()
    return judge_log(
        answers,
        store.catalog(),
        gate_policy(project),
        data=load_data(project, labelled=False) if has_data else None,
        judgments=None if qrels is None else read_qrels(qrels),
        seed=project.gate.seed if seed is None else seed,
        served=_was_query_model(store, answers.current),
    )


def _was_query_model(store: Store, digest: str) -> bool:
    """Whether a generation had this query model; older ones are read only as far as needed."""
    newest = store.manifest.generation
    return any(store.generation(n).query_model == digest for n in range(newest, 0, -1))
