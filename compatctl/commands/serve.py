"""serve: answer queries over HTTP from the store, through every deploy and rollback."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from socket import socket

from compatctl.data import Dataset
from compatctl.deployment.data import load_data
from compatctl.deployment.loaded_generation import LoadedGeneration
from compatctl.deployment.searcher import Searcher
from compatctl.encoder import Encoder, use_threads
from compatctl.errors import CompatError, InputError, UsageError
from compatctl.evaluation.report_match import require_matching_report
from compatctl.evaluation.verified_candidate import refuse_unverified
from compatctl.machine import computing_threads
from compatctl.manifest import Manifest
from compatctl.notices import Notices, collected
from compatctl.recipe import Project, gate_policy
from compatctl.report import policy_sha256, read_report
from compatctl.serving.access import Access
from compatctl.serving.answer_log import AnswerLog, LogLine
from compatctl.serving.candidate import DEPLOYED, CandidateModel, Shadow, Traffic
from compatctl.serving.http import make_app
from compatctl.serving.metrics import Metrics
from compatctl.serving.processes import Link, Processes
from compatctl.serving.server import is_loopback, listen, local_names, run
from compatctl.serving.service import Limits, SearchService
from compatctl.serving.shared_metrics import SharedMetrics, fold_ended
from compatctl.store import shown_path

LOG = logging.getLogger("compatctl.serve")

TOKEN = "COMPATCTL_TOKEN"
SHORTEST_TOKEN = 16
"""Characters."""

FOLLOW_S = 0.25
"""Seconds between two looks at the store: a rollback reaches the service within a second."""

STOPPED = "traffic-stopped"
"""The file by which a process stops the candidate of the traffic in all."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A candidate's file, and the share of queries that it answers, in (0, 1]."""

    model: Path
    share: float


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Options of ``serve``.

    Attributes:
        host, port: the address; port 0 is any free one.
        shadow: a candidate that answers too, for the log alone.
        traffic: a candidate that answers a share of the queries.
        allow_unverified: the candidate of the traffic needs no passing report.
        log: answers: a file of JSON lines, or a folder of parts whose name ends in .parquet.
        limits: of a request, in each process.
        processes: that answer, each with a model and an index of its own.
        threads: that compute a batch in each process; None: ``OMP_NUM_THREADS``, or the processors,
            divided among them.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    shadow: Trial | None = None
    traffic: Trial | None = None
    allow_unverified: bool = False
    log: Path | None = None
    limits: Limits = field(default_factory=Limits)
    processes: int = 1
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class ServeResult:
    """What was served until the end; of several processes, by those that were not killed.

    Attributes:
        generation: the last one.
        answered: queries.
        switches: times that a newer generation took over.
        logged: lines of the log.
        unlogged: lines that were dropped.
    """

    generation: int
    answered: int
    switches: int
    logged: int
    unlogged: int


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """The generation that a process serves, and the notices on the way to it."""

    generation: int
    notices: Notices | None


def serve(
    project: Project, options: ServeOptions, *, announce: Callable[[str], None]
) -> ServeResult:
    """Answer queries until SIGTERM, SIGHUP or Ctrl-C; running requests end first.

    ``announce`` gets the address once queries are answered.

    Raises:
        UsageError: an address that other machines reach, without a token in the environment; or a
            candidate for the traffic of a store that re-scores answers or calibrates scores.
        InputError: the port is in use; there is no store; a model does not load, or has another
            dimension than the gallery.
        GateError, EvidenceError: no passing report of the candidate of the traffic.
        DamagedError: the store is damaged.
        CompatError: a process died before it answered.
    """
    _token(options.host)
    _log_to_stderr(options.processes)
    with listen(options.host, options.port) as listener:
        by = f" by {options.processes} processes" if options.processes > 1 else ""
        where = f"{shown_path(project.store)} is served on {_address(options.host, listener)}{by}"

        def started(ready: Sequence[_Ready]) -> None:
            if ready[0].notices is not None:
                ready[0].notices.repeat()
            oldest = min(one.generation for one in ready)
            announce(f"generation {oldest} of {where}")

        if options.processes == 1:
            link = Link[_Ready](ready=lambda one: started([one]), pulse=[0.0])
            return _serve_here(project, options, listener, None, link)
        with tempfile.TemporaryDirectory(prefix="compatctl-serve-") as folder:
            target = partial(_serve_here, project, options, listener, Path(folder))
            ended = partial(fold_ended, Path(folder))
            return _together(Processes(target, options.processes, ended=ended).run(started))


def _serve_here(
    project: Project,
    options: ServeOptions,
    listener: socket,
    folder: Path | None,
    link: Link[_Ready],
) -> ServeResult:
    """Serve in this process; ``folder`` is shared with the other ones, None: there are none."""
    _log_to_stderr(options.processes)
    use_threads(options.threads or computing_threads(options.processes))
    told = collected() if folder is not None else contextlib.nullcontext()
    with told as notices:  # one process tells them itself
        data = _data(project)
        searcher = Searcher.open(
            project.store,
            project=project,
            data=data,
            follow_s=FOLLOW_S,
            index_apart=True,
        )
    with searcher:
        service = _service(project, options, searcher, data, folder, again=link.again)
        try:
            first = _Ready(generation=searcher.manifest.generation, notices=notices)
            app = make_app(service, _access(options.host, listener))
            seconds = options.limits.seconds
            run(app, listener, seconds=seconds, started=partial(link.ready, first), beat=link.beat)
        finally:
            manifest, switches = searcher.manifest, searcher.switches
            service.close()
    return ServeResult(
        generation=manifest.generation,
        answered=service.answered,
        switches=switches,
        logged=0 if service.log is None else service.log.written,
        unlogged=0 if service.log is None else service.log.dropped,
    )


