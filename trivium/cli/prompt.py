"""`trivium prompt`: soft prompts and adapters of one base on a shelf, and soft prompts in words."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from trivium.cli.output import Json, show
from trivium.errors import TriviumError

if TYPE_CHECKING:
    from trivium.inference.model import LanguageModel
    from trivium.inference.readout import Reading

app = typer.Typer(help="Soft prompts: shelves of them, and what they are in words.", no_args_is_help=True)
shelf = typer.Typer(help="Many soft prompts and adapters of one base.", no_args_is_help=True)
app.add_typer(shelf, name="shelf")

ShelfPath = Annotated[Path, typer.Argument(help="The folder of the shelf.", metavar="SHELF")]
Name = Annotated[str, typer.Argument(help="Name of the entry.")]
Base = Annotated[Path | None, typer.Option(help="Folder of the base, for a new shelf or where it has moved.")]


@shelf.command()
def add(
    folder: ShelfPath,
    name: Name,
    adapter: Annotated[Path, typer.Argument(help="A folder of adapters, of ours or of PEFT.")],
    base: Base = None,
    tests: Annotated[Path | None, typer.Option(help="Its test cases: JSON lines with input and expected.")] = None,
    as_json: Json = False,
) -> None:
    """Put an adapter on the shelf, or a new version of one that is there."""
    from trivium.inference.shelf_folder import ShelfFolder

    version = ShelfFolder(folder, base=base).add(name, adapter, tests=tests)
    show({"name": name, "version": version}, as_json=as_json, text=f"{name} is on the shelf, version {version}")


@shelf.command("list")
def list_(folder: ShelfPath, as_json: Json = False) -> None:
    """Show what is on the shelf."""
    from trivium.inference.shelf_folder import ShelfFolder
    from trivium.models.adapter_folder import stored_adapters

    stored, found = ShelfFolder(folder), []
    for name, entry in stored.entries().items():
        place = stored.adapter(name)
        found.append(
            {
                "name": name,
                "kinds": [each.kind for each in stored_adapters(place)],
                "version": entry["version"],
                "versions": entry["versions"],
                "bytes": sum(path.stat().st_size for path in place.rglob("*.safetensors")),
                "tests": len(stored.tests(name)),
            }
        )
    lines = [
        f"{each['name']:20} {'+'.join(each['kinds']):24} {each['bytes'] / 1024:8.1f} KiB  "
        f"version {each['version']} of {len(each['versions'])}  {each['tests']} tests"
        for each in found
    ]
    text = "\n".join([f"base: {stored.base}", *lines])
    show({"base": str(stored.base), "entries": found}, as_json=as_json, text=text)


@shelf.command()
def test(
    folder: ShelfPath,
    name: Annotated[str | None, typer.Argument(help="One entry; default: all.")] = None,
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Run the test cases of the entries, all of them side by side."""
    from trivium.inference.model import load
    from trivium.inference.shelf_folder import ShelfFolder
    from trivium.inference.shelf_tests import run_cases

    stored = ShelfFolder(folder, base=base)
    names = list(stored.entries()) if name is None else [name]
    cases = {each: own for each in names if (own := stored.tests(each))}
    if not cases:
        raise TriviumError("there are no tests", where=folder, value=name, fix="add some: --tests FILE")
    model = load(stored.base)
    for each in cases:
        model.shelf.add(each, stored.adapter(each))
    outcomes = run_cases(model, cases)
    passed = Counter(each.entry for each in outcomes if each.passed)
    lines = [f"{each}: {passed[each]} of {len(own)} tests hold" for each, own in cases.items()]
    lines += [
        f"  {each.entry}: {each.case.input!r}\n    expected {each.case.expected!r}, got {each.got!r}"
        for each in outcomes
        if not each.passed
    ]
    failed = sum(not each.passed for each in outcomes)
    rows = [
        {"entry": each.entry, **asdict_case(each.case), "got": each.got, "passed": each.passed} for each in outcomes
    ]
    result = {"passed": len(outcomes) - failed, "failed": failed, "cases": rows}
    show(result, as_json=as_json, text="\n".join(lines))
    if failed:
        raise TriviumError(f"{failed} of {len(outcomes)} tests fail", where=folder)


