"""LoRA in a whole model: where its branches stand, what they start from, how they merge, and PEFT's names for them.

A place is a module of the file format; it may hold several layers here, which then share A.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from trivium.errors import ConfigError, ModelError
from trivium.models.adapted import AdaptedEmbedding, AdaptedLinear, adapt, branches_of
from trivium.models.adapter_checks import PEFT_PREFIX, misfit
from trivium.models.folder import file_tensor, keys_of
from trivium.models.huggingface import expand
from trivium.models.lora import EmbeddingBranch, LoRABranch, orthonormal, principal, random_down
from trivium.models.quantized import QuantizedLinear, dense_weight
from trivium.models.targets import EMBEDDING, Place, places
from trivium.models.token_rows import TokenRows, tie_head

if TYPE_CHECKING:
    from trivium.models.adapted import Rows
    from trivium.models.transformer import Transformer


class LoRA(Protocol):
    """What is asked here of the transform `lora`: its settings, where it acts, and the rank at each place."""

    name: str
    where: str
    config: Any
    places: list[Place]
    ranks: dict[str, int]

    @property
    def rows(self) -> Rows: ...

    def scale(self, place: Place) -> float: ...

    def stores(self, name: str) -> bool: ...


_UNSUPPORTED = (
    "target_parameters", "layer_replication", "lora_bias", "use_qalora",
    "alora_invocation_tokens", "arrow_config", "use_bdlora", "velora_config", "monteclora_config",
)  # fmt: skip
"""Settings of PEFT's LoRA that change what it computes and that this package does not have."""


def refuse_variants(raw: Mapping[str, Any]) -> None:
    """ModelError for kinds of LoRA that compute something else."""
    for name in _UNSUPPORTED:
        if raw.get(name):
            raise ModelError(
                "this kind of LoRA is not supported", where=f"adapter_config.json: {name}", value=raw[name]
            )
    start = raw.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(("pissa", "olora", "corda", "loftq")):
        raise ModelError(
            "the adapter was stored for a base that its start had changed",
            where="adapter_config.json: init_lora_weights",
            value=start,
            fix="store it with PEFT's path_initial_model_for_weight_conversion, which makes a plain LoRA of it",
        )


def check_places(lora: LoRA, model: Transformer) -> None:
    """ConfigError where a place cannot have what the settings ask for."""
    config = lora.config
    _check_tokens(lora, model)
    for place in lora.places:
        rows, columns = sum(place.sizes), model.get_parameter(f"{place.own[0]}.weight").shape[1]
        quantised = isinstance(model.get_submodule(place.own[0]), QuantizedLinear)
        if place.embedding and (config.dora or config.init not in ("uniform", "gaussian")):
            raise ConfigError(
                "an embedding can have plain LoRA only",
                where=f"{lora.where}.{'dora' if config.dora else 'init'}",
                fix="leave the embedding out of target, or the setting",
            )
        if config.init == "loftq" and not quantised:
            raise ConfigError(
                "loftq makes up for what quantising took from the base, but this base is not quantised",
                where=f"{lora.where}.init",
                fix="put {name: quantize} before it in transforms, or choose another start",
            )
        if config.init in ("pissa", "olora", "loftq") and lora.ranks[place.file] > min(rows, columns):
            raise ConfigError(
                f"the rank is larger than that of the layer {place.file}, which this start takes apart",
                where=f"{lora.where}.rank",
                value=lora.ranks[place.file],
                fix=f"at most {min(rows, columns)}, or init: uniform",
            )


def _check_tokens(lora: LoRA, model: Transformer) -> None:
    tokens, where = lora.config.tokens, f"{lora.where}.tokens"
    size = model.config.vocab_size
    if wrong := [token for token in tokens if not 0 <= token < size]:
        raise ConfigError(f"the model has tokens 0 to {size - 1}", where=where, value=wrong[0], fix="name those")
    if len(set(tokens)) < len(tokens):
        raise ConfigError("a token is named twice", where=where, value=tokens, fix="name each once")
    if tokens and any(place.embedding for place in lora.places):
        raise ConfigError(
            "the embedding can have trained rows or a change of low rank, not both",
            where=where,
            fix="leave out tokens, or the embedding in target",
        )
    if any("token_rows" in vars(model.head) for _ in tokens):
        raise ConfigError(
            "another adapter trains rows of the tied embedding already", where=where, fix="leave them out"
        )


