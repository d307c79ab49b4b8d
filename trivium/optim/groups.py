"""Which parameters learn at which rate, and which decay.

An optimiser builds its groups by `decay_groups`: matrices and embeddings decay, biases and norm weights do not. The
engine cuts them further by the settings of each parameter, and sets `lr * lr_factor` in each group at each update, so
that the schedule stays a function of the update alone. A factor is the product of

    the optimiser's own            (what Muon's AdamW gets)
    train.layer_lr_decay ** n      n blocks below the top: the head 0, the last block 1, the embeddings most
    the rule of train.groups       the first whose pattern fits the name
    RoleModel.lr_factors           what a transform asks for its own parameters

Sources: Clark et al. 2020 (ELECTRA, arXiv 2003.10555), Howard & Ruder 2018 (ULMFiT, arXiv 1801.06146).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from trivium.errors import ConfigError
from trivium.lazy import is_sharded
from trivium.nearest import nearest
from trivium.recipe import GroupSettings, TrainSection

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

_BLOCK = re.compile(r"(?:^|\.)(encoder\.)?blocks\.(\d+)\.")
_EMBEDDINGS = re.compile(r"^(encoder\.)?(embed(_norm|_projection)?|position_embed|token_type_embed|relative_bias)\.")


@dataclass(frozen=True)
class Setting:
    """How one parameter differs from what its optimiser does with it.

    factor:       of the learning rate. absolute: it replaces the optimiser's own factor.
    weight_decay: None for the optimiser's own.
    """

    factor: float = 1.0
    absolute: bool = False
    weight_decay: float | None = None


@dataclass(frozen=True)
class GroupRow:
    """One line of the table of what trains: a part of a model whose parameters are treated alike.

    lr:           at the peak of the schedule.
    weight_decay: None where the optimiser has none.
    """

    part: str
    lr: float
    lr_factor: float
    weight_decay: float | None
    tensors: int
    parameters: int


def decay_groups(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: at least two dimensions (decayed) and fewer (not decayed)."""
    decayed: dict[str, Any] = {"params": [], "weight_decay": weight_decay}
    plain: dict[str, Any] = {"params": [], "weight_decay": 0.0}
    for _, parameter in named:
        (decayed if parameter.ndim >= 2 else plain)["params"].append(parameter)
    return [group for group in (decayed, plain) if group["params"]]


