"""Model folders in the Hugging Face layout: config.json, generation_config.json and safetensors, read and written.

Weights are mapped from the file and become the parameters without a copy where their type allows: memory is used as
they are touched or changed, and the file itself never changes. Nothing in a folder is ever executed: no pickle, no
code files, only JSON and safetensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import ValidationError

from trivium.artifacts.paths import inside
from trivium.errors import ModelError
from trivium.lazy import torch
from trivium.models.build import family, family_names, first_problem, initial_weight
from trivium.models.config import ModelConfig
from trivium.models.huggingface import (
    HEAD_FIELDS,
    OWN_SECTION,
    Key,
    expand,
    head_of,
    write_config,
)
from trivium.models.huggingface import (
    read_config as read_settings,
)

if TYPE_CHECKING:
    from torch import Tensor

    from trivium.models.transformer import Transformer

CONFIG, GENERATION, SINGLE, INDEX = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
)
DTYPES = ("float32", "bfloat16", "float16", "float64")
TRANSFORMERS = "5.0.0"
"""Version of transformers whose format is written."""

Source = Callable[[], "Tensor"]


def read_config(folder: Path | str, *, base: Path | str | None = None) -> ModelConfig:
    """The shape of the model in `folder`, or of a base and the adapters there. ModelError if this package has none."""
    from trivium.models.adapter_folder import is_adapter, read_adapter_config

    if is_adapter(folder):
        return read_adapter_config(Path(folder), base)
    return config_of(Path(folder), read_json(Path(folder) / CONFIG))


def load_model(
    folder: Path | str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    head: Mapping[str, Any] | None = None,
    seed: int = 0,
    base: Path | str | None = None,
) -> Transformer:
    """The model in `folder`; parameters have `dtype` (default: the one config.json names, else the file's).

    head: settings of another head to put on the body (`HEAD_FIELDS`). What the folder has for it is used, the rest is
    random from `seed`.
    base: of a folder of adapters, the model they belong to; default: the one that the folder names.

    Raises ModelError naming what is missing, unknown, malformed or of another shape.
    """
    from trivium.models.adapter_folder import is_adapter, load_adapters
    from trivium.models.transformer import Transformer

    path = Path(folder)
    if is_adapter(path):
        return load_adapters(path, base=base, dtype=dtype, device=device, head=head, seed=seed)
    if base is not None:
        raise ModelError("only adapters have a base, this is a model of its own", where=path, value=str(base))
    raw = read_json(path / CONFIG)
    stored = config_of(path, raw)
    config = stored if head is None else with_head(stored, head)
    dtype = _stored_dtype(raw) if dtype is None else dtype
    model = Transformer(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
    with ExitStack() as files:
        found = _tensor_sources(path, files)
        weights = _own_weights(path, config, shapes, found, new_head=config != stored)
    for name, shape in shapes.items():
        if config != stored and name.startswith("head.") and name not in weights and not is_tied(config, name):
            weights[name] = initial_weight(name, shape, config, seed=seed)
            model.invented.append(name)
    model.assign({name: _prepared(tensor, dtype, device) for name, tensor in weights.items()})
    return model


def save_model(
    folder: Path | str,
    config: ModelConfig,
    state_dict: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5 << 30,
) -> None:
    """Write the model into `folder`, an existing folder that `write_artifact` yielded.

    state_dict: every parameter by this package's names (a tied head may be left out). dtype: stored type, default
    that of each tensor. Files hold at most `max_shard_bytes` each, unless one tensor is larger.
    """
    from trivium.artifacts.tensors import write_tensors
    from trivium.models.transformer import Transformer

    path = Path(folder)
    expected = [name for name, _ in Transformer(config).named_parameters()]
    _same_names(path, expected, {name for name in state_dict if not is_tied(config, name)})
    kind = dtype or state_dict[expected[0]].dtype
    table = expand(keys_of(config), config, expected)
    shards = _shards(table, state_dict, dtype, max_shard_bytes)
    names = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    )
    total = 0
    for name, keys in zip(names, shards, strict=True):
        tensors = {key.file: file_tensor(key, state_dict, dtype, config.num_kv_heads) for key in keys}
        write_tensors(path / name, tensors, metadata={"format": "pt"})
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        where = {key.file: name for name, keys in zip(names, shards, strict=True) for key in keys}
        write_json(path / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))})
    write_model_config(path, config, kind)


def write_model_config(folder: Path, config: ModelConfig, kind: torch.dtype) -> None:
    """config.json and generation_config.json of a model with weights of type `kind`."""
    tokens = {f"{name}_token_id": getattr(config, f"{name}_id") for name in ("bos", "eos", "pad")}
    tokens["decoder_start_token_id"] = config.start_id
    known = {name: token for name, token in tokens.items() if token is not None}
    write_json(folder / GENERATION, {"_from_model_config": True, **known, "transformers_version": TRANSFORMERS})
    dtype = _dtype_name(kind)
    types = {"dtype": dtype, "torch_dtype": dtype, "transformers_version": TRANSFORMERS, "use_cache": True}
    write_json(folder / CONFIG, {**write_config(family(config.family), config), **types})


def architecture(config: ModelConfig) -> str:
    """The class of transformers that has this model."""
    return head_of(family(config.family), config)[1].architecture


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A JSON file into an artifact that is being written."""
    from trivium.artifacts.writer import write_plain

    write_plain(path, iter([(json.dumps(content, indent=2) + "\n").encode()]))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model folder; ModelError if there is none."""
    if not path.parent.is_dir():
        raise ModelError("there is no such model folder", where=path.parent, fix="give the path of a folder")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        listed = ", ".join(sorted(entry.name for entry in path.parent.iterdir())[:8]) or "nothing"
        raise ModelError(
            f"the model folder has no {path.name}",
            where=path.parent,
            value=f"it holds: {listed}",
            fix="give the folder that holds config.json and model.safetensors",
        ) from None
    except (ValueError, RecursionError, OSError) as error:
        raise ModelError("the file is not readable JSON", where=path, value=str(error)) from None
    if not isinstance(content, dict):
        raise ModelError("the file must hold one JSON object", where=path, value=content)
    return content


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def config_of(folder: Path, raw: dict[str, Any]) -> ModelConfig:
    """The shape that the config.json `raw` of `folder` describes."""
    where = folder / CONFIG
    kind = raw.get("model_type")
    if kind not in family_names():
        raise ModelError(
            "the folder holds a kind of model that is not supported",
            where=f"{where}: model_type",
            value=kind,
            fix=f"supported are {', '.join(family_names())}",
        )
    if raw.get("quantization_config"):
        raise ModelError(
            "the weights are quantised",
            where=f"{where}: quantization_config",
            value=raw["quantization_config"],
            fix="use the folder of the unquantised model",
        )
    if (folder / GENERATION).is_file():
        # Instruction-tuned folders often name their end-of-turn tokens only here, and transformers generates by it.
        ends = read_json(folder / GENERATION).get("eos_token_id")
        raw = raw if ends is None else {**raw, "eos_token_id": ends}
    file = family(kind)
    if getattr(file, "HEAD_MAY_BE_UNTIED", False) and _has_own_head(folder, file):
        raw = {"scale_decoder_outputs": raw.get("tie_word_embeddings", True), **raw, "tie_word_embeddings": False}
    try:
        return ModelConfig.model_validate(read_settings(file, raw))
    except ModelError as error:
        raise ModelError(error.problem, where=f"{where}: {error.where}", value=error.value, fix=error.fix) from None
    except ValidationError as error:
        found = first_problem(error, where="")
        ours = found["where"].lstrip(".")
        theirs = file.FIELDS.get(ours, ours)
        raise ModelError(**{**found, "where": f"{where}: {theirs}" if theirs else where}) from None


def _has_own_head(folder: Path, file: ModuleType) -> bool:
    """Whether the weights of `folder`, if it has any, hold a head that differs from the embedding."""
    if not any((folder / name).is_file() for name in (SINGLE, INDEX)):
        return False
    embedding = next(key.file for key in file.KEYS if key.own == ("embed.weight",))
    names = (file.HEADS["language"].keys[0].file, embedding.removeprefix(file.PREFIX))
    with ExitStack() as files:
        found = _tensor_sources(folder, files)
        return all(name in found for name in names) and not torch.equal(*(found[name]() for name in names))


def _stored_dtype(raw: Mapping[str, Any]) -> torch.dtype | None:
    name = raw.get("dtype") or raw.get("torch_dtype")
    return getattr(torch, name) if name in DTYPES else None


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tensor_sources(folder: Path, files: ExitStack) -> dict[str, Source]:
    """Name in the file -> how to map it; the files stay open until `files` closes."""
    if (folder / SINGLE).is_file():
        return _open(folder / SINGLE, files)
    if not (folder / INDEX).is_file():
        pickled = sorted(entry.name for entry in folder.iterdir() if entry.suffix in (".bin", ".pt", ".pth"))
        if pickled:
            raise ModelError(
                "the weights are stored as pickle, which could run any code when it is read",
                where=folder / pickled[0],
                fix="convert them to safetensors: load with transformers, then save_pretrained into a new folder",
            )
        raise ModelError("the model folder has no weights", where=folder, fix=f"put {SINGLE} or {INDEX} there")
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()) or not places:
        raise ModelError("weight_map must map tensor names to file names", where=folder / INDEX, value=places)
    opened: dict[str, dict[str, Source]] = {}
    for name in sorted(set(places.values())):
        shard = inside(folder, name)
        if not shard.is_file():
            raise ModelError(
                "a weight file named in the index is missing",
                where=folder / INDEX,
                value=name,
                fix=f"copy {name} into the folder, or download the model again",
            )
        opened[name] = _open(shard, files)
    for tensor, name in places.items():
        if tensor not in opened[name]:
            raise ModelError("the weight file lacks a tensor that the index names", where=folder / name, value=tensor)
    return {tensor: opened[name][tensor] for tensor, name in places.items()}


def _open(path: Path, files: ExitStack) -> dict[str, Source]:
    from safetensors import SafetensorError, safe_open

    try:
        file = files.enter_context(safe_open(path, framework="pt"))
        names = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(
            "the weight file is cut short or damaged", where=path, value=str(error), fix="copy or download it again"
        ) from None

    def source(name: str) -> Source:
        return lambda: file.get_tensor(name)

    return {name: source(name) for name in names}


def with_head(config: ModelConfig, head: Mapping[str, Any]) -> ModelConfig:
    """The same body with another head; what `head` leaves out is as the family has it, else the default."""
    unknown = set(head) - set(HEAD_FIELDS)
    if unknown:
        raise ValueError(f"no settings of a head: {sorted(unknown)}")
    known = family(config.family).HEADS.get(head.get("head", config.head))
    body = {name: value for name, value in config.model_dump().items() if name not in HEAD_FIELDS}
    return ModelConfig.model_validate({**body, **(known.fields if known else {}), **head})


def is_tied(config: ModelConfig, name: str) -> bool:
    """Whether the parameter `name` is the embedding under another name."""
    return config.tie_embeddings and config.head in ("language", "masked") and name == "head.weight"


def keys_of(config: ModelConfig) -> list[Key]:
    """The tensors of a folder of this model, for all layers at once."""
    file = family(config.family)
    name, head = head_of(file, config)
    body: list[Key] = file.body_keys(config) if hasattr(file, "body_keys") else file.KEYS
    prefix = "" if name == "none" else head.prefix
    if prefix is not None:
        body = [replace(key, file=prefix + key.file.removeprefix(file.PREFIX)) for key in body]
    keys = body + head.keys
    if name != config.head:  # a head that only this package knows keeps its own names
        keys += [
            Key(f"{OWN_SECTION}.{part}", (part,))
            for module in ("head", "head.dense", "head.norm", "head.out", "head.projection")
            for part in (f"{module}.weight", f"{module}.bias")
        ]
    return keys


def _own_weights(
    folder: Path,
    config: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
    found: Mapping[str, Source],
    *,
    new_head: bool,
) -> dict[str, Tensor]:
    """Parameters by this package's names, mapped from the files; every name and shape checked.

    new_head: the folder was written with another head, so it may lack tensors of this one and hold others.
    """
    file = family(config.family)
    table = expand(keys_of(config), config, shapes)
    known = {key.file for key in table}
    other = {key.file for head in file.HEADS.values() for key in head.keys} if new_head else set()
    other |= {name for name in found if new_head and name.startswith(f"{OWN_SECTION}.")}
    prefixes = {file.PREFIX, *(head.prefix for head in file.HEADS.values() if head.prefix is not None)}
    named = _full_names(found, known | other, prefixes)
    tied = {key.file for key in table if is_tied(config, key.own[0])}
    optional = tied | {key.file for key in table if new_head and key.own[0].startswith("head.")}
    _same_names(
        folder,
        known - optional,
        {name for name in named if name in known or not is_ignored(name, file)} - optional - other,
    )
    _check_zero(folder, found, getattr(file, "ZERO", ""))
    weights: dict[str, Tensor] = {}
    for key in table:
        if key.file not in named:
            continue
        tensor = named[key.file]()
        if not tensor.is_floating_point():
            raise ModelError(
                "a weight is not a floating-point number", where=f"{folder}: {key.file}", value=tensor.dtype
            )
        tensor = tensor.t() if key.transposed and tensor.dim() == 2 else tensor
        expected = [shapes[name] for name in key.own]
        whole = (sum(shape[0] for shape in expected), *expected[0][1:])
        if tuple(tensor.shape) != whole:
            if key.file in optional - tied:  # another number of labels: not this head
                continue
            raise ModelError(
                "a weight has another shape than config.json asks for",
                where=f"{folder}: {key.file}",
                value=f"{_shape(tensor.shape, key)} in the file, {_shape(whole, key)} by config.json",
                fix="the config.json belongs to another model, or was edited",
            )
        weights.update(zip(key.own, unstacked(tensor, key, expected, config.num_kv_heads), strict=True))
    if "head.weight" in weights and tied and not torch.equal(weights.pop("head.weight"), weights["embed.weight"]):
        raise ModelError(
            "head and embedding are tied but have different weights",
            where=f"{folder}: {tied.pop()}",
            fix="set tie_word_embeddings to false in config.json",
        )
    return weights


def unstacked(tensor: Tensor, key: Key, shapes: list[tuple[int, ...]], groups: int) -> list[Tensor]:
    """The parameters that one tensor of a file holds."""
    if not key.grouped:
        return list(torch.split(tensor, [shape[0] for shape in shapes]))
    parts = torch.split(tensor.reshape(groups, -1, *tensor.shape[1:]), [shape[0] // groups for shape in shapes], dim=1)
    return [part.flatten(0, 1) for part in parts]


def _shape(shape: Collection[int], key: Key) -> list[int]:
    """The shape as the file has it."""
    return list(shape)[::-1] if key.transposed else list(shape)


def _full_names(found: Mapping[str, Source], table: Collection[str], prefixes: Collection[str]) -> dict[str, Source]:
    """The tensors by the names of the table.

    Some folders put a prefix before the body, some leave it out; the oldest have TensorFlow's names for norms.
    """
    names = {}
    for name, source in found.items():
        modern = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
        bare = {modern, *(modern.removeprefix(prefix) for prefix in prefixes)}
        variants = (name, *(prefix + rest for rest in bare for prefix in ("", *prefixes)))
        names[next((variant for variant in variants if variant in table), name)] = source
    return names


def is_ignored(name: str, file: ModuleType) -> bool:
    """Whether files of the family may hold a tensor of this name that is no parameter here."""
    return any(re.fullmatch(file.IGNORED, variant) for variant in (name, file.PREFIX + name))


def _check_zero(folder: Path, found: Mapping[str, Source], pattern: str) -> None:
    """Refuses tensors whose names match `pattern`, which are left out because they are zero, if they are not."""
    for name, source in found.items():
        if re.fullmatch(pattern, name) and torch.count_nonzero(source()):
            raise ModelError("a tensor that is not supported is not zero", where=f"{folder}: {name}")


def _same_names(folder: Path, expected: Collection[str], found: Collection[str]) -> None:
    missing, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or unknown:
        parts = [
            f"{len(names)} {kind} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
            for kind, names in (("missing", missing), ("unknown", unknown))
            if names
        ]
        raise ModelError(
            "the weights do not fit the model: " + ", ".join(parts),
            where=folder,
            fix="config.json and the weights must come from the same model",
        )


def _prepared(tensor: Tensor, dtype: torch.dtype | None, device: torch.device | str) -> Tensor:
    """The tensor in its final type and place; the pages of the file themselves if there is nothing to change."""
    moved = tensor.to(device=device, dtype=dtype)
    aligned = moved.data_ptr() % moved.element_size() == 0
    return moved if aligned and moved.is_contiguous() else moved.clone(memory_format=torch.contiguous_format)


def file_tensor(key: Key, state_dict: Mapping[str, Tensor], dtype: torch.dtype | None, groups: int) -> Tensor:
    """The tensor of a file, from the parameters it holds."""
    parts = [state_dict[name].detach().to(device="cpu", dtype=dtype) for name in key.own]
    if key.grouped:
        parts = [torch.cat([part.reshape(groups, -1, *part.shape[1:]) for part in parts], dim=1).flatten(0, 1)]
    tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
    return tensor.t().contiguous() if key.transposed else tensor.contiguous()


def _shards(
    table: Collection[Key], state_dict: Mapping[str, Tensor], dtype: torch.dtype | None, limit: int
) -> list[list[Key]]:
    """The keys of each file."""

    def sizes() -> Iterator[tuple[Key, int]]:
        for key in table:
            parts = [state_dict[name] for name in key.own]
            width = parts[0].element_size() if dtype is None else dtype.itemsize
            yield key, sum(part.numel() for part in parts) * width

    shards: list[list[Key]] = [[]]
    used = 0
    for key, size in sizes():
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(key)
        used += size
    return shards