def install_branches(lora: LoRA, model: Transformer, *, seed: int) -> None:
    """Branches at all places of `lora`."""
    if lora.config.tokens:
        rows = TokenRows(model.embed, lora.config.tokens, lora.rows)
        adapt(model, EMBEDDING, lora.name, rows)
        tie_head(model, rows)
    for place in lora.places:
        rank, scale = lora.ranks[place.file], lora.scale(place)
        if place.embedding:
            _adapt_embedding(lora, model, place, rank, scale, seed=seed)
            continue
        layers = [_linear(model, name) for name in place.own]
        down, ups, start = _started(lora, place, layers, rank, scale, seed=seed)
        for name, layer, up in zip(place.own, layers, ups, strict=True):
            magnitude = None
            if lora.config.dora:
                magnitude = torch.linalg.vector_norm(dense_weight(layer).to(down.dtype), dim=1)
            branch = LoRABranch(
                down,
                nn.Parameter(up),
                scale,
                lora.rows,
                dropout=lora.config.dropout,
                start=start,
                magnitude=magnitude,
            )
            adapt(model, name, lora.name, branch)


def _started(
    lora: LoRA, place: Place, layers: list[nn.Linear], rank: int, scale: float, *, seed: int
) -> tuple[nn.Parameter, list[Tensor], bool]:
    """(A, B of each layer, whether they are taken off again) at the start."""
    first, kind = layers[0], lora.config.init
    like = first.weight
    decomposed = kind in ("pissa", "olora", "loftq")
    if not decomposed or like.is_meta:
        name = f"{place.own[0]}.{lora.name}"
        down = random_down(rank, first.in_features, like, seed=seed, name=name, gaussian=kind == "gaussian")
        return nn.Parameter(down), [down.new_zeros(layer.out_features, rank) for layer in layers], decomposed
    with torch.no_grad():
        whole = place.stack([dense_weight(layer) for layer in layers])
        if kind == "loftq":
            exact = place.stack([layer.exact for layer in layers])  # type: ignore[misc]
            down, up = principal(exact.to(whole.dtype) - whole, rank, scale)
        else:
            down, up = (principal if kind == "pissa" else orthonormal)(whole, rank, scale)
        ups = [part.contiguous() for part in place.unstack(up)]
    return nn.Parameter(down.contiguous()), ups, kind != "loftq"


def _adapt_embedding(lora: LoRA, model: Transformer, place: Place, rank: int, scale: float, *, seed: int) -> None:
    (name,) = place.own
    weight = model.get_parameter(f"{name}.weight")
    up = random_down(rank, weight.shape[1], weight, seed=seed, name=f"{name}.{lora.name}", gaussian=True) * rank
    down = up.new_zeros(rank, weight.shape[0])
    branch = EmbeddingBranch(nn.Parameter(down), nn.Parameter(up.t().contiguous()), scale, lora.rows)
    adapt(model, name, lora.name, branch)


