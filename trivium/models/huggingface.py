"""What all families share in the translation to and from Hugging Face: names of tensors, names of settings, rotary.

A family declares tables (`FIELDS`, `KEYS`); both directions are read off the same table. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from types import ModuleType
from typing import Any

from trivium.errors import ModelError
from trivium.models.config import LayerType, ModelConfig, Rope

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""Their name -> ours; going back, the first name of each function but `gelu_new`, which every version knows."""

QUERY_KEY_VALUE = tuple(f"blocks.{{}}.attention.{name}" for name in ("query", "key", "value"))
"""Parameters that some families keep as one tensor."""
TOKENS = {"bos_id": "bos_token_id", "eos_id": "eos_token_id", "pad_id": "pad_token_id"}
"""Our setting -> theirs, for the special tokens."""

_SCALING_NAMES = {"type": "rope_type", "original_max_positions": "original_max_position_embeddings"}


@dataclass(frozen=True)
class Key:
    """One tensor of a file and the parameter, or parameters, it holds.

    file:       its name, with `{}` for the number of the layer.
    own:        name of the parameter here; several are stacked along the output dimension, in this order.
    transposed: the file stores [in, out] (GPT-2's Conv1D), torch.nn.Linear [out, in].
    grouped:    several parameters are stacked for each key/value head, and these one after the other.
    when:       (setting, values ...) of models that have this tensor, where a family has two names for a parameter.
    """

    file: str
    own: tuple[str, ...]
    transposed: bool = False
    grouped: bool = False
    when: tuple[str, ...] = ()

    def at(self, *numbers: int) -> Key:
        """The key of one layer, or of one expert of one layer."""
        return replace(self, file=self.file.format(*numbers), own=tuple(name.format(*numbers) for name in self.own))


@dataclass(frozen=True)
class Head:
    """A head that transformers has for a family: its class, the names of its tensors, and what it computes.

    fields:  settings of `ModelConfig` that the class implies.
    aliases: further classes whose folders hold this head.
    prefix:  where the class keeps the body, if not where the family's others do.
    dropout: settings that may hold the dropout before the scores; the first that is there counts.
    """

    architecture: str
    keys: list[Key]
    fields: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    prefix: str | None = None
    dropout: tuple[str, ...] = ("classifier_dropout",)


def keys(
    file: str,
    *own: str,
    transposed: bool = False,
    grouped: bool = False,
    when: tuple[str, ...] = (),
    kinds: tuple[str, ...] = ("weight", "bias"),
) -> list[Key]:
    """The keys of a module: its weight and, where the model has one, its bias (which is never transposed)."""
    return [
        Key(f"{file}.{kind}", tuple(f"{name}.{kind}" for name in own), transposed and kind == "weight", grouped, when)
        for kind in kinds
    ]


def causal_heads(
    name: str,
    *,
    without: Collection[str] = (),
    span_prefix: str | None = None,
    language: str = "lm_head",
    token: str = "score",
) -> dict[str, Head]:
    """The heads of the decoders of transformers, whose classes differ in the name only.

    without:         heads that the family does not have.
    span_prefix:     where the class for spans keeps the body, if elsewhere.
    language, token: names of the last layer.
    """
    biased = {"head_bias": True}
    heads = {
        "language": Head(f"{name}ForCausalLM", keys(language, "head")),
        "sequence": Head(f"{name}ForSequenceClassification", keys("score", "head.out"), {"pooling": "last"}),
        "token": Head(f"{name}ForTokenClassification", keys(token, "head.out"), biased),
        "span": Head(f"{name}ForQuestionAnswering", keys("qa_outputs", "head.out"), biased, prefix=span_prefix),
        "none": Head(f"{name}Model", []),
    }
    return {kind: head for kind, head in heads.items() if kind not in without}


