"""The bare loop on tiny models: no files, no tokenizer training, no command line."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from trivium.core.distributed import Processes
from trivium.core.engine import Engine
from trivium.core.engine_pipeline import PipelineEngine
from trivium.core.engine_tensor import TensorEngine
from trivium.core.method import Context, Method, RoleModel
from trivium.core.state import Progression
from trivium.core.trainer import Trainer
from trivium.data.batch import Batch, make_batch
from trivium.data.samples import Sample, TokenSequence
from trivium.models.build import build_model
from trivium.models.config import ModelConfig
from trivium.optim.adamw import AdamW
from trivium.recipe import Recipe

VOCABULARY = 61


def tiny_config(**changes: Any) -> ModelConfig:
    """A llama-style model of a few thousand parameters."""
    settings: dict[str, Any] = {
        "family": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 4,
        "intermediate_size": 32,
        "max_positions": 64,
    }
    return ModelConfig(**{**settings, **changes})


class StubTokenizer:
    """Numbers as text, for methods that decode answers."""

    eos_id = 1

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        return " ".join(str(token) for token in ids)


def ragged_sequences(count: int, seed: int = 0, longest: int = 20) -> list[list[int]]:
    """Sequences of very unequal length."""
    rng = random.Random(seed)
    return [[rng.randrange(2, VOCABULARY) for _ in range(rng.choice([2, 3, 5, 9, longest]))] for _ in range(count)]


@dataclass
class ListFeed:
    """Samples in a fixed order, dealt to ranks row by row and cut into micro-batches."""

    kind: str
    rows: int
    micro_rows: int
    progression: Progression
    count: int = 24
    rank: int = 0
    world: int = 1
    pad_to: int | None = None
    samples_of: list[Sample] = field(init=False)

    def __post_init__(self) -> None:
        self.samples_of = make_samples(self.kind, self.count)

    def numbers(self) -> list[int]:
        start = self.progression.position * self.rows
        self.progression.position += 1
        return [(start + number) % self.count for number in range(self.rows)]

    def samples(self) -> list[Sample]:
        return [self.samples_of[number] for number in self.numbers()[self.rank :: self.world]]

    def batches(self) -> list[Batch]:
        mine = self.samples()
        most = -(-self.rows // self.world)
        return [
            collate(mine[start : start + self.micro_rows], pad_to=self.pad_to)
            for start in range(0, most, self.micro_rows)
        ]


def make_samples(kind: str, count: int) -> list[Sample]:
    """Ragged samples of one kind; one instruction in three has no trained token."""
    rng = random.Random(7)
    samples = []
    for number, ids in enumerate(ragged_sequences(count, seed=3)):
        if kind == "documents":
            sequences = [TokenSequence(ids, [True] * len(ids))]
        elif kind == "instructions":
            flags = [number % 3 != 0 and rng.random() < 0.5 for _ in ids]
            sequences = [TokenSequence(ids, flags)]
        elif kind == "preferences":
            answers = ragged_sequences(2, seed=100 + number, longest=7)
            sequences = [TokenSequence(ids + answer, [False] * len(ids) + [True] * len(answer)) for answer in answers]
        else:
            sequences = [TokenSequence(ids, [False] * len(ids))]
        samples.append(Sample(f"sample-{number}", sequences, row={"answer": "7"}))
    return samples


def collate(samples: Sequence[Sample], *, pad_to: int | None = None) -> Batch:
    """A micro-batch; with nothing in it, one untrained token."""
    sequences = [sequence for sample in samples for sequence in sample.sequences]
    ids = [list(sequence.ids) for sequence in sequences]
    trained = [list(sequence.trained) for sequence in sequences]
    tokens = sum(len(one) - 1 for one in ids)
    weights = [weight for sequence in sequences for weight in (sequence.weights or ())[1:]]
    fill = (pad_to - tokens) if pad_to is not None else int(not ids)
    if fill:
        ids.append([0] * (fill + 1))
        trained.append([False] * (fill + 1))
    weights += [0.0] * (fill if weights else 0)
    fields = {"weights": torch.tensor(weights)} if weights else None
    return make_batch(ids, trained, fields=fields, sample_ids=[sample.id for sample in samples])


def tiny_recipe(method: Method, *, engine: str = "single", **train: Any) -> Recipe:
    """A valid recipe around a method object."""
    settings = {"steps": 6, "batch_size": 8, "lr": 1e-2, "clip": None, "warmup_steps": 0, **train}
    return Recipe.model_validate(
        {
            "name": "tiny",
            "method": type(method).__name__,
            "model": {"preset": "tiny"},
            "data": {"train": "none"},
            "train": settings,
            "engine": {"name": engine, "device": "cpu"},
        }
    )


def make_trainer(
    method: Method,
    *,
    engine: str = "single",
    processes: Processes | None = None,
    micro_rows: int = 8,
    dtype: torch.dtype = torch.float64,
    config: ModelConfig | None = None,
    optimizer: Any = None,
    pad_to: int | None = None,
    build: Callable[[str], torch.nn.Module] | None = None,
    **train: Any,
) -> Trainer:
    """A trainer on random tiny models; every role starts from its own seed."""
    processes = processes or Processes()
    recipe = tiny_recipe(method, engine=engine, **train)
    config = config or tiny_config()

    def fresh(name: str) -> torch.nn.Module:
        return build_model(config, seed=1 + (name in ("teacher", "critic")), dtype=dtype)

    roles = {name: RoleModel(name, (build or fresh)(name), role) for name, role in method.roles().items()}
    progression = Progression()
    sharded = engine in ("ddp", "fsdp2")
    feed = ListFeed(
        method.data_kind,
        recipe.train.batch_size,
        micro_rows,
        progression,
        rank=processes.rank if sharded else 0,
        world=processes.world if sharded else 1,
        pad_to=pad_to,
    )
    context = Context(
        recipe=recipe,
        tokenizer=StubTokenizer(),  # type: ignore[arg-type]
        roles=roles,
        feed=feed,
        progression=progression,
        device=torch.device("cpu"),
        rank=feed.rank,
        world=processes.world,
    )
    method.bind(context)
    kind = {"pipeline": PipelineEngine, "tensor": TensorEngine}.get(engine, Engine)
    runner = kind(
        recipe,
        method,
        roles,
        optimizer or AdamW(AdamW.Config()),
        device=torch.device("cpu"),
        processes=processes,
    )
    return Trainer(method, runner, context, total=recipe.train.steps or 1)


class Frozen:
    """An 'optimiser' that leaves the weights alone and remembers the gradient it was given."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []

    def build(self, named: Any, *, lr: float) -> torch.optim.Optimizer:
        return _Recorder(dict(named), self.gradients)


