"""MediaWiki markup to plain text, in one pass over its marks and one over its lines: linear for any input.

Removed: templates, tables, references, files, categories, galleries, comments. Kept: the text of links, headings
(`## Title`), lists, code, mathematics as `$...$`, and the text of the few templates that stand for words inside a
sentence (`{{lang}}`, `{{convert}}`, `{{nowrap}}`, ...). The general parsers for Python were measured on real pages:
mwparserfromhell takes seconds for a page with a large table, wikitextparser is under the GPL.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field

from trivium.data.markup.sections import heading, tidy, without_empty_sections

FILES = frozenset({"file", "image", "media"})
CATEGORIES = frozenset({"category"})
"""English names of the namespaces whose links are no text; they hold in every language, beside its own names."""

_DEPTH = 60
"""Deeper brackets are text: no page is written like that."""

_KEPT = {"nowiki", "pre", "code", "source", "syntaxhighlight", "math", "chem", "ce"}
_REMOVED = {
    "ref", "gallery", "timeline", "imagemap", "references", "graph", "score", "templatestyles", "hiero", "mapframe",
    "inputbox", "categorytree", "indicator", "templatedata", "style", "maplink", "section", "includeonly",
    "dynamicpagelist",
}  # fmt: skip
_TAG = "|".join(sorted(_KEPT | _REMOVED))
_MARK = re.compile(
    rf"(?P<comment><!--)|<(?P<tag>{_TAG})\b(?P<attributes>[^<>]{{0,2000}}?)(?P<closed>/?)>"
    r"|(?P<open>\{\{|\[\[|^[ \t:]*\{\|)|(?P<close>\}\}|\]\]|^[ \t]*\|\}(?!\}))|(?P<bar>\|)",
    re.IGNORECASE | re.MULTILINE,
)
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z-]{2,10})?$|simple$")
_WIKIS = {
    "wikt",
    "wiktionary",
    "wikisource",
    "wikibooks",
    "wikiquote",
    "commons",
    "meta",
    "species",
    "mw",
    "doi",
    "rfc",
}

_RULE = re.compile(r"^-{4,}", re.MULTILINE)
_SWITCH = re.compile(r"__[A-Z]{3,30}__")
_QUOTES = re.compile(r"'{2,}")
_EXTERNAL = re.compile(
    r"\[(?:https?:|ftps?:|mailto:|news:|irc:)?//[^\s\[\]]{1,2000}[ \t]*([^\[\]\n]{0,2000})\]", re.IGNORECASE
)
_BREAK = re.compile(
    r"<br\b[^<>]{0,200}>|</?(?:p|div|blockquote|center|poem|li|ul|ol|dl|dt|dd|tr|td|th|table)\b[^<>]{0,1000}>",
    re.IGNORECASE,
)
_RAISED = re.compile(r"<(su[bp])\b[^<>]{0,200}>([^<>\n]{1,80})</\1\s*>", re.IGNORECASE)
_ANY_TAG = re.compile(r"</?[a-z][^<>]{0,2000}>", re.IGNORECASE)
_HEADING = re.compile(r"^(={1,6})[ \t]*(.+?)[ \t]*\1[ \t]*$", re.MULTILINE)
_LIST = re.compile(r"^([*#:;]+)[ \t]*(.*)$")
_HOLES = (
    (re.compile(r"\(\s*(?:[,;:]\s*)+"), "("),
    (re.compile(r"(?:\s*[,;])+\s*\)"), ")"),
    (re.compile(r" ?\(\s*\)"), ""),
    (re.compile(r"(?<=\S)[ \t]{2,}"), " "),
    (re.compile(r" +([,.;:!?)])(?=\s|$)"), r"\1"),
)
_PRIVATE = re.compile("[\ue000\ue001]")
_HIDDEN = re.compile("\ue000(\\d+)\ue001")
_UP = str.maketrans("0123456789+-−=()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ⁿ")  # noqa: RUF001
_DOWN = str.maketrans("0123456789+-−=()", "₀₁₂₃₄₅₆₇₈₉₊₋₋₌₍₎")  # noqa: RUF001


def raised(text: str, *, up: bool) -> str:
    """A superscript or subscript in plain text: `10⁵`, `H₂O`, `x^{ab}`."""
    table = _UP if up else _DOWN
    if all(ord(character) in table for character in text):
        return text.translate(table)
    if not text.strip():
        return text
    return ("^" if up else "_") + (f"{{{text}}}" if len(text) > 1 else text)


def plain_text(source: str, *, files: Set[str] = FILES, categories: Set[str] = CATEGORIES) -> str:
    """The text of a page; `files` and `categories` are the names of these namespaces in lower case."""
    hidden: list[str] = []
    text = _without_brackets(_PRIVATE.sub("", source), hidden, files | categories)
    text = _RULE.sub("", _SWITCH.sub("", text))
    text = _EXTERNAL.sub(r"\1", text)
    text = _RAISED.sub(lambda match: raised(match[2], up=match[1].lower() == "sup"), text)
    text = _ANY_TAG.sub("", _BREAK.sub("\n", text))
    text = html.unescape(_QUOTES.sub("", text)).replace("\xa0", " ")
    text = _HEADING.sub(lambda match: heading(len(match[1]), match[2]), _lists(text))
    for pattern, kept in _HOLES:
        text = pattern.sub(kept, text)
    text = without_empty_sections(tidy(text))
    return tidy(_HIDDEN.sub(lambda match: hidden[int(match[1])], text))


@dataclass
class _Frame:
    """An open bracket: its mark, and what stands in it so far, at the bars."""

    mark: str
    parts: list[list[str]] = field(default_factory=lambda: [[]])

    def literal(self) -> str:
        return self.mark + "|".join("".join(part) for part in self.parts)


class _Brackets:
    """Brackets that are open, innermost last."""

    def __init__(self, dropped_links: Set[str]) -> None:
        self._frames = [_Frame("")]
        self._dropped = dropped_links

    def add(self, text: str) -> None:
        self._frames[-1].parts[-1].append(text)

    def bar(self) -> None:
        if len(self._frames) > 1:
            self._frames[-1].parts.append([])
        else:
            self.add("|")

    def open(self, mark: str) -> None:
        if len(self._frames) > _DEPTH:
            self.add(mark)
        else:
            self._frames.append(_Frame(mark))

    def close(self, mark: str, written: str) -> None:
        """Close the innermost bracket of this kind; what was opened inside and not closed is text."""
        if not any(frame.mark == mark for frame in self._frames[-_DEPTH - 1 :]):
            if mark == "{|":
                self.bar()
                self.add("}")
            else:
                self.add(written)
            return
        while self._frames[-1].mark != mark:
            self.add(self._frames.pop().literal())
        frame = self._frames.pop()
        parts = ["".join(part) for part in frame.parts]
        if mark == "[[":
            self.add(_link(parts, self._dropped))
        elif mark == "{{":
            self.add(_template(parts))

    def finish(self) -> str:
        """All text; brackets that were never closed are text, but a table that was not is left out."""
        while len(self._frames) > 1:
            frame = self._frames.pop()
            self.add(frame.literal() if frame.mark != "{|" else "")
        return "".join(self._frames[0].parts[0])


def _without_brackets(text: str, hidden: list[str], dropped_links: Set[str]) -> str:
    """The text without comments, templates, tables and links; what must be kept as it is, is in `hidden`."""
    brackets = _Brackets(dropped_links)
    unclosed: set[str] = set()
    at = 0
    while match := _MARK.search(text, at):
        brackets.add(text[at : match.start()])
        at = match.end()
        if match["comment"]:
            end = text.find("-->", at)
            at = len(text) if end < 0 else end + 3
        elif match["tag"]:
            at = _extension(text, match, unclosed, hidden, brackets)
        elif match["bar"]:
            brackets.bar()
        elif match["open"]:
            mark = match["open"].strip(" \t:")
            brackets.open(mark)
        else:
            mark = match["close"].strip()
            brackets.close({"}}": "{{", "]]": "[[", "|}": "{|"}[mark], mark)
    brackets.add(text[at:])
    return brackets.finish()


def _extension(text: str, match: re.Match[str], unclosed: set[str], hidden: list[str], brackets: _Brackets) -> int:
    """Handle a tag whose content is no markup; returns where to go on."""
    name = match["tag"].lower()
    if match["closed"] or name in unclosed:
        return match.end()
    end = re.compile(rf"</{name}\s{{0,20}}>", re.IGNORECASE).search(text, match.end())
    if end is None:
        unclosed.add(name)
        return match.end()
    if name in _KEPT:
        brackets.add(f"\ue000{len(hidden)}\ue001")
        hidden.append(_kept(name, text[match.end() : end.start()], match["attributes"]))
    return end.end()


def _kept(name: str, content: str, attributes: str) -> str:
    if name in ("math", "chem", "ce"):
        content = " ".join(content.split())
        shown = f"\\ce{{{content}}}" if name != "math" else content
        return f"$${shown}$$" if "block" in attributes else f"${shown}$"
    return html.unescape(content) if name in ("nowiki", "code") else f"\n{html.unescape(content).strip(chr(10))}\n"


def _link(parts: Sequence[str], dropped: Set[str]) -> str:
    target = parts[0].strip()
    prefix, colon, rest = target.partition(":")
    prefix = prefix.strip().lower()
    if colon and prefix in dropped:
        return ""
    if len(parts) > 1:
        return parts[-1].strip() or rest or target
    if colon and prefix and _LANGUAGE.match(prefix) and prefix not in _WIKIS:
        return ""  # the same page in another language
    return target.lstrip(":") if not (colon and prefix in _WIKIS) else rest


def _first(parts: Sequence[str]) -> str:
    return parts[0] if parts else ""


def _second(parts: Sequence[str]) -> str:
    return parts[1] if len(parts) > 1 else _first(parts)


def _last(parts: Sequence[str]) -> str:
    return parts[-1] if parts else ""


def _converted(parts: Sequence[str]) -> str:
    """`{{convert|5|km|mi}}` gives `5 km`, `{{convert|5|to|6|km}}` gives `5 to 6 km`."""
    if len(parts) > 3 and parts[1] in ("to", "-", "–", "and", "or", "x", "by"):  # noqa: RUF001
        joined = f"{parts[0]}–{parts[2]}" if parts[1] in "-–" else " ".join(parts[:3])  # noqa: RUF001
        return f"{joined} {parts[3]}"
    return " ".join(parts[:2])


def _fraction(parts: Sequence[str]) -> str:
    if len(parts) > 2:
        return f"{parts[0]} {parts[1]}/{parts[2]}"
    return f"{parts[0]}/{parts[1]}" if len(parts) == 2 else f"1/{_first(parts)}"


def _formula(parts: Sequence[str]) -> str:
    """`{{chem|H|2|O}}` gives `H₂O`."""
    return "".join(raised(part, up=False) if part[:1].isdigit() or part == "n" else part for part in parts)


_OF_FIRST = """nowrap nobr math mvar var em strong small smaller big larger quote blockquote cquote quotation ipa ipa2
abbr tooltip angbr quote_box smallcaps sc visible_anchor vanchor not_a_typo proper_name samp kbd code codes as_written
pre unicode polytonic plainlist unbulleted_list ubl hlist flatlist u underline bold italic keypress mono native_name ill
interlanguage_link illm val num gaps formatnum"""
_OF_LAST = "lang transl transliteration script color colour font_color sort sortname hs nts"

_WORDS: dict[str, Callable[[Sequence[str]], str]] = {
    **dict.fromkeys(_OF_FIRST.split(), _first),
    **dict.fromkeys(_OF_LAST.split(), _last),
    **dict.fromkeys(("convert", "cvt"), _converted),
    **dict.fromkeys(("frac", "fraction", "sfrac"), _fraction),
    **dict.fromkeys(("chem", "chem2", "chemf"), _formula),
    **dict.fromkeys(("snd", "spnd", "spaced_ndash", "snds"), lambda parts: " – "),  # noqa: RUF001
    **dict.fromkeys(("ndash", "en_dash"), lambda parts: "–"),  # noqa: RUF001
    **dict.fromkeys(("mdash", "em_dash"), lambda parts: "—"),
    **dict.fromkeys(("circa", "c.", "ca"), lambda parts: f"c. {_first(parts)}".strip()),
    **dict.fromkeys(("as_of", "asof"), lambda parts: f"As of {_first(parts)}"),
    "'": lambda parts: "'",
    "!": lambda parts: "|",
    "=": lambda parts: "=",
    "·": lambda parts: " · ",
    "dot": lambda parts: " · ",
    "sup": lambda parts: raised(_first(parts), up=True),
    "sub": lambda parts: raised(_first(parts), up=False),
    "us$": lambda parts: f"US${_first(parts)}",
    "gbp": lambda parts: f"£{_first(parts)}",
    "euro": lambda parts: f"€{_first(parts)}",
}
"""Templates that stand for words, by name in lower case with _ for spaces; all others are removed."""

_NAMED = re.compile(r"\s*[\w -]{1,30}=")


def _template(parts: Sequence[str]) -> str:
    name = parts[0].strip().lower().replace(" ", "_")
    spelled = _last if name.startswith("lang-") else _WORDS.get(name)
    if spelled is None:
        return ""
    given = [part.strip().removeprefix("1=") for part in parts[1:] if part[:2] == "1=" or not _NAMED.match(part)]
    return spelled(given).removeprefix("text=")


def _lists(text: str) -> str:
    """Lines that begin with list marks as `- `, `1. ` or indented text."""
    kept: list[str] = []
    counts: dict[str, int] = {}
    for line in text.split("\n"):
        match = _LIST.match(line)
        if match is None:
            counts.clear()
            kept.append(line.lstrip(" \t"))
            continue
        marks, content = match[1][:20], match[2].strip()
        if not content:
            continue
        counts = {other: count for other, count in counts.items() if marks.startswith(other)}
        counts[marks] = counts.get(marks, 0) + 1
        bullet = {"*": "- ", "#": f"{counts[marks]}. "}.get(marks[-1], "")
        kept.append("  " * (len(marks) - 1) * bool(bullet) + bullet + content)
    return "\n".join(kept)
