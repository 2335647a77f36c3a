"""Steps whose backbone pass is divided: gradients and results of the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import train_kit as kit
from shop_kit import Shop
from torch import Tensor, nn

from compatctl.errors import CompatError, InputError, PeerError, UsageError
from compatctl.processes import ALONE, Launch, Processes
from compatctl.recipe import Recipe
from compatctl.train import losses, train
from compatctl.train.divided import Part, divided_features, part_rows

CONTRAST = "objective: {frame: prototypes, lambda: 0.3, mu: 8.0, scale: 16.0}"
JUNCTION = "junction: {kind: residual, hidden: 16, dropout: 0.5}"
TOLERANCE = 1e-5


def _recipe(folder: Path, micro: str, train: str = "full", **more: str) -> Recipe:
    optimiser = f"optimiser: {{epochs: 4, batch_size: 16, lr: 0.02, backbone_lr: 0.002, {micro}}}"
    lines = {"objective": CONTRAST, "junction": JUNCTION, "optimiser": optimiser, **more}
    return kit.recipe(folder, train=f"train: {train}", **lines)


def _trained(folder: Path, recipe: Recipe) -> dict[str, Tensor]:
    data = kit.dataset(folder)
    given = {"base": kit.base(folder), "data": data, "reference": kit.gallery(data)}
    result = train(recipe=recipe, work=folder, **given)
    return dict(result.network.state_dict())


@pytest.mark.parametrize("micro", [1, 5, 16])
def test_micro_batches_give_the_network_of_the_whole_batch(tmp_path: Path, micro: int) -> None:
    """Weights after four epochs, with the contrast, the cross-entropy and dropout in the junction,
    from parts of 1, of 5 (16 is no multiple), and of all."""
    whole = _trained(tmp_path, _recipe(tmp_path, "micro_batch: null"))
    divided = _trained(tmp_path, _recipe(tmp_path, f"micro_batch: {micro}"))
    before = kit.Small().state_dict()
    assert any(not torch.equal(whole[f"backbone.{key}"], before[key]) for key in before)
    for key, value in whole.items():
        assert torch.allclose(divided[key].double(), value.double(), atol=TOLERANCE), key


def test_the_gradient_is_that_of_the_explicit_sum_over_pairs() -> None:
    """Against autograd through one graph, with the contrast written as two loops over items."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).double()
    batch = np.random.default_rng(1).standard_normal((11, 6))
    old = torch.nn.functional.normalize(torch.randn(11, 5, dtype=torch.float64))
    labels, mu = torch.arange(11) % 4, 3.0
    weights = list(backbone.parameters())

    new = torch.nn.functional.normalize(backbone(torch.from_numpy(batch)))
    total = torch.zeros((), dtype=torch.float64)
    for i in range(11):
        rivals = [j for j in range(11) if j == i or labels[j] != labels[i]]
        total = total - torch.log(
            torch.exp(mu * old[i] @ new[i]) / sum(torch.exp(mu * old[i] @ new[j]) for j in rivals)
        )
    expected = torch.autograd.grad(total / 11, weights)

    parts = [
        Part(rows=rows, batch=batch[rows], seed=0) for rows in part_rows(ALONE, 11, micro_batch=3)
    ]
    assert [part.rows.stop - part.rows.start for part in parts] == [3, 3, 3, 2]
    features = divided_features(
        parts,
        lambda part: backbone(torch.from_numpy(part)),
        ALONE,
        shape=(11, 5),
        weights=weights,
    )
    unit = torch.nn.functional.normalize(features.values)
    loss = losses.contrastive_loss(unit, old.float(), labels, mu, "infonce")
    torch.autograd.backward(loss)
    features.propagate()
    for weight, gradient in zip(weights, expected, strict=True):
        assert weight.grad is not None
        assert torch.allclose(weight.grad, gradient, atol=1e-6)


