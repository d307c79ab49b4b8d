"""Every method with every transform on models like BERT, GPT-2 and T5: it works, exactly, or is refused with a message.

What works: only what should train gets a gradient, the same for any split into micro-batches, and what is frozen has
none. `docs/reference/transforms.md` holds the table; `python -m tests.conformance.test_transforms` writes it anew.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.conformance.harness import Frozen, assert_same_gradients
from tests.conformance.objectives import model_config, objective_trainer, tokenizer
from tests.governance.source import ROOT
from trivium import registry
from trivium.core.method import Method
from trivium.errors import TriviumError
from trivium.models.build import build_model
from trivium.models.config import ModelConfig
from trivium.models.folder import save_model

KINDS = {"BERT": "encoder", "GPT-2": "decoder", "T5": "encoder_decoder"}
METHODS: dict[str, dict[str, Any]] = {
    "grpo": {"reward": "brevity", "group_size": 2, "max_new_tokens": 3, "minibatches": 1},
    "freelb": {"ascent_steps": 2},
    "electra": {"generator_size": 0.5},
}
"""Settings of methods that cannot do without, or are quicker with."""
TRANSFORMS: dict[str, dict[str, Any]] = {
    "bottleneck": {"width": 3, "places": ["attention", "mlp"], "init": "bert"},
    "ia3": {},
    "lora": {"rank": 2},
    "p_tuning": {"tokens": 2, "hidden_size": 4},
    "prefix_tuning": {"tokens": 2},
    "prompt_tuning": {"tokens": 2},
    "quantize": {"to": "int8"},
    "trainable": {"last_layers": 1},
}
NOT_ALONE = {"quantize": "lora"}
"""Transforms under which nothing trains, and what trains beside them."""
COMPOSED = {"fusion"}
"""Transforms that need adapters which were trained before; `tests/unit/test_transforms.py` has them."""
PAGE = ROOT / "docs" / "reference" / "transforms.md"


def config(kind: str) -> ModelConfig:
    gpt2 = {
        "family": "gpt2", "positions": "learned", "norm": "layernorm", "mlp": "plain", "num_kv_heads": 4,
        "biases": ("query_key_value", "attention_output", "mlp"), "activation": "gelu_tanh", "tie_embeddings": True,
    }  # fmt: skip
    return model_config(kind, **(gpt2 if kind == "decoder" else {}))


@cache
def teacher(kind: str) -> str:
    folder = Path(tempfile.mkdtemp())
    model = build_model(config(kind), seed=9, dtype=torch.float64)
    save_model(folder, model.config, dict(model.state_dict()))
    return str(folder)


def method(name: str, kind: str) -> Method:
    cls = registry.component("methods", name)
    settings = {**METHODS.get(name, {}), **({"teacher": teacher(kind)} if name == "distill" else {})}
    if "dropout" in cls.Config.model_fields:
        settings["dropout"] = 0.0
    found: Method = cls(cls.Config(**settings))
    return found


def chosen(name: str) -> list[Any]:
    names = [name, *([NOT_ALONE[name]] if name in NOT_ALONE else [])]
    classes = [registry.component("transforms", one) for one in names]
    return [
        SimpleNamespace(cls=cls, config=cls.Config(**TRANSFORMS[one])) for one, cls in zip(names, classes, strict=True)
    ]


def gradients(name: str, transform: str, kind: str, micro_rows: int) -> tuple[list[dict[str, torch.Tensor]], Any]:
    recorder = Frozen()
    trainer = objective_trainer(
        method(name, kind), config=config(kind), transforms=chosen(transform), optimizer=recorder,
        micro_rows=micro_rows, steps=1, batch_size=6,
    )  # fmt: skip
    trainer.fit()
    return recorder.gradients, trainer.engine.roles["policy"].module


def outcome(name: str, transform: str, kind: str) -> str:
    """`works`, or the message with which it is refused; anything else is an error of the test."""
    try:
        whole, module = gradients(name, transform, kind, 6)
    except TriviumError as error:
        return error.problem
    mine = {f"policy.{key}": p for key, p in module.named_parameters()}
    own = {key: p for key, p in mine.items() if p.requires_grad}
    assert own and len(own) < len(mine), "some parameters train and some do not"
    got = {key for key in whole[0] if key.startswith("policy.")}
    assert got and got <= set(own), "a frozen parameter has a gradient"
    if name not in ("grpo", "freelb"):  # they draw rollouts and noise for each micro-batch
        split, _ = gradients(name, transform, kind, 2)
        # The scales of a quantised base are float32.
        assert_same_gradients(split[0], whole[0], tolerance=1e-6 if transform == "quantize" else 1e-9)
    return "works"


def test_every_transform_is_here() -> None:
    assert set(TRANSFORMS) | COMPOSED == set(registry.names("transforms"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", registry.names("methods"))
def test_the_table_holds(name: str, kind: str) -> None:
    found = {transform: cell(outcome(name, transform, KINDS[kind])) for transform in TRANSFORMS}
    assert found == {transform: table()[name, transform, kind] for transform in TRANSFORMS}


def cell(found: str) -> str:
    """What stands in the table."""
    return "yes" if found == "works" else found


@cache
def table() -> dict[tuple[str, str, str], str]:
    """The table of the page."""
    found, reasons = {}, {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        parts = [part.strip() for part in line.strip("|").split("|")]
        if line.startswith("| [^") or (line.startswith("| (") and len(parts) == 2):
            reasons[parts[0]] = parts[1]
        elif line.startswith("| `") and len(parts) == len(TRANSFORMS) + 2:
            for transform, mark in zip(TRANSFORMS, parts[2:], strict=True):
                found[parts[0].strip("`"), transform, parts[1]] = mark
    return {key: reasons.get(mark, mark) for key, mark in found.items()}


def page() -> Iterator[str]:
    """The page, with the table as the test finds it."""
    yield "# Methods and transforms"
    yield ""
    yield "Which method trains what, on models like BERT, GPT-2 and T5. `yes`: it runs, the gradient does not depend on"
    yield "how an update is split, and what is frozen gets none. Everything else is refused before it starts, with the"
    yield "message below. Made by `python -m tests.conformance.test_transforms`, and held by the test of that name."
    yield "`quantize` is taken with `lora`."
    yield ""
    yield f"| method | model | {' | '.join(f'`{name}`' for name in TRANSFORMS)} |"
    yield f"| --- | --- |{' --- |' * len(TRANSFORMS)}"
    reasons: dict[str, str] = {}
    for name in registry.names("methods"):
        for kind in KINDS:
            marks = []
            for transform in TRANSFORMS:
                found = cell(outcome(name, transform, KINDS[kind]))
                if found != "yes":
                    found = reasons.setdefault(found, f"({len(reasons) + 1})")
                marks.append(found)
            yield f"| `{name}` | {kind} | {' | '.join(marks)} |"
    yield ""
    yield "| | refused because |"
    yield "| --- | --- |"
    for reason, mark in reasons.items():
        yield f"| {mark} | {reason} |"


if __name__ == "__main__":
    PAGE.write_text("\n".join(page()) + "\n", encoding="utf-8")
    assert tokenizer()