def asdict_case(case: object) -> dict[str, object]:
    """A test case as JSON values."""
    from trivium.inference.shelf_folder import Case

    assert isinstance(case, Case)
    return case.model_dump()


@shelf.command()
def remove(folder: ShelfPath, name: Name, as_json: Json = False) -> None:
    """Take an entry off the shelf, with all its versions."""
    from trivium.inference.shelf_folder import ShelfFolder

    ShelfFolder(folder).remove(name)
    show({"removed": name}, as_json=as_json, text=f"{name} is gone")


@shelf.command()
def choose(
    folder: ShelfPath,
    name: Name,
    version: Annotated[int | None, typer.Option(help="Which one; default: the one before.")] = None,
    as_json: Json = False,
) -> None:
    """Go back to an earlier version of an entry, or forth to another."""
    from trivium.inference.shelf_folder import ShelfFolder

    chosen = ShelfFolder(folder).choose(name, version)
    show({"name": name, "version": chosen}, as_json=as_json, text=f"version {chosen} of {name} counts now")


@app.command()
def read(
    adapter: Annotated[Path, typer.Argument(help="The folder of a soft prompt, or a shelf.")],
    name: Annotated[str | None, typer.Option(help="Which entry of a shelf.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Texts, or JSON lines with prompt and completion: what the words are worth there."),
    ] = None,
    base: Base = None,
    top: Annotated[int, typer.Option(help="Tokens to show for each vector.")] = 5,
    measure: Annotated[Literal["cosine", "dot"], typer.Option(help="What is near.")] = "cosine",
    as_json: Json = False,
) -> None:
    """Show the nearest tokens of a soft prompt, and what is lost if it is replaced by them."""
    from trivium.inference.readout import read_examples, read_prompt

    examples = [] if data is None else read_examples(data)
    model, entry = _opened(adapter, name, base)
    reading = read_prompt(model, entry, examples=examples, top=top, measure=measure)
    result = asdict(reading)
    if reading.worth is not None:
        result["worth"]["kept"] = reading.worth.kept
    show(result, as_json=as_json, text=_text(reading))


def _opened(adapter: Path, name: str | None, base: Path | None) -> tuple[LanguageModel, str]:
    """The base, with the one soft prompt on its shelf."""
    from trivium.inference.model import load
    from trivium.inference.shelf_folder import ShelfFolder, is_shelf
    from trivium.models.adapter_folder import find_base

    if is_shelf(adapter):
        stored = ShelfFolder(adapter, base=base)
        if name is None:
            raise TriviumError("which entry?", where=adapter, fix=f"--name, one of {', '.join(stored.entries())}")
        found, adapter = stored.base, stored.adapter(name)
    elif name is not None:
        raise TriviumError("only a shelf has entries", where=adapter, value=name, fix="leave --name out")
    else:
        found = find_base(adapter, base)
    model = load(found)
    model.shelf.add(name or "prompt", adapter)
    return model, name or "prompt"


def _text(reading: Reading) -> str:
    lines = [
        f"{number:3}  " + "  ".join(f"{near.text!r} {near.value:.3f}" for near in nearest)
        for number, nearest in enumerate(reading.nearest)
    ]
    lines.append(f"as a text: {reading.text!r}")
    worth = reading.worth
    if worth is None:
        return "\n".join([*lines, "what these words are worth was not measured: --data FILE"])
    kept = (
        "the soft prompt gains nothing here" if worth.kept is None else f"the words keep {worth.kept:.0%} of the gain"
    )
    lines += [
        f"loss per token over {worth.tokens} tokens: {worth.soft:.4f} with the soft prompt, {worth.words:.4f} with "
        f"these words, {worth.nothing:.4f} with nothing",
        kept,
    ]
    return "\n".join(lines)
