"""What a transform is: a change to a model before training, which says what trains, how to merge, and how it is stored.

A transform is named by its file (`transforms: [{name: lora, rank: 8}]`). Several are applied in order. Most add
parameters of their own and freeze the base; some only choose which parameters of the base train.

Hooks:

    check(config)           what it asks of the model, before weights are read
    read(tokenizer)         what it needs of the tokenizer
    install(model, seed)    adds its parameters, in place; the model must compute what it did before, unless said
    trains(name, model)     whether a parameter of the base trains with it
    prompt, prefix          the virtual tokens it puts before each sequence
    lr_factor(name)         how fast a parameter learns, beside the learning rate
    finish(model)           after all transforms have been applied
    merge(model)            folds it into the base, where that can be done exactly
    settings, tensors       as PEFT stores it; `from_peft` and `values` are the way back
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from trivium.config import StrictModel
from trivium.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from trivium.models.adapted import Rows
    from trivium.models.config import ModelConfig
    from trivium.models.transformer import Transformer


class Encodes(Protocol):
    """What turns text into tokens."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        ...


@dataclass(frozen=True)
class Base:
    """The model that adapters belong to: its folder, and what tells it from others."""

    path: str
    fingerprint: str


class Transform:
    """Base of all transforms; see the file docstring for the hooks."""

    class Config(StrictModel):
        """Settings of the transform."""

    freezes: ClassVar[bool] = True
    """Whether the base keeps its weights, but for those that `trains` names."""
    adapter: ClassVar[bool] = True
    """Whether it is stored as an adapter beside its base; otherwise the whole model is stored, as without it."""
    changes_base: ClassVar[bool] = False
    """Whether adapters above it mean nothing without it (a quantised base); its settings are stored with them."""
    peft_type: ClassVar[str] = ""
    """The `peft_type` of its adapter_config.json."""
    peft_prefix: ClassVar[str] = "base_model.model."
    """What stands before names of the base in PEFT's file."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.name = ""
        """Unique among the transforms of a model; the name of its branches."""
        self.where = "transforms"
        """Place in the recipe, for messages."""
        self.added: tuple[str, ...] = ()
        """Names of the parameters it added."""
        self.frozen = False
        """Whether what it added stays as it is: an adapter that others stand on."""

    @property
    def rows(self) -> Rows | None:
        """On which tokens it acts; None where it cannot be chosen token by token."""
        return None

    def check(self, config: ModelConfig) -> None:
        """ConfigError where this kind of model cannot have it."""

    def read(self, tokenizer: Encodes) -> None:
        """Takes what it needs of the tokenizer, before anything else."""

    def install(self, model: Transformer, *, seed: int) -> None:
        """Adds parameters to the model, in place; random values from (seed, name)."""

    def trains(self, name: str, model: Transformer) -> bool:
        """Whether the parameter `name` of the base trains: by default those of a head for labels."""
        return name.startswith("head.") and model.config.head not in ("language", "masked", "none")

    def prompt(self, model: Transformer) -> Tensor | None:
        """[N, D] vectors before each sequence (of an encoder-decoder: before each source), in place of embeddings."""
        return None

    def prefix(self, model: Transformer) -> Tensor | None:
        """[N, L, 2, K, C] keys and values before each sequence, for each block."""
        return None

    def virtual_tokens(self, config: ModelConfig) -> tuple[int, int]:
        """How many virtual tokens it puts before (each sequence, each source)."""
        return 0, 0

    def stores(self, name: str) -> bool:
        """Whether the parameter `name` of the base stands in `tensors`."""
        return False

    def lr_factor(self, name: str) -> float:
        """Factor of the learning rate of the parameter `name`, one that it added."""
        return 1.0

    def finish(self, model: Transformer) -> None:
        """After all transforms have been applied."""

    def trains_from(self, name: str, model: Transformer) -> int | None:
        """Update from which on a parameter trains that `trains` names; None for those that train all the time."""
        return None

    def trains_later(self, name: str, model: Transformer) -> bool:
        """Whether a parameter trains in some later update."""
        return self.trains_from(name, model) is not None

    def merge(self, model: Transformer) -> None:
        """Folds it into the base and removes it; what adds nothing just goes."""
        if not self.adapter:
            return
        raise ModelError(f"the adapter {self.name!r} cannot be merged into its base: it is no change of its weights")

    def remove(self, model: Transformer) -> None:
        """Takes it off again; the base is what it was."""
        raise NotImplementedError

    @property
    def folds(self) -> bool:
        """Whether what is stored is computed from its parameters, so that a checkpoint must keep those too."""
        return False

    def settings(self, model: Transformer) -> dict[str, Any]:
        """What PEFT's adapter_config.json says of it, without the base and the kind of task."""
        raise NotImplementedError

    def tensors(self, model: Transformer, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Its parameters, taken from `weights` by this package's names, under the names of PEFT's file."""
        raise NotImplementedError

    @classmethod
    def from_peft(cls, raw: Mapping[str, Any], tensors: Mapping[str, Tensor], model: Transformer) -> Self:
        """The transform that an adapter_config.json and its tensors describe; ModelError where it cannot be had."""
        raise NotImplementedError

    def values(self, tensors: Mapping[str, Tensor], model: Transformer) -> dict[str, Tensor]:
        """The reverse of `tensors`, for the installed transform: parameters by this package's names."""
        raise NotImplementedError


def apply_transforms(model: Transformer, transforms: Sequence[Transform], *, seed: int) -> None:
    """Applies the transforms in order and decides what trains."""
    for transform in transforms:
        add_transform(model, transform, seed=seed)
    finish(model)


def finish(model: Transformer) -> None:
    """What is left to do once all transforms have been applied."""
    for transform in model.transforms:
        transform.finish(model)
    choose_trainable(model)


def add_transform(model: Transformer, transform: Transform, *, seed: int) -> None:
    """Applies one transform; its name becomes one that no other has."""
    taken = {other.name for other in model.transforms}
    stem = transform.name or type(transform).__module__.rpartition(".")[2]
    names = (stem, *(f"{stem}_{number}" for number in range(1, len(taken) + 1)))
    transform.name = next(name for name in names if name not in taken)
    before = {name for name, _ in model.named_parameters()}
    model.transforms.append(transform)  # takes its name
    transform.install(model, seed=seed)
    model.transforms.remove(transform)  # it may have brought others along, which come before it
    before.update(*(other.added for other in model.transforms))
    transform.added = tuple(name for name, _ in model.named_parameters() if name not in before)
    model.transforms.append(transform)


def choose_trainable(model: Transformer) -> None:
    """Sets `requires_grad` of every parameter, by what the transforms of the model say."""
    frozen = any(transform.freezes for transform in model.transforms)
    owners = {name: transform for transform in model.transforms for name in transform.added}
    for name, parameter in model.named_parameters():
        owner = owners.get(name)
        if owner is not None:
            trains = not owner.frozen
        else:
            trains = not frozen or any(transform.trains(name, model) for transform in model.transforms)
        parameter.requires_grad_(parameter.is_floating_point() and trains)


def adapters_of(model: Transformer) -> list[Transform]:
    """The transforms that are stored beside the base."""
    return [transform for transform in model.transforms if transform.adapter]


def lr_factors(model: Transformer) -> dict[str, float]:
    """Factors of the learning rate by name of parameter, where they are not 1."""
    found = {name: transform.lr_factor(name) for transform in model.transforms for name in transform.added}
    return {name: factor for name, factor in found.items() if factor != 1.0}


def base_names(model: Transformer) -> list[str]:
    """Parameters that the model has without its transforms."""
    added = {name for transform in model.transforms for name in transform.added}
    return [name for name, _ in model.named_parameters() if name not in added]


def merge_all(model: Transformer, names: Iterable[str] | None = None) -> None:
    """Merges all adapters (or those named) into the base, the last one applied first."""
    wanted = None if names is None else set(names)
    for transform in reversed(list(model.transforms)):
        if wanted is None or transform.name in wanted:
            transform.merge(model)
            model.transforms.remove(transform)
