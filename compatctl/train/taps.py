"""Stage taps: the pooled output of every stage of a backbone, beside its final feature.

The last layer of a backbone forgets what an earlier model saw; its stages keep more of it. A stage
is a run of blocks whose outputs have one shape. Blocks are found from one forward pass of two blank
images: a module that only passes its input through its children, one after the other, is opened;
a module that does anything else, such as adding a residual, is a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from compatctl.errors import InputError
from compatctl.printable import listed

TOKEN_STAGES = 4
"""Taps of a backbone of tokens, all blocks of which have one shape."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a module in a forward pass."""

    name: str
    module: nn.Module
    source: int
    """``id`` of the input tensor"""
    result: Tensor
    """Kept until the pass ends, so that no ``id`` is used twice"""


def pool(x: Tensor) -> Tensor:
    """(N, C) means of feature maps (N, C, h, w) or (N, h, w, C), or of tokens (N, T, C).

    Maps have their channels last where the last two sizes differ and the two before are equal.
    """
    if x.ndim == 3:
        return x.mean(1)
    channels_last = x.shape[2] != x.shape[3] and x.shape[1] == x.shape[2]
    return x.mean((1, 2)) if channels_last else x.mean((2, 3))


def find_taps(backbone: nn.Module, run: Callable[[], Tensor]) -> tuple[str, ...]:
    """Names of the modules that end a stage, in the order of their calls.

    Args:
        backbone: the network.
        run: passes images through the network and returns the (N, F) final feature.

    The last stage is left out if it gives maps as wide as the final feature, which is their mean.
    """
    calls, final = _trace(backbone, run)
    blocks = [calls[name] for name in _blocks(backbone, calls)]
    stages = [list(stage) for _, stage in groupby(blocks, key=lambda call: call.result.shape)]
    stages = [stage for stage in stages if _is_stage(stage, len(final))]
    if stages and _is_final(stages[-1][-1].result, final):
        stages.pop()
    taps: list[str] = []
    for stage in stages:
        count = min(TOKEN_STAGES, len(stage)) if stage[0].result.ndim == 3 else 1
        taps += [stage[(i + 1) * len(stage) // count - 1].name for i in range(count)]
    return tuple(taps)


def check_names(backbone: nn.Module, names: Sequence[str]) -> None:
    """Refuse names that no module of the backbone has.

    Raises:
        InputError: there is one.
    """
    modules = dict(backbone.named_modules())
    if unknown := [name for name in names if name not in modules]:
        raise InputError(
            f"backbone.taps: the backbone has no module {listed(unknown)}",
            tip=f"its top modules: {', '.join(name for name, _ in backbone.named_children())}",
        )


def run_with_taps(modules: Sequence[nn.Module], run: Callable[[], Tensor]) -> list[Tensor]:
    """The result of ``run``, then the pooled output of each module, in the order of the modules.

    Raises:
        InputError: a module did not run exactly once, or gave no map or tokens.
    """
    pooled: list[list[Tensor]] = [[] for _ in modules]

    def hook_of(results: list[Tensor]) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            x = _tensor(output)
            if x is not None and x.ndim in (3, 4):
                results.append(pool(x))  # now: a later module may change x in place

        return hook

    with ExitStack() as stack:
        for module, results in zip(modules, pooled, strict=True):
            stack.callback(module.register_forward_hook(hook_of(results)).remove)
        final = run()
    if any(len(results) != 1 for results in pooled):
        raise InputError(
            "backbone.taps: each must name a module that runs once for a batch and gives "
            "(N, C, h, w) or (N, T, C)",
            tip="name other modules, or write taps: auto",
        )
    return [final, *(results[0] for results in pooled)]


def _trace(backbone: nn.Module, run: Callable[[], Tensor]) -> tuple[dict[str, Call], Tensor]:
    """The calls of modules that ran once from tensor to tensor, in order, and the final feature."""
    calls: dict[str, list[Call | None]] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            call, x = None, _tensor(output)
            if x is not None and inputs and isinstance(inputs[0], Tensor):
                call = Call(name=name, module=module, source=id(inputs[0]), result=x)
                kept.append(inputs[0])
            calls.setdefault(name, []).append(call)

        return hook

    kept: list[Tensor] = []
    with ExitStack() as stack:
        for name, module in backbone.named_modules():
            if name:
                stack.callback(module.register_forward_hook(record(name)).remove)
        with torch.no_grad():
            final = run()
    once = {name: found[0] for name, found in calls.items() if len(found) == 1}
    return {name: call for name, call in once.items() if call is not None}, final


def _tensor(output: Any) -> Tensor | None:
    """A module's output, or the first of several."""
    first = output[0] if isinstance(output, tuple) and output else output
    return first if isinstance(first, Tensor) else None


def _blocks(backbone: nn.Module, calls: dict[str, Call]) -> Iterator[str]:
    """Names of the blocks, in the order of the backbone's children."""
    closed = {
        type(module)
        for name, module in backbone.named_modules()
        if name in calls and not _is_chain(name, module, calls)
    }

    def walk(name: str, module: nn.Module) -> Iterator[str]:
        opened = (
            name not in calls
            or isinstance(module, nn.Sequential)
            or type(module) not in closed
            or _holds_blocks(module, closed)
        )
        if opened and any(True for _ in module.children()):
            for key, child in module.named_children():
                yield from walk(f"{name}.{key}" if name else key, child)
        elif name in calls:
            yield name

    order = {name: i for i, name in enumerate(calls)}
    yield from sorted(walk("", backbone), key=order.__getitem__)


def _holds_blocks(module: nn.Module, closed: set[type[nn.Module]]) -> bool:
    """Whether the module contains a list with two or more blocks of one kind."""
    for part in module.modules():
        if isinstance(part, nn.ModuleList | nn.Sequential):
            kinds = [type(child) for child in part if any(True for _ in child.children())]
            if any(kinds.count(kind) > 1 for kind in closed.intersection(kinds)):
                return True
    return False


def _is_chain(name: str, module: nn.Module, calls: dict[str, Call]) -> bool:
    """Whether a call only passed its input through the module's children, one after the other."""
    children = [f"{name}.{key}" for key, _ in module.named_children()]
    if not children:
        return False
    tensor = calls[name].source
    for child in children:
        if child not in calls or calls[child].source != tensor:
            return False
        tensor = id(calls[child].result)
    return tensor == id(calls[name].result)


def _is_stage(stage: Sequence[Call], n_images: int) -> bool:
    """Whether blocks of one shape give maps or tokens of each image, and have parameters."""
    shape = stage[0].result.shape
    has_parameters = any(True for call in stage for _ in call.module.parameters())
    return len(shape) in (3, 4) and shape[0] == n_images and has_parameters


def _is_final(result: Tensor, final: Tensor) -> bool:
    return result.ndim == 4 and pool(result).shape == final.shape
