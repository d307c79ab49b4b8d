"""Methods with a head for labels on the bare loop: exact whatever the split, with padding that does not count."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.conformance.harness import Frozen, StubTokenizer, assert_same_gradients, tiny_recipe
from tests.unit.labelled import bytelevel, opened, wordpiece, write_rows
from trivium.core.callbacks import Callback
from trivium.core.engine import Engine
from trivium.core.feed import LoaderFeed
from trivium.core.method import Context, Method, RoleModel
from trivium.core.state import Progression
from trivium.core.trainer import Trainer
from trivium.data.batch import IGNORE, Batch
from trivium.data.labelled import LabelledDataset
from trivium.data.loader import Loader
from trivium.errors import ConfigError
from trivium.methods.classification import Classification
from trivium.methods.question_answering import QuestionAnswering
from trivium.methods.token_classification import TokenClassification
from trivium.models.build import build_model
from trivium.models.config import ModelConfig
from trivium.models.folder import with_head
from trivium.optim.adamw import AdamW
from trivium.tokenizers.tokenizer import Tokenizer

BODIES: dict[str, dict[str, Any]] = {
    "bert": {
        "family": "bert",
        "kind": "encoder",
        "positions": "learned",
        "norm": "layernorm",
        "norm_placement": "post",
        "final_norm": False,
        "embedding_norm": True,
        "mlp": "plain",
        "activation": "gelu",
        "biases": ("query_key_value", "attention_output", "mlp"),
        "token_types": 2,
        "tie_embeddings": True,
        "head": "masked",
        "head_bias": True,
        "norm_eps": 1e-12,
        "pad_id": 0,
    },
    "llama": {"family": "llama", "num_kv_heads": 2},
}
WORDS = ["good", "bad", "film", "story", "Ada", "London", "unbelievably", "boring", "joy", "the"]


def body(name: str) -> ModelConfig:
    shape = {
        "vocab_size": 320,
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 4,
        "intermediate_size": 24,
        "max_positions": 64,
    }
    return ModelConfig.model_validate({**shape, **BODIES[name]})


def rows(kind: str, number: int = 24) -> list[dict[str, Any]]:
    """Rows of very unequal length."""
    draw = random.Random(5)
    found: list[dict[str, Any]] = []
    for at in range(number):
        words = [draw.choice(WORDS) for _ in range(draw.choice([1, 2, 5, 9]))]
        text = " ".join(words)
        if kind == "one label":
            found.append({"text": text, "label": draw.choice("abc")})
        elif kind == "pairs of texts":
            found.append({"text_a": text, "text_b": draw.choice(WORDS), "label": draw.choice("ab")})
        elif kind == "several labels":
            found.append({"text": text, "x": draw.choice([0, 1]), "y": draw.choice([0, 1, None])})
        elif kind == "numbers":
            found.append({"text": text, "label": draw.random()})
        elif kind == "words":
            found.append({"tokens": words, "tags": [draw.choice(["O", "B-X", "I-X"]) for _ in words]})
        else:
            answers = {"text": [words[0]], "answer_start": [0]} if at % 3 else {"text": [], "answer_start": []}
            found.append({"context": text, "question": "Who?", "answers": answers})
    return found


CASES: dict[str, tuple[type[Method], str, dict[str, Any]]] = {
    "one label": (Classification, "labels", {}),
    "pairs of texts": (Classification, "labels", {}),
    "several labels": (Classification, "labels", {"label": ["x", "y"]}),
    "numbers": (Classification, "labels", {}),
    "words": (TokenClassification, "tokens", {}),
    "questions": (QuestionAnswering, "questions", {}),
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    return {"bert": wordpiece(tmp_path_factory.mktemp("wordpiece")), "llama": bytelevel()}


class Losses(Callback):
    """Keeps the loss and the terms of each update."""

    def __init__(self) -> None:
        self.terms: list[dict[str, float]] = []

    def update_end(self, trainer: Trainer, update: Any, result: Any, tokens: int) -> None:
        self.terms.append({"loss": result.loss, **result.terms})


class Feed(LoaderFeed):
    """Without a thread."""

    def batches(self) -> list[Batch]:
        self.progression.position += 1
        return self.loader.update(self.progression.position - 1)


class Bench:
    """Data, model and trainer of one case."""

    def __init__(self, folder: Path, tokenizers: dict[str, Tokenizer], *, name: str = "bert", case: str) -> None:
        cls, kind, labels = CASES[case]
        self.cls, self.name = cls, name
        path = write_rows(folder / f"{case.replace(' ', '-')}.jsonl", rows(case))
        self.data: LabelledDataset = opened(path, tokenizers[name], kind, labels=labels)

    def trainer(
        self, *, micro_rows: int = 8, pad: bool = False, optimizer: Any = None, settings: Any = None, **train: Any
    ) -> Trainer:
        chosen = settings if settings is not None else {"dropout": 0.0}
        method = self.cls(self.cls.Config(**chosen))
        wanted = method.head(self.data)
        assert wanted is not None
        pooling = {"pooling": "last"} if self.name == "llama" else {}
        config = with_head(body(self.name), {"head_bias": True, **pooling, **wanted})
        recipe = tiny_recipe(method, **{"batch_size": 8, **train})
        loader = Loader(
            self.data,
            rows=recipe.train.batch_size,
            micro_rows=micro_rows,
            sequence_length=64,
            packing="none",
            seed=0,
            pad_rows=pad,
        )
        roles = {
            "policy": RoleModel("policy", build_model(config, seed=1, dtype=torch.float64), method.roles()["policy"])
        }
        feed = LoaderFeed(loader, Progression(), 0)
        context = Context(
            recipe=recipe,
            tokenizer=StubTokenizer(),  # type: ignore[arg-type]
            roles=roles,
            feed=feed,
            progression=feed.progression,
            device=torch.device("cpu"),
        )
        method.bind(context)
        engine = Engine(recipe, method, roles, optimizer or AdamW(AdamW.Config()), device=torch.device("cpu"))
        return Trainer(method, engine, context, total=recipe.train.steps or 1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", BODIES)
def test_gradient_does_not_depend_on_the_split(
    tmp_path: Path, tokenizers: dict[str, Tokenizer], name: str, case: str
) -> None:
    bench = Bench(tmp_path, tokenizers, name=name, case=case)

    def gradients(**how: Any) -> list[dict[str, torch.Tensor]]:
        recorder = Frozen()
        bench.trainer(optimizer=recorder, steps=2, **how).fit()
        return recorder.gradients

    whole = gradients()
    for micro_rows, pad in ((1, False), (3, False), (3, True), (8, True)):
        for ours, reference in zip(gradients(micro_rows=micro_rows, pad=pad), whole, strict=True):
            assert_same_gradients(ours, reference)


@pytest.mark.parametrize("case", CASES)
def test_overfits_a_tiny_set(tmp_path: Path, tokenizers: dict[str, Tokenizer], case: str) -> None:
    bench = Bench(tmp_path, tokenizers, case=case)
    trainer = bench.trainer(steps=120, batch_size=24, micro_rows=24, lr=2e-2)
    log = Losses()
    trainer.callbacks.append(log)
    trainer.fit()
    assert log.terms[-1]["loss"] < 0.6 * log.terms[0]["loss"]


@pytest.mark.parametrize("case", CASES)
def test_weights_count_what_the_loss_sums_and_no_padding(
    tmp_path: Path, tokenizers: dict[str, Tokenizer], case: str
) -> None:
    bench = Bench(tmp_path, tokenizers, case=case)
    trainer = bench.trainer(micro_rows=3, pad=True)
    rows_seen = 0
    for batch in trainer.context.feed.batches():
        counted = trainer.method.weights(batch)
        terms = trainer.method.loss(trainer.method.prepare(batch))
        assert {term.unit for term in terms.values()} <= set(counted)
        assert batch.layout.sequences > len(batch.sample_ids), "there is padding"
        rows_seen += len(batch.sample_ids)
        if case != "words":
            assert counted["sequences"] == len(batch.sample_ids)
            assert counted["tokens"] == sum(batch.layout.lengths[: len(batch.sample_ids)])
        else:
            assert counted["tokens"] == int((batch.targets != IGNORE).sum())
    assert rows_seen == 8


@pytest.mark.parametrize("case", CASES)
def test_a_rank_without_rows_adds_nothing(tmp_path: Path, tokenizers: dict[str, Tokenizer], case: str) -> None:
    bench = Bench(tmp_path, tokenizers, case=case)
    trainer = bench.trainer()
    loader = Loader(bench.data, rows=1, micro_rows=1, sequence_length=64, packing="none", seed=0, rank=1, world=2)
    (filler,) = loader.update(0)
    assert not filler.sample_ids
    assert not any(trainer.method.weights(filler).values())
    total = sum(term.sum * term.coefficient for term in trainer.method.loss(trainer.method.prepare(filler)).values())
    assert float(total.detach()) == 0.0 and total.requires_grad


# The losses are those of torch


def logits(trainer: Trainer, batch: Any) -> torch.Tensor:
    result: torch.Tensor = trainer.method.policy(
        trainer.method.prepare(batch), lambda hidden, head: head(hidden, batch.layout)
    )
    return result.detach()


def test_one_label_is_cross_entropy(tmp_path: Path, tokenizers: dict[str, Tokenizer]) -> None:
    bench = Bench(tmp_path, tokenizers, case="one label")
    weights = {"a": 3.0, "b": 1.0, "c": 1.0}
    trainer = bench.trainer(settings={"dropout": 0.0, "label_smoothing": 0.1, "class_weights": weights})
    (batch,) = trainer.context.feed.batches()
    scores, target = logits(trainer, batch), batch.fields["label"].long()
    terms = trainer.method.loss(trainer.method.prepare(batch))
    counts = torch.tensor([bench.data.counts[name] for name in bench.data.labels], dtype=torch.float64)
    given = torch.tensor(list(weights.values()), dtype=torch.float64)
    given = given * counts.sum() / (given * counts).sum()
    expected = F.cross_entropy(scores, target, given, label_smoothing=0.1, reduction="sum")
    assert float(terms["cross_entropy"].sum) == pytest.approx(float(expected), rel=1e-9)
    assert float(terms["accuracy"].sum) == float((scores.argmax(1) == target).sum())


def test_several_labels_skip_what_is_not_known(tmp_path: Path, tokenizers: dict[str, Tokenizer]) -> None:
    bench = Bench(tmp_path, tokenizers, case="several labels")
    trainer = bench.trainer()
    (batch,) = trainer.context.feed.batches()
    scores, target = logits(trainer, batch), batch.fields["label"].double()
    known = ~target.isnan()
    assert not known.all()
    expected = F.binary_cross_entropy_with_logits(scores[known], target[known], reduction="sum")
    term = trainer.method.loss(trainer.method.prepare(batch))["cross_entropy"]
    assert float(term.sum) == pytest.approx(float(expected), rel=1e-9)
    assert trainer.method.weights(batch)["labels"] == float(known.sum())


def test_spans_are_softmaxes_over_their_own_window(tmp_path: Path, tokenizers: dict[str, Tokenizer]) -> None:
    bench = Bench(tmp_path, tokenizers, case="questions")
    trainer = bench.trainer()
    (batch,) = trainer.context.feed.batches()
    scores, expected = logits(trainer, batch), 0.0
    for row, (first, last) in enumerate(batch.layout.spans()):
        for column, name in enumerate(("start", "end")):
            target = batch.fields[name][row].long()
            expected += float(F.cross_entropy(scores[first:last, column][None], target[None])) / 2
    term = trainer.method.loss(trainer.method.prepare(batch))["cross_entropy"]
    assert float(term.sum) == pytest.approx(expected, rel=1e-9)


# Options


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("one label", {"pooling": "mean"}),
        ("one label", {"pooling": "max"}),
        ("one label", {"pooling": "last"}),
        ("one label", {"head_dense": "relu"}),
        ("one label", {"dropout": 0.5}),
        ("one label", {"class_weights": "balanced"}),
        ("one label", {"label_smoothing": 0.3}),
        ("several labels", {"class_weights": "balanced"}),
        ("several labels", {"label_smoothing": 0.3}),
        ("words", {"head_dense": "gelu"}),
        ("words", {"dropout": 0.5}),
        ("words", {"class_weights": {"O": 0.1}}),
        ("words", {"label_smoothing": 0.3}),
        ("questions", {"dropout": 0.5}),
    ],
)
def test_each_option_changes_the_loss(
    tmp_path: Path, tokenizers: dict[str, Tokenizer], case: str, change: dict[str, Any]
) -> None:
    bench = Bench(tmp_path, tokenizers, case=case)

    def loss(**settings: Any) -> float:
        trainer = bench.trainer(settings={"dropout": 0.0, **settings})
        (batch,) = trainer.context.feed.batches()
        torch.manual_seed(0)
        terms = trainer.method.loss(trainer.method.prepare(batch))
        return float(terms["squared_error" if case == "numbers" else "cross_entropy"].sum)

    assert not math.isclose(loss(), loss(**change), rel_tol=1e-6)


def test_segments_of_a_pair_are_told_apart(tmp_path: Path, tokenizers: dict[str, Tokenizer]) -> None:
    bench = Bench(tmp_path, tokenizers, case="pairs of texts")
    trainer = bench.trainer()
    (batch,) = trainer.context.feed.batches()
    types = trainer.method.prepare(batch).fields["token_types"]
    for row, (first, last) in enumerate(batch.layout.spans()):
        second = int(batch.fields["second"][row])
        assert types[first:last].tolist() == [0] * second + [1] * (last - first - second)
        assert 0 < second < last - first


def test_balanced_weights_have_the_mean_one(tmp_path: Path, tokenizers: dict[str, Tokenizer]) -> None:
    bench = Bench(tmp_path, tokenizers, case="one label")
    method = Classification(Classification.Config(class_weights="balanced"))
    method.head(bench.data)
    assert method.class_weights is not None
    counts = [bench.data.counts[name] for name in bench.data.labels]
    shares = [weight * count for weight, count in zip(method.class_weights, counts, strict=True)]
    assert shares == pytest.approx([len(bench.data) / 3] * 3)


# Refusals


@pytest.mark.parametrize(
    ("case", "settings", "said"),
    [
        ("one label", {"class_weights": {"d": 2.0}}, "no such label"),
        ("one label", {"class_weights": {"a": 0.0}}, "above 0"),
        ("numbers", {"class_weights": "balanced"}, "numbers have no classes"),
    ],
)
def test_wrong_weights(
    tmp_path: Path, tokenizers: dict[str, Tokenizer], case: str, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        Bench(tmp_path, tokenizers, case=case).trainer(settings=settings)


def test_first_token_of_a_decoder_is_refused(tmp_path: Path, tokenizers: dict[str, Tokenizer]) -> None:
    with pytest.raises(ConfigError, match="first token of a decoder"):
        Bench(tmp_path, tokenizers, name="llama", case="one label").trainer(settings={"pooling": "first"})


def test_samples_are_refused(tmp_path: Path, tokenizers: dict[str, Tokenizer]) -> None:
    with pytest.raises(ConfigError, match="continues no prompts"):
        Bench(tmp_path, tokenizers, case="one label").trainer(sample_prompts=["a"])
