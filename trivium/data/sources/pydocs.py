"""The documentation inside the user's own Python installation: a corpus that needs no download.

Docstrings of the standard library and of the installed packages (each under a heading with its signature, as `help`
shows it), the topics of `help()`, and the READMEs and manuals that packages bring along. Source files are
parsed, never imported or run. Ids are the dotted names (`textwrap.dedent`); `meta` holds kind, module, name, signature
and the first paragraph; documents of one module are one group.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import inspect
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from pathlib import Path

from trivium.data.documents import Document
from trivium.data.intake import InputFile, Intake

BUILT_IN = True
EXTENSIONS = ()

_SKIPPED = re.compile(
    r"(^|[/.])(tests?|testing|test_[^/]*|[^/]*_test|conftest|benchmarks?|examples?|turtledemo|lib2to3|__main__"
    r"|_?vendor(ed)?|extern|externals|third_party|site-packages|dist-packages|node_modules|__pycache__)([/.]|$)"
)
_PRIVATE = re.compile(r"(^|/)_(?!_init__\.py)")
_PYTHON_LICENCE = "PSF-2.0"
_FILE_BYTES = 2 << 20
_LEAST_CHARACTERS = 60
_PACKAGE_CHARACTERS = 1_500_000
"""A package stops after the file with which it exceeds this, so that none outweighs all others."""
_TEXT_SUFFIXES = (".md", ".rst", ".txt")
_NOT_PROSE = re.compile(
    r"licen[cs]e|copying|notice|authors|contributors|requirements|top_level|entry_points|sources|record|cmake|vendor"
    r"|namespace_packages|dependency_links|changelog|changes|news|credits|todo|history|thirdparty|third_party|release",
    re.IGNORECASE,
)
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class _Module:
    """Where a documented thing comes from."""

    name: str
    path: Path
    package: str
    licence: str | None

    def document(self, kind: str, name: str, heading: str, body: str, signature: str = "") -> Document:
        """A document under the heading that `help` gives it; `name` is empty for the module itself."""
        meta = {"kind": kind, "module": self.name, "name": name, "signature": signature, "package": self.package}
        return Document(
            id=f"{self.name}.{name}" if name else self.name,
            text=f"{heading}\n\n{body}\n",
            source=str(self.path),
            licence=self.licence,
            meta={**meta, "summary": _summary(body if not signature else _dedented(body)), "group": self.name},
        )


def documents(file: InputFile, intake: Intake) -> Iterator[Document]:
    """Built-in things, topics, then the standard library and the packages by path."""
    del file
    seen: set[str] = set()
    for document in _everything(intake):
        if len(document.text) < _LEAST_CHARACTERS:
            intake.skipped["documentation of a few words"] += 1
        elif document.id not in seen:
            seen.add(document.id)
            yield document


def fingerprint() -> str:
    """Changes with every file that is installed, removed or replaced."""
    digest = hashlib.sha256(sys.version.encode())
    for root in _roots():
        for entry in sorted(root.iterdir(), key=lambda path: path.name):
            if _SKIPPED.search(entry.name):
                continue
            metadata = [entry / "METADATA"] if entry.suffix == ".dist-info" else _files(entry, root)
            for path in metadata:
                if path.is_file():
                    facts = path.stat()
                    digest.update(f"{path.relative_to(root)} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _roots() -> list[Path]:
    """The folders of the standard library and of the installed packages."""
    paths = sysconfig.get_paths()
    return [root for name in ("stdlib", "purelib", "platlib") if (root := Path(paths[name])).is_dir()]


def _everything(intake: Intake) -> Iterator[Document]:
    standard, *packages = dict.fromkeys(_roots())
    yield from _builtin_documents()
    yield from _topics(standard / "pydoc_data" / "topics.py")
    yield from _tree(standard, {}, intake)
    for root in packages:
        yield from _tree(root, _distributions(root), intake)


def _tree(root: Path, distributions: dict[str, str], intake: Intake) -> Iterator[Document]:
    """The documents below a folder, package by package; in a package those nearest to its surface come first."""
    for entry in sorted(root.iterdir(), key=lambda path: path.name):
        if _SKIPPED.search(entry.name) or entry.name.startswith(".") or entry.suffix == ".egg-info":
            continue
        if entry.suffix == ".dist-info":
            yield from _readme(entry)
            continue
        package = entry.name.removesuffix(".py")
        licence = distributions.get(package) if distributions else _PYTHON_LICENCE
        size = 0
        for path in _files(entry, root):
            if size > _PACKAGE_CHARACTERS:
                intake.skipped["documentation of a package beyond its share"] += 1
                continue
            for document in _file(path, path.relative_to(root).as_posix(), package, licence, intake):
                size += len(document.text)
                yield document


def _files(entry: Path, root: Path) -> list[Path]:
    """The files of a package by depth and name, without tests and vendored code."""
    found: list[Path] = []
    folders = [entry] if entry.is_dir() else []
    found += [] if entry.is_dir() else [entry]
    while folders:
        for path in folders.pop().iterdir():
            if path.name.startswith(".") or _SKIPPED.search(path.relative_to(root).as_posix()):
                continue
            if path.is_dir():
                folders += [] if path.is_symlink() else [path]
            elif path.suffix in (".py", *_TEXT_SUFFIXES):
                found.append(path)
    return sorted(found, key=lambda path: (len(path.parts), path.as_posix()))


def _file(path: Path, name: str, package: str, licence: str | None, intake: Intake) -> Iterator[Document]:
    if path.suffix == ".py":
        yield from _python(path, name, package, licence, intake)
    elif "/" in name:
        yield from _text(path, name, package, licence, intake)


# Python source


def _python(path: Path, name: str, package: str, licence: str | None, intake: Intake) -> Iterator[Document]:
    raw = path.read_bytes() if path.stat().st_size <= _FILE_BYTES else b""
    private = _PRIVATE.search(name) is not None
    # Private modules define public things where they say so: numpy's @set_module("numpy").
    if (b'"""' not in raw and b"'''" not in raw) or (private and b"@set_module(" not in raw):
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(raw)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        intake.skipped["not Python that can be parsed"] += 1
        return
    module_name = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    module = _Module(module_name, path, package, licence)
    docstring = ast.get_docstring(tree)
    if docstring and not private:
        yield module.document("module", "", f"Help on module {module.name}:", docstring)
    for node in tree.body:
        if isinstance(node, _Definition) and not node.name.startswith("_"):
            home = _declared_module(node)
            if home is not None:
                yield from _definition(_Module(home, path, package, licence), node)
            elif not private:
                yield from _definition(module, node)


def _definition(module: _Module, node: _Definition) -> Iterator[Document]:
    """A function, or a class with its methods."""
    docstring = ast.get_docstring(node)
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        signature = f"class {node.name}({bases})" if bases else f"class {node.name}"
        parts = [docstring] if docstring else []
        parts += [_member(item) for item in node.body if isinstance(item, _Definition) and _is_documented(item)]
        kind = "class"
    else:
        signature = _signature(node)
        parts = [docstring] if docstring else []
        kind = "function"
    if parts:
        body = signature + "\n" + _indented("\n\n".join(parts))
        yield module.document(kind, node.name, f"Help on {kind} {node.name} in module {module.name}:", body, signature)


def _is_documented(node: _Definition) -> bool:
    public = not node.name.startswith("_") or (node.name.startswith("__") and node.name.endswith("__"))
    return public and not isinstance(node, ast.ClassDef) and ast.get_docstring(node) is not None


def _member(node: _Definition) -> str:
    assert not isinstance(node, ast.ClassDef)
    return f"{_signature(node)}\n{_indented(ast.get_docstring(node) or '')}"


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """`name(arguments) -> result`, as in the source."""
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{node.name}({ast.unparse(node.args)}){returns}"


def _declared_module(node: _Definition) -> str | None:
    """The module named by a decorator `@set_module("numpy")`."""
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name) and decorator.args:
            name = decorator.args[0]
            if decorator.func.id == "set_module" and isinstance(name, ast.Constant) and isinstance(name.value, str):
                return name.value
    return None


