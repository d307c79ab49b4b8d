"""Every part a model can be built from: packing, caching and recomputation change nothing, and nothing leaks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trivium.data.batch import Layout, Source
from trivium.models.build import build_model
from trivium.models.cache import KVCache
from trivium.models.config import ModelConfig
from trivium.models.heads import pool
from trivium.models.transformer import Transformer

TINY: dict[str, Any] = {
    "family": "llama", "vocab_size": 50, "hidden_size": 16, "num_layers": 3, "num_heads": 4, "intermediate_size": 24,
    "max_positions": 32, "init_std": 0.3,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "part of the head turns": {"rotary_fraction": 0.5},
    "alibi": {"positions": "alibi"},
    "relative": {"positions": "relative", "relative_buckets": 8, "relative_max_distance": 12, "attention_scale": 1.0},
    "no positions": {"positions": "none"},
    "offset positions": {"positions": "learned", "position_offset": 2},
    "some layers slide": {
        "sliding_window": 3, "layer_types": ("sliding", "full", "sliding"), "local_rope": {"theta": 100.0},
    },
    "post": {"norm_placement": "post", "norm": "layernorm", "final_norm": False, "embedding_norm": True},
    "both": {"norm_placement": "both", "norm_offset": 1.0},
    "output": {"norm_placement": "output", "query_key_norm": "projection", "num_kv_heads": 2},
    "parallel": {"parallel": "one_norm", "num_kv_heads": 1, "norm": "layernorm"},
    "parallel, two norms": {"parallel": "two_norms", "biases": ("attention", "mlp"), "norm": "layernorm"},
    "norms of heads": {"query_key_norm": "head", "num_kv_heads": 2, "head_dim": 6},
    "softcaps": {"attention_softcap": 2.0, "logit_softcap": 3.0, "num_kv_heads": 2},
    "scales": {"embedding_scale": 4.0, "attention_scale": 0.3, "head_scale": 0.25, "tie_embeddings": True},
    "experts": {"experts": 4, "experts_per_token": 2},
    "segments": {"token_types": 2},
}  # fmt: skip
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {
        "positions": "learned", "norm_placement": "post", "norm": "layernorm", "final_norm": False, "mlp": "plain",
        "embedding_norm": True, "token_types": 2, "biases": ("attention", "mlp"), "head": "masked", "head_bias": True,
        "tie_embeddings": True,
    },
    "rotary": {},
    "relative": {"positions": "relative"},
}  # fmt: skip


def config_of(**changes: Any) -> ModelConfig:
    """Any combination of parts, whether or not a family has it."""
    return ModelConfig.model_validate({**TINY, **changes}, context="read back")


def tiny(**changes: Any) -> Transformer:
    return build_model(config_of(**changes), seed=3, dtype=torch.float64).eval()


DECODERS = {name: tiny(**changes) for name, changes in SHAPES.items()}
BOTH_WAYS = {name: tiny(kind="encoder", **changes) for name, changes in ENCODERS.items()}
PAIRED = {
    name: tiny(kind="encoder_decoder", num_decoder_layers=2, **changes)
    for name, changes in {"rotary": {}, "relative": SHAPES["relative"], "post": SHAPES["post"]}.items()
}
lengths_of = st.lists(st.integers(1, 9), min_size=1, max_size=5)
pairs_of = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=5)


def ids_of(length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 50, (length,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("model", [*DECODERS.values(), *BOTH_WAYS.values(), *PAIRED.values()])
def test_parameters_are_counted_exactly(model: Transformer) -> None:
    assert model.config.parameters() == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("head", ["sequence", "token", "span", "detector", "none", "masked", "language"])
@pytest.mark.parametrize("dense", ["none", "tanh"])
def test_parameters_of_heads_are_counted_exactly(head: str, dense: str) -> None:
    model = tiny(head=head, head_dense=dense, labels=("a", "b", "c") if head in ("sequence", "token") else ())
    assert model.config.parameters() == sum(parameter.numel() for parameter in model.parameters())


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from([*DECODERS, *(f"encoder {name}" for name in BOTH_WAYS)]), lengths=lengths_of)
def test_packed_equals_unpacked(name: str, lengths: list[int]) -> None:
    model = DECODERS.get(name) or BOTH_WAYS[name.removeprefix("encoder ")]
    layout, ids = Layout(tuple(lengths)), ids_of(sum(lengths))
    packed = model(ids, layout)
    alone = torch.cat([model(ids[None, start:end])[0] for start, end in layout.spans()])
    torch.testing.assert_close(packed, alone, rtol=1e-10, atol=1e-10)


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(list(PAIRED)),
    pairs=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=5),
)
def test_packed_pairs_equal_unpacked_ones(name: str, pairs: list[tuple[int, int]]) -> None:
    model = PAIRED[name]
    layout, there = Layout(tuple(one for one, _ in pairs)), Layout(tuple(other for _, other in pairs))
    ids, source = ids_of(layout.tokens), ids_of(there.tokens, 1)
    packed = model(ids, layout, source=Source(source, there))
    alone = [
        model(ids[a:b], Layout((b - a,)), source=Source(source[c:d], Layout((d - c,))))
        for (a, b), (c, d) in zip(layout.spans(), there.spans(), strict=True)
    ]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", DECODERS)
def test_cached_equals_uncached(name: str) -> None:
    model, prompts = DECODERS[name], [ids_of(4), ids_of(7, 1), ids_of(5, 2)]
    cache = KVCache(model.config, rows=3, max_length=16, dtype=torch.float64)
    whole = [model(ids[None])[0] for ids in prompts]
    for cuts in ((0, 2), (2, 3), (3, 4)):  # the prompt, one token, and one more
        parts = [ids[cuts[0] : cuts[1]] for ids in prompts]
        logits = model(torch.cat(parts), Layout(tuple(len(part) for part in parts)), cache=cache)
        expected = torch.cat([one[cuts[0] : cuts[1]] for one in whole])
        torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    rest = [ids[4:] for ids in prompts]  # rows of different lengths go on by different amounts
    logits = model(torch.cat(rest), Layout(tuple(len(part) for part in rest)), cache=cache)
    torch.testing.assert_close(logits, torch.cat([one[4:] for one in whole]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PAIRED)
def test_a_decoder_goes_on_from_what_the_cache_holds_of_its_source(name: str) -> None:
    model, layout = PAIRED[name], Layout((5, 5, 5))
    there = Layout((3, 6, 1))
    ids, source = ids_of(15), Source(ids_of(10, 1), there)
    whole = model(ids, layout, source=source).view(3, 5, -1)
    cache = KVCache(model.config, rows=3, max_length=8, dtype=torch.float64)
    table = ids.view(3, 5)
    first = model(table[:, :2].reshape(-1), Layout((2, 2, 2)), cache=cache, source=source).view(3, 2, -1)
    torch.testing.assert_close(first, whole[:, :2], rtol=1e-9, atol=1e-9)
    cache.select([2, 0, 1])  # beams move between rows
    order = [2, 0, 1]
    third = model(table[order, 2], Layout((1, 1, 1)), cache=cache)
    torch.testing.assert_close(third, whole[order, 2], rtol=1e-9, atol=1e-9)
    rest = model(table[order, 3:].reshape(-1), Layout((2, 2, 2)), cache=cache).view(3, 2, -1)
    torch.testing.assert_close(rest, whole[order, 3:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_never_sees_what_comes(name: str) -> None:
    ids = ids_of(9)
    changed = torch.cat((ids[:6], (ids[6:] + 1) % 50))
    one, other = DECODERS[name](ids[None]), DECODERS[name](changed[None])
    torch.testing.assert_close(one[0, :6], other[0, :6], rtol=1e-10, atol=1e-10)
    assert (one[0, 6:] - other[0, 6:]).abs().max() > 1e-3


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_an_encoder_sees_both_ways(name: str) -> None:
    ids = ids_of(9)
    changed = torch.cat((ids[:8], (ids[8:] + 1) % 50))
    difference = (BOTH_WAYS[name](ids[None]) - BOTH_WAYS[name](changed[None]))[0].abs().amax(1)
    assert (difference > 1e-6).all()


def test_a_prefix_sees_itself_both_ways_and_the_rest_does_not() -> None:
    model, ids = tiny(), ids_of(9)
    changed = ids.clone()
    changed[3] = (ids[3] + 1) % 50
    ragged, later = Layout((4, 9, 5), (0, 5, 2)), torch.cat((ids_of(4, 1), changed, ids_of(5, 2)))
    before = model(torch.cat((ids_of(4, 1), ids, ids_of(5, 2))), ragged)
    difference = (model(later, ragged) - before).abs().amax(1)
    assert (difference[4:13] > 1e-6).all(), "the first token of the prefix sees the fourth"
    assert not difference[:4].any() and not difference[13:].any(), "other sequences do not"
    changed = ids.clone()
    changed[6] = (ids[6] + 1) % 50
    difference = (model(changed, Layout((9,), (5,))) - model(ids, Layout((9,), (5,)))).abs().amax(1)
    assert not difference[:6].any() and (difference[6:] > 1e-6).all()
    torch.testing.assert_close(model(ids, Layout((9,), (0,))), model(ids, Layout((9,))))


def test_segments_differ_and_default_to_the_first() -> None:
    model, ids = DECODERS["segments"], ids_of(6)
    layout, types = Layout((6,)), torch.tensor([0, 0, 0, 1, 1, 1])
    torch.testing.assert_close(model(ids, layout), model(ids, layout, token_types=torch.zeros(6, dtype=torch.int64)))
    assert (model(ids, layout) - model(ids, layout, token_types=types)).abs().max() > 1e-3
    with pytest.raises(ValueError, match="takes no token_types"):
        DECODERS["alibi"](ids, layout, token_types=types)


def test_alibi_is_a_slope_times_the_distance() -> None:
    model = DECODERS["alibi"]
    bias = model.plan(Layout((4,)), device=torch.device("cpu")).full.attend.pattern.bias  # type: ignore[union-attr]
    scores = bias(torch.arange(4), torch.arange(4))
    assert scores[:, 3, 1].tolist() == [-2 * 2.0 ** (-2 * (head + 1)) for head in range(4)]


@pytest.mark.parametrize("pooling", ["first", "last", "mean", "max"])
def test_pooling_of_packed_sequences(pooling: str) -> None:
    hidden, layout = torch.randn(9, 4), Layout((2, 3, 4))
    expected = {
        "first": lambda part: part[0],
        "last": lambda part: part[-1],
        "mean": lambda part: part.mean(0),
        "max": lambda part: part.amax(0),
    }[pooling]
    parts = [expected(hidden[start:end]) for start, end in layout.spans()]
    torch.testing.assert_close(pool(hidden, layout, pooling), torch.stack(parts))


def test_experts_equal_the_textbook() -> None:
    model = DECODERS["experts"]
    moe, hidden = model.blocks[0].moe, torch.randn(7, 16, dtype=torch.float64)
    chances = moe.router(hidden).softmax(-1)
    expected = torch.zeros_like(hidden)
    for token in range(7):
        best = chances[token].topk(2)
        for weight, expert in zip(best.values / best.values.sum(), best.indices, strict=True):
            expected[token] += weight * moe.experts[expert](hidden[token : token + 1])[0]
    torch.testing.assert_close(moe(hidden, []), expected)
    model(ids_of(8)[None])
    assert model.balance is not None and model.balance.requires_grad
    busy = [(torch.full((4,), 6), torch.full((4,), 3.0))]  # 12 tokens, two experts each
    from trivium.models.transformer import balance

    assert balance(busy).item() == pytest.approx(2.0)


@pytest.mark.parametrize("name", ["some layers slide", "experts", "relative"])
def test_recomputing_activations_changes_no_gradient(name: str) -> None:
    gradients = []
    for recompute in (False, True):
        model = tiny(**SHAPES[name]).train()
        if recompute:
            model.checkpoint_activations()
        loss = model(ids_of(12), Layout((5, 7))).square().sum() + (0 if model.balance is None else model.balance)
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_recomputing_an_encoder_decoder_changes_no_gradient() -> None:
    source = Source(ids_of(6, 1), Layout((2, 4)))
    gradients = []
    for recompute in (False, True):
        model = tiny(kind="encoder_decoder", positions="relative").train()
        if recompute:
            model.checkpoint_activations()
        loss = model(ids_of(9), Layout((5, 4)), source=source).square().sum()
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["encoder", "pairs", "experts", "slides"])
def test_compiled_equals_eager(name: str) -> None:
    """Also where a part cannot be traced: it then runs as it is written."""
    changes = {
        "encoder": {"kind": "encoder", **ENCODERS["bert"]},
        "pairs": {"kind": "encoder_decoder", "num_decoder_layers": 2},
        "experts": SHAPES["experts"],
        "slides": SHAPES["some layers slide"],
    }[name]
    eager, compiled = (build_model(config_of(**changes), seed=3, dtype=torch.float32).train() for _ in range(2))
    for block in compiled.all_blocks:
        block.compile()
    for lengths in [(6, 6), (4, 3, 2), (5, 1, 2), (7, 2)]:
        ids, layout = ids_of(sum(lengths)), Layout(lengths)
        there = Layout(tuple(reversed(lengths)))
        source = Source(ids_of(there.tokens, 1), there) if name == "pairs" else None
        gradients = []
        for model in (eager, compiled):
            loss = model(ids, layout, source=source).square().mean()
            gradients.append([loss, *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)])
        for one, other in zip(*gradients, strict=True):
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
