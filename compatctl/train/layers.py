"""Which weights of a backbone train: none, all, those of its last blocks, or low-rank matrices.

Low-rank matrices beside linear layers: LoRA (Hu et al., ICLR 2022, arXiv 2106.09685), by the
library peft.
"""

from __future__ import annotations

from torch import nn

from compatctl.errors import InputError
from compatctl.libraries import require_library
from compatctl.recipe import Recipe


def prepare_layers(backbone: nn.Module, recipe: Recipe) -> None:
    """Let those weights train that the recipe says, and put low-rank matrices in for ``lora``.

    Raises:
        InputError: there are no blocks, fewer than ``layers``, or no linear layer for ``lora``; or
            peft is not installed.
    """
    backbone.requires_grad_(requires_grad=False)
    if recipe.train == "head":
        return
    blocks = backbone if recipe.layers is None else _last_blocks(backbone, recipe.layers)
    if recipe.train == "full":
        blocks.requires_grad_()
        return
    part = {id(module) for module in blocks.modules()}
    linear = [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and id(module) in part
    ]
    if not linear:
        raise InputError(
            "train: lora puts matrices beside linear layers, and the backbone has none there",
            tip="write train: full",
        )
    _add_lora(backbone, linear, recipe)


def trained_names(backbone: nn.Module) -> set[str]:
    """The names, in the backbone's state, of what training changes: weights that train, buffers."""
    weights = {name for name, value in backbone.named_parameters() if value.requires_grad}
    return weights | {name for name, _ in backbone.named_buffers()}


def merge_lora(backbone: nn.Module) -> None:
    """Add the low-rank matrices to the weights beside them, if there are any, and take them out."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(backbone.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, last = name.rpartition(".")
            setattr(backbone.get_submodule(parent), last, module.get_base_layer())


def _last_blocks(backbone: nn.Module, layers: int) -> nn.ModuleList:
    """The last modules of the backbone's longest list of modules of one class."""
    lists = [
        [*module.children()]
        for module in backbone.modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
    ]
    blocks = max(
        (found for found in lists if len({type(block) for block in found}) == 1),
        key=len,
        default=[],
    )
    if len(blocks) < layers:
        raise InputError(
            f"layers: {layers}, and the backbone has "
            + (f"{len(blocks)} blocks" if blocks else "no list of equal blocks"),
            tip="write layers: null, which trains all of it",
        )
    return nn.ModuleList(blocks[-layers:])


def _add_lora(backbone: nn.Module, linear: list[str], recipe: Recipe) -> None:
    require_library("peft", extra="lora", subject="train: lora")
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=recipe.lora.rank,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
        target_modules=linear,
    )
    inject_adapter_in_model(config, backbone)
