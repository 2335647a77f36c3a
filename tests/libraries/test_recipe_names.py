"""A recipe names an architecture of a library, if the project allows the library."""

from __future__ import annotations

import pytest

from compatctl.errors import InputError
from compatctl.recipe import FACTORIES, Backbone, InputSpec
from compatctl.train.factory import make_backbone


def backbone(factory: str, factories: tuple[str, ...] = FACTORIES) -> Backbone:
    """A recipe's backbone."""
    spec = InputSpec(height=32, width=32)
    return Backbone(factory=factory, input=spec, factories=factories)


def test_a_library_that_the_project_does_not_list_is_refused() -> None:
    """Before the library is imported, with the entry that would allow it."""
    with pytest.raises(InputError, match="makes no network that this project permits") as refused:
        make_backbone(backbone("timm:resnet18", ("torch.nn", "timms:x")))
    assert "'timm:resnet18' to factories" in refused.value.tip


def test_an_architecture_has_no_classifier_and_no_access_to_weights() -> None:
    """timm:NAME gives features; an argument that fetches weights is refused."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("timm")
    module = make_backbone(backbone("timm:resnet18"))
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 512)
    spec = InputSpec(height=32, width=32)
    for args in ({"pretrained": True}, {"checkpoint_path": "x.pt"}):
        with pytest.raises(InputError, match="fetches weights"):
            make_backbone(Backbone(factory="timm:resnet18", args=args, input=spec))
