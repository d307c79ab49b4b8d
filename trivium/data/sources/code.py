"""Source trees: the text files of a project, without what is generated, vendored, binary or too large.

The licence is the SPDX mark of the file itself, else that of the nearest LICENSE or COPYING above it in the source.
`meta` holds the programming language, and repository and commit where the tree is a clone of one.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

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
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SPDX = re.compile(r"SPDX-License-Identifier:\s*([A-Za-z0-9.+() -]{2,80}?)\s*(?:\*/|-->|$)", re.MULTILINE)
_LICENCE_FILES = (
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "LICENCE",
    "LICENCE.txt",
    "COPYING",
    "COPYING.txt",
    "UNLICENSE",
)
_LICENCES = (
    ("Apache-2.0", r"Apache License,?\s+Version 2\.0"),
    ("MPL-2.0", r"Mozilla Public License,?\s+(?:Version|v\.) 2\.0"),
    ("AGPL-3.0", r"GNU AFFERO GENERAL PUBLIC LICENSE\s+Version 3"),
    ("LGPL-3.0", r"GNU LESSER GENERAL PUBLIC LICENSE\s+Version 3"),
    ("LGPL-2.1", r"GNU LESSER GENERAL PUBLIC LICENSE\s+Version 2\.1"),
    ("GPL-3.0", r"GNU GENERAL PUBLIC LICENSE\s+Version 3"),
    ("GPL-2.0", r"GNU GENERAL PUBLIC LICENSE\s+Version 2"),
    ("BSD-3-Clause", r"Redistribution and use in source and binary forms[\s\S]{0,1500}Neither the name"),
    ("BSD-2-Clause", r"Redistribution and use in source and binary forms"),
    ("MIT", r"Permission is hereby granted, free of charge, to any person obtaining a copy"),
    ("ISC", r"Permission to use, copy, modify, and/?(?:or)? distribute this software for any purpose"),
    ("Unlicense", r"This is free and unencumbered software released into the public domain"),
    ("CC0-1.0", r"CC0 1\.0 Universal"),
)
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
    root = file.path.absolute().parents[file.name.count("/")]
    marked = _SPDX.search(text[:4000])
    licence = marked[1] if marked else _licence(file.path.absolute().parent, root)
    meta = {"group": file.name, "programming_language": language, **_repository(root)}
    yield Document(file.name, text, str(file.path), licence=licence, meta=meta)


@lru_cache(maxsize=10_000)
def _licence(folder: Path, root: Path) -> str | None:
    """The licence of a folder: what its own file says, else that of the folder above, inside the source."""
    for name in _LICENCE_FILES:
        path = folder / name
        if path.is_file() and not path.is_symlink():
            with open_bytes(path) as stream:
                text = " ".join(stream.read(20_000).decode("utf-8", "replace").split())
            return next((found for found, words in _LICENCES if re.search(words, text, re.IGNORECASE)), None)
    return None if folder == root or not folder.is_relative_to(root) else _licence(folder.parent, root)


@lru_cache(maxsize=100)
def _repository(root: Path) -> dict[str, str]:
    """Where a clone comes from, and its commit; nothing is asked of git itself."""
    git = root / ".git"
    if not git.is_dir():
        return {}
    found: dict[str, str] = {}
    try:
        settings = configparser.ConfigParser(strict=False, interpolation=None)
        settings.read(git / "config", encoding="utf-8")
        url = settings.get('remote "origin"', "url", fallback="")
        found["repository"] = re.sub(r"//[^/@]*@", "//", url)  # without a name or a password
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        target = git / head.removeprefix("ref: ")
        inside = head.startswith("ref: refs/") and ".." not in head and target.is_file()
        found["commit"] = target.read_text(encoding="utf-8").strip() if inside else head
    except (OSError, ValueError, configparser.Error):
        return {}
    return {key: value for key, value in found.items() if value and (key != "commit" or _COMMIT.fullmatch(value))}
