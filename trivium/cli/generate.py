"""`trivium generate`: text from a model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from trivium.errors import TriviumError

if TYPE_CHECKING:
    from trivium.inference.model import Generation, LanguageModel, Options, Prompt
    from trivium.inference.remote import RemoteAnswer, RemoteModel

Model = Annotated[Path, typer.Argument(help="A model folder.")]
AnyModel = Annotated[str, typer.Argument(help="A model folder, or URL#NAME of an OpenAI-style server.")]
MaxNewTokens = Annotated[int | None, typer.Option(help="Longest answer in tokens.")]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy; default: as the model folder says, else 1.")]
TopK = Annotated[int | None, typer.Option(help="Draw from the k most likely tokens only.")]
TopP = Annotated[float | None, typer.Option(help="Draw from the most likely tokens that together have this share.")]
MinP = Annotated[float | None, typer.Option(help="Leave out tokens below this share of the most likely one.")]
Repetition = Annotated[float | None, typer.Option(help="Above 1: tokens that occurred become less likely.")]
NoRepeat = Annotated[int | None, typer.Option("--no-repeat-ngram-size", help="No run of N tokens occurs twice.")]
MinNewTokens = Annotated[int | None, typer.Option(help="Shortest answer in tokens.")]
Search = "Beam search"
NumBeams = Annotated[int | None, typer.Option(help="Beginnings followed side by side.", rich_help_panel=Search)]
LengthPenalty = Annotated[
    float | None, typer.Option(help="Above 0 favours long answers, below 0 short ones.", rich_help_panel=Search)
]
EarlyStopping = Annotated[
    str | None, typer.Option(help="true, false or never: when to stop searching.", rich_help_panel=Search)
]
BeamGroups = Annotated[
    int | None, typer.Option("--num-beam-groups", help="Groups of beams that keep apart.", rich_help_panel=Search)
]
Diversity = Annotated[
    float | None,
    typer.Option("--diversity-penalty", help="What a token of an earlier group costs.", rich_help_panel=Search),
]
Stop = Annotated[list[str] | None, typer.Option(help="Text at which to stop; may be given several times.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same answer.")]
Adapter = Annotated[
    list[str] | None,
    typer.Option(help="An entry of a shelf, or a folder of adapters of this base; one, or one for each prompt."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default: as stored.")]
Lookup = Annotated[
    int | None, typer.Option(help="Guess so many tokens at a time from the text: the same answer, sooner.")
]
Weights = Annotated[str | None, typer.Option(help="int8: faster on a CPU, and a little less exact.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: all cores.")]
BaseFolder = Annotated[Path | None, typer.Option("--base", help="Of adapters: where their base lies, if it was moved.")]


def generate(
    model: AnyModel,
    prompt: Annotated[
        str | None, typer.Argument(help="The text to continue or to turn into another; default, or -: standard input.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="Many prompts: one on each line; empty lines are skipped.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Prompts are questions to a tuned model.")] = False,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Repetition = None,
    no_repeat_ngram_size: NoRepeat = None,
    min_new_tokens: MinNewTokens = None,
    prefix: Annotated[str | None, typer.Option(help="What the answer of an encoder-decoder begins with.")] = None,
    stop: Stop = None,
    seed: Seed = None,
    n: Annotated[int, typer.Option("--n", "-n", help="Answers to each prompt.")] = 1,
    num_beams: NumBeams = None,
    length_penalty: LengthPenalty = None,
    early_stopping: EarlyStopping = None,
    num_beam_groups: BeamGroups = None,
    diversity_penalty: Diversity = None,
    adapter: Adapter = None,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Print the answer when it is finished.")] = False,
    device: Device = "auto",
    dtype: Dtype = None,
    weights: Weights = None,
    lookup: Lookup = None,
    threads: Threads = None,
    base: BaseFolder = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line for each answer.")] = False,
) -> None:
    """Continue a text, answer a question, or turn a text into another one."""
    texts = _texts(prompt, file)
    options: Options = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "min_new_tokens": min_new_tokens,
        "prefix": prefix,
        "stop": stop,
        "seed": seed,
        "num_beams": num_beams,
        "length_penalty": length_penalty,
        "early_stopping": _early_stopping(early_stopping),
        "num_beam_groups": num_beam_groups,
        "diversity_penalty": diversity_penalty,
        "lookup": lookup,
    }
    prompts: list[Prompt] = [[{"role": "user", "content": text}] if chat else text for text in texts.values()]
    loaded = _any_model(model, device=device, dtype=dtype, threads=threads, base=base, weights=weights)
    options["adapter"] = _adapters(loaded, adapter or [])
    if len(prompts) == 1 and n == 1 and not (as_json or no_stream) and hasattr(loaded, "stream"):
        for piece in loaded.stream(prompts[0], **options):
            typer.echo(piece, nl=False)
        typer.echo()
        return
    with _named(list(texts)):
        answers = loaded.answers(prompts, n=n, **options)
    _print(answers, list(texts.values()), n, as_json=as_json)


def _adapters(loaded: LanguageModel | RemoteModel, names: Sequence[str]) -> str | list[str | None] | None:
    """The entries that prompts are answered under; a folder becomes one."""
    if not names:
        return None
    shelf = getattr(loaded, "shelf", None)
    if shelf is None:
        raise TriviumError("the model of a server has no shelf here", where="--adapter", value=names[0])
    entries: dict[str, str] = {}
    for name in names:
        if name in shelf or name in entries:
            entries.setdefault(name, name)
        elif Path(name).is_dir():
            entries[name] = f"folder{len(entries)}"
            shelf.add(entries[name], name)
        else:
            known = ", ".join(entry.name for entry in shelf.entries())
            fix = f"name one of {known}, or a folder" if known else "name a folder of adapters"
            raise TriviumError("there is no such adapter", where="--adapter", value=name, fix=fix)
    return entries[names[0]] if len(names) == 1 else [entries[name] for name in names]


def _print(answers: Iterator[Generation | RemoteAnswer], texts: Sequence[str], n: int, *, as_json: bool) -> None:
    """The `n` answers to each text, one text after the other."""
    for number, answer in enumerate(answers):
        text = texts[number // n]
        if as_json:
            typer.echo(json.dumps({"prompt": text, **asdict(answer)}, ensure_ascii=False))
            continue
        if len(texts) * n > 1:
            sample = f", answer {answer.sample + 1} of {n}" if n > 1 else ""
            typer.echo(f"--- {_shortened(text)}{sample} ---")
        typer.echo(answer.text)


def _early_stopping(text: str | None) -> bool | Literal["never"] | None:
    if text is None:
        return None
    meanings: dict[str, bool | Literal["never"]] = {"true": True, "false": False, "never": "never"}
    if text.lower() not in meanings:
        raise TriviumError(
            "early_stopping cannot have this value", where="--early-stopping", value=text, fix="true, false or never"
        )
    return meanings[text.lower()]


def _any_model(
    place: str, *, device: str, dtype: str | None, threads: int | None, base: Path | None, weights: str | None
) -> LanguageModel | RemoteModel:
    """The model of a server, or of a folder."""
    from trivium.inference.remote import RemoteModel, is_remote

    if is_remote(place):
        if weights is not None:
            raise TriviumError("--weights has no effect on the model of a server", value=weights, fix="leave it out")
        return RemoteModel(place)
    return open_model(Path(place), device=device, dtype=dtype, threads=threads, base=base, weights=weights)


def open_model(
    folder: Path,
    *,
    device: str,
    dtype: str | None,
    threads: int | None,
    base: Path | None = None,
    weights: str | None = None,
) -> LanguageModel:
    """Loads a model; what it warns of is said in one line each."""
    import warnings

    from trivium.inference.model import load

    with warnings.catch_warnings(record=True) as caught:
        model = load(folder, device=device, dtype=dtype, threads=threads, base=base, weights=weights)
    for warning in caught:
        typer.echo(f"note: {warning.message}", err=True)
    return model


def _texts(prompt: str | None, file: Path | None) -> dict[str, str]:
    """Place of each prompt (for messages) -> its text."""
    if prompt is not None and file is not None:
        raise TriviumError("there are two sources of prompts", value=prompt, fix="give a prompt or --file, not both")
    if file is not None:
        lines = _read(file).splitlines()
        texts = {f"{file}:{number}": line for number, line in enumerate(lines, 1) if line.strip()}
        if not texts:
            raise TriviumError("the file holds no prompt", where=file, fix="write one prompt on each line")
        return texts
    if prompt not in (None, "-"):
        return {"prompt": str(prompt)}
    if prompt is None and sys.stdin.isatty():
        raise TriviumError("there is no prompt", fix='give one, as in: trivium generate MODEL "def add(a, b):"')
    # A shell ends its output with one newline that nobody means to be part of the text.
    return {"standard input": sys.stdin.read().removesuffix("\n")}


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise TriviumError(
            "the file of prompts cannot be read", where=file, value=str(error), fix="give a UTF-8 text file"
        ) from None


@contextmanager
def _named(places: list[str]) -> Iterator[None]:
    """Errors name the file and line of a prompt instead of its number."""
    try:
        yield
    except TriviumError as error:
        kind, _, number = (error.where or "").partition(" ")
        if kind == "prompt":
            error.where = places[int(number or 0)]
            error.args = (error.render(),)
        raise


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:59] + "…"
