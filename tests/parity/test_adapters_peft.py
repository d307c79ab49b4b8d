"""LoRA and IA3 against PEFT: the same logits for folders written by either side, and merged alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trivium.artifacts.writer import write_artifact
from trivium.data.batch import Layout, Source
from trivium.errors import ModelError
from trivium.models.adapter_folder import base_of, save_adapters
from trivium.models.folder import load_model
from trivium.models.transform import Transform, apply_transforms, merge_all
from trivium.models.transformer import Transformer
from trivium.transforms.ia3 import IA3
from trivium.transforms.lora import LoRA

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

TOLERANCE = {"rtol": 0.0, "atol": 1e-4}
SHAPE: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {**SHAPE, "num_key_value_heads": 2}
FALCON = {key: value for key, value in SHAPE.items() if key != "intermediate_size"}
GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
T5 = {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
      "decoder_start_token_id": 0}  # fmt: skip
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("Llama", "ForCausalLM", GROUPED),
    "gpt2": ("GPT2", "LMHeadModel", GPT2),
    "bert": ("Bert", "ForMaskedLM", SHAPE),
    "t5": ("T5", "ForConditionalGeneration", T5),
    "falcon": ("Falcon", "ForCausalLM", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}),
    "gpt_neox": ("GPTNeoX", "ForCausalLM", SHAPE),
    "phi3": ("Phi3", "ForCausalLM", GROUPED),
    "mixtral": ("Mixtral", "ForCausalLM", {**GROUPED, "num_local_experts": 4}),
}
FOUR = ["llama", "gpt2", "bert", "t5"]
AFEW = [name if name == "gpt2" else pytest.param(name, marks=pytest.mark.slow) for name in FOUR]
SEQUENCES = {"llama": "ForSequenceClassification", "gpt2": "ForSequenceClassification",
             "bert": "ForSequenceClassification"}  # fmt: skip
TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "mlp.c_proj"], "bert": ["query", "output.dense"],
    "t5": ["q", "v", "wo"], "falcon": ["query_key_value", "dense_h_to_4h"], "gpt_neox": ["query_key_value", "dense"],
    "phi3": ["qkv_proj", "gate_up_proj"], "mixtral": ["q_proj", "o_proj"],
}  # fmt: skip
EMBEDDINGS = {"llama": "embed_tokens", "gpt2": "wte", "bert": "word_embeddings"}


def base(name: str, folder: Path, kind: str | None = None, **changes: Any) -> Any:
    """Their model with random weights, stored in `folder`."""
    family, usual, shape = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**shape, **changes}, initializer_range=0.3)
    model = getattr(transformers, family + (kind or usual))._from_config(config, attn_implementation="eager").eval()
    model.save_pretrained(folder)
    return model


def shaken(model: Any) -> Any:
    """The same with random values in everything that trains."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def their_logits(model: Any, name: str) -> Tensor:
    torch.manual_seed(2)
    ids = torch.randint(3, 61, (2, 11))
    with torch.no_grad():
        if name == "t5":
            return model(input_ids=ids, decoder_input_ids=ids[:, :7]).logits
        return model(input_ids=ids).logits


def our_logits(model: Transformer, name: str) -> Tensor:
    torch.manual_seed(2)
    ids = torch.randint(3, 61, (2, 11))
    model.eval()
    with torch.no_grad():
        if name == "t5":
            source = Source(ids.flatten(), Layout((11, 11)))
            return model(ids[:, :7], source=source)
        return model(ids)


def store(model: Transformer, folder: Path) -> Path:
    with write_artifact(folder, kind="model") as place:
        save_adapters(place, model, model.state_dict())
    return folder


def both_ways(name: str, tmp_path: Path, config: Any, kind: str | None = None) -> Transformer:
    """PEFT's folder read here, merged here, written here and read by PEFT; the logits of all are those of PEFT."""
    model = base(name, tmp_path / "base", kind)
    plain = their_logits(model, name)
    theirs = shaken(peft.get_peft_model(model, config))
    expected = their_logits(theirs, name)
    assert (expected - plain).abs().max() > 1e-2
    theirs.save_pretrained(tmp_path / "theirs")
    settings = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(tmp_path / "base")
    (tmp_path / "theirs" / "adapter_config.json").write_text(json.dumps(settings))
    ours = load_model(tmp_path / "theirs")
    torch.testing.assert_close(our_logits(ours, name), expected, **TOLERANCE)
    back = store(ours, tmp_path / "ours")
    fresh = getattr(transformers, MODELS[name][0] + (kind or MODELS[name][1])).from_pretrained(
        tmp_path / "base", attn_implementation="eager"
    )
    again = peft.PeftModel.from_pretrained(fresh, back).eval()
    torch.testing.assert_close(their_logits(again, name), expected, **TOLERANCE)
    torch.testing.assert_close(our_logits(load_model(back), name), expected, **TOLERANCE)
    return ours


