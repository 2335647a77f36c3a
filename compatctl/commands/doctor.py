"""doctor: can this table be adopted, and what would be better?"""

from __future__ import annotations

from dataclasses import dataclass

from compatctl.engines import (
    DeploymentTable,
    TableRows,
    connect,
    is_engine_url,
    parse_url,
    read_facts,
    table_problems,
)
from compatctl.engines.checks import Check
from compatctl.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One property: its ``status`` is ok, warning or error."""

    name: str
    status: str
    found: str
    problem: str
    tip: str


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was found. ``url`` has no password; ``usable``: no finding is an error."""

    url: str
    usable: bool
    findings: tuple[Finding, ...]


def doctor(url: str) -> Diagnosis:
    """Check a table of PostgreSQL. Nothing is written.

    Raises:
        UsageError: the URL is of another form.
        InputError: psycopg is not installed.
        CompatError: the server cannot be reached.
    """
    if not is_engine_url(url):
        raise UsageError("doctor checks the URL of a table", tip="postgresql://...")
    location = parse_url(url)
    with connect(location) as connection:
        server, facts, location = read_facts(connection, location)
        checks = list(table_problems(location, server, facts))
        if not any(check.fatal for check in checks):
            rows = TableRows(
                location=location,
                id_type=facts.id_type or "",
                vector_type=facts.vector_type or "",
                dim=facts.dim or 1,
            )
            checks.append(_rows(*rows.count(connection)))
    if facts.kind:
        checks.append(_row(DeploymentTable(location=location)))
    return Diagnosis(
        url=location.url,
        usable=not any(check.fatal for check in checks),
        findings=tuple(
            Finding(
                name=check.name,
                status=check.status,
                found=check.found,
                problem=check.problem,
                tip=check.tip,
            )
            for check in checks
        ),
    )


def _rows(with_vector: int, without: int) -> Check:
    problem = "no row has a vector" if not with_vector else ""
    if without and with_vector:
        problem = f"{without} rows have no vector: they are not part of a gallery"
    return Check(name="rows", found=f"{with_vector} with a vector", problem=problem,
                 fatal=not with_vector)  # fmt: skip


def _row(table: DeploymentTable) -> Check:
    row = table.read()
    found = (
        f"no row {table.location.name!r} yet"
        if row is None
        else f"row {table.location.name!r} at epoch {row.epoch}, model {row.query_model[:12]}"
    )
    return Check(name="compatctl_deployment", found=found)
