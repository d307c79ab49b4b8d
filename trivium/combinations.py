"""Settings that are right one by one but not together, or not on this machine: refused before any work starts.

Everything here is decided without torch, so a wrong recipe is refused in a fraction of a second. What only the
hardware can tell (is there a GPU, does it have bfloat16) the engine refuses later.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from trivium.core.method import Method
from trivium.errors import ConfigError, TriviumError
from trivium.nearest import nearest
from trivium.problems import NO_VALUE, Keys, Problem, dotted, raise_first

if TYPE_CHECKING:
    from trivium.config import ResolvedRecipe
    from trivium.models.config import ModelConfig
    from trivium.recipe import Recipe, Source

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")

_PACKAGES = {".parquet": ("pyarrow", "data"), ".zst": ("zstandard", "data")}
"""Ending of a data file -> the package that reads it and the extra that installs it."""


def refuse_wrong_combinations(resolved: ResolvedRecipe, environment: Mapping[str, str] = os.environ) -> None:
    """Raises ConfigError if this recipe cannot run here; imports no torch."""
    found = [
        *_pipeline(resolved),
        *_tensor(resolved, environment),
        *_transforms(resolved),
        *_rollouts(resolved, environment),
        *_processes(resolved, environment),
        *_numbers(resolved),
        *_averages(resolved),
        *_offload(resolved),
        *_float8(resolved),
        *_without_effect(resolved),
    ]
    raise_first([*missing_things(resolved), *found])


def missing_things(resolved: ResolvedRecipe) -> list[Problem]:
    """Files, folders and packages that the recipe needs and that are not there."""
    return [*_paths(resolved), *_packages(resolved)]


def _problem(resolved: ResolvedRecipe, keys: Keys, text: str, fix: str, value: object = NO_VALUE) -> Problem:
    return Problem(dotted(keys), text, resolved.where(*keys), value, fix)


def _paths(resolved: ResolvedRecipe) -> Iterator[Problem]:
    """Data, model and tokenizer must exist."""
    recipe = resolved.recipe
    sources: dict[str, list[Source]] = {
        "train": recipe.data.train,
        "validation": recipe.data.validation,
        "probe": recipe.data.probe,
    }
    for split, entries in sources.items():
        if split == "train" and not entries:
            yield _problem(resolved, ("data", "train"), "data.train is empty", "give a path or a list of paths")
        for number, source in enumerate(entries):
            if not _exists(source.path) and source.path not in builtin_sources():
                keys: Keys = ("data", split, number, "path")
                yield _missing(resolved, keys, source.path, "data", builtin_sources())
    if recipe.model.path is not None:
        yield from _folder(resolved, ("model", "path"), recipe.model.path, "config.json")
    if recipe.model.word_vectors is not None and not _exists(recipe.model.word_vectors):
        yield _missing(resolved, ("model", "word_vectors"), recipe.model.word_vectors, "file or folder")
    method = resolved.method
    roles = method.cls(method.config).roles() if issubclass(method.cls, Method) else {}
    for role in roles.values():
        if role.path is not None:
            keys = ("method", *(key for key, value in method.config if value == role.path))
            yield from _folder(resolved, keys, role.path, "config.json")
    if recipe.tokenizer is not None:
        yield from _folder(resolved, ("tokenizer",), recipe.tokenizer, "tokenizer.json")
    elif recipe.model.path is None:
        fix = "train one ('trivium tokenizer train'), or name the folder of any model that has one"
        yield _problem(resolved, ("tokenizer",), "a model from a preset needs tokenizer: FOLDER", fix)
    if _exists(recipe.runs) and not Path(recipe.runs).is_dir():
        yield _problem(resolved, ("runs",), "runs must be a folder, this is a file", "name another one", recipe.runs)


@cache
def builtin_sources() -> tuple[str, ...]:
    """Names of the sources that need no path (`pydocs`): files of `data/sources` that say `BUILT_IN = True`."""
    files = sorted((Path(__file__).parent / "data" / "sources").glob("[!_]*.py"))
    return tuple(file.stem for file in files if "\nBUILT_IN = True" in file.read_text(encoding="utf-8"))


def _folder(resolved: ResolvedRecipe, keys: Keys, path: str, marker: str) -> Iterator[Problem]:
    if not _exists(path):
        yield _missing(resolved, keys, path, "folder")
    elif not (Path(path) / marker).is_file():
        inside = sorted(found.parent for found in Path(path).glob(f"*/{marker}")) if Path(path).is_dir() else []
        fix = f"did you mean {inside[-1]}?" if inside else f"name a folder that holds {marker}"
        yield _problem(resolved, keys, f"{dotted(keys)} holds no {marker}", fix, path)


def _missing(resolved: ResolvedRecipe, keys: Keys, path: str, what: str, names: tuple[str, ...] = ()) -> Problem:
    parent = Path(path).parent
    near = nearest(path, [*_siblings(parent), *names], cutoff=0.8)
    if near:
        fix = f"did you mean {near}?"
    elif what == "folder" and re.fullmatch(r"[\w.-]+/[\w.-]+", path) and not _exists(str(parent)):
        fix = f"if this is a Hugging Face name, download it first: hf download {path} --local-dir {Path(path).name}"
    else:
        fix = f"check the path; it is relative to the current folder, {Path.cwd()}"
    return _problem(resolved, keys, f"{dotted(keys)}: there is no such {what}", fix, path)


def _exists(path: str) -> bool:
    """Whether there is something; False for what cannot be looked at and for names that no disk could hold."""
    try:
        return Path(path).exists()
    except OSError:
        return False


def _siblings(folder: Path) -> list[str]:
    try:
        return [str(folder / entry.name) for entry in folder.iterdir()]
    except (OSError, ValueError):
        return []


def _packages(resolved: ResolvedRecipe) -> Iterator[Problem]:
    """Optional packages that this recipe cannot do without."""
    recipe = resolved.recipe
    if recipe.train.tensorboard and not _installed("tensorboard"):
        fix = "pip install 'trivium[tensorboard]'"
        yield _problem(resolved, ("train", "tensorboard"), "train.tensorboard needs the package tensorboard", fix)
    if recipe.train.precision == "fp8" and not _installed("torchao"):
        fix = "pip install 'trivium[fp8]'; or set train.precision=bf16"
        yield _problem(resolved, ("train", "precision"), "FP8 needs the package torchao", fix, "fp8")
    for split, entries in (("train", recipe.data.train), ("validation", recipe.data.validation)):
        for number, source in enumerate(entries):
            package, extra = _PACKAGES.get(Path(source.path).suffix, ("", ""))
            if package and not _installed(package):
                keys: Keys = ("data", split, number, "path")
                text = f"reading this file needs the package {package}"
                yield _problem(resolved, keys, text, f"pip install 'trivium[{extra}]'", source.path)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _processes(resolved: ResolvedRecipe, environment: Mapping[str, str]) -> Iterator[Problem]:
    """Distributed engines live inside torchrun, the single one outside."""
    engine, recipe = resolved.recipe.engine.name, resolved.source or "RECIPE"
    inside = "RANK" in environment and "WORLD_SIZE" in environment
    world = environment.get("WORLD_SIZE", "1")
    if engine != "single" and not inside:
        fix = f"torchrun --nproc-per-node 2 -m trivium train {recipe}; or engine.name=single"
        text = f"the engine {engine} needs the processes that torchrun starts"
        yield _problem(resolved, ("engine", "name"), text, fix)
    if engine == "single" and inside and world != "1":
        text = f"torchrun started {world} processes, but the engine 'single' uses one"
        yield _problem(resolved, ("engine", "name"), text, "set engine.name=ddp or engine.name=fsdp2")
    if not _DEVICE.fullmatch(resolved.recipe.engine.device):
        fix = "one of auto, cpu, mps, cuda, cuda:0, cuda:1, ..."
        yield _problem(
            resolved, ("engine", "device"), "engine.device: unknown device", fix, resolved.recipe.engine.device
        )


def _pipeline(resolved: ResolvedRecipe) -> Iterator[Problem]:
    """A pipeline needs methods whose micro-batches each make one forward and one backward pass."""
    cls, name = resolved.method.cls, resolved.method.name
    if resolved.recipe.engine.name != "pipeline" or not issubclass(cls, Method):
        return
    reason = None
    if cls.backward is not None:
        reason = "makes several backward passes for each micro-batch"
    elif cls.represent is not None:
        reason = "compares the texts of a whole update with each other"
    elif cls.updates is not Method.updates:
        reason = "makes its own updates from rollouts"
    if reason:
        fix = "set engine.name=fsdp2 (or ddp, or single)"
        yield _problem(resolved, ("engine", "name"), f"the method {name} {reason}: no pipeline can run it", fix)


def _tensor(resolved: ResolvedRecipe, environment: Mapping[str, str]) -> Iterator[Problem]:
    """Tensor parallelism divides whole models, evenly, and in arithmetic that needs no loss scale."""
    recipe = resolved.recipe
    if recipe.engine.name != "tensor":
        return
    from trivium.core.tensor_shapes import refuse_undividable

    shape = _shape(recipe)
    if shape is not None:
        try:
            refuse_undividable(shape, int(environment.get("WORLD_SIZE", "1")))
        except ConfigError as error:
            yield _problem(resolved, ("engine", "name"), error.problem, error.fix or "", "tensor")
    if recipe.train.precision == "fp16":
        text = "the loss scale of fp16 does not see gradients that are divided among processes"
        yield _problem(resolved, ("train", "precision"), text, "set train.precision=bf16", "fp16")
    if recipe.train.compile == "on":
        text = "blocks that are divided among processes are not compiled"
        yield _problem(resolved, ("train", "compile"), text, "set train.compile=auto, or engine.name=fsdp2", "on")


def _shape(recipe: Recipe) -> ModelConfig | None:
    """The shape of the policy; None for a folder that cannot be read, which is refused where it is loaded."""
    if recipe.model.preset is not None:
        from trivium.models.build import preset

        return preset(recipe.model.preset, recipe.model.config)
    from trivium.models.folder import read_config

    try:
        return read_config(recipe.model.path or "")
    except (TriviumError, OSError):
        return None


def _transforms(resolved: ResolvedRecipe) -> Iterator[Problem]:
    """Adapters stand beside a base that is kept; they are not cut into the stages of a pipeline."""
    recipe = resolved.recipe
    adapters = [(number, chosen) for number, chosen in enumerate(resolved.transforms) if chosen.cls.adapter]
    if recipe.engine.name == "pipeline" and resolved.transforms:
        text, fix = "a pipeline trains whole models only", "set engine.name=fsdp2 (or ddp, or single)"
        yield _problem(resolved, ("engine", "name"), text, fix)
    if recipe.engine.name == "tensor" and (changing := [c for c in resolved.transforms if c.cls.adapter]):
        text = f"tensor parallelism trains the model's own weights, it does not divide those of {changing[0].name}"
        yield _problem(resolved, ("engine", "name"), text, "set engine.name=fsdp2 (or ddp, or single)", "tensor")
    yield from _quantised(resolved, bool(adapters))
    for number, chosen in enumerate(resolved.transforms):
        later = getattr(chosen.config, "unfreeze_every", None) or getattr(chosen.config, "cached_features", False)
        if later and recipe.engine.name != "single":
            text = f"{chosen.name} with unfreeze_every or cached_features runs in one process"
            yield _problem(resolved, ("transforms", number), text, "set engine.name=single, or delete that line")
    if not adapters:
        return
    number, first = adapters[0]
    keys: Keys = ("transforms", number)
    path = recipe.model.path
    if path is None:
        text = f"{first.name} is stored beside its base, but a model from a preset has no folder"
        yield _problem(resolved, keys, text, "name a model folder with model.path, or delete the transform")
    elif any((Path(path) / name).is_file() for name in ("adapter_config.json", "adapters.json")):
        text = f"model.path holds an adapter already, which {first.name} cannot stand on"
        fix = "delete transforms to train that adapter on; or merge it first: trivium export --merge"
        yield _problem(resolved, keys, text, fix, path)


def _quantised(resolved: ResolvedRecipe, adapters: bool) -> Iterator[Problem]:
    """A base in few bits cannot train itself, and is not cut up among processes."""
    for number, chosen in enumerate(resolved.transforms):
        if not chosen.cls.changes_base:
            continue
        keys: Keys = ("transforms", number)
        if not adapters:
            text = f"{chosen.name} freezes the base, and there is no adapter that would train"
            yield _problem(resolved, keys, text, "add one to transforms, such as {name: lora}")
        if resolved.recipe.engine.name in ("fsdp2", "tensor"):
            text = f"{chosen.name} does not go with weights that are cut among processes"
            yield _problem(resolved, ("engine", "name"), text, "set engine.name=ddp (or single)")


def _rollouts(resolved: ResolvedRecipe, environment: Mapping[str, str]) -> Iterator[Problem]:
    """Ranks that generate take different numbers of steps, so their forward passes must not wait for each other."""
    recipe, cls = resolved.recipe, resolved.method.cls
    if not issubclass(cls, Method) or cls.data_kind != "prompts":
        return
    if recipe.engine.name in ("fsdp2", "tensor"):
        text = f"the method {resolved.method.name} generates text, which sharded ranks cannot do on their own"
        yield _problem(resolved, ("engine", "name"), text, "set engine.name=ddp (or single)")
    world = int(environment.get("WORLD_SIZE", "1"))
    if recipe.engine.name == "ddp" and recipe.train.batch_size % world:
        text = f"the prompts of one rollout do not divide among {world} ranks"
        fix = f"set train.batch_size to a multiple of {world}"
        yield _problem(resolved, ("train", "batch_size"), text, fix, recipe.train.batch_size)


def _numbers(resolved: ResolvedRecipe) -> Iterator[Problem]:
    """Numbers that contradict each other."""
    train, data, model = resolved.recipe.train, resolved.recipe.data, resolved.recipe.model
    if train.micro_rows is not None and train.micro_rows > train.batch_size:
        text = f"train.micro_batch_size is larger than train.batch_size ({train.batch_size})"
        keys: Keys = ("train", "micro_batch_size")
        yield _problem(
            resolved, keys, text, "a micro-batch is a part of the batch: make it smaller", train.micro_batch_size
        )
    if train.steps is not None and train.warmup_steps is not None and train.warmup_steps > train.steps:
        text = f"train.warmup_steps is larger than the run of {train.steps} steps"
        yield _problem(
            resolved, ("train", "warmup_steps"), text, "make it smaller, 2 % of the run is usual", train.warmup_steps
        )
    if data.probe and model.path is None:
        text = "data.probe has no effect: a model from a preset has nothing to forget"
        yield _problem(resolved, ("data", "probe"), text, "start from a model folder (model.path), or delete this line")
    if model.preset is not None:
        from trivium.models.build import preset

        shape = preset(model.preset, model.config)
        # A row of similar texts holds several, each with positions of its own.
        longest = data.sequence_length
        if getattr(resolved.method.cls, "data_kind", None) == "similar":
            longest = data.similar.text_length or longest
        if shape.positions == "learned" and longest > shape.max_positions:
            text = f"rows are longer than the {shape.max_positions} learned positions of {model.preset}"
            setting = "data.sequence_length" if longest == data.sequence_length else "data.similar.text_length"
            fix = f"set {setting}={shape.max_positions}, or model.config.max_positions"
            yield _problem(resolved, ("data", "sequence_length"), text, fix, data.sequence_length)


def _averages(resolved: ResolvedRecipe) -> Iterator[Problem]:
    """The schedule-free optimisers average the weights themselves, in the place of a schedule."""
    train = resolved.recipe.train
    if resolved.optimizer.name != "schedule_free":
        return
    if train.schedule != "constant":
        text = "the schedule-free optimisers need a constant learning rate: their average takes the place of a schedule"
        yield _problem(resolved, ("train", "schedule"), text, "set train.schedule=constant", train.schedule)
    if train.ema is not None:
        text = "schedule_free averages the weights already"
        yield _problem(resolved, ("train", "ema"), text, "delete train.ema, or choose another train.optimizer")


def _offload(resolved: ResolvedRecipe) -> Iterator[Problem]:
    """What cannot be kept in the processor's memory, or not be cut into shards."""
    recipe = resolved.recipe
    keys: Keys = ("train", "offload")
    if recipe.train.offload in ("optimizer", "all"):
        if recipe.engine.name in ("fsdp2", "tensor"):
            text = f"shards of {recipe.engine.name} cannot be offloaded here"
            fix = "set train.offload=none: more ranks need less each"
            yield _problem(resolved, keys, text, fix, recipe.engine.name)
        if recipe.train.precision == "fp16":
            text = "the loss scale of fp16 does not see gradients that are offloaded"
            yield _problem(resolved, keys, text, "set train.precision=bf16", recipe.train.offload)
    elif recipe.train.offload == "activations" and recipe.engine.name == "tensor":
        text = "what the shards of tensor keep for their backward pass cannot be offloaded here"
        yield _problem(
            resolved, keys, text, "set train.activation_checkpointing=block and train.offload=none", "tensor"
        )
    if recipe.train.offload in ("activations", "all") and recipe.train.activation_checkpointing != "none":
        text = "activations that are computed again need not be kept elsewhere"
        yield _problem(resolved, keys, text, "set train.activation_checkpointing=none, or train.offload=none")
    if resolved.optimizer.name == "adamw8bit" and recipe.engine.name in ("fsdp2", "tensor"):
        text = f"means in 8 bits cannot be cut into the shards of {recipe.engine.name}"
        fix = "set engine.name=ddp, or train.optimizer=lion or adafactor, which need little state too"
        yield _problem(resolved, ("train", "optimizer"), text, fix, "adamw8bit")


