"""backfill: re-embed a share of the gallery with the query model, step by step, each judged first.

The gain on held-out queries is measured before a step is written, because a mixed gallery can have
fewer hits than one left alone: the query model's own rows attract its queries whether they are
relevant or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from compatctl.core.arrays import Bools, Rows
from compatctl.core.policy import Policy
from compatctl.data import Dataset
from compatctl.deployment.bulk_embedding import release_memory
from compatctl.deployment.data import load_data
from compatctl.deployment.engine_gallery import require_library
from compatctl.deployment.engines import open_for_write
from compatctl.deployment.gallery import load_query_model, stored_rows
from compatctl.deployment.gallery_pass import require_budget
from compatctl.deployment.project import open_store
from compatctl.deployment.rewriting import refuse_steps, require_rewriting
from compatctl.encoder import Encoder
from compatctl.errors import EvidenceError, UsageError
from compatctl.manifest import Catalog, Manifest
from compatctl.migration.backfill_budget import Amount, Spending
from compatctl.migration.backfill_curve import RunCurve
from compatctl.migration.backfill_estimate import BackfillEstimate, estimate, measure_rates
from compatctl.migration.backfill_forecast import (
    Forecast,
    Sample,
    SampleRows,
    Schedule,
    forecast,
)
from compatctl.migration.backfill_gain import RestForecast, choose_sample
from compatctl.migration.backfill_orders import priority_of
from compatctl.migration.backfill_result import (
    Backfilled,
    BackfillOptions,
    rest_line,
    step_line,
    unchanged,
    with_step,
)
from compatctl.migration.backfill_run import Account, Announce, BackfillRun
from compatctl.migration.backfill_selection import BackfillRows, BackfillTarget
from compatctl.migration.backfill_step import NO_ROWS, StepSetting, passed_rows
from compatctl.migration.rewrite_gate import HeldOutQueries, require_queries
from compatctl.migration.rewrite_trials import backfill_queries
from compatctl.progress import Progress, silent
from compatctl.recipe import Project, load_policy
from compatctl.store import Store, backfill_lock, end_run, read_run
from compatctl.store.pending_rows import PendingRows


def backfill(
    project: Project,
    *,
    options: BackfillOptions | None = None,
    progress: Progress = silent,
    announce: Announce = lambda _: None,
) -> Backfilled:
    """Re-embed items of other models with the query model, until it embedded the requested share,
    or the budget is spent.

    Running the same command again does nothing; a larger share continues where a smaller one ended.
    A run that was killed continues where it stopped: what it embedded is kept. ``announce`` gets
    the estimate before the work, and a line after each step.

    Raises:
        UsageError: the share is not in (0, 1], traffic without its order or the reverse, no data is
            named, or more of the gallery would pass than the project allows.
        EvidenceError: the data has no held-out query, and no reason to force was given.
        InputError: bad data, policy or order; the data has no item of the store.
        DamagedError: a file of the store is missing or changed.
        ConflictError: the store is locked, another backfill runs, or the query model changed.
    """
    options = options or BackfillOptions()
    store = open_for_write(project, dry_run=options.dry_run)
    policy = load_policy(project.policy)
    require_rewriting(store, store.manifest, "backfill")
    if options.stepwise:
        refuse_steps(store, store.manifest)
    if options.until_gain:
        _refuse_rescored(store.manifest)
    with _alone(store, options):
        catalog = store.catalog()
        target = _target(store, catalog, options)
        result = unchanged(store.manifest, target, options)
        if not target.remaining:
            _tidy(store, catalog, target.have, options)
            return result
        data, kept = load_data(project), PendingRows.existing(store.path, result.query_model)
        if kept is not None:
            target = target.first(kept.holds(catalog.ids))
        chosen = BackfillRows.of(target, catalog, data)
        result = replace(result, missing=chosen.missing, unreachable=chosen.unreachable)
        if not len(chosen.rows):
            return result
        work = _Work(
            project=project,
            store=store,
            catalog=catalog,
            target=target,
            chosen=chosen,
            options=options,
            policy=policy,
            data=data,
            kept=kept,
            announce=announce,
            progress=progress,
        )
        return work.run(result)


def _tidy(store: Store, catalog: Catalog, have: Bools, options: BackfillOptions) -> None:
    """Delete the account and the vectors of a run that was killed after its last step was written.

    ``have`` (N,) marks the rows of the catalogue that the query model embedded.
    """
    if options.dry_run:
        return
    model = store.manifest.query_model
    account, kept = read_run(store.path), PendingRows.existing(store.path, model)
    if account is not None and account.get("identity") == options.identity(model):
        end_run(store.path)
    if kept is not None and not (kept.holds(catalog.ids) & ~have).any():
        kept.delete()


@contextmanager
def _alone(store: Store, options: BackfillOptions) -> Iterator[None]:
    """One backfill of a store at a time; a dry run writes nothing, and needs no lock."""
    if options.dry_run:
        yield
        return
    with backfill_lock(store.path):
        yield


@dataclass(frozen=True, kw_only=True)
class BackfillForecast:
    """Hit rate at each share, forecast from few passes; nothing is written.

    The query model embedded ``share_before`` of the ``rows``. ``forecast`` is None where there is
    nothing left to embed. ``skipped`` are ids of the sample whose image does not decode.
    """

    generation: int
    query_model: str
    rows: int
    share_before: float
    forecast: Forecast | None = None
    skipped: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Where the hit rate is forecast to fall below the start."""
        return self.forecast.warnings if self.forecast else ()


