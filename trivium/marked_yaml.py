"""YAML in which every value remembers where it was written.

A small subset on purpose: mappings, lists and the scalars of YAML 1.2 (`3e-4` is a number; `on`, `yes`, `no` and
`012:30` are text). Tags, several documents and repeated keys are refused; anchors and merge keys (`<<`) work, but
cannot make a small file large. The tree is built from PyYAML's events, so no object is ever constructed from text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import yaml

from trivium.errors import ConfigError
from trivium.nearest import nearest

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_NODES = 20_000

_NULL = re.compile(r"(?:|~|null|Null|NULL)\Z")
_TRUE = re.compile(r"(?:true|True|TRUE)\Z")
_FALSE = re.compile(r"(?:false|False|FALSE)\Z")
_DECIMAL = re.compile(r"[-+]?[0-9]+\Z")
_BASED = re.compile(r"0o[0-7]+\Z|0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_SPECIAL = re.compile(r"[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z")
_MAX_DIGITS = 400

_BYTE_ORDER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


@dataclass
class Node:
    """A value and the place it was written at.

    value: a scalar, a list of nodes, or a dict of nodes.
    where: `file:line` or the override it came from.
    keys:  where each key of a mapping was written.
    """

    value: Any
    where: str
    keys: dict[str, str] = field(default_factory=dict)

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def child(self, key: str | int) -> Node | None:
        """The node below `key`, or None."""
        if isinstance(self.value, dict):
            return self.value.get(str(key))
        if isinstance(self.value, list) and isinstance(key, int) and 0 <= key < len(self.value):
            node: Node = self.value[key]
            return node
        return None


def read_yaml(path: Path) -> Node:
    """The tree in a file; errors name the file, the line or byte, and the fix."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError("there is no such file", where=path, fix=_nearby(path)) from None
    except IsADirectoryError:
        raise ConfigError("this is a folder, not a recipe", where=path, fix="name a .yaml file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read the file: {getattr(error, 'strerror', None) or error}",
            where=path,
            fix="check that you may read it",
        ) from None
    return parse_yaml(_decode(data, path), name=str(path))


def parse_yaml(text: str, *, name: str) -> Node:
    """The tree in a text; `name` stands in front of the line numbers."""
    try:
        return _Builder(name).build(text)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text, name) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            "a control character that YAML does not allow",
            where=f"{name}:{line}",
            value=f"U+{ord(text[error.position]):04X}",
            fix="delete the character",
        ) from None


def parse_value(text: str, *, where: str) -> Node:
    """One value on a command line, read as YAML; every node in it was written at `where`."""
    try:
        return _Builder(where, numbered=False).build(text)
    except (yaml.MarkedYAMLError, yaml.reader.ReaderError):
        raise ConfigError(
            "the value is not valid YAML",
            where=where,
            value=text,
            fix="put text with special characters in quotes: key='\"text\"'; lists are [a, b]",
        ) from None


def scalar(text: str) -> Any:
    """A plain scalar by the rules of YAML 1.2's core schema."""
    if _NULL.match(text):
        return None
    if _TRUE.match(text):
        return True
    if _FALSE.match(text):
        return False
    if len(text) <= _MAX_DIGITS:
        if _DECIMAL.match(text):
            return int(text)
        if _BASED.match(text):
            return int(text, 0)
        if _FLOAT.match(text):
            return float(text)
    if _SPECIAL.match(text):
        return float(text.replace(".", "", 1))
    return text