def _float8(resolved: ResolvedRecipe) -> Iterator[Problem]:
    """FP8 takes whole plain layers with weights in float32."""
    recipe = resolved.recipe
    if recipe.train.precision != "fp8":
        return
    keys: Keys = ("train", "precision")
    if recipe.engine.name in ("pipeline", "tensor"):
        text = f"the engine {recipe.engine.name} does not go with FP8"
        yield _problem(
            resolved, keys, text, "set train.precision=bf16, or engine.name=fsdp2 (or ddp, or single)", "fp8"
        )
    if recipe.model.dtype != "float32":
        text = f"FP8 needs weights in float32 beside it, not in {recipe.model.dtype}"
        yield _problem(resolved, ("model", "dtype"), text, "delete this line", recipe.model.dtype)
    for number, chosen in enumerate(resolved.transforms):
        if chosen.cls.adapter or chosen.cls.changes_base:
            text = f"FP8 takes the place of plain layers, but {chosen.name} changes them"
            fix = "set train.precision=bf16, or delete this line and train all weights"
            yield _problem(resolved, ("transforms", number), text, fix, chosen.name)


def _without_effect(resolved: ResolvedRecipe) -> Iterator[Problem]:
    """A setting that was changed but cannot do anything is refused, never ignored."""
    changed = resolved.differences_from_defaults()
    rules = {**_useless_in_training(resolved), **_useless_in_conversations(resolved)}
    for keys, (useless, reason, fix) in rules.items():
        if useless and dotted(keys) in changed:
            text = f"{dotted(keys)} has no effect: {reason}"
            yield _problem(resolved, keys, text, f"{fix}, or delete this line", changed[dotted(keys)][0])


