"""`trivium data cloze`: closed-book questions made of a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.output import Json, show


def cloze(
    corpus: Annotated[list[str], typer.Argument(help="Files or folders of documents.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file of rows to write.")],
    count: Annotated[int, typer.Option(min=1, help="Most questions.")] = 200,
    least_words: Annotated[int, typer.Option(min=1, help="Words of the shortest beginning.")] = 6,
    seed: Annotated[int, typer.Option(help="Draws the sentences.")] = 0,
    as_json: Json = False,
) -> None:
    """Make questions that a model can answer only if it has learnt the corpus.

    Sentences up to a name or a number, as rows of prompt and completion, for `trivium eval`.
    """
    import json

    from trivium.artifacts.writer import write_file
    from trivium.data.cloze import questions
    from trivium.data.intake import Intake
    from trivium.data.reading import read_documents
    from trivium.errors import DataError
    from trivium.recipe import Source

    if output.exists():
        raise DataError("the output is there already", where=output, fix="choose another name, or remove it")
    documents = (document for path in corpus for document in read_documents(Source(path=path), Intake()))
    found = questions(documents, count=count, least_words=least_words, seed=seed)
    write_file(output, "".join(json.dumps(one.as_row(), ensure_ascii=False) + "\n" for one in found))
    answers = len({one.answer for one in found})
    text = f"{len(found)} questions with {answers} different answers in {output}"
    show({"questions": len(found), "answers": answers, "output": str(output)}, as_json=as_json, text=text)
