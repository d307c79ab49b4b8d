"""Which layers an adapter acts on: by our names, by those of Hugging Face, or all.

Some families keep several layers as one tensor (GPT-2's `c_attn`). An adapter of a file acts on that tensor, so here
it acts on all layers of such a *place* alike.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from trivium.errors import ConfigError
from trivium.models.adapted import can_adapt
from trivium.models.folder import keys_of
from trivium.models.huggingface import Key, expand
from trivium.nearest import nearest

if TYPE_CHECKING:
    from trivium.models.transformer import Transformer

ALL = "all-linear"
EMBEDDING = "embed"
Value = TypeVar("Value", int, float)


@dataclass(frozen=True)
class Place:
    """A module of the file format and the modules here that it holds.

    file:    its name there (`transformer.h.0.attn.c_attn`). own: names here, in the order in which they are stacked.
    grouped: they are stacked for each of `groups` key/value heads, one after the other.
    """

    file: str
    own: tuple[str, ...]
    sizes: tuple[int, ...]
    grouped: bool = False
    groups: int = 1

    @property
    def layer(self) -> int | None:
        """Number of the block, None outside of the blocks."""
        found = re.search(r"(?:^|\.)blocks\.(\d+)\.", self.own[0])
        return None if found is None else int(found[1])

    @property
    def embedding(self) -> bool:
        """Whether it is the embedding of tokens."""
        return self.own == (EMBEDDING,)

    @property
    def head(self) -> bool:
        """Whether it is (a part of) the head."""
        return self.own[0].split(".")[0] == "head"

    def stack(self, parts: Sequence[Tensor]) -> Tensor:
        """Tensors of the modules here, along their outputs [O, ...] -> the tensor of the file."""
        if self.grouped and len(parts) > 1:
            parts = [part.reshape(self.groups, -1, *part.shape[1:]) for part in parts]
            return torch.cat(list(parts), dim=1).flatten(0, 1)
        return torch.cat(list(parts)) if len(parts) > 1 else parts[0]

    def unstack(self, whole: Tensor) -> list[Tensor]:
        """The reverse of `stack`."""
        if self.grouped and len(self.own) > 1:
            parts = whole.reshape(self.groups, -1, *whole.shape[1:])
            cut = torch.split(parts, [size // self.groups for size in self.sizes], dim=1)
            return [part.flatten(0, 1) for part in cut]
        return list(torch.split(whole, list(self.sizes)))


def places(model: Transformer, *, embeddings: bool = False) -> list[Place]:
    """All linear layers of the model, and with `embeddings` that of tokens, in the order of the file format."""
    modules = dict(model.named_modules())
    named = dict(model.named_parameters(remove_duplicate=False))
    parameters = [name for name in named if ".branches." not in name and not name.startswith("prompts.")]
    found = []
    for key in expand(keys_of(model.config), model.config, parameters):
        own = tuple(name.removesuffix(".weight") for name in key.own)
        kinds = (nn.Linear, nn.Embedding) if embeddings and own == (EMBEDDING,) else (nn.Linear,)
        if key.own[0].endswith(".weight") and all(isinstance(modules[name], kinds) for name in own):
            found.append(_place(key, own, [named[name].shape[0] for name in key.own], model))
    return found


def _place(key: Key, own: tuple[str, ...], sizes: list[int], model: Transformer) -> Place:
    file = key.file.removesuffix(".weight")
    return Place(file, own, tuple(sizes), key.grouped, model.config.num_kv_heads if key.grouped else 1)


def targets(
    model: Transformer,
    wanted: str | Sequence[str],
    *,
    exclude: Iterable[str] = (),
    layers: Sequence[int] | None = None,
    where: str,
    embeddings: bool = False,
    can: Callable[[Place], bool] = lambda place: not place.head,
) -> list[Place]:
    """The places called for; ConfigError naming the nearest one where a name fits nothing.

    wanted:  `all-linear`, every layer but the head; or names, of ours or of Hugging Face, from the end (`q_proj`,
             `attention.query`), `*` standing for anything.
    exclude: names to leave out again. layers: numbers of blocks, negative ones from the end.
    embeddings: whether it can act on the embedding of tokens.
    can:     whether an adapter can act on a place; `all-linear` leaves the others out, a name is refused.
    """
    everything = places(model, embeddings=embeddings)
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    left_out = [place for name in exclude for place in _named(everything, name, where, "exclude")]
    found: list[Place] = []
    for name in names:
        if name == ALL:
            found += [place for place in everything if not place.head and not place.embedding and can(place)]
            continue
        matched = _named(everything, name, where, "target")
        for place in matched:
            if not can(place) or not all(can_adapt(model.get_submodule(own)) for own in place.own):
                head = "; the output layer cannot have one: let it train whole ({name: trainable})"
                raise ConfigError(
                    "this adapter cannot act on the layer",
                    where=f"{where}.target",
                    value=place.file,
                    fix="name other layers" + (head if place.head else ""),
                )
        found += matched
    kept = [place for place in everything if place in found and place not in left_out]
    if layers is not None:
        count = len(model.blocks)
        numbers = {layer % count for layer in layers if -count <= layer < count}
        if len(numbers) < len(set(layers)):
            raise ConfigError(
                "there is no such layer", where=where, value=list(layers), fix=f"layers are 0 to {count - 1}"
            )
        kept = [place for place in kept if place.layer in numbers]
    if not kept:
        raise ConfigError("the adapter would act on no layer", where=where, value=names, fix=f"use {ALL!r}")
    return kept


def _named(everything: list[Place], name: str, where: str, setting: str) -> list[Place]:
    found = [place for place in everything if _fits(place, name)]
    if found:
        return found
    kinds = Counter(path.rpartition(".")[2] for place in everything for path in (place.file, *place.own))
    near = nearest(name, kinds)
    listed = ", ".join(dict.fromkeys(place.file.rpartition(".")[2] for place in everything if not place.head))
    raise ConfigError(
        "the model has no layer of this name",
        where=where if setting == name else f"{where}.{setting}",
        value=name,
        fix=f"did you mean {near}? (there are {listed})" if near else f"there are {listed}; or {ALL!r}",
    )


def _fits(place: Place, name: str) -> bool:
    """Whether a name, ours or of the file, means the place."""
    return any(_ends(path, name) for path in (place.file, *place.own))


def _ends(path: str, name: str) -> bool:
    """Whether `path` is `name`, or ends with it after a dot."""
    return fnmatchcase(path, name) or fnmatchcase(path, f"*.{name}")


def short_names(chosen: Sequence[Place], everything: Sequence[Place]) -> list[str]:
    """Names of the file format that mean just the places `chosen`: last parts where that is enough, else whole ones."""
    files = {place.file for place in chosen}
    names: set[str] = set()
    for place in chosen:
        last = place.file.rpartition(".")[2]
        alike = {other.file for other in everything if _ends(other.file, last)}
        names.add(last if alike <= files else place.file)
    return sorted(names)


def by_pattern(chosen: Sequence[Place], wanted: Mapping[str, Value], default: Value, *, where: str) -> dict[str, Value]:
    """The value of each place by its name in the file, from the first of the names `wanted` that fits it."""
    for name in wanted:
        _named(list(chosen), name, where, name)
    return {place.file: next((wanted[name] for name in wanted if _fits(place, name)), default) for place in chosen}


def patterns(values: Mapping[str, Value], usual: Value) -> tuple[Value, dict[str, Value]]:
    """(default, exceptions by name) as PEFT stores values of layers."""
    return usual, {file: value for file, value in values.items() if value != usual}


def fits_pattern(pattern: str, file: str) -> bool:
    """Whether a pattern of PEFT (a regular expression for the end of a name) fits the name of a module."""
    try:
        return re.fullmatch(rf"(.*\.)?({pattern})" if pattern[:1] != "^" else pattern, file) is not None
    except re.error:
        return False
