"""What the commands and environments of LaTeX mean for the text."""

from __future__ import annotations

LEVELS = {name: level for level, name in enumerate(("part", "chapter", "section", "subsection", "subsubsection"), 1)}
LEVELS |= {"paragraph": 6, "subparagraph": 7}

_MATHS = "equation align gather multline eqnarray displaymath math alignat flalign dmath narrowmultline IEEEeqnarray"
MATHS = frozenset(_MATHS.split())
"""Environments that are formulas."""

_DROPPED = """tabular tabularx tabulary longtable array tikzpicture tikzcd picture thebibliography titlepage
filecontents CCSXML keywords xy pspicture algorithmic axis mpost comment"""
DROPPED_BLOCKS = frozenset(_DROPPED.split())
"""Environments that are no text."""

_FLOATS = "figure table wrapfigure wraptable SCfigure sidewaystable sidewaysfigure algorithm listing"
FLOATS = frozenset(_FLOATS.split())
"""Environments of which only the caption is text."""

_STATEMENTS = """Theorem theorem thm; Lemma lemma lem; Corollary corollary cor; Proposition proposition prop;
Definition definition defn defi; Remark remark rmk rem; Example example eg; Examples examples egs; Exercise exercise ex;
Proof proof pf; Claim claim; Conjecture conjecture; Axiom axiom; Notation notation; Problem problem;
Solution solution; Construction construction"""
STATEMENTS = {name: words.split()[0] for words in _STATEMENTS.split(";") for name in words.split()[1:]}
"""Environments that begin with a word, unless the document itself says which."""

_LEFT_OUT = {
    0: "vskip printbibliography",
    1: """label index indexdef input include includegraphics bibliography bibliographystyle vspace hspace pagestyle
    thispagestyle usepackage documentclass thanks email affiliation address institute date author title theoremstyle
    graphicspath hyphenation pagenumbering color newlength newcounter phantom hphantom vphantom raisebox todo
    RequirePackage AtBeginDocument symlabel ccsdesc orcid includeonly keywords textcolor colorbox parbox scalebox href
    hypersetup lstset tikzset bibinfo""",
    2: """setlength addtolength setcounter addtocounter newtheorem numberwithin rule resizebox markboth indexsee""",
    3: "definecolor addcontentsline sethead newenvironment",
}
LEFT_OUT = {name: count for count, names in _LEFT_OUT.items() for name in names.split()}
"""Commands whose first arguments are left out, and how many."""

SIGNS = {
    **{"ldots": "…", "dots": "…", "textellipsis": "…", "textendash": "–", "textemdash": "—"},  # noqa: RUF001
    **{"LaTeX": "LaTeX", "TeX": "TeX", "ss": "ß", "ae": "æ", "AE": "Æ", "oe": "œ", "OE": "Œ", "o": "ø", "O": "Ø"},
    **{"l": "ł", "L": "Ł", "i": "i", "j": "j", "aa": "å", "AA": "Å", "S": "§", "P": "¶", "copyright": "©"},
    **{"pounds": "£", "dag": "†", "ddag": "‡", "textbackslash": "\\", "textasciitilde": "~", "euro": "€"},
    **{"textquoteright": "’", "textquoteleft": "‘", "textbar": "|", "textless": "<", "textgreater": ">"},  # noqa: RUF001
    **{"par": "\n\n", "newline": "\n", "linebreak": "\n", "quad": " ", "qquad": " ", "hfill": " ", "space": " "},
    **{"textregistered": "®", "texttrademark": "™", "textdegree": "°", "slash": "/", "ie": "i.e.", "etal": "et al."},
    **{"guillemotleft": "«", "guillemotright": "»", "item": "- "},
}
"""Commands that are characters."""

ACCENTS = {"'": "\u0301", "`": "\u0300", "^": "\u0302", '"': "\u0308", "~": "\u0303", "=": "\u0304", ".": "\u0307"}
LETTER_ACCENTS = {
    **{"c": "\u0327", "v": "\u030c", "u": "\u0306", "H": "\u030b", "k": "\u0328", "r": "\u030a", "d": "\u0323"},
    "b": "\u0331",
}
"""Combining characters for the letter that follows."""

SPACES = {" ": " ", ",": " ", "-": "", "/": "", "!": "", ":": " ", ";": " ", "\n": " ", "@": "", ">": " "}
"""What a backslash before these signs leaves."""
