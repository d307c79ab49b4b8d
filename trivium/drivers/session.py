"""Everything one training process needs, built from a checked recipe: device, data, models, engine, trainer."""

from __future__ import annotations

import importlib
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from trivium.config import ResolvedRecipe
from trivium.core.distributed import Processes, resolve_device, start_processes
from trivium.core.engine import Engine, slow_precision
from trivium.core.feed import LoaderFeed
from trivium.core.method import Context, Method, RoleModel
from trivium.core.offload import idle_offload
from trivium.core.plan import Held, Machine, describe_machine, forecast, refuse_if_impossible
from trivium.core.state import Progression
from trivium.core.trainer import Trainer
from trivium.data.batch import Batch
from trivium.data.dataset import Dataset, open_dataset
from trivium.data.loader import Loader
from trivium.data.sealing import guarded, said_of_sealed
from trivium.drivers.micro_batch import with_micro_batch
from trivium.drivers.roles import fitted_head, load_roles, model_config, shares_weights, what_is_held
from trivium.drivers.word_vectors import open_word_vectors, start_embeddings
from trivium.errors import ConfigError
from trivium.models.allocator import give_back_freed_memory, keep_freed_memory
from trivium.models.config import ModelConfig
from trivium.models.products import keep_few_kernels
from trivium.recipe import Recipe, SamplePrompt, Source
from trivium.threads import default_threads, use_threads
from trivium.tokenizers.tokenizer import Tokenizer

CPU_RATE = 1e11
"""FLOP/s assumed of a CPU when deciding whether compiling pays; only the order of magnitude matters."""
COMPILE_WINS_AFTER = 1800.0
"""Estimated seconds of training from which compiling wins back its own time on a CPU: with our kernels it saves about
3 % of an update and takes 30 to 60 seconds."""