class _Builder:
    """Turns parser events into nodes. Aliases become copies, and every node counts, so the size is bounded."""

    def __init__(self, name: str, *, numbered: bool = True) -> None:
        self.name = name
        self.numbered = numbered
        self.anchors: dict[str, Node] = {}
        self.count = 0
        self.events: Iterator[Any] = iter(())

    def build(self, text: str) -> Node:
        self.events = iter(yaml.parse(text, Loader=yaml.SafeLoader))
        next(self.events)
        event = next(self.events)
        if isinstance(event, yaml.StreamEndEvent):
            return Node(None, self.name)
        root = self.node(next(self.events), 0)
        next(self.events)
        extra = next(self.events)
        if not isinstance(extra, yaml.StreamEndEvent):
            raise ConfigError(
                "the file holds more than one document",
                where=self.at(extra),
                fix="delete everything from this '---' on",
            )
        return root

    def at(self, event: Any) -> str:
        return f"{self.name}:{event.start_mark.line + 1}" if self.numbered else self.name

    def node(self, event: Any, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise ConfigError(
                f"values are nested deeper than {MAX_DEPTH} levels", where=self.at(event), fix="flatten the structure"
            )
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event)
        if event.tag is not None and event.tag != "!":
            raise ConfigError(
                "tags are not allowed",
                where=self.at(event),
                value=event.tag,
                fix="write the plain value; put text in quotes",
            )
        if isinstance(event, yaml.ScalarEvent):
            node = self.new(scalar(event.value) if event.implicit[0] else event.value, self.at(event))
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self.sequence(event, depth)
        else:
            node = self.mapping(event, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def alias(self, event: Any) -> Node:
        if event.anchor not in self.anchors:
            raise ConfigError(
                "an alias without an anchor before it",
                where=self.at(event),
                value=f"*{event.anchor}",
                fix=f"write &{event.anchor} in front of the value it stands for, or quote text that begins with '*'",
            )
        return self.copy(self.anchors[event.anchor])

    def copy(self, node: Node) -> Node:
        """A separate tree, so that an override of one place leaves the other alone."""
        if isinstance(node.value, dict):
            values = {key: self.copy(value) for key, value in node.value.items()}
            return self.new(values, node.where, dict(node.keys))
        if isinstance(node.value, list):
            return self.new([self.copy(item) for item in node.value], node.where)
        return self.new(node.value, node.where)

    def new(self, value: Any, where: str, keys: dict[str, str] | None = None) -> Node:
        self.count += 1
        if self.count > MAX_NODES:
            raise ConfigError(
                f"the file expands to more than {MAX_NODES} values",
                where=where,
                fix="use fewer anchors (&name, *name) inside each other; is this a recipe?",
            )
        return Node(value, where, keys or {})

    def sequence(self, start: Any, depth: int) -> Node:
        items = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self.node(event, depth + 1))
        return self.new(items, self.at(start))

    def mapping(self, start: Any, depth: int) -> Node:
        values: dict[str, Node] = {}
        keys: dict[str, str] = {}
        merged: list[Node] = []
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise ConfigError(
                    "a key must be a word",
                    where=self.at(event),
                    fix="write 'key: value'; quote text that begins with '{', '[', '*' or '&'",
                )
            key, at = event.value, self.at(event)
            if key in keys:
                raise ConfigError(
                    f"the key {key!r} is given twice", where=f"{at} (first: {keys[key]})", fix="delete one of the two"
                )
            keys[key] = at
            value = self.node(next(self.events), depth + 1)
            if key == "<<" and event.style is None:
                merged.extend(self.merge(value, at))
            else:
                values[key] = value
        for node in merged:
            for key, value in node.value.items():
                if key not in values:
                    values[key], keys[key] = value, node.keys[key]
        keys.pop("<<", None)
        return self.new(values, self.at(start), keys)

    def merge(self, value: Node, at: str) -> list[Node]:
        nodes = value.value if isinstance(value.value, list) else [value]
        if not all(isinstance(node.value, dict) for node in nodes):
            raise ConfigError(
                "'<<' merges mappings only", where=at, fix="let it stand for a mapping (<<: *name) or delete it"
            )
        return nodes


def _decode(data: bytes, path: Path) -> str:
    if len(data) > MAX_BYTES:
        raise ConfigError(
            f"a recipe has at most {MAX_BYTES // 1024} KiB, this file is larger",
            where=path,
            fix="check the path: is this a data file?",
        )
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            raise ConfigError(f"the file is {encoding}, not UTF-8", where=path, fix="save it as UTF-8 in your editor")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        offset = error.start + (len(data) - len(error.object))
        line = data.count(b"\n", 0, offset) + 1
        raise ConfigError(
            f"the file is not UTF-8: byte {offset} cannot be read",
            where=f"{path}:{line}",
            value=f"0x{data[offset]:02x}",
            fix="save it as UTF-8 in your editor, or delete the byte",
        ) from None
    return text


_INDENT = ("this line does not fit the indentation above it", "align it with the keys of its section")
_RESERVED = ("a value begins with a character that YAML reserves", "put the value in quotes")
_SYNTAX = {
    "mapping values are not allowed": (
        "a colon where none is expected",
        "put text that contains ': ' in quotes, or correct the indentation of this line",
    ),
    "could not find expected ':'": (
        "a line that is neither 'key: value' nor part of a list",
        "write 'key: value', with a space after the colon",
    ),
    "expected <block end>": _INDENT,
    "expected '<document start>'": _INDENT,
    "expected ',' or": ("a list or mapping in brackets is not closed", "add the closing ']' or '}'"),
    "found character '%'": _RESERVED,
    "found character '@'": _RESERVED,
    "found character '`'": _RESERVED,
    "unexpected end of stream": ("a quotation mark is opened here and never closed", "add the closing quotation mark"),
    "unknown escape character": ("an unknown escape in double quotes", "use single quotes, or \\\\ for a backslash"),
}
"""What PyYAML says -> what is wrong and what to do, in words for someone who does not know its grammar."""


def _syntax_error(error: yaml.MarkedYAMLError, text: str, name: str) -> ConfigError:
    """PyYAML's scanner errors in words that say what to change."""
    said = error.problem or error.context or "not valid YAML"
    # For these two the place where the trouble began says more than the place where it was noticed.
    begun = "unexpected end of stream" in said or "could not find expected ':'" in said
    mark = error.context_mark if begun and error.context_mark is not None else error.problem_mark
    number = mark.line if mark is not None else 0
    lines = text.split("\n")
    line = lines[number] if number < len(lines) else ""
    problem, fix = said, "check indentation, quotes and colons of this line and the one before"
    if "\t" in line[: len(line) - len(line.lstrip())] or "'\\t'" in said:
        problem, fix = "a tab indents this line, which YAML does not allow", "indent with spaces"
    else:
        for fragment, words in _SYNTAX.items():
            if fragment in said:
                problem, fix = words
                break
    return ConfigError(problem, where=f"{name}:{number + 1}", value=line.strip(), fix=fix)