def encoder_heads(
    name: str,
    *,
    masked: list[Key],
    sequence: list[Key],
    dense: str = "tanh",
    dropout: Mapping[str, tuple[str, ...]] | None = None,
    aliases: tuple[str, ...] = (),
) -> dict[str, Head]:
    """The heads of the encoders of transformers.

    dense:   activation of the dense layer before the labels of a sequence.
    dropout: settings with the dropout before the scores, by head, where they are not BERT's.
    aliases: further classes with the head for masked tokens.
    """
    usual = ("classifier_dropout", "hidden_dropout_prob")
    settings = {"sequence": usual, "token": usual, "span": (), **(dropout or {})}
    bias = {"head_bias": True}
    pooled = {"pooling": "first", "head_dense": dense, **bias}
    labels, places = keys("classifier", "head.out"), keys("qa_outputs", "head.out")
    return {
        "masked": Head(f"{name}ForMaskedLM", masked, bias, aliases),
        "sequence": Head(f"{name}ForSequenceClassification", sequence, pooled, dropout=settings["sequence"]),
        "token": Head(f"{name}ForTokenClassification", labels, bias, dropout=settings["token"]),
        "span": Head(f"{name}ForQuestionAnswering", places, bias, dropout=settings["span"]),
        "none": Head(f"{name}Model", []),
    }


def expand(table: Collection[Key], config: ModelConfig, parameters: Collection[str]) -> list[Key]:
    """The table for every layer and expert of `config`, without keys of `parameters` this model does not have."""
    rows: list[Key] = []
    for key in table:
        if key.when and getattr(config, key.when[0]) not in key.when[1:]:
            continue
        encoder = config.num_decoder_layers is None or key.own[0].startswith("encoder.")
        ranges = [range(config.num_layers if encoder else config.num_decoder_layers or 0), range(config.experts)]
        rows += [key.at(*numbers) for numbers in product(*ranges[: key.file.count("{}")])]
    return [key for key in rows if all(name in parameters for name in key.own)]


# config.json

HEAD_FIELDS = (
    "head", "labels", "problem", "pooling", "head_dense", "head_bias", "head_dropout", "head_size", "head_projection",
)  # fmt: skip
OWN_SECTION = "trivium"
"""Key of config.json under which a head stands that transformers does not have for the family."""
_IMPLIED = ("pooling", "head_dense", "head_bias")
"""Settings that a class of transformers does not let choose."""
_PROBLEMS = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


