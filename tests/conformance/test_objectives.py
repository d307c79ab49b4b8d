"""Objectives from plain text, through the loader and the engine, on models of every kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

from tests.conformance.harness import Frozen, assert_same_gradients
from tests.conformance.objectives import (
    OBJECTIVES,
    make_method,
    model_config,
    objective_recipe,
    objective_trainer,
    open_objective,
    tokenizer,
)
from tests.conformance.test_loop import Losses
from trivium.core.trainer import Trainer
from trivium.data.batch import IGNORE, Batch, Layout, Source
from trivium.errors import ConfigError, TokenizerError
from trivium.methods.electra import Electra, narrower
from trivium.tokenizers.train import train_bpe


def gradients(name: str, **settings: Any) -> list[dict[str, torch.Tensor]]:
    recorder = Frozen()
    objective_trainer(make_method(name), optimizer=recorder, steps=2, **settings).fit()
    return recorder.gradients


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_does_not_depend_on_the_split(name: str) -> None:
    whole = gradients(name)
    for micro_rows, pad_rows in [(1, False), (3, True)]:
        split = gradients(name, micro_rows=micro_rows, pad_rows=pad_rows)
        assert len(whole) == len(split) == 2
        for ours, reference in zip(split, whole, strict=True):
            assert_same_gradients(ours, reference)


def alone(batch: Batch) -> list[Batch]:
    """Each sequence of a batch as a batch of its own."""
    spans = list(batch.layout.spans())
    prefixes = batch.layout.prefixes or (0,) * len(spans)
    sources = [None] * len(spans) if batch.source is None else list(batch.source.layout.spans())
    parts = []
    for number, (start, end) in enumerate(spans):
        source = None
        if batch.source is not None and sources[number] is not None:
            begin, stop = sources[number]
            source = Source(batch.source.ids[begin:stop], Layout((stop - begin,)))
        parts.append(
            Batch(
                batch.input_ids[start:end],
                batch.targets[start:end],
                Layout((end - start,), (prefixes[number],)),
                {key: value[start:end] for key, value in batch.fields.items()},
                batch.sample_ids[number : number + 1],
                source,
            )
        )
    return parts


@torch.no_grad()
@pytest.mark.parametrize("name", OBJECTIVES)
def test_packed_sequences_have_the_loss_of_each_alone(name: str) -> None:
    trainer = objective_trainer(make_method(name))
    (batch,) = trainer.context.feed.batches()
    whole = trainer.method.loss(batch)
    parts = [trainer.method.loss(part) for part in alone(batch)]
    assert len(parts) > 8, "rows hold more than one sequence"
    for term in whole:
        together = sum(float(part[term].sum) for part in parts)
        assert float(whole[term].sum) == pytest.approx(together, rel=1e-10)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_weights_count_what_the_loss_sums(name: str) -> None:
    trainer = objective_trainer(make_method(name), pad_rows=True)
    (batch,) = trainer.context.feed.batches()
    counted, terms = trainer.method.weights(batch), trainer.method.loss(batch)
    assert {term.unit for term in terms.values()} == set(counted)
    trained = int((batch.targets != IGNORE).sum())
    assert counted["hidden" if name == "electra" else "tokens"] == trained > 0
    assert all(math.isfinite(float(term.sum)) for term in terms.values())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_learns_and_only_trains_what_it_hides(name: str) -> None:
    trainer = objective_trainer(make_method(name), steps=40, lr=2e-2)
    log = Losses()
    trainer.callbacks.append(log)
    trainer.fit()
    term = {"electra": "generator"}.get(name, "nll")
    first, last = (sum(one[term] for one in part) / 5 for part in (log.terms[:5], log.terms[-5:]))
    assert last < 0.75 * first
    (batch,) = trainer.context.feed.batches()
    share = batch.trained_tokens() / batch.tokens
    if name.startswith("mlm") or name == "electra":
        assert 0.05 < share < 0.35
    elif name != "prefix":
        assert share == 1.0


def batch_of(name: str, **changes: Any) -> Batch:
    (batch,) = objective_trainer(make_method(name, **changes)).context.feed.batches()
    return batch


def different(one: Batch, other: Batch) -> bool:
    same = one.tokens == other.tokens and torch.equal(one.input_ids, other.input_ids)
    if one.source is not None and other.source is not None:
        sizes = one.source.layout == other.source.layout
        same = same and sizes and torch.equal(one.source.ids, other.source.ids)
    return not (same and torch.equal(one.targets, other.targets) and one.layout == other.layout)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("fim", {"fim_rate": 0.1}),
        ("fim", {"spm_rate": 0.0}),
        ("fim", {"fim_rate": 0.0, "prefix_lm": True}),
        ("mlm", {"rate": 0.4}),
        ("mlm", {"unit": "word"}),
        ("mlm", {"unit": "span"}),
        ("mlm", {"mask_share": 0.5}),
        ("mlm", {"random_share": 0.2}),
        ("electra", {"rate": 0.4}),
        ("t5", {"objective": "bart"}),
        ("t5", {"objective": "ul2"}),
        ("t5", {"rate": 0.4}),
        ("t5", {"mean_length": 1.5}),
        ("t5", {"roll": False}),
        ("bart", {"rate": 0.6}),
        ("bart", {"mean_length": 1.0}),
        ("bart", {"permute_sentences": 0.0}),
        ("bart", {"delete": 0.3}),
        ("bart", {"rotate": 1.0}),
        ("ul2", {"mode_tokens": False}),
        ("ul2", {"roll": False}),
    ],
)
def test_every_option_changes_the_batch(name: str, changes: dict[str, Any]) -> None:
    assert not different(batch_of(name), batch_of(name))
    assert different(batch_of(name), batch_of(name, **changes))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("seq2seq", {"label_smoothing": 0.1}),
        ("electra", {"weight": 5.0}),
    ],
)
def test_options_of_the_loss_change_the_gradient(name: str, changes: dict[str, Any]) -> None:
    def gradient(**changes: Any) -> dict[str, torch.Tensor]:
        recorder = Frozen()
        objective_trainer(make_method(name, **changes), optimizer=recorder, steps=1).fit()
        return recorder.gradients[0]

    plain, changed = gradient(), gradient(**changes)
    assert plain.keys() == changed.keys()
    assert any((plain[key] - changed[key]).abs().max() > 1e-6 for key in plain)


# What the model sees


def sequences(batch: Batch) -> list[tuple[list[int], list[int]]]:
    return [(batch.input_ids[a:b].tolist(), batch.targets[a:b].tolist()) for a, b in batch.layout.spans()]


def test_masked_pieces_stand_in_their_frame() -> None:
    batch = batch_of("mlm")
    for inputs, targets in sequences(batch):
        assert (inputs[0], inputs[-1]) == (tokenizer().bos_id, tokenizer().eos_id)
        assert (targets[0], targets[-1]) == (IGNORE, IGNORE)
        assert inputs.count(tokenizer().eos_id) == 1


def test_a_moved_middle_stays_between_bos_and_eos() -> None:
    marks = [tokenizer().vocabulary[f"<|fim_{name}|>"] for name in ("prefix", "suffix", "middle")]
    moved = 0
    for inputs, targets in sequences(batch_of("fim", fim_rate=1.0)):
        whole = [*inputs, targets[-1]]
        assert [whole.count(mark) for mark in marks] == [1, 1, 1]
        assert whole.index(marks[0]) in (0, 1)
        assert all(one == other for one, other in pairwise([*inputs[1:], targets[-1], None])) is False
        assert inputs[1:] == targets[:-1]
        moved += whole[0] == tokenizer().bos_id
        if tokenizer().eos_id in whole:
            assert whole.index(tokenizer().eos_id) == len(whole) - 1
    assert moved


def test_the_prefix_is_seen_in_both_directions() -> None:
    trainer = objective_trainer(make_method("prefix"))
    (batch,) = trainer.context.feed.batches()
    assert batch.layout.prefixes is not None
    number = max(range(batch.layout.sequences), key=lambda at: batch.layout.prefixes[at])
    start, end = list(batch.layout.spans())[number]
    prefix = batch.layout.prefixes[number]
    assert prefix > 2

    def hidden(ids: torch.Tensor) -> torch.Tensor:
        layout = Layout((end - start,), (prefix,))
        return trainer.method.policy.module(ids, layout, then=lambda hidden, head: hidden)

    ids = batch.input_ids[start:end].clone()
    before = hidden(ids)
    ids[prefix - 1] = (ids[prefix - 1] + 1) % 300
    inside = (hidden(ids) - before).abs().sum(1)
    assert inside[0] > 0, "the first token sees the last one of the prefix"
    if prefix < end - start:
        ids = batch.input_ids[start:end].clone()
        ids[prefix] = (ids[prefix] + 1) % 300
        assert (hidden(ids) - before).abs().sum(1)[:prefix].max() == 0, "and nothing behind the prefix"


# Electra


def test_the_generator_is_narrower_and_gets_no_gradient_from_detection() -> None:
    trainer = objective_trainer(make_method("electra"), steps=1)
    generator = trainer.context.roles["generator"].module.config
    policy = trainer.method.policy.module.config
    assert (generator.head, policy.head) == ("masked", "detector")
    assert generator.hidden_size == policy.hidden_size // 2
    assert generator.num_layers == policy.num_layers
    assert narrower(policy, 1.0)["hidden_size"] == policy.hidden_size
    (batch,) = trainer.context.feed.batches()
    terms = trainer.method.loss(batch)
    terms["detection"].sum.backward()
    assert all(p.grad is None for p in trainer.context.roles["generator"].module.parameters())
    assert any(p.grad is not None for p in trainer.method.policy.module.parameters())


def test_what_is_drawn_follows_the_generator() -> None:
    from trivium import losses

    head = torch.nn.Linear(4, 7, bias=False)
    count = 40_000
    hidden, noise = torch.randn(4).expand(count, 4), torch.rand(count, dtype=torch.float64)
    targets = torch.zeros(count, dtype=torch.int64)
    drawn = losses.sample_tokens(hidden, head, targets, noise)
    wanted = torch.softmax(head(hidden[0]), 0)
    torch.testing.assert_close(torch.bincount(drawn, minlength=7) / count, wanted.detach(), atol=0.01, rtol=0)
    assert losses.sample_tokens(hidden, head, torch.full((count,), IGNORE), noise).max() == 0


# Refusals


@pytest.mark.parametrize(
    ("name", "kind"), [("mlm", "decoder"), ("fim", "encoder"), ("t5", "encoder"), ("seq2seq", "decoder")]
)
def test_a_model_of_another_kind_is_refused(name: str, kind: str) -> None:
    method = make_method(name)
    with pytest.raises(ConfigError, match="this method trains"):
        open_objective(method, objective_recipe(method), model_config(kind))


@pytest.mark.parametrize("name", ["fim", "mlm", "electra", "t5", "bart", "ul2"])
def test_a_tokenizer_without_the_tokens_is_refused(name: str) -> None:
    method = make_method(name)
    plain = train_bpe(["the quick brown fox " * 20], vocab_size=300)
    with pytest.raises(TokenizerError, match="the tokenizer has no token") as caught:
        method.check(objective_recipe(method), plain, model_config(method.model_kinds[0]))
    assert "trivium tokenizer train" in caught.value.fix


def test_an_encoder_continues_no_prompts() -> None:
    method = make_method("mlm")
    with pytest.raises(ConfigError, match="continues no prompts"):
        open_objective(method, objective_recipe(method, sample_prompts=["a"]))


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        make_method("fim", prefix_lm=True)
    with pytest.raises(ValueError, match="more than everything"):
        make_method("mlm", mask_share=0.8, random_share=0.3)
    assert Electra.Config(generator="folder").generator == "folder"


def resumed(name: str, at: int) -> Callable[[Trainer], list[float]]:
    def losses(trainer: Trainer) -> list[float]:
        trainer.progression.position = at
        (batch,) = trainer.context.feed.batches()
        return [float(term.sum) for term in trainer.method.loss(batch).values()]

    return losses


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_is_a_function_of_its_position(name: str) -> None:
    late = resumed(name, 5)
    trainer = objective_trainer(make_method(name))
    for _ in range(5):
        trainer.context.feed.batches()
    (reached,) = trainer.context.feed.batches()
    fresh = objective_trainer(make_method(name))
    expected = [float(term.sum) for term in fresh.method.loss(reached).values()]
    assert late(objective_trainer(make_method(name))) == expected
