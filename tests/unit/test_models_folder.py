"""Model folders: exact round trips, and one clear error for each way a folder can be wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from trivium.errors import TriviumError
from trivium.models.build import build_model, preset
from trivium.models.config import ModelConfig
from trivium.models.folder import load_model, read_config, save_model

TINY: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 16, "num_layers": 2, "num_heads": 4, "intermediate_size": 24, "max_positions": 32,
    "bos_id": 1, "eos_id": 2,
}  # fmt: skip
CONFIGS = {
    "llama": preset("llama-1m", {**TINY, "num_kv_heads": 2, "tie_embeddings": False}),
    "tied": preset("llama-1m", TINY),
    "biased": preset("llama-1m", {**TINY, "biases": ["attention", "mlp"], "eos_id": [2, 3], "pad_id": 0}),
    "scaled": preset("llama-8b", {**TINY, "num_kv_heads": 4}),
    "mistral": preset("mistral-7b", {**TINY, "num_kv_heads": 2, "sliding_window": 5}),
    "gpt2": preset("gpt2-1m", TINY),
}


def saved(folder: Path, config: ModelConfig, **options: Any) -> Path:
    folder.mkdir(parents=True)
    save_model(folder, config, build_model(config, seed=1).state_dict(), **options)
    return folder


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("limit", [1 << 30, 4000], ids=["single", "sharded"])
def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path, kind: str, limit: int) -> None:
    folder = saved(tmp_path / "m", CONFIGS[kind], max_shard_bytes=limit)
    assert (folder / "model.safetensors").exists() == (limit > 4000)
    model, original = load_model(folder), build_model(CONFIGS[kind], seed=1)
    assert model.config == CONFIGS[kind]
    assert model.state_dict().keys() == original.state_dict().keys()
    for (name, one), two in zip(model.named_parameters(), original.parameters(), strict=True):
        assert torch.equal(one, two), name
        assert one.requires_grad
        assert one.is_contiguous()
    assert (model.head.weight is model.embed.weight) == CONFIGS[kind].tie_embeddings


def test_every_shard_respects_the_limit_and_the_index_is_complete(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", CONFIGS["llama"], max_shard_bytes=4000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = {name: load_file(folder / name) for name in sorted(set(index["weight_map"].values()))}
    assert len(shards) > 3
    for tensors in shards.values():
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 4000
    assert {name: file for file, tensors in shards.items() for name in tensors} == index["weight_map"]
    total = sum(tensor.nbytes for tensors in shards.values() for tensor in tensors.values())
    assert index["metadata"]["total_size"] == total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_stored_type_is_kept_or_converted(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = saved(tmp_path / "m", CONFIGS["gpt2"], dtype=dtype)
    assert json.loads((folder / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    exact = build_model(CONFIGS["gpt2"], seed=1)
    for wanted in (None, torch.float32, torch.float64):
        model = load_model(folder, dtype=wanted)
        for one, two in zip(model.parameters(), exact.parameters(), strict=True):
            assert one.dtype == (wanted or dtype)
            assert torch.equal(one.double(), two.to(dtype).double())


def test_a_tied_head_is_stored_once_and_may_be_left_out(tmp_path: Path) -> None:
    config = CONFIGS["tied"]
    weights = build_model(config, seed=1).state_dict()
    weights.pop("head.weight")
    (tmp_path / "m").mkdir()
    save_model(tmp_path / "m", config, weights)
    assert "lm_head.weight" not in load_file(tmp_path / "m" / "model.safetensors")
    load_model(tmp_path / "m")


def test_training_a_loaded_model_leaves_the_file_alone(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", CONFIGS["llama"])
    before = (folder / "model.safetensors").read_bytes()
    model = load_model(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert (folder / "model.safetensors").read_bytes() == before


def test_folders_of_a_bare_model_and_old_buffers(tmp_path: Path) -> None:
    """`gpt2` on the Hugging Face hub: no `transformer.` prefix, and the causal mask among the weights."""
    folder = saved(tmp_path / "m", CONFIGS["gpt2"])
    weights = load_file(folder / "model.safetensors")
    renamed = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    renamed["h.0.attn.bias"] = torch.ones(1, 1, 32, 32)
    renamed["h.1.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(renamed, folder / "model.safetensors")
    assert torch.equal(load_model(folder).embed.weight, build_model(CONFIGS["gpt2"], seed=1).embed.weight)


def test_generation_config_names_the_ends(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", CONFIGS["llama"])
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    assert read_config(folder).eos_ids == (2, 7)


def test_what_transformers_leaves_out_has_its_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    config = read_config(tmp_path)
    assert (config.hidden_size, config.intermediate_size, config.dropout) == (768, 3072, 0.1)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert (read_config(tmp_path).norm_eps, read_config(tmp_path).intermediate_size) == (1e-6, 11008)


def test_tokens_outside_of_the_vocabulary_do_not_exist(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", CONFIGS["llama"])
    edit_config(bos_token_id=-1, pad_token_id=60)(folder)
    config = read_config(folder)
    assert (config.bos_id, config.pad_id) == (None, None)


# What can be wrong with a folder. Each case: how to break a good one, and what the message must name.


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def write(name: str, content: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).write_text(content)

    return edit


def remove(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).unlink()

    return edit


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return edit


def edit_index(change: Callable[[Path, dict[str, str]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        shutil.rmtree(folder)
        saved(folder, CONFIGS["llama"], max_shard_bytes=4000)
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        change(folder, index["weight_map"])
        path.write_text(json.dumps(index))

    return edit


def cut(share: float) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return edit


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


Q = "model.layers.0.self_attn.q_proj.weight"
BROKEN: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no folder": (shutil.rmtree, ("there is no such model folder", "give the path of a folder")),
    "no config": (remove("config.json"), ("has no config.json", "it holds: generation_config.json, model.safetensors")),
    "no json": (write("config.json", "{broken"), ("not readable JSON", "config.json", "line 1 column 2")),
    "not utf-8": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe{"), ("not readable JSON",)),
    "nested too deep": (write("config.json", "[" * 100_000), ("not readable JSON",)),
    "a list": (write("config.json", "[1]"), ("must hold one JSON object", "[1]")),
    "not a number": (edit_config(rms_norm_eps=float("nan")), ("not readable JSON", "NaN is not a JSON number")),
    "infinity": (edit_config(rms_norm_eps=float("inf")), ("Infinity is not a JSON number",)),
    "no kind": (edit_config(model_type=None), ("not supported", "model_type", "supported are ")),
    "other kind": (edit_config(model_type="mamba"), ("config.json: model_type", "mamba", "supported are ")),
    "kind is a list": (edit_config(model_type=["llama"]), ("not supported", "['llama']")),
    "path as kind": (edit_config(model_type="../llama"), ("not supported",)),
    "word for number": (edit_config(hidden_size="wide"), ("config.json: hidden_size", "wide")),
    "negative size": (edit_config(num_hidden_layers=-2), ("config.json: num_hidden_layers", "-2")),
    "huge size": (edit_config(num_hidden_layers=10**9), ("config.json: num_hidden_layers", "1000000000")),
    "heads": (edit_config(num_attention_heads=5, head_dim=None), ("hidden_size 16 is not divisible by num_heads 5",)),
    "kv heads": (edit_config(num_key_value_heads=3), ("num_heads 4 is not divisible by num_kv_heads 3",)),
    "activation": (edit_config(hidden_act="snake"), ("unsupported activation", "config.json: hidden_act", "snake")),
    "rope": (
        edit_config(rope_scaling=None, rope_parameters={"rope_type": "spiral", "factor": 2}),
        ("unknown kind of rotary scaling", "rope_type", "spiral", "known: "),
    ),
    "rope key": (
        edit_config(rope_scaling={"rope_type": "linear", "factor": 2, "beta": 3}),
        ("config.json: rope.scaling.linear.beta", "3"),
    ),
    "rope factor": (edit_config(rope_scaling={"rope_type": "dynamic"}), ("rope.scaling.dynamic.factor",)),
    "rope text": (edit_config(rope_scaling="linear"), ("malformed rotary settings", "linear")),
    "partial rotary": (edit_config(partial_rotary_factor=0.5), ("unsupported setting", "partial_rotary_factor", "0.5")),
    "quantised": (edit_config(quantization_config={"bits": 4}), ("quantised", "unquantised")),
    "generation config": (write("generation_config.json", "nope"), ("not readable JSON", "generation_config.json")),
    "no weights": (remove("model.safetensors"), ("has no weights", "put model.safetensors")),
    "pickle": (pickled, ("pickle", "pytorch_model.bin", "convert them to safetensors")),
    "cut in the header": (cut(0.001), ("cut short or damaged", "model.safetensors")),
    "cut in the tensors": (cut(0.7), ("cut short or damaged", "copy or download it again")),
    "empty": (cut(0), ("cut short or damaged", "model.safetensors")),
    "missing": (edit_weights(lambda w: w.pop(Q)), ("1 missing", Q)),
    "unknown": (edit_weights(lambda w: w.update(extra=torch.ones(1))), ("1 unknown", "extra")),
    "both": (edit_weights(lambda w: w.update(extra=w.pop(Q))), ("1 missing", Q, "1 unknown", "extra")),
    "shape": (
        edit_weights(lambda w: w.update({Q: torch.ones(3, 16)})),
        ("another shape", Q, "[3, 16] in the file, [16, 16] by config.json"),
    ),
    "dimensions": (edit_weights(lambda w: w.update({Q: torch.ones(256)})), ("another shape", "[256] in the file")),
    "integers": (edit_weights(lambda w: w.update({Q: torch.ones(16, 16, dtype=torch.int8)})), ("int8", Q)),
    "config of another": (edit_config(intermediate_size=28), ("another shape", "gate_proj", "config.json")),
    "more layers": (edit_config(num_hidden_layers=3), ("9 missing (model.layers.2.input_layernorm.weight",)),
    "untied": (edit_weights(lambda w: w.pop("lm_head.weight")), ("1 missing (lm_head.weight)",)),
    "tied but different": (edit_config(tie_word_embeddings=True), ("tied but have different", "lm_head.weight")),
    "shard missing": (
        edit_index(lambda folder, _: (folder / "model-00002-of-00007.safetensors").unlink()),
        ("a weight file named in the index is missing", "model-00002-of-00007.safetensors"),
    ),
    "shard outside": (
        edit_index(lambda _, places: places.update({Q: "../other.safetensors"})),
        ("outside its folder", "../other.safetensors"),
    ),
    "shard absolute": (edit_index(lambda _, places: places.update({Q: "/etc/passwd"})), ("outside its folder",)),
    "shard lacks": (
        edit_index(lambda _, places: places.update({"lm_head.weight": places[Q]})),
        ("lacks a tensor that the index names", "lm_head.weight"),
    ),
    "index empty": (edit_index(lambda _, places: places.clear()), ("weight_map must map", "index.json")),
    "index of numbers": (edit_index(lambda _, places: places.update({Q: 3})), ("weight_map must map",)),  # type: ignore[dict-item]
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_refused_with_its_fault(tmp_path: Path, case: str) -> None:
    damage, named = BROKEN[case]
    folder = saved(tmp_path / "m", CONFIGS["llama"])
    damage(folder)
    with pytest.raises(TriviumError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert len(message.splitlines()) <= 5
    for text in named:
        assert text in message


@pytest.mark.parametrize(
    "changes",
    [{"scale_attn_weights": False}, {"scale_attn_by_inverse_layer_idx": True}, {"add_cross_attention": True}],
    ids=str,
)
def test_gpt2_settings_that_would_change_the_result_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = saved(tmp_path / "m", CONFIGS["gpt2"])
    edit_config(**changes)(folder)
    with pytest.raises(TriviumError, match=next(iter(changes))):
        load_model(folder)


def test_code_in_a_folder_is_never_run(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", CONFIGS["llama"])
    edit_config(auto_map={"AutoModelForCausalLM": "evil.Model"})(folder)
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    load_model(folder)


def test_saving_refuses_weights_of_another_model(tmp_path: Path) -> None:
    weights = build_model(CONFIGS["llama"], seed=1).state_dict()
    weights["blocks.0.extra"] = weights.pop("blocks.0.attention.query.weight")
    with pytest.raises(TriviumError, match=r"1 missing \(blocks.0.attention.query.weight\), 1 unknown"):
        save_model(tmp_path, CONFIGS["llama"], weights)
    assert list(tmp_path.iterdir()) == []
