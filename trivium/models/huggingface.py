"""What all families share in the translation to and from Hugging Face: names of tensors, names of settings, rotary.

A family declares tables (`FIELDS`, `KEYS`); both directions are read off the same table. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from trivium.errors import ModelError
from trivium.models.config import ModelConfig, Rope

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""Their name -> ours; going back, the first name of each function but `gelu_new`, which every version knows."""

TOKENS = {"bos_id": "bos_token_id", "eos_id": "eos_token_id", "pad_id": "pad_token_id"}
"""Our setting -> theirs, for the special tokens."""

_SCALING_NAMES = {"type": "rope_type", "original_max_positions": "original_max_position_embeddings"}


@dataclass(frozen=True)
class Key:
    """One tensor of a file and the parameter, or parameters, it holds.

    file:       its name, with `{}` for the number of the layer.
    own:        name of the parameter here; several are stacked along the output dimension, in this order.
    transposed: the file stores [in, out] (GPT-2's Conv1D), torch.nn.Linear [out, in].
    """

    file: str
    own: tuple[str, ...]
    transposed: bool = False

    def at(self, layer: int) -> Key:
        """The key of one layer."""
        return Key(self.file.format(layer), tuple(name.format(layer) for name in self.own), self.transposed)


def keys(file: str, *own: str, transposed: bool = False, kinds: tuple[str, ...] = ("weight", "bias")) -> list[Key]:
    """The keys of a module: its weight and, where the model has one, its bias (which is never transposed)."""
    return [
        Key(f"{file}.{kind}", tuple(f"{name}.{kind}" for name in own), transposed and kind == "weight")
        for kind in kinds
    ]


def expand(table: Collection[Key], config: ModelConfig, parameters: Collection[str]) -> list[Key]:
    """The table for every layer of `config`, without the keys of `parameters` this model does not have."""
    rows = [key.at(layer) for key in table for layer in (range(config.num_layers) if "{}" in key.file else (0,))]
    return [key for key in rows if all(name in parameters for name in key.own)]


def read_fields(raw: Mapping[str, Any], fields: Mapping[str, str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Our settings by the table ours -> theirs; what the file leaves out has transformers' default."""
    values = {ours: raw.get(theirs, defaults.get(theirs)) for ours, theirs in fields.items()}
    tokens = {ours: raw.get(theirs, defaults.get(theirs)) for ours, theirs in TOKENS.items()}
    vocabulary = values.get("vocab_size")
    for ours, token in tokens.items():
        # Some folders name tokens that the vocabulary does not have (-1, or GPT-2's in a tiny model): no such token.
        listed = token if isinstance(token, list) else [token]
        if isinstance(vocabulary, int) and all(isinstance(each, int) for each in listed):
            known = tuple(each for each in listed if 0 <= each < vocabulary)
            tokens[ours] = known if len(known) > 1 else known[0] if known else None
    return {**values, **tokens}


def write_fields(config: ModelConfig, fields: Mapping[str, str]) -> dict[str, Any]:
    """The reverse of `read_fields`."""
    written = {theirs: getattr(config, ours) for ours, theirs in (*fields.items(), *TOKENS.items())}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in written.items()}


def read_activation(raw: Mapping[str, Any], name: str, default: str) -> str:
    """Our name of the activation in `raw[name]`."""
    theirs = raw.get(name, default)
    if theirs not in ACTIVATIONS:
        raise ModelError("unsupported activation", where=name, value=theirs, fix=f"supported: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[theirs]


def write_activation(config: ModelConfig) -> str:
    """Their name of the activation."""
    return "gelu_new" if config.activation == "gelu_tanh" else config.activation


def demand(raw: Mapping[str, Any], **required: Any) -> None:
    """Refuse settings that would change what the model computes in a way this package does not implement."""
    for name, value in required.items():
        if raw.get(name, value) not in (value, None):
            raise ModelError("unsupported setting of a model", where=name, value=raw[name], fix=f"must be {value!r}")


def read_rope(raw: Mapping[str, Any], max_positions: Any) -> dict[str, Any]:
    """Rotary settings from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    given = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(given, dict):
        raise ModelError("malformed rotary settings", where="rope_parameters", value=given, fix="must be an object")
    scaling = {name: value for name, value in given.items() if value is not None}
    theta = scaling.pop("rope_theta", raw.get("rope_theta"))
    kind = scaling.pop("rope_type", scaling.pop("type", "default"))
    scaling.pop("type", None)
    demand(raw, partial_rotary_factor=1.0)
    demand(scaling, partial_rotary_factor=1.0)
    scaling.pop("partial_rotary_factor", None)
    rope: dict[str, Any] = {} if theta is None else {"theta": theta}
    if kind in ("default", None):
        return rope
    known = ("linear", "dynamic", "yarn", "longrope", "llama3")
    if kind not in known:
        raise ModelError("unknown kind of rotary scaling", where="rope_type", value=kind, fix=f"known: {known}")
    if kind in ("yarn", "longrope", "llama3"):
        scaling.setdefault("original_max_position_embeddings", max_positions)
        if kind == "yarn" and "factor" not in scaling and isinstance(max_positions, int):
            scaling["factor"] = max_positions / scaling["original_max_position_embeddings"]
    else:
        scaling.pop("original_max_position_embeddings", None)  # some folders have it; nothing reads it
    theirs = {name: ours for ours, name in _SCALING_NAMES.items()}
    return {**rope, "scaling": {"type": kind, **{theirs.get(name, name): value for name, value in scaling.items()}}}


def write_rope(rope: Rope) -> dict[str, Any]:
    """Rotary settings in both spellings, so that transformers 4 and 5 read the same model."""
    scaling: dict[str, Any] | None = None
    if rope.scaling is not None:
        values = rope.scaling.model_dump(exclude_none=True, mode="json")
        scaling = {_SCALING_NAMES.get(name, name): value for name, value in values.items()}
    parameters = {"rope_theta": rope.theta, **(scaling or {"rope_type": "default"})}
    return {"rope_parameters": parameters, "rope_theta": rope.theta, "rope_scaling": scaling}
