"""`trivium merge`: several adapters of one base, or several models of one shape, as one.

What each changed is the difference from the base; without a base, models are averaged. The result is a whole model, or
an adapter of low rank: the nearest to the merged change, by its singular values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium.artifacts.record import parent_of
from trivium.artifacts.writer import check_target, write_artifact
from trivium.drivers.exporting import write_model
from trivium.errors import ModelError
from trivium.inference.model import tokenizer_of
from trivium.lazy import torch
from trivium.models.adapter_folder import base_of, find_base, is_adapter, save_adapters
from trivium.models.folder import load_model
from trivium.models.merging import RULES, Rule, combine
from trivium.models.targets import Place, places
from trivium.models.transform import apply_transforms, merge_all
from trivium.nearest import nearest

if TYPE_CHECKING:
    from torch import Tensor

    from trivium.models.transformer import Transformer


@dataclass(frozen=True)
class Merged:
    """What came of it.

    kind:      "model" or "adapter".
    relative:  norm of the merged change, divided by that of the base.
    conflicts: share of the changed entries whose signs differ between the sources.
    lost:      of an adapter, the share of the merged change (its squared norm) that the rank has no room for.
    """

    kind: str
    relative: float
    conflicts: float
    lost: float | None


def merge_folders(
    sources: Sequence[Path],
    output: Path,
    *,
    method: str = "linear",
    weights: Sequence[float] | None = None,
    density: float = 1.0,
    base: Path | None = None,
    rank: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Merged:
    """Writes the folder `output`.

    method:  see `trivium.models.merging`. weights: one for each source; default: 1 with a vote of signs (`ties`,
             `dare_ties`), which divides by itself, else 1 / number of sources.
    density: share of the entries of each change that stays.
    base:    of models; of adapters, where it lies if it was moved.
    rank:    write an adapter of this rank.
    """
    rule = _checked(sources, method, weights, density)
    check_target(output, kind="model", replace=overwrite)
    place = _common_base(sources, base)
    if place is None and (rule != "linear" or rank is not None):
        raise ModelError(
            "what a model changed is only known beside its base",
            where="trivium merge",
            value=f"--method {rule}" if rule != "linear" else f"--rank {rank}",
            fix="add --base FOLDER, the model that all of them were trained from",
        )
    usual = 1.0 if rule.endswith("ties") else 1.0 / len(sources)
    factors = [usual] * len(sources) if weights is None else list(weights)
    model = load_model(sources[0] if place is None else place)
    states = [_state(source, place) for source in sources]
    start = {name: torch.zeros_like(p) if place is None else p for name, p in model.state_dict().items()}
    _same_shapes(sources, states, start)
    changes, figures = _combined(start, states, factors, rule, density=density, seed=seed)
    settings = {"method": rule, "weights": factors, "density": density, "rank": rank}
    parents = [parent_of(source, "merged") for source in sources]
    parents += [] if place is None else [parent_of(place, "base")]
    with write_artifact(output, kind="model", parents=parents, config=settings, seed=seed, replace=overwrite) as folder:
        lost = None
        if rank is None:
            merged = {name: (start[name].float() + change).to(start[name].dtype) for name, change in changes.items()}
            source = place or sources[0]
            tokenizer = tokenizer_of(sources[0], source)
            write_model(folder, model.config, {**start, **merged}, tokenizer, source=source)
        else:
            assert place is not None
            lost = _write_adapter(folder, model, changes, place, rank, tokenizer=sources[0])
    return Merged("model" if rank is None else "adapter", *figures, lost)


def _checked(sources: Sequence[Path], method: str, weights: Sequence[float] | None, density: float) -> Rule:
    if method not in RULES:
        near = nearest(method, RULES)
        fix = f"did you mean {near}?" if near else f"choose from {', '.join(RULES)}"
        raise ModelError("there is no such way to merge", where="--method", value=method, fix=fix)
    rule: Rule = next(known for known in RULES if known == method)
    if len(sources) < 2 and rule == "linear" and weights is None:
        raise ModelError("one folder alone is not merged", where="trivium merge", fix="name at least two")
    if weights is not None and len(weights) != len(sources):
        raise ModelError(
            "each folder needs one weight",
            where="--weights",
            value=f"{len(weights)} weights, {len(sources)} folders",
            fix="give one number for each, in their order",
        )
    if not 0 < density <= 1:
        raise ModelError("density is a share", where="--density", value=density, fix="above 0, at most 1")
    if rule == "linear" and density != 1.0:
        raise ModelError(
            "linear keeps every entry, so density has no effect", where="--density", value=density, fix="leave it out"
        )
    return rule


def _common_base(sources: Sequence[Path], base: Path | None) -> Path | None:
    """The folder of the base; ModelError where adapters have different ones."""
    adapters = [source for source in sources if is_adapter(source)]
    if not adapters:
        return base
    found = {source: find_base(source, base) for source in adapters}
    first = found[adapters[0]]
    if other := next(
        (source for source in adapters if base_of(found[source]).fingerprint != base_of(first).fingerprint), None
    ):
        raise ModelError(
            "the adapters belong to different bases", value=f"{first} and {found[other]}", where=other,
            fix="merge adapters of one base only",
        )  # fmt: skip
    if len(adapters) < len(sources) and base is None:
        raise ModelError(
            "models are merged with adapters only beside the base of both",
            where=next(source for source in sources if source not in adapters),
            fix="add --base FOLDER",
        )
    return first


def _state(source: Path, base: Path | None) -> dict[str, Tensor]:
    """The weights of a source, adapters put into them."""
    model = load_model(source, base=base if is_adapter(source) else None)
    if any(transform.changes_base for transform in model.transforms):
        raise ModelError(
            "the adapter was trained on a quantised base, which is another model",
            where=source,
            fix="merge it into its base first: trivium export FOLDER --merge --output MODEL",
        )
    merge_all(model)
    return dict(model.state_dict())


def _same_shapes(sources: Sequence[Path], states: Sequence[Mapping[str, Tensor]], start: Mapping[str, Tensor]) -> None:
    for source, state in zip(sources, states, strict=True):
        wrong = [
            name
            for name in {**start, **state}
            if getattr(state.get(name), "shape", 0) != getattr(start.get(name), "shape", 1)
        ]
        if wrong:
            raise ModelError(
                "the models have different shapes (or vocabularies, or heads)",
                where=source,
                value=f"{len(wrong)} weights, such as {sorted(wrong)[0]}",
                fix="merge models that were trained from one and the same",
            )


def _combined(
    start: Mapping[str, Tensor],
    states: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
    rule: Rule,
    *,
    density: float,
    seed: int,
) -> tuple[dict[str, Tensor], tuple[float, float]]:
    """(merged changes by name, of those that anything changed; relative norm and share of conflicts)."""
    found: dict[str, Tensor] = {}
    size = whole = 0.0
    touched = conflicts = 0
    for name, old in start.items():
        each = [state[name].float() - old.float() for state in states]
        whole += float(old.float().square().sum())
        if not any(change.any() for change in each):
            continue
        found[name] = combine(each, weights, rule, density=density, seed=seed, name=name)
        signs = torch.stack(each).sign()
        touched += int(signs.any(0).sum())
        conflicts += int(((signs > 0).any(0) & (signs < 0).any(0)).sum())
        size += float(found[name].square().sum())
    return found, ((size / whole) ** 0.5 if whole else 1.0, conflicts / max(touched, 1))


def _write_adapter(
    folder: Path, model: Transformer, changes: Mapping[str, Tensor], base: Path, rank: int, *, tokenizer: Path
) -> float:
    """A LoRA whose change is the nearest of its rank; returns the share that is lost."""
    from trivium.registry import component

    chosen = [place for place in places(model) if any(f"{name}.weight" in changes for name in place.own)]
    covered = {f"{name}.weight" for place in chosen for name in place.own}
    if rest := [name for name in changes if name not in covered]:
        raise ModelError(
            "only changes of linear layers have room in an adapter, and more was changed",
            where="--rank",
            value=", ".join(rest[:3]),
            fix="leave out --rank: the result is a whole model then",
        )
    cls = component("transforms", "lora")
    lora = cls(cls.Config(rank=rank, alpha=rank))
    lora.places = chosen
    lora.ranks = {place.file: min(rank, *_sides(place, model)) for place in chosen}
    lora.alphas = {place.file: float(lora.ranks[place.file]) for place in chosen}
    model.base = base_of(base)
    apply_transforms(model, [lora], seed=0)
    left = whole = 0.0
    for place in chosen:
        parts = [changes.get(f"{name}.weight") for name in place.own]
        shapes = [model.get_parameter(f"{name}.weight") for name in place.own]
        change = place.stack([torch.zeros_like(w) if p is None else p for p, w in zip(parts, shapes, strict=True)])
        lost, size = _put(model, lora.name, place, change.float(), lora.ranks[place.file])
        left, whole = left + lost, whole + size
    save_adapters(folder, model, model.state_dict())
    tokenizer_of(tokenizer, base).save(folder)
    return left / max(whole, 1e-30)


def _sides(place: Place, model: Transformer) -> tuple[int, int]:
    return sum(place.sizes), model.get_parameter(f"{place.own[0]}.weight").shape[1]


def _put(model: Transformer, adapter: str, place: Place, change: Tensor, rank: int) -> tuple[float, float]:
    """Sets A and B of a place; (what is lost, the whole), as squared norms."""
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    root = values[:rank].sqrt()
    ups = place.unstack(left[:, :rank] * root)
    with torch.no_grad():
        for name, up in zip(place.own, ups, strict=True):
            model.get_parameter(f"{name}.branches.{adapter}.down").copy_(root[:, None] * right[:rank])
            model.get_parameter(f"{name}.branches.{adapter}.up").copy_(up)
    return float(values[rank:].square().sum()), float(values.square().sum())


def described(found: Merged, output: Path) -> dict[str, Any]:
    """The result as JSON values."""
    return {"folder": str(output), "kind": found.kind, "relative_change": found.relative,
            "sign_conflicts": found.conflicts, "lost": found.lost}  # fmt: skip
