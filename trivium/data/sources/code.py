"""Source trees: the text files of a project, without what is generated, vendored, binary or too large."""

from __future__ import annotations

from collections.abc import Iterator

from trivium.data.documents import Document
from trivium.data.intake import InputFile, Intake
from trivium.data.plain import open_bytes

FOLDER = True
"""Reads a folder as a whole: `format: code`."""

EXTENSIONS = ()

FILE_BYTES = 1 << 20
"""Larger files are data or generated."""

_LANGUAGES = {
    "c": "c h",
    "c++": "cc cpp cxx hh hpp hxx",
    "c#": "cs",
    "css": "css scss",
    "cuda": "cu cuh",
    "go": "go",
    "haskell": "hs",
    "html": "html htm",
    "java": "java",
    "javascript": "js jsx mjs",
    "julia": "jl",
    "kotlin": "kt",
    "lua": "lua",
    "makefile": "mk",
    "markdown": "md rst",
    "ocaml": "ml mli",
    "perl": "pl pm",
    "php": "php",
    "python": "py pyi pyx",
    "r": "r",
    "ruby": "rb",
    "rust": "rs",
    "scala": "scala",
    "shell": "sh bash",
    "sql": "sql",
    "swift": "swift",
    "toml": "toml",
    "typescript": "ts tsx",
    "yaml": "yaml yml",
    "zig": "zig",
}
_LANGUAGE = {f".{extension}": name for name, extensions in _LANGUAGES.items() for extension in extensions.split()}
_SKIPPED_FOLDERS = {"node_modules", "__pycache__", "build", "dist", "target", "vendor", "third_party", "site-packages"}


def documents(file: InputFile, intake: Intake) -> Iterator[Document]:
    """The document of one file of the tree, unless it is left out; what is left out is counted in the intake."""
    folders = set(file.name.split("/")[:-1])
    language = _LANGUAGE.get(file.path.suffix.lower())
    if folders & _SKIPPED_FOLDERS:
        intake.skipped["generated or vendored"] += 1
        return
    if language is None:
        intake.skipped["no known language"] += 1
        return
    with open_bytes(file.path) as stream:
        raw = stream.read(FILE_BYTES + 1)
    if len(raw) > FILE_BYTES:
        intake.skipped[f"larger than {FILE_BYTES >> 20} MiB"] += 1
        return
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        intake.skipped["not UTF-8 text"] += 1
        return
    yield Document(file.name, text, str(file.path), meta={"group": file.name, "language": language})
