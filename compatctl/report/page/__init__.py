"""A report as one HTML file: no script, no request, figures as SVG, pictures inside."""

from __future__ import annotations

from compatctl.report.page._page import (
    Extra,
    Option,
    Page,
    plain_page,
    report_page,
    require_page,
)
from compatctl.report.page.items import ItemViews
from compatctl.report.page.matrix import matrix_section

__all__ = [
    "Extra",
    "ItemViews",
    "Option",
    "Page",
    "matrix_section",
    "plain_page",
    "report_page",
    "require_page",
]