def _service(
    project: Project,
    options: ServeOptions,
    searcher: Searcher,
    data: Dataset | None,
    folder: Path | None,
    *,
    again: bool,
) -> SearchService:
    """All of the service but its address.

    ``again``: a process that stands for one that ended. It serves without a candidate that cannot
    be tried any more, as its file is gone, or the store is another one than its report's.
    """
    stop_file = None if folder is None else folder / STOPPED
    try:
        traffic = _traffic(project, options, searcher.current, stop_file)
        shadowed = _candidate(options.shadow, searcher.current)
    except CompatError as error:
        if not again:
            raise
        LOG.error("this process tries no candidate: %s", error.message)
        traffic = shadowed = None
    log = None if options.log is None else AnswerLog(options.log)
    shadow = None
    if options.shadow is not None and shadowed is not None:
        shadow = Shadow(shadowed, share=options.shadow.share, write=_writer(log))
    return SearchService(
        searcher=searcher,
        limits=options.limits,
        metrics=Metrics(),
        log=log,
        shadow=shadow,
        traffic=traffic,
        data=data,
        shared=None if folder is None else SharedMetrics(folder),
        processes=options.processes,
    )


def _together(results: Sequence[ServeResult]) -> ServeResult:
    """What the processes did that ran to the end."""
    return ServeResult(
        generation=max((one.generation for one in results), default=0),
        answered=sum(one.answered for one in results),
        switches=max((one.switches for one in results), default=0),
        logged=sum(one.logged for one in results),
        unlogged=sum(one.unlogged for one in results),
    )


def _address(host: str, listener: socket) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"


def _log_to_stderr(processes: int) -> None:
    """Switches, and what went wrong, for who runs the service."""
    logger = logging.getLogger("compatctl")
    if not logger.handlers:
        handler = logging.StreamHandler()
        who = "%(process)d " if processes > 1 else ""
        handler.setFormatter(logging.Formatter(f"%(asctime)s {who}%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def _access(host: str, listener: socket) -> Access:
    """Who may ask: who has the token or, without one, who names this machine."""
    token = _token(host)
    return Access(token=token, hosts=None if token else local_names(host, listener))


def _token(host: str) -> str | None:
    """The token of the environment, which an address that others reach needs.

    Raises:
        UsageError: it is missing, too short, or no header carries it.
    """
    token = os.environ.get(TOKEN, "").strip() or None
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise UsageError(
            f"{TOKEN} holds {len(token)} characters; a token has at least {SHORTEST_TOKEN}",
            tip=f"export {TOKEN}=$(openssl rand -hex 32)",
        )
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise UsageError(
            f"{TOKEN} holds a space or a sign that no header carries",
            tip=f"export {TOKEN}=$(openssl rand -hex 32)",
        )
    if not is_loopback(host) and token is None:
        raise UsageError(
            f"other machines reach {host}, and {TOKEN} is not set",
            tip=f"export {TOKEN}=$(openssl rand -hex 32), which callers then send; or serve "
            "127.0.0.1",
        )
    return token


def _candidate(trial: Trial | None, current: LoadedGeneration) -> CandidateModel | None:
    """The candidate of a trial, if there is one; it fits the gallery. One thread computes it, so
    that it takes little from the query model."""
    if trial is None:
        return None
    candidate = CandidateModel(encoder=Encoder.load(trial.model, threads=1))
    candidate.on(current)
    return candidate


def _writer(log: AnswerLog | None) -> Callable[[LogLine], None]:
    return (lambda _: None) if log is None else log.add


def _data(project: Project) -> Dataset | None:
    """The project's data, for free vectors and the page; None: there are none here."""
    has_data = project.source is not None and project.source.exists()
    return load_data(project, labelled=False) if has_data else None


def _traffic(
    project: Project, options: ServeOptions, current: LoadedGeneration, stop_file: Path | None
) -> Traffic | None:
    """The candidate that gets a share of the traffic, if it may; none that is deployed by now."""
    trial, manifest = options.traffic, current.manifest
    candidate = _candidate(trial, current)
    if trial is None or candidate is None:
        return None
    traffic = Traffic(candidate, share=trial.share, stop_file=stop_file)
    if candidate.encoder.sha256 == manifest.query_model:
        traffic.stop(DEPLOYED)
        return traffic
    for what, settings in (
        ("re-scores answers", manifest.rescoring),
        ("calibrates scores", manifest.calibration),
    ):
        if settings is not None:
            raise UsageError(
                f"the store {what}, and a candidate on the traffic does not",
                tip="try the candidate with --shadow, or deploy it and roll back",
            )
    if not options.allow_unverified:
        _require_verified(project, manifest, candidate.encoder)
    return traffic


def _require_verified(project: Project, manifest: Manifest, encoder: Encoder) -> None:
    """Refuse a candidate for real queries that deploy would refuse."""
    verified = read_report(project.report)
    policy = policy_sha256(gate_policy(project))
    refuse_unverified(verified, manifest, encoder.sha256, policy)
    require_matching_report(verified.report, project)
    if verified.report.rescoring is not None or verified.report.calibration is not None:
        raise InputError(
            "the report judged the candidate with re-scored answers or calibrated scores, and on "
            "the traffic it has neither",
            tip="verify it without --rescore and --calibrate, or try it with --shadow",
        )