def _nearby(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("recipes")
    try:
        names = [entry.name for entry in folder.iterdir() if entry.suffix in (".yaml", ".yml")]
    except OSError:
        names = []
    near = nearest(path.name if path.suffix else f"{path.name}.yaml", names)
    return f"did you mean {folder / near}?" if near else f"check the path; the current folder is {Path.cwd()}"


def node_from(value: Any, *, where: str) -> Node:
    """A tree out of plain Python mappings, lists and scalars, all written at `where`."""
    if isinstance(value, Mapping):
        values = {str(key): node_from(item, where=where) for key, item in value.items()}
        return Node(values, where, keys=dict.fromkeys(values, where))
    if isinstance(value, list | tuple):
        return Node([node_from(item, where=where) for item in value], where)
    return Node(str(value) if isinstance(value, PurePath) else value, where)


def apply_overrides(tree: Node, overrides: Sequence[str], *, shorthand: Mapping[str, str]) -> None:
    """Changes the tree in place by `a.b.c=value` and `a.0.b=value`.

    shorthand: where text stands for a section (`method: dpo` for `method: {name: dpo}`): dotted key, with `*` for
               any list index, -> the key that the text is the value of; `[]` where it stands for a list of one.
    """
    seen: set[str] = set()
    for override in overrides:
        where = f"override {override}"
        path, equals, text = override.partition("=")
        keys = path.split(".")
        if not equals or not all(keys) or path != path.strip():
            raise ConfigError(
                "an override has the form key=value",
                where=where,
                fix=f"write {path.strip() or 'key'}=value without spaces around '=' (for example train.lr=3e-4)",
            )
        if path in seen:
            raise ConfigError(f"{path} is overridden twice", where=where, fix="delete one of the two")
        if not text.strip():
            raise ConfigError(
                "the override has no value",
                where=where,
                fix=f"write {path}=null for nothing, {path}=\"''\" for empty text",
            )
        seen.add(path)
        _set(tree, keys, parse_value(text, where=where), where, shorthand)


def _set(tree: Node, keys: list[str], value: Node, where: str, shorthand: Mapping[str, str]) -> None:
    node = tree
    for depth, key in enumerate(keys):
        pattern = ".".join("*" if part.isdecimal() else part for part in keys[:depth])
        _open(node, pattern, where, shorthand, as_list=key.isdecimal())
        last = depth == len(keys) - 1
        if isinstance(node.value, list):
            node = _item(node, keys[: depth + 1], where)
        else:
            node.keys[key] = where if last else node.keys.get(key, where)
            node = node.value.setdefault(key, Node(None, where))
        if last:
            node.value, node.where, node.keys = value.value, where, value.keys


def _open(node: Node, pattern: str, where: str, shorthand: Mapping[str, str], *, as_list: bool) -> None:
    """Makes sure that `node` can have children, by writing out what stands for it."""
    if node.value is None:
        node.value = [] if as_list else {}
    if isinstance(node.value, str) and shorthand.get(pattern) == "[]" and as_list:
        node.value = [Node(node.value, node.where)]
    elif isinstance(node.value, str) and shorthand.get(pattern, "[]") != "[]":
        key = shorthand[pattern]
        node.value, node.keys = {key: Node(node.value, node.where)}, {key: node.where}
    if not isinstance(node.value, dict | list):
        raise ConfigError(
            f"{pattern} is a single value, so nothing can be set below it", where=where, fix=f"set {pattern}=value"
        )


def _item(node: Node, keys: list[str], where: str) -> Node:
    path, key, count = ".".join(keys[:-1]), keys[-1], len(node.value)
    if not key.isdecimal() or int(key) > count:
        allowed = f"{path}.0 to {path}.{count} (the last one adds an item)" if count else f"{path}.0 (adds an item)"
        problem = f"{path} is a list of {count}, item {key!r} does not exist"
        raise ConfigError(problem, where=where, fix=f"use {allowed}")
    if int(key) == count:
        node.value.append(Node(None, where))
    item: Node = node.value[int(key)]
    return item


class _Dumper(yaml.SafeDumper):
    """Writes text so that `scalar` reads it back as text (PyYAML knows YAML 1.1 only)."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "'" if scalar(text) is not text and "\n" not in text else None
    if not text.replace("\n", "").isprintable():
        style = '"'  # with escapes: some of these characters would be read as line ends
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def dump_yaml(value: Any) -> str:
    """Plain mappings, lists and scalars as YAML that `parse_yaml` reads back unchanged."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
