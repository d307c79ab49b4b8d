"""One run from recipe to model folder: `trivium train` and `tv.train`.

The same call starts a run, continues one that was interrupted or killed, and returns at once from one that is finished.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium.combinations import refuse_wrong_combinations
from trivium.config import ResolvedRecipe, resolve
from trivium.drivers.run_folder import Run, RunFolder, set_aside
from trivium.errors import ArtifactDamaged, Interrupted, TrainingDiverged

if TYPE_CHECKING:
    from trivium.artifacts.record import Parent
    from trivium.core.callbacks import Callback
    from trivium.core.frozen import FrozenProof
    from trivium.core.progress import Progress
    from trivium.core.trainer import Trainer
    from trivium.drivers.forecasting import Forecasting
    from trivium.drivers.session import Session
    from trivium.evaluation.labelled import Evaluation
    from trivium.recipe import EmaSettings, Recipe


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe | ResolvedRecipe,
    overrides: Sequence[str] = (),
    *,
    dry_run: bool = False,
    preflight: bool = False,
    fresh: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Trains as a recipe says and returns the run.

    recipe:    path of a YAML file, or the same tree as a dictionary or `Recipe`.
    overrides: changes such as `train.lr=3e-4`.
    dry_run:   one real update; reports memory, speed, disk and time to the end, and trains nothing.
    preflight: overfits eight rows and checks masks, end of text and template, and trains nothing.
    fresh:     sets an earlier run of this name aside and starts over.
    callbacks: observe the run besides its own; the last to be told of an update.

    Raises TriviumError for wrong input, Interrupted when it was asked to stop and has saved everything.
    """
    resolved = recipe if isinstance(recipe, ResolvedRecipe) else resolve(recipe, overrides)
    refuse_wrong_combinations(resolved)
    folder = RunFolder(resolved)
    if dry_run or preflight:
        from trivium.drivers import rehearsal

        with opened(resolved) as session:
            (rehearsal.preflight if preflight else rehearsal.dry_run)(session)
        return Run(folder.path, None)
    if fresh and folder.main and (aside := folder.set_aside()):
        say(f"the earlier run lies in {aside} now")
    with folder.locked():
        if not fresh and finished(folder):
            say(f"{folder.path} is finished; --fresh starts over")
            return Run(folder.path, folder.final)
        with opened(resolved) as session:
            run(session, folder, callbacks)
    return Run(folder.path, folder.final)


@contextmanager
def opened(resolved: ResolvedRecipe) -> Iterator[Session]:
    """A session that is closed in the end."""
    from trivium.drivers.micro_batch import open_fitting
    from trivium.drivers.session import open_session

    session = open_fitting(resolved, open_session)
    try:
        yield session
    finally:
        session.close()


def finished(folder: RunFolder) -> bool:
    """Whether the run has gone to its end and its model is whole, under the settings of now."""
    from trivium.artifacts.manifest import verify

    if folder.read_json("status.json").get("state") != "finished" or not folder.final.is_dir():
        return False
    folder.refuse_other_settings(folder.path / "config.yaml")
    try:
        verify(folder.final)
    except ArtifactDamaged as error:
        say(f"{error}\nit lies in {set_aside(folder.final)} now, and is written again from the last checkpoint")
        return False
    return True