def forecast_backfill(
    project: Project,
    *,
    passes: int,
    options: BackfillOptions | None = None,
    progress: Progress = silent,
) -> BackfillForecast:
    """Embed a sample of at most ``passes`` rows and forecast the hit rate at every share.

    Of the options, order, traffic and skip_bad count.

    Raises:
        UsageError: fewer than 2 passes, or more than the project allows; or as ``backfill``.
        EvidenceError: no held-out query has a match in the sample, or the store re-scores.
    """
    options = options or BackfillOptions()
    if passes < 2:
        raise UsageError(f"--forecast needs at least 2 rows, got {passes}")
    store, policy = open_store(project), load_policy(project.policy)
    require_library(store.manifest)
    _refuse_rescored(store.manifest)
    catalog, data = store.catalog(), load_data(project)
    target = _target(store, catalog, options)
    result = BackfillForecast(
        generation=store.manifest.generation,
        query_model=store.manifest.query_model,
        rows=len(catalog),
        share_before=float(target.have.mean()),
    )
    schedule = Schedule.of(target, catalog, data)
    if not schedule.shares:
        return result
    rows = backfill_queries(project, store, data)
    truth = HeldOutQueries.without_features(data, rows, project).ground_truth(catalog)
    chosen = SampleRows.choose(truth, catalog.ids, np.isfinite(schedule.replaced_at), passes)
    _require_matches(chosen)
    passed = passed_rows(project, store, catalog, chosen.rows)
    require_budget(project, passed, "the forecast", tip="a smaller --forecast passes fewer rows; ")
    encoder, rows = load_query_model(store, store.manifest), rows[chosen.queries]
    queries = HeldOutQueries.embed(encoder, data, rows, project, skip_bad=options.skip_bad)
    fresh = chosen.rows[schedule.replaced_at[chosen.rows] > 0.0]
    images = data.take(data.row_of[catalog.ids[row]] for row in fresh)
    embedded = encoder.embed(images, skip_bad=options.skip_bad, progress=progress)
    sample = Sample.of(
        chosen,
        queries.ground_truth(catalog),
        queries.features,
        stored_rows(store, store.manifest, catalog),
        embedded=fresh[embedded.rows],
        features=embedded.features,
        missing=np.setdiff1d(fresh, fresh[embedded.rows]),
    )
    skipped = tuple(item.id for item in embedded.bad)
    return replace(result, forecast=forecast(sample, schedule, policy), skipped=skipped)


def _refuse_rescored(manifest: Manifest) -> None:
    if manifest.rescoring is not None:
        raise EvidenceError(
            "the store re-scores its answers, and a forecast is of the index alone: it cannot say "
            "what a backfill changes of what is served",
            tip="compatctl backfill --dry-run --share S measures it, re-scored; it embeds the rows",
        )