def read_config(file: ModuleType, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ModelConfig` from a config.json of the family `file`; ModelError if it asks for something else."""
    return {**file.from_hf(raw), **read_head(file, raw)}


def write_config(file: ModuleType, config: ModelConfig) -> dict[str, Any]:
    """The config.json of `config`, without the type of its weights."""
    name, head = head_of(file, config)
    written: dict[str, Any] = {"architectures": [head.architecture], "model_type": config.family, **file.to_hf(config)}
    if name != config.head:
        written[OWN_SECTION] = {key: _plain(getattr(config, key)) for key in HEAD_FIELDS}
        return written
    if config.labels:
        written["id2label"] = {str(number): label for number, label in enumerate(config.labels)}
        written["label2id"] = {label: number for number, label in enumerate(config.labels)}
    if config.head == "sequence":
        written["problem_type"] = _PROBLEMS[config.problem]
    if config.head in ("sequence", "token", "span"):
        written |= {name: config.head_dropout for name in head.dropout[:1] if name not in file.FIELDS.values()}
        if _read_dropout(file, head, written) != config.head_dropout:  # their class has no setting of its own
            written[OWN_SECTION] = {"head_dropout": config.head_dropout}
    return written


def head_of(file: ModuleType, config: ModelConfig) -> tuple[str, Head]:
    """(name, head) under which transformers knows the head of `config`; ("none", ...) if it does not."""
    head: Head | None = file.HEADS.get(config.head)
    if head is None:
        return "none", file.HEADS["none"]
    implied = {name: head.fields.get(name, ModelConfig.model_fields[name].default) for name in _IMPLIED}
    fits = all(getattr(config, name) == value for name, value in implied.items())
    return (config.head, head) if fits else ("none", file.HEADS["none"])


def read_head(file: ModuleType, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the head from a config.json."""
    own = raw.get(OWN_SECTION, {})
    if not isinstance(own, dict) or set(own) - set(HEAD_FIELDS):
        raise ModelError("malformed head of a model", where=OWN_SECTION, value=own)
    if "head" in own:
        return dict(own)
    classes = raw.get("architectures") or [next(iter(file.HEADS.values())).architecture]
    wanted = classes[0] if isinstance(classes, list) else classes
    for name, head in file.HEADS.items():
        if wanted == head.architecture or wanted in head.aliases:
            return {"head": name, **head.fields, **_read_labels(file, name, head, raw), **own}
    known = ", ".join(head.architecture for head in file.HEADS.values())
    raise ModelError("unsupported class of model", where="architectures", value=wanted, fix=f"supported: {known}")


def _read_dropout(file: ModuleType, head: Head, raw: Mapping[str, Any]) -> Any:
    """The dropout before the scores."""
    found = (raw.get(name, file.HF_DEFAULTS.get(name)) for name in head.dropout)
    return next((value for value in found if value is not None), 0.0)


def _read_labels(file: ModuleType, name: str, head: Head, raw: Mapping[str, Any]) -> dict[str, Any]:
    if name not in ("sequence", "token", "span"):
        return {}
    fields: dict[str, Any] = {"head_dropout": _read_dropout(file, head, raw)}
    if name == "span":
        return fields
    names = raw.get("id2label")
    if names is None:
        names = {str(number): f"LABEL_{number}" for number in range(raw.get("num_labels", 2))}
    if not isinstance(names, dict) or sorted(names, key=_number) != [str(number) for number in range(len(names))]:
        raise ModelError("labels must be numbered from 0", where="id2label", value=names)
    fields["labels"] = tuple(str(names[str(number)]) for number in range(len(names)))
    if name == "sequence":
        default = "regression" if len(names) == 1 else "single_label"
        kinds = {theirs: ours for ours, theirs in _PROBLEMS.items()}
        fields["problem"] = kinds.get(raw.get("problem_type") or "", default)
    return fields


def _number(text: str) -> tuple[bool, int | str]:
    return (False, int(text)) if text.isdecimal() else (True, text)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


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
    if not isinstance(theirs, str) or theirs not in ACTIVATIONS:
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
    scaling.pop("partial_rotary_factor", None)  # `read_fraction`
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


def read_fraction(raw: Mapping[str, Any], default: float = 1.0) -> float:
    """Share of each head that turns, from the several places where files have it."""
    given = raw.get("rope_parameters") or {}
    inside = given.get("partial_rotary_factor") if isinstance(given, dict) else None
    found = inside if inside is not None else raw.get("partial_rotary_factor", raw.get("rotary_pct"))
    return default if found is None else found


def write_rope(rope: Rope, *, fraction: float | None = None) -> dict[str, Any]:
    """Rotary settings in both spellings, so that transformers 4 and 5 read the same model.

    fraction: share of each head that turns, for families that can say it.
    """
    scaling: dict[str, Any] | None = None
    if rope.scaling is not None:
        values = rope.scaling.model_dump(exclude_none=True, mode="json")
        scaling = {_SCALING_NAMES.get(name, name): value for name, value in values.items()}
    partial = {} if fraction is None else {"partial_rotary_factor": fraction}
    parameters = {"rope_theta": rope.theta, **(scaling or {"rope_type": "default"}), **partial}
    return {"rope_parameters": parameters, "rope_theta": rope.theta, "rope_scaling": scaling, **partial}


_LAYER_TYPES: dict[str, LayerType] = {"full_attention": "full", "sliding_attention": "sliding"}


def read_layers(raw: Mapping[str, Any], window: Any, default: Collection[LayerType]) -> dict[str, Any]:
    """Window and types of layers, in one spelling: no types where all slide, and no window where none does."""
    given = raw.get("layer_types")
    if given is not None and (not isinstance(given, list) or not set(map(str, given)) <= set(_LAYER_TYPES)):
        raise ModelError("unknown kind of layer", where="layer_types", value=given, fix=f"known: {list(_LAYER_TYPES)}")
    types = tuple(default) if given is None else tuple(_LAYER_TYPES[name] for name in given)
    if window is None or "sliding" not in types:
        return {"sliding_window": None, "layer_types": None}
    return {"sliding_window": window, "layer_types": types if "full" in types else None}


def write_layers(config: ModelConfig) -> dict[str, Any]:
    """The reverse of `read_layers`."""
    names = {ours: theirs for theirs, ours in _LAYER_TYPES.items()}
    types = [names["sliding" if config.slides(layer) else "full"] for layer in range(config.num_layers)]
    return {"sliding_window": config.sliding_window, "layer_types": types}


def every(count: Any, full: Any, *, first: Any = 0) -> tuple[LayerType, ...]:
    """Types of `count` layers: from layer `first` on all slide but each `full`-th, which sees everything.

    What is malformed has no layers; validation names it.
    """
    if not all(isinstance(number, int) and 0 <= number <= 1 << 10 for number in (count, full, first)):
        return ()
    return tuple("full" if layer < first or (full and (layer + 1) % full == 0) else "sliding" for layer in range(count))
