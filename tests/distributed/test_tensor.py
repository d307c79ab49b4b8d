"""Two gloo processes that divide every matrix, against one: gradients and whole trainings, in float64.

All jobs run in one pair of processes, because starting them takes longer than the jobs.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.conformance import test_contrastive as contrastive
from tests.conformance.harness import Frozen, assert_same_end, assert_same_gradients, make_trainer, tiny_config
from tests.conformance.objectives import make_method, objective_trainer, tokenizer
from tests.conformance.test_loop import METHODS
from tests.distributed.processes import run_ranks
from trivium import registry
from trivium.core.average import MovingAverage
from trivium.core.callbacks import Callback
from trivium.core.distributed import Processes
from trivium.core.engine import StepResult
from trivium.core.engine_tensor import refuse_changed
from trivium.core.method import Update
from trivium.core.tensor_shapes import refuse_undividable
from trivium.core.trainer import Trainer
from trivium.errors import ConfigError
from trivium.inference.engine import generate_ids
from trivium.inference.request import Sampling
from trivium.models.build import build_model, preset
from trivium.models.config import ModelConfig
from trivium.recipe import EmaSettings
from trivium.transforms.lora import LoRA
from trivium.transforms.trainable import Trainable

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]

QUIET = {"dropout": 0.0, "embedding_dropout": 0.0, "attention_dropout": 0.0}


def shape_of(name: str, **changes: Any) -> ModelConfig:
    """A preset of a family with the sizes of `tiny_config`."""
    sizes = {key: getattr(tiny_config(), key) for key in SIZES}
    return preset(name, {**sizes, "eos_id": 1, "bos_id": None, "pad_id": None, **changes})


SIZES = (
    "vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "intermediate_size",
)  # fmt: skip
SHAPES: dict[str, ModelConfig] = {
    "grouped heads": tiny_config(),
    "tied": tiny_config(tie_embeddings=True),
    "norms of heads": shape_of("qwen3-1m"),
    "biases": shape_of("gpt2-1m", num_kv_heads=4, **QUIET),
    "parallel": shape_of("pythia-1m", num_kv_heads=4, rotary_fraction=1.0, **QUIET),
    "windows and four norms": shape_of("gemma2-1m", layer_types=("sliding", "full"), sliding_window=4),
    "experts": tiny_config(family="mixtral", experts=4, experts_per_token=2, balance_loss=0.0),
    "encoder": shape_of("bert-1m", num_kv_heads=4, **QUIET),
}
LAST = SimpleNamespace(cls=Trainable, config=Trainable.Config(last_layers=1), name="trainable")
GRADIENTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{f"shape {name}": ("loop", "clm", {"config": config}) for name, config in SHAPES.items()},
    **{f"method {name}": ("loop", name, {}) for name in ("sft", "dpo", "distill", "freelb", "two_players")},
    "recomputed blocks": ("loop", "clm", {"activation_checkpointing": "block"}),
    "recomputed MLPs": ("loop", "clm", {"activation_checkpointing": "mlp"}),
    "cross attention": ("objective", "seq2seq", {}),
    "joint loss": ("contrastive", "pairs, symmetric", {}),
    "frozen blocks": ("contrastive", "cosine", {"transforms": [LAST]}),
}
"""Name -> (which trainer, method or objective, settings)."""
USUAL = ["adamw", "muon"]
OTHERS = [name for name in registry.names("optim") if name not in (*USUAL, "adamw8bit")]
PROMPTS = [[2, 3, 5], [7, 11], [13, 17, 19, 23]]


class Told(Callback):
    """Remembers what each update told."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.tokens: list[int] = []

    def update_end(self, trainer: Trainer, update: Update, result: StepResult, tokens: int) -> None:
        self.losses.append(result.loss)
        self.norms.append(result.grad_norm)
        self.tokens.append(tokens)


def gradients(processes: Processes, engine: str, job: str) -> list[dict[str, torch.Tensor]]:
    """Two updates of a job."""
    recorder = Frozen()
    kind, name, changes = GRADIENTS[job]
    settings = {"engine": engine, "processes": processes, "optimizer": recorder, "micro_rows": 2, **changes}
    if kind == "loop":
        make_trainer(METHODS[name](), steps=2, **settings).fit()
    elif kind == "objective":
        changes = {"vocab_size": tokenizer().vocab_size, "num_decoder_layers": 2, "num_kv_heads": 4, **QUIET}
        objective_trainer(make_method(name), steps=2, config=shape_of("bart-1m", **changes), **settings).fit()
    else:
        contrastive.trainer(name, steps=2, **settings).fit()
    return recorder.gradients