def _linear(model: Transformer, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


def merge_branches(lora: LoRA, model: Transformer) -> None:
    """Puts the changes into the weights; a quantised layer becomes one in floating point again."""
    if model.tied and any(place.embedding for place in lora.places):
        raise ModelError(
            "the change of the embedding cannot be merged: the output layer is tied to it and would change too",
            fix="keep the adapter beside its base; or untie the base first (tie_word_embeddings: false)",
        )
    with torch.no_grad():
        for name, branch in branches_of(model, lora.name).items():
            layer = model.get_submodule(name)
            if isinstance(branch, TokenRows):
                assert isinstance(layer, AdaptedEmbedding)
                layer.weight.copy_(branch.patched(layer.weight))
            elif isinstance(layer, QuantizedLinear) and isinstance(branch, LoRABranch):
                layer.make_dense(branch.merged(layer))
            elif isinstance(layer, AdaptedLinear):
                assert isinstance(branch, LoRABranch)
                layer.weight.copy_(branch.merged(layer))
            else:
                assert isinstance(layer, AdaptedEmbedding) and isinstance(branch, EmbeddingBranch)
                layer.weight.copy_(branch.merged(layer))


# PEFT's names


def to_file(lora: LoRA, model: Transformer, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the file, from the parameters by this package's names."""
    found: dict[str, Tensor] = {}
    started = lora.config.init in ("pissa", "olora")
    if lora.config.tokens:
        found[_token_name(model)] = weights[f"{EMBEDDING}.branches.{lora.name}.values"]
    for place in lora.places:
        file, names = PEFT_PREFIX + place.file, [f"{name}.branches.{lora.name}" for name in place.own]
        down, up = weights[f"{names[0]}.down"], place.stack([weights[f"{name}.up"] for name in names])
        if place.embedding:
            found |= {f"{file}.lora_embedding_A": down, f"{file}.lora_embedding_B": up}
            continue
        if started:
            down = torch.cat([down, weights[f"{names[0]}.start_down"]])
            up = torch.cat([up, -place.stack([weights[f"{name}.start_up"] for name in names])], dim=1)
        found |= {f"{file}.lora_A.weight": down, f"{file}.lora_B.weight": up}
        if lora.config.dora:
            found[f"{file}.lora_magnitude_vector"] = place.stack([weights[f"{name}.magnitude"] for name in names])
    return found | {PEFT_PREFIX + name: value for name, value in _biases(lora, model, weights).items()}


def _token_name(model: Transformer) -> str:
    """The name of the trained rows of the embedding in the file."""
    file = next(place.file for place in places(model, embeddings=True) if place.embedding)
    return f"{PEFT_PREFIX}{file}.token_adapter.trainable_tokens_delta"


def tokens_in(raw: Mapping[str, Any], model: Transformer) -> list[int]:
    """The tokens whose rows an adapter of PEFT trains; it may name the embedding with them."""
    given = raw.get("trainable_token_indices") or []
    if isinstance(given, dict):
        own = _token_name(model).removesuffix(".token_adapter.trainable_tokens_delta")
        if len(given) != 1 or not own.endswith(f".{next(iter(given))}"):
            raise ModelError(
                "only rows of the embedding of tokens can train",
                where="adapter_config.json: trainable_token_indices",
                value=list(given),
            )
        given = next(iter(given.values()))
    if not isinstance(given, list) or not all(isinstance(token, int) for token in given):
        raise ModelError("tokens are numbers", where="adapter_config.json: trainable_token_indices", value=given)
    return given


def _biases(lora: LoRA, model: Transformer, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The biases that train, by PEFT's names: those of adapted modules are called those of their `base_layer`."""
    adapted = {place.file for place in lora.places}
    chosen = [name for name, _ in model.named_parameters() if lora.stores(name)]
    found = {}
    for key in expand(keys_of(model.config), model.config, chosen):
        module, _, kind = key.file.rpartition(".")
        name = f"{module}.base_layer.{kind}" if module in adapted else key.file
        found[name] = file_tensor(key, weights, None, model.config.num_kv_heads)
    return found


def from_file(lora: LoRA, model: Transformer, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `to_file`, without the biases, which are parameters of the base."""
    found: dict[str, Tensor] = {}
    if lora.config.tokens:
        found[f"{EMBEDDING}.branches.{lora.name}.values"] = _tensor(tensors, _token_name(model))
    started = lora.config.init in ("pissa", "olora")
    for place in lora.places:
        file, names = PEFT_PREFIX + place.file, [f"{name}.branches.{lora.name}" for name in place.own]
        kinds = ("embedding_A", "embedding_B") if place.embedding else ("A.weight", "B.weight")
        down, up = (_tensor(tensors, f"{file}.lora_{kind}") for kind in kinds)
        if started:
            rank = lora.ranks[place.file]
            down, start = down[:rank], down[rank:]
            up, taken = up[:, :rank], -up[:, rank:]
            found |= {f"{name}.start_down": start for name in names}
            found |= _named(place, names, "start_up", taken)
        found |= {f"{name}.down": down for name in names}
        found |= {f"{names[0]}.up": up} if place.embedding else _named(place, names, "up", up)
        if lora.config.dora:
            found |= _named(place, names, "magnitude", _tensor(tensors, f"{file}.lora_magnitude_vector"))
    return found


def _named(place: Place, names: list[str], kind: str, whole: Tensor) -> dict[str, Tensor]:
    if whole.shape[0] != sum(place.sizes):
        raise misfit(place.file, whole.shape[0], sum(place.sizes))
    return {f"{name}.{kind}": part for name, part in zip(names, place.unstack(whole), strict=True)}


def _tensor(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    found = tensors.get(name, tensors.get(f"{name}.weight"))
    if found is None:
        raise ModelError("the file of the adapter lacks a tensor", where=name, fix="copy or download it again")
    return found


def places_in(model: Transformer, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The places that the file of an adapter has tensors for, with their ranks."""
    found = {}
    for place in places(model, embeddings=True):
        name = f"{PEFT_PREFIX}{place.file}.lora_{'embedding_A' if place.embedding else 'A.weight'}"
        if name in tensors:
            found[place.file] = tensors[name].shape[0] if tensors[name].dim() == 2 else 0
    if not found or not all(found.values()):
        raise ModelError(
            "no layer of the base has the names of this adapter"
            if not found
            else "a matrix of the adapter is no matrix",
            value=", ".join(list(tensors)[:2]),
            fix="give the base it was trained on",
        )
    return found