_Useless = dict[Keys, tuple[bool, str, str]]
"""Keys -> (whether the setting does nothing, why, what would change that)."""


def _useless_in_training(resolved: ResolvedRecipe) -> _Useless:
    recipe = resolved.recipe
    train = recipe.train
    no_validation = (not recipe.data.validation, "there is no data.validation", "give data.validation")
    no_samples = (not train.sample_prompts, "there are no train.sample_prompts", "give train.sample_prompts")
    no_warmup = (train.warmup_steps == 0, "train.warmup_steps is 0", "set train.warmup_steps")
    return {
        ("train", "validate_every"): no_validation,
        ("train", "validation_batches"): no_validation,
        ("train", "sample_every"): no_samples,
        ("train", "sample_tokens"): no_samples,
        ("train", "checkpoint_every_block"): (
            train.activation_checkpointing == "none",
            "train.activation_checkpointing is none",
            "set train.activation_checkpointing=block",
        ),
        ("train", "clip_by"): (train.clip is None, "train.clip is null", "set train.clip"),
        ("train", "decay_fraction"): (
            train.schedule != "wsd",
            f"the schedule is {train.schedule}",
            "set train.schedule=wsd",
        ),
        ("train", "decay_shape"): (
            train.schedule != "wsd",
            f"the schedule is {train.schedule}",
            "set train.schedule=wsd",
        ),
        ("train", "schedule_power"): (
            train.schedule != "polynomial",
            f"the schedule is {train.schedule}",
            "set train.schedule=polynomial",
        ),
        ("train", "schedule_cycles"): (
            train.schedule != "cosine_restarts",
            f"the schedule is {train.schedule}",
            "set train.schedule=cosine_restarts",
        ),
        ("train", "warmup_shape"): no_warmup,
        ("train", "warmup_start_ratio"): no_warmup,
        ("train", "min_lr_ratio"): (
            train.schedule == "constant",
            "the schedule is constant",
            "choose another schedule",
        ),
        ("engine", "pipeline_schedule"): (
            recipe.engine.name != "pipeline",
            f"the engine is {recipe.engine.name}",
            "set engine.name=pipeline",
        ),
    }


def _useless_in_conversations(resolved: ResolvedRecipe) -> _Useless:
    kind = resolved.method.cls.data_kind if issubclass(resolved.method.cls, Method) else ""
    answers = (
        kind != "instructions",
        f"the method {resolved.method.name} does not read instructions",
        "use it with method: sft",
    )
    system = (
        kind not in ("instructions", "preferences", "prompts"),
        f"the method {resolved.method.name} reads no conversations",
        "use it with sft, dpo or grpo",
    )
    return {
        ("data", "chat", "train_on"): answers,
        ("data", "chat", "prompt_loss_weight"): answers,
        ("data", "chat", "system"): system,
    }