def train(processes: Processes, engine: str, name: str, begun: str | None = None) -> dict[str, Any]:
    """Six clipped updates; with `begun` the first three under that engine, and its state in a new trainer."""
    cls = registry.component("optim", name)

    def fresh(engine: str, processes: Processes) -> Trainer:
        trainer = make_trainer(
            METHODS["clm"](),
            engine=engine,
            processes=processes,
            optimizer=cls(cls.Config()),
            config=shape_of("qwen3-1m", tie_embeddings=name == "muon"),
            micro_rows=2,
            steps=6,
            schedule="constant",
            clip=0.05,
            clip_by="value" if name == "adam" else "norm",
            layer_lr_decay=0.7,
        )
        if name == "adamw":
            average = MovingAverage(EmaSettings(), trainer.engine)
            trainer.state.register("ema", average)
            trainer.callbacks.append(average)
        return trainer

    trainer, told = fresh(engine, processes), Told()
    if begun is not None:
        first = fresh(begun, Processes() if begun == "single" else processes)
        first.callbacks.append(told)
        first.fit(until=3)
        with first.engine.averaged("checkpoint"):
            model = {key: tensor.clone() for key, tensor in first.engine.weights("policy").items()}
        trainer.engine.load_weights("policy", model)
        trainer.engine.load_optimizer_state("policy", first.engine.optimizer_state("policy"))
        trainer.state.load_state_dict(first.state.state_dict())
    trainer.callbacks.append(told)
    trainer.fit()
    running = trainer.engine
    loss = running.evaluate(trainer.context.feed.batches())["loss"]
    found: dict[str, Any] = {"weights": running.weights("policy"), "slots": running.optimizer_state("policy")["slots"]}
    with running.averaged("final"):
        found["final"] = {key: tensor.clone() for key, tensor in running.weights("policy").items()}
    return {**found, "loss": loss, "losses": told.losses, "norms": told.norms, "tokens": told.tokens}


TRAININGS = {"whole": None, "resumed": "tensor", "begun by one process": "single"}


def noise(processes: Processes) -> dict[str, Any]:
    """Weights that this rank holds whole after updates with dropout everywhere, and what it drops in its heads."""
    rates = {"dropout": 0.1, "embedding_dropout": 0.1, "attention_dropout": 0.5, "activation_dropout": 0.5}
    config = SHAPES["biases"].model_copy(update=rates)
    trainer = make_trainer(METHODS["clm"](), engine="tensor", processes=processes, config=config, steps=3)
    trainer.fit()
    model = trainer.engine.roles["policy"].module
    plain = {name: one.detach().clone() for name, one in model.named_parameters() if not hasattr(one, "placements")}
    torch.manual_seed(1)
    block = model.all_blocks[0]
    assert block.mlp is not None
    inner = torch.ones(1, config.hidden_size, dtype=torch.float64)
    dropped: list[torch.Tensor] = []
    block.mlp.get_submodule("down").register_forward_pre_hook(
        lambda module, given: dropped.append(given[0].to_local().detach() == 0)
    )
    float(block.mlp(inner).sum())  # waits for the other rank
    assert dropped[0].shape[1] == config.intermediate_size // processes.world
    return {"plain": plain, "dropped": dropped[0], "next": torch.rand(3)}


def generated(processes: Processes, engine: str) -> list[list[int]]:
    """What a model in training answers, greedily."""
    trainer = make_trainer(METHODS["clm"](), engine=engine, processes=processes, config=SHAPES["norms of heads"])
    model = trainer.engine.roles["policy"].module
    for weight in model.parameters():
        with torch.no_grad():
            weight.mul_(20)  # so that what it says depends on more than the last token
    answers = generate_ids(model, PROMPTS, max_new_tokens=8, sampling=Sampling(temperature=0), eos_ids=())
    return [answer.ids for answer in answers]


