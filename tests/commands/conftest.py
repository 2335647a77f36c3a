"""A project that several modules of commands begin with."""

from __future__ import annotations

import pytest
from shop_kit import Shop


@pytest.fixture
def deployed(shop: Shop) -> Shop:
    """The better model over the gallery of the noisy one."""
    result = shop.run("deploy", "--model", shop.path("new.onnx"), "--force", "--reason", "drill")
    assert result.code == 0, result.stderr
    return shop