def test_random_layers_of_the_backbone_draw_the_same_in_both_passes() -> None:
    """With dropout in the backbone, the gradient is that of the features which the loss saw."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(6, 40), nn.Dropout(0.5))
    batch = np.ones((4, 6), np.float32)
    parts = [Part(rows=slice(i, i + 2), batch=batch[i : i + 2], seed=i) for i in (0, 2)]
    weights = list(backbone.parameters())
    state = torch.random.get_rng_state()
    features = divided_features(
        parts,
        lambda part: backbone(torch.from_numpy(part)),
        ALONE,
        shape=(4, 40),
        weights=weights,
    )
    torch.autograd.backward(features.values.sum())
    features.propagate()
    kept = (features.values != 0).float().sum(0) * 2.0
    assert torch.equal(weights[1].grad, kept)
    assert len(torch.unique(features.values != 0, dim=0)) > 1
    assert torch.equal(torch.random.get_rng_state(), state), "the junction's dropout is untouched"


def test_bfloat16_trains_on_a_cpu_and_leaves_float32_weights(tmp_path: Path) -> None:
    """``amp: bf16`` changes the steps, and the same seed gives the same weights; divided too."""
    text = "amp: bf16"
    exact = _trained(tmp_path, _recipe(tmp_path, "micro_batch: null"))
    rough = _trained(tmp_path, _recipe(tmp_path, "micro_batch: null", amp=text))
    again = _trained(tmp_path, _recipe(tmp_path, "micro_batch: null", amp=text))
    divided = _trained(tmp_path, _recipe(tmp_path, "micro_batch: 5", amp=text))
    key = "backbone.one.weight"
    assert rough[key].dtype == torch.float32
    assert torch.equal(rough[key], again[key])
    assert not torch.equal(rough[key], exact[key])
    assert torch.allclose(rough[key], exact[key], atol=0.02)
    assert torch.allclose(divided[key], exact[key], atol=0.02)


@pytest.mark.parametrize(
    ("micro", "train_what", "message"),
    [
        ("micro_batch: 4", "head", "train: head has none"),
        ("micro_batch: 4, frozen_norm: false", "full", "BatchNorm statistics of the whole batch"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    tmp_path: Path, micro: str, train_what: str, message: str
) -> None:
    """A frozen backbone, and BatchNorm with statistics of the batch."""
    with pytest.raises(InputError, match=message):
        _trained(tmp_path, _recipe(tmp_path, micro, train=train_what))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10, 11, 12])
def test_shares_are_contiguous_and_cover_everything(count: int) -> None:
    """Three processes; where there is less than one item for each, the last ones have none."""
    shares = [Processes(rank=rank, size=3).share(count) for rank in range(3)]
    assert [i for share in shares for i in range(share.start, share.stop)] == list(range(count))
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def test_an_error_of_one_process_is_raised_in_all(tmp_path: Path) -> None:
    """Three threads with one exchange; the second fails while the others wait a step deeper."""
    barrier, board = threading.Barrier(3), [None, None, None]
    errors: dict[int, BaseException] = {}

    def exchange_of(rank: int) -> object:
        def exchange(value: object) -> list[object]:
            board[rank] = value
            barrier.wait(timeout=20)
            values = list(board)
            barrier.wait(timeout=20)
            return values

        return exchange

    def work(rank: int) -> None:
        one = Processes(rank=rank, size=3, exchange=exchange_of(rank))  # type: ignore[arg-type]

        def prepare() -> int:
            if rank == 1:
                raise InputError("no such image", tip="find it")
            return one.agree(lambda: 7)

        try:
            one.agree(prepare)
        except CompatError as error:
            errors[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(errors) == [0, 1, 2]
    leader = errors[0]
    assert isinstance(leader, InputError)
    assert (leader.message, leader.tip) == ("process 1: no such image", "find it")
    for rank in (1, 2):
        assert isinstance(errors[rank], PeerError)
        assert errors[rank].exit_code == InputError.exit_code


def test_only_torchrun_makes_a_process_one_of_several() -> None:
    """Variables that clusters set for other programs do not count."""
    several = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    assert Launch.current(several) is None
    launched = {**several, "TORCHELASTIC_RUN_ID": "x"}
    assert Launch.current(launched) == Launch(rank=1, size=4, local_rank=1)
    assert Launch.current({**launched, "WORLD_SIZE": "1"}) is None


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
def test_a_part_of_what_torchrun_sets_is_refused_by_name(name: str) -> None:
    """As in a program that a training started with some of its variables."""
    launched = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    for value in ("two", "", "²"):
        with pytest.raises(UsageError, match=f"{name} is {value or 'not set'}"):
            Launch.current({**launched, name: value})
    del launched[name]
    with pytest.raises(UsageError, match=f"{name} is not set"):
        Launch.current(launched)


def test_what_torchrun_sets_in_part_is_no_traceback(shop: Shop) -> None:
    """Neither of a command that runs in one process, nor where processes cannot meet."""
    shop.path("recipe.yaml").write_text("format: 1\n")
    started = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2"}
    met = {**started, "RANK": "0", "LOCAL_RANK": "0"}
    for more, words, said in (
        (started, ["status", "--json"], "RANK is not set"),
        (met, ["finetune", "--base", "none"], "MASTER_ADDR"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "compatctl", *words], env={**os.environ, **more},
            cwd=shop.folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
        assert "Traceback" not in done.stderr


GATHER = """
import sys, torch
from torch import nn
from compatctl.train import process_group as group
with group.join() as processes:
    for total in (1, 2, 3, 7):
        share = processes.share(total)
        whole = torch.arange(total * 2.0).reshape(total, 2)
        assert torch.equal(group.gather(processes, whole[share], total), whole), total
    shares = [processes.share(5, rank) for rank in range(3)]
    table = torch.zeros(5, 2)
    table[shares[processes.rank]] = float(processes.rank)
    group.fill(processes, table, shares)
    assert table[:, 0].tolist() == [0.0, 0.0, 1.0, 1.0, 2.0]
    weights = [nn.Parameter(torch.zeros(3)) for _ in range(3)]
    weights[0].grad = torch.full((3,), 1.0 + processes.rank)
    if processes.rank == 2:
        weights[1].grad = torch.ones(3)
    group.BUCKET = 4
    group.sum_gradients(processes, weights)
    assert weights[0].grad.tolist() == [6.0] * 3 and weights[1].grad.tolist() == [1.0] * 3
    assert weights[2].grad is None
    assert processes.from_leader(lambda: processes.rank) == 0
    group.require_same(processes, "key")
    if sys.argv[1] == "differ":
        group.require_same(processes, str(processes.rank // 2))
"""


@pytest.mark.parametrize("mode", ["same", "differ"])
def test_three_processes_gather_and_add_up(tmp_path: Path, mode: str) -> None:
    """Shares with and without items, weights without gradient, and data that differ."""
    script = tmp_path / "script.py"
    script.write_text(GATHER)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "3", str(script), mode),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode == 0) == (mode == "same"), done.stderr
    if mode == "differ":
        assert "process 2 has another recipe, base, data" in done.stderr
