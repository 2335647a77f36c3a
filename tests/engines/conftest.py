"""Servers that the tests of engines run against: real ones, whose absence is a failure."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from s3_kit import S3Server, s3_server


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server that speaks S3, for the whole session."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server
