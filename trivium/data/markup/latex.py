r"""LaTeX to plain text: macros of the document expanded, formulas kept as they are written, everything else as words.

Left out: comments, citations, bibliography, index, labels, tables and pictures (their captions stay). Kept: headings
(`## Title`), lists, theorems with their names, footnotes in brackets, formulas (`$...$`, `$$...$$`), code; a reference
is the name of its label in brackets, as pandoc writes it. Linear for any input; pylatexenc reads a quarter of a
megabyte a second and keeps the words of the index.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trivium.data.markup.latex_names import (
    ACCENTS,
    DROPPED_BLOCKS,
    FLOATS,
    LEFT_OUT,
    LETTER_ACCENTS,
    LEVELS,
    MATHS,
    SIGNS,
    SPACES,
    STATEMENTS,
)
from trivium.data.markup.sections import heading, tidy
from trivium.errors import DataError

_COMMENT = re.compile(r"(?<!\\)((?:\\\\)*)%[^\n]*(?:\n[ \t]*(?=\S))?")
_VERBATIM = re.compile(
    r"\\begin\{(verbatim\*?|Verbatim|lstlisting|minted|alltt|comment)\}(.*?)\\end\{\1\}|\\(?:verb|lstinline)\*?([|!+/\"@=#^])(.*?)\3",
    re.DOTALL,
)
_DEFINITION = re.compile(
    r"\\(?:(?:re)?newcommand|providecommand|DeclareRobustCommand)\*?\s*\{?\s*\\([A-Za-z]+)\s*\}?\s*(?:\[(\d)\])?\s*(\[[^\[\]]{0,200}\])?\s*(?=\{)"
    r"|\\[gex]?def\s*\\([A-Za-z]+)((?:#\d)*)\s*(?=\{)"
    r"|\\DeclareMathOperator(\*?)\s*\{?\\([A-Za-z]+)\}?\s*(?=\{)"
)
_OPTIONS = re.compile(r"\A[ \t]*[\[{][^\n]*")
_THEOREM = re.compile(r"\\newtheorem\*?\s*\{([^{}]{1,40})\}\s*(?:\[[^\[\]]{0,40}\])?\s*\{([^{}]{1,60})\}")
_NOT_SIMPLE = re.compile(
    r"\\(?:csname|expandafter|if|else|fi\b|futurelet|let\b|@|catcode|def\b|newcommand|begingroup|global)"
)
_PARAMETER = re.compile(r"#([1-9])")
_NAME = re.compile(r"\\([A-Za-z]+)\s*")
_DOCUMENT = re.compile(r"\\begin\s*\{document\}")
_END = re.compile(r"\\end\s*\{document\}")

_CITATION = re.compile(r"(?:no|full|foot|text|paren|auto|super)?[Cc]ite[A-Za-z]*$")
_REFERENCE = re.compile(r"(?:[A-Za-z]*ref|nameref|[cC]refrange|autoref\*?)$")
_TOKEN = re.compile(
    r"\\(?P<bracket>[\[(])|\$\$|\$|\\(?P<name>[A-Za-z@]+\*?)|\\(?P<sign>[^A-Za-z])|(?P<tie>~)|(?P<dash>---?)|(?P<quote>``|'')"
    r"|(?P<brace>[{}])|(?P<blank>\n[ \t]*\n\s*)|(?P<line>\n[ \t]*)"
)
_MATH_NOISE = re.compile(r"\\(?:label|index|indexdef|nonumber|notag)\b(?:\s*\{[^{}]{0,200}\})?")
_PLACE = re.compile("\ue000(\\d+)\ue001")
_EMPTY = (
    (re.compile(r"^[ \t]+(?!- |\d+\. |[ \t])", re.MULTILINE), ""),
    (re.compile(r"[ \t]*[(\[][\s;,]*[)\]]"), ""),
    (re.compile(r"(?<=\S)[ \t]+([.,;:!?)])(?=\s|$)"), r"\1"),
    (re.compile(r"(?<=\S)[ \t]{2,}"), " "),
)
_MOST = 20_000_000
_COST = 50
"""Characters that may be written by macros, and how many each use counts as besides what it writes."""
_DEPTH = 50
_LONGEST_FORMULA = 20_000
_LONGEST_BLOCK = 200_000


@dataclass(frozen=True)
class Latex:
    """A document: its text, and what its head says."""

    text: str
    title: str = ""
    author: str = ""
    date: str = ""


def plain_text(source: str, where: str | Path) -> Latex:
    """The text of a LaTeX document, or of a part of one."""
    hidden: list[str] = []
    source = _PLACE.sub("", source)
    source = _VERBATIM.sub(lambda match: _hide(match, hidden), source)
    source = _COMMENT.sub(r"\1", source)
    names = {match[1]: match[2] for match in _THEOREM.finditer(source)}
    macros, source = _definitions(source)
    begin = _DOCUMENT.search(source)
    head = source[: begin.start()] if begin else source
    end = _END.search(source, begin.end()) if begin else None
    body = source[begin.end() : end.start() if end else len(source)] if begin else source
    expander = _Expander(macros, where)
    reader = _Reader(expander.expand(body), names, hidden)
    text = reader.read()
    fields = {}
    for name in ("title", "author", "date"):
        found = _field(head, name) or _field(body, name)
        shown = _Reader(expander.expand(found), names, hidden).read() if found else ""
        fields[name] = " ".join(_PLACE.sub(lambda match: hidden[int(match[1])], shown).split())
    for pattern, kept in _EMPTY:
        text = pattern.sub(kept, text)
    text = _PLACE.sub(lambda match: hidden[int(match[1])], tidy(text))
    return Latex(tidy(text), **fields)


def _hide(match: re.Match[str], hidden: list[str]) -> str:
    if match[1] == "comment":
        return ""
    code = match[4] if match[1] is None else _OPTIONS.sub("", match[2]).strip("\n")
    hidden.append(code if match[1] is None else f"\n\n{code}\n\n")
    return f"\ue000{len(hidden) - 1}\ue001"


def _field(text: str, name: str) -> str:
    found = re.search(rf"\\{name}\s*(?:\[[^\[\]]{{0,200}}\])?\s*\{{", text)
    if not found:
        return ""
    end = _closing(text, found.end() - 1, 10_000)
    return "" if end is None else text[found.end() : end]


def _closing(text: str, at: int, limit: int) -> int | None:
    """Where the group that opens at `at` ends; None if not within `limit` characters."""
    depth = 0
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, at, min(len(text), at + limit)):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0 and match[0] == "}":
            return match.start()
    return None


@dataclass(frozen=True)
class _Macro:
    arguments: int
    default: str | None
    body: str


def _definitions(source: str) -> tuple[dict[str, _Macro], str]:
    """The macros of a document, and the document without their definitions."""
    macros: dict[str, _Macro] = {}
    kept: list[str] = []
    at = 0
    while match := _DEFINITION.search(source, at):
        kept.append(source[at : match.start()])
        end = _closing(source, match.end(), 20_000)
        if end is None:
            kept.append(match[0])
            at = match.end()
            continue
        body = source[match.end() + 1 : end]
        name = match[1] or match[4] or match[7]
        if match[7]:
            body = f"\\operatorname{match[6]}{{{body}}}"
        count = int(match[2] or 0) if match[1] else len(match[5] or "") // 2
        if not _NOT_SIMPLE.search(body):
            macros.setdefault(name, _Macro(count, match[3][1:-1] if match[3] else None, body))
        at = end + 1
    kept.append(source[at:])
    return macros, "".join(kept)


def _filled(body: str, values: list[str]) -> str:
    """The body of a macro with its arguments in place."""
    return _PARAMETER.sub(lambda found: values[int(found[1]) - 1] if int(found[1]) <= len(values) else "", body)


class _Expander:
    """Puts the bodies of macros in their places, with an end to it."""

    def __init__(self, macros: dict[str, _Macro], where: str | Path) -> None:
        self._macros = macros
        self._where = where
        self._room = _MOST

    def expand(self, text: str, depth: int = 0) -> str:
        """The text without macros of the document."""
        if not self._macros:
            return text
        kept: list[str] = []
        at = 0
        while match := _NAME.search(text, at):
            macro = self._macros.get(match[1])
            kept.append(text[at : match.start() if macro else match.end()])
            at = match.end()
            if macro is None:
                continue
            values, at = self._arguments(text, match, macro)
            body = macro.body
            if macro.arguments:
                body = _filled(body, values)
            self._room -= len(body) + _COST
            if depth >= 20 or self._room < 0:
                raise DataError(
                    "the macros of the document expand without end",
                    where=self._where,
                    value=f"\\{match[1]}",
                    fix="check the definition of this macro: it must not contain itself",
                )
            kept.append(self.expand(body, depth + 1) if "\\" in body else body)
            if at < len(text) and not macro.arguments and text[at].isalpha() and match[0][-1:].isspace():
                kept.append(" ")
        kept.append(text[at:])
        return "".join(kept)

    @staticmethod
    def _arguments(text: str, match: re.Match[str], macro: _Macro) -> tuple[list[str], int]:
        at = match.end() if macro.arguments else match.end() - (len(match[0]) - len(match[0].rstrip()))
        values: list[str] = []
        if macro.default is not None and macro.arguments:
            bracket = text.find("]", at, at + 1000) if text[at : at + 1] == "[" else -1
            values.append(text[at + 1 : bracket] if bracket > 0 else macro.default)
            at = bracket + 1 if bracket > 0 else at
        while len(values) < macro.arguments and at < len(text):
            while at < len(text) and text[at] in " \t\n":
                at += 1
            end = _closing(text, at, 10_000) if text[at : at + 1] == "{" else None
            values.append(text[at + 1 : end] if end is not None else text[at : at + 1])
            at = at + 1 if end is None else end + 1
        return values, at


@dataclass
class _Reader:
    """One pass over a text without macros of its own."""

    text: str
    names: dict[str, str]
    hidden: list[str]
    closing: dict[int, int] = field(default_factory=dict)
    lists: list[list[int | str]] = field(default_factory=list)
    top: int = 1
    seen: dict[str, int] = field(default_factory=dict)
    closes: dict[str, re.Match[str] | None] = field(default_factory=dict)

    def read(self) -> str:
        """All of it as plain text."""
        opened: list[int] = []
        for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(self.text):
            if match[0] == "{":
                opened.append(match.start())
            elif match[0] == "}" and opened:
                self.closing[opened.pop()] = match.start()
        used = [level for name, level in LEVELS.items() if re.search(rf"\\{name}\b\*?\s*[\[{{]", self.text)]
        self.top = min(used, default=2)
        return "".join(self._parts(0, len(self.text), 0))

    def _parts(self, at: int, end: int, depth: int) -> Iterator[str]:
        while match := _TOKEN.search(self.text, at, end):
            yield self.text[at : match.start()]
            at = match.end()
            if match["bracket"] or match[0] in ("$", "$$"):
                shown, at = self._math(match, end)
                yield shown
            elif match["name"]:
                shown, at = self._command(match["name"], at, end, depth)
                yield shown
            elif match["sign"]:
                shown, at = self._sign(match["sign"], at)
                yield shown
            elif match["quote"]:
                yield "“" if match["quote"] == "``" else "”"
            else:
                yield "\n\n" if match["blank"] else "" if match["brace"] else {"--": "–", "---": "—"}.get(match[0], " ")  # noqa: RUF001
        yield self.text[at:end]

    def _math(self, match: re.Match[str], end: int) -> tuple[str, int]:
        mark = {"[": "\\]", "(": "\\)"}.get(match["bracket"] or "", match[0])
        close = self._next(mark, match.end())
        if close < 0 or close + len(mark) > min(end, match.end() + _LONGEST_FORMULA):
            return match[0], match.end()
        content = " ".join(_MATH_NOISE.sub("", self.text[match.end() : close]).split())
        sign = "$$" if mark in ("$$", "\\]") else "$"
        place = self._place(f"{sign}{content}{sign}")
        return (f"\n{place}\n" if sign == "$$" else place), close + len(mark)

    def _next(self, mark: str, at: int) -> int:
        """Where this mark stands next, without looking twice at the same text; -1 for nowhere."""
        known = self.seen.get(mark, 0)
        if known == -1 or known >= at:
            return known
        found = self.text.find(mark, at)
        while mark == "$" and found > 0 and self.text[found - 1] == "\\":
            found = self.text.find(mark, found + 1)
        self.seen[mark] = found
        return found

    def _close(self, name: str, at: int) -> re.Match[str] | None:
        """Where a block of this name ends next, without looking twice at the same text."""
        if name in self.closes:
            known = self.closes[name]
            if known is None or known.start() >= at:
                return known
        found = re.compile(rf"\\end\s*\{{{re.escape(name)}\*?\}}").search(self.text, at)
        self.closes[name] = found
        return found

    def _place(self, formula: str) -> str:
        """What stands for a formula until the words around it are tidy."""
        self.hidden.append(formula)
        return f"\ue000{len(self.hidden) - 1}\ue001"

    def _sign(self, sign: str, at: int) -> tuple[str, int]:
        if sign in ACCENTS:
            letter, at = self._letter(at)
            return unicodedata.normalize("NFC", letter[:1] + ACCENTS[sign] + letter[1:]) if letter else "", at
        if sign == "\\":
            found = re.compile(r"\*?\s*(?:\[[^\[\]\n]{0,20}\])?").match(self.text, at)
            return "\n", found.end() if found else at
        return SPACES.get(sign, sign), at

    def _letter(self, at: int) -> tuple[str, int]:
        if self.text[at : at + 1] == "{" and at in self.closing and self.closing[at] - at < 6:
            inside = self.text[at + 1 : self.closing[at]]
            return SIGNS.get(inside.lstrip("\\"), inside), self.closing[at] + 1
        found = re.compile(r"\\([ij])\b\s*|(\w)").match(self.text, at)
        return (found[1] or found[2], found.end()) if found else ("", at)

    def _options(self, at: int) -> int:
        """Past the optional arguments that stand here."""
        found = re.compile(r"\s*(?:\[[^\[\]]{0,500}(?:\[[^\[\]]{0,200}\][^\[\]]{0,200})?\]\s*)+").match(self.text, at)
        return found.end() if found else at

    def _argument(self, at: int) -> tuple[int, int] | None:
        """(begin, end) of the content of the group that stands here, after white space."""
        while at < len(self.text) and self.text[at] in " \t\n":
            at += 1
        end = self.closing.get(at)
        return None if end is None or self.text[at] != "{" else (at + 1, end)

    def _inner(self, at: int, end: int, depth: int) -> str:
        return "".join(self._parts(at, end, depth + 1)) if depth < _DEPTH else self.text[at:end]

    def _command(self, name: str, at: int, end: int, depth: int) -> tuple[str, int]:
        base = name.rstrip("*")
        if base in ("begin", "end"):
            return self._environment(base, at, end, depth)
        if base in LEVELS:
            return self._heading(base, self._options(at), depth)
        if base == "item":
            return self._item(at, depth)
        if base in SIGNS and not (base in self.names or (base == "eg" and self._argument(at))):
            after = re.compile(r"\{\}|[ \t]+(?=\w)" if len(base) < 3 else r"\{\}").match(self.text, at)
            return SIGNS[base], after.end() if after else at
        if base in LETTER_ACCENTS and (argument := self._argument(at)):
            letter = self.text[slice(*argument)]
            return unicodedata.normalize("NFC", letter[:1] + LETTER_ACCENTS[base] + letter[1:]), argument[1] + 1
        at = self._options(at)
        dropped = 9 if _CITATION.match(base) else LEFT_OUT.get(base, int(base.startswith("index")))
        argument = self._argument(at)
        if _REFERENCE.match(base) and argument and base != "href":
            return f"[{self.text[slice(*argument)]}]", argument[1] + 1
        shown = []
        while argument:
            at = self._options(argument[1] + 1) if dropped > 1 else argument[1] + 1
            if dropped > 0:
                dropped -= 1
            else:
                shown.append(self._inner(*argument, depth))
            argument = self._argument(at) if self.text[at : at + 1] == "{" else None
        text = shown[0] if base == "texorpdfstring" and shown else " ".join(shown)
        if not shown and self.text[at : at + 1] in (" ", "\n", ""):
            return "", at
        return (f" ({text.strip()})" if base in ("footnote", "footnotetext") and text else text), at

    def _heading(self, name: str, at: int, depth: int) -> tuple[str, int]:
        argument = self._argument(at)
        if argument is None:
            return "", at
        title = " ".join(self._inner(*argument, depth).split())
        return (f"\n\n{heading(2 + LEVELS[name] - self.top, title)}\n\n" if title else ""), argument[1] + 1

    def _item(self, at: int, depth: int) -> tuple[str, int]:
        label = re.compile(r"\s*\[([^\[\]\n]{0,200})\]").match(self.text, at)
        bullet = "- "
        if self.lists and self.lists[-1][0] == "enumerate":
            self.lists[-1][1] = int(self.lists[-1][1]) + 1
            bullet = f"{self.lists[-1][1]}. "
        indent = "  " * (len(self.lists) - 1)
        if not label:
            found = re.compile(r"\s*").match(self.text, at)
            return f"\n{indent}{bullet}", found.end() if found else at
        return f"\n{indent}- {self._inner(label.start(1), label.end(1), depth)} ", label.end()

    def _environment(self, kind: str, at: int, end: int, depth: int) -> tuple[str, int]:
        argument = self._argument(at)
        if argument is None:
            return "", at
        name = self.text[slice(*argument)].strip().rstrip("*")
        at = argument[1] + 1
        if kind == "end":
            if name in ("itemize", "enumerate", "description") and self.lists:
                self.lists.pop()
            return "\n\n" if name in self.names or name in STATEMENTS or name in ("itemize", "enumerate") else "\n", at
        if name in MATHS or name in DROPPED_BLOCKS or name in FLOATS:
            return self._skipped(name, at, end, depth)
        if name in ("itemize", "enumerate", "description"):
            self.lists.append([name, 0])
            return "\n", self._options(at)
        if name == "abstract":
            return f"\n\n{heading(2, 'Abstract')}\n\n", at
        called = self.names.get(name) or STATEMENTS.get(name)
        title = re.compile(r"\s*\[([^\[\]\n]{1,200})\]").match(self.text, at)
        if called and title:
            return f"\n\n{called} ({self._inner(title.start(1), title.end(1), depth).strip()}). ", title.end()
        return (f"\n\n{called}. " if called else "\n"), self._options(at)

    def _skipped(self, name: str, at: int, end: int, depth: int) -> tuple[str, int]:
        """A block that is kept as a formula, or of which only the caption is kept."""
        close = self._close(name, at)
        if close is None or close.end() > min(end, at + _LONGEST_BLOCK):
            return "", at
        if name in MATHS:
            content = " ".join(_MATH_NOISE.sub("", self.text[at : close.start()]).split())
            if "&" in content or "\\\\" in content:
                content = f"\\begin{{aligned}} {content} \\end{{aligned}}"
            return f"\n{self._place(f'$${content}$$')}\n", close.end()
        caption = re.compile(r"\\caption\*?\s*(?:\[[^\[\]]{0,200}\])?\s*(?=\{)").search(self.text, at, close.start())
        argument = self._argument(caption.end()) if caption and name in FLOATS else None
        return (f"\n\n{self._inner(*argument, depth)}\n\n" if argument else ""), close.end()
