"""pytest finds this plugin where compatctl is installed: the fixture ``assert_compatible``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from compatctl.report import Report

OPTION = "compatctl_project"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The project of tests that name none."""
    parser.addini(
        OPTION, "folder of compatctl.yaml, or the file, relative to the root folder", default="."
    )


@pytest.fixture(scope="session")
def assert_compatible(pytestconfig: pytest.Config) -> Callable[..., Report]:
    """``compatctl.testing.assert_compatible`` with the project of the configuration."""
    configured = pytestconfig.rootpath / str(pytestconfig.getini(OPTION))

    def check(
        old: Path | str | None, new: Path | str, *, project: Path | str | None = None, **more: Any
    ) -> Report:
        __tracebackhide__ = True
        from compatctl.testing import assert_compatible

        return assert_compatible(old, new, project=project or configured, **more)

    return check
