"""Presets with the shapes of published decoders: what their config.json says, and how many parameters that makes.

`PUBLISHED` holds the settings as those files have them and the number of parameters that is told of the model (tied
heads counted once). Three counts must agree with it: by arithmetic, of our model, and of transformers' model, both
without memory.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trivium.models.build import family, preset
from trivium.models.config import ModelConfig
from trivium.models.huggingface import read_config
from trivium.models.transformer import Transformer

transformers = pytest.importorskip("transformers")


def shape(hidden: int, layers: int, heads: int, inner: int | None = None, **more: Any) -> dict[str, Any]:
    own = {} if inner is None else {"intermediate_size": inner}
    return {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, **own, **more}


def pythia(hidden: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return shape(hidden, layers, heads, 4 * hidden, **{
        "vocab_size": 50304, "hidden_act": "gelu", "rotary_pct": 0.25, "rotary_emb_base": 10000, "bos_token_id": 0,
        "eos_token_id": 0, "max_position_embeddings": 2048, "use_parallel_residual": True, **more})  # fmt: skip


def falcon(hidden: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return shape(hidden, layers, heads, **{
        "vocab_size": 65024, "alibi": False, "bias": False, "multi_query": True, "new_decoder_architecture": False,
        "parallel_attn": True, "bos_token_id": 11, "eos_token_id": 11, "layer_norm_epsilon": 1e-5, **more})  # fmt: skip


def llama(hidden: int, layers: int, heads: int, inner: int, kv_heads: int | None = None, **more: Any) -> dict[str, Any]:
    return shape(hidden, layers, heads, inner, **{
        "num_key_value_heads": kv_heads or heads, "vocab_size": 32000, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2, **more})  # fmt: skip


def llama3(hidden: int, layers: int, heads: int, inner: int, factor: float | None, **more: Any) -> dict[str, Any]:
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}  # fmt: skip
    return llama(hidden, layers, heads, inner, 8, **{
        "vocab_size": 128256, "max_position_embeddings": 131072 if factor else 8192, "rope_theta": 500000.0,
        "rope_scaling": scaling if factor else None, "bos_token_id": 128000, "eos_token_id": 128001,
        **more})  # fmt: skip


def smollm(hidden: int, layers: int, heads: int, kv_heads: int, inner: int, **more: Any) -> dict[str, Any]:
    return llama(hidden, layers, heads, inner, kv_heads, **{
        "vocab_size": 49152, "max_position_embeddings": 2048, "tie_word_embeddings": True, "bos_token_id": 0,
        "eos_token_id": 0, **more})  # fmt: skip


def mistral(hidden: int, layers: int, heads: int, inner: int, vocab: int, **more: Any) -> dict[str, Any]:
    return llama(hidden, layers, heads, inner, 8, **{
        "vocab_size": vocab, "max_position_embeddings": 32768, "sliding_window": None, **more})  # fmt: skip


def mixtral(hidden: int, layers: int, heads: int, inner: int, **more: Any) -> dict[str, Any]:
    return mistral(hidden, layers, heads, inner, 32000, **{
        "rope_theta": 1e6, "num_local_experts": 8, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.02,
        "output_router_logits": False, **more})  # fmt: skip


def qwen2(hidden: int, layers: int, heads: int, kv_heads: int, inner: int, **more: Any) -> dict[str, Any]:
    return llama(hidden, layers, heads, inner, kv_heads, **{
        "vocab_size": 152064, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "bos_token_id": 151643, "eos_token_id": 151643, "use_sliding_window": False, "sliding_window": 131072,
        "max_window_layers": layers, **more})  # fmt: skip


def qwen3(hidden: int, layers: int, heads: int, inner: int, **more: Any) -> dict[str, Any]:
    return qwen2(hidden, layers, heads, 8, inner, **{
        "vocab_size": 151936, "head_dim": 128, "max_position_embeddings": 40960, "eos_token_id": 151645,
        "attention_bias": False, "sliding_window": None, **more})  # fmt: skip


def gemma(hidden: int, layers: int, heads: int, kv_heads: int, inner: int, **more: Any) -> dict[str, Any]:
    return shape(hidden, layers, heads, inner, **{
        "num_key_value_heads": kv_heads, "head_dim": 256, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh", "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
        **more})  # fmt: skip


def gemma2(hidden: int, layers: int, heads: int, kv_heads: int, inner: int, **more: Any) -> dict[str, Any]:
    return gemma(hidden, layers, heads, kv_heads, inner, **{
        "vocab_size": 256000, "max_position_embeddings": 8192, "sliding_window": 4096, "rope_theta": 10000.0,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, **more})  # fmt: skip


def gemma3(hidden: int, layers: int, heads: int, kv_heads: int, inner: int, **more: Any) -> dict[str, Any]:
    return gemma(hidden, layers, heads, kv_heads, inner, **{
        "vocab_size": 262208, "max_position_embeddings": 131072, "sliding_window": 1024, "sliding_window_pattern": 6,
        "rope_theta": 1e6, "rope_local_base_freq": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        **more})  # fmt: skip


def phi3(hidden: int, layers: int, heads: int, inner: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    return llama(hidden, layers, heads, inner, kv_heads, **{
        "vocab_size": 32064, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
        "eos_token_id": 32000, "pad_token_id": 32000, "rope_scaling": None, "sliding_window": 2047,
        **more})  # fmt: skip


def olmo2(hidden: int, layers: int, heads: int, inner: int, **more: Any) -> dict[str, Any]:
    return llama(hidden, layers, heads, inner, **{
        "vocab_size": 100352, "rms_norm_eps": 1e-6, "rope_theta": 500000.0, "bos_token_id": None,
        "eos_token_id": 100257, "pad_token_id": 100277, **more})  # fmt: skip


def smollm3(hidden: int, layers: int, heads: int, inner: int, kv_heads: int) -> dict[str, Any]:
    return llama(hidden, layers, heads, inner, kv_heads, **{
        "vocab_size": 128256, "max_position_embeddings": 65536, "rms_norm_eps": 1e-6, "rope_theta": 5e6,
        "tie_word_embeddings": True, "bos_token_id": 128000, "eos_token_id": 128012, "pad_token_id": 128004,
    })  # fmt: skip


NEW: dict[str, Any] = {"new_decoder_architecture": True, "num_kv_heads": 8}
RW: dict[str, Any] = {"alibi": True, "bias": True, "multi_query": False, "parallel_attn": False}
TIED: dict[str, Any] = {"tie_word_embeddings": True}
QWEN_TIED: dict[str, Any] = {**TIED, "vocab_size": 151936}
EPS: dict[str, Any] = {"rms_norm_eps": 1e-5}
GEMMA3_SMALL: dict[str, Any] = {"vocab_size": 262144, "max_position_embeddings": 32768, "sliding_window": 512,
                                "rope_scaling": None}  # fmt: skip

PUBLISHED: dict[str, tuple[str, dict[str, Any], int]] = {
    # the one of each family that every run of the tests looks at
    "pythia-160m": ("GPTNeoX", pythia(768, 12, 12), 162_322_944),
    "falcon-7b": ("Falcon", falcon(4544, 32, 71), 6_921_720_704),
    "llama-8b": ("Llama", llama3(4096, 32, 32, 14336, 8.0), 8_030_261_248),
    "mistral-7b": ("Mistral", mistral(4096, 32, 32, 14336, 32000, sliding_window=4096), 7_241_732_096),
    "mixtral-8x7b": ("Mixtral", mixtral(4096, 32, 32, 14336), 46_702_792_704),
    "qwen2.5-0.5b": ("Qwen2", qwen2(896, 24, 14, 2, 4864, **QWEN_TIED, max_position_embeddings=32768), 494_032_768),
    "qwen3-0.6b": ("Qwen3", qwen3(1024, 28, 16, 3072, **TIED), 596_049_920),
    "gemma2-2b": ("Gemma2", gemma2(2304, 26, 8, 4, 9216), 2_614_341_888),
    "gemma3-1b": ("Gemma3", gemma3(1152, 26, 4, 1, 6912, **GEMMA3_SMALL), 999_885_952),
    "phi3-mini": ("Phi3", phi3(3072, 32, 32, 8192, 32), 3_821_079_552),
    "olmo2-1b": ("Olmo2", olmo2(2048, 16, 16, 8192), 1_484_916_736),
    "smollm3-3b": ("SmolLM3", smollm3(2048, 36, 16, 11008, 4), 3_075_098_624),
    # the others
    "pythia-14m": ("GPTNeoX", pythia(128, 6, 4), 14_067_712),
    "pythia-31m": ("GPTNeoX", pythia(256, 6, 8), 30_494_720),
    "pythia-70m": ("GPTNeoX", pythia(512, 6, 8), 70_426_624),
    "pythia-410m": ("GPTNeoX", pythia(1024, 24, 16), 405_334_016),
    "pythia-1b": ("GPTNeoX", pythia(2048, 16, 8), 1_011_781_632),
    "pythia-1.4b": ("GPTNeoX", pythia(2048, 24, 16), 1_414_647_808),
    "pythia-2.8b": ("GPTNeoX", pythia(2560, 32, 32), 2_775_208_960),
    "pythia-6.9b": ("GPTNeoX", pythia(4096, 32, 32, vocab_size=50432), 6_857_302_016),
    "pythia-12b": ("GPTNeoX", pythia(5120, 36, 40, vocab_size=50688), 11_846_072_320),
    "gpt-neox-20b": ("GPTNeoX", pythia(6144, 44, 64, vocab_size=50432, hidden_act="gelu_fast"), 20_554_567_680),
    "falcon-11b": (
        "Falcon",
        falcon(4096, 60, 32, **NEW, num_ln_in_parallel_attn=1, tie_word_embeddings=False, rope_theta=500042.0,
               max_position_embeddings=8192, ffn_hidden_size=16384),
        11_102_822_400,
    ),
    "falcon-40b": ("Falcon", falcon(8192, 60, 128, **NEW), 41_303_293_952),
    "falcon-180b": ("Falcon", falcon(14848, 80, 232, **NEW), 178_557_088_768),
    "falcon-rw-1b": (
        "Falcon", falcon(2048, 24, 32, **RW, vocab_size=50304, bos_token_id=1, eos_token_id=2), 1_311_625_216
    ),
    "smollm-135m": ("Llama", smollm(576, 30, 9, 3, 1536), 134_515_008),
    "smollm-360m": ("Llama", smollm(960, 32, 15, 5, 2560), 361_821_120),
    "smollm-1.7b": ("Llama", smollm(2048, 24, 32, 32, 8192), 1_711_376_384),
    "smollm2-135m": (
        "Llama", smollm(576, 30, 9, 3, 1536, max_position_embeddings=8192, rope_theta=1e5), 134_515_008
    ),
    "tinyllama-1.1b": ("Llama", llama(2048, 22, 32, 5632, 4, max_position_embeddings=2048), 1_100_048_384),
    "llama-1b": ("Llama", llama3(2048, 16, 32, 8192, 32.0, **TIED), 1_235_814_400),
    "llama-3b": ("Llama", llama3(3072, 28, 24, 8192, 32.0, **TIED), 3_212_749_824),
    "llama-7b": ("Llama", llama(4096, 32, 32, 11008), 6_738_415_616),
    "llama2-13b": ("Llama", llama(5120, 40, 40, 13824), 13_015_864_320),
    "llama2-70b": ("Llama", llama(8192, 80, 64, 28672, 8), 68_976_648_192),
    "llama3-8b": ("Llama", llama3(4096, 32, 32, 14336, None), 8_030_261_248),
    "llama3.1-70b": ("Llama", llama3(8192, 80, 64, 28672, 8.0), 70_553_706_496),
    "llama3.1-405b": ("Llama", llama3(16384, 126, 128, 53248, 8.0), 405_853_388_800),
    "mistral-7b-v0.3": ("Mistral", mistral(4096, 32, 32, 14336, 32768, rope_theta=1e6), 7_248_023_552),
    "ministral-8b": (
        "Mistral", mistral(4096, 36, 32, 12288, 131072, rope_theta=1e8, sliding_window=32768), 8_019_808_256
    ),
    "mistral-nemo-12b": (
        "Mistral",
        mistral(5120, 40, 32, 14336, 131072, rope_theta=1e6, head_dim=128, max_position_embeddings=131072),
        12_247_782_400,
    ),
    "mistral-small-24b": (
        "Mistral", mistral(5120, 40, 32, 32768, 131072, rope_theta=1e8, head_dim=128), 23_572_403_200
    ),
    "mistral-large-123b": (
        "Mistral",
        mistral(12288, 88, 96, 28672, 32768, rope_theta=1e6, max_position_embeddings=131072),
        122_610_069_504,
    ),
    "mixtral-8x22b": (
        "Mixtral",
        mixtral(6144, 56, 48, 16384, max_position_embeddings=65536, router_aux_loss_coef=0.001),
        140_620_634_112,
    ),
    "qwen2.5-1.5b": ("Qwen2", qwen2(1536, 28, 12, 2, 8960, **QWEN_TIED), 1_543_714_304),
    "qwen2.5-3b": ("Qwen2", qwen2(2048, 36, 16, 2, 11008, **QWEN_TIED, max_position_embeddings=32768), 3_085_938_688),
    "qwen2.5-7b": ("Qwen2", qwen2(3584, 28, 28, 4, 18944), 7_615_616_512),
    "qwen2.5-14b": ("Qwen2", qwen2(5120, 48, 40, 8, 13824, **EPS), 14_770_033_664),
    "qwen2.5-32b": ("Qwen2", qwen2(5120, 64, 40, 8, 27648, **EPS), 32_763_876_352),
    "qwen2.5-72b": ("Qwen2", qwen2(8192, 80, 64, 8, 29568, **EPS), 72_706_203_648),
    "qwen3-1.7b": ("Qwen3", qwen3(2048, 28, 16, 6144, **TIED), 1_720_574_976),
    "qwen3-4b": ("Qwen3", qwen3(2560, 36, 32, 9728, **TIED), 4_022_468_096),
    "qwen3-8b": ("Qwen3", qwen3(4096, 36, 32, 12288), 8_190_735_360),
    "qwen3-14b": ("Qwen3", qwen3(5120, 40, 40, 17408), 14_768_307_200),
    "qwen3-32b": ("Qwen3", qwen3(5120, 64, 64, 25600), 32_762_123_264),
    "gemma2-9b": ("Gemma2", gemma2(3584, 42, 16, 8, 14336), 9_241_705_984),
    "gemma2-27b": (
        "Gemma2", gemma2(4608, 46, 32, 16, 36864, head_dim=128, query_pre_attn_scalar=144), 27_227_128_320
    ),
    "gemma3-270m": ("Gemma3", gemma3(640, 18, 4, 1, 2048, **GEMMA3_SMALL), 268_098_176),
    "gemma3-4b": ("Gemma3", gemma3(2560, 34, 8, 4, 10240), 3_880_263_168),
    "gemma3-12b": ("Gemma3", gemma3(3840, 48, 16, 8, 15360), 11_766_034_176),
    "gemma3-27b": (
        "Gemma3", gemma3(5376, 62, 32, 16, 21504, head_dim=128, query_pre_attn_scalar=168), 27_009_346_304
    ),
    "phi3-medium": ("Phi3", phi3(5120, 40, 40, 17920, 10), 13_960_238_080),
    "phi4": (
        "Phi3",
        phi3(5120, 40, 40, 17920, 10, vocab_size=100352, max_position_embeddings=16384, sliding_window=None,
             rope_theta=250000.0, original_max_position_embeddings=16384, bos_token_id=100257, eos_token_id=100257,
             pad_token_id=100257),
        14_659_507_200,
    ),
    "olmo2-7b": ("Olmo2", olmo2(4096, 32, 32, 11008), 7_298_617_344),
    "olmo2-13b": ("Olmo2", olmo2(5120, 40, 40, 13824), 13_716_198_400),
    "olmo2-32b": ("Olmo2", olmo2(5120, 64, 40, 27648, kv_heads=8), 32_234_279_936),
}  # fmt: skip
ALWAYS = 11
"""So many of them are looked at in every run of the tests."""
NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (at >= ALWAYS)) for at, name in enumerate(PUBLISHED)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_preset_is_what_the_published_file_says(name: str) -> None:
    _, settings, parameters = PUBLISHED[name]
    config = preset(name)
    assert ModelConfig.model_validate(read_config(family(config.family), settings)) == config
    assert config.parameters() == parameters


@pytest.mark.parametrize("name", NAMES)
def test_both_models_have_the_published_number_of_parameters(name: str) -> None:
    theirs, settings, parameters = PUBLISHED[name]
    assert sum(parameter.numel() for parameter in Transformer(preset(name)).parameters()) == parameters
    kind = transformers.Gemma3TextConfig if theirs == "Gemma3" else getattr(transformers, f"{theirs}Config")
    with torch.device("meta"):
        model = getattr(transformers, f"{theirs}ForCausalLM")(kind(**settings))
    assert model.num_parameters() == parameters
