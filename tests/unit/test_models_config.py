"""Shapes of models: presets, counts, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from trivium.errors import ConfigError
from trivium.models.build import preset, presets
from trivium.models.config import ModelConfig
from trivium.models.transformer import Transformer

LLAMA: dict[str, Any] = {
    "family": "llama", "vocab_size": 50, "hidden_size": 16, "num_layers": 2, "num_heads": 4, "intermediate_size": 24,
    "max_positions": 32,
}  # fmt: skip


@pytest.mark.parametrize("name", presets())
def test_parameters_counts_exactly(name: str) -> None:
    config = preset(name)
    assert config.parameters() == sum(parameter.numel() for parameter in Transformer(config).parameters())


@pytest.mark.parametrize(
    "changes",
    [{"biases": ["attention"]}, {"biases": ["mlp"]}, {"num_kv_heads": 2}, {"tie_embeddings": True}, {"head_dim": 6}],
    ids=str,
)
def test_parameters_counts_every_option(changes: dict[str, Any]) -> None:
    config = ModelConfig(**{**LLAMA, **changes})
    assert config.parameters() == sum(parameter.numel() for parameter in Transformer(config).parameters())
    assert config.parameters() != ModelConfig(**LLAMA).parameters()


def test_presets_span_one_million_to_eight_billion() -> None:
    sizes = [preset(name).parameters() for name in presets()]
    assert min(sizes) < 1.2e6
    assert max(sizes) > 8e9


def test_the_benchmark_model() -> None:
    config = preset("llama-10m")
    assert (config.hidden_size, config.num_layers, config.num_heads) == (256, 8, 8)
    assert (config.intermediate_size, config.vocab_size, config.max_positions) == (688, 8192, 512)
    assert config.parameters() == 10_522_880


def test_changes_to_a_preset_move_what_follows_from_them() -> None:
    config = preset("llama-10m", {"num_heads": 4, "vocab_size": 100})
    assert (config.head_dim, config.num_kv_heads, config.vocab_size) == (64, 4, 100)


def test_eos_is_one_or_several() -> None:
    assert ModelConfig(**LLAMA).eos_ids == ()
    assert ModelConfig(**LLAMA, eos_id=3).eos_ids == (3,)
    assert ModelConfig(**LLAMA, eos_id=(3,)) == ModelConfig(**LLAMA, eos_id=3)
    assert ModelConfig(**LLAMA, eos_id=(3, 4)).eos_ids == (3, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "hidden_size 16 is not divisible by num_heads 3"),
        ({"num_kv_heads": 3}, "num_heads 4 is not divisible by num_kv_heads 3"),
        ({"head_dim": 5}, "even head_dim, not 5"),
        ({"num_layers": 0}, "num_layers"),
        ({"num_layers": 10**9}, "num_layers"),
        ({"norm_eps": float("nan")}, "norm_eps"),
        ({"vocab_size": 10**12}, "vocab_size"),
        ({"eos_id": 50}, "eos_id 50 is outside of the vocabulary of 50"),
        ({"eos_id": (3, -1)}, "outside of the vocabulary"),
        ({"pad_id": 99}, "pad_id 99 is outside"),
        ({"rope": {"theta": 0.5}}, "theta"),
        ({"rope": {"scaling": {"type": "magic", "factor": 2}}}, "magic"),
        ({"rope": {"scaling": {"type": "linear", "factor": 0.5}}}, "factor"),
        ({"rope": {"scaling": {"type": "linear"}}}, "factor"),
        (
            {"rope": {"scaling": {"type": "longrope", "short_factor": [1], "long_factor": [1, 1],
                                  "original_max_positions": 8}}},
            "short_factor needs head_dim / 2 = 2 numbers",
        ),
        (
            {"rope": {"scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4,
                                  "original_max_positions": 8}}},
            "high_freq_factor must be larger",
        ),
        ({"sliding_window": 8}, "sliding_window must be None in the family llama, not 8"),
        ({"positions": "learned"}, "positions must be 'rotary' in the family llama"),
        ({"norm": "layernorm"}, "norm must be 'rmsnorm' in the family llama"),
        ({"dropout": 0.1}, "dropout must be 0.0 in the family llama"),
        ({"family": "gtp2"}, "unknown family 'gtp2', known are "),
        ({"family": "gpt2"}, "must be 'learned' in the family gpt2"),
        ({"widht": 3}, "widht"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_what_cannot_be_built_or_saved_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig(**{**LLAMA, **changes})


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'llama-10m'"):
        preset("lama-10m")
    with pytest.raises(ConfigError, match=r"choose one of .*gpt2-1m"):
        preset("zzz")


def test_a_wrong_change_names_key_value_and_fix() -> None:
    with pytest.raises(ConfigError) as caught:
        preset("llama-10m", {"hiden_size": 128})
    assert str(caught.value).splitlines() == [
        "unknown setting of a model",
        "  where: model.config.hiden_size",
        "  value: 128",
        "  fix:   did you mean 'hidden_size'?",
    ]
    with pytest.raises(ConfigError, match=r"where: model\.config\.num_layers\n  value: many"):
        preset("llama-10m", {"num_layers": "many"})
