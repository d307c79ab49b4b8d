"""Adapters as folders: PEFT's format, with its tokenizer, beside a base that is named and recognised.

    adapter_config.json, adapter_model.safetensors   one adapter, as PEFT writes and reads it
    config.json                                      the shape of the whole model, with the head that was trained
    adapters.json                                    the base, by path and fingerprint, and the order of the adapters

With several adapters on one base each has a folder of its own below. Parameters of the base that trained with the
adapter (a new head) stand in its file under their own names, as PEFT's `modules_to_save`. A folder that PEFT wrote has
only the first two files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from trivium.artifacts.manifest import artifact_root
from trivium.artifacts.paths import inside
from trivium.artifacts.record import read_record
from trivium.artifacts.tensors import read_tensors, write_tensors
from trivium.errors import ConfigError, ModelError
from trivium.lazy import torch
from trivium.models.build import family, first_problem
from trivium.models.config import ModelConfig
from trivium.models.folder import (
    CONFIG,
    INDEX,
    SINGLE,
    config_of,
    file_tensor,
    is_ignored,
    keys_of,
    load_model,
    read_config,
    read_json,
    unstacked,
    write_json,
    write_model_config,
)
from trivium.models.huggingface import HEAD_FIELDS, expand
from trivium.models.transform import Base, Transform, adapters_of, add_transform, base_names, finish

if TYPE_CHECKING:
    from torch import Tensor

    from trivium.models.transformer import Transformer

ADAPTER, TENSORS, OWN = "adapter_config.json", "adapter_model.safetensors", "adapters.json"
PEFT_PREFIX = "base_model.model."
_TASKS = {
    ("language", "decoder"): "CAUSAL_LM",
    ("language", "encoder_decoder"): "SEQ_2_SEQ_LM",
    ("sequence", ""): "SEQ_CLS",
    ("token", ""): "TOKEN_CLS",
    ("span", ""): "QUESTION_ANS",
}
"""(head, kind of model or any) -> PEFT's `task_type`; others have none, as in PEFT."""


@dataclass(frozen=True)
class Stored:
    """One adapter of a folder."""

    folder: Path
    settings: dict[str, Any]

    @property
    def tensors(self) -> Path:
        """Its file of tensors."""
        return self.folder / TENSORS


def is_adapter(folder: Path | str) -> bool:
    """Whether the folder holds adapters and not a model of its own."""
    return any((Path(folder) / name).is_file() for name in (ADAPTER, OWN))


def save_adapters(folder: Path, model: Transformer, weights: Mapping[str, Tensor]) -> None:
    """Writes the adapters of the model into `folder`, an existing folder inside an artifact that is being written.

    weights: all parameters by this package's names.
    """
    adapters, base = adapters_of(model), model.base
    assert base is not None, "adapters are stored beside a base"
    alone = len(adapters) == 1
    also = _trained_base(model, weights)
    for number, adapter in enumerate(adapters):
        place = folder if alone else folder / adapter.name
        place.mkdir(exist_ok=True)
        settings = {
            **adapter.settings(model),
            "peft_type": adapter.peft_type,
            "task_type": _task(model.config),
            "base_model_name_or_path": base.path,
            "inference_mode": True,
        }
        tensors = adapter.tensors(model, weights)
        if number == 0 and also:
            settings["modules_to_save"] = sorted({name.rpartition(".")[0] for name in also})
            tensors |= {PEFT_PREFIX + name: tensor for name, tensor in also.items()}
        write_json(place / ADAPTER, settings)
        write_tensors(place / TENSORS, tensors, metadata={"format": "pt"})
    order = ["." if alone else adapter.name for adapter in adapters]
    names = [adapter.name for adapter in adapters]
    own = {"format": 1, "base": base.path, "fingerprint": base.fingerprint, "adapters": order, "names": names}
    own["vocab_size"] = model.config.vocab_size
    if prepared := [_component(transform) for transform in model.transforms if transform.changes_base]:
        own["prepared"] = prepared
    write_json(folder / OWN, own)
    write_model_config(folder, model.config, next(iter(model.parameters())).dtype)


