"""`trivium eval`: what a trained model is worth on labelled data or pairs of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.complete import complete_override
from trivium.cli.output import Json, show
from trivium.errors import TriviumError


def evaluate(
    model: Annotated[str, typer.Argument(help="A run folder, a model folder, or URL#NAME of an OpenAI-style server.")],
    data: Annotated[Path, typer.Argument(help="Labelled data, pairs, or a folder for search.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Changes to how the data is read, like data.labels.label=stars.", autocompletion=complete_override
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the results in the run; default: that of the file.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the results here instead of into the run.")] = None,
    calibrate: Annotated[
        Path | None, typer.Option(help="Write the model with temperature and thresholds fitted on this data here.")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Of a model that writes text: measure so many; default: all.")
    ] = None,
    vectors: Annotated[
        bool, typer.Option("--vectors", help="Measure the vectors of texts, of any model; default for embeddings.")
    ] = False,
    dims: Annotated[
        list[int] | None, typer.Option(help="Of vectors: also measure their first so many numbers; may be repeated.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Of vectors: texts with labels to look for neighbours in; default: DATA itself.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the resamples behind the intervals, and of --rows.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: all cores.")] = None,
    base: Annotated[Path | None, typer.Option(help="Of adapters: where their base lies, if it was moved.")] = None,
    as_json: Json = False,
) -> None:
    """Measure a model: its labels, tags or answers, its vectors, or the texts it writes for the sources of pairs.

    Every figure comes with the interval that holds it in 95 of 100 resamples of the rows.
    """
    from trivium.drivers.evaluating import describe, evaluate_folder, evaluate_remote
    from trivium.inference.remote import is_remote

    if is_remote(model):
        options = {"--name": name, "--calibrate": calibrate, "--vectors": vectors or None, "--dims": dims}
        for option, value in {**options, "--against": against, "--base": base}.items():
            if value is not None:
                raise TriviumError(f"{option} has no effect on the model of a server", value=value, fix="leave it out")
        found = evaluate_remote(model, data, overrides or [], output=output, seed=seed, rows=rows)
    else:
        found = evaluate_folder(
            Path(model),
            data,
            overrides or [],
            name=name,
            output=output,
            calibrate=calibrate,
            device=device,
            threads=threads,
            seed=seed,
            rows=rows,
            vectors=vectors,
            dimensions=dims,
            against=against,
            base=base,
        )
    places = {"folder": found.folder, "calibrated": found.calibrated}
    written = {key: str(place) for key, place in places.items() if place is not None}
    show({"model": str(found.model), **found.summary, **written}, as_json=as_json, text=describe(found))
