"""`trivium data`: read the data of a recipe ahead of training, and see it as the model does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trivium.cli.complete import complete_override, complete_recipe
from trivium.cli.output import Json, show

if TYPE_CHECKING:
    from torch import Tensor

    from trivium.config import ResolvedRecipe
    from trivium.data.batch import Batch
    from trivium.data.dataset import Dataset
    from trivium.recipe import Source
    from trivium.tokenizers.tokenizer import Tokenizer

app = typer.Typer(help="Prepare and inspect training data.", no_args_is_help=True, rich_markup_mode=None)

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
    row: Annotated[int, typer.Option(min=0, help="Which row of the training order.")] = 0,
    model: Annotated[
        Path | None, typer.Option(help="Show this model's loss; default: the recipe's model folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a row as the model sees it.

    For each token: its target, whether it is trained, and its loss under a model.
    """
    from trivium.data.loader import Loader

    resolved = _resolved(recipe, overrides)
    tokenizer = _tokenizer(resolved)
    data, folder = resolved.recipe.data, model or resolved.recipe.model.path
    loader = Loader(
        _open(resolved, data.train, tokenizer),
        rows=1,
        micro_rows=1,
        sequence_length=data.sequence_length,
        packing=data.packing,
        seed=resolved.recipe.seed,
        shuffle=data.shuffle,
    )
    batch = loader.update(row)[0]
    losses = _losses(Path(folder), batch).tolist() if folder is not None else None
    tokens = _tokens(batch, tokenizer, losses)
    result = {"row": row, "samples": list(batch.sample_ids), "lengths": list(batch.layout.lengths), "tokens": tokens}
    show(result, as_json=as_json, text=_table(result))


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


def _losses(folder: Path, batch: Batch) -> Tensor:
    """[T] -log p of each target under a model."""
    import torch

    from trivium.models.folder import load_model

    model = load_model(folder).eval()
    with torch.no_grad():
        logits = model(batch.input_ids, batch.layout).float()
    return torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")


def _tokens(batch: Batch, tokenizer: Tokenizer, losses: list[float] | None) -> list[dict[str, Any]]:
    from trivium.data.batch import IGNORE

    rows: list[dict[str, Any]] = []
    ids, targets = batch.input_ids.tolist(), batch.targets.tolist()
    for sequence, (start, end) in enumerate(batch.layout.spans()):
        for at in range(start, end):
            trained = targets[at] != IGNORE
            rows.append(
                {
                    "sequence": sequence,
                    "position": at - start,
                    "token": tokenizer.decode([ids[at]], skip_special=False),
                    "target": tokenizer.decode([targets[at]], skip_special=False) if trained else None,
                    "trained": trained,
                    "loss": losses[at] if losses is not None and trained else None,
                }
            )
    return rows


def _table(result: dict[str, Any]) -> str:
    tokens = result["tokens"]
    trained = sum(token["trained"] for token in tokens)
    lines = [
        f"row {result['row']}: {len(result['lengths'])} sequences, {len(tokens)} tokens, {trained} of them trained",
        f"{'sequence':>8} {'position':>8}  {'token':20} {'target':20} loss",
    ]
    for token in tokens:
        target = repr(token["target"]) if token["trained"] else "- (not trained)"
        loss = "" if token["loss"] is None else f"{token['loss']:.3f}"
        lines.append(
            f"{token['sequence']:>8} {token['position']:>8}  {token['token']!r:20} {target:20} {loss}".rstrip()
        )
    return "\n".join(lines)
