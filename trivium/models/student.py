"""A student made from a teacher: some of its layers, and where it is narrower, the first part of every weight.

DistilBERT (Sanh et al. 2019, arXiv:1910.01108) starts from layers of BERT spread evenly from the first to the last;
TinyBERT (Jiao et al. 2020, arXiv:1909.10351) starts narrower and from random weights. What a student learns comes from
training it afterwards, with the method `distill` or any other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import ValidationError

from trivium.errors import ModelError
from trivium.lazy import torch
from trivium.models.build import build_model, first_problem, initial_weight
from trivium.models.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

    from trivium.models.transformer import Transformer

Choice = Literal["spread", "alternate", "first", "last"]
CHOICES: tuple[str, ...] = get_args(Choice)

_BLOCK = re.compile(r"(encoder\.)?blocks\.(\d+)\.")
_LIMITS = ("vocab_size", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim", "max_positions")
_SHAPED = ("kind", "positions", "norm", "norm_placement", "mlp", "experts", "query_key_norm", "parallel")
"""What the weights of a teacher mean; a student that differs in one of these starts from random weights."""


def choose_layers(teacher: int, student: int, choice: Choice | Sequence[int] = "spread") -> tuple[int, ...]:
    """Numbers of the teacher's layers that become the student's, in order.

    choice: `spread` evenly from the first to the last (6 of 12: 0 2 4 7 9 11), `alternate` (0 2 4 6 8 10), `first`,
            `last`, or the numbers themselves, which may repeat.
    """
    if not isinstance(choice, str):
        chosen = tuple(choice)
        if len(chosen) != student or any(not 0 <= layer < teacher for layer in chosen):
            raise ModelError(
                f"the student needs {student} layers of the teacher's {teacher}, numbered from 0",
                where="layers",
                value=", ".join(map(str, chosen)),
            )
        return chosen
    if choice not in CHOICES:
        raise ModelError("unknown choice of layers", where="layers", value=choice, fix=f"one of {', '.join(CHOICES)}")
    if student > teacher:
        raise ModelError(
            f"the teacher has only {teacher} layers", where="num_layers", value=student, fix="name the layers to repeat"
        )
    if choice == "spread" and student > 1:
        return tuple(round(layer * (teacher - 1) / (student - 1)) for layer in range(student))
    if choice == "last":
        return tuple(range(teacher - student, teacher))
    step = 1 if choice == "first" else teacher / student
    return tuple(int(layer * step) for layer in range(student))


def student_config(
    teacher: ModelConfig, changes: Mapping[str, Any], *, layers: Sequence[int] | None = None
) -> ModelConfig:
    """The teacher's shape with `changes`; what follows from a changed setting follows here too.

    layers: numbers of the teacher's layers, if they are already chosen.
    """
    fields = {**teacher.model_dump(), **changes}
    if layers is not None:
        fields["num_layers"] = len(layers)
    resized = {"hidden_size", "num_heads"} & set(changes)
    if resized and "head_dim" not in changes:
        fields["head_dim"] = None
    if "num_heads" in changes and "num_kv_heads" not in changes and isinstance(fields["num_heads"], int):
        fields["num_kv_heads"] = max(1, fields["num_heads"] * teacher.num_kv_heads // teacher.num_heads)
    if teacher.layer_types is not None and "layer_types" not in changes:
        kept = layers or choose_layers(teacher.num_layers, fields["num_layers"])
        fields["layer_types"] = tuple(teacher.layer_types[layer] for layer in kept)
    try:
        return ModelConfig.model_validate(fields)
    except ValidationError as error:
        raise ModelError(**first_problem(error, where="student")) from None


def make_student(
    teacher: Transformer,
    config: ModelConfig,
    *,
    layers: Choice | Sequence[int] = "spread",
    decoder_layers: Choice | Sequence[int] = "spread",
    fresh: bool = False,
    seed: int = 0,
) -> Transformer:
    """A student of the shape `config`, on the CPU in the teacher's type.

    layers:         which of the teacher's layers it takes (see `choose_layers`); of an encoder-decoder the encoder's.
    decoder_layers: the same for the decoder of an encoder-decoder.
    fresh:          random weights from `seed` instead; only the shape comes from the teacher.

    Weights of a narrower student are the first rows and columns of the teacher's, and of each head its first
    coordinates. Where the student does not tell segments apart, the first segment goes into its positions. A head that
    the teacher does not have is random.
    """
    dtype = teacher.embed.weight.dtype
    if fresh:
        return build_model(config, seed=seed, dtype=dtype)
    _check_fits(teacher.config, config)
    ours, theirs = config, teacher.config
    first = choose_layers(theirs.num_layers, ours.num_layers, layers)
    second = first
    if ours.num_decoder_layers is not None and theirs.num_decoder_layers is not None:
        second = choose_layers(theirs.num_decoder_layers, ours.num_decoder_layers, decoder_layers)
    student = build_model(config, seed=seed, dtype=dtype)
    known = _weights(teacher, config)
    weights = {}
    for name, parameter in student.named_parameters():
        found = known.get(_teacher_name(name, first, second))
        weights[name] = (
            initial_weight(name, tuple(parameter.shape), config, seed=seed).to(dtype)
            if found is None
            else _narrowed(name, found, ours, theirs, parameter.shape)
        )
    student.assign(weights)
    return student


def _check_fits(teacher: ModelConfig, student: ModelConfig) -> None:
    for name in _LIMITS:
        mine, theirs = getattr(student, name), getattr(teacher, name)
        if mine > theirs or (name == "vocab_size" and mine != theirs):
            raise ModelError(
                f"a student takes its weights from the teacher, whose {name} is {theirs}",
                where=name,
                value=mine,
                fix="make it no larger" if name != "vocab_size" else "teacher and student share one tokenizer",
            )
    for name in _SHAPED:
        if getattr(student, name) != getattr(teacher, name):
            raise ModelError(
                "the teacher's weights mean something else in a student of this kind",
                where=name,
                value=f"{getattr(student, name)}, the teacher's is {getattr(teacher, name)}",
                fix="start from random weights (--fresh)",
            )
    if student.positions == "rotary" and student.head_dim != teacher.head_dim:
        raise ModelError(
            "heads with rotary positions cannot become narrower",
            where="head_dim",
            value=student.head_dim,
            fix=f"choose num_heads = hidden_size / {teacher.head_dim}, or start from random weights (--fresh)",
        )


def _weights(teacher: Transformer, student: ModelConfig) -> dict[str, Tensor]:
    """The teacher's weights; the table of positions as the student counts them."""
    weights = {name: parameter.detach() for name, parameter in teacher.named_parameters()}
    shift = teacher.config.position_offset, student.position_offset
    for name in ("position_embed.weight", "encoder.position_embed.weight"):
        if name in weights and shift[0] != shift[1]:
            table = weights[name]
            weights[name] = torch.cat([table.new_zeros(shift[1], table.shape[1]), table[shift[0] :]])
    if teacher.token_type_embed is not None and not student.token_types and "position_embed.weight" in weights:
        weights["position_embed.weight"] = weights["position_embed.weight"] + weights["token_type_embed.weight"][0]
    return weights


