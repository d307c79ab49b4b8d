"""The command `trivium`: verbs, and how anything that goes wrong is said.

Each verb is a thin function in a file of its own that imports what it needs when it is called, so that `--help`,
completion and a refused recipe never wait for torch. Exit codes: 0 done, 1 a defect of Trivium, 2 wrong input,
3 a damaged artifact, 4 training diverged, 5 interrupted and saved, 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
import typer.core

from trivium import __version__
from trivium.cli import (
    chat,
    compare,
    compress,
    config,
    data,
    doctor,
    eval,
    export,
    generate,
    lineage,
    merge,
    music,
    plan,
    prompt,
    quickstart,
    report,
    schema,
    sweep,
    tokenizer,
    train,
    verify,
)
from trivium.errors import EXIT_DEFECT, EXIT_INPUT, EXIT_OK, TriviumError

_EPILOG = (
    "Exit codes: 0 done, 1 defect, 2 wrong input, 3 damaged artifact, 4 training diverged, "
    "5 interrupted (everything saved), 130 Ctrl-C."
)

_ORDER = ("quickstart", "data", "tokenizer", "train", "sweep", "eval", "generate", "chat", "lineage", "report")
"""Verbs in the order of the work; the others follow."""


class _Verbs(typer.core.TyperGroup):
    """Lists the verbs in the order of the work, not groups after commands."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*_ORDER, *sorted(set(self.commands) - set(_ORDER))]


app = typer.Typer(
    name="trivium",
    cls=_Verbs,
    help="The whole education of a language model: from raw text to a tuned, sampled, reported model.",
    epilog=_EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(quickstart.quickstart)
app.add_typer(data.app, name="data")
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(plan.app, name="plan")
app.command()(train.train)
app.command()(sweep.sweep)
app.command("eval")(eval.evaluate)
app.command()(compare.compare)
app.add_typer(compress.app, name="compress")
app.command()(generate.generate)
app.command()(chat.chat)
app.add_typer(prompt.app, name="prompt")
app.add_typer(music.app, name="music")
app.command()(export.export)
app.command()(merge.merge)
app.command()(lineage.lineage)
app.command()(report.report)
app.command()(verify.verify)
app.command()(doctor.doctor)
app.add_typer(config.app, name="config")
app.command()(schema.schema)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"trivium {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere on the line.")] = False,
) -> None:
    """Options of every verb."""


def main() -> None:
    """Entry point of the command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code."""
    words = list(arguments)
    debug = "--debug" in words or os.environ.get("TRIVIUM_DEBUG") == "1"
    words = [word for word in words if word != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A terminal that cannot show a character gets a question mark, not a crash.
            stream.reconfigure(errors="replace")
    try:
        result = typer.main.get_command(app).main(words, prog_name="trivium", standalone_mode=False)
    except TriviumError as error:
        if debug:
            raise
        _say(str(error))
        return error.exit_code
    except Exception as error:
        if debug:
            raise
        if hasattr(error, "format_message"):
            return _wrong_usage(error, words)
        return _defect(error)
    if result == _CTRL_C:
        _say("interrupted")
    return result if isinstance(result, int) else EXIT_OK


_CTRL_C = 130
"""What Typer returns after KeyboardInterrupt: 128 + SIGINT, as shells count."""


def _say(text: str) -> None:
    """To stderr; what a file made of control characters must not reach the terminal as such."""
    lines = ("".join(c if c.isprintable() else repr(c)[1:-1] for c in line) for line in text.split("\n"))
    typer.echo("\n".join(lines), err=True)


def _wrong_usage(error: Any, words: Sequence[str]) -> int:
    """A verb, option or argument that does not exist or is missing."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(error.format_message())
        return EXIT_OK
    option = getattr(error, "option_name", "").lstrip("-")
    if "." in option:
        fix = f"settings of a recipe have no dashes: {option}=VALUE"
    else:
        fix = f"see '{context.command_path if context is not None else 'trivium'} --help'"
    typed = f"trivium {shlex.join(words)}"
    _say(str(TriviumError(error.format_message().rstrip("."), where=typed, fix=fix)))
    return EXIT_INPUT


def _defect(error: Exception) -> int:
    """Anything unexpected: at most five lines, with the traceback in a file."""
    import tempfile
    import traceback
    from pathlib import Path

    from trivium.artifacts.writer import write_file

    last = traceback.extract_tb(error.__traceback__)[-1]
    path = Path(tempfile.gettempdir()) / f"trivium-traceback-{os.getpid()}.txt"
    try:
        write_file(path, "".join(traceback.format_exception(error)))
        written = str(path)
    except (OSError, TriviumError):
        written = "could not be written; run again with --debug"
    words = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    _say(
        f"Trivium failed: this is a defect of Trivium, not of your input\n"
        f"  error: {words}\n"
        f"  where: {last.filename}:{last.lineno}\n"
        f"  trace: {written}\n"
        f"  fix:   report it with that file; --debug shows the traceback here"
    )
    return EXIT_DEFECT