class _Recorder(torch.optim.Optimizer):
    def __init__(self, named: dict[str, torch.nn.Parameter], gradients: list[dict[str, torch.Tensor]]) -> None:
        super().__init__(list(named.values()), {"lr": 0.0})
        self.named = named
        self.gradients = gradients

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        from trivium.core.distributed import whole_tensors

        grads = {name: p.grad for name, p in self.named.items() if p.grad is not None}
        self.gradients.append({name: grad.clone() for name, grad in whole_tensors(grads).items()})


def assert_same_gradients(
    ours: dict[str, torch.Tensor], reference: dict[str, torch.Tensor], tolerance: float = 1e-10
) -> None:
    """Equal up to `tolerance`, relative to the largest entry of the whole gradient."""
    assert ours.keys() == reference.keys()
    scale = max(float(gradient.abs().max()) for gradient in reference.values())
    assert scale > 0, "the reference gradient is zero: the test would prove nothing"
    for name, gradient in reference.items():
        difference = float((ours[name] - gradient).abs().max())
        assert difference <= tolerance * scale, f"{name}: {difference / scale:.2e} relative"


def assert_same_end(ours: dict[str, Any], expected: dict[str, Any]) -> None:
    """Of two trainings: the `weights` that train, the `final` ones to use and the `slots` of the optimiser, about."""
    for kind in ("weights", "final"):
        for key, tensor in expected[kind].items():
            torch.testing.assert_close(ours[kind][key], tensor, rtol=1e-7, atol=1e-9)
    assert ours["slots"].keys() == expected["slots"].keys()
    for key, slots in expected["slots"].items():
        for slot, value in slots.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(ours["slots"][key][slot], value, rtol=1e-6, atol=1e-9)
            else:
                assert ours["slots"][key][slot] == value
