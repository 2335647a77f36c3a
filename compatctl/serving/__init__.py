"""Serving a store over HTTP: the extra ``serve``.

Modules, lowest first: batching (queries of many requests in one pass), answer_log, metrics,
shared_metrics (of several processes), candidate (a model that is tried beside the one that serves),
service (all of it, without HTTP), http (FastAPI), server (uvicorn), processes (several of them).
"""

from __future__ import annotations

from compatctl.libraries import require_library


def require_serving() -> None:
    """Refuse to go on without the libraries of the extra.

    Raises:
        InputError: one is not installed, or does not load.
    """
    for name in ("fastapi", "prometheus_client", "uvicorn"):
        require_library(name, extra="serve", subject="serving")
