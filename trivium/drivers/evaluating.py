"""Measuring a trained model on labelled data or pairs of texts: `trivium eval`, and what a run does at its end.

Results are an artifact of kind "evaluation": `metrics.json`, `predictions.jsonl` and, where labels can be confused,
`confusion.svg`. Those of a run lie in its folder `eval` and are shown in its report.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from trivium.artifacts.manifest import MANIFEST, RECORD
from trivium.artifacts.record import Parent, parent_of
from trivium.artifacts.writer import write_artifact, write_file
from trivium.data.sealing import seal_of
from trivium.errors import ConfigError, ModelError
from trivium.evaluation.labelled import KINDS, Evaluation, evaluate
from trivium.evaluation.vectors import evaluate_vectors
from trivium.evaluation.written import evaluate_pairs
from trivium.inference.decisions import DECISIONS
from trivium.inference.model import LanguageModel, load
from trivium.inference.remote import RemoteModel
from trivium.models.folder import read_config
from trivium.models.sentences import MODULES
from trivium.recipe import SHORTHAND, DataSection, Source

if TYPE_CHECKING:
    from trivium.drivers.run_folder import RunFolder
    from trivium.drivers.session import Session

FEWEST_ROWS = 50
"""Held-out rows from which on temperature and thresholds are fitted to them."""


@dataclass(frozen=True)
class Evaluated:
    """Where results lie.

    model:      the folder, or model of a server, that was measured.
    folder:     where the results lie, if anywhere.
    calibrated: the new model folder with temperature and thresholds, if one was asked for.
    """

    model: Path | str
    summary: dict[str, Any]
    folder: Path | None
    calibrated: Path | None


def evaluate_folder(
    place: Path,
    data: Path,
    overrides: Sequence[str] = (),
    *,
    name: str | None = None,
    output: Path | None = None,
    calibrate: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    rows: int | None = None,
    vectors: bool = False,
    dimensions: Sequence[int] | None = None,
    against: Path | None = None,
    base: Path | None = None,
) -> Evaluated:
    """Measures a run's final model, or any model folder, on a data file.

    overrides: changes to the settings of the data, as in a recipe (`data.labels.label=stars`); a run's own are the
               start.
    name:      of the results inside a run; default: the name of the data file.
    output:    where the results are written; default: `eval/<name>` in the run, nowhere for a model folder.
    calibrate: a new model folder, the same but for the temperature and thresholds that fit this data.
    rows:      of a model that writes text, which is slow: how many, drawn by the seed.
    vectors:   measure the vectors of texts, which is all there is to a folder that the methods for vectors left.
    dimensions, against: see `evaluate_vectors`.
    base:      of adapters, where their base lies; default: where they say.
    """
    run = place if (place / "final" / "config.json").is_file() else None
    folder = place / "final" if run else place
    shape = read_config(folder, base=base)
    writes = shape.head == "language" and shape.kind != "encoder"
    vectors = vectors or (shape.head not in KINDS and (folder / MODULES).is_file())
    _check_choice(folder, shape.head, writes=writes, vectors=vectors, only=bool(dimensions or against))
    settings = data_settings(run, data, overrides, length=shape.max_positions)
    model = load(folder, device=device, threads=threads, base=base)
    if rows is not None and (vectors or not writes):
        raise ModelError(
            "only models that write text are measured on a part", value=f"--rows {rows}", fix="leave it out"
        )
    if vectors:
        beside = [] if against is None else [Source(path=str(against))]
        found = evaluate_vectors(
            model, settings.train, settings, seed=seed, dimensions=dimensions or None, against=beside
        )
    elif writes:
        found = evaluate_pairs(model, settings.train, settings, seed=seed, rows=rows)
    else:
        found = evaluate(model, settings.train, settings, seed=seed)
    if (seal := seal_of(data, runs=run.resolve().parent if run else Path("runs"))) is not None:
        found.summary["sealed"] = seal
    target = output or (run / "eval" / (name or data.name.split(".")[0]) if run else None)
    if target is not None:
        write_evaluation(target, found, parents=[parent_of(folder, "model"), parent_of(data, "data")], seed=seed)
    if calibrate is not None:
        write_calibrated(folder, calibrate, found, data)
    if run is not None:
        from trivium.report.report import write_report

        write_report(run)
    return Evaluated(folder, found.summary, target, calibrate)


def _check_choice(folder: Path, head: str, *, writes: bool, vectors: bool, only: bool) -> None:
    """ModelError where there is nothing to measure, or a setting of vectors beside another kind."""
    if only and not vectors:
        raise ModelError(
            "lengths and neighbours belong to vectors", where=folder, value=f"head: {head}", fix="add --vectors"
        )
    if head not in KINDS and not writes and not vectors:
        raise ModelError(
            "this model has no head for labels, tags or answers, and writes no text",
            where=folder,
            value=f"head: {head}",
            fix="train one: trivium train recipes/classification.yaml (or ner, question_answering, seq2seq); "
            "or measure its vectors with --vectors",
        )


def evaluate_remote(
    place: str,
    data: Path,
    overrides: Sequence[str] = (),
    *,
    output: Path | None = None,
    seed: int = 0,
    rows: int | None = None,
) -> Evaluated:
    """Measures the model of a server (`URL#name`) on pairs, as a baseline for one's own; arguments as above."""
    settings = data_settings(None, data, overrides, length=512)
    found = evaluate_pairs(RemoteModel(place), settings.train, settings, seed=seed, rows=rows)
    if output is not None:
        write_evaluation(output, found, parents=[parent_of(data, "data")], seed=seed)
    return Evaluated(place, found.summary, output, None)


