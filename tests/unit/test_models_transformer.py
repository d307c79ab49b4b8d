"""One transformer: packing, caching and recomputation change nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from trivium.data.batch import Layout
from trivium.errors import ModelError
from trivium.losses import token_loss
from trivium.models import ragged
from trivium.models.attention import Pattern, RaggedAttention, UniformAttention, plan_attention
from trivium.models.build import build_model, preset
from trivium.models.cache import KVCache
from trivium.models.transformer import Transformer

TINY: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 16, "num_layers": 3, "num_heads": 4, "intermediate_size": 24, "max_positions": 32,
    "init_std": 0.3,
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama-1m", {"num_kv_heads": 2}),
    "biased": ("llama-1m", {"biases": ["attention", "mlp"], "tie_embeddings": False, "activation": "gelu"}),
    "window": ("mistral-7b", {"num_kv_heads": 2, "sliding_window": 4, "bos_id": None, "eos_id": None}),
    "gpt2": ("gpt2-1m", {}),
}


def tiny(kind: str, dtype: torch.dtype = torch.float64, **changes: Any) -> Transformer:
    name, specific = KINDS[kind]
    return build_model(preset(name, {**TINY, **specific, **changes}), seed=3, dtype=dtype)


MODELS = {kind: tiny(kind) for kind in KINDS}


def ids_of(length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 50, (length,), generator=torch.Generator().manual_seed(seed))


def gradients(model: Transformer, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def dense_logits(model: Transformer, ids: Tensor) -> Tensor:
    """[n, V] by the textbook: one sequence, a full score matrix, angles position by position."""
    config = model.config
    width, group = config.head_dim, config.num_heads // config.num_kv_heads
    places = torch.arange(len(ids))
    hidden = model.embed(ids)
    if model.position_embed is not None:
        hidden = hidden + model.position_embed(places)
    turns = places[:, None] / config.rope.theta ** (torch.arange(0, width, 2) / width)
    rotation = torch.polar(torch.ones_like(turns), turns).to(torch.complex128)
    seen = places[None, :] <= places[:, None]
    if config.sliding_window is not None:
        seen &= places[None, :] > places[:, None] - config.sliding_window

    def turned(x: Tensor) -> Tensor:
        if config.positions != "rotary":
            return x
        pairs = torch.complex(x[..., : width // 2], x[..., width // 2 :]) * rotation
        return torch.cat((pairs.real, pairs.imag), -1)

    for block in model.blocks:
        normed = block.attention_norm(hidden)
        query, key, value = (
            part(normed).unflatten(-1, (-1, width)).transpose(0, 1)
            for part in (block.attention.query, block.attention.key, block.attention.value)
        )
        query, key = turned(query), turned(key).repeat_interleave(group, 0)
        scores = (query @ key.mT / width**0.5).masked_fill(~seen, -torch.inf)
        mixed = scores.softmax(-1) @ value.repeat_interleave(group, 0)
        hidden = hidden + block.attention.output(mixed.transpose(0, 1).flatten(1))
        hidden = hidden + block.mlp(block.mlp_norm(hidden))
    return model.head(model.final_norm(hidden))


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_textbook(kind: str) -> None:
    ids = ids_of(11)
    logits = MODELS[kind](ids[None])
    torch.testing.assert_close(logits[0], dense_logits(MODELS[kind], ids), rtol=1e-5, atol=1e-6)


def test_shapes_of_both_calls() -> None:
    model = MODELS["llama"]
    ids = ids_of(10)
    assert model(ids.view(2, 5)).shape == (2, 5, 50)
    assert model(ids, Layout((3, 7))).shape == (10, 50)
    hidden, head = model(ids, Layout((3, 7)), then=lambda hidden, head: (hidden, head))
    assert hidden.shape == (10, 16)
    assert head is model.head


@settings(max_examples=12, deadline=None)
@given(kind=st.sampled_from(list(KINDS)), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_packed_equals_unpacked(kind: str, lengths: list[int]) -> None:
    model, ids, targets = MODELS[kind], ids_of(sum(lengths)), ids_of(sum(lengths), 1)
    layout = Layout(tuple(lengths))
    packed = model(ids, layout)
    alone = torch.cat([model(ids[None, start:end])[0] for start, end in layout.spans()])
    torch.testing.assert_close(packed, alone, rtol=1e-10, atol=1e-10)

    mine = gradients(model, model(ids, layout, then=lambda h, head: token_loss(h, head, targets)))
    theirs = gradients(model, F.cross_entropy(alone, targets, reduction="sum"))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@settings(max_examples=15, deadline=None)
@given(kind=st.sampled_from(list(KINDS)), lengths=st.lists(st.integers(1, 6), min_size=2, max_size=5), data=st.data())
def test_a_sequence_does_not_see_its_neighbours(kind: str, lengths: list[int], data: st.DataObject) -> None:
    layout, ids = Layout(tuple(lengths)), ids_of(sum(lengths))
    start, end = list(layout.spans())[data.draw(st.integers(0, len(lengths) - 1))]
    other = ids_of(sum(lengths), 7)
    other[start:end] = ids[start:end]
    model = MODELS[kind]
    # Equal to rounding, not bit for bit: a matrix product may group its rows differently.
    torch.testing.assert_close(model(ids, layout)[start:end], model(other, layout)[start:end], rtol=1e-12, atol=1e-12)


@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), padding=st.integers(1, 9))
def test_padding_never_matters(lengths: list[int], padding: int) -> None:
    """A row filled up with an untrained sequence, or behind the causal mask, gives the same logits."""
    model, ids = MODELS["llama"], ids_of(sum(lengths))
    plain = model(ids, Layout(tuple(lengths)))
    filled = model(torch.cat((ids, ids_of(padding, 5))), Layout((*lengths, padding)))
    torch.testing.assert_close(filled[: len(ids)], plain, rtol=1e-10, atol=1e-10)
    right = model(torch.cat((ids, torch.zeros(padding, dtype=torch.int64)))[None])[0, : len(ids)]
    torch.testing.assert_close(right, model(ids[None])[0], rtol=1e-10, atol=1e-10)


@settings(max_examples=12, deadline=None)
@given(kind=st.sampled_from(list(KINDS)), data=st.data())
def test_cached_equals_uncached(kind: str, data: st.DataObject) -> None:
    """A ragged prompt, then chunks of any size, then single tokens: the logits of the whole sequence at once."""
    model, rows = MODELS[kind], data.draw(st.integers(1, 3))
    step = st.lists(st.integers(0, 4), min_size=rows, max_size=rows)
    steps = [*data.draw(st.lists(step, min_size=1, max_size=3)), [1] * rows, [1] * rows]
    texts = [ids_of(20, row) for row in range(rows)]
    cache = KVCache(model.config, rows=rows, max_length=20, dtype=torch.float64)
    done = [0] * rows
    with torch.no_grad():
        whole = [model(text[None])[0] for text in texts]
        for new in steps:
            parts = [text[at : at + n] for text, at, n in zip(texts, done, new, strict=True)]
            logits = model(torch.cat(parts), Layout(tuple(new)), cache=cache)
            expected = torch.cat([full[at : at + n] for full, at, n in zip(whole, done, new, strict=True)])
            torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-10)
            done = [at + n for at, n in zip(done, new, strict=True)]
    assert cache.lengths == done


def test_cache_rows_are_selected_and_cut() -> None:
    model = MODELS["llama"]
    cache = KVCache(model.config, rows=2, max_length=9, dtype=torch.float64)
    first, second = ids_of(5, 1), ids_of(3, 2)
    with torch.no_grad():
        model(torch.cat((first, second)), Layout((5, 3)), cache=cache)
        cache.select([1, 0, 1])
        assert cache.lengths == [3, 5, 3]
        cache.truncate(1, 2)
        following = torch.tensor([4, 5, 6])
        logits = model(following, Layout((1, 1, 1)), cache=cache)
        for row, before in enumerate((second, first[:2], second)):
            expected = model(torch.cat((before, following[row : row + 1]))[None])[0, -1]
            torch.testing.assert_close(logits[row], expected, rtol=1e-9, atol=1e-10)
    with pytest.raises(ValueError, match="cannot be cut to 9"):
        cache.truncate(0, 9)


def test_cache_refuses_what_does_not_fit() -> None:
    model = MODELS["llama"]
    cache = KVCache(model.config, rows=1, max_length=4, dtype=torch.float64)
    with pytest.raises(ValueError, match="room for 4 tokens a row, 5 are needed"):
        model(ids_of(5), Layout((5,)), cache=cache)
    with pytest.raises(ValueError, match="2 sequences do not fit a cache of 1 rows"):
        model(ids_of(2), Layout((1, 1)), cache=cache)
    assert cache.lengths == [0]


def test_offset_is_added_to_the_embeddings() -> None:
    model, ids, layout = MODELS["llama"], ids_of(6), Layout((4, 2))
    offset = torch.zeros(6, 16, dtype=torch.float64, requires_grad=True)
    loss = model(ids, layout, offset=offset).square().sum()
    (gradient,) = torch.autograd.grad(loss, [offset])
    assert (gradient.abs().sum(1) > 0).all()
    moved = tiny("llama")
    with torch.no_grad():
        moved.embed.weight.add_(0.1)
    torch.testing.assert_close(model(ids, layout, offset=torch.full_like(offset, 0.1)), dense_with(moved, model, ids))


def dense_with(moved: Transformer, model: Transformer, ids: Tensor) -> Tensor:
    """Logits with the embedding of `moved` and the (tied) head of `model`."""
    hidden: Tensor = moved(ids, Layout((4, 2)), then=lambda hidden, _: hidden)
    return model.head(hidden)


@pytest.mark.parametrize("kind", KINDS)
def test_activation_checkpointing_changes_nothing(kind: str) -> None:
    model, ids, targets = tiny(kind), ids_of(9), ids_of(9, 1)
    saved: list[int] = []

    def loss() -> Tensor:
        return model(ids, Layout((4, 5)), then=lambda h, head: token_loss(h, head, targets))

    def count(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        plain = gradients(model, loss())
        without, saved = sum(saved), []
        model.activation_checkpointing = True
        again = gradients(model, loss())
    assert sum(saved) < without
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)


def test_a_range_of_blocks_runs_alone() -> None:
    """What a pipeline stage does."""
    model, ids, layout = MODELS["llama"], ids_of(9), Layout((4, 5))
    plan = model.plan(layout, device=ids.device)
    hidden = model.embed_inputs(ids, plan.positions)
    hidden = model.run_blocks(hidden, plan, [model.blocks[0]])
    hidden = model.run_blocks(hidden, plan, [model.blocks[1], model.blocks[2]])
    torch.testing.assert_close(model.head(model.final_norm(hidden)), model(ids, layout))


@pytest.mark.parametrize("field", ["dropout", "embedding_dropout", "attention_dropout"])
def test_each_dropout_acts_in_training_only(field: str) -> None:
    model, ids = tiny("gpt2", **{field: 0.5}), ids_of(12)
    assert not torch.equal(model.train()(ids, Layout((5, 7))), model(ids, Layout((5, 7))))
    assert not torch.equal(model(ids.view(2, 6)), model(ids.view(2, 6)))
    assert torch.equal(model.eval()(ids, Layout((5, 7))), model(ids, Layout((5, 7))))


def test_too_long_for_learned_positions() -> None:
    with pytest.raises(ModelError, match="33 tokens, 32 positions"):
        MODELS["gpt2"](ids_of(33)[None])
    assert MODELS["llama"](ids_of(33)[None]).isfinite().all()


def test_a_layout_of_other_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="the layout counts 5 tokens, input_ids has 6"):
        MODELS["llama"](ids_of(6), Layout((2, 3)))


def test_equal_lengths_take_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trivium.models.native_attention.kernel", lambda: None)
    device = torch.device("cpu")
    assert isinstance(plan_attention(Layout((5, 5, 5)), pattern=Pattern(), device=device), UniformAttention)
    planned = plan_attention(Layout((5, 5, 3, 0, 5)), pattern=Pattern(), device=device)
    assert isinstance(planned, RaggedAttention)
    runs = [(0, 10, (5, 0)), (10, 13, (3, 0)), (13, 18, (5, 0))]
    assert list(ragged.equal_neighbours((length, 0) for length in (5, 5, 3, 0, 5))) == runs


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_operator_for_the_compiler_equals_eager_attention(window: int | None, dtype: torch.dtype) -> None:
    lengths = (4, 4, 1, 6)
    stream = torch.Generator().manual_seed(0)
    query = torch.randn(15, 4, 8, generator=stream).to(dtype).requires_grad_()
    key, value = (torch.randn(15, 2, 8, generator=stream).to(dtype).requires_grad_() for _ in range(2))
    upstream = torch.randn(15, 4, 8, generator=stream).to(dtype)
    attend = plan_attention(Layout(lengths), pattern=Pattern(window=window), device=query.device)
    eager = attend(query, key, value, layer=0, dropout=0.0)
    operator = ragged.ragged_attention(query, key, value, torch.tensor(lengths), True, window, None)[0]
    torch.testing.assert_close(operator, eager)
    mine = torch.autograd.grad(operator, [query, key, value], upstream)
    theirs = torch.autograd.grad(eager, [query, key, value], upstream)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_compiled_equals_eager_and_compiles_once_for_all_layouts() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    eager, compiled = (tiny("llama", torch.float32) for _ in range(2))
    counter = CompileCounterWithBackend("inductor")
    for block in compiled.blocks:
        block.compile(backend=counter)
    layouts = [(6, 6), (4, 3, 2), (5, 1, 2), (3, 3, 1, 2), (7, 2), (1, 2, 3, 4, 5), (9, 1, 1)]
    for lengths in layouts:
        ids, targets, layout = ids_of(sum(lengths)), ids_of(sum(lengths), 1), Layout(lengths)
        mine, theirs = (
            gradients(model, model(ids, layout, then=lambda h, head, t=targets: token_loss(h, head, t)))
            for model in (compiled, eager)
        )
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert counter.frame_count <= 4
    with torch.no_grad():
        before = counter.frame_count
        cache = KVCache(compiled.config, rows=2, max_length=12)
        for lengths in ((4, 2), (1, 1), (1, 1)):
            compiled(ids_of(sum(lengths)), Layout(lengths), cache=cache)
        assert counter.frame_count == before


def test_autocast_stays_close() -> None:
    model, ids = tiny("llama", torch.float32), ids_of(9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(ids, Layout((4, 5)))
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), model(ids, Layout((4, 5))), rtol=0.1, atol=0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_forward_and_backward(dtype: torch.dtype) -> None:
    model, ids, targets = tiny("llama", dtype), ids_of(9), ids_of(9, 1)
    mine = gradients(model, model(ids, Layout((4, 5)), then=lambda h, head: token_loss(h, head, targets)))
    wide = tiny("llama", torch.float32)
    theirs = gradients(wide, wide(ids, Layout((4, 5)), then=lambda h, head: token_loss(h, head, targets)))
    for one, other in zip(mine, theirs, strict=True):
        assert F.cosine_similarity(one.float().flatten(), other.flatten(), 0) > 0.98


def test_the_head_is_a_plain_linear_layer() -> None:
    assert isinstance(MODELS["llama"].head, nn.Linear)
    assert MODELS["llama"].head.weight is MODELS["llama"].embed.weight
    assert MODELS["biased"].head.weight is not MODELS["biased"].embed.weight
