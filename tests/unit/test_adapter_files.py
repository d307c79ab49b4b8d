"""Folders of adapters that are wrong: each is refused in at most five lines, before anything is computed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import trivium as tv
from tests.unit.adapter_world import write_adapter, write_base
from trivium.artifacts.lineage import read_lineage, render_text
from trivium.cli.main import run
from trivium.errors import TriviumError
from trivium.models.folder import load_model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_adapter(write_base(folder / "base"), folder / "adapter")
    return folder


@pytest.fixture
def adapter(made: Path, tmp_path: Path) -> Path:
    """A copy to spoil, as PEFT would have written it (without what this package adds)."""
    place = tmp_path / "adapter"
    shutil.copytree(made / "adapter", place)
    for name in ("adapters.json", "config.json", "MANIFEST.json", "trivium.json"):
        (place / name).unlink()
    load_model(place)
    return place


def settings(**changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "adapter_config.json"
        content = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in content.items() if value != "MISSING"}))

    return spoil


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        content = load_file(path)
        change(content)
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, path)

    return spoil


def text(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (text("adapter_config.json", "{"), "not readable JSON"),
        (text("adapter_config.json", "[]"), "one JSON object"),
        (settings(peft_type="MISSING"), "kind of adapter that is not supported"),
        (settings(peft_type="VERA"), "kind of adapter that is not supported"),
        (settings(peft_type=7), "kind of adapter that is not supported"),
        (settings(lora_alpha="high"), "adapter_config.json"),
        (settings(lora_alpha=-1), "adapter_config.json"),
        (settings(r=0), "adapter_config.json"),
        (settings(bias="some"), "adapter_config.json"),
        (settings(rank_pattern=[1]), "adapter_config.json"),
        (settings(use_qalora=True), "not supported"),
        (settings(trainable_token_indices=[3]), "lacks a tensor"),
        (settings(trainable_token_indices={"lm_head": [3]}), "only rows of the embedding"),
        (settings(trainable_token_indices=["a"]), "tokens are numbers"),
        (settings(trainable_token_indices=[9999]), "the model has tokens"),
        (settings(init_lora_weights="pissa"), "stored for a base that its start had changed"),
        (settings(base_model_name_or_path="some/model"), "base of the adapter is not there"),
        (settings(base_model_name_or_path=None), "base of the adapter is not there"),
        (settings(base_model_name_or_path=["x"]), "base of the adapter is not there"),
        (settings(use_dora=True), "lacks a tensor"),
        (pickled, "pickle"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "no weights"),
        (text("adapter_model.safetensors", "nothing"), "damaged|cut short|cannot be read|not readable"),
        (tensors(lambda found: found.pop(f"{Q}.lora_B.weight")), "lacks a tensor"),
        (tensors(lambda found: found.update({f"{Q}.lora_E": torch.ones(2)})), "no place in the model"),
        (tensors(lambda found: found.update({f"{Q}x.lora_A.weight": torch.ones(2, 2)})), "no place in the model"),
        (tensors(lambda found: found.clear() or found.update(a=torch.ones(1))), "no layer of the base has the names"),
        (tensors(lambda found: found.update({f"{Q}.lora_A.weight": torch.ones(4, 31)})), "another shape"),
        (tensors(lambda found: found.update({f"{Q}.lora_B.weight": torch.ones(33, 4)})), "another shape"),
        (tensors(lambda found: found.update({f"{Q}.lora_B.weight": torch.ones(32, 5)})), "another shape"),
        (tensors(lambda found: found.update({f"{Q}.lora_A.weight": torch.ones(4)})), "no matrix"),
    ],
)
def test_what_is_wrong_is_named(adapter: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(adapter)
    with pytest.raises(TriviumError, match=message) as caught:
        load_model(adapter)
    assert str(caught.value).count("\n") < 5


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"adapters": ["../other"]}, "outside|leaves"),
        ({"adapters": ["/etc"]}, "outside|leaves"),
        ({"adapters": []}, "which adapters"),
        ({"adapters": "."}, "which adapters"),
        ({"prepared": [{"name": "../evil"}]}, "unknown change"),
        ({"prepared": [{"name": "lora"}]}, "unknown change"),
        ({"prepared": [{"name": "quantize", "to": "int3"}]}, "prepared"),
        ({"vocab_size": 999}, "vocabulary of the base has changed"),
        ({"fingerprint": "0" * 64}, "not the base that the adapter was trained on"),
    ],
)
def test_our_own_file_is_checked(made: Path, tmp_path: Path, own: dict[str, Any], message: str) -> None:
    place = tmp_path / "adapter"
    shutil.copytree(made / "adapter", place)
    content = json.loads((place / "adapters.json").read_text())
    (place / "adapters.json").write_text(json.dumps({**content, **own}))
    with pytest.raises(TriviumError, match=message) as caught:
        load_model(place)
    assert str(caught.value).count("\n") < 5


def test_names_that_are_no_names_are_not_used(made: Path, tmp_path: Path) -> None:
    place = tmp_path / "adapter"
    shutil.copytree(made / "adapter", place)
    content = json.loads((place / "adapters.json").read_text())
    (place / "adapters.json").write_text(json.dumps({**content, "names": ["../../x"]}))
    assert [transform.name for transform in load_model(place).transforms] == ["lora"]


def test_a_larger_vocabulary_is_another_base(made: Path, tmp_path: Path) -> None:
    larger = tmp_path / "larger"
    assert run(["tokenizer", "extend", str(made / "base"), "--output", str(larger), "--tokens", "stitchintime"]) == 0
    adapter = write_adapter(larger, tmp_path / "on-larger")
    assert tv.load(adapter).module.config.vocab_size == load_model(larger).config.vocab_size
    with pytest.raises(TriviumError, match="vocabulary of the base has changed"):
        load_model(adapter, base=made / "base")
    with pytest.raises(TriviumError, match="vocabulary of the base has changed"):
        load_model(made / "adapter", base=larger)
    assert run(["tokenizer", "extend", str(adapter), "--output", str(tmp_path / "more"), "--tokens", "abc"]) == 2


def test_an_adapter_on_an_adapter_and_a_base_without_adapter_are_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(TriviumError, match="only adapters have a base"):
        load_model(made / "base", base=made / "base")
    place = tmp_path / "adapter"
    shutil.copytree(made / "adapter", place)
    (place / "adapters.json").unlink()
    with pytest.raises(TriviumError, match="model of its own, not an adapter"):
        load_model(place, base=made / "adapter")


def test_the_past_of_an_adapter_names_its_base(made: Path) -> None:
    drawn = render_text(read_lineage(made / "adapter"))
    assert "base" in drawn and str(made / "base").rsplit("/", 1)[1] in drawn
