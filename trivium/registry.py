"""The folder is the registry: `method: dpo` means the class in `trivium/methods/dpo.py`, imported when asked for.

A file of a folder below is a component when

* its name does not begin with an underscore, and
* it defines exactly one public class with a nested `class Config` (its typed settings).

Other files in the folder are helpers. So adding a component is adding one file, and listing the names reads file
texts but imports nothing. Code outside the package is named `package.module:Class`; that is honoured only where the
caller says so (`outside=True`), which recipes written by the user do and files inside a model folder never do.
"""

from __future__ import annotations

import importlib
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from trivium.errors import ConfigError
from trivium.nearest import nearest

Folder = Literal["methods", "optim", "transforms", "data/steps"]

SINGULAR: dict[Folder, str] = {
    "methods": "method",
    "optim": "optimizer",
    "transforms": "transform",
    "data/steps": "step",
}
"""What one component of a folder is called in messages and recipes."""

_CONFIG_CLASS = re.compile(r"^ {4}class Config\b", re.MULTILINE)
_OUTSIDE_NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*\Z")


@cache
def names(folder: Folder) -> tuple[str, ...]:
    """Names of the components in a folder, sorted; imports nothing."""
    files = sorted((Path(__file__).parent / folder).glob("[!_]*.py"))
    return tuple(file.stem for file in files if _CONFIG_CLASS.search(file.read_text(encoding="utf-8")))


def component(folder: Folder, name: str, *, outside: bool = False, where: str | None = None) -> type[Any]:
    """The class behind a name; it has a nested `Config`.

    outside: whether `package.module:Class` may be imported.
    where:   place in the recipe, for the error about an unknown name.
    """
    if ":" in name and outside:
        return _outside_component(name, where)
    if name not in names(folder):
        raise _unknown(folder, name, where)
    module = importlib.import_module(f"trivium.{folder.replace('/', '.')}.{name}")
    classes = _component_classes(module)
    assert len(classes) == 1, f"{module.__name__} must define exactly one public class with a nested Config"
    return classes[0]


def first_line(cls: type[Any]) -> str:
    """What a component is, in one line: the first line of its file's docstring, else of its own."""
    text = sys.modules[cls.__module__].__doc__ or cls.__doc__ or ""
    return text.strip().partition("\n")[0].rstrip(".")


def _component_classes(module: ModuleType) -> list[type[Any]]:
    return [
        value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and value.__module__ == module.__name__
        and not name.startswith("_")
        and "Config" in vars(value)
    ]


def _outside_component(name: str, where: str | None) -> type[Any]:
    if not _OUTSIDE_NAME.match(name):
        raise ConfigError(
            "not the name of a class outside Trivium", where=where, value=name, fix="write package.module:Class"
        )
    module_name, _, class_name = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(
            f"cannot import {module_name}: {type(error).__name__}: {error}",
            where=where,
            value=name,
            fix="the module must be importable from the current folder or installed",
        ) from error
    cls = getattr(module, class_name, None)
    if not isinstance(cls, type):
        classes = [key for key, value in vars(module).items() if isinstance(value, type) and hasattr(value, "Config")]
        near = nearest(class_name, classes)
        raise ConfigError(
            f"{module_name} has no class {class_name}",
            where=where,
            value=name,
            fix=f"did you mean {module_name}:{near}?" if near else f"define it in {module.__file__}",
        )
    from trivium.config import StrictModel

    settings = getattr(cls, "Config", None)
    if not (isinstance(settings, type) and issubclass(settings, StrictModel)):
        raise ConfigError(
            f"{name} has no nested class Config derived from trivium.config.StrictModel",
            where=where,
            fix="add it: 'class Config(StrictModel): ...' holds the settings",
        )
    return cls


def _unknown(folder: Folder, name: str, where: str | None) -> ConfigError:
    known = names(folder)
    near = nearest(name, known)
    listed = ", ".join(known) or "none yet"
    return ConfigError(
        f"there is no {SINGULAR[folder]} {name!r}",
        where=where,
        fix=f"did you mean {near}? (known: {listed})" if near else f"known: {listed}; or package.module:Class",
    )
