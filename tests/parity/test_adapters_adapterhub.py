"""Bottleneck adapters against AdapterHub's library.

`adapterhub.zip` holds tiny random models, adapters of all kinds and what the library `adapters` 1.3.0 (transformers
4.57) computes with them; that library cannot be installed beside a current transformers.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trivium.artifacts.tensors import read_tensors
from trivium.data.batch import Layout, Source
from trivium.models.adapter_folder import base_of, put_adapter, save_adapters
from trivium.models.folder import load_model
from trivium.models.transformer import Transformer

IDS = torch.tensor([[3, 5, 7, 9, 11, 13], [2, 4, 6, 8, 10, 12]])
STARTS = torch.tensor([[0, 4, 5], [0, 6, 7]])
CASES = [
    *((kind, "pfeiffer") for kind in ("bert", "gpt2", "llama", "t5", "bart", "distilbert")),
    *((kind, "houlsby") for kind in ("bert", "gpt2", "t5", "bart", "distilbert")),
    *((kind, "parallel") for kind in ("bert", "gpt2", "llama", "t5", "bart", "distilbert")),
    *((kind, "norms") for kind in ("bert", "llama", "bart")),
]


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapterhub")
    with zipfile.ZipFile(Path(__file__).with_name("adapterhub.zip")) as archive:
        archive.extractall(folder)
    return folder


@torch.no_grad()
def logits(model: Transformer) -> torch.Tensor:
    if model.encoder is None:
        return model.eval()(IDS)
    return model.eval()(STARTS, source=Source(IDS.reshape(-1), Layout((6, 6))))


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_the_same_logits_and_the_same_file(golden: Path, tmp_path: Path, kind: str, case: str) -> None:
    folder, base = golden / kind / case, golden / kind / "base"
    expected = load_file(folder / "expected.safetensors")["logits"]
    model = load_model(folder, base=base)
    torch.testing.assert_close(logits(model).reshape(expected.shape), expected, atol=1e-5, rtol=1e-5)
    assert (logits(load_model(base)).reshape(expected.shape) - expected).abs().max() > 1e-2
    save_adapters(tmp_path, model, dict(model.state_dict()))
    theirs, ours = read_tensors(folder / "adapter.safetensors"), read_tensors(tmp_path / "adapter.safetensors")
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    torch.testing.assert_close(logits(load_model(tmp_path)), logits(model))


@pytest.mark.parametrize(("kind", "how"), [("bert", "fusion"), ("gpt2", "fusion"), ("bert", "stack")])
def test_composed_adapters(golden: Path, tmp_path: Path, kind: str, how: str) -> None:
    model, place = load_model(golden / kind / "base"), golden / kind / how
    model.base = base_of(golden / kind / "base")
    for name in ("one", "two", *(["fusion"] if how == "fusion" else [])):
        put_adapter(model, place / name, frozen=True)
    expected = load_file(place / "expected.safetensors")["logits"]
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)
    save_adapters(tmp_path, model, dict(model.state_dict()))
    torch.testing.assert_close(logits(load_model(tmp_path)), expected, atol=1e-5, rtol=1e-5)