def _teacher_name(name: str, layers: Sequence[int], decoder_layers: Sequence[int]) -> str:
    """The name in the teacher of the student's parameter `name`."""

    def renumbered(found: re.Match[str]) -> str:
        chosen = layers if found[1] else decoder_layers
        return f"{found[1] or ''}blocks.{chosen[int(found[2])]}."

    return _BLOCK.sub(renumbered, name)


def _narrowed(name: str, weight: Tensor, ours: ModelConfig, theirs: ModelConfig, shape: Sequence[int]) -> Tensor:
    """The first part of the teacher's weight in each dimension, heads counted as a dimension of their own."""
    part = name.split(".")[-2]
    inside = re.search(r"\.(attention|cross)\.", name) is not None
    if inside and (part in ("query", "key", "value") or weight.dim() == 2):
        queries = part in ("query", "output")
        cut = (theirs.num_heads if queries else theirs.num_kv_heads, theirs.head_dim)
        kept = (ours.num_heads if queries else ours.num_kv_heads, ours.head_dim)
        at = 1 if part == "output" else 0
        parted = weight.reshape(*weight.shape[:at], *cut, *weight.shape[at + 1 :])
        return _first(parted, (*shape[:at], *kept, *shape[at + 1 :])).flatten(at, at + 1)
    return _first(weight, shape)


def _first(weight: Tensor, shape: Sequence[int]) -> Tensor:
    return weight[tuple(slice(size) for size in shape)].clone(memory_format=torch.contiguous_format)