def run(session: Session, folder: RunFolder, callbacks: Sequence[Callback] = ()) -> None:
    """Continues from the newest good checkpoint to the end, and leaves a report in every case."""
    from trivium.artifacts.checkpoints import CheckpointStore
    from trivium.core.checkpoint import Checkpoints
    from trivium.drivers.forecasting import Forecasting
    from trivium.optim.groups import describe_groups

    recipe, trainer, main = session.recipe, session.trainer, session.processes.main
    folder.resolved = session.resolved
    store = CheckpointStore(folder.path, keep=recipe.train.keep_checkpoints)
    checkpoints = Checkpoints(store, parents=parents_of(session), config=session.resolved.dump(), seed=recipe.seed)
    if recipe.train.ema is not None:
        follow(trainer, recipe.train.ema)
    resumed = checkpoints.restore(trainer)
    groups = trainer.engine.groups()
    if main:
        for message in [*store.messages, *session.notes, *describe_groups(groups)]:
            say(message)
        remarks = folder.begin(has_checkpoint=resumed is not None)
        folder.write_json("data.json", data_summary(session))
        folder.write_json("groups.json", {"groups": [asdict(row) for row in groups]})
        if trainer.engine.float8:
            folder.write_json("float8.json", {role: asdict(found) for role, found in trainer.engine.float8.items()})
        folder.status("running", trainer.progression.step)
        if resumed:
            say(f"continuing {folder.path} after update {trainer.progression.step} of {session.total}")
        for remark in remarks:
            say(remark)
    trainer.save = checkpoints.save
    with make_progress(session) as progress, reported(session, folder):
        forecasting = Forecasting(session, folder, progress)
        add_callbacks(session, folder, progress, forecasting)
        trainer.callbacks += callbacks
        proof = frozen_proof(session, folder)
        trainer.fit()
        if proof is not None:
            proof.finish(trainer)
        write_final(session, folder, parents=checkpoints.parents)
        if main:
            forget(session, folder)
            forecasting.finish()


def forget(session: Session, folder: RunFolder) -> None:
    """Measures what was forgotten of `data.probe`; it never stands in the way of the model itself."""
    recipe = session.recipe
    if not recipe.data.probe or recipe.model.path is None:
        return
    from trivium.drivers.forgetting import forgotten

    try:
        found = forgotten(folder.final, Path(recipe.model.path), recipe.data.probe)
    except Exception as error:
        say(f"what was forgotten could not be measured: {error}")
        return
    folder.write_json("probe.json", found)
    say(f"on the probe: {found['before']:.3f} bits per byte before, {found['after']:.3f} after this run")


def frozen_proof(session: Session, folder: RunFolder) -> FrozenProof | None:
    """Hashes what is frozen before and after, where each process holds whole weights; releases what trains later."""
    from trivium.core.frozen import FrozenProof, Release

    trainer = session.trainer
    transforms = trainer.engine.roles["policy"].module.transforms
    if not any(transform.freezes for transform in transforms) or session.recipe.engine.name not in ("single", "ddp"):
        return None
    trainer.callbacks.append(Release())
    if not session.processes.main:
        return None
    proof = FrozenProof(folder.read_json("frozen.json"), lambda found: folder.write_json("frozen.json", found))
    trainer.callbacks.append(proof)
    return proof


def make_progress(session: Session) -> Progress:
    """The progress line of the run, with the fraction of the machine's matrix peak that is used."""
    from trivium.core.plan import flops_per_token
    from trivium.core.progress import Progress, matrix_peak

    per_token = flops_per_token(session.config, sequence_tokens=float(session.train_data.lengths.mean()))
    peak = matrix_peak(session.device.type) if session.processes.main else None
    return Progress(session.total, session.recipe.name, flops_per_token=per_token, peak_flops=peak)


@contextmanager
def reported(session: Session, folder: RunFolder) -> Iterator[None]:
    """Status and report are written however the run ends."""
    state, reason = "crashed", ""
    try:
        yield
        state = "finished"
    except Interrupted as error:
        state, reason = "interrupted", error.problem
        raise
    except TrainingDiverged as error:
        state, reason = "diverged", error.problem
        raise
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        raise
    finally:
        if session.processes.main:
            folder.status(state, session.trainer.progression.step, reason)
            folder.write_json("data.json", data_summary(session))
            write_report(folder)


def follow(trainer: Trainer, settings: EmaSettings) -> None:
    """Keeps a moving average of the weights, as a part of the run's state."""
    from trivium.core.average import MovingAverage

    average = MovingAverage(settings, trainer.engine)
    trainer.state.register("ema", average)
    trainer.callbacks.append(average)


