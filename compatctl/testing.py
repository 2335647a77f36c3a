"""The gate as an assertion, for test suites; the pytest plugin gives it as a fixture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compatctl.report import Report


class NotCompatibleError(AssertionError):
    """The gate fails, or cannot tell; ``report`` has everything that was measured."""

    def __init__(self, report: Report) -> None:
        super().__init__("\n".join(_lines(report)))
        self.report = report


def assert_compatible(
    old: Path | str | None, new: Path | str, *, project: Path | str = ".", **options: Any
) -> Report:
    """Raise unless ``compatctl verify OLD NEW`` passes; return the report.

    ``old`` None: the store's query model. ``project``: the folder of compatctl.yaml, or another
    project file. ``options`` are the fields of ``evaluation.options.VerifyOptions``, such as
    ``slices=("vendor",)`` or ``qrels=Path("clicks.csv")``. No file is written, so what was judged
    here counts as no attempt, and deploy needs a report of ``compatctl verify``.

    Raises:
        NotCompatibleError: the verdict is fail or inconclusive.
        InputError: bad data, a bad model, or an option that there is not.
    """
    from compatctl.commands.verify import verify
    from compatctl.errors import UsageError
    from compatctl.evaluation.options import VerifyOptions
    from compatctl.recipe import Project

    place = Path(project)
    found = Project.load(place) if place.is_file() else Project.find(place)
    try:
        requested = VerifyOptions(**{**options, "dry_run": True})
    except TypeError as error:
        raise UsageError(f"assert_compatible: {error}") from error
    report = verify(found, old=None if old is None else Path(old), new=Path(new), options=requested)
    if report.verdict.outcome != "pass":
        raise NotCompatibleError(report)
    return report


def _lines(report: Report) -> Iterator[str]:
    """The verdict, each deciding check that did not pass, and what to do next."""
    yield f"compatctl verify: {report.verdict.outcome}. {report.summary}"
    for check in report.verdict.checks:
        if check.decides and check.outcome != "pass":
            yield f"  {check.name} ({check.group}): {check.outcome}: {check.detail}"
    yield f"next: {report.next_step}"
