"""Training state goes to the disk and comes back the same, bit for bit."""

from __future__ import annotations

import json
import math
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trivium.artifacts.tensors import load_state, read_tensors, save_state, write_tensors
from trivium.errors import ArtifactDamaged, ArtifactError

DTYPES = [
    "bool", "uint8", "int8", "uint16", "int16", "float16", "bfloat16", "uint32", "int32", "float32", "uint64", "int64",
    "float64", "complex64", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu",
]  # fmt: skip


def round_trip(folder: Path, state: Any) -> Any:
    save_state(folder, "state", state)
    return load_state(folder, "state")


def same(one: Any, other: Any) -> bool:
    """Equal in type, order and every bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and bits(one) == bits(other)
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack(">d", one) == struct.pack(">d", other)
    if isinstance(one, dict):
        return list(map(repr, one)) == list(map(repr, other)) and all(map(same, one.values(), other.values()))
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**80), 2**80), st.floats(allow_nan=True, width=64), st.text(max_size=8)
)
keys = st.one_of(st.text(max_size=4), st.integers(-3, 3), st.none(), st.booleans(), st.sampled_from(["$", "/", "a/b"]))
states = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(keys, inner, max_size=4),
        st.lists(st.integers(0, 3), max_size=3).map(lambda shape: torch.arange(math.prod(shape)).reshape(shape) * 1.1),
    ),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(state=states)
def test_any_state_comes_back(state: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert same(state, round_trip(tmp_path_factory.getbasetemp(), state))


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype(name: str, tmp_path: Path) -> None:
    raw = torch.randint(0, 2 if name == "bool" else 256, (48,), dtype=torch.uint8)
    tensor = raw.view(getattr(torch, name))
    state = {"vector": tensor, "scalar": tensor[0], "empty": tensor[:0].reshape(0, 3)}
    assert same(state, round_trip(tmp_path, state))


def test_odd_memory(tmp_path: Path) -> None:
    base = torch.randn(6, 8)
    state = {
        "transposed": base.t(),
        "strided": base[::2, 1::3],
        "expanded": torch.tensor([1.5]).expand(4, 3),
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "negative": torch.randn(3, dtype=torch.complex64).conj().imag,
        "parameter": torch.nn.Parameter(torch.randn(2)).detach(),
        "needs grad": torch.randn(2, requires_grad=True).detach(),
        "channels last": torch.randn(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
    }
    assert same(state, round_trip(tmp_path, state))


def test_special_floats_keep_their_bits(tmp_path: Path) -> None:
    payload = struct.unpack(">d", bytes.fromhex("fff8000000000123"))[0]
    state = [math.nan, payload, math.inf, -math.inf, -0.0, 5e-324, 0.1 + 0.2, 1.7976931348623157e308]
    assert same(state, round_trip(tmp_path, state))
    weights = torch.tensor([math.nan, math.inf, -0.0, 1e-45])
    assert same(weights, round_trip(tmp_path, weights))


def test_one_tensor_in_two_places_is_stored_once_and_comes_back_as_one(tmp_path: Path) -> None:
    weight = torch.randn(100, 100)
    state = {"embed": weight, "head": weight, "view": weight[:50], "empty": [torch.empty(0), torch.empty(0, 2)]}
    back = round_trip(tmp_path, state)
    assert same(state, back)
    assert back["embed"] is back["head"]
    assert (tmp_path / "state.safetensors").stat().st_size < 1.6 * 4 * weight.numel()
    back["view"].zero_()
    assert bool(back["embed"].any()), "overlapping views come back apart"


def test_optimizer_state_continues_exactly(tmp_path: Path) -> None:
    def model_and_optimizer() -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 4)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def step(model: torch.nn.Linear, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(torch.ones(2, 4)).pow(2).sum().backward()
        optimizer.step()

    one, first = model_and_optimizer()
    step(one, first)
    save_state(tmp_path, "model", one.state_dict())
    save_state(tmp_path, "optimizer", first.state_dict())
    two, second = model_and_optimizer()
    two.load_state_dict(load_state(tmp_path, "model"))
    second.load_state_dict(load_state(tmp_path, "optimizer"))
    for _ in range(3):
        step(one, first)
        step(two, second)
    assert same(dict(one.state_dict()), dict(two.state_dict()))


def test_plain_kinds_stand_for_their_subclasses(tmp_path: Path) -> None:
    back = round_trip(tmp_path, OrderedDict(size=torch.Size([2, 3]), parameter=torch.nn.Parameter(torch.ones(2))))
    assert type(back) is dict
    assert back["size"] == (2, 3)
    assert type(back["parameter"]) is torch.Tensor


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (object(), "builtins.object"),
        (b"bytes", "builtins.bytes"),
        ({1, 2}, "builtins.set"),
        (1j, "builtins.complex"),
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.empty(2, device="meta"), "without data"),
        (torch.zeros(2, dtype=torch.complex128), "complex128"),
        ({(object(),): 1}, "object"),
        ({b"k": 1}, "key of type bytes"),
    ],
)
def test_other_values_are_refused_with_their_place(value: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        save_state(tmp_path, "state", {"optimizer": [0, {"extra": value}]})
    assert said in str(caught.value)
    assert "/optimizer/1/extra" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_names_of_tensors_say_where_they_stood(tmp_path: Path) -> None:
    state = {"state": {0: {"exp_avg": torch.ones(2)}}, "a": {"b": torch.ones(1)}, "a/b": torch.ones(3)}
    assert same(state, round_trip(tmp_path, state))
    names = set(load_file(tmp_path / "state.safetensors"))
    assert "state/0/exp_avg" in names
    assert len(names) == 3
    reserved = {"__metadata__": torch.ones(1)}
    assert same(reserved, round_trip(tmp_path, reserved))


def test_files_are_those_of_the_safetensors_library(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3, 5), "a": torch.arange(3, dtype=torch.int8), "c": torch.randn(2).bfloat16()}
    write_tensors(tmp_path / "ours.safetensors", tensors, metadata={"format": "pt"})
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert same(load_file(tmp_path / "ours.safetensors"), load_file(tmp_path / "theirs.safetensors"))
    assert same(read_tensors(tmp_path / "theirs.safetensors"), read_tensors(tmp_path / "ours.safetensors"))
    with safe_open(tmp_path / "ours.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert all(file.get_tensor(name).data_ptr() % tensors[name].element_size() == 0 for name in tensors)


def test_loaded_tensors_do_not_depend_on_the_file(tmp_path: Path) -> None:
    save_state(tmp_path, "state", torch.ones(1000))
    loaded = load_state(tmp_path, "state")
    (tmp_path / "state.safetensors").write_bytes(b"")
    assert bool((loaded == 1).all())


@pytest.mark.parametrize(
    "content",
    ["", "{", '{"$": "tensor", "name": "no"}', '{"$": "tensor"}', '{"$": "what"}', '{"$": "float", "bits": "00"}',
     '{"$": "dict", "items": [1]}', '{"$": "dict", "items": [[[], 1]]}', "[" * 100_000],
)  # fmt: skip
def test_damaged_structure_is_an_error_of_ours(content: str, tmp_path: Path) -> None:
    save_state(tmp_path, "state", {"a": torch.ones(2)})
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(ArtifactDamaged, match=r"state\.json"):
        load_state(tmp_path, "state")


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0{}x", struct.pack("<Q", 30) + b"{"])
def test_damaged_tensors_are_an_error_of_ours(content: bytes, tmp_path: Path) -> None:
    save_state(tmp_path, "state", {"a": torch.ones(2)})
    (tmp_path / "state.safetensors").write_bytes(content)
    with pytest.raises(ArtifactDamaged, match=r"state\.safetensors"):
        load_state(tmp_path, "state")


def test_a_missing_part_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ArtifactDamaged):
        load_state(tmp_path, "state")
    save_state(tmp_path, "state", 1)
    (tmp_path / "state.json").unlink()
    with pytest.raises(ArtifactDamaged):
        load_state(tmp_path, "state")


def test_the_structure_is_readable_json(tmp_path: Path) -> None:
    save_state(tmp_path, "state", {"lr": 0.1, "betas": (0.9, 0.999), "weight": torch.ones(1)})
    assert json.loads((tmp_path / "state.json").read_text()) == {
        "lr": 0.1,
        "betas": {"$": "tuple", "items": [0.9, 0.999]},
        "weight": {"$": "tensor", "name": "weight"},
    }
