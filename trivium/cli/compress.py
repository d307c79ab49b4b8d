"""`trivium compress`: make a model smaller."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trivium.cli.output import Json, show

app = typer.Typer(help="Make a model smaller.", no_args_is_help=True, rich_markup_mode=None)

_LAYERS = "spread, alternate, first, last, or numbers from 0 (0,4,8)"


@app.callback()
def compress() -> None:
    """Keeps `student` a verb of its own while it is the only one."""


@app.command()
def student(
    teacher: Annotated[Path, typer.Argument(help="A model folder.")],
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    changes: Annotated[
        list[str] | None, typer.Argument(help="Settings of the model that differ: num_layers=6 hidden_size=312.")
    ] = None,
    layers: Annotated[str, typer.Option(help=f"Which of the teacher's layers it starts from: {_LAYERS}.")] = "spread",
    decoder_layers: Annotated[str, typer.Option(help="The same for the decoder of an encoder-decoder.")] = "spread",
    fresh: Annotated[bool, typer.Option("--fresh", help="Start from random weights instead of the teacher's.")] = False,
    seed: Annotated[int, typer.Option(help="Of random weights.")] = 0,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the folder if it is a model.")] = False,
    as_json: Json = False,
) -> None:
    """Start a smaller model from a larger one, to be taught with the method distill."""
    from trivium.artifacts.record import parent_of
    from trivium.artifacts.writer import check_target, write_artifact
    from trivium.models.folder import load_model, save_model
    from trivium.models.student import make_student, student_config
    from trivium.tokenizers.tokenizer import Tokenizer

    check_target(output, kind="model", replace=replace)
    model, tokenizer = load_model(teacher), Tokenizer.load(teacher)
    chosen, chosen_decoder = _layers(layers), _layers(decoder_layers)
    asked = _settings(changes or [])
    for setting, numbers in (("num_layers", chosen), ("num_decoder_layers", chosen_decoder)):
        if not isinstance(numbers, str):
            asked.setdefault(setting, len(numbers))
    config = student_config(model.config, asked, layers=None if isinstance(chosen, str) else chosen)
    made = make_student(model, config, layers=chosen, decoder_layers=chosen_decoder, fresh=fresh, seed=seed)
    settings = {"changes": asked, "layers": layers, "decoder_layers": decoder_layers, "fresh": fresh}
    parents = [parent_of(teacher, role="teacher")]
    with write_artifact(output, kind="model", parents=parents, config=settings, seed=seed, replace=replace) as folder:
        save_model(folder, config, made.state_dict())
        tokenizer.save(folder)
    sizes = {"teacher_parameters": model.config.parameters(), "parameters": config.parameters()}
    text = f"{sizes['parameters']:,} parameters of the teacher's {sizes['teacher_parameters']:,} in {output}"
    show({"folder": str(output), **sizes}, as_json=as_json, text=text)


def _layers(text: str) -> Any:
    """A name of a choice, or numbers."""
    parts = text.split(",")
    return [int(part) for part in parts] if all(part.strip().isdecimal() for part in parts) else text


def _settings(changes: list[str]) -> dict[str, Any]:
    """The mapping that `key=value` makes, as in the overrides of a recipe."""
    from trivium.marked_yaml import apply_overrides, node_from

    tree = node_from({}, where="student")
    apply_overrides(tree, changes, shorthand={})
    settings: dict[str, Any] = tree.plain()
    return settings
