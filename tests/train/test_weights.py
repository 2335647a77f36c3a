"""Base checkpoints: wrappings, prefixes, shards, what is reported and what is refused."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
import train_kit as kit
from safetensors.torch import save_file

from compatctl.errors import InputError
from compatctl.notices import collected
from compatctl.recipe import FACTORIES, Backbone, InputSpec
from compatctl.train.factory import make_backbone
from compatctl.train.weights import load_base, read_tensors


def _spec(factory: str, method: str = "extract", **args: object) -> Backbone:
    size = InputSpec(height=16, width=16)
    return Backbone(
        factory=factory,
        args=dict(args),
        method=method,
        input=size,
        factories=("train_kit", *FACTORIES),
    )


@pytest.mark.parametrize("key", [None, "state_dict", "net", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "module.encoder."])
def test_wrappings_and_prefixes_are_removed(tmp_path: Path, key: str | None, prefix: str) -> None:
    """A state dict loads whole, with a prefix and inside a mapping with other entries."""
    source = kit.Small()
    state = {prefix + name: value for name, value in source.state_dict().items()}
    path = tmp_path / "new.ckpt"
    torch.save({key: state, "epoch": 3} if key else state, path)
    target = kit.Small()
    match, _ = load_base(target, path)
    assert (match.missing, match.unexpected, match.prefix) == ((), (), prefix)
    assert match.matched == len(state)
    assert torch.equal(target.two.weight, source.two.weight)


def test_safetensors_load_and_differences_are_reported(tmp_path: Path) -> None:
    """A missing tensor keeps its initial values, an extra one is listed."""
    source = kit.Small()
    state = {name: value for name, value in source.state_dict().items() if name != "one.bias"}
    save_file({**state, "old_head.weight": torch.zeros(3)}, tmp_path / "new.safetensors")
    target = kit.Small()
    initial = target.one.bias.clone()
    with collected() as notices:
        match, _ = load_base(target, tmp_path / "new.safetensors")
    assert match.missing == ("one.bias",)
    assert match.unexpected == ("old_head.weight",)
    assert [(entry["kind"], entry["names"]) for entry in notices.entries()] == [
        ("missing-weights", ["one.bias"]),
        ("unread-weights", ["old_head.weight"]),
    ]
    assert torch.equal(target.one.bias, initial)
    assert torch.equal(target.one.weight, source.one.weight)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64", "float8_e4m3fn"])
def test_weights_of_any_precision_are_read(tmp_path: Path, kind: str) -> None:
    """Each value is the one that the file has."""
    state = {
        name: value.to(getattr(torch, kind)) if value.is_floating_point() else value
        for name, value in kit.Small().state_dict().items()
    }
    torch.save(state, tmp_path / "new.pt")
    network = kit.Small()
    with collected() as notices:
        load_base(network, tmp_path / "new.pt")
    assert notices.entries() == []
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name].to(value.dtype))


def test_quantised_weights_are_refused_by_name(tmp_path: Path) -> None:
    """Whole numbers are codes, and not values: nothing is loaded."""
    state = kit.Small().state_dict()
    state["two.weight"] = (state["two.weight"] * 100).to(torch.int8)
    torch.save({**state, "two.SCB": torch.ones(1)}, tmp_path / "int8.pt")
    network = kit.Small()
    before = network.two.weight.clone()
    with pytest.raises(InputError, match=r"no floating point numbers: two\.weight \(int8\)"):
        load_base(network, tmp_path / "int8.pt")
    assert torch.equal(network.two.weight, before)


class _Harm:
    """Unpickling it creates the folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("wrap", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, wrap: str) -> None:
    """The folder that the pickle creates does not exist afterwards."""
    harm = tmp_path / "harm"
    value = {"state_dict": kit.Small().state_dict(), "extra": _Harm(str(harm))}
    path = tmp_path / "new.ckpt"
    if wrap == "torch":
        torch.save(value, path)
    else:
        path.write_bytes(pickle.dumps(value))
    with pytest.raises(InputError, match=r"could run code|is not a checkpoint"):
        read_tensors(path)
    assert not harm.exists()
    pickle.loads(pickle.dumps(_Harm(str(harm))))
    assert harm.exists()


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    """Tensors of other shapes, and a file with few matching names, are errors."""
    torch.save(kit.Small(width=20).state_dict(), tmp_path / "wide.pt")
    with pytest.raises(InputError, match=r"another architecture.*one\.weight"):
        load_base(kit.Small(), tmp_path / "wide.pt")
    torch.save({"conv.weight": torch.zeros(3), "one.bias": torch.zeros(12)}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="has 1 of the backbone's"):
        load_base(kit.Small(), tmp_path / "x.pt")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, number: float) -> None:
    """One NaN or infinity is enough: it would spoil every embedding."""
    state = kit.Small().state_dict()
    state["one.weight"].view(-1)[-1] = number
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"1 tensors .*not finite: one\.weight"):
        load_base(kit.Small(), tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x08" * 64, None])
def test_files_that_are_no_checkpoint_are_refused(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    """Empty, broken and missing files raise InputError with the file's name."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        read_tensors(tmp_path / name)


def test_a_file_without_named_tensors_is_refused(tmp_path: Path) -> None:
    """A bare tensor is not a state dict."""
    torch.save(torch.zeros(3), tmp_path / "a.pt")
    with pytest.raises(InputError, match="no tensors by name"):
        read_tensors(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (_spec("no_such_module_here:Net"), "no_such_module_here"),
        (_spec("train_kit:Nothing"), "Nothing"),
        (_spec("train_kit"), "train_kit"),
        (_spec("train_kit:Small", depth=3), "depth"),
        (_spec("train_kit:SIZE"), "makes no network"),
        (_spec("numpy:zeros", shape=1), "makes no network"),
        (_spec("train_kit:Path"), "makes no network"),
        (_spec("builtins:exec", source="1"), "makes no network"),
        (_spec("subprocess:run", args=["true"]), "makes no network"),
        (_spec("torch.hub:load", repo_or_dir="a/b"), "makes no network"),
        (_spec("train_kit:Small", method="features"), "no method features"),
    ],
)
def test_a_bad_factory_is_an_input_error(spec: Backbone, says: str) -> None:
    """Unknown module or callable, wrong arguments, no network, no such method."""
    with pytest.raises(InputError, match=says):
        make_backbone(spec)


def test_a_compressed_checkpoint_is_refused(tmp_path: Path) -> None:
    """torch unpacks compressed parts of any size: 200 kB do not become 200 MB."""
    plain, packed = tmp_path / "plain.pt", tmp_path / "packed.pt"
    torch.save({"w": torch.zeros(50_000_000)}, plain)
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out,
    ):
        for entry in source.infolist():
            out.writestr(entry.filename, source.read(entry))
    assert packed.stat().st_size < 400_000
    with pytest.raises(InputError, match="its parts have"):
        read_tensors(packed)
    assert read_tensors(plain)["w"].shape == (50_000_000,)


def test_a_tensor_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    """A view of one value with a trillion elements, and a sparse tensor of one value."""
    expanded = torch.zeros(1).expand(10**12)
    sparse = torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.long), torch.ones(1), (10**9,))
    for tensor in (expanded, sparse):
        torch.save({"w": tensor}, tmp_path / "a.pt")
        with pytest.raises(InputError, match="larger than what the file has"):
            read_tensors(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "header",
    [
        b'{"w":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}',
        b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4000000000000]}}',
        b'{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        b'{"w":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}',
        b"{",
        b"[" * 5000,
    ],
)
def test_safetensors_with_a_false_header_are_refused(tmp_path: Path, header: bytes) -> None:
    """Shapes, types and offsets that do not fit the file."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(InputError, match=r"a\.safetensors"):
        read_tensors(path)
    path.write_bytes((2**63).to_bytes(8, "little") + header)
    with pytest.raises(InputError, match=r"a\.safetensors"):
        read_tensors(path)


def test_a_named_pipe_is_refused(tmp_path: Path) -> None:
    """Reading a pipe would block for ever."""
    for name in ("a.pt", "a.safetensors"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(InputError, match="regular"):
            read_tensors(tmp_path / name)


def _prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


def _two_states() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(kit.Small().state_dict())
    return states[0], states[1]


@pytest.mark.parametrize(
    "names",
    [
        ("student_backbone.", "teacher_backbone."),
        ("", "ema."),
        ("module.encoder_q.", "module.encoder_k."),
        ("state_dict/", "state_dict_ema/"),
        ("model/", "model_ema/"),
        ("ema/net/", "model/"),
    ],
)
def test_a_file_with_two_networks_needs_part(tmp_path: Path, names: tuple[str, str]) -> None:
    """The error lists both prefixes, and each is accepted as ``part``."""
    path = tmp_path / "two.pt"
    value: dict[str, object] = {}
    for name, state in zip(names, _two_states(), strict=True):
        *keys, prefix = name.split("/")
        mapping = value
        for key in keys:
            mapping = mapping.setdefault(key, {})  # type: ignore[assignment]
        mapping.update(_prefixed(prefix, state))
    torch.save(value, path)
    with pytest.raises(InputError, match="holds 2 networks") as refused:
        load_base(kit.Small(), path)
    main = {"state_dict/": "", "model/": ""}
    for name, state in zip(names, _two_states(), strict=True):
        part = main.get(name, name.replace("/", "."))
        assert repr(part) in refused.value.message
        network = kit.Small()
        match, _ = load_base(network, path, part=part)
        assert (match.prefix, match.missing) == (part, ())
        assert torch.equal(network.two.weight, state["two.weight"])


def test_a_copy_and_a_part_of_a_network_need_no_part(tmp_path: Path) -> None:
    """Two copies with equal values are one network; one layer of a backbone is none."""
    first, second = _two_states()
    same = {**_prefixed("student.", first), **_prefixed("teacher.", first)}
    torch.save(same, tmp_path / "same.pt")
    network = kit.Small()
    load_base(network, tmp_path / "same.pt")
    assert torch.equal(network.two.weight, first["two.weight"])
    part = {name: value for name, value in second.items() if name.startswith("one.")}
    torch.save({**first, **_prefixed("head.", part)}, tmp_path / "part.pt")
    assert load_base(kit.Small(), tmp_path / "part.pt")[0].prefix == ""


def test_a_base_below_least_share_is_refused(tmp_path: Path) -> None:
    """The share counts tensors and values, not batch counters; the error lists missing ones."""
    state, _ = _two_states()
    path = tmp_path / "some.pt"
    torch.save({k: v for k, v in state.items() if not k.startswith("unused")}, path)
    with pytest.raises(InputError, match=r"unused\.weight, unused\.bias"):
        load_base(kit.Small(), path)
    match, _ = load_base(kit.Small(), path, least_share=0.8)
    assert match.missing == ("unused.weight", "unused.bias")
    torch.save({k: v for k, v in state.items() if k != "two.weight"}, path)
    with pytest.raises(InputError, match=r"17% of their values.*two\.weight"):
        load_base(kit.Small(), path)
    torch.save({k: v for k, v in state.items() if not k.endswith("tracked")}, path)
    assert load_base(kit.Small(), path)[0].missing == ("norm.num_batches_tracked",)


def test_shards_are_read_together_or_not_at_all(tmp_path: Path) -> None:
    """Each shard stands for all of them; a missing one is named."""
    state, other = _two_states()
    names = list(state)
    files = [tmp_path / f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    for i, file in enumerate(files):
        save_file({name: state[name] for name in names[i::3]}, file)
    digests = set()
    for file in files:
        network = kit.Small()
        match, _ = load_base(network, file)
        digests.add(match.sha256)
        assert match.missing == ()
        assert all(torch.equal(network.state_dict()[name], state[name]) for name in names)
    assert len(digests) == 1
    save_file({names[0]: other[names[0]]}, files[1])
    with pytest.raises(InputError, match="in another shard too"):
        load_base(kit.Small(), files[0])
    files[1].unlink()
    for file in (files[0], files[2]):
        with pytest.raises(InputError, match=r"model-00002-of-00003\.safetensors is not beside"):
            load_base(kit.Small(), file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("{}")
    with pytest.raises(InputError, match="lists the files"):
        load_base(kit.Small(), index)
