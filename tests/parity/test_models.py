"""The same logits as transformers, for folders written by either side."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trivium.data.batch import Layout
from trivium.models.build import build_model, preset
from trivium.models.cache import KVCache
from trivium.models.folder import load_model, read_config, save_model

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

TOLERANCE = {"rtol": 0.0, "atol": 1e-4}
SMALL: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **parameters}}


LONG = {"short_factor": [1.0, 1.1, 1.3, 1.5], "long_factor": [1.0, 2.0, 3.0, 4.0]}
LLAMAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "biased": {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu_pytorch_tanh"},
    "one key head": {"num_key_value_heads": 1},
    "wide heads": {"head_dim": 16},
    "theta": rope("default"),
    "linear": rope("linear", factor=4.0),
    "dynamic": rope("dynamic", factor=4.0),
    "yarn": rope("yarn", factor=4.0, original_max_position_embeddings=8),
    "yarn with all": rope(
        "yarn", factor=4.0, original_max_position_embeddings=8, beta_fast=4.0, beta_slow=0.5, mscale=0.7,
        mscale_all_dim=0.9, truncate=False,
    ),
    "yarn fixed": rope("yarn", factor=4.0, original_max_position_embeddings=8, attention_factor=1.3),
    "longrope": rope("longrope", factor=4.0, original_max_position_embeddings=8, **LONG),
    "longrope without factor": rope("longrope", original_max_position_embeddings=24, **LONG),
    "llama3": rope(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
    ),
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"llama {name}": ("Llama", {**SMALL, **changes}) for name, changes in LLAMAS.items()},
    "mistral": ("Mistral", {**SMALL, "sliding_window": 7}),
    "mistral without window": ("Mistral", {**SMALL, "sliding_window": None}),
    "gpt2": ("GPT2", {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1,
                      "eos_token_id": 2}),
    "gpt2 inner": ("GPT2", {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 40,
                            "activation_function": "relu", "tie_word_embeddings": False, "bos_token_id": 1,
                            "eos_token_id": 2}),
}  # fmt: skip


def reference(case: str) -> Any:
    """Their model with weights large enough that a mistake shows."""
    name, settings = CASES[case]
    head = {"GPT2": "GPT2LMHeadModel"}.get(name, f"{name}ForCausalLM")
    torch.manual_seed(0)
    model = getattr(transformers, head)(getattr(transformers, f"{name}Config")(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0 if parameter.dim() > 1 else 1.0, 0.3)
    return model


def ids_of(rows: int, length: int) -> Tensor:
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_their_folder_here_and_ours_there(tmp_path: Path, case: str) -> None:
    theirs = reference(case)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs").eval()
    (tmp_path / "ours").mkdir()
    save_model(tmp_path / "ours", ours.config, ours.state_dict())
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert type(again) is type(theirs)
    for length in (5, 20, 48):  # within, around and beyond the original context of every scaling
        ids = ids_of(2, length)
        expected = theirs(ids).logits
        assert expected.abs().max() > 1
        torch.testing.assert_close(ours(ids), expected, **TOLERANCE)
        torch.testing.assert_close(again(ids).logits, expected, **TOLERANCE)
    assert read_config(tmp_path / "ours") == ours.config


@pytest.mark.parametrize("case", ["llama plain", "llama llama3", "mistral", "gpt2"])
@torch.no_grad()
def test_packed_padded_and_cached_rows_equal_theirs(tmp_path: Path, case: str) -> None:
    theirs = reference(case)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path).eval()
    lengths = (9, 3, 14)
    rows = [ids_of(1, length)[0] for length in lengths]
    alone = torch.cat([theirs(row[None]).logits[0] for row in rows])
    packed = ours(torch.cat(rows), Layout(lengths))
    torch.testing.assert_close(packed, alone, **TOLERANCE)

    padded = torch.zeros(3, 14, dtype=torch.int64)
    mask = torch.zeros(3, 14, dtype=torch.int64)
    for number, row in enumerate(rows):
        padded[number, : len(row)], mask[number, : len(row)] = row, 1
    filled = theirs(padded, attention_mask=mask).logits
    torch.testing.assert_close(packed, filled[mask.bool()], **TOLERANCE)

    cache = KVCache(ours.config, rows=3, max_length=20)
    ours(torch.cat([row[:-2] for row in rows]), Layout(tuple(length - 2 for length in lengths)), cache=cache)
    for back in (2, 1):
        step = ours(torch.stack([row[-back] for row in rows]), Layout((1, 1, 1)), cache=cache)
        expected = torch.stack([alone[end - back] for _, end in Layout(lengths).spans()])
        torch.testing.assert_close(step, expected, **TOLERANCE)


@pytest.mark.parametrize("case", ["llama plain", "llama tied", "gpt2"])
def test_gradients_equal_theirs(tmp_path: Path, case: str) -> None:
    from trivium.losses import token_loss

    theirs = reference(case)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs").eval()
    ids = ids_of(2, 12)
    theirs(ids, labels=ids).loss.backward()
    targets = ids[:, 1:].reshape(-1)
    loss = ours(ids[:, :-1].reshape(-1), Layout((11, 11)), then=lambda h, head: token_loss(h, head, targets))
    (loss / len(targets)).backward()
    (tmp_path / "ours").mkdir()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    save_model(tmp_path / "ours", ours.config, gradients)  # their names, by our own table
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    for (name, one), two in zip(again.named_parameters(), theirs.parameters(), strict=True):
        assert two.grad is not None
        torch.testing.assert_close(one.data, two.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@torch.no_grad()
def test_half_precision_folders(tmp_path: Path, dtype: str) -> None:
    theirs = reference("llama plain").to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs", dtype=torch.float32)
    ids = ids_of(1, 9)
    wide = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", dtype=torch.float32)
    torch.testing.assert_close(ours(ids), wide(ids).logits, **TOLERANCE)
    (tmp_path / "ours").mkdir()
    save_model(tmp_path / "ours", ours.config, ours.state_dict(), dtype=getattr(torch, dtype))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert again.dtype == getattr(torch, dtype)
    assert load_model(tmp_path / "theirs").embed.weight.dtype == getattr(torch, dtype)


@torch.no_grad()
def test_sharded_folders_both_ways(tmp_path: Path) -> None:
    theirs = reference("gpt2")
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    ours, ids = load_model(tmp_path / "theirs").eval(), ids_of(1, 9)
    torch.testing.assert_close(ours(ids), theirs(ids).logits, **TOLERANCE)
    (tmp_path / "ours").mkdir()
    save_model(tmp_path / "ours", ours.config, ours.state_dict(), max_shard_bytes=20_000)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    torch.testing.assert_close(again(ids).logits, theirs(ids).logits, **TOLERANCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"rope_theta": 700.0}, rope("default", rope_theta=700.0)),
        ({"rope_theta": 700.0, "rope_scaling": None}, rope("default", rope_theta=700.0)),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, rope("linear", rope_theta=10000.0, factor=2.0)),
        (
            {"rope_theta": 700.0, "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16}},
            {"rope_parameters": {**LLAMAS["llama3"]["rope_parameters"], "rope_theta": 700.0}},
        ),
    ],
    ids=["theta", "no scaling", "type", "llama3"],
)  # fmt: skip
def test_rotary_settings_of_transformers_4_and_5_mean_the_same(
    tmp_path: Path, old: dict[str, Any], new: dict[str, Any]
) -> None:
    read = []
    for name, settings in (("old", old), ("new", new)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "llama", **SMALL, **settings}))
        read.append(read_config(tmp_path / name))
        theirs = transformers.AutoConfig.from_pretrained(tmp_path / name).rope_parameters
        assert read[-1].rope.theta == theirs["rope_theta"]
    assert read[0] == read[1]


def test_a_config_written_here_says_the_same_to_transformers_4_and_5(tmp_path: Path) -> None:
    config = preset("llama-1b", {"num_layers": 1, "hidden_size": 32, "num_heads": 8, "intermediate_size": 32})
    save_model(tmp_path, config, build_model(config, seed=0).state_dict())
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["torch_dtype"] == written["dtype"] == "float32"
    assert {"rope_theta": written["rope_theta"], **written["rope_scaling"]} == written["rope_parameters"]
    assert written["architectures"] == ["LlamaForCausalLM"]


PUBLISHED = {
    "llama-1b": 1_235_814_400,
    "llama-3b": 3_212_749_824,
    "llama-7b": 6_738_415_616,
    "llama-8b": 8_030_261_248,
    "mistral-7b": 7_241_732_096,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(tmp_path: Path, name: str) -> None:
    from trivium.models.build import family

    config = preset(name)
    assert config.parameters() == PUBLISHED[name]
    raw = {"model_type": config.family, **family(config.family).to_hf(config)}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path))
    assert theirs.num_parameters() == config.parameters()
