"""Adapters as folders: PEFT's format, with its tokenizer, beside a base that is named and recognised.

    adapter_config.json, adapter_model.safetensors   one adapter, as PEFT writes and reads it
    adapter_config.json, adapter.safetensors         one bottleneck adapter, as AdapterHub does; the head that was
                                                     trained with it in model_head.safetensors
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

from trivium.artifacts.manifest import artifact_root
from trivium.artifacts.paths import inside
from trivium.artifacts.record import read_record
from trivium.artifacts.tensors import read_tensors, write_tensors
from trivium.errors import ModelError
from trivium.lazy import torch
from trivium.models.adapter_checks import (
    PEFT_PREFIX,
    as_component,
    check_head,
    check_tensors,
    check_vocabulary,
    head_of_labels,
    misfit,
    prepared,
    read_checked,
)
from trivium.models.config import ModelConfig
from trivium.models.folder import (
    CONFIG,
    INDEX,
    SINGLE,
    config_of,
    file_tensor,
    keys_of,
    load_model,
    read_config,
    read_json,
    unstacked,
    with_head,
    write_json,
    write_model_config,
)
from trivium.models.heads import make_head
from trivium.models.huggingface import HEAD_FIELDS, expand
from trivium.models.transform import Base, Transform, adapters_of, add_transform, base_names, finish

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trivium.models.transformer import Transformer

FOLDED = "training.safetensors"
"""Of a checkpoint: the parameters that what is stored was computed from."""
ADAPTER, TENSORS, OWN = "adapter_config.json", "adapter_model.safetensors", "adapters.json"
FUSION = "adapter_fusion_config.json"
HEAD, HEAD_CONFIG = "model_head.safetensors", "head_config.json"
_HUB_FILES = {"BOTTLENECK": (ADAPTER, "adapter.safetensors"), "FUSION": (FUSION, "model_adapter_fusion.safetensors")}
"""Kind of adapter in AdapterHub's format -> its files."""
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
    def kind(self) -> str:
        """PEFT's `peft_type`, or `BOTTLENECK` and `FUSION` in AdapterHub's format."""
        if "peft_type" not in self.settings and "config" in self.settings:
            return "FUSION" if "adapter_names" in self.settings else "BOTTLENECK"
        return str(self.settings.get("peft_type", "")).rpartition(".")[2].upper()

    @property
    def file(self) -> Path:
        """Its file of tensors; ModelError where that is not there, or a pickle."""
        path = self.folder / _HUB_FILES.get(self.kind, ("", TENSORS))[1]
        if not path.is_file():
            pickled = sorted(entry.name for entry in self.folder.iterdir() if entry.suffix in (".bin", ".pt"))
            raise ModelError(
                "the adapter is stored as pickle, which could run any code when it is read"
                if pickled
                else "the folder of the adapter has no weights",
                where=self.folder / (pickled[0] if pickled else path.name),
                fix=f"store it as safetensors: {path.name}",
            )
        return path

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors, and those of the head beside it."""
        found = read_tensors(self.file)
        if self.kind in _HUB_FILES and (self.folder / HEAD).is_file():
            found |= {PEFT_PREFIX + name: tensor for name, tensor in read_tensors(self.folder / HEAD).items()}
        return found


def is_adapter(folder: Path | str) -> bool:
    """Whether the folder holds adapters and not a model of its own."""
    return any((Path(folder) / name).is_file() for name in (ADAPTER, FUSION, OWN))


def save_adapters(folder: Path, model: Transformer, weights: Mapping[str, Tensor], *, training: bool = False) -> None:
    """Writes the adapters of the model into `folder`, an existing folder inside an artifact that is being written.

    weights: all parameters by this package's names. training: also what only a run that continues needs.
    """
    adapters, base = adapters_of(model), model.base
    assert base is not None, "adapters are stored beside a base"
    alone = len(adapters) == 1
    also = _trained_base(model, weights)
    for number, adapter in enumerate(adapters):
        place = folder if alone else folder / adapter.name
        place.mkdir(exist_ok=True)
        write = _save_hub if adapter.peft_type in _HUB_FILES else _save_peft
        write(place, adapter, model, weights, base, also if number == 0 else {})
        if training and adapter.folds:
            write_tensors(place / FOLDED, {name: weights[name] for name in adapter.added})
    order = ["." if alone else adapter.name for adapter in adapters]
    names = [adapter.name for adapter in adapters]
    own = {"format": 1, "base": base.path, "fingerprint": base.fingerprint, "adapters": order, "names": names}
    own["vocab_size"] = model.config.vocab_size
    if changes := [as_component(transform) for transform in model.transforms if transform.changes_base]:
        own["prepared"] = changes
    write_json(folder / OWN, own)
    write_model_config(folder, model.config, next(iter(model.parameters())).dtype)


def _save_peft(
    place: Path,
    adapter: Transform,
    model: Transformer,
    weights: Mapping[str, Tensor],
    base: Base,
    also: Mapping[str, Tensor],
) -> None:
    settings = {
        **adapter.settings(model),
        "peft_type": adapter.peft_type,
        "task_type": _task(model.config),
        "base_model_name_or_path": base.path,
        "inference_mode": True,
    }
    tensors = adapter.tensors(model, weights)
    if also:
        settings["modules_to_save"] = sorted({name.rpartition(".")[0] for name in also})
        tensors |= {adapter.peft_prefix + name: tensor for name, tensor in also.items()}
    write_json(place / ADAPTER, settings)
    write_tensors(place / TENSORS, tensors, metadata={"format": "pt"})


def _save_hub(
    place: Path,
    adapter: Transform,
    model: Transformer,
    weights: Mapping[str, Tensor],
    base: Base,
    also: Mapping[str, Tensor],
) -> None:
    settings, tensors = _HUB_FILES[adapter.peft_type]
    own = adapter.settings(model)
    write_json(place / settings, own)
    write_tensors(place / tensors, adapter.tensors(model, weights), metadata={"format": "pt"})
    if also:
        labels = {label: number for number, label in enumerate(model.config.labels)}
        head = {**{key: own[key] for key in ("hidden_size", "model_class", "model_name", "model_type", "version")}}
        write_json(
            place / HEAD_CONFIG, {**head, "config": None, "name": None, "label2id": labels, "num_labels": len(labels)}
        )
        write_tensors(place / HEAD, also, metadata={"format": "pt"})


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
    wanted = head or config or None
    if is_adapter(found):
        raise ModelError(
            "the base of an adapter must be a model of its own, not an adapter",
            where=found,
            fix="merge that adapter into its base first: trivium export FOLDER --merge --output BASE",
        )
    if wanted is None:
        wanted = _head_of_labels(stored[0], read_config(found))
    model = load_model(found, dtype=dtype, device=device, head=wanted, seed=seed)
    model.base = base_of(found)
    own = read_json(path / OWN) if (path / OWN).is_file() else {}
    for transform in prepared(path / OWN, own.get("prepared", [])):
        add_transform(model, transform, seed=seed)
    for entry, name in zip(stored, _names(path, stored), strict=True):
        _add(model, entry, name, seed=seed)
    values = adapter_values(path, model)
    put_values(model, values)
    finish(model)
    for entry, adapter in zip(stored, adapters_of(model), strict=True):
        if entry.kind not in _HUB_FILES:
            check_tensors(entry.file, adapter, entry.tensors(), model, other_head=head is not None)
    check_head(path, model, values)
    return model


def put_adapter(model: Transformer, folder: Path | str, *, frozen: bool) -> str:
    """Applies the one adapter of a folder to a model that is its base, and returns its name there."""
    path = Path(folder)
    stored = list(stored_adapters(path))
    if len(stored) != 1:
        raise ModelError("the folder holds several adapters", where=path, fix="name the folder of one of them")
    if model.base is not None:
        find_base(path, model.base.path)
    transform = _add(model, stored[0], _names(path, stored)[0], seed=0)
    transform.frozen = frozen
    if next(model.parameters()).device.type != "meta":
        put_values(model, transform.values(stored[0].tensors(), model))
    return transform.name


def put_beside(
    model: Transformer, folder: Path | str, name: str
) -> tuple[list[Transform], ModelConfig, nn.Module | None]:
    """Installs the adapters of a folder without counting them among the model's own.

    name: what their names begin with. Returns them, the shape of the model with their head, and that head (None: it is
    that of the base). ModelError if they belong to another base, or change it.
    """
    path = Path(folder)
    assert model.base is not None, "only a model that was read from a folder has adapters beside it"
    find_base(path, model.base.path)
    stored = list(stored_adapters(path))
    wanted = head_settings(path) or _head_of_labels(stored[0], model.config)
    shape = with_head(model.config, wanted) if wanted else model.config
    with torch.device("meta"):
        whole = type(model)(shape)
    added: list[Transform] = []
    head: dict[str, Tensor] = {}
    try:
        for number, entry in enumerate(stored):
            transform, tensors = _add(model, entry, f"{name}_{number}", seed=0), entry.tensors()
            model.transforms.remove(transform)
            added.append(transform)
            values = transform.values(tensors, model)
            head |= _read_trained_base(tensors, transform.peft_prefix, whole)
            _refuse_changes(path, [each for each in (*values, *head) if transform.name not in each.split(".")])
            put_values(model, values)
    except Exception:
        for transform in added:
            transform.remove(model)
        raise
    for parameter in (parameter for transform in added for parameter in transform.added):
        model.get_parameter(parameter).requires_grad_(False)
    if not head:
        return added, shape, None
    made = make_head(shape)
    made.load_state_dict({each.removeprefix("head."): tensor for each, tensor in head.items()}, assign=True)
    like = model.embed.weight
    return added, shape, made.to(device=like.device, dtype=like.dtype).eval().requires_grad_(False)


def _refuse_changes(folder: Path, changed: list[str]) -> None:
    """Weights of the base, but for the head, and what was done to it before."""
    found = [name for name in changed if not name.startswith("head.")]
    if (folder / OWN).is_file() and read_json(folder / OWN).get("prepared"):
        found.append("it was quantised")
    if found:
        fix = "use it by itself"
        raise ModelError(
            "the adapter changes its base, so others cannot share it", where=folder, value=found[0], fix=fix
        )


def _add(model: Transformer, entry: Stored, name: str, *, seed: int) -> Transform:
    tensors, cls = entry.tensors(), adapter_class(entry)
    transform = read_checked(entry.folder / ADAPTER, lambda: cls.from_peft(entry.settings, tensors, model))
    transform.name, transform.where = name, str(entry.folder)
    add_transform(model, transform, seed=seed)
    return transform


def adapter_values(folder: Path | str, model: Transformer) -> dict[str, Tensor]:
    """What the adapters of a folder hold for a model that has them applied: parameters by this package's names."""
    values: dict[str, Tensor] = {}
    adapters = adapters_of(model)
    for entry, adapter in zip(stored_adapters(Path(folder)), adapters, strict=True):
        tensors = entry.tensors()
        folded = read_tensors(entry.folder / FOLDED) if (entry.folder / FOLDED).is_file() else {}
        values |= folded if set(folded) == set(adapter.added) else adapter.values(tensors, model)
        values |= _read_trained_base(tensors, adapter.peft_prefix, model)
    return values