def data_settings(run: Path | None, data: Path, overrides: Sequence[str], *, length: int) -> DataSection:
    """How the data is read: as in the run, with changes; without a run in rows of at most 512 tokens, cut."""
    from trivium.config import resolve
    from trivium.marked_yaml import apply_overrides, node_from

    start: dict[str, Any] = {"sequence_length": min(length, 512), "truncation": "right"}
    if run is not None and (run / "config.yaml").is_file():
        start = resolve(run / "config.yaml").recipe.data.model_dump(mode="json")
    tree = node_from({"data": {**start, "train": [{"path": str(data)}], "validation": []}}, where="trivium eval")
    apply_overrides(tree, overrides, shorthand=SHORTHAND)
    plain = tree.plain()
    try:
        if unknown := set(plain) - {"data"}:
            raise ConfigError("only settings of the data can be changed here", value=unknown.pop(), fix="data.x=y")
        return DataSection.model_validate(plain["data"])
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            first["msg"],
            where=".".join(["data", *map(str, first["loc"])]),
            value=first["input"],
            fix="see the section data in `trivium config`",
        ) from None


def write_evaluation(
    target: Path, found: Evaluation, *, parents: Sequence[Parent], seed: int | None = None, replace: bool = True
) -> None:
    """The results as an artifact."""
    from trivium.report.confusion import confusion_file

    with write_artifact(target, kind="evaluation", parents=parents, seed=seed, replace=replace) as place:
        write_file(place / "metrics.json", json.dumps(found.summary, ensure_ascii=False, indent=1, allow_nan=False))
        lines = (json.dumps(one, ensure_ascii=False) + "\n" for one in found.predictions)
        write_file(place / "predictions.jsonl", "".join(lines))
        if "confusion" in found.summary:
            write_file(place / "confusion.svg", confusion_file(found.summary["labels"], found.summary["confusion"]))


def write_calibrated(folder: Path, target: Path, found: Evaluation, data: Path) -> None:
    """The same model with temperature and thresholds fitted on `found`."""
    if not found.decisions.rows:
        raise ModelError(
            "only models that choose labels for whole texts have a temperature",
            where=folder,
            value=f"kind: {found.summary['kind']}",
            fix="leave out --calibrate",
        )
    parents = [parent_of(folder, "model"), parent_of(data, "calibration data")]
    with write_artifact(target, kind="model", parents=parents) as place:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name not in (MANIFEST, RECORD, DECISIONS):
                (place / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, place / path.relative_to(folder))
        write_file(place / DECISIONS, found.decisions.to_json())


# At the end of a run


def measure_final(session: Session, place: Path) -> Evaluation | None:
    """Measures the model in `place` on the held-out data, and puts temperature and thresholds beside it.

    None where there is no held-out data or no head to measure. Called while the folder is being written.
    """
    recipe = session.recipe
    if not recipe.data.validation:
        return None
    head, vectors = read_config(place).head, (place / MODULES).is_file()
    if head not in KINDS and (not vectors or getattr(session.trainer.method, "alone", False)):
        return None
    model: LanguageModel = load(place, device=session.device)
    if head not in KINDS:
        return evaluate_vectors(model, recipe.data.validation, recipe.data, seed=recipe.seed)
    found = evaluate(model, recipe.data.validation, recipe.data, seed=recipe.seed)
    if found.decisions.rows >= FEWEST_ROWS:
        write_file(place / DECISIONS, found.decisions.to_json())
    return found


def keep_evaluation(session: Session, folder: RunFolder, found: Evaluation) -> None:
    """The results on the held-out data beside the finished model."""
    from trivium.data.reading import source_parent

    parents = [parent_of(folder.final, "model")]
    parents += [source_parent(source, "validation data") for source in session.recipe.data.validation]
    write_evaluation(folder.path / "eval" / "validation", found, parents=parents, seed=session.recipe.seed)


def describe(found: Evaluated) -> str:
    """The results as lines for people."""
    summary = found.summary
    seal = summary.get("sealed")
    lines = [f"{summary['rows']:,} rows" + (f" of the sealed set {seal['name']} ({seal['hash'][:12]})" if seal else "")]
    lines += [f"{name.replace('_', ' ')}: {_figure(figure)}" for name, figure in summary["metrics"].items()]
    columns = (
        *("ndcg@10", "mrr@10", "recall@10", "same_label_auc", "neighbour_accuracy", "pearson"),
        *("precision", "recall", "f1", "auroc", "mean_absolute_error", "spearman", "r2"),
    )
    for label, figures in list(summary["per_label"].items())[:40]:
        known = ", ".join(f"{name} {_figure(figures[name])}" for name in columns if name in figures)
        lines.append(f"  {label}: {known}")
    if "calibration" in summary:
        fit = summary["calibration"]
        lines.append(
            f"calibration error {fit['ece_before']:.3f}, with temperature {fit['temperature']:.2f} "
            f"(fitted on {fit['fitted_on']}) {fit['ece_after']:.3f}"
        )
    if found.folder:
        lines.append(f"the results are in {found.folder}")
    if found.calibrated:
        lines.append(f"the model with its temperature is in {found.calibrated}")
    return "\n".join(lines)


def _figure(figure: dict[str, float | None]) -> str:
    if figure["value"] is None:
        return "not defined"
    if figure["low"] is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"
