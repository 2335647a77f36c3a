"""IAM-CL2R: a model fine-tuned task after task, and twice replaced by a better one from elsewhere.

Sources: CVPR 2024 (arXiv 2405.02581); TPAMI 2026 (arXiv 2606.12488); repository miccunifi/iamcl2r,
``src/iamcl2r/main.py``, ``train.py``, ``eval.py``, ``models/__init__.py`` and ``dataset/`` beside
them. Loss, simplex, search and summary are the product's own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.common.sequence_data import Images, Material, Test, tasks
from benchmarks.common.sequence_methods import Method, Settings
from compatctl.core.nearest import exact_search
from compatctl.core.retrieval import evaluate
from compatctl.core.simplex import simplex
from compatctl.errors import InputError
from compatctl.recipe import Augmentation
from compatctl.train.losses import total_loss
from compatctl.train.network import ImageNetwork, Network, backbone_taps, unit

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceSetup:
    """What every method of one seed starts from."""

    material: Material
    settings: Settings
    build: Callable[[], nn.Module]
    """A backbone with random weights"""
    seed: int
    device: torch.device


def replacements(count: int) -> tuple[int, int]:
    """Tasks, from 0, that begin with another model: 2 and 4 of 7, 10 and 20 of 31."""
    return count // 3, 2 * count // 3


def vertices(K: int, elsewhere: int, local: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Vertices of the classes elsewhere, from the table's start, and of the local, from its end.

    Raises:
        InputError: they would share one.
    """
    if elsewhere + local > K:
        raise InputError(
            f"{elsewhere} classes elsewhere and {local} here: {K} vertices are too few"
        )
    return np.arange(elsewhere), K - 1 - np.arange(local)


def untrained(setup: SequenceSetup, stage: int, *, fixed: bool) -> Network:
    """The network of a pre-training with its first weights, which (seed, stage) draw."""
    torch.manual_seed(1000 * setup.seed + stage)
    backbone, spec = setup.build(), setup.material.spec
    head: nn.Module = nn.Identity()
    if fixed:
        width = backbone_taps(backbone, "forward", spec, None)[1]
        head = nn.Linear(width, setup.settings.K - 1, bias=False)
    return ImageNetwork(backbone, "forward", head, spec).to(setup.device).eval()


