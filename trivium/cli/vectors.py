"""`trivium tokenizer vectors`: train word vectors, and look at the neighbours of a word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from trivium.cli.output import Json, show
from trivium.errors import TokenizerError

if TYPE_CHECKING:
    from trivium.tokenizers.vectors import WordVectors
    from trivium.tokenizers.vectors_train import Report, Settings


def vectors(
    sources: Annotated[
        list[str], typer.Argument(help="Documents to train on; without --output a trained file or folder to look into.")
    ],
    output: Annotated[Path | None, typer.Option("--output", help="Train, and write this folder.")] = None,
    architecture: Annotated[
        Literal["skipgram", "cbow"],
        typer.Option(help="Predict each word from each word around it, or (faster) from the mean of them."),
    ] = "skipgram",
    size: Annotated[int, typer.Option(help="Numbers in a vector.")] = 100,
    window: Annotated[int, typer.Option(help="Most words on each side that count as context.")] = 5,
    negatives: Annotated[int, typer.Option(help="Noise words for each prediction.")] = 5,
    min_count: Annotated[int, typer.Option(help="Rarer words get no vector.")] = 5,
    max_words: Annotated[int | None, typer.Option(help="Most words that get a vector; default: no limit.")] = None,
    unknown: Annotated[bool, typer.Option("--unknown", help="A vector, <unk>, for all rarer words together.")] = False,
    lowercase: Annotated[bool, typer.Option("--lowercase", help="Write all words in lower case.")] = False,
    subsample: Annotated[
        float, typer.Option(help="Words above this share of the text are thinned out; 0 for none.")
    ] = 1e-3,
    epochs: Annotated[int, typer.Option(help="Passes over the documents.")] = 5,
    lr: Annotated[float | None, typer.Option(help="First learning rate; default 0.025, or 0.05 for cbow.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: all cores.")] = None,
    nearest: Annotated[
        list[str] | None, typer.Option("--nearest", help="Print the neighbours of this word; can be given often.")
    ] = None,
    count: Annotated[int, typer.Option(help="Neighbours to print.")] = 10,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the folder if it holds vectors.")] = False,
    as_json: Json = False,
) -> None:
    """Train word vectors (word2vec), or show the nearest neighbours of words."""
    from trivium.tokenizers.vectors import WordVectors
    from trivium.tokenizers.vectors_train import Settings

    if output is None:
        if not nearest:
            raise TokenizerError(
                "there is nothing to do", fix="--output FOLDER trains on the documents, --nearest WORD shows neighbours"
            )
        if len(sources) != 1:
            raise TokenizerError("neighbours are looked up in one file of vectors", value=" ".join(sources))
        found, result = WordVectors.load(sources[0]), {}
    else:
        settings = Settings(
            architecture=architecture,
            size=size,
            window=window,
            negatives=negatives,
            min_count=min_count,
            max_words=max_words,
            unknown=unknown,
            lowercase=lowercase,
            subsample=subsample,
            epochs=epochs,
            lr=lr,
            seed=seed,
            threads=threads,
        )
        found = _train(sources, output, settings, replace=replace)
        result = {"folder": str(output), **found.facts}
    lines = [f"{len(found)} vectors of {found.size} numbers in {output}"] if output is not None else []
    neighbours = {word: found.nearest(word, count=count) for word in nearest or []}
    for word, near in neighbours.items():
        lines += [f"{word}:", *(f"  {score:6.3f}  {other}" for other, score in near)]
        result.setdefault("nearest", {})[word] = [{"word": other, "cosine": score} for other, score in near]
    show(result, as_json=as_json, text="\n".join(lines))


def _train(sources: list[str], output: Path, settings: Settings, *, replace: bool) -> WordVectors:
    from dataclasses import asdict

    from trivium.artifacts.writer import check_target, make_folder, write_artifact
    from trivium.data.intake import Intake
    from trivium.data.reading import read_documents, source_parent
    from trivium.recipe import Source
    from trivium.tokenizers.vectors_train import train_vectors

    check_target(output, kind="word vectors", replace=replace)
    intake = Intake()
    read = [Source.model_validate({"path": name}) for name in sources]
    texts = (document.text for source in read for document in read_documents(source, intake))
    make_folder(output.resolve().parent)
    with _shown() as progress:
        found = train_vectors(texts, settings=settings, progress=progress, scratch=output.resolve().parent)
    parents = [source_parent(source, "documents") for source in read]
    config = {"sources": sources, **asdict(settings)}
    with write_artifact(
        output, kind="word vectors", parents=parents, config=config, seed=settings.seed, replace=replace
    ) as folder:
        found.save(folder)
    return found


@contextmanager
def _shown() -> Iterator[Report]:
    """First the words read, then the words trained on, each with their pace."""
    import time
    from contextlib import ExitStack

    from trivium.core.progress import Progress

    with ExitStack() as stack:
        lines: dict[bool, tuple[Progress, float]] = {}

        def report(done: int, total: int | None, loss: float | None) -> None:
            known = total is not None
            if known not in lines:
                stack.pop_all().close()
                label = "word vectors" if known else "reading words"
                lines[known] = stack.enter_context(Progress(total, label)), time.perf_counter()
            line, start = lines[known]
            pace: dict[str, Any] = {"words_per_second": done / max(time.perf_counter() - start, 1e-9)}
            line.update(done, loss=loss, **pace)

        yield report