def put_values(model: Transformer, values: Mapping[str, Tensor]) -> None:
    """Sets parameters by name; ModelError where a shape is another."""
    own = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, tensor in values.items():
            if own[name].shape != tensor.shape:
                raise misfit(name, list(tensor.shape), list(own[name].shape))
            own[name].copy_(tensor)


def stored_adapters(folder: Path) -> Iterator[Stored]:
    """The adapters of a folder, in the order in which they are applied."""
    if not (folder / OWN).is_file():
        yield _stored(folder)
        return
    order = read_json(folder / OWN).get("adapters")
    if not isinstance(order, list) or not all(isinstance(name, str) for name in order) or not order:
        raise ModelError("the folder does not say which adapters it holds", where=folder / OWN, value=order)
    for name in order:
        yield _stored(folder if name == "." else inside(folder, name))


def _stored(folder: Path) -> Stored:
    return Stored(folder, read_json(folder / (FUSION if (folder / FUSION).is_file() else ADAPTER)))


def _names(folder: Path, stored: list[Stored]) -> list[str]:
    """Names of the adapters in the model; empty where it may choose one."""
    names = read_json(folder / OWN).get("names") if (folder / OWN).is_file() else None
    if not isinstance(names, list) or len(names) != len(stored):
        names = [entry.settings.get("name") for entry in stored]
    return [name if isinstance(name, str) and name.isidentifier() else "" for name in names]