def pretrained(setup: SequenceSetup, stage: int, *, fixed: bool) -> Network:
    """A model "from elsewhere": trained from random weights on classes that are not local.

    With ``fixed``, its classifier is the d-Simplex, and its classes own the first vertices.
    """
    given, images = setup.settings, setup.material.elsewhere[stage]
    classes = int(images.labels.max()) + 1
    own, _ = vertices(given.K, classes, setup.material.classes)
    network = untrained(setup, stage, fixed=fixed)
    width = backbone_taps(network.backbone, "forward", setup.material.spec, None)[1]
    rows = _simplex(setup) if fixed else _grown(None, classes, width, setup.device)
    epochs, steps = given.elsewhere_epochs[stage], max(1, len(images.labels) // given.batch)
    weights = [*network.parameters(), *([] if fixed else [rows])]
    optimiser = torch.optim.AdamW(weights, lr=given.elsewhere_lr, weight_decay=0.05)
    codes = torch.from_numpy(own if fixed else np.arange(classes)).to(setup.device)
    network.train()
    for epoch in range(epochs):
        rng = np.random.default_rng((setup.seed, 7, stage, epoch))
        order = rng.permutation(len(images.labels))
        for at, chosen in enumerate(np.array_split(order, steps)):
            _set_rate(optimiser, given.elsewhere_lr, 0.0, (epoch + at / steps) / epochs)
            pixels, labels = _batch(setup, images, chosen, rng)
            z = network.project(network.features(pixels))
            _step(optimiser, functional.cross_entropy(z @ rows.T, codes[labels]))
    return network.eval()


def walk(
    setup: SequenceSetup,
    method: Method,
    count: int,
    base: Sequence[Network],
    report_progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, NDArray[np.float64]]:
    """M (T, T) of each test: hit@1 of queries of version i on the gallery of version j <= i.

    ``base``: the first model and its replacements. ``report_progress`` is called after each task.
    """
    order = tasks(setup.material.classes, setup.material.first, count)
    starts = dict(zip((0, *replacements(count)), base, strict=True))
    matrices = {name: np.zeros((count, count)) for name in setup.material.tests}
    galleries: dict[str, list[Floats]] = {name: [] for name in setup.material.tests}
    nothing = _no_images(setup.material.local)
    state = _State(network=base[0], deployed=base[0], rows=None, memory=nothing)
    for task in range(count):
        if task in starts:
            state = replace(state, network=starts[task], fresh=True)
        state = _fine_tuned(setup, method, state, order[: task + 1])
        for name, test in setup.material.tests.items():
            galleries[name].append(templates(setup, state.network, test.gallery))
            queries = embedded(setup, state.network, test.queries)
            for j, gallery in enumerate(galleries[name]):
                matrices[name][task, j] = found(queries, gallery, test)
        report_progress(task + 1, count)
    return matrices


@dataclass(frozen=True, kw_only=True, eq=False)
class _State:
    """Before a task: where it begins, what is deployed, its classifier where that learns, and what
    is rehearsed."""

    network: Network
    deployed: Network
    rows: Tensor | None
    memory: Images
    fresh: bool = False
    """The model came from elsewhere and has no classifier for the local classes yet"""


def _fine_tuned(
    setup: SequenceSetup, method: Method, state: _State, order: Sequence[range]
) -> _State:
    """The state after one more task, the last of ``order``; what is random is of (seed, task)."""
    given, task = setup.settings, len(order) - 1
    fresh = setup.material.local.of(order[-1])
    torch.manual_seed(1000 * setup.seed + 100 + task)
    network = copy.deepcopy(state.network)
    past = copy.deepcopy(state.deployed if method.deployed else state.network).eval()
    rows, codes = _classifier(setup, method, state, network, order[-1].stop)
    if method.means:
        both = Images(
            pixels=np.concatenate([state.memory.pixels, fresh.pixels]),
            labels=np.concatenate([state.memory.labels, fresh.labels]),
        )
        rows = torch.from_numpy(templates(setup, past, both)).to(setup.device)
        codes = torch.arange(len(rows), device=setup.device)
    weight = given.weight if method.weight is None else method.weight
    optimiser = _optimiser(given, network, rows)
    steps = max(1, (len(fresh.labels) + len(state.memory.labels)) // given.batch)
    network.train()
    for epoch in range(given.epochs):
        rng = np.random.default_rng((setup.seed, task, epoch))
        _set_rate(optimiser, given.lr, given.least_lr, epoch / given.epochs)
        for pixels, labels in _batches(setup, fresh, state.memory, steps, rng):
            z = network.project(network.features(pixels))
            old = None
            if method.contrast:
                with torch.no_grad():
                    old = past(pixels)
            loss = total_loss(
                z=z, labels=codes[labels], targets=codes[labels], rows=rows, old=old,
                mu=method.mu or given.mu, form=method.form, scale=method.scale,
                weight=weight if method.contrast else 1.0,
            )  # fmt: skip
            if method.influence and state.rows is not None:
                known = labels < len(state.rows)
                loss = loss + functional.cross_entropy(z[known] @ state.rows.T, labels[known])
            _step(optimiser, loss)
    return _State(
        network=network.eval(),
        deployed=network,
        rows=None if method.fixed else rows.detach(),
        memory=_remembered(setup, fresh, state.memory, task),
    )


def _classifier(
    setup: SequenceSetup, method: Method, state: _State, network: Network, classes: int
) -> tuple[Tensor, Tensor]:
    """Rows, and the row of each local class.

    One that learns grows by the task's classes. After a replacement it begins anew, as the authors
    drop the classifier of a model that was downloaded.
    """
    if method.fixed:
        _, local = vertices(setup.settings.K, setup.material.others, setup.material.classes)
        return _simplex(setup), torch.from_numpy(local.copy()).to(setup.device)
    width = backbone_taps(network.backbone, "forward", setup.material.spec, None)[1]
    before = None if state.fresh else state.rows
    return (
        _grown(before, classes, width, setup.device),
        torch.arange(classes, device=setup.device),
    )


def _batches(
    setup: SequenceSetup, fresh: Images, memory: Images, steps: int, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch: half of each batch is rehearsed, the other half new, both drawn at random."""
    size = setup.settings.batch
    if not len(memory.labels):
        for chosen in np.array_split(rng.permutation(len(fresh.labels)), steps):
            yield _batch(setup, fresh, chosen, rng)
        return
    for _ in range(steps):
        parts = []
        for images in (memory, fresh):
            n = len(images.labels)
            chosen = rng.choice(n, size // 2, replace=n <= size // 2)
            parts.append(_batch(setup, images, chosen, rng))
        pixels, labels = zip(*parts, strict=True)
        yield torch.cat(pixels), torch.cat(labels)


def _batch(
    setup: SequenceSetup, images: Images, chosen: NDArray[np.int64], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """(B, 32, 32, 3) float32 on the scale 0 .. 255, changed at random, and (B,) labels."""
    pixels = torch.from_numpy(images.pixels[chosen]).to(setup.device).float()
    labels = torch.from_numpy(images.labels[chosen]).to(setup.device)
    return changed(pixels, setup.material.augmentation, rng), labels


def changed(images: Tensor, change: Augmentation, rng: np.random.Generator) -> Tensor:
    """(B, H, W, C) images, each turned, shifted and mirrored at random; their edge fills in."""
    n = len(images)
    turn = np.deg2rad(rng.uniform(-change.rotate, change.rotate, n))
    shift = rng.uniform(-2.0 * change.shift, 2.0 * change.shift, (2, n))
    mirror = np.where(change.flip & (rng.random(n) < 0.5), -1.0, 1.0)
    rows = [
        [mirror * np.cos(turn), -np.sin(turn), shift[0]],
        [mirror * np.sin(turn), np.cos(turn), shift[1]],
    ]
    theta = torch.from_numpy(np.stack([np.stack(row, 1) for row in rows], 1)).float()
    planes = images.permute(0, 3, 1, 2)
    grid = functional.affine_grid(theta.to(images.device), list(planes.shape), align_corners=False)
    out = functional.grid_sample(planes, grid, padding_mode="border", align_corners=False)
    return out.permute(0, 2, 3, 1)


def _remembered(setup: SequenceSetup, fresh: Images, memory: Images, task: int) -> Images:
    """The memory with some images of each new class, which stay."""
    rng = np.random.default_rng((setup.seed, 8, task))
    rows = [np.sort(rng.permutation(np.flatnonzero(fresh.labels == label))[: setup.settings.memory])
            for label in np.unique(fresh.labels)]  # fmt: skip
    chosen = np.concatenate(rows)
    return Images(
        pixels=np.concatenate([memory.pixels, fresh.pixels[chosen]]),
        labels=np.concatenate([memory.labels, fresh.labels[chosen]]),
    )


def _no_images(like: Images) -> Images:
    return Images(pixels=like.pixels[:0], labels=like.labels[:0])


def _simplex(setup: SequenceSetup) -> Tensor:
    return torch.from_numpy(simplex(setup.settings.K)).float().to(setup.device)


def _grown(rows: Tensor | None, classes: int, width: int, device: torch.device) -> Tensor:
    """(classes, width) rows that learn: the known ones, then torch's own first weights."""
    known = torch.zeros(0, width, device=device) if rows is None else rows
    fresh = torch.empty(classes - len(known), width)
    if len(fresh):
        nn.init.kaiming_uniform_(fresh, a=math.sqrt(5))
    return nn.Parameter(torch.cat([known, fresh.to(device)]))


def _optimiser(given: Settings, network: Network, rows: Tensor) -> torch.optim.Optimizer:
    """SGD; vectors (biases, normalisation) do not decay."""
    weights = [*network.parameters(), *([rows] if rows.requires_grad else [])]
    groups = [
        {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
        {
            "params": [weight for weight in weights if weight.ndim >= 2],
            "weight_decay": given.weight_decay,
        },
    ]
    return torch.optim.SGD(groups, lr=given.lr, momentum=given.momentum)


def _set_rate(optimiser: torch.optim.Optimizer, first: float, last: float, done: float) -> None:
    """Half a cosine from the first rate to the last."""
    for group in optimiser.param_groups:
        group["lr"] = last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * done))


def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    torch.autograd.backward(loss)
    optimiser.step()


def embedded(setup: SequenceSetup, network: Network, images: Images) -> Floats:
    """(N, D) float32 unit rows of unchanged images."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(images.labels), 256):
            pixels = torch.from_numpy(images.pixels[start : start + 256]).to(setup.device)
            parts.append(network(pixels).cpu().numpy())
    return np.concatenate(parts)


def templates(setup: SequenceSetup, network: Network, images: Images) -> Floats:
    """(C, D) unit rows: the mean feature of each class, in the order of the labels."""
    features = embedded(setup, network, images)
    _, at = np.unique(images.labels, return_inverse=True)
    sums = np.zeros((int(at.max()) + 1, features.shape[1]), np.float32)
    np.add.at(sums, at, features)
    return unit(torch.from_numpy(sums)).numpy()


def found(queries: Floats, gallery: Floats, test: Test) -> float:
    """hit@1 of queries (Q, D) among the templates (C, D) of as many classes as are searched."""
    labels, C = test.queries.labels, len(gallery)
    ways = test.ways or C
    hits = 0
    for start in range(0, C - C % ways, ways):
        own = (labels >= start) & (labels < start + ways)
        near = exact_search(queries[own], gallery[start : start + ways], 1)
        result = evaluate(near, labels[own] - start, np.arange(ways), ks=(1,), map_k=1)
        hits += int(result.hit1.sum())
    return hits / int((labels < C - C % ways).sum())
