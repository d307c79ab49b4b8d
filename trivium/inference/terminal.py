"""A conversation in the terminal, or through a pipe: one line is one message, answers are written as they appear."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Unpack

from trivium.errors import TokenizerError, TriviumError
from trivium.inference.model import Generation, LanguageModel, Options, Stream
from trivium.nearest import nearest

COMMANDS = {
    "/reset": "forget the conversation, keep the system message",
    "/system": "TEXT: set the system message; without a text, show it",
    "/save": "FILE: write the conversation as one line of training data",
    "/help": "show this",
    "/exit": "leave; so does Ctrl-D",
}


class Conversation:
    """The messages so far, and the model that answers them."""

    def __init__(self, model: LanguageModel, *, system: str | None = None, options: Options | None = None) -> None:
        try:
            _ = model.tokenizer.chat_template
        except TokenizerError as error:
            raise TokenizerError(
                error.problem,
                where=error.where,
                fix="continue text with `trivium generate`, or tune the model on conversations first (method sft)",
            ) from None
        self.model = model
        self.system = system
        self.turns: list[dict[str, str]] = []
        self.options: Options = options or {}
        self.last: Generation | None = None
        """The newest answer."""
        self._saved: set[Path] = set()

    @property
    def messages(self) -> list[dict[str, str]]:
        """All messages, the system's first."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]

    def ask(self, text: str) -> Iterator[str]:
        """The pieces of the answer; afterwards question and answer belong to the conversation.

        A question that cannot be answered, and one whose answer was stopped before its first word, is forgotten.
        """
        question = {"role": "user", "content": text}
        stream = self.model.stream([*self.messages, question], **self.options)
        return self._remember(question, stream)

    def _remember(self, question: dict[str, str], stream: Stream) -> Iterator[str]:
        yield from stream
        self.last = stream.result
        if self.last.text or self.last.finish_reason != "cancelled":
            self.turns += [question, {"role": "assistant", "content": self.last.text}]

    def save(self, path: Path) -> None:
        """Writes {"messages": [...]}; a file from before this conversation is not touched."""
        from trivium.artifacts.writer import write_file

        if path.exists() and path not in self._saved:
            raise TriviumError("the file exists already", where=path, fix="give another name")
        write_file(path, json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n")
        self._saved.add(path)


def converse(model: LanguageModel, *, system: str | None = None, **options: Unpack[Options]) -> None:
    """Reads messages from the standard input until its end and writes the answers to the standard output.

    On a terminal an error is shown and the conversation goes on; through a pipe it ends the program.
    """
    stopped = threading.Event()
    settings: Options = {**options, "should_stop": stopped.is_set}
    conversation = Conversation(model, system=system, options=settings)
    interactive = sys.stdin.isatty()
    if interactive:
        _say("one line is one message; /help shows the commands, Ctrl-C stops an answer, Ctrl-D leaves")
    for line in _typed() if interactive else sys.stdin:
        try:
            if not _handle(conversation, line.strip(), stopped):
                return
        except TriviumError as error:
            if not interactive:
                raise
            _say(str(error))
        except KeyboardInterrupt:
            if not interactive:
                raise
            _say("interrupted")


def _handle(conversation: Conversation, line: str, stopped: threading.Event) -> bool:
    """Answers a message or obeys a command; False if that was the last one."""
    if line.startswith("/") and not line.startswith("//"):
        return _obey(conversation, *line.split(maxsplit=1))
    text = line[1:] if line.startswith("//") else line
    if text:
        with _interruptible(stopped):
            for piece in conversation.ask(text):
                sys.stdout.write(piece)
                sys.stdout.flush()
        sys.stdout.write("\n")
        sys.stdout.flush()
        if conversation.last and conversation.last.finish_reason == "length":
            _say(f"[cut off after {len(conversation.last.ids)} tokens; --max-new-tokens allows more]")
    return True


def _obey(conversation: Conversation, command: str, rest: str = "") -> bool:
    if command == "/exit":
        return False
    if command == "/reset":
        conversation.turns.clear()
        _say("the conversation is empty")
    elif command == "/system" and rest:
        conversation.system = rest
    elif command == "/system":
        _say(conversation.system or "there is no system message")
    elif command == "/save":
        if not rest:
            raise TriviumError("the command needs a file name", where="/save", fix="/save conversation.jsonl")
        conversation.save(Path(rest).expanduser())
        _say(f"saved {len(conversation.messages)} messages to {rest}")
    elif command == "/help":
        _say("\n".join(f"{name:8} {help}" for name, help in COMMANDS.items()))
    else:
        near = nearest(command, COMMANDS)
        raise TriviumError(
            "unknown command",
            value=command,
            fix=(f"did you mean {near}? " if near else "/help shows the commands; ") + "two slashes begin a message",
        )
    return True


def _typed() -> Iterator[str]:
    """Lines typed at the prompt. Ctrl-C drops a half-written line, twice in a row leaves."""
    with suppress(ImportError):
        import readline  # noqa: F401 - gives input() history and editing
    warned = False
    while True:
        try:
            with _awake():
                line = input("> ")
            yield line
        except EOFError:
            _say("")
            return
        except KeyboardInterrupt:
            if warned:
                return
            warned = True
            _say("\nCtrl-C again, Ctrl-D or /exit leaves")
        else:
            warned = False


@contextmanager
def _awake() -> Iterator[None]:
    """Wakes the waiting for a key four times a second.

    readline looks for a Ctrl-C only when its waiting is disturbed; one that came just before the waiting began would
    be noticed with the next key.
    """
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.25, 0.25)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _interruptible(stopped: threading.Event) -> Iterator[None]:
    """The first Ctrl-C inside sets `stopped`, which ends the answer; a second one does not wait for the next token."""
    stopped.clear()

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        stopped.set()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _say(text: str) -> None:
    """Everything that is not an answer goes to stderr."""
    print(text, file=sys.stderr, flush=True)
