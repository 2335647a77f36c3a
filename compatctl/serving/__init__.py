"""Serving a store over HTTP: the extra ``serve``.

Modules, lowest first: batching (queries of many requests in one pass), answer_log, metrics,
candidate (a model that is tried beside the one that serves), service (all of it, without HTTP),
http (FastAPI), server (uvicorn).
"""

from __future__ import annotations

from importlib import import_module

from compatctl.errors import InputError


def require_serving() -> None:
    """Refuse to go on without the libraries of the extra.

    Raises:
        InputError: one is not installed.
    """
    try:
        for name in ("fastapi", "prometheus_client", "uvicorn"):
            import_module(name)
    except ImportError as error:
        raise InputError(
            f"serving needs the extra serve: {error}", tip="pip install 'compatctl[serve]'"
        ) from None
