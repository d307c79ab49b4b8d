"""New models: presets by name, and random weights from a seed.

Importing this file does not import torch, so that presets can be checked before any work starts.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import math
import pkgutil
from collections.abc import Mapping
from contextlib import suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from trivium.errors import ConfigError
from trivium.lazy import torch
from trivium.models import families
from trivium.models.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

    from trivium.models.transformer import Transformer


def family_names() -> list[str]:
    """The files of `families/`."""
    return sorted(module.name for module in pkgutil.iter_modules(families.__path__))


def family(name: str) -> ModuleType:
    """The file `families/<name>.py`."""
    return importlib.import_module(f"{families.__name__}.{name}")


def presets() -> list[str]:
    """Names of all presets, family by family, small to large."""
    return [name for each in family_names() for name in family(each).PRESETS]


def examples() -> str:
    """The smallest preset of each family, for messages that would be too long with all of them."""
    return (
        ", ".join(next(iter(family(each).PRESETS), each) for each in family_names()) + " or another of docs/models.md"
    )


def preset(name: str, changes: Mapping[str, Any] | None = None) -> ModelConfig:
    """The shape called `name`, with `changes` to its fields (`model.config` of a recipe)."""
    try:
        return ModelConfig.model_validate(preset_fields(name, changes or {}))
    except ValidationError as error:
        raise ConfigError(**first_problem(error, where="model.config")) from None


def preset_fields(name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a preset with `changes`, and those that follow from the others in its family (`DERIVED`)."""
    for each in family_names():
        file = family(each)
        if name in file.PRESETS:
            break
    else:
        near = difflib.get_close_matches(name, presets(), n=1, cutoff=0.5)
        raise ConfigError(
            "unknown model preset",
            where="model.preset",
            value=name,
            fix=f"did you mean {near[0]!r}?" if near else f"choose one of {examples()}",
        )
    fields = {**file.PRESETS[name], **changes}
    for field, derive in getattr(file, "DERIVED", {}).items():
        with suppress(TypeError, ValueError):  # of a malformed field, which validation names
            fields.setdefault(field, derive(fields))
    return fields


def first_problem(error: ValidationError, *, where: str) -> dict[str, Any]:
    """The first finding of pydantic, as the arguments of a `TriviumError`."""
    found = error.errors()[0]
    key = ".".join([where, *(str(part) for part in found["loc"])])
    problem = found["msg"].removeprefix("Value error, ")
    if found["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(found["loc"][-1]), ModelConfig.model_fields, n=1)
        return {
            "problem": "unknown setting of a model",
            "where": key,
            "value": found["input"],
            "fix": f"did you mean {near[0]!r}?" if near else f"known are {', '.join(ModelConfig.model_fields)}",
        }
    if isinstance(found["input"], dict):
        return {"problem": problem, "where": key}
    return {"problem": problem, "where": key, "value": found["input"]}


def build_model(
    config: ModelConfig, *, seed: int, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> Transformer:
    """A model with random weights that depend on `seed` only, not on torch's global random state.

    dtype: of the parameters; default float32.
    """
    from trivium.models.transformer import Transformer

    model = Transformer(config)
    with torch.no_grad():
        weights = {
            name: initial_weight(name, tuple(parameter.shape), config, seed=seed).to(device=device, dtype=dtype)
            for name, parameter in model.named_parameters()
        }
    model.assign(weights)
    return model


def initial_weight(name: str, shape: tuple[int, ...], config: ModelConfig, *, seed: int) -> Tensor:
    """The first value of the parameter `name`, float32 on the CPU.

    Norms are the identity and biases zero. All other weights are normal with standard deviation `init_std`; where
    nothing normalises the residual stream, the last linear layer of each branch is divided by sqrt(2 * num_layers), so
    that the stream keeps its size however many branches add to it (GPT-2, Radford et al. 2019). With `init` "fan_in" a
    layer is divided by the root of its inputs instead (T5, Raffel et al. 2020). Each parameter has its own random
    stream, from (seed, name): the same on every device, and untouched by the others or by torch's global random state.
    """
    if name.endswith(".bias"):
        return torch.zeros(shape, dtype=torch.float32)
    if "norm" in name:
        return torch.full(shape, 1.0 - config.norm_offset, dtype=torch.float32)
    scale = config.init_std * _share(name, shape, config)
    return torch.empty(shape, dtype=torch.float32).normal_(0.0, scale, generator=parameter_stream(seed, name))


def _share(name: str, shape: tuple[int, ...], config: ModelConfig) -> float:
    """Factor on the standard deviation of one parameter."""
    if config.init == "fan_in":
        if name.endswith("embed.weight"):
            return 1.0
        inputs = config.hidden_size if name.endswith("relative_bias.weight") else shape[1]
        # Where scores are not divided by the root of the head's width, the queries are.
        unscaled = name.endswith(".query.weight") and config.attention_scale == 1.0
        return 1 / math.sqrt(inputs * (config.head_dim if unscaled else 1))
    residual = config.norm_placement == "pre" and name.endswith((".output.weight", ".down.weight"))
    return 1 / math.sqrt(2 * config.num_layers) if residual else 1.0


def parameter_stream(seed: int, name: str) -> torch.Generator:
    """Random numbers of a parameter: the same on every device, and independent of those of all others."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
