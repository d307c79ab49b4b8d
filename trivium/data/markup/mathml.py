"""MathML as TeX, for formulas inside papers and books."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from trivium.data.markup.xml import name, text_of

if TYPE_CHECKING:
    from lxml.etree import _Element

_ROWS = {"mrow", "math", "mstyle", "mpadded", "mphantom", "menclose", "semantics", "mtd", "merror", "mtable", "mtr"}
_SHAPES: dict[str, Callable[[Sequence[str]], str]] = {
    "msup": lambda parts: f"{_base(parts[0])}^{_group(parts[1])}",
    "msub": lambda parts: f"{_base(parts[0])}_{_group(parts[1])}",
    "msubsup": lambda parts: f"{_base(parts[0])}_{_group(parts[1])}^{_group(parts[2])}",
    "munder": lambda parts: f"{_base(parts[0])}_{_group(parts[1])}",
    "mover": lambda parts: f"{_base(parts[0])}^{_group(parts[1])}",
    "munderover": lambda parts: f"{_base(parts[0])}_{_group(parts[1])}^{_group(parts[2])}",
    "mfrac": lambda parts: f"\\frac{{{parts[0]}}}{{{parts[1]}}}",
    "mroot": lambda parts: f"\\sqrt[{parts[1]}]{{{parts[0]}}}",
}
_ARGUMENTS = {"msubsup": 3, "munderover": 3}
_FENCES = {"(", ")", "[", "]", "{", "}", "|"}


def tex(element: _Element) -> str:
    """The formula of a `math` element, without dollar signs."""
    return " ".join(_tex(element).split())


def _tex(element: _Element) -> str:
    kind = name(element)
    if kind in ("mi", "mn", "mo", "mtext", "ms"):
        text = text_of(element)
        if kind == "mtext":
            return f"\\text{{{text}}}" if text else " "
        if kind == "mi" and len(text) > 1:
            return f"\\mathrm{{{text}}}"
        return f" {text} " if kind == "mo" and text not in _FENCES else text
    if kind in ("annotation", "annotation-xml", "maligngroup", "malignmark"):
        return ""
    inner = [_tex(part) for part in element if name(part)]
    if kind == "msqrt":
        return f"\\sqrt{{{''.join(inner)}}}"
    if kind == "mfenced":
        return f"{element.get('open', '(')}{', '.join(inner)}{element.get('close', ')')}"
    if kind in _SHAPES and len(inner) == _ARGUMENTS.get(kind, 2):
        return _SHAPES[kind]([part.strip() for part in inner])
    if kind == "mtr":
        return " & ".join(inner) + " \\\\ "
    return "".join(inner) if kind in _ROWS or inner else text_of(element)


def _group(text: str) -> str:
    return text if len(text) == 1 else f"{{{text}}}"


def _base(text: str) -> str:
    return text if len(text) == 1 or text.startswith("\\") or text.isalnum() else f"{{{text}}}"