def merged_alike(model: Transformer, name: str) -> None:
    before = our_logits(model, name)
    merge_all(model)
    assert not any(".branches." in key for key in model.state_dict())
    torch.testing.assert_close(our_logits(model, name), before, **TOLERANCE)


@pytest.mark.parametrize("name", list(MODELS))
def test_lora_both_ways(name: str, tmp_path: Path) -> None:
    config = peft.LoraConfig(r=4, lora_alpha=10, target_modules=TARGETS[name], fan_in_fan_out=name == "gpt2")
    merged_alike(both_ways(name, tmp_path, config), name)


VARIANTS: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dora of several ranks": {"use_dora": True, "rank_pattern": {"PLACE": 2}, "alpha_pattern": {"PLACE": 3}},
    "ranks": {"rank_pattern": {"PLACE": 2}, "alpha_pattern": {"PLACE": 3}, "use_rslora": True},
    "own biases": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
}


@pytest.mark.parametrize("name", AFEW)
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_lora_variants_both_ways(name: str, variant: str, tmp_path: Path) -> None:
    place = TARGETS[name][0]
    settings = {
        key: {name: rank for name, rank in zip([place], value.values(), strict=True)}
        if isinstance(value, dict)
        else value
        for key, value in VARIANTS[variant].items()
    }
    config = peft.LoraConfig(r=4, target_modules=TARGETS[name], fan_in_fan_out=name == "gpt2", **settings)
    merged_alike(both_ways(name, tmp_path, config), name)


@pytest.mark.parametrize("name", list(SEQUENCES))
def test_lora_with_a_head_for_labels(name: str, tmp_path: Path) -> None:
    config = peft.LoraConfig(r=4, target_modules=TARGETS[name], task_type="SEQ_CLS", fan_in_fan_out=name == "gpt2")
    ours = both_ways(name, tmp_path, config, SEQUENCES[name])
    heads = [key for key, parameter in ours.named_parameters() if key.startswith("head.") and parameter.requires_grad]
    assert "head.out.weight" in heads


def test_a_head_for_labels_comes_with_the_adapter_of_a_language_model(tmp_path: Path) -> None:
    language = base("llama", tmp_path / "language")
    labels = transformers.LlamaForSequenceClassification.from_pretrained(tmp_path / "language", num_labels=3)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="SEQ_CLS")
    theirs = shaken(peft.get_peft_model(labels, config))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs", base=tmp_path / "language")
    torch.testing.assert_close(our_logits(ours, "llama"), their_logits(theirs, "llama"), **TOLERANCE)
    assert len(ours.config.labels) == 3 and language is not None


def test_a_head_of_which_a_part_is_missing_is_refused(tmp_path: Path) -> None:
    base("bert", tmp_path / "masked")
    labels = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "masked", num_labels=3)
    theirs = peft.get_peft_model(labels, peft.LoraConfig(r=4, target_modules=["query"], task_type="SEQ_CLS"))
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.raises(ModelError, match="neither the adapter nor its base has these weights"):
        load_model(tmp_path / "theirs", base=tmp_path / "masked")


@pytest.mark.parametrize("name", list(EMBEDDINGS))
def test_lora_of_embeddings(name: str, tmp_path: Path) -> None:
    names = [EMBEDDINGS[name], TARGETS[name][0]]
    ours = both_ways(name, tmp_path, peft.LoraConfig(r=4, target_modules=names, fan_in_fan_out=name == "gpt2"))
    if ours.tied:
        with pytest.raises(ModelError, match="tied"):
            merge_all(ours)
    else:
        merged_alike(ours, name)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_lora_with_new_tokens(name: str, tmp_path: Path) -> None:
    """Rows of the embedding, and of the head where that is tied to it."""
    places = TARGETS[name][:1]
    config = peft.LoraConfig(
        r=4, target_modules=places, trainable_token_indices=[7, 3, 60], fan_in_fan_out=name == "gpt2"
    )
    merged_alike(both_ways(name, tmp_path, config), name)


