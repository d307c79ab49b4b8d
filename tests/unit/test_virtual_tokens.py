"""Soft prompts, prefixes and P-tuning: what the model sees, how they train, what is stored, what is refused."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import trivium as tv
from tests.crash.kills import fingerprint, make_world
from tests.unit.test_run import interrupt_at
from trivium.data.batch import IGNORE, Layout, Source
from trivium.errors import ConfigError, Interrupted, ModelError, TriviumError
from trivium.inference.engine import generate_ids
from trivium.losses import token_loss
from trivium.models.build import build_model, preset
from trivium.models.folder import load_model
from trivium.models.transform import Transform, apply_transforms
from trivium.models.transformer import Transformer
from trivium.registry import component

pytestmark = pytest.mark.timeout(300)
LENGTHS = (7, 1, 30, 12, 12, 3)
COUNT = 4
SMALL: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_heads": 2, "head_dim": 16, "intermediate_size": 32}
KINDS: dict[str, dict[str, Any]] = {
    "prompt_tuning": {"init": "random"},
    "p_tuning": {},
    "p_tuning lstm": {"encoder": "lstm", "hidden_size": 8},
    "prefix_tuning": {},
    "prefix_tuning projection": {"projection": True, "hidden_size": 8},
}
DECODERS = ["llama-1m", "gpt2-1m", "falcon-1m", "gemma2-1m", "mixtral-1m"]


def make(kind: str, **settings: Any) -> Transform:
    name = kind.split()[0]
    cls = component("transforms", name)
    transform: Transform = cls(cls.Config(**{"tokens": COUNT, **KINDS.get(kind, {}), **settings}))
    return transform


def adapted(name: str, *kinds: str, dtype: torch.dtype = torch.float64, **shape: Any) -> Transformer:
    model = build_model(preset(name, {**SMALL, "num_layers": 2, "init_std": 0.2, **shape}), seed=0, dtype=dtype)
    apply_transforms(model, [make(kind) for kind in kinds], seed=3)
    return model.eval()


def ids_of(lengths: tuple[int, ...] = LENGTHS) -> Tensor:
    return torch.randint(0, 64, (sum(lengths),), generator=torch.Generator().manual_seed(0))


def changed(kinds: tuple[str, ...], name: str) -> bool:
    model, plain = adapted(name, *kinds), adapted(name)
    with torch.no_grad():
        return bool((model(ids_of(), Layout(LENGTHS)) - plain(ids_of(), Layout(LENGTHS))).abs().max() > 1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*DECODERS, "bert-1m"])
def test_a_sequence_has_the_same_logits_packed_and_alone(name: str, kind: str) -> None:
    model, ids = adapted(name, kind), ids_of()
    with torch.no_grad():
        packed = model(ids, Layout(LENGTHS))
        alone = [model(ids[start:end], Layout((end - start,))) for start, end in Layout(LENGTHS).spans()]
        even = model(ids[:24].view(4, 6)).flatten(0, 1)
        uneven = torch.cat([model(ids[at : at + 6], Layout((6,))) for at in range(0, 24, 6)])
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(even, uneven, rtol=1e-8, atol=1e-8)
    assert changed((kind,), name)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["bert-1m", "llama-1m"])
@pytest.mark.parametrize("kinds", [("prompt_tuning",), ("prefix_tuning", "p_tuning")])
def test_tokens_nobody_looks_at_can_be_left_out(name: str, kinds: tuple[str, ...], checkpointing: bool) -> None:
    model, ids = adapted(name, *kinds), ids_of()
    if checkpointing:
        model.checkpoint_activations()
    targets = torch.where(torch.rand(len(ids), generator=torch.Generator().manual_seed(1)) < 0.3, ids, IGNORE)

    def run(**more: Any) -> list[Tensor]:
        model.zero_grad()
        loss = model(ids, Layout(LENGTHS), then=lambda hidden, head: token_loss(hidden, head, targets), **more)
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    wanted = (targets != IGNORE).nonzero().squeeze(1)
    whole = run()
    torch.testing.assert_close(run(wanted=wanted), whole, rtol=1e-9, atol=1e-10)
    assert len(whole) == 1 + sum(p.requires_grad for p in model.parameters())


def test_the_gradient_is_that_of_every_sequence_by_itself() -> None:
    model, ids = adapted("llama-1m", "prefix_tuning projection", "prompt_tuning"), ids_of()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == sum(name.startswith("prompts.") for name, _ in model.named_parameters()) > 0
    whole = torch.autograd.grad(model(ids, Layout(LENGTHS)).square().sum(), trained)
    parts = [model(ids[a:b], Layout((b - a,))).square().sum() for a, b in Layout(LENGTHS).spans()]
    torch.testing.assert_close(whole, torch.autograd.grad(sum(parts), trained), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kinds", [("prompt_tuning",), ("prefix_tuning",), ("prefix_tuning", "prompt_tuning")])
@pytest.mark.parametrize("name", DECODERS)
def test_generation_with_the_cache_is_that_without(name: str, kinds: tuple[str, ...]) -> None:
    model = adapted(name, *kinds)
    prompts = [[5, 6, 7], [9], [5, 6, 7], [3, 4, 5, 6, 7, 8]]
    answers = generate_ids(model, prompts, max_new_tokens=6, eos_ids=[])
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([*prompt, *answer.ids])
        with torch.no_grad():
            logits = model(ids[:-1], Layout((len(ids) - 1,)))[len(prompt) - 1 :]
        expected = logits.float().log_softmax(-1).gather(1, ids[len(prompt) :, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_encoder_decoders_read_them_as_peft_has_it(kind: str) -> None:
    model = adapted("t5-1m", kind, num_decoder_layers=2)
    source = Source(ids_of(), Layout(LENGTHS))
    answers = Layout((3, 2, 1, 4, 2, 5))
    ids = ids_of(answers.lengths)
    with torch.no_grad():
        together = model(ids, answers, source=source)
        alone = []
        for (a, b), (c, d) in zip(answers.spans(), source.layout.spans(), strict=True):
            alone.append(model(ids[a:b], Layout((b - a,)), source=Source(source.ids[c:d], Layout((d - c,)))))
        assert len(model.encode(source)) == len(source.ids), "virtual tokens are no part of what is read"
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-8, atol=1e-8)
    prompts = [source.ids[c:d].tolist() for c, d in source.layout.spans()]
    found = generate_ids(model, prompts, max_new_tokens=4, eos_ids=[])
    again = [generate_ids(model, [prompt], max_new_tokens=4, eos_ids=[])[0] for prompt in prompts]
    assert [each.ids for each in found] == [each.ids for each in again]


def test_a_head_that_reads_the_first_token_reads_a_virtual_one() -> None:
    shape: dict[str, Any] = {"head": "sequence", "labels": ("a", "b"), "pooling": "first"}
    model, prefixed = adapted("bert-1m", "prompt_tuning", **shape), adapted("bert-1m", "prefix_tuning", **shape)
    lengths = Layout(LENGTHS)
    for each, virtual in ((model, True), (prefixed, False)):
        with torch.no_grad():
            scores = each(ids_of(), lengths)
            hidden = each(ids_of(), lengths, then=lambda hidden, head: hidden)
            assert torch.equal(scores, each.head(hidden, lengths))
            plain = adapted("bert-1m", *(["prompt_tuning"] if virtual else ["prefix_tuning"]), head="masked")
            other = plain(ids_of(), lengths, then=lambda hidden, head: hidden)
        starts = torch.tensor(lengths.starts())
        assert torch.allclose(hidden[starts], other[starts]) is not virtual


# Runs


Changed = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe that starts from a trained base."""
    recipe = make_world(tmp_path_factory.mktemp("virtual"), "clm")
    recipe["train"].update(steps=6, checkpoint_every=2, validate_every=3, sample_every=3, threads=1, lr=0.03)
    base = tv.train({**recipe, "name": "base"}).final
    return {**recipe, "model": {"path": str(base)}}