def _builtin_documents() -> Iterator[Document]:
    """What is always there and written in C: `len`, `str` and its methods, the exceptions."""
    module = _Module("builtins", Path("builtins"), "builtins", _PYTHON_LICENCE)
    for name, value in sorted(vars(builtins).items()):
        if name.startswith("_") or not callable(value) or not inspect.getdoc(value):
            continue
        kind = "class" if isinstance(value, type) else "function"
        signature = f"class {name}" if kind == "class" else _live_signature(name, value)
        parts = [inspect.getdoc(value) or ""]
        if isinstance(value, type) and not issubclass(value, BaseException):
            methods = [(key, item) for key, item in sorted(vars(value).items()) if not key.startswith("_")]
            parts += [
                f"{_live_signature(key, item)}\n{_indented(inspect.getdoc(item) or '')}"
                for key, item in methods
                if inspect.getdoc(item)
            ]
        body = signature + "\n" + _indented("\n\n".join(parts))
        yield module.document(kind, name, f"Help on {kind} {name} in module builtins:", body, signature)


def _live_signature(name: str, value: object) -> str:
    try:
        return f"{name}{inspect.signature(value)}"  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return f"{name}(...)"


def _topics(path: Path) -> Iterator[Document]:
    """The chapters that `help("assert")` shows: the assignments of dictionary displays in pydoc_data/topics.py."""
    if not path.is_file():
        return
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for name, text in sorted(ast.literal_eval(node.value).items()):
                module = _Module(f"help('{name}')", path, "python", _PYTHON_LICENCE)
                yield module.document("topic", "", f"Help on topic {name}:", text.strip())