def _require_matches(chosen: SampleRows) -> None:
    if not chosen.queries.any():
        raise EvidenceError(
            "no held-out query has a match in the sample: a backfill cannot be forecast",
            tip="give items of the test split (role query), or a larger --forecast",
        )


def _target(store: Store, catalog: Catalog, options: BackfillOptions) -> BackfillTarget:
    """The rows to re-embed, in the order that the options name.

    Raises:
        UsageError: a share outside (0, 1], or an order by traffic without it, or the reverse.
        InputError: a bad file of ids or counts.
        DamagedError: as ``stored_rows``.
    """
    stored = partial(stored_rows, store, store.manifest, catalog)
    priority = priority_of(options.order, catalog, stored, traffic=options.traffic)
    return BackfillTarget.of(catalog, store.manifest.query_model, options.share, priority)


def _require_queries(queries: int, options: BackfillOptions) -> None:
    require_queries(
        queries,
        forced_reason=options.forced_reason,
        without="what a backfill gains cannot be measured, and a mixed gallery can find less than "
        "one that is left alone",
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Work:
    """One backfill that has something to embed."""

    project: Project
    store: Store
    catalog: Catalog
    target: BackfillTarget
    chosen: BackfillRows
    options: BackfillOptions
    policy: Policy
    data: Dataset
    kept: PendingRows | None
    announce: Announce
    progress: Progress

    def run(self, result: Backfilled) -> Backfilled:
        """Estimate, then embed, measure and write step by step."""
        account = self._account(result.query_model)
        rows = self.chosen.rows[: self._affordable(account.spending)]
        passed = passed_rows(self.project, self.store, self.catalog, rows)
        tip = "a smaller --share or --budget passes fewer rows; "
        require_budget(self.project, passed, "backfill", tip=tip)
        query_rows = backfill_queries(self.project, self.store, self.data)
        _require_queries(len(query_rows), self.options)
        run = self._prepared(account, query_rows, len(rows))
        before = self._estimate(run)
        for line in before.lines:
            self.announce(line)
        result = replace(
            result,
            gallery_pass=passed,
            resumed=account.resumed,
            estimate=before,
            passed=account.spending.items,
        )
        if self.options.stepwise and self.options.dry_run:
            return replace(result, stopped="dry run")
        return self._stepped(result, run)

    def _rest_forecast(self, encoder: Encoder, run: BackfillRun) -> RestForecast:
        """The sample that says whether the rest gains; at most half of the budget."""
        forecast, passed = RestForecast.of(
            run.setting,
            encoder,
            self.catalog,
            self.chosen.items,
            run.kept,
            size=self._sample_size(run),
            block=run.rates.block,
            skip_bad=self.options.skip_bad,
        )
        run.account.spending.items += passed
        return forecast

    def _sample_size(self, run: BackfillRun) -> int:
        return int(max(2, min(self.options.sample, run.account.spending.items_left // 2)))

    def _sample_to_embed(self, run: BackfillRun) -> int:
        """How many items the sample of a dry run would pass: a real one has passed them by now."""
        if not (self.options.until_gain and self.options.dry_run):
            return 0
        size = self._sample_size(run)
        _, fresh = choose_sample(run.setting, self.catalog, self.chosen.items, size)
        return len(fresh) - (0 if self.kept is None else int(self.kept.holds(fresh.ids).sum()))

    def _look(self, run: BackfillRun, forecast: RestForecast) -> bool:
        """Whether the rest is shown to gain; the run's curve has the look."""
        rest, account = forecast.look(), run.account
        generation = open_store(self.project).manifest.generation
        curve = self._curve(account).looked(
            rest, passed=account.spending.items, generation=generation
        )
        self._keep_curve(account, curve)
        self.announce(rest_line(rest))
        return rest.is_shown

    def _curve(self, account: Account) -> RunCurve:
        return RunCurve(hit_at=self.policy.hit_at, points=account.points)

    def _keep_curve(self, account: Account, curve: RunCurve) -> None:
        account.points = curve.points
        if self.options.curve is not None and not self.options.dry_run:
            curve.write(self.options.curve)

    def _account(self, model: str) -> Account:
        """What was spent: by an unfinished run of the same request, or nothing."""
        rows = len(self.catalog)
        account = Account(
            store=self.store,
            rows=rows,
            identity=self.options.identity(model),
            spending=Spending.of(self.options.budget, rows),
        )
        if self.options.stepwise:
            account.resume(self.kept)
        return account

    def _held(self, n: int) -> int:
        """How many of the first ``n`` items are embedded already."""
        return 0 if self.kept is None else int(self.kept.holds(self.chosen.items.ids[:n]).sum())

    def _affordable(self, spending: Spending) -> int:
        """How many of the chosen rows the budget reaches; those that are kept cost nothing."""
        n = len(self.chosen.rows)
        if spending.most_items is None:
            return n
        return min(n, int(spending.items_left) + self._held(n))

    def _prepared(self, account: Account, query_rows: Rows, affordable: int) -> BackfillRun:
        """The run, once the queries are embedded and the speed is measured; the sample that it
        takes counts."""
        options = self.options
        encoder = load_query_model(self.store, self.store.manifest)
        queries = self._queries(encoder, query_rows)
        kept = None
        if not options.dry_run:
            kept = self.kept or PendingRows.open(self.store.path, encoder.sha256, encoder.dim)
        rates, passed = measure_rates(
            encoder,
            self.chosen.items.take(range(affordable)),
            kept,
            store=self.store,
            catalog=self.catalog,
            queries=queries.features,
            skip_bad=options.skip_bad,
        )
        account.spending.items += passed
        run = BackfillRun(
            setting=self._setting(queries),
            items=self.chosen.items,
            kept=kept,
            account=account,
            rates=rates,
            stepwise=options.stepwise,
            step=options.step,
            skip_bad=options.skip_bad,
        )
        if options.until_gain and not options.dry_run:
            forecast = self._rest_forecast(encoder, run)
            run.worth = lambda: self._look(run, forecast)
        elif not options.dry_run or not options.stepwise:
            run.encoder = encoder
        del encoder
        release_memory()
        if options.stepwise and kept is not None:
            account.write(kept, rates)
        return run

    def _queries(self, encoder: Encoder, rows: Rows) -> HeldOutQueries:
        queries = HeldOutQueries.embed(
            encoder,
            self.data,
            rows,
            self.project,
            skip_bad=self.options.skip_bad,
            free=self.store.manifest.rescoring is not None,
        )
        _require_queries(len(queries.ids), self.options)
        return queries

    def _setting(self, queries: HeldOutQueries) -> StepSetting:
        return StepSetting(
            project=self.project,
            data=self.data,
            queries=queries,
            policy=self.policy,
            model=self.store.manifest.query_model,
            forced_reason=self.options.forced_reason,
            dry_run=self.options.dry_run,
            progress=self.progress,
        )

    def _estimate(self, run: BackfillRun) -> BackfillEstimate:
        wanted = len(self.chosen.rows)
        kept = run.kept or self.kept
        return estimate(
            run.rates,
            run.account.spending,
            rows=len(self.catalog),
            own=int(self.target.have.sum()),
            reachable=self.chosen.reachable,
            missing=self.chosen.unreachable,
            wanted=wanted,
            kept=0 if kept is None else int(kept.holds(self.chosen.items.ids).sum()),
            sample=self._sample_to_embed(run),
            step=self.options.step if self.options.stepwise else Amount(text="", items=wanted),
        )

    def _stepped(self, result: Backfilled, run: BackfillRun) -> Backfilled:
        """The result after every step. Without steps, what a refused one embedded is not kept."""
        warnings, account, spent = result.warnings, run.account, run.account.spending
        planned = result
        for step in run.steps():
            result = with_step(result, step)
            self._keep_curve(account, self._curve(account).stepped(step, passed=spent.items))
            result = replace(
                result, warnings=warnings + (step.measured.warnings if step.measured else ())
            )
            if self.options.stepwise:
                self.announce(step_line(step))
        if result is planned and not self.options.dry_run:  # no step: nothing of the plan passed
            made = passed_rows(self.project, self.store, self.catalog, NO_ROWS)
            result = replace(result, gallery_pass=made)
        if not self.options.stepwise and run.kept is not None:
            run.kept.delete()
        return replace(
            result,
            stopped=run.stopped,
            passed=spent.items,
            curve=account.points,
            skipped=tuple(run.skipped),
        )