@pytest.fixture
def recipe_of(world: dict[str, Any], request: pytest.FixtureRequest) -> Changed:
    def make(*transforms: dict[str, Any], **train: Any) -> dict[str, Any]:
        name = re.sub(r"\W+", "-", request.node.name)
        return {**world, "name": name, "transforms": list(transforms), "train": {**world["train"], **train}}

    return make


@pytest.mark.parametrize("kind", ["prompt_tuning", "p_tuning", "prefix_tuning projection"])
def test_a_run_leaves_a_few_kilobytes_and_the_base_as_it_was(recipe_of: Changed, kind: str) -> None:
    name, settings = (
        kind.split()[0],
        {"tokens": 3, **KINDS[kind], **({"init": "vocabulary"} if "init" in KINDS[kind] else {})},
    )
    recipe = recipe_of({"name": name, **settings})
    base = Path(recipe["model"]["path"])
    before = {file.name: file.read_bytes() for file in base.iterdir() if file.is_file()}
    run = tv.train(recipe)
    assert run.final is not None
    assert {file.name: file.read_bytes() for file in base.iterdir() if file.is_file()} == before
    model, plain = load_model(run.final).eval(), load_model(base).eval()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in plain.state_dict().items())
    stored = {name: p for name, p in model.named_parameters() if name.startswith("prompts.")}
    assert len(stored) == 1 and len(next(iter(stored.values()))) == 3
    size = sum(file.stat().st_size for file in run.final.glob("*adapter*"))
    assert size < 4 * next(iter(stored.values())).numel() + 3000
    assert not (run.final / "training.safetensors").exists()
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "validation"]
    assert losses[-1] < losses[0]
    assert tv.load(run.final).generate("def", max_new_tokens=4, temperature=0)


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_an_interrupted_run_keeps_the_network(
    recipe_of: Changed, monkeypatch: pytest.MonkeyPatch, encoder: str
) -> None:
    transform = {"name": "p_tuning", "tokens": 3, "encoder": encoder}
    straight = tv.train({**recipe_of(transform), "name": f"straight-{encoder}"})
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3, signal.SIGTERM)
        with pytest.raises(Interrupted):
            tv.train(recipe_of(transform))
    assert fingerprint(tv.train(recipe_of(transform)).folder) == fingerprint(straight.folder)


