"""Marks of tests that need something of the machine."""

from __future__ import annotations

import os
import shutil

import pytest

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc"))) or os.environ.get("TRIVIUM_NATIVE") == "0",
    reason="no C compiler here",
)
"""Kernels in C. Whether they are there is no condition: kernels that do not compile should fail their tests."""