@dataclass
class Session:
    """One process of a run, ready to train."""

    resolved: ResolvedRecipe
    processes: Processes
    device: torch.device
    tokenizer: Tokenizer
    config: ModelConfig
    train_data: Dataset
    validation_data: Dataset | None
    loader: Loader
    total: int
    compiled: bool
    trainer: Trainer
    feed: LoaderFeed
    machine: Machine
    notes: list[str]

    @property
    def recipe(self) -> Recipe:
        """The checked recipe."""
        return self.resolved.recipe

    def validation_batches(self) -> Iterator[Batch]:
        """This rank's held-out batches, the same every time; a part of them is spread over all of the data."""
        assert self.validation_data is not None
        loader = make_loader(self.recipe, self.trainer.method, self.validation_data, self.processes)
        wanted = self.recipe.train.validation_batches
        there = math.ceil(loader.rows_per_epoch / loader.world / loader.micro_rows)
        return islice(loader.evaluation(), 0, None, max(1, there // wanted) if wanted else 1)

    def close(self) -> None:
        """Ends the data thread, and gives the memory of what was computed back."""
        self.feed.close()
        give_back_freed_memory()


def open_session(resolved: ResolvedRecipe) -> Session:
    """Builds everything; cheap checks first, so that what cannot work fails early."""
    recipe = resolved.recipe
    device = resolve_device(recipe.engine.device, int(os.environ.get("LOCAL_RANK", "0")))
    processes = start_processes(recipe.engine.name, device)
    set_up_torch(recipe, processes)
    tokenizer = Tokenizer.load(recipe.tokenizer or recipe.model.path or "")
    config = model_config(recipe, tokenizer)
    method: Method = resolved.method.cls(resolved.method.config)
    method.check(recipe, tokenizer, config)
    vectors = open_word_vectors(recipe, tokenizer)
    train_data, validation_data = open_data(recipe, method, tokenizer, processes)
    config = fitted_head(config, method.head(train_data))
    held = what_is_held(resolved, config, tokenizer)
    loader = make_loader(recipe, method, train_data, processes)
    total = run_length(recipe, loader)
    loader.plan(total)
    held = replace(held, virtual=held.virtual * loader.sequences_per_row)
    machine, rows = machine_that_fits(resolved, config, method, loader, total, device, processes, held)
    if recipe.train.micro_batch_size == "auto":
        resolved = with_micro_batch(resolved, rows)
        recipe = resolved.recipe
        loader = make_loader(recipe, method, train_data, processes)
        loader.plan(total)
    compiled = should_compile(recipe, config, total, device)
    roles = load_roles(resolved, config, method, tokenizer, compiled=compiled)
    started = start_embeddings(recipe, method, roles, tokenizer, vectors)
    feed = LoaderFeed(loader, Progression(), recipe.data.prefetch)
    trainer = make_trainer(resolved, method, roles, feed, tokenizer, total, device=device, processes=processes)
    said = [slow_precision(recipe.train.precision, device), idle_offload(recipe.train.offload, device)]
    said += [f"{role}: {layers.words}" for role, layers in trainer.engine.float8.items()]
    if any(getattr(chosen.config, "cached_features", False) for chosen in resolved.transforms):
        splits = [data for data in (train_data, validation_data) if data is not None]
        started.append(cache_features(recipe, method, splits, device, processes))
    return Session(
        resolved=resolved,
        processes=processes,
        device=device,
        tokenizer=tokenizer,
        config=config,
        train_data=train_data,
        validation_data=validation_data,
        loader=loader,
        total=total,
        compiled=compiled,
        trainer=trainer,
        feed=feed,
        machine=machine,
        notes=[*tokenizer.messages, *said_of_sealed(train_data), *started, *filter(None, said)],
    )


def cache_features(
    recipe: Recipe, method: Method, splits: list[Dataset], device: torch.device, processes: Processes
) -> str:
    """Runs the frozen body once over all texts, for a head that trains on what it says; a note about it."""
    from trivium.core.features import Features

    policy = method.policy
    if policy.module.config.head != "sequence":
        raise ConfigError(
            "features are cached for heads that give labels to whole texts",
            where="transforms",
            value=f"method: {recipe.method.get('name')}",
            fix="use the method classification, or delete cached_features",
        )
    features = Features()
    for data in splits:
        loader = make_loader(recipe, method, data, processes)
        features.fill(policy, method, loader.evaluation(), device)
    policy.features = features
    return f"the features of {len(features):,} texts are cached: the body runs no more"


def make_trainer(
    resolved: ResolvedRecipe,
    method: Method,
    roles: dict[str, RoleModel],
    feed: LoaderFeed,
    tokenizer: Tokenizer,
    total: int,
    *,
    device: torch.device,
    processes: Processes,
) -> Trainer:
    """The trainer with its engine, bound to method, roles and data."""
    recipe = resolved.recipe
    context = Context(
        recipe=recipe,
        tokenizer=tokenizer,
        roles=roles,
        feed=feed,
        progression=feed.progression,
        device=device,
        rank=feed.loader.rank,
        world=processes.world,
    )
    method.bind(context)
    optimizer = resolved.optimizer.cls(resolved.optimizer.config)
    engine = engine_class(recipe)(recipe, method, roles, optimizer, device=device, processes=processes)
    return Trainer(method, engine, context, total=total, sample=partial(continue_prompts, method))


def machine_that_fits(
    resolved: ResolvedRecipe,
    config: ModelConfig,
    method: Method,
    loader: Loader,
    total: int,
    device: torch.device,
    processes: Processes,
    held: Held,
) -> tuple[Machine, int]:
    """The machine before any memory is taken, and the rows of a micro-batch; ConfigError if it is too small."""
    recipe = resolved.recipe
    machine = describe_machine(Path(recipe.runs), device=device.type)
    plan = forecast(
        config,
        recipe,
        steps=total,
        machine=machine,
        fill=loader.packing_efficiency,
        held=held,
        frozen_roles=sum(not role.trainable for role in method.roles().values()),
        frozen_copies=sum(
            not role.trainable and not shares_weights(resolved, name, role) for name, role in method.roles().items()
        ),
        ranks=processes.world,
    )
    refuse_if_impossible(plan, machine)
    return machine, plan.memory.micro_rows


def set_up_torch(recipe: Recipe, processes: Processes) -> None:
    """Threads, memory and deterministic kernels."""
    use_threads(recipe.train.threads or default_threads(int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    keep_few_kernels()
    if recipe.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Filling fresh memory would find reads of it, which this package does not make, and costs time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    keep_freed_memory()
    # What `use_deterministic_algorithms` does, but it imports the compiler; `RoleModel.compile` tells that.
    torch.set_deterministic_debug_mode("warn" if recipe.train.deterministic else "default")
    if recipe.train.activation_checkpointing != "none":
        importlib.import_module("torch._dynamo")  # as its first use will, but before the forecast looks at the memory


def open_data(
    recipe: Recipe, method: Method, tokenizer: Tokenizer, processes: Processes
) -> tuple[Dataset, Dataset | None]:
    """Training and held-out data; the main process tokenises, the others read what it left."""
    if not processes.main:
        processes.barrier()
    train = guarded(open_split(recipe, method, tokenizer, recipe.data.train), recipe, tokenizer)
    held_out = recipe.data.validation
    validation = open_split(recipe, method, tokenizer, held_out, like=train) if held_out else None
    if processes.main:
        processes.barrier()
    return train, validation


def open_split(
    recipe: Recipe, method: Method, tokenizer: Tokenizer, sources: list[Source], *, like: Dataset | None = None
) -> Dataset:
    """The data of one split as the method wants it; `like` gives the labels."""
    room = recipe.data.sequence_length - method.margin(tokenizer)
    return open_dataset(
        sources,
        kind=method.data_kind,
        tokenizer=tokenizer,
        settings=recipe.data.model_copy(update={"sequence_length": room}),
        cache=Path(recipe.runs) / ".cache",
        like=like,
        bare=method.bare,
    )


def make_loader(recipe: Recipe, method: Method, dataset: Dataset, processes: Processes) -> Loader:
    """A loader for this rank; ranks that share a model all read the same rows, those of a pipeline in one shape."""
    pipeline = recipe.engine.name == "pipeline"
    together = pipeline or recipe.engine.name == "tensor"
    world = 1 if together else processes.world
    share = max(1, recipe.train.batch_size // world)
    return Loader(
        dataset,
        rows=recipe.train.batch_size,
        micro_rows=min(recipe.train.micro_rows or share, share),
        sequence_length=recipe.data.sequence_length,
        packing=recipe.data.packing,
        seed=recipe.seed,
        shuffle=recipe.data.shuffle,
        rank=0 if together else processes.rank,
        world=world,
        pad_rows=pipeline,
        example=method.example,
        margin=method.margin(dataset.tokenizer),
        curriculum=recipe.data.curriculum,
        alike=recipe.data.group_by_length,
    )


def run_length(recipe: Recipe, loader: Loader) -> int:
    """Updates of the whole run."""
    train = recipe.train
    if train.steps is not None:
        return train.steps
    if train.epochs is not None:
        return max(1, math.ceil(train.epochs * loader.updates_per_epoch))
    per_update = train.batch_size * recipe.data.sequence_length * loader.packing_efficiency
    return max(1, math.ceil((train.tokens or 1) / per_update))


def engine_class(recipe: Recipe) -> type[Engine]:
    """The engine that runs the updates."""
    if recipe.engine.name == "pipeline":
        from trivium.core.engine_pipeline import PipelineEngine

        return PipelineEngine
    if recipe.engine.name == "tensor":
        from trivium.core.engine_tensor import TensorEngine

        return TensorEngine
    return Engine


def should_compile(recipe: Recipe, config: ModelConfig, total: int, device: torch.device) -> bool:
    """Whether compiling pays; a function of the recipe and the machine only, so a resumed run decides alike."""
    if recipe.train.compile != "auto":
        return recipe.train.compile == "on"
    if recipe.engine.name in ("pipeline", "tensor") or not compiler_found():
        return False
    if device.type == "cuda":
        return total >= 500
    flops = 6.0 * config.parameters() * total * recipe.train.batch_size * recipe.data.sequence_length
    return device.type == "cpu" and flops / CPU_RATE > COMPILE_WINS_AFTER


def compiler_found() -> bool:
    """Whether torch.compile can build code on this machine."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


def continue_prompts(method: Method, prompts: list[SamplePrompt], tokens: int) -> list[str]:
    """Greedy continuations by the policy, of an encoder-decoder its answers; of dialogue, text is a question."""
    from trivium.data.messages import with_system
    from trivium.data.sides import source_ids
    from trivium.inference.engine import generate_ids
    from trivium.inference.request import Sampling

    context = method.context
    if context.recipe.engine.name == "pipeline":  # no rank has the whole model
        return []
    tokenizer = context.tokenizer
    policy = context.roles["policy"]
    if policy.module.config.kind == "encoder_decoder":
        ids = [source_ids(tokenizer, prompt) for prompt in prompts if isinstance(prompt, str)]
    else:
        dialogue = method.data_kind in ("instructions", "preferences") and bool(tokenizer.files.templates)
        asked = [
            [{"role": "user", "content": prompt}] if dialogue and isinstance(prompt, str) else prompt
            for prompt in prompts
        ]
        system = context.recipe.data.chat.system
        ids = [
            tokenizer.encode_prompt(prompt if isinstance(prompt, str) else with_system(prompt, system))
            for prompt in asked
        ]
    with policy.eager():
        completions = generate_ids(
            policy.module,
            ids,
            max_new_tokens=tokens,
            sampling=Sampling(temperature=0),
            eos_ids=tokenizer.stop_ids,
        )
    return [tokenizer.decode(completion.ids) for completion in completions]