# Texts that packages bring along


def _readme(folder: Path) -> Iterator[Document]:
    """The long description in the metadata of a distribution."""
    metadata = folder / "METADATA"
    if not metadata.is_file():
        return
    header, _, body = metadata.read_bytes().partition(b"\n\n")
    fields = BytesHeaderParser().parsebytes(header)
    text = body.decode("utf-8", "ignore").strip()
    if text:
        module = _Module(f"{fields['Name']} (README)", metadata, str(fields["Name"]), _licence(header))
        yield module.document("text", "", f"README of the package {fields['Name']}:", text)


def _text(path: Path, name: str, package: str, licence: str | None, intake: Intake) -> Iterator[Document]:
    if _PRIVATE.search(name) or _NOT_PROSE.search(path.name) or path.stat().st_size > _FILE_BYTES:
        return
    try:
        text = path.read_bytes().decode("utf-8").strip()
    except UnicodeDecodeError:
        intake.skipped["not UTF-8 text"] += 1
        return
    if _is_prose(text):
        yield _Module(name, path, package, licence).document("text", "", f"{name}:", text)


def _is_prose(text: str) -> bool:
    """Sentences, and not tables, word lists or data: mostly letters, in lines of several words."""
    letters = sum(character.isalpha() or character == " " for character in text[:20_000])
    lines = text[:20_000].splitlines()
    words = sum(len(line.split()) for line in lines)
    return len(text) > 200 and letters > 0.75 * len(text[:20_000]) and words > 4 * len(lines)


def _distributions(root: Path) -> dict[str, str]:
    """Top-level name -> licence, from the metadata of the installed distributions."""
    found: dict[str, str] = {}
    for folder in sorted(root.glob("*.dist-info")):
        metadata, record = folder / "METADATA", folder / "RECORD"
        if not metadata.is_file() or not record.is_file():
            continue
        licence = _licence(metadata.read_bytes().partition(b"\n\n")[0])
        for line in record.read_text("utf-8", "ignore").splitlines():
            top = line.partition(",")[0].partition("/")[0].removesuffix(".py")
            if licence is not None and not top.endswith((".dist-info", "..")):
                found.setdefault(top, licence)
    return found


def _licence(header: bytes) -> str | None:
    fields = BytesHeaderParser().parsebytes(header)
    stated = fields.get("License-Expression") or fields.get("License") or ""
    if stated.strip() and "\n" not in stated.strip() and len(stated) < 300:
        return str(stated.strip())
    classifiers = [line for line in fields.get_all("Classifier", []) if line.startswith("License ::")]
    return classifiers[0].rpartition(" :: ")[2] if classifiers else None


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" if line.strip() else "" for line in text.splitlines())


def _dedented(body: str) -> str:
    """The body below its signature, without the indent."""
    return inspect.cleandoc("\n" + body.partition("\n")[2])


def _summary(text: str) -> str:
    """The first paragraph on one line."""
    return " ".join(text.strip().partition("\n\n")[0].split())[:400]
