"""AdapterHub's format for bottleneck adapters and their fusion: settings and names of tensors, both ways.

What this package does not compute alike (invertible adapters, hypercomplex layers, gates) is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from trivium.errors import ModelError
from trivium.models.huggingface import ACTIVATIONS

if TYPE_CHECKING:
    from torch import Tensor

    from trivium.models.transformer import Transformer

VERSION = "adapters.1.3.0"
"""Version of the library whose format is written."""

_PLACES = {"attention": "mh_adapter", "mlp": "output_adapter", "cross": "cross_adapter"}
_OUTPUT = {"attention": "attention.output", "cross": "cross.output", "mlp": "mlp.down"}
_ACTIVATIONS = {**ACTIVATIONS, "tanh": "tanh", "leakyrelu": "leaky_relu"}
_INIT = {"zero": "mam_adapter", "bert": "bert", "houlsby": "houlsby"}
_FIXED: dict[str, Any] = {
    "inv_adapter": None,
    "inv_adapter_reduction_factor": None,
    "phm_layer": False,
    "use_gating": False,
    "stochastic_depth": 0.0,
    "original_ln_after": True,
    "init_weights_seed": None,
}
"""Settings that have one value here; the seed has no effect on what is stored."""


def write_bottleneck(
    name: str, model: Transformer, form: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """adapter_config.json of bottlenecks of the given form."""
    names = {ours: theirs for theirs, ours in _ACTIVATIONS.items() if theirs not in ("gelu_new", "gelu_fast", "swish")}
    own = {
        **_FIXED,
        **{theirs: where in config["places"] for where, theirs in _PLACES.items()},
        "reduction_factor": model.config.hidden_size / form["inner"],
        "non_linearity": "gelu_new" if form["activation"] == "gelu_tanh" else names[form["activation"]],
        "original_ln_before": form["reads_sum"],
        "residual_before_ln": True,
        "adapter_residual_before_ln": form["residual_before_norm"],
        "ln_before": form["norm_before"],
        "ln_after": form["norm_after"],
        "init_weights": _INIT[config["init"]],
        "is_parallel": form["parallel"],
        "scaling": form["scale"],
        "dropout": form["dropout"],
        "leave_out": list(config["leave_out"]),
    }
    return {"config": own, "name": name, **_about(model)}


def read_bottleneck(raw: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """(settings of the transform, whether the residual comes before the norm of its own)."""
    given = raw.get("config")
    if not isinstance(given, dict) or given.get("architecture") is not None:
        raise ModelError(
            "only bottleneck adapters are read in this format",
            where="adapter_config.json: config",
            value=given if not isinstance(given, dict) else given.get("architecture"),
            fix="LoRA, prompts and prefixes are read in PEFT's format",
        )
    for name, value in _FIXED.items():
        if name != "init_weights_seed" and given.get(name, value) not in (value, 0, None):
            raise ModelError("unsupported setting of an adapter", where=f"config.{name}", value=given[name])
    sums = bool(given.get("original_ln_before", False))
    if sums and given.get("residual_before_ln", True) is not True:
        raise ModelError(
            "unsupported setting of an adapter",
            where="config.residual_before_ln",
            value=given["residual_before_ln"],
            fix="must be true",
        )
    reduction = given.get("reduction_factor")
    activation = str(given.get("non_linearity", "")).lower()
    if not isinstance(reduction, int | float) or reduction <= 0 or activation not in _ACTIVATIONS:
        raise ModelError(
            "unsupported setting of an adapter",
            where="config.reduction_factor, config.non_linearity",
            value=f"{reduction}, {activation}",
            fix=f"one factor for all layers, and one of {', '.join(_ACTIVATIONS)}",
        )
    kinds = {theirs: ours for ours, theirs in _INIT.items()}
    settings = {
        "places": [where for where, theirs in _PLACES.items() if given.get(theirs)],
        "parallel": bool(given.get("is_parallel", False)),
        "reduction": float(reduction),
        "activation": _ACTIVATIONS[activation],
        "reads": "sum" if sums else "branch",
        "scale": given.get("scaling", 1.0),
        "norm_before": bool(given.get("ln_before", False)),
        "norm_after": bool(given.get("ln_after", False)),
        "dropout": given.get("dropout", 0.0),
        "init": kinds.get(str(given.get("init_weights")), "bert"),
        "leave_out": given.get("leave_out") or [],
    }
    return settings, bool(given.get("adapter_residual_before_ln", False))


def write_fusion(members: Iterable[str], model: Transformer, config: Mapping[str, Any]) -> dict[str, Any]:
    """adapter_fusion_config.json."""
    own = {
        "key": True,
        "query": True,
        "value": True,
        "query_before_ln": config["query_before_norm"],
        "residual_before": config["residual_in_value"],
        "dropout_prob": config["dropout"] or None,
        "regularization": False,
        "temperature": False,
        "value_before_softmax": True,
        "value_initialized": True,
    }
    names = list(members)
    return {"config": own, "adapter_names": names, "name": ",".join(names), **_about(model)}


def read_fusion(raw: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """(names of the adapters, settings of the transform)."""
    given, names = raw.get("config"), raw.get("adapter_names") or str(raw.get("name", "")).split(",")
    if not isinstance(given, dict) or not all(given.get(part, True) for part in ("key", "query", "value")):
        raise ModelError("unsupported kind of fusion", where="adapter_fusion_config.json", value=given)
    settings = {
        "query_before_norm": bool(given.get("query_before_ln")),
        "residual_in_value": bool(given.get("residual_before")),
        "dropout": given.get("dropout_prob") or 0.0,
    }
    return tuple(names), settings


def bottleneck_names(model: Transformer, adapter: str, added: Iterable[str]) -> list[tuple[str, str]]:
    """(name in the file, name here) of the parameters of an adapter."""
    found = []
    for own in added:
        block, where, part = _parts(own, rf"adapters\.{re.escape(adapter)}\.(.+)")
        found.append((f"{_folder(model, block, where)}.{adapter}.{_theirs(part, own, added)}", own))
    return found


def fusion_names(model: Transformer, members: Iterable[str], added: Iterable[str]) -> list[tuple[str, str]]:
    """(name in the file, name here) of the parameters of a fusion."""
    joined, found = ",".join(members), []
    for own in added:
        block, where, part = _parts(own, r"fusion\.(.+)")
        place = _folder(model, block, where).removesuffix("adapters") + "adapter_fusion_layer"
        found.append((f"{place}.{joined}.{part}", own))
    return found


def renamed(tensors: Mapping[str, Tensor], adapter: str) -> dict[str, Tensor]:
    """The tensors of an adapter under the name that it has in the model."""
    pattern = re.compile(r"(\.adapters\.)[^.]+(\.)")
    return {pattern.sub(rf"\g<1>{adapter}\g<2>", name, count=1): tensor for name, tensor in tensors.items()}


def _about(model: Transformer) -> dict[str, Any]:
    from trivium.models.folder import architecture

    return {
        "hidden_size": model.config.hidden_size,
        "model_class": architecture(model.config),
        "model_name": model.base.path if model.base is not None else "",
        "model_type": model.config.family,
        "version": VERSION,
    }


def _parts(own: str, rest: str) -> tuple[str, str, str]:
    """(block, place, name of the part) of a parameter in a slot."""
    found = re.fullmatch(rf"(.+)\.slots\.(\w+)\.{rest}", own)
    assert found is not None, own
    return found[1], found[2], found[3]


def _folder(model: Transformer, block: str, where: str) -> str:
    from trivium.models.bottleneck import file_name
    from trivium.models.targets import places

    layer = f"{block}.{_OUTPUT[where]}"
    file = next(place.file for place in places(model) if layer in place.own)
    return file_name(file, model.config.family, where)


def _theirs(part: str, own: str, added: Iterable[str]) -> str:
    """The name of a part of a bottleneck: theirs is a sequence of an optional norm, a linear layer and its function."""
    stem = own.removesuffix(part)
    first = "1" if any(name.startswith(f"{stem}norm_before.") for name in added) else "0"
    names = {"down": f"adapter_down.{first}", "up": "adapter_up", "norm_after": "adapter_norm_after"}
    module, _, kind = part.rpartition(".")
    if part == "scale":
        return "scaling"
    if module == "norm_before":
        return f"adapter_norm_before.{kind}"
    return f"{names[module]}.{kind}"