def load_adapters(
    folder: Path | str,
    *,
    base: Path | str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    head: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Transformer:
    """The base of a folder of adapters, with them; arguments as in `load_model`.

    base: the folder of the base; default: the one that the folder names, if it is the same as it was.
    """
    path = Path(folder)
    stored = list(stored_adapters(path))
    found = find_base(path, base)
    config = head_settings(path)
    wanted = {**config, **(head or {})} or None
    if is_adapter(found):
        raise ModelError(
            "the base of an adapter must be a model of its own, not an adapter",
            where=found,
            fix="merge that adapter into its base first: trivium export FOLDER --merge --output BASE",
        )
    stored_tensors = [read_adapter_tensors(entry.tensors) for entry in stored]
    wanted = wanted or _head_of_peft(stored[0], stored_tensors[0], found)
    model = load_model(found, dtype=dtype, device=device, head=wanted, seed=seed)
    for transform in _prepared(path):
        add_transform(model, transform, seed=seed)
    for entry, tensors, name in zip(stored, stored_tensors, _names(path, len(stored)), strict=True):
        transform = _read_transform(entry, tensors, model)
        transform.name, transform.where = name, str(entry.folder / ADAPTER)
        add_transform(model, transform, seed=seed)
    model.base = base_of(found)
    values = adapter_values(path, model)
    put_values(model, values)
    finish(model)
    for entry, tensors, transform in zip(stored, stored_tensors, adapters_of(model), strict=True):
        _check_tensors(entry, transform, tensors, model)
    _check_head(path, model, values)
    return model


def _read_transform(entry: Stored, tensors: Mapping[str, Tensor], model: Transformer) -> Transform:
    """The transform of an adapter; errors name its file."""
    where = entry.folder / ADAPTER
    try:
        return adapter_class(entry).from_peft(entry.settings, tensors, model)
    except ValidationError as error:
        found = first_problem(error, where="")
        raise ModelError(**{**found, "where": f"{where}: {found['where'].lstrip('.')}"}) from None
    except (ModelError, ConfigError) as error:
        inside_file = str(error.where).removeprefix(f"{ADAPTER}: ") if error.where else None
        place = error.where if str(error.where).startswith(str(entry.folder)) else where
        place = f"{where}: {inside_file}" if inside_file and place == where else place
        given = {"value": error.value} if error.has_value else {}
        raise ModelError(error.problem, where=place, fix=error.fix, **given) from None


def _prepared(folder: Path) -> list[Transform]:
    """What was done to the base before the adapters were trained."""
    from trivium.registry import component, names

    own = read_json(folder / OWN) if (folder / OWN).is_file() else {}
    listed, found = own.get("prepared", []), []
    for entry in listed if isinstance(listed, list) else [listed]:
        name = entry.get("name") if isinstance(entry, dict) else None
        cls = component("transforms", name) if name in names("transforms") else None
        if cls is None or not cls.changes_base:
            raise ModelError("unknown change of the base", where=f"{folder / OWN}: prepared", value=entry)
        try:
            found.append(cls(cls.Config(**{key: value for key, value in entry.items() if key != "name"})))
        except ValidationError as error:
            raise ModelError(**first_problem(error, where=f"{folder / OWN}: prepared")) from None
    return found


def _component(transform: Transform) -> dict[str, Any]:
    """A transform as a recipe names it."""
    return {"name": type(transform).__module__.rpartition(".")[2], **transform.config.model_dump(mode="json")}


def read_adapter_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of an adapter; never a pickle."""
    pickled = path.with_suffix(".bin")
    if not path.is_file() and pickled.is_file():
        raise ModelError(
            "the adapter is stored as pickle, which could run any code when it is read",
            where=pickled,
            fix="store it as safetensors: load it with PEFT, then save_pretrained into a new folder",
        )
    if not path.is_file():
        raise ModelError("the folder of the adapter has no weights", where=path, fix=f"put {TENSORS} there")
    return read_tensors(path)


def _check_tensors(entry: Stored, adapter: Transform, tensors: Mapping[str, Tensor], model: Transformer) -> None:
    """Refuses tensors that nothing here reads: the model would not be the one that was stored."""
    known = {_bare(name) for name in adapter.tensors(model, model.state_dict())}
    table = expand(keys_of(model.config), model.config, [name for name, _ in model.named_parameters()])
    known |= {PEFT_PREFIX + key.file for key in table}
    file = family(model.config.family)
    unknown = sorted(
        name for name in tensors if _bare(name) not in known and not is_ignored(_bare(name)[len(PEFT_PREFIX) :], file)
    )
    if unknown:
        raise ModelError(
            f"the adapter holds {len(unknown)} tensors that have no place in the model",
            where=entry.tensors,
            value=", ".join(unknown[:3]),
            fix="give the base it was trained on; or it is of a kind that is not supported",
        )


def _bare(name: str) -> str:
    """The name without what only some versions of PEFT write."""
    name = name.replace(".base_layer.", ".")
    return name.removesuffix(".weight") if ".lora_magnitude_vector" in name else name


def _head_of_peft(entry: Stored, tensors: Mapping[str, Tensor], base: Path) -> dict[str, Any] | None:
    """The head that an adapter of PEFT for labels brings along, where its base has another."""
    kind = {task: head for (head, _), task in _TASKS.items()}.get(str(entry.settings.get("task_type")))
    config = read_config(base)
    if kind not in ("sequence", "token", "span") or config.head == kind:
        return None
    layers = {tensor.shape[0] for name, tensor in tensors.items() if _scores(name, tensor, config)}
    if len(layers) != 1:
        return None
    names = tuple(f"LABEL_{number}" for number in range(layers.pop()))
    return {"head": kind} | ({} if kind == "span" else {"labels": names})


def _scores(name: str, tensor: Tensor, config: ModelConfig) -> bool:
    """Whether the tensor is the last layer of a head for labels."""
    last = name.removeprefix(PEFT_PREFIX)
    return last in ("score.weight", "classifier.weight", "classifier.out_proj.weight", "qa_outputs.weight") and (
        tensor.dim() == 2 and tensor.shape[1] == config.hidden_size
    )


def _check_head(folder: Path, model: Transformer, values: Mapping[str, Tensor]) -> None:
    """Refuses a new head of which the adapter has only a part: the rest would be random."""
    if missing := [name for name in model.invented if name not in values]:
        raise ModelError(
            "neither the adapter nor its base has these weights of the head",
            where=folder,
            value=", ".join(missing[:3]),
            fix="give a base with that head: the folder of the model that the adapter was trained on",
        )


def adapter_values(folder: Path | str, model: Transformer) -> dict[str, Tensor]:
    """What the adapters of a folder hold for a model that has them applied: parameters by this package's names."""
    values: dict[str, Tensor] = {}
    adapters = adapters_of(model)
    for entry, adapter in zip(stored_adapters(Path(folder)), adapters, strict=True):
        tensors = read_adapter_tensors(entry.tensors)
        values |= adapter.values(tensors, model)
        values |= _read_trained_base(tensors, model)
    return values


def put_values(model: Transformer, values: Mapping[str, Tensor]) -> None:
    """Sets parameters by name; ModelError where a shape is another."""
    own = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, tensor in values.items():
            if own[name].shape != tensor.shape:
                raise misfit(name, list(tensor.shape), list(own[name].shape))
            own[name].copy_(tensor)


def misfit(name: str, found: object, expected: object) -> ModelError:
    """The error for a tensor of another size."""
    return ModelError(
        "the adapter does not fit the base: a weight has another shape",
        where=name,
        value=f"{found} in the adapter, {expected} by the base",
        fix="give the base it was trained on",
    )


def stored_adapters(folder: Path) -> Iterator[Stored]:
    """The adapters of a folder, in the order in which they are applied."""
    if not (folder / OWN).is_file():
        yield Stored(folder, read_json(folder / ADAPTER))
        return
    order = read_json(folder / OWN).get("adapters")
    if not isinstance(order, list) or not all(isinstance(name, str) for name in order) or not order:
        raise ModelError("the folder does not say which adapters it holds", where=folder / OWN, value=order)
    for name in order:
        place = folder if name == "." else inside(folder, name)
        yield Stored(place, read_json(place / ADAPTER))


def _names(folder: Path, count: int) -> list[str]:
    """Names of the adapters in the model."""
    names = read_json(folder / OWN).get("names") if (folder / OWN).is_file() else None
    fits = (
        isinstance(names, list) and len(names) == count and all(isinstance(n, str) and n.isidentifier() for n in names)
    )
    return names if fits and names is not None else [""] * count


def adapter_class(entry: Stored) -> type[Transform]:
    """The transform that reads an adapter."""
    kind = str(entry.settings.get("peft_type", "")).rpartition(".")[2].upper()
    known = _classes()
    if kind not in known:
        raise ModelError(
            "the folder holds a kind of adapter that is not supported",
            where=f"{entry.folder / ADAPTER}: peft_type",
            value=entry.settings.get("peft_type"),
            fix=f"supported are {', '.join(sorted(known))}",
        )
    return known[kind]


@cache
def _classes() -> dict[str, type[Transform]]:
    from trivium.registry import component, names

    classes = [component("transforms", name) for name in names("transforms")]
    return {cls.peft_type: cls for cls in classes if cls.peft_type}


def find_base(folder: Path, base: Path | str | None = None) -> Path:
    """The folder of the base: as given, as the adapter names it, or where the record of the artifact has it."""
    entry = next(stored_adapters(folder))
    own = read_json(folder / OWN) if (folder / OWN).is_file() else {}
    named = own.get("base") or entry.settings.get("base_model_name_or_path")
    candidates = [Path(base)] if base is not None else [Path(str(named)), *_recorded(folder)] if named else []
    found = next((path for path in candidates if (path / CONFIG).is_file()), None)
    if found is None:
        raise ModelError(
            "the base of the adapter is not there",
            where=folder / ADAPTER,
            value=str(base or named),
            fix="give the folder of the base, or put it where the adapter names it (base_model_name_or_path)",
        )
    _check_vocabulary(folder, own, found)
    expected = own.get("fingerprint")
    if expected and fingerprint(found) != expected:
        raise ModelError(
            "this is not the base that the adapter was trained on: its weights or its vocabulary differ",
            where=folder / OWN,
            value=str(found),
            fix="give the base it was trained on; an adapter means nothing on another one",
        )
    return found


def _check_vocabulary(folder: Path, own: Mapping[str, Any], base: Path) -> None:
    """An adapter for more or fewer tokens than its base has would silently mean other words."""
    expected, there = own.get("vocab_size"), read_json(base / CONFIG).get("vocab_size")
    if isinstance(expected, int) and isinstance(there, int) and expected != there:
        raise ModelError(
            "the vocabulary of the base has changed since the adapter was trained",
            where=folder / OWN,
            value=f"{expected} tokens in the adapter, {there} in {base}",
            fix="give the base with the vocabulary it was trained with (trivium tokenizer extend writes a new folder)",
        )


def _recorded(folder: Path) -> list[Path]:
    """Where the record of the artifact says that the base lies, for folders that were moved together."""
    record, root = read_record(folder), artifact_root(folder) or folder
    return [root / parent.path for parent in record.parents if parent.role == "base"] if record else []


def base_of(folder: Path | str) -> Base:
    """A model folder as the base of adapters."""
    return Base(str(folder), fingerprint(folder))


def fingerprint(folder: Path | str) -> str:
    """A hash of the weights of a model folder that reads a part of them only: enough to tell two models apart."""
    path = Path(folder)
    digest = hashlib.sha256()
    names = [SINGLE] if (path / SINGLE).is_file() else []
    if not names and (path / INDEX).is_file():
        names = sorted(set(read_json(path / INDEX).get("weight_map", {}).values()))
    for name in names:
        size = (path / name).stat().st_size
        digest.update(f"{name}:{size};".encode())
        with (path / name).open("rb") as stream:
            step = max(size // 256, 1 << 13)
            for start in range(0, size, step):
                stream.seek(start)
                digest.update(stream.read(1 << 13))
    return digest.hexdigest()


def head_settings(folder: Path) -> dict[str, Any]:
    """What the folder says about the head of the model, as `load_model` takes it; empty: that of the base."""
    if not (folder / CONFIG).is_file():
        return {}
    config = config_of(folder, read_json(folder / CONFIG))
    return {name: getattr(config, name) for name in HEAD_FIELDS}


def read_adapter_config(folder: Path, base: Path | str | None = None) -> ModelConfig:
    """The shape of the model that a folder of adapters makes."""
    if (folder / CONFIG).is_file():
        return config_of(folder, read_json(folder / CONFIG))
    return read_config(find_base(folder, base))


def _task(config: ModelConfig) -> str | None:
    return _TASKS.get((config.head, config.kind)) or _TASKS.get((config.head, ""))


def _trained_base(model: Transformer, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of the base that train, under the names of the file format."""
    parameters = dict(model.named_parameters())
    stored = [name for adapter in adapters_of(model) for name in parameters if adapter.stores(name)]
    trained = [name for name in base_names(model) if parameters[name].requires_grad and name not in stored]
    table = expand(keys_of(model.config), model.config, trained)
    covered = {name for key in table for name in key.own}
    if missing := sorted(set(trained) - covered):
        raise ModelError(
            "a part of a tensor trains that the file format keeps as one",
            value=missing[0],
            fix="let all parts of it train, or none",
        )
    return {key.file: file_tensor(key, weights, None, model.config.num_kv_heads) for key in table}


def _read_trained_base(tensors: Mapping[str, Tensor], model: Transformer) -> dict[str, Tensor]:
    """The reverse of `_trained_base`."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = base_names(model)
    found: dict[str, Tensor] = {}
    tensors = {name.replace(".base_layer.", "."): tensor for name, tensor in tensors.items()}
    for key in expand(keys_of(model.config), model.config, names):
        tensor = tensors.get(PEFT_PREFIX + key.file)
        if tensor is not None and all(parameters[name].is_floating_point() for name in key.own):
            tensor = tensor.t() if key.transposed and tensor.dim() == 2 else tensor
            shapes = [tuple(parameters[name].shape) for name in key.own]
            if tensor.shape[:1] != (sum(shape[0] for shape in shapes),):
                raise misfit(key.file, list(tensor.shape), [sum(shape[0] for shape in shapes), *shapes[0][1:]])
            found |= zip(key.own, unstacked(tensor, key, shapes, model.config.num_kv_heads), strict=True)
    return found
