"""`trivium export`: a model folder as another one, with a certificate that it says the same.

An adapter is merged into its base: into the weights that it was trained on, so that of a quantised base the quantised
ones, made floating point.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium.artifacts.record import Parent, parent_of
from trivium.artifacts.writer import check_target, write_artifact, write_file
from trivium.drivers.certificate import Certificate, compare
from trivium.errors import ModelError
from trivium.lazy import torch
from trivium.models.folder import DTYPES, GENERATION, load_model, save_model

if TYPE_CHECKING:
    from torch import Tensor

    from trivium.inference.model import LanguageModel
    from trivium.models.config import ModelConfig
    from trivium.tokenizers.tokenizer import Tokenizer

CERTIFICATE = "certificate.json"


@dataclass(frozen=True)
class Checks:
    """How a conversion is checked.

    prompts: texts; without any, `count` random runs of tokens. data: rows of the model's task, which is scored.
    accept:  write the result even if it says something else; the figures are kept.
    """

    prompts: Sequence[str] = ()
    count: int = 16
    data: Path | None = None
    tolerance: float = 1e-3
    accept: bool = False
    seed: int = 0


def export_folder(
    folder: Path,
    output: Path,
    *,
    merge: bool = False,
    base: Path | None = None,
    dtype: str | None = None,
    checks: Checks = Checks(),
    overwrite: bool = False,
) -> Certificate:
    """Writes the model of `folder`, merged and in another type if asked for, into `output`.

    ModelError where the result would say something else than the model does now.
    """
    from trivium.inference.model import load
    from trivium.models.adapter_folder import is_adapter
    from trivium.models.transform import merge_all

    check_target(output, kind="model", replace=overwrite)
    kind = _type(dtype)
    if is_adapter(folder) != merge:
        raise ModelError(
            "the folder holds an adapter" if not merge else "the folder holds a model of its own, no adapter",
            where=folder,
            fix="add --merge to put it into its base" if not merge else "leave out --merge",
        )
    if not merge and kind is None:
        raise ModelError("nothing would change", where=folder, fix="give --dtype, or copy the folder")
    before = load(folder, base=base, device="cpu")
    module = load_model(folder, base=base)
    found = Path(module.base.path) if module.base is not None else folder
    parents = [parent_of(folder, "adapter" if merge else "model")]
    if merge:
        parents.append(parent_of(found, "base"))
    merge_all(module)
    settings: dict[str, Any] = {"merge": merge, "dtype": dtype}
    with certified(output, before, checks, parents=parents, settings=settings, overwrite=overwrite) as place:
        write_model(place, module.config, module.state_dict(), before.tokenizer, source=found, kind=kind)
    return Certificate(**{**settings["certificate"]})


def write_model(
    place: Path,
    config: ModelConfig,
    state: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    *,
    source: Path,
    kind: torch.dtype | None = None,
) -> None:
    """Weights, tokenizer, and how `source` generates, into an artifact that is being written."""
    save_model(place, config, state, dtype=kind)
    tokenizer.save(place)
    if (source / GENERATION).is_file():
        shutil.copyfile(source / GENERATION, place / GENERATION)


@contextmanager
def certified(
    output: Path,
    before: LanguageModel,
    checks: Checks,
    *,
    parents: Sequence[Parent],
    settings: dict[str, Any],
    overwrite: bool,
) -> Iterator[Path]:
    """A model folder to fill; it gets its name only if it says what `before` says, or the difference is accepted."""
    from trivium.inference.model import load

    with write_artifact(output, kind="model", parents=parents, config=settings, replace=overwrite) as place:
        yield place
        after = load(place, device="cpu")
        found = compare(
            before,
            after,
            prompts=checks.prompts,
            count=checks.count,
            tolerance=checks.tolerance,
            seed=checks.seed,
        )
        if checks.data is not None:
            scores = {"before": score(before, checks.data), "after": score(after, checks.data)}
            found = replace(found, scores={"data": str(checks.data), **scores})
        if not found.holds:
            if not checks.accept:
                raise ModelError(
                    "the result would not say what the model says; nothing was written",
                    where=output,
                    value=found.describe(),
                    fix=f"add --accept to write it all the same, or --tolerance (now {checks.tolerance:g})",
                )
            found = replace(found, accepted=True)
        settings["certificate"] = {key: value for key, value in found.as_dict().items() if key != "holds"}
        write_file(place / CERTIFICATE, json.dumps(found.as_dict(), indent=1) + "\n")


def score(model: LanguageModel, data: Path) -> dict[str, float | None]:
    """The metrics of the model's task on labelled data, or pairs of texts; what it writes is its likeliest answer."""
    from trivium.drivers.evaluating import data_settings
    from trivium.evaluation.labelled import KINDS, evaluate
    from trivium.evaluation.written import evaluate_pairs
    from trivium.inference.model import LanguageModel

    settings = data_settings(None, data, (), length=model.module.config.max_positions)
    measure = evaluate if model.module.config.head in KINDS else evaluate_pairs
    sampling = replace(model.defaults.sampling, temperature=0.0)
    model = LanguageModel(
        model.module,
        model.tokenizer,
        defaults=replace(model.defaults, sampling=sampling),
        decisions=model.decisions,
    )
    summary = measure(model, settings.train, settings, seed=0).summary
    return {name: figure["value"] for name, figure in summary["metrics"].items()}


def _type(name: str | None) -> torch.dtype | None:
    if name is not None and name not in DTYPES:
        raise ModelError("unknown type of numbers", where="--dtype", value=name, fix=f"choose from {', '.join(DTYPES)}")
    return None if name is None else getattr(torch, name)
