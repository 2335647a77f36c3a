"""init: embed the gallery, build its index and create a store."""

from __future__ import annotations

from compatctl.migration.first_store import InitResult
from compatctl.migration.first_store import embed_first_gallery as init

__all__ = ["InitResult", "init"]
