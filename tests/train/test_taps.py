"""Stage taps: found in networks of each kind, the same numbers as hooks by hand, and refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import train_kit as kit
from torch import Tensor, nn

from compatctl.errors import InputError
from compatctl.train import embed, export, train
from compatctl.train.network import ImageNetwork, Junction
from compatctl.train.taps import find_taps, pool, run_with_taps


class Residual(nn.Module):
    """Two convolutions and the input, added; activations are functions or change in place."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )
        self.past = nn.Conv2d(inputs, outputs, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, outputs, h, w) of (N, inputs, H, W)."""
        return torch.relu_(self.body(x) + self.past(x))


class Attending(nn.Module):
    """A block of a vision transformer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.layers = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) of (N, T, width)."""
        x = x + self.attention(x, x, x)[0]
        return x + self.layers(x)


class Tokens(nn.Module):
    """Patches, eight blocks in a list, and the first token."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 8, 8)
        self.blocks = nn.ModuleList(Attending(width) for _ in range(8))
        self.head = nn.Linear(width, 5)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 5) of (N, 3, H, W)."""
        x = self.patch(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


def residual_network() -> nn.Module:
    """A stem, then three stages of two blocks each, then the mean."""
    widths = [(4, 4, 1), (4, 4, 1), (4, 6, 2), (6, 6, 1), (6, 9, 2), (9, 9, 1)]
    stages = [nn.Sequential(*(Residual(*sizes) for sizes in widths[i : i + 2])) for i in (0, 2, 4)]
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()


def plain_network() -> nn.Module:
    """Convolution, ReLU and pooling, three times, and a linear layer."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 4), (4, 6), (6, 8)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(nn.Sequential(*layers), nn.Flatten(), nn.Linear(8 * 4, 7)).eval()


@pytest.mark.parametrize(
    ("network", "side", "names"),
    [
        (residual_network(), 16, ("1.1", "2.1")),
        (plain_network(), 16, ("0.1", "0.4", "0.7")),
        (Tokens().eval(), 16, ("patch", "blocks.1", "blocks.3", "blocks.5", "blocks.7")),
    ],
    ids=["residual", "plain", "tokens"],
)
def test_the_last_block_of_every_stage_is_found(
    network: nn.Module, side: int, names: tuple[str, ...]
) -> None:
    """The last stage of a network that ends in its mean is the final feature and is left out."""
    images = torch.rand(2, 3, side, side)
    assert find_taps(network, lambda: network(images)) == names


def test_the_stages_of_a_published_network_are_found() -> None:
    """EfficientNet-lite2: the stem and seven stages, 32 + 856 channels, and not the 1,280 last."""
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite2").eval()
    images = torch.rand(2, 3, 64, 64)

    def run() -> Tensor:
        return network.extract_features(images).mean((2, 3))

    names = find_taps(network, run)
    assert [name for name in names if name.startswith("_blocks")] == [
        f"_blocks.{i}" for i in (0, 3, 6, 10, 14, 19, 20)
    ]
    modules = [network.get_submodule(name) for name in names]
    with torch.no_grad():
        widths = [part.shape[1] for part in run_with_taps(modules, run)]
    assert widths == [1280, 32, 16, 24, 48, 88, 120, 208, 352]


def test_taps_are_the_means_of_the_stages() -> None:
    """Each tap is the mean of the module's output, computed here stage by stage."""
    network = residual_network()
    images = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        first = network[1](network[0](images))
        second = network[2](first)
        expected = [network(images), first.mean((2, 3)), second.mean((2, 3))]
        parts = run_with_taps([network[1], network[2]], lambda: network(images))
    assert all(torch.equal(part, value) for part, value in zip(parts, expected, strict=True))


def test_maps_with_channels_last_and_tokens_are_averaged_over_their_places() -> None:
    """The mean is over height and width wherever the channels are, and over tokens."""
    maps = torch.rand(2, 5, 4, 4)
    assert torch.allclose(pool(maps.permute(0, 2, 3, 1)), pool(maps))
    assert torch.equal(pool(maps), maps.mean((2, 3)))
    tokens = torch.rand(2, 7, 3)
    assert torch.equal(pool(tokens), tokens.mean(1))


@pytest.mark.parametrize(
    ("taps", "message"),
    [("[nowhere]", "no module nowhere"), ("[unused]", "runs once")],
)
def test_a_tap_that_is_not_there_or_does_not_run_is_refused(
    tmp_path: Path, taps: str, message: str
) -> None:
    """The message names the setting, and the tip what can be named."""
    data = kit.dataset(tmp_path, per_class=2)
    text = kit.RECIPE.replace("taps: null", f"taps: {taps}")
    with pytest.raises(InputError, match=message) as caught:
        train(
            recipe=kit.recipe(tmp_path, text),
            base=kit.base(tmp_path),
            data=data,
            reference=kit.gallery(data),
            work=tmp_path,
        )
    assert "backbone.taps" in str(caught.value)
    assert caught.value.tip


def test_the_exported_file_holds_the_taps(tmp_path: Path) -> None:
    """With taps and standardisation, ONNX Runtime computes what torch computes."""
    data = kit.dataset(tmp_path, per_class=4)
    text = kit.RECIPE.replace("taps: null", "taps: auto").replace("kind: linear", "kind: residual")
    trained = train(
        recipe=kit.recipe(tmp_path, text),
        base=kit.base(tmp_path),
        data=data,
        reference=kit.gallery(data),
        work=tmp_path,
    )
    assert trained.network.taps == ("norm",)
    assert trained.network.junction.center.shape == (24 + 12,)
    export(trained.network, tmp_path / "raw.onnx", 16, 16)
    session = onnxruntime.InferenceSession(tmp_path / "raw.onnx")
    images = kit.pixels(data)
    (embedding,) = session.run(["embedding"], {"image": images})
    assert np.abs(embedding - embed(trained.network, images)).max() < 1e-5


def test_standardised_features_have_mean_0_and_one_length(tmp_path: Path) -> None:
    """The mean is 0 and the mean square of a row 22^2; a constant feature becomes 0."""
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(5.0, rng.uniform(0.01, 9.0, 40), (500, 40))).float()
    features[:, 7] = 3.25
    junction = Junction(kit.recipe(tmp_path).junction, 40, 3)
    junction.standardise(features)
    x = (features - junction.center) * junction.scale
    assert torch.equal(x[:, 7], torch.zeros(500))
    assert x.mean(0).abs().max() < 1e-4
    assert float(x.square().sum(1).mean()) == pytest.approx(22.0**2 * 39 / 40, rel=0.01)


def test_a_residual_junction_is_the_sum_of_both_kinds(tmp_path: Path) -> None:
    """Its output is the linear map plus the two layers, computed here by hand."""
    recipe = kit.recipe(tmp_path, junction="junction: {kind: residual, hidden: 6, dropout: 0.5}")
    network = ImageNetwork(
        nn.Identity(), "forward", Junction(recipe.junction, 5, 3), recipe.backbone.input
    )
    x = torch.rand(4, 5)
    junction = network.eval().junction
    hidden = torch.relu(x @ junction.layers[0].weight.T + junction.layers[0].bias)
    expected = x @ junction.linear.weight.T + hidden @ junction.layers[3].weight.T
    assert torch.allclose(network.project(x), expected, atol=1e-6)
