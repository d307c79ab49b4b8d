"""The models that take part in a run, built from its recipe: shapes, weights, heads, transforms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError

from trivium.config import ResolvedRecipe
from trivium.core.method import Method, Role, RoleModel, derive_seed
from trivium.core.plan import Held
from trivium.errors import ConfigError, ModelError
from trivium.models.adapter_folder import base_of
from trivium.models.allocator import give_back_freed_memory
from trivium.models.build import build_model, first_problem, preset
from trivium.models.config import ModelConfig
from trivium.models.folder import load_model, read_config, with_head
from trivium.models.huggingface import HEAD_FIELDS
from trivium.models.layers import MLP
from trivium.models.quantized import share_quantized
from trivium.models.transform import Encodes, Transform, apply_transforms, lr_factors
from trivium.models.transformer import Transformer
from trivium.recipe import Recipe
from trivium.tokenizers.tokenizer import Tokenizer


def load_roles(
    resolved: ResolvedRecipe, config: ModelConfig, method: Method, tokenizer: Tokenizer, *, compiled: bool
) -> dict[str, RoleModel]:
    """The models that take part, by name; the transforms are those of the policy."""
    recipe, wanted = resolved.recipe, method.roles()
    policy = load_role(recipe, wanted["policy"], config)
    if resolved.transforms:
        if any(chosen.cls.adapter for chosen in resolved.transforms):
            policy.base = base_of(recipe.model.path or "")
        apply_transforms(policy, make_transforms(resolved, tokenizer), seed=recipe.seed)
        give_back_freed_memory()
    roles: dict[str, RoleModel] = {}
    for name, role in wanted.items():
        if name == "policy":
            module = policy
        elif shares_weights(resolved, name, role):
            module = start_of(policy)
        else:
            module = load_role(recipe, role, config)
        roles[name] = RoleModel(name, module, role)
    roles["policy"].lr_factors.update(lr_factors(policy))
    if compiled:
        for model in roles.values():
            model.compile()
    return roles


def load_role(recipe: Recipe, role: Role, config: ModelConfig) -> Transformer:
    """The model of one role; without a path or a shape of its own it is the model of the recipe."""
    dtype = getattr(torch, recipe.model.dtype)
    path = role.path or recipe.model.path
    if role.config is not None:
        ending = {name: value for name, value in role.config.items() if name in HEAD_FIELDS}
        shape = fitted_head(config, ending) if ending else config
        shape = ModelConfig.model_validate({**shape.model_dump(), **role.config})
        return build_model(shape, seed=derive_seed(recipe.seed, "role"), dtype=dtype)
    if path is None:
        return build_model(config, seed=recipe.seed, dtype=dtype)
    head = None if role.path else {name: getattr(config, name) for name in HEAD_FIELDS}
    model = load_model(path, dtype=dtype, head=head, seed=recipe.seed)
    if role.path is not None and model.config.vocab_size != config.vocab_size:
        raise ModelError(
            f"this model has {model.config.vocab_size} tokens, the model to train {config.vocab_size}",
            where=role.path,
            fix="both must share one tokenizer",
        )
    return model


def make_transforms(resolved: ResolvedRecipe, tokenizer: Encodes) -> list[Transform]:
    """The transforms of the recipe, not yet applied."""
    transforms: list[Transform] = [chosen.cls(chosen.config) for chosen in resolved.transforms]
    for number, transform in enumerate(transforms):
        transform.where = f"transforms.{number}"
        transform.read(tokenizer)
    return transforms


def shares_weights(resolved: ResolvedRecipe, name: str, role: Role) -> bool:
    """Whether a frozen role is the policy without its transforms, and so has its frozen weights."""
    start = name != "policy" and role.path is None and role.config is None and not role.trainable
    return start and bool(resolved.transforms) and resolved.recipe.engine.name in ("single", "ddp")


def start_of(policy: Transformer) -> Transformer:
    """The policy as it is before training and without its transforms, for a frozen role; frozen weights are shared."""
    model = Transformer(policy.config)
    share_quantized(policy, model)
    own = dict(policy.named_parameters())
    with torch.no_grad():
        model.assign(
            {**dict(model.named_buffers()), **{name: _start(own[name]) for name, _ in model.named_parameters()}}
        )
    return model


def _start(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.detach().clone() if parameter.requires_grad else parameter.detach()


def what_is_held(resolved: ResolvedRecipe, config: ModelConfig, tokenizer: Encodes) -> Held:
    """What the transforms of the recipe make of the policy; refuses those that do not fit.

    They are applied to a model without weights, so that what is wrong with them is said before anything is read.
    """
    if not resolved.transforms:
        return Held()
    model, transforms = Transformer(config), make_transforms(resolved, tokenizer)
    for transform in transforms:
        transform.check(config)
    apply_transforms(model, transforms, seed=0)
    refuse_without_room(resolved.recipe, model)
    return held_by(model)


def held_by(model: Transformer) -> Held:
    """What a model with its transforms holds."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values()
    first = next(
        (number for number, block in enumerate(model.blocks) if any(p.requires_grad for p in block.parameters())),
        len(model.blocks),
    )
    above = ("blocks.", "final_norm.", "head.")
    below = any(p.requires_grad for name, p in model.named_parameters() if not name.startswith(above))
    whole = below or not len(model.blocks) or model.encoder is not None
    return Held(
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        virtual=sum(model.virtual_tokens()),
        weight_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        depth=1.0 if whole else 1 - first / len(model.blocks),
        inner=any(isinstance(part, MLP) and not part.makes_again for part in model.modules()),
    )