def test_lora_and_a_soft_prompt_train_and_load_together(recipe_of: Changed) -> None:
    recipe = recipe_of({"name": "lora", "rank": 2}, {"name": "prompt_tuning", "tokens": 3})
    run = tv.train(recipe)
    model = load_model(run.final or "").eval()
    assert [transform.peft_type for transform in model.transforms] == ["LORA", "PROMPT_TUNING"]
    ids = torch.randint(3, 400, (2, 9))
    with torch.no_grad():
        whole = model(ids)
        for left_out in model.transforms:
            other = load_model(run.final or "").eval()
            name = left_out.name
            next(each for each in other.transforms if each.name == name).remove(other)
            other.transforms = [each for each in other.transforms if each.name != name]
            assert (other(ids) - whole).abs().max() > 1e-4


def test_a_soft_prompt_begins_as_it_was_told(world: dict[str, Any]) -> None:
    model, tokenizer = load_model(world["model"]["path"]), tv.load(world["model"]["path"]).tokenizer
    cls = component("transforms", "prompt_tuning")

    def first(**settings: Any) -> Tensor:
        transform = cls(cls.Config(**settings))
        transform.read(tokenizer)
        transform.name = "prompt_tuning"
        module: Any = transform.first_vectors(model, seed=settings.get("tokens") or 0)
        weight: Tensor = module.weight
        return weight.detach()

    text = tokenizer.encode("abc def")
    embedding = model.embed.weight.detach()
    assert torch.equal(first(init="text", text="abc def"), embedding[text])
    repeated = first(init="text", text="abc def", tokens=len(text) + 2)
    assert torch.equal(repeated, embedding[[*text, *text][: len(text) + 2]])
    drawn = first(tokens=50)
    assert all(any(torch.equal(row, other) for other in embedding) for row in drawn)
    assert first().shape == (20, embedding.shape[1])
    noise = first(init="random", tokens=50)
    assert 0.8 < float(noise.std() / embedding.std()) < 1.25 and not torch.equal(noise, drawn)


@pytest.mark.parametrize(
    ("transform", "changes", "message"),
    [
        (
            {"name": "prompt_tuning", "tokens": 2, "init": "text", "text": "abcdefghij abc"},
            {},
            "longer than the soft prompt",
        ),
        ({"name": "prompt_tuning", "init": "text"}, {}, "belong together"),
        ({"name": "prompt_tuning", "text": "abc"}, {}, "belong together"),
        ({"name": "prompt_tuning", "tokens": 5000}, {}, "has only .* positions"),
        ({"name": "prefix_tuning", "tokens": 3}, {"sequence_length": 510}, "virtual tokens take some of them"),
        ({"name": "prefix_tuning", "hidden_size": 3}, {}, "there is none"),
        ({"name": "p_tuning", "lstm_layers": 1}, {}, "no effect on an MLP"),
        ({"name": "p_tuning", "encoder": "lstm", "lstm_layers": 1, "lstm_dropout": 0.1}, {}, "stands between layers"),
    ],
)
def test_what_cannot_be_is_refused(
    recipe_of: Changed, transform: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    recipe = recipe_of(transform)
    recipe["data"] = {**recipe["data"], **changes}
    with pytest.raises(ConfigError, match=message) as caught:
        tv.train(recipe)
    assert str(caught.value).count("\n") < 5


def test_virtual_tokens_take_room() -> None:
    model = adapted("gpt2-1m", "prompt_tuning", "prefix_tuning", max_positions=20)
    assert model.virtual_tokens() == (2 * COUNT, 0)
    assert len(generate_ids(model, [[3] * 6], max_new_tokens=6, eos_ids=[])[0].ids) == 6
    with pytest.raises(TriviumError, match="too long for the model"):
        generate_ids(model, [[3] * 6], max_new_tokens=7, eos_ids=[])
    with pytest.raises(ModelError, match="longer than the model has positions"):
        model(torch.zeros(13, dtype=torch.int64), Layout((13,)))


def test_a_forecast_counts_them(recipe_of: Changed) -> None:
    memory = []
    for transforms in ([], [{"name": "prompt_tuning", "tokens": 100}]):
        recipe = recipe_of(*transforms, steps=4)
        run = tv.train({**recipe, "name": f"forecast-{len(transforms)}"})
        plan = json.loads((run.folder / "forecast.json").read_text())["forecast"]
        memory.append(plan["memory"]["activations_per_row"])
    assert memory[1] > memory[0] * 1.2
