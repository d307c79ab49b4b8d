"""Methods that make their own examples, on the bare loop: tiny texts, tiny models of every kind, the real loader."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.conformance.harness import tiny_config, tiny_recipe
from trivium.core.distributed import Processes
from trivium.core.feed import LoaderFeed
from trivium.core.method import Context, Method
from trivium.core.state import Progression
from trivium.core.trainer import Trainer
from trivium.data.dataset import Dataset
from trivium.drivers.roles import fitted_head, load_roles
from trivium.drivers.session import engine_class, make_loader, open_data
from trivium.methods.clm import CausalLanguageModelling
from trivium.methods.denoise import Denoising
from trivium.methods.electra import Electra
from trivium.methods.mlm import MaskedLanguageModelling
from trivium.methods.seq2seq import SequenceToSequence
from trivium.models.config import ModelConfig
from trivium.optim.adamw import AdamW
from trivium.recipe import Recipe
from trivium.tokenizers.special import GROUPS, expanded
from trivium.tokenizers.tokenizer import Tokenizer
from trivium.tokenizers.train import train_bpe

LENGTH = 40
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog.", "It", "barks!")
OBJECTIVES: dict[str, tuple[type[Method], dict[str, Any]]] = {
    "fim": (CausalLanguageModelling, {"fim_rate": 0.7}),
    "prefix": (CausalLanguageModelling, {"prefix_lm": True}),
    "mlm": (MaskedLanguageModelling, {}),
    "mlm words": (MaskedLanguageModelling, {"unit": "word"}),
    "mlm spans": (MaskedLanguageModelling, {"unit": "span"}),
    "electra": (Electra, {"generator_size": 0.5}),
    "t5": (Denoising, {}),
    "bart": (Denoising, {"objective": "bart"}),
    "ul2": (Denoising, {"objective": "ul2"}),
    "seq2seq": (SequenceToSequence, {}),
    "seq2seq smoothed": (SequenceToSequence, {"label_smoothing": 0.1}),
}


def make_method(name: str, **changes: Any) -> Method:
    """The method of an objective, with changes to its settings."""
    cls, settings = OBJECTIVES[name]
    return cls(cls.Config(**{**settings, **changes}))


@cache
def tokenizer() -> Tokenizer:
    """A vocabulary with every special token."""
    return train_bpe([" ".join(WORDS) * 30], vocab_size=450, special=expanded(GROUPS))


def model_config(kind: str, **changes: Any) -> ModelConfig:
    """A tiny model of a kind."""
    encoder = {
        "family": "bert", "kind": "encoder", "positions": "learned", "norm": "layernorm", "norm_placement": "post",
        "final_norm": False, "embedding_norm": True, "mlp": "plain", "activation": "gelu", "token_types": 2,
        "biases": ("attention", "mlp"), "num_kv_heads": 4, "head": "masked", "head_bias": True, "tie_embeddings": True,
    }  # fmt: skip
    both = {
        "family": "t5", "kind": "encoder_decoder", "positions": "relative", "mlp": "gated", "activation": "gelu_tanh",
        "num_kv_heads": 4, "norm_eps": 1e-6, "attention_scale": 1.0, "init": "fan_in",
        "start_id": 0, "pad_id": 0, "eos_id": 2,
    }  # fmt: skip
    shape = {"decoder": {}, "encoder": encoder, "encoder_decoder": both}[kind]
    return tiny_config(**{"vocab_size": tokenizer().vocab_size, **shape, **changes})


@cache
def rows(kind: str, shape: str = "") -> str:
    """A file of ragged texts, of pairs, of texts with a label, or of similar texts in one of their shapes."""
    rng = random.Random(5)

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=rng.choice([1, 2, 5, 9, 40])))

    path = Path(tempfile.mkdtemp()) / "rows.jsonl"

    def line() -> dict[str, Any]:
        if kind == "pairs":
            return {"source": text(), "target": text()}
        if kind == "labels":
            found = text()
            return {"text": found, "label": "abc"[len(found.split()) % 3]}
        if kind in ("instructions", "preferences", "prompts"):
            answers = {"instructions": ("completion",), "preferences": ("chosen", "rejected"), "prompts": ("answer",)}
            return {"prompt": rng.choice(WORDS), **{name: " ".join(rng.choices(WORDS, k=4)) for name in answers[kind]}}
        if kind == "tokens":
            words = text().split()
            return {"tokens": words, "tags": ["OI"[len(word) % 2] for word in words]}
        if kind == "questions":
            word = rng.choice(WORDS)
            context = f"It is {word} there"
            return {"context": context, "question": "What?", "answers": {"text": [word], "answer_start": [6]}}
        if kind == "similar" and shape != "alone":
            pair = {"anchor": text(), "positive": text()}
            score = {"score": rng.random()} if shape == "scored" else {}
            return {**pair, **score, **({"negatives": [text(), text()]} if shape == "negatives" else {})}
        return {"text": text()}

    lines = [line() for _ in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def objective_recipe(
    method: Method, *, engine: str = "single", micro_rows: int = 8, shape: str = "", **train: Any
) -> Recipe:
    """The recipe of a tiny run in float64; `shape` is one of `rows`."""
    recipe = tiny_recipe(method, engine=engine, micro_batch_size=micro_rows, **train)
    train_file = rows(method.data_kind, shape)
    found = {"train": train_file, "sequence_length": LENGTH, "truncation": "right", "prefetch": 0}
    return Recipe.model_validate(
        {
            **recipe.model_dump(exclude={"data", "model"}),
            "runs": tempfile.mkdtemp(),
            "model": {"preset": "tiny", "dtype": "float64"},
            "data": found,
        }
    )


def open_objective(method: Method, recipe: Recipe, config: ModelConfig | None = None) -> tuple[ModelConfig, Dataset]:
    """The model as the method needs it, and its data; everything `open_session` checks is checked."""
    config = config or model_config((*method.model_kinds, "encoder")[0])
    method.check(recipe, tokenizer(), config)
    data, _ = open_data(recipe, method, tokenizer(), Processes())
    return fitted_head(config, method.head(data)), data


def objective_trainer(
    method: Method,
    *,
    engine: str = "single",
    processes: Processes | None = None,
    micro_rows: int = 8,
    optimizer: Any = None,
    pad_rows: bool = False,
    config: ModelConfig | None = None,
    shape: str = "",
    transforms: Sequence[Any] = (),
    **train: Any,
) -> Trainer:
    """A trainer on tiny models, built by the same functions as a run; `transforms` have a class and a config."""
    processes = processes or Processes()
    recipe = objective_recipe(method, engine=engine, micro_rows=micro_rows, shape=shape, **train)
    config, data = open_objective(method, recipe, config)
    loader = make_loader(recipe, method, data, processes)
    loader.pad_rows = pad_rows
    feed = LoaderFeed(loader, Progression(), 0)
    resolved: Any = SimpleNamespace(recipe=recipe, transforms=tuple(transforms))
    roles = load_roles(resolved, config, method, tokenizer(), compiled=False)
    context = Context(
        recipe=recipe,
        tokenizer=tokenizer(),
        roles=roles,
        feed=feed,
        progression=feed.progression,
        device=torch.device("cpu"),
        rank=loader.rank,
        world=processes.world,
    )
    method.bind(context)
    optimizer = optimizer or AdamW(AdamW.Config())
    runner = engine_class(recipe)(recipe, method, roles, optimizer, device=torch.device("cpu"), processes=processes)
    return Trainer(method, runner, context, total=recipe.train.steps or 1)
