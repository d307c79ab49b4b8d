"""What can be wrong with the files of an adapter, found out before it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from trivium.errors import ConfigError, ModelError
from trivium.models.build import family, first_problem
from trivium.models.folder import is_ignored, keys_of
from trivium.models.huggingface import expand

if TYPE_CHECKING:
    from torch import Tensor

    from trivium.models.config import ModelConfig
    from trivium.models.transform import Transform
    from trivium.models.transformer import Transformer

PEFT_PREFIX = "base_model.model."
_SCORES = ("score.weight", "classifier.weight", "classifier.out_proj.weight", "qa_outputs.weight")
"""The last layer of a head for labels in files."""


def misfit(name: str, found: object, expected: object) -> ModelError:
    """The error for a tensor of another size."""
    return ModelError(
        "the adapter does not fit the base: a weight has another shape",
        where=name,
        value=f"{found} in the adapter, {expected} by the base",
        fix="give the base it was trained on",
    )


def read_checked(where: Path, read: Callable[[], Transform]) -> Transform:
    """What `read` makes of the settings in the file `where`; errors name that file and the setting."""
    try:
        return read()
    except ValidationError as error:
        found = first_problem(error, where="")
        raise ModelError(**{**found, "where": f"{where}: {found['where'].lstrip('.')}"}) from None
    except (ModelError, ConfigError) as error:
        setting = (error.where or "").removeprefix(f"{where.name}: ")
        given = {"value": error.value} if error.has_value else {}
        place = setting if setting.startswith(str(where.parent)) else f"{where}: {setting}" if setting else where
        raise ModelError(error.problem, where=place, fix=error.fix, **given) from None


def check_tensors(
    where: Path, adapter: Transform, tensors: Mapping[str, Tensor], model: Transformer, *, other_head: bool
) -> None:
    """Refuses tensors that nothing here reads: the model would not be the one that was stored.

    other_head: the model was asked for with another head, so that of the adapter is left out.
    """
    known = {_bare(name) for name in adapter.tensors(model, model.state_dict())}
    table = expand(keys_of(model.config), model.config, [name for name, _ in model.named_parameters()])
    known |= {adapter.peft_prefix + key.file for key in table}
    file = family(model.config.family)
    if other_head:
        known |= {adapter.peft_prefix + key.file for head in file.HEADS.values() for key in head.keys}
    unknown = sorted(
        name
        for name in tensors
        if _bare(name) not in known and not is_ignored(_bare(name).removeprefix(adapter.peft_prefix), file)
    )
    if unknown:
        raise ModelError(
            f"the adapter holds {len(unknown)} tensors that have no place in the model",
            where=where,
            value=", ".join(unknown[:3]),
            fix="give the base it was trained on; or it is of a kind that is not supported",
        )


def _bare(name: str) -> str:
    """The name without what only some versions of PEFT write."""
    name = name.replace(".base_layer.", ".")
    return name.removesuffix(".weight") if ".lora_magnitude_vector" in name else name


def head_of_labels(kind: str | None, tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Any] | None:
    """The head that an adapter for labels brings along, where its base (`config`) has another."""
    if kind not in ("sequence", "token", "span") or config.head == kind:
        return None
    counts = {
        tensor.shape[0]
        for name, tensor in tensors.items()
        if name.removeprefix("base_model.").removeprefix("model.") in _SCORES
        and tensor.dim() == 2
        and tensor.shape[1] == config.hidden_size
    }
    if len(counts) != 1:
        return None
    labels = tuple(f"LABEL_{number}" for number in range(counts.pop()))
    return {"head": kind} | ({} if kind == "span" else {"labels": labels})


def check_head(folder: Path, model: Transformer, values: Mapping[str, Tensor]) -> None:
    """Refuses a new head of which the adapter has only a part: the rest would be random."""
    if missing := [name for name in model.invented if name not in values]:
        raise ModelError(
            "neither the adapter nor its base has these weights of the head",
            where=folder,
            value=", ".join(missing[:3]),
            fix="give a base with that head: the folder of the model that the adapter was trained on",
        )


def check_vocabulary(where: Path, expected: object, there: object, base: Path) -> None:
    """An adapter for more or fewer tokens than its base has would silently mean other words."""
    if isinstance(expected, int) and isinstance(there, int) and expected != there:
        raise ModelError(
            "the vocabulary of the base has changed since the adapter was trained",
            where=where,
            value=f"{expected} tokens in the adapter, {there} in {base}",
            fix="give the base with the vocabulary it was trained with (trivium tokenizer extend writes a new folder)",
        )


def prepared(where: Path, listed: object) -> list[Transform]:
    """What was done to the base before the adapters were trained, as a list of components in the file `where`."""
    from trivium.registry import component, names

    found = []
    for entry in listed if isinstance(listed, list) else [listed]:
        settings = dict(entry) if isinstance(entry, dict) else {}
        name = settings.pop("name", None)
        cls = component("transforms", name) if name in names("transforms") else None
        if cls is None or not cls.changes_base:
            raise ModelError("unknown change of the base", where=f"{where}: prepared", value=entry)
        try:
            found.append(cls(cls.Config(**settings)))
        except ValidationError as error:
            raise ModelError(**first_problem(error, where=f"{where}: prepared")) from None
    return found


def as_component(transform: Transform) -> dict[str, Any]:
    """A transform as a recipe names it; the reverse of `prepared`."""
    return {"name": type(transform).__module__.rpartition(".")[2], **transform.config.model_dump(mode="json")}