IA3_TARGETS = {
    "llama": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "gpt2": (["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
    "bert": (["key", "value", "output.dense"], ["output.dense"]),
    "t5": (["k", "v", "wo"], ["wo"]),
    "falcon": (["query_key_value", "dense_4h_to_h"], ["dense_4h_to_h"]),
    "phi3": (["qkv_proj", "down_proj"], ["down_proj"]),
}


@pytest.mark.parametrize("name", list(IA3_TARGETS))
def test_ia3_both_ways(name: str, tmp_path: Path) -> None:
    targets, feedforward = IA3_TARGETS[name]
    config = peft.IA3Config(target_modules=targets, feedforward_modules=feedforward, fan_in_fan_out=name == "gpt2")
    merged_alike(both_ways(name, tmp_path, config), name)


def test_ia3_with_a_head_for_labels(tmp_path: Path) -> None:
    targets, feedforward = IA3_TARGETS["bert"]
    config = peft.IA3Config(target_modules=targets, feedforward_modules=feedforward, task_type="SEQ_CLS")
    both_ways("bert", tmp_path, config, SEQUENCES["bert"])


def ours_to_theirs(name: str, tmp_path: Path, *transforms: Transform) -> None:
    """An adapter made here, read by PEFT."""
    base(name, tmp_path / "base")
    model = load_model(tmp_path / "base")
    apply_transforms(model, transforms, seed=0)
    start = our_logits(load_model(tmp_path / "base"), name)
    torch.testing.assert_close(our_logits(model, name), start, **TOLERANCE)
    shaken(model)
    model.base = base_of(tmp_path / "base")
    folder = store(model, tmp_path / "adapter")
    expected = our_logits(model, name)
    assert (expected - start).abs().max() > 1e-2
    family, kind, _ = MODELS[name]
    fresh = getattr(transformers, family + kind).from_pretrained(tmp_path / "base", attn_implementation="eager")
    theirs = peft.PeftModel.from_pretrained(fresh, folder).eval()
    torch.testing.assert_close(their_logits(theirs, name), expected, **TOLERANCE)
    torch.testing.assert_close(our_logits(load_model(folder), name), expected, **TOLERANCE)


SETTINGS: dict[str, dict[str, Any]] = {
    "all": {},
    "rank_pattern": {"rank_pattern": {"attention.value": 2}, "alpha_pattern": {"blocks.1.*": 3.0}, "rslora": True},
    "dora": {"dora": True, "bias": "lora_only"},
    "pissa": {"init": "pissa"},
    "pissa, ranks": {"init": "pissa", "rslora": True, "rank_pattern": {"attention.value": 2}},
    "olora": {"init": "olora"},
    "gaussian": {"init": "gaussian", "bias": "all"},
    "layers": {"layers": [-1], "target": ["attention.query", "embed"]},
}


@pytest.mark.parametrize("name", AFEW)
@pytest.mark.parametrize("variant", list(SETTINGS))
def test_what_is_made_here_is_read_there(name: str, variant: str, tmp_path: Path) -> None:
    if name == "t5" and "layers" in SETTINGS[variant]:
        pytest.skip("PEFT sees the shared embedding of T5 as three modules")
    ours_to_theirs(name, tmp_path, LoRA(LoRA.Config(rank=4, **SETTINGS[variant])))


@pytest.mark.parametrize("name", FOUR)
def test_ia3_made_here_is_read_there(name: str, tmp_path: Path) -> None:
    ours_to_theirs(name, tmp_path, IA3(IA3.Config()))


def test_experts_are_adapted_as_in_files_of_transformers_4(tmp_path: Path) -> None:
    """Their version 5 keeps experts as one tensor; it reads the names of files before."""
    ours_to_theirs("mixtral", tmp_path, LoRA(LoRA.Config(rank=4, target=["attention.query", "experts.*.down"])))


def test_gradients_are_those_of_peft(tmp_path: Path) -> None:
    """One step on the same rows: A, B and magnitudes move alike."""
    model = base("llama", tmp_path / "base")
    config = peft.LoraConfig(r=4, target_modules=TARGETS["llama"], use_dora=True)
    theirs = shaken(peft.get_peft_model(model, config))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs", base=tmp_path / "base")
    ids = torch.randint(3, 61, (2, 11))
    theirs(input_ids=ids, labels=ids).loss.backward()
    logits = ours(ids)
    nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    found = {name: p.grad for name, p in ours.named_parameters() if p.requires_grad}
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    assert all(grad is not None for grad in found.values()) and len(found) == len(gradients)
    for layer, name in ((0, "q_proj"), (1, "v_proj"), (1, "down_proj")):
        module = "mlp" if "down" in name else "self_attn"
        their = f"base_model.model.model.layers.{layer}.{module}.{name}"
        own = {"q_proj": "attention.query", "v_proj": "attention.value", "down_proj": "mlp.down"}[name]
        branch = f"blocks.{layer}.{own}.branches.lora"
        for mine, other in (("down", "lora_A"), ("up", "lora_B"), ("magnitude", "lora_magnitude_vector")):
            torch.testing.assert_close(
                found[f"{branch}.{mine}"], gradients[f"{their}.{other}.default.weight"], atol=1e-5, rtol=1e-3
            )