def adapter_class(entry: Stored) -> type[Transform]:
    """The transform that reads an adapter."""
    kind, known = entry.kind, _classes()
    if kind not in known:
        raise ModelError(
            "the folder holds a kind of adapter that is not supported",
            where=f"{entry.folder / ADAPTER}: peft_type",
            value=kind or None,
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
    check_vocabulary(folder / OWN, own.get("vocab_size"), read_json(found / CONFIG).get("vocab_size"), found)
    expected = own.get("fingerprint")
    if expected and fingerprint(found) != expected:
        raise ModelError(
            "this is not the base that the adapter was trained on: its weights or its vocabulary differ",
            where=folder / OWN,
            value=str(found),
            fix="give the base it was trained on; an adapter means nothing on another one",
        )
    return found


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
    config = read_config(find_base(folder, base))
    head = _head_of_labels(next(stored_adapters(folder)), config)
    return config if head is None else with_head(config, head)


def _head_of_labels(entry: Stored, config: ModelConfig) -> dict[str, Any] | None:
    """The head that an adapter of PEFT brings along for its base, whose shape is `config`."""
    task = {task: head for (head, _), task in _TASKS.items()}.get(str(entry.settings.get("task_type")))
    return head_of_labels(task, entry.tensors(), config)


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


def _read_trained_base(tensors: Mapping[str, Tensor], prefix: str, model: Transformer) -> dict[str, Tensor]:
    """The reverse of `_trained_base`."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = base_names(model)
    found: dict[str, Tensor] = {}
    tensors = {name.replace(".base_layer.", "."): tensor for name, tensor in tensors.items()}
    for key in expand(keys_of(model.config), model.config, names):
        tensor = tensors.get(prefix + key.file)
        if tensor is not None and all(parameters[name].is_floating_point() for name in key.own):
            tensor = tensor.t() if key.transposed and tensor.dim() == 2 else tensor
            shapes = [tuple(parameters[name].shape) for name in key.own]
            whole = (sum(shape[0] for shape in shapes), *shapes[0][1:])
            if tuple(tensor.shape) != whole:
                raise misfit(key.file, list(tensor.shape), list(whole))
            found |= zip(key.own, unstacked(tensor, key, shapes, model.config.num_kv_heads), strict=True)
    return found
