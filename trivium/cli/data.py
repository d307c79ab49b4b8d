"""`trivium data`: read the data of a recipe ahead of training, and see it as the model does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trivium.cli.complete import complete_override, complete_recipe
from trivium.cli.data_audit import audit
from trivium.cli.data_augment import augment
from trivium.cli.data_classifier import classifier
from trivium.cli.data_cloze import cloze
from trivium.cli.data_convert import convert
from trivium.cli.data_crawl import crawl
from trivium.cli.data_look import look
from trivium.cli.data_run import run
from trivium.cli.data_seal import seal
from trivium.cli.data_validate import validate
from trivium.cli.data_why import why
from trivium.cli.output import Json, show
from trivium.errors import ConfigError, DataError

if TYPE_CHECKING:
    from trivium.config import ResolvedRecipe
    from trivium.data.dataset import Dataset
    from trivium.models.transformer import Transformer
    from trivium.recipe import Source
    from trivium.tokenizers.tokenizer import Tokenizer

app = typer.Typer(help="Prepare and inspect training data.", no_args_is_help=True, rich_markup_mode=None)
app.command()(run)
app.command()(why)
app.command()(seal)
app.command()(audit)
app.command()(classifier)
app.command()(augment)
app.command()(convert)
app.command()(look)
app.command()(crawl)
app.command()(validate)
app.command()(cloze)

RecipePath = Annotated[Path, typer.Argument(help="A YAML file, see recipes/.", autocompletion=complete_recipe)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes to it.", autocompletion=complete_override, metavar="[OVERRIDES]...")
]


@app.command()
def prepare(recipe: RecipePath, overrides: Overrides = None, as_json: Json = False) -> None:
    """Read and check the data of a recipe.

    Tokenises it for training and says what is in it.
    """
    import json

    resolved = _resolved(recipe, overrides)
    tokenizer = _tokenizer(resolved)
    data = resolved.recipe.data
    result = {
        split: _open(resolved, sources, tokenizer).summary()
        for split, sources in (("train", data.train), ("validation", data.validation))
        if sources
    }
    show(result, as_json=as_json, text=json.dumps(result, indent=1, ensure_ascii=False, default=str))


@app.command()
def inspect(
    recipe: RecipePath,
    overrides: Overrides = None,
    first: Annotated[int, typer.Option(min=0, help="Number of the first sample to show.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="How many samples to show.")] = 1,
    model: Annotated[
        Path | None, typer.Option(help="Show this model's loss; default: the recipe's model folder.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with coloured tokens instead.")] = None,
    text: Annotated[bool, typer.Option("--text", help="Show running text with the trained tokens coloured.")] = False,
    explain: Annotated[
        str | None, typer.Option(help="Show one update on this sentence, or row as JSON, instead of samples.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show samples as the model sees them.

    For each token: its target, whether it is trained, and its loss under a model. With --explain: what the method of
    the recipe makes of one sentence (inputs, targets, probabilities, loss), and what one update changes.
    """
    if explain is not None:
        _explain(_resolved(recipe, overrides), explain, model, html, as_json)
        return
    from trivium.data.inspect import inspect_rows, print_rows, print_text, rows_as_html, rows_as_json

    resolved = _resolved(recipe, overrides)
    _refuse_open_targets(resolved)
    tokenizer = _tokenizer(resolved)
    folder = model or resolved.recipe.model.path
    dataset = _open(resolved, resolved.recipe.data.train, tokenizer)
    if first >= len(dataset):
        raise DataError("there is no such sample", value=first, fix=f"the numbers are 0 to {len(dataset) - 1}")
    rows = inspect_rows(dataset, tokenizer, model=_model(folder), count=count, first=first)
    if html is not None:
        from trivium.artifacts.writer import write_file

        write_file(html, rows_as_html(rows))
    elif as_json:
        show({"samples": rows_as_json(rows)}, as_json=True, text="")
    else:
        from rich.console import Console

        print_text(rows, Console(), tokenizer=tokenizer) if text else print_rows(rows, Console())


def _refuse_open_targets(resolved: ResolvedRecipe) -> None:
    """Next tokens would be shown where a method hides others in each epoch."""
    method = resolved.method.cls(resolved.method.config)
    if method.data_kind == "documents" and method.example is not None:
        raise ConfigError(
            "this method makes inputs and targets of its own from each text, others in each epoch",
            where="method.name",
            value=resolved.method.name,
            fix='see what it makes of a sentence: trivium data inspect RECIPE --explain "..."',
        )


def _explain(resolved: ResolvedRecipe, text: str, model: Path | None, page: Path | None, as_json: bool) -> None:
    from trivium.drivers.explain import explain, explanation_as_html, print_explanation

    found = explain(resolved.recipe, text, model=model)
    if page is not None:
        from trivium.artifacts.writer import write_file

        write_file(page, explanation_as_html(found))
    elif as_json:
        show(found.as_dict(), as_json=True, text="")
    else:
        from rich.console import Console

        print_explanation(found, Console())


def _model(folder: str | Path | None) -> Transformer | None:
    """The model whose loss is shown; only a decoder predicts the next token of a sequence that stands alone."""
    from trivium.models.folder import load_model, read_config

    return None if folder is None or read_config(folder).kind != "decoder" else load_model(folder)


def _resolved(recipe: Path, overrides: list[str] | None) -> ResolvedRecipe:
    from trivium.combinations import missing_things
    from trivium.config import resolve
    from trivium.problems import raise_first

    resolved = resolve(recipe, overrides or [])
    raise_first(missing_things(resolved))
    return resolved


def _tokenizer(resolved: ResolvedRecipe) -> Tokenizer:
    from trivium.tokenizers.tokenizer import Tokenizer

    return Tokenizer.load(resolved.recipe.tokenizer or str(resolved.recipe.model.path))


def _open(resolved: ResolvedRecipe, sources: list[Source], tokenizer: Tokenizer) -> Dataset:
    from trivium.data.dataset import open_dataset

    recipe = resolved.recipe
    cache = Path(recipe.runs) / ".cache"
    kind = resolved.method.cls.data_kind
    return open_dataset(sources, kind=kind, tokenizer=tokenizer, settings=recipe.data, cache=cache)
