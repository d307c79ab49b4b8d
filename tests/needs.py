"""Marks of tests that need something of the machine."""

from __future__ import annotations

import os
import shutil

import pytest


def _needs(name: str, *compilers: str) -> pytest.MarkDecorator:
    """Skips where there is no compiler. Kernels that are not there for another reason should fail their tests."""
    missing = not any(map(shutil.which, compilers)) or os.environ.get("TRIVIUM_NATIVE") == "0"
    return pytest.mark.skipif(missing, reason=f"no {name} compiler here")


needs_compiler = _needs("C", "cc", "gcc")
needs_cpp_compiler = _needs("C++", "c++", "g++")
