"""T5 (Raffel et al. 2020, arXiv:1910.10683), T5 v1.1 (Shazeer 2020, arXiv:2002.05202) and Flan-T5 (arXiv:2210.11416).

Pre-norm encoder-decoder with RMSNorm, no biases, and positions that are a learned term of the attention scores, shared
by all layers of a stack. v1.0 has a plain ReLU MLP, and a tied head whose input is scaled; v1.1 has a gated GELU MLP
and a head of its own. Dropout after the last norm of a stack, which transformers has, is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.errors import ModelError
from trivium.models.config import ModelConfig
from trivium.models.huggingface import ACTIVATIONS, Head, Key, keys, read_fields, write_activation, write_fields

_ALWAYS: dict[str, Any] = {
    "family": "t5",
    "kind": "encoder_decoder",
    "positions": "relative",
    "norm": "rmsnorm",
    "norm_eps": 1e-6,
    "attention_scale": 1.0,
    "init": "fan_in",
    "init_std": 1.0,
    "eos_id": 1,
    "pad_id": 0,
    "start_id": 0,
}
_V1_0: dict[str, Any] = {"mlp": "plain", "activation": "relu", "tie_embeddings": True}
_V1_1: dict[str, Any] = {"mlp": "gated", "activation": "gelu_tanh", "tie_embeddings": False}


def shape(width: int, layers: int, heads: int, inner: int, vocab: int = 32128, **more: Any) -> dict[str, Any]:
    """The fields of a preset; as in T5, a head is 64 wide whatever the width is."""
    return {
        **_ALWAYS,
        "vocab_size": vocab,
        "hidden_size": width,
        "num_layers": layers,
        "num_heads": heads,
        "head_dim": 64,
        "intermediate_size": inner,
        "max_positions": 512,
        **more,
    }


def sizes_of_v1_1(prefix: str, **more: Any) -> dict[str, dict[str, Any]]:
    """The five published sizes that T5 v1.1, Flan-T5 and mT5 share."""
    return {
        f"{prefix}-small": shape(512, 8, 6, 1024, **_V1_1, **more),
        f"{prefix}-base": shape(768, 12, 12, 2048, **_V1_1, **more),
        f"{prefix}-large": shape(1024, 24, 16, 2816, **_V1_1, **more),
        f"{prefix}-xl": shape(2048, 24, 32, 5120, **_V1_1, **more),
        f"{prefix}-xxl": shape(4096, 24, 64, 10240, **_V1_1, **more),
    }


PRESETS: dict[str, dict[str, Any]] = {
    "t5-1m": shape(128, 2, 2, 512, 2048, **_V1_0),
    "t5-10m": shape(256, 4, 4, 1024, 8192, **_V1_0),
    "t5-30m": shape(384, 6, 6, 1024, 16384, **_V1_1),
    "t5-small": shape(512, 6, 8, 2048, **_V1_0),
    "t5-base": shape(768, 12, 12, 3072, **_V1_0),
    "t5-large": shape(1024, 24, 16, 4096, **_V1_0),
    "t5-3b": shape(1024, 24, 32, 16384, **_V1_0, head_dim=128),
    "t5-11b": shape(1024, 24, 128, 65536, **_V1_0, head_dim=128),
    **sizes_of_v1_1("t5-v1_1"),
    **sizes_of_v1_1("flan-t5"),
}

DERIVED = {"head_scale": lambda fields: (fields["hidden_size"] or 1) ** -0.5 if fields["tie_embeddings"] else 1.0}


def heads(name: str) -> dict[str, Head]:
    """The classes of transformers for a family whose names begin with `name`."""
    dense = keys("classification_head.dense", "head.dense") + keys("classification_head.out_proj", "head.out")
    pooled = {"pooling": "last", "head_dense": "tanh", "head_bias": True}
    return {
        "language": Head(f"{name}ForConditionalGeneration", keys("lm_head", "head"), prefix=""),
        "sequence": Head(f"{name}ForSequenceClassification", dense, pooled),
        "span": Head(f"{name}ForQuestionAnswering", keys("qa_outputs", "head.out"), {"head_bias": True}, prefix=""),
        "none": Head(f"{name}Model", []),
    }


HEADS = heads("T5")
PREFIX = "transformer."
IGNORED = (
    r"(transformer\.)?((en|de)coder\.embed_tokens\.weight"
    r"|decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight)"
)
"""The shared embedding under its other names, and a tensor of old files that nothing uses."""
HEAD_MAY_BE_UNTIED = True
"""transformers 5 writes `tie_word_embeddings: true` whatever the weights are; whether a head is there decides."""


def _stack(file: str, own: str, mlp: int) -> list[Key]:
    """The keys of the encoder or the decoder; `mlp` is the number of the MLP among the parts of a block."""
    block, ours = f"transformer.{file}.block.{{}}.layer", f"{own}blocks.{{}}"
    first = f"transformer.{file}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return [
        Key(first, (f"{own}relative_bias.weight",)),
        *keys(f"{block}.0.layer_norm", f"{ours}.attention_norm"),
        *_attention(f"{block}.0.SelfAttention", f"{ours}.attention"),
        *keys(f"{block}.{mlp}.layer_norm", f"{ours}.mlp_norm"),
        *keys(f"{block}.{mlp}.DenseReluDense.wi", f"{ours}.mlp.up"),
        *keys(f"{block}.{mlp}.DenseReluDense.wi_0", f"{ours}.mlp.gate"),
        *keys(f"{block}.{mlp}.DenseReluDense.wi_1", f"{ours}.mlp.up"),
        *keys(f"{block}.{mlp}.DenseReluDense.wo", f"{ours}.mlp.down"),
        *keys(f"transformer.{file}.final_layer_norm", f"{own}final_norm"),
    ]


def _attention(file: str, own: str) -> list[Key]:
    names = {"q": "query", "k": "key", "v": "value", "o": "output"}
    return [key for theirs, ours in names.items() for key in keys(f"{file}.{theirs}", f"{own}.{ours}")]


KEYS = [
    *keys("transformer.shared", "embed"),
    *_stack("encoder", "encoder.", 1),
    *_stack("decoder", "", 2),
    *keys("transformer.decoder.block.{}.layer.1.layer_norm", "blocks.{}.cross_norm"),
    *_attention("transformer.decoder.block.{}.layer.1.EncDecAttention", "blocks.{}.cross"),
]


def body_keys(config: ModelConfig) -> list[Key]:
    """The keys of this model: the first layer of an MLP is called `wi`, or `wi_0` and `wi_1` where it is gated."""
    unused = ".wi." if config.mlp == "gated" else ".wi_"
    return [key for key in KEYS if unused not in key.file]


FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "num_layers": "num_layers",
    "num_decoder_layers": "num_decoder_layers",
    "num_heads": "num_heads",
    "head_dim": "d_kv",
    "intermediate_size": "d_ff",
    "max_positions": "n_positions",
    "relative_buckets": "relative_attention_num_buckets",
    "relative_max_distance": "relative_attention_max_distance",
    "norm_eps": "layer_norm_epsilon",
    "tie_embeddings": "tie_word_embeddings",
    "dropout": "dropout_rate",
    "embedding_dropout": "dropout_rate",
    "attention_dropout": "dropout_rate",
    "activation_dropout": "dropout_rate",
    "init_std": "initializer_factor",
    "start_id": "decoder_start_token_id",
}

HF_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 512,
    "num_layers": 6,
    "num_heads": 8,
    "d_kv": 64,
    "d_ff": 2048,
    "n_positions": 512,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "tie_word_embeddings": True,
    "dropout_rate": 0.1,
    "initializer_factor": 1.0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}


def from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ModelConfig` from a config.json."""
    fields = read_fields(raw, FIELDS, HF_DEFAULTS)
    kind, _, activation = str(raw.get("feed_forward_proj", "relu")).rpartition("-")
    if kind not in ("", "gated") or activation not in ACTIVATIONS:
        value, known = raw["feed_forward_proj"], "relu, gated-gelu, gated-silu"
        raise ModelError("unsupported kind of MLP", where="feed_forward_proj", value=value, fix=f"supported: {known}")
    gated_gelu = kind == "gated" and activation == "gelu"  # the name stands for the approximation by tanh
    width, scaled = fields["hidden_size"], raw.get("scale_decoder_outputs", fields["tie_embeddings"])
    return {
        **_ALWAYS,
        **fields,
        "num_decoder_layers": fields["num_decoder_layers"] or fields["num_layers"],
        "mlp": "gated" if kind == "gated" else "plain",
        "activation": "gelu_tanh" if gated_gelu else ACTIVATIONS[activation],
        "head_scale": width**-0.5 if scaled and isinstance(width, int) and width > 0 else 1.0,
    }


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """A config.json from `ModelConfig`."""
    gated_gelu = config.mlp == "gated" and config.activation == "gelu_tanh"
    activation = "gelu" if gated_gelu else write_activation(config)
    return {
        **write_fields(config, FIELDS),
        "feed_forward_proj": f"gated-{activation}" if config.mlp == "gated" else activation,
        "scale_decoder_outputs": config.head_scale != 1.0,
        "is_encoder_decoder": True,
    }