def run_all(processes: Processes) -> dict[str, Any]:
    """Every job of the short suite on one rank."""
    found: dict[str, Any] = {job: gradients(processes, "tensor", job) for job in GRADIENTS}
    found |= {"noise": noise(processes), "generated": generated(processes, "tensor")}
    return found | run_trainings(processes, USUAL)


def run_trainings(processes: Processes, names: list[str]) -> dict[str, Any]:
    """Each optimiser in each case."""
    return {
        f"{name} {case}": train(processes, "tensor", name, begun) for name in names for case, begun in TRAININGS.items()
    }


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    """What both ranks found."""
    return run_ranks(run_all)


@pytest.mark.parametrize("job", GRADIENTS)
def test_two_ranks_have_the_gradient_of_one(results: list[dict[str, Any]], job: str) -> None:
    reference = gradients(Processes(), "single", job)
    for rank in results:
        assert len(rank[job]) == len(reference) == 2
        for ours, expected in zip(rank[job], reference, strict=True):
            assert_same_gradients(ours, expected)


def test_ranks_drop_the_same_between_branches_and_other_numbers_inside(results: list[dict[str, Any]]) -> None:
    first, second = (rank["noise"] for rank in results)
    assert first["plain"].keys() == second["plain"].keys()
    assert all(torch.equal(weight, second["plain"][name]) for name, weight in first["plain"].items())
    assert torch.equal(first["next"], second["next"])
    assert not torch.equal(first["dropped"], second["dropped"])


def test_a_folder_with_an_adapter_is_refused() -> None:
    model = build_model(tiny_config(), seed=1, dtype=torch.float32)
    model.transforms.append(LoRA(LoRA.Config()))
    with pytest.raises(ConfigError, match="does not divide those of LoRA"):
        refuse_changed(model)


def test_divided_models_answer_like_whole_ones(results: list[dict[str, Any]]) -> None:
    expected = generated(Processes(), "single")
    assert all(len(set(answer)) > 2 for answer in expected), "a constant would prove little"
    assert [rank["generated"] for rank in results] == [expected, expected]


@pytest.mark.parametrize("name", USUAL)
def test_clipped_training_ends_where_one_process_does(results: list[dict[str, Any]], name: str) -> None:
    check_training(results, name)


@pytest.mark.slow
def test_every_other_optimiser_ends_where_one_process_does() -> None:
    results = run_ranks(run_trainings, OTHERS)
    for name in OTHERS:
        check_training(results, name)


def check_training(results: list[dict[str, Any]], name: str) -> None:
    """Losses, norms, weights and state of all cases are those of one process."""
    expected = train(Processes(), "single", name)
    assert max(expected["norms"]) > 0.05, "nothing was clipped"
    for rank in results:
        for ours in [rank[f"{name} {case}"] for case in TRAININGS]:
            assert ours["losses"] == pytest.approx(expected["losses"], rel=1e-9)
            assert ours["norms"] == pytest.approx(expected["norms"], rel=1e-9)
            assert ours["tokens"] == expected["tokens"]
            assert ours["loss"] == pytest.approx(expected["loss"], rel=1e-9)
            assert_same_end(ours, expected)


@pytest.mark.parametrize(
    ("config", "size", "said"),
    [
        (tiny_config(), 4, ["num_kv_heads 2", "start 2 processes"]),
        (tiny_config(num_kv_heads=1), 2, ["num_kv_heads 1", "set engine.name=fsdp2"]),
        (tiny_config(intermediate_size=33), 2, ["intermediate_size 33", "set engine.name=fsdp2"]),
        (
            tiny_config().model_copy(update={"query_key_norm": "projection"}),
            2,
            ["a norm over all heads", "set engine.name=fsdp2"],
        ),
        (tiny_config().model_copy(update={"positions": "alibi"}), 2, ["'alibi'", "set engine.name=fsdp2"]),
        (tiny_config().model_copy(update={"positions": "relative"}), 2, ["'relative'", "set engine.name=fsdp2"]),
    ],
)
def test_what_cannot_be_divided_evenly_is_refused(config: ModelConfig, size: int, said: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        refuse_undividable(config, size)
    text = str(refused.value)
    assert len(text.splitlines()) <= 5 and "engine.name" in text and "tensor" in text
    assert all(part in text for part in said), text
