"""The source tree as data: files, syntax trees and imports; shared by the governance tests."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "trivium"


@cache
def files() -> tuple[Path, ...]:
    """All source files of the package."""
    return tuple(sorted(PACKAGE.rglob("*.py")))


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def shown(file: Path, node: ast.AST | None = None) -> str:
    """`trivium/data/batch.py:12`, for messages."""
    line = getattr(node, "lineno", None)
    return str(file.relative_to(ROOT)) + (f":{line}" if line else "")


def module_name(file: Path) -> str:
    parts = list(file.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path) -> Iterator[tuple[ast.stmt, str]]:
    """(statement, imported module) wherever it stands: at the top, in a function, under TYPE_CHECKING."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{shown(file, node)}: write the import in full"
            module = node.module or ""
            yield node, module
            for alias in node.names:  # `from trivium import methods` imports trivium.methods
                if (ROOT / module.replace(".", "/") / alias.name).is_dir():
                    yield node, f"{module}.{alias.name}"


def area(module: str) -> str:
    """The part of the package a module belongs to: `trivium.data.batch` -> `data`; a top-level file -> `` (base)."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else ""