def refuse_without_room(recipe: Recipe, model: Transformer) -> None:
    """ConfigError if virtual tokens and the longest rows together are more than there are learned positions."""
    virtual, limit = max(model.virtual_tokens()), model.config.max_positions
    if virtual and model.config.positions == "learned" and recipe.data.sequence_length + virtual > limit:
        raise ConfigError(
            f"the model has {limit} positions, and {virtual} virtual tokens take some of them",
            where="data.sequence_length",
            value=recipe.data.sequence_length,
            fix=f"set data.sequence_length={limit - virtual}, or use fewer virtual tokens",
        )


def model_config(recipe: Recipe, tokenizer: Tokenizer) -> ModelConfig:
    """The shape of the model, from its folder or its preset; the tokenizer's ids must fit it.

    A new model gets the special tokens of the tokenizer, so that every program that loads it knows where a text ends.
    """
    if recipe.model.path is not None:
        config = read_config(recipe.model.path)
    else:
        ends = tokenizer.stop_ids
        special = {
            "bos_id": tokenizer.bos_id,
            "eos_id": ends[0] if len(ends) == 1 else list(ends),
            "pad_id": tokenizer.pad_id,
        }
        config = preset(recipe.model.preset or "", {**special, **recipe.model.config})
        if config.kind == "encoder_decoder" and config.start_id is None:
            start = next(token for token in (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) if token is not None)
            config = config.model_copy(update={"start_id": start})
    if tokenizer.vocab_size > config.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {config.vocab_size}",
            where=recipe.tokenizer or recipe.model.path,
            fix=f"set model.config.vocab_size={tokenizer.vocab_size}, or use the model's own tokenizer",
        )
    return config


def fitted_head(config: ModelConfig, wanted: Mapping[str, Any] | None) -> ModelConfig:
    """The model with the head that the method needs; the one it has stays if it is of that kind already.

    What the method leaves open is as transformers has it for the family, so that its classes load the result.
    """
    if wanted is None or all(getattr(config, name) == value for name, value in wanted.items()):
        return config
    try:
        return with_head(config, wanted)
    except ValidationError as error:
        raise ConfigError(**first_problem(error, where="method")) from None
