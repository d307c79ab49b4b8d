"""The examples inside a Markdown page, and what it takes to run them.

    ```console            commands behind `$ `; the other lines are output, which must appear, in order, with
                          `...` standing for anything; a block of commands alone says nothing about the output
    ```python             run, all blocks of a page in one namespace
    ```<any> title="x"    written to the file x

A comment before a block changes how it is run:

    <!-- smoke: train.steps=2 -->     added to every `trivium train` and `trivium data` command of the block
    <!-- exit: 2 -->                  the code the last command of the block must end with
    <!-- skip: reason -->             not run; the reason is for the reader of the source
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r'^```(?P<language>\w+)?(?: +title="(?P<title>[^"]+)")?[^\n`]*$')
COMMENT = re.compile(r"^<!-- (?P<word>smoke|exit|skip): (?P<value>.+?) -->$")


@dataclass(frozen=True)
class Block:
    """One fenced block: its text, and where it stands."""

    page: Path
    line: int
    language: str
    title: str | None
    text: str
    comments: dict[str, str]

    @property
    def where(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def skipped(self) -> bool:
        return "skip" in self.comments

    def commands(self) -> list[tuple[str, list[str]]]:
        """(command, lines of expected output) of a console block; `\\` at the end of a line continues it."""
        found: list[tuple[str, list[str]]] = []
        continued = False
        for line in self.text.splitlines():
            if continued:
                command, output = found[-1]
                found[-1] = (command.removesuffix("\\") + line.removeprefix("> ").strip(), output)
            elif line.startswith("$ "):
                found.append((line.removeprefix("$ "), []))
            else:
                assert found, f"{self.where}: a console block begins with a command (`$ ...`)"
                found[-1][1].append(line)
                continue
            continued = found[-1][0].endswith("\\")
        return found


def blocks(page: Path) -> Iterator[Block]:
    """All fenced blocks of a page, in order."""
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), 1))
    comments: dict[str, str] = {}
    for number, line in lines:
        if comment := COMMENT.match(line.strip()):
            comments[comment["word"]] = comment["value"]
        elif fence := FENCE.match(line.strip()):
            indent = len(line) - len(line.lstrip())
            inside = []
            for _, content in lines:
                if content.strip() == "```":
                    break
                inside.append(content[indent:])
            text = "\n".join(inside) + "\n"
            yield Block(page, number, fence["language"] or "", fence["title"], text, comments)
            comments = {}
        elif line.strip():
            comments = {}


def matches(expected: list[str], output: str) -> bool:
    """Whether the expected lines appear in the output in this order; `...` stands for anything."""
    wanted = [line.strip() for line in expected if line.strip()]
    if not wanted:
        return True
    pattern = r".*?".join(r".*?".join(map(re.escape, re.split(r" ?\.\.\. ?", line))) for line in wanted)
    return re.search(pattern, output, re.DOTALL) is not None