def add_callbacks(session: Session, folder: RunFolder, progress: Progress, forecasting: Forecasting) -> None:
    """Log, validate, sample, show; files are written by the main process only."""
    from trivium.core.callbacks import Metrics, Sample, Show, Validate
    from trivium.core.mirror import tensorboard_mirror

    settings, trainer = session.recipe.train, session.trainer
    mirror = tensorboard_mirror(folder.path / "tensorboard") if settings.tensorboard else None
    metrics = Metrics(folder.path, settings.log_every, mirror)
    if session.processes.main:
        trainer.callbacks.append(metrics)
    if session.validation_data is not None:
        trainer.callbacks.append(Validate(session.validation_batches, settings.validate_every, metrics.write))
    if settings.sample_prompts:
        every = settings.sample_every or settings.validate_every
        trainer.callbacks.append(Sample(folder.path, settings.sample_prompts, settings.sample_tokens, every))
    if session.processes.main:
        trainer.callbacks += [Show(progress), forecasting]


def parents_of(session: Session) -> list[Parent]:
    """What the model is made from: the model it starts from, tokenizer and data."""
    from trivium.artifacts.record import Parent, parent_of

    recipe = session.recipe
    parents = []
    if recipe.model.path is not None:
        parents.append(parent_of(Path(recipe.model.path), "base"))
    if recipe.tokenizer is not None:
        parents.append(parent_of(Path(recipe.tokenizer), "tokenizer"))
    if recipe.model.word_vectors is not None:
        parents.append(parent_of(Path(recipe.model.word_vectors), "word vectors"))
    if recipe.data.curriculum is not None and recipe.data.curriculum.model is not None:
        parents.append(parent_of(Path(recipe.data.curriculum.model), "judge of difficulty"))
    for role, sources in (("training data", recipe.data.train), ("validation data", recipe.data.validation)):
        for source in sources:
            path = Path(source.path)
            if path.exists():
                parents.append(parent_of(path, role))
            else:
                parents.append(Parent(source.path, session.train_data.fingerprint(), role))
    return parents


def data_summary(session: Session) -> dict[str, Any]:
    """What the report says about the data, for each split."""
    loader, step = session.loader, session.trainer.progression.position
    summary = {
        "train": {
            **session.train_data.summary(),
            "packing_efficiency": loader.packing_efficiency,
            "updates": step,
            "sources": [
                {**walked, "planned_tokens": planned["tokens"], "planned_epochs": planned["epochs"]}
                for walked, planned in zip(loader.progress(step), loader.progress(session.total), strict=True)
            ],
        }
    }
    if session.validation_data is not None:
        summary["validation"] = session.validation_data.summary()
    return summary


def write_final(session: Session, folder: RunFolder, *, parents: list[Parent]) -> None:
    """The trained model as a folder that Hugging Face tools load."""
    with session.trainer.engine.averaged("final"):
        found = write_model(session, folder, parents=parents)
    if found is not None:
        from trivium.drivers.evaluating import keep_evaluation

        keep_evaluation(session, folder, found)


def write_model(session: Session, folder: RunFolder, *, parents: list[Parent]) -> Evaluation | None:
    """The policy as it is now, and what it is worth."""
    from trivium.artifacts.writer import write_artifact
    from trivium.core.checkpoint import write_model_files

    weights = session.trainer.engine.weights("policy")  # gathered, so every rank takes part
    if not session.processes.main:
        return None
    with write_artifact(
        folder.final,
        kind="model",
        parents=parents,
        config=session.resolved.dump(),
        seed=session.recipe.seed,
        replace=True,
    ) as place:
        if not session.trainer.method.finish(place, weights):
            write_model_files(session.trainer, "policy", weights, place)
        return measured(session, place)


def measured(session: Session, place: Path) -> Evaluation | None:
    """What a model with a head is worth on the held-out data; it never stands in the way of the model itself."""
    if session.trainer.method.data_kind not in ("labels", "tokens", "questions", "similar"):
        return None
    from trivium.drivers.evaluating import measure_final

    try:
        return measure_final(session, place)
    except Exception as error:
        say(f"the model could not be measured on the held-out data: {error}")
        return None


def write_report(folder: RunFolder) -> None:
    """The report never stands in the way of what the run itself has to say."""
    try:
        from trivium.report.report import write_report as write

        write(folder.path)
    except Exception as error:
        say(f"the report could not be written: {error}")


def say(text: str) -> None:
    """A line for the person in front of it."""
    print(text, file=sys.stderr)