def fusible(groups: Iterable[Mapping[str, Any]], *, sharded: bool = True) -> bool:
    """Whether torch has a fused kernel for all of these parameters; `sharded`: also for sharded ones."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    return all(
        one.is_floating_point() and one.device.type in ("cpu", "cuda") and (sharded or not is_sharded(one))
        for one in parameters
    )


def parameter_settings(
    names: Iterable[str],
    train: TrainSection,
    *,
    blocks: Mapping[str, tuple[int, int]],
    factors: Mapping[str, float],
) -> dict[str, Setting]:
    """The setting of each parameter, by its name `<role>.<parameter>`.

    blocks:  of each role, how many blocks it has, and how many its encoder.
    factors: further factors, by name.
    """
    found = {}
    for name in names:
        ruled = _rule_of(name, train.groups)
        rule = GroupSettings(match="*", lr_factor=1.0) if ruled is None else train.groups[ruled]
        role, _, own = name.partition(".")
        depth = 1.0 if train.layer_lr_decay is None else train.layer_lr_decay ** below_top(own, *blocks[role])
        factor = depth * (rule.lr_factor or 1.0) * factors.get(name, 1.0)
        if rule.lr is not None:
            factor = rule.lr / train.lr
        found[name] = Setting(factor, rule.lr is not None, rule.weight_decay)
    return found


def refuse_useless_rules(names: Sequence[str], train: TrainSection, *, anywhere: Callable[[bool], bool] = bool) -> None:
    """ConfigError for a rule that fits none of the parameters that train, or only some that an earlier rule takes.

    anywhere: whether something holds in any process (in a pipeline, each has its own parameters).
    """
    taken = {_rule_of(name, train.groups) for name in names}
    for number, rule in enumerate(train.groups):
        if not anywhere(number in taken):
            raise _useless(number, rule, names)


def below_top(name: str, blocks: int, encoder_blocks: int = 0) -> int:
    """How many blocks a parameter lies below the top: head and final norm 0, the last block 1, embeddings most.

    Encoder and decoder are counted each from its own top, because the decoder looks at the encoder from every block.
    """
    if found := _BLOCK.search(name):
        return (encoder_blocks if found[1] else blocks) - int(found[2])
    return max(blocks, encoder_blocks) + 1 if _EMBEDDINGS.match(name) else 0


def part_of(name: str) -> str:
    """What a parameter belongs to, in words."""
    if found := _BLOCK.search(name):
        return f"{'encoder block' if found[1] else 'block'} {found[2]}"
    if _EMBEDDINGS.match(name):
        return "embeddings"
    return {"final_norm": "final norm", "encoder": "encoder's final norm"}.get(first := name.split(".")[0], first)


def split_groups(optimizer: Optimizer, settings: Mapping[nn.Parameter, Setting]) -> None:
    """Cuts the groups of a new optimiser until all parameters of a group share rate, decay and layout on devices."""
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        parts: dict[tuple[float, float | None, Any], list[nn.Parameter]] = {}
        for parameter in group["params"]:
            setting = settings[parameter]
            own = 1.0 if setting.absolute else group.get("lr_factor", 1.0)
            if setting.weight_decay is not None and "weight_decay" not in group:
                raise ConfigError(
                    "this optimiser has no weight decay",
                    where="train.groups",
                    value=f"weight_decay: {setting.weight_decay:g}",
                    fix="delete it, or choose another train.optimizer",
                )
            decay = group.get("weight_decay") if setting.weight_decay is None else setting.weight_decay
            layout = getattr(parameter, "placements", None)  # no kernel takes whole and sharded tensors together
            parts.setdefault((own * setting.factor, decay, layout), []).append(parameter)
        for (factor, decay, _), parameters in parts.items():
            own_decay = {} if decay is None else {"weight_decay": decay}
            groups.append({**group, **own_decay, "params": parameters, "lr_factor": factor})
    optimizer.param_groups[:] = groups


def group_table(
    optimizer: Optimizer, named: Mapping[str, nn.Parameter], lr: float, *, several: bool = False
) -> list[GroupRow]:
    """What trains and how, in the order of the parameters; `named` by `<role>.<parameter>`.

    several: whether more than one model trains, so that parts are named with their role.
    """
    where = {
        parameter: (group["lr_factor"], group.get("weight_decay"))
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    sums: dict[tuple[str, float, float | None], tuple[int, int]] = {}
    for name, parameter in named.items():
        role, _, own = name.partition(".")
        part = f"{role}: {part_of(own)}" if several else part_of(own)
        tensors, numbers = sums.get(key := (part, *where[parameter]), (0, 0))
        sums[key] = (tensors + 1, numbers + parameter.numel())
    return [GroupRow(part, lr * factor, factor, decay, *counted) for (part, factor, decay), counted in sums.items()]


def describe_groups(rows: Sequence[GroupRow]) -> list[str]:
    """The table in as few lines as it can be said: one for each learning rate, the smallest first."""
    lines = []
    for lr in sorted({row.lr for row in rows}):
        alike = [row for row in rows if row.lr == lr]
        numbers = sum(row.parameters for row in alike)
        decays: dict[float, int] = {}
        for row in alike:
            if row.weight_decay:
                decays[row.weight_decay] = decays.get(row.weight_decay, 0) + row.parameters
        said = ", ".join(f"{decay:g} for {count:,}" for decay, count in decays.items())
        if list(decays.values()) == [numbers]:
            said = f"{next(iter(decays)):g}"
        parts = ", ".join(shortened([row.part for row in alike]))
        lines.append(f"learning rate {lr:.3g}: {numbers:,} parameters ({parts}), weight decay {said or 'none'}")
    return lines


def shortened(parts: Sequence[str]) -> list[str]:
    """`block 0`, `block 1`, `block 2` as `blocks 0-2`."""
    found: list[tuple[str, int | None, int | None]] = []
    for part in dict.fromkeys(parts):
        words, _, last = part.rpartition(" ")
        number = int(last) if last.isdigit() and words.endswith("block") else None
        if number is not None and found and found[-1][0] == words and found[-1][2] == number - 1:
            found[-1] = (words, found[-1][1], number)
        else:
            found.append((words, number, number) if number is not None else (part, None, None))
    return [
        words if first is None else f"{words} {first}" if first == last else f"{words}s {first}-{last}"
        for words, first, last in found
    ]


def _rule_of(name: str, rules: Sequence[GroupSettings]) -> int | None:
    """The first rule that fits, by its number."""
    return next((number for number, rule in enumerate(rules) if any(_fits(p, name) for p in rule.patterns)), None)


def _fits(pattern: str, name: str) -> bool:
    """Whether a pattern fits the whole name, with or without its role."""
    both = (name, name.partition(".")[2])
    if pattern.startswith("re:"):
        return any(re.fullmatch(pattern[3:], one) for one in both)
    return any(fnmatchcase(one, pattern) for one in both)


def _useless(number: int, rule: GroupSettings, names: Sequence[str]) -> ConfigError:
    """A rule without a parameter: it fits none, or earlier rules have them all."""
    pattern = ", ".join(rule.patterns)
    if any(_fits(one, name) for name in names for one in rule.patterns):
        problem, fix = (
            "earlier rules take every parameter that this pattern fits",
            "put the special rule first",
        )
    else:
        own = [name.removeprefix("policy.") for name in names]
        near = nearest(rule.patterns[0], own) or own[0]
        problem, fix = "no trained parameter has such a name", f"a name is for example {near}; * stands for anything"
    return ConfigError(problem, where=f"train.groups.{number}.match", value=pattern, fix=fix)
