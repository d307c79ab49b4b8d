"""`trivium music`: tunes in ABC notation, from files to a model that writes new ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trivium.cli.output import Json, show
from trivium.errors import DataError

if TYPE_CHECKING:
    from trivium.evaluation.music import Judged, KnownTunes

app = typer.Typer(
    help="Tunes in ABC notation: prepare, check, sample, play.", no_args_is_help=True, rich_markup_mode=None
)

Files = Annotated[list[str], typer.Argument(help="Files of tunes, or folders with .abc files.")]
Training = Annotated[
    list[str] | None, typer.Option("--training", help="Tunes that were trained on; measures what is copied.")
]
Replace = Annotated[bool, typer.Option("--replace", help="Overwrite the folder if it holds tunes.")]


@app.command()
def prepare(
    sources: Files,
    output: Annotated[Path, typer.Option("--output", help="Folder to write.")],
    held_out: Annotated[float, typer.Option(min=0, max=0.5, help="Share of tunes kept for validation.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Decides which tunes are held out.")] = 0,
    as_json: Json = False,
) -> None:
    """Split tunes into training and validation, without near duplicates between them.

    Malformed tunes are set aside and counted.
    """
    from trivium.data.prepare import prepare_documents
    from trivium.recipe import Source

    made = prepare_documents(
        [Source(path=name) for name in sources], output, validation_fraction=held_out, seed=seed, on_error="quarantine"
    )
    account = {name: made.report[name] for name in ("input", "kept", "dropped", "merged", "quarantined")}
    if made.validation is None:
        typer.echo("note: no tune is held out; use more tunes, a larger --held-out or another --seed", err=True)
    show({"folder": str(output), **account}, as_json=as_json, text=json.dumps(account, indent=1))


@app.command()
def check(sources: Files, training: Training = None, as_json: Json = False) -> None:
    """Which tunes parse, and whether their bars fill the metre."""
    from trivium.evaluation.music import describe, judge, summary

    known = _known(training)
    judged = {name: judge(text, known=known) for name, text in _tunes(sources)}
    report = summary(list(judged.values()), known=known)
    wrong = {
        name: tune.error or f"{tune.wrong} bars do not fill the metre"
        for name, tune in judged.items()
        if not tune.whole
    }
    text = "\n".join([describe(report), *(f"{name}: {problem}" for name, problem in wrong.items())])
    show({**report, "wrong": wrong}, as_json=as_json, text=text)


@app.command()
def sample(
    model: Annotated[Path, typer.Argument(help="A model folder, or the folder of a run.")],
    output: Annotated[Path, typer.Option("--output", help="Folder to write.")],
    count: Annotated[int, typer.Option(min=1, help="How many tunes.")] = 20,
    prompt: Annotated[str, typer.Option(help="How each tune begins.")] = "X:",
    temperature: Annotated[float, typer.Option(help="Below 1 more likely, above 1 more unusual tunes.")] = 0.8,
    top_p: Annotated[float | None, typer.Option(help="Draw from the most likely tokens of this share.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same tunes.")] = 0,
    play: Annotated[int, typer.Option(min=0, help="Tunes without a wrong bar to write as music and score.")] = 1,
    training: Training = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all cores.")] = None,
    replace: Replace = False,
    as_json: Json = False,
) -> None:
    """Write new tunes, and say how many parse, fill their bars and are copied.

    The folder gets tunes.abc (those that parse), samples.jsonl, report.json, and MIDI, WAV, MusicXML and SVG of a few.
    Without --training, the training data of the run is compared with.
    """
    from trivium.artifacts.record import parent_of
    from trivium.artifacts.writer import check_target, write_artifact
    from trivium.evaluation.music import describe, judge, summary
    from trivium.inference.model import load

    check_target(output, kind="tunes", replace=replace)
    folder = model / "final" if (model / "final").is_dir() else model
    known = _known(training or _trained_on(model))
    loaded = load(folder, device="cpu", threads=threads)
    room = max(1, loaded.context_length - len(loaded.tokenizer.encode_prompt(prompt)))
    answers = loaded.answers([prompt], n=count, max_new_tokens=room, temperature=temperature, top_p=top_p, seed=seed)
    endings = []
    judged = []
    for answer in answers:
        endings.append(answer.finish_reason)
        judged.append(judge(prompt + answer.text, known=known))
    settings = {"prompt": prompt, "count": count, "temperature": temperature, "top_p": top_p}
    report = {**summary(judged, known=known), "ended": endings.count("eos") / count, **settings, "seed": seed}
    with write_artifact(
        output, kind="tunes", parents=[parent_of(folder, "model")], config=settings, seed=seed, replace=replace
    ) as place:
        messages = _write(place, judged, report, play)
    for message in messages:
        typer.echo(f"note: {message}", err=True)
    text = f"{describe(report)}\n{100 * report['ended']:.1f} % come to an end by themselves\nwritten to {output}"
    show({"folder": str(output), **report}, as_json=as_json, text=text)


@app.command()
def render(
    source: Annotated[str, typer.Argument(help="A file with tunes.")],
    output: Annotated[Path, typer.Option("--output", help="Folder to write.")],
    number: Annotated[int, typer.Option(min=1, help="Which tune of the file, counted from 1.")] = 1,
    replace: Replace = False,
    as_json: Json = False,
) -> None:
    """Write one tune as MIDI, sound (WAV) and score (MusicXML, SVG)."""
    from trivium.artifacts.writer import write_artifact
    from trivium.evaluation.music_files import write_music
    from trivium.evaluation.music_notation import parse_tune

    tunes = _tunes([source])
    if number > len(tunes):
        raise DataError("the file has fewer tunes", where=source, value=number, fix=f"use 1 to {len(tunes)}")
    name, text = tunes[number - 1]
    try:
        tune = parse_tune(text)
    except DataError as error:
        raise DataError(error.problem, where=f"{name}, {error.where}", value=error.value, fix=error.fix) from None
    with write_artifact(output, kind="tunes", config={"tune": name}, replace=replace) as place:
        messages = write_music(place, "tune", tune)
    for message in messages:
        typer.echo(f"note: {message}", err=True)
    show({"folder": str(output), "tune": name, "title": tune.title}, as_json=as_json, text=f"{tune.title} in {output}")


def _tunes(sources: Sequence[str]) -> list[tuple[str, str]]:
    """(id, text) of each tune; one that is malformed stops here, with its place."""
    from trivium.data.intake import Intake
    from trivium.data.reading import read_documents
    from trivium.recipe import Source

    return [
        (document.id, document.text) for name in sources for document in read_documents(Source(path=name), Intake())
    ]


def _known(training: Sequence[str] | None) -> KnownTunes | None:
    from trivium.evaluation.music import KnownTunes

    return KnownTunes.of(text for _, text in _tunes(training)) if training else None


def _trained_on(model: Path) -> list[str]:
    """The training data of a run, as its config.yaml names it; none where that is not there."""
    import yaml

    config = next((path for path in (model / "config.yaml", model.parent / "config.yaml") if path.is_file()), None)
    if config is None:
        return []
    sources = yaml.safe_load(config.read_text(encoding="utf-8"))["data"]["train"]
    paths = [
        source["path"] if isinstance(source, dict) else source
        for source in ([sources] if isinstance(sources, str) else sources)
    ]
    return [path for path in paths if Path(path).exists()]


def _write(folder: Path, judged: Sequence[Judged], report: dict[str, Any], play: int) -> list[str]:
    from trivium.artifacts.writer import write_file
    from trivium.evaluation.music_files import write_music

    write_file(folder / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    rows = [{"text": tune.text, "error": tune.error, "wrong_bars": tune.wrong, "known": tune.known} for tune in judged]
    write_file(folder / "samples.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_file(folder / "tunes.abc", "\n".join(tune.text.rstrip("\n") + "\n" for tune in judged if tune.tune))
    messages: list[str] = []
    played = [tune.tune for tune in judged if tune.whole and not tune.known and tune.tune][:play]
    if len(played) < play:
        messages.append(f"only {len(played)} new tunes without a wrong bar could be played")
    for number, tune in enumerate(played, 1):
        messages += write_music(folder, f"tune-{number:02}", tune)
    return list(dict.fromkeys(messages))
