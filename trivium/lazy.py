"""Torch, imported at first use.

Configuration checks, `--help` and completion must not pay for `import torch`. Files that are read for their
`Config` class (methods, transforms, optimisers) write `from trivium.lazy import torch` and use `torch.<name>`
inside functions only; the import then happens when the first attribute is read.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class LazyModule(ModuleType):
    """Stands for a module until one of its attributes is read."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


def lazy_attributes(package: str, where: dict[str, str]) -> Any:
    """A module-level `__getattr__` for `package` that imports attribute -> submodule at first use."""

    def __getattr__(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(where[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return __getattr__


def is_sharded(value: object) -> TypeGuard[DTensor]:
    """Whether it is a DTensor. Where none was ever made, what makes them is not imported: half a second, 25 MiB."""
    maker = sys.modules.get("torch.distributed.tensor")
    return maker is not None and isinstance(value, maker.DTensor)


if TYPE_CHECKING:
    import torch as torch
else:
    torch = LazyModule("torch")
