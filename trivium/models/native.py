"""Our kernels in C and our allocator in C++, compiled once on the machine they run on.

The system's compiler makes them for the processor at hand, in two seconds, and they are kept in the user's cache
folder ($TRIVIUM_CACHE, $XDG_CACHE_HOME/trivium or ~/.cache/trivium). Where there is no compiler, or with
TRIVIUM_NATIVE=0, torch's operators do the same.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

_KERNELS = ("decode.c", "attention.c", "elementwise.c", "vectors.h")
_FLAGS = ("-march=native", "-fopenmp")
_TORCH = Path(torch.__file__).parent


class _Build(NamedTuple):
    """How a shared library is made. compilers: the variable that names one, and what it is called otherwise. key: what
    else the result depends on."""

    name: str
    sources: tuple[str, ...]
    compilers: tuple[str, ...]
    flags: tuple[str, ...]
    libraries: tuple[str, ...]
    key: tuple[str, ...]


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they cannot be had. Whoever calls one checks first that it computes right."""
    return _loaded(_Build("kernels", _KERNELS, ("CC", "cc", "gcc"), ("-O3", *_FLAGS), ("-lm",), _processor()))


@cache
def allocator() -> ctypes.CDLL | None:
    """The compiled allocator, not installed yet; None where it cannot be had."""
    if sys.platform != "linux":
        return None
    flags, libraries = ("-O2", "-std=c++20", f"-I{_TORCH / 'include'}"), (f"-L{_TORCH / 'lib'}", "-lc10")
    compilers, key = ("CXX", "c++", "g++"), (torch.__version__,)
    return _loaded(_Build("allocator", ("allocator.cpp",), compilers, flags, libraries, key))


def checked(loaded: ctypes.CDLL | None, right: Callable[[], bool]) -> ctypes.CDLL | None:
    """`loaded` if what it computes is right; wherever that is asked for first."""
    if loaded is None:
        return None
    with _as_usual():
        return loaded if right() else None


def _loaded(build: _Build) -> ctypes.CDLL | None:
    if os.environ.get("TRIVIUM_NATIVE", "1") == "0" or os.name != "posix":
        return None
    try:
        return ctypes.CDLL(str(_compiled(build)))
    except (OSError, subprocess.SubprocessError):
        return None


@contextmanager
def _as_usual() -> Iterator[None]:
    """Tensors on the CPU, with gradients, not cast; what is saved for them does not concern checkpointed blocks."""

    def same(x: Tensor) -> Tensor:
        return x

    saves = torch.autograd.graph.saved_tensors_hooks(same, same)
    casts = torch.autocast("cpu", enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), casts, torch.device("cpu"), saves:
        yield


def _compiled(build: _Build) -> Path:
    """The shared library, compiled now if it is not in the cache folder."""
    variable, *names = build.compilers
    compiler = shlex.split(os.environ.get(variable, ""))
    compiler = compiler or [next(filter(None, map(shutil.which, names)), names[0])]
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True, timeout=20).stdout
    files = [Path(__file__).with_name(source) for source in build.sources]
    texts = [file.read_text(encoding="utf-8") for file in files]
    text = "\n".join([*texts, version, *compiler, *build.flags, *build.libraries, *build.key])
    name = f"{build.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    inputs = [str(file) for file in files if file.suffix != ".h"]
    for folder in _folders():
        target = folder / name
        if target.exists():
            return target
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryDirectory(dir=folder) as place:
                made = Path(place) / name
                command = [*compiler, "-fPIC", "-shared", *build.flags, "-o", str(made), *inputs, *build.libraries]
                subprocess.run(command, capture_output=True, check=True, timeout=120)
                made.replace(target)  # whole or not at all, also when several processes compile at once
            return target
        except OSError:
            continue
    raise OSError("no folder to compile in")


def _folders() -> list[Path]:
    """Where the library may be kept, the first that can be written to."""
    own = os.environ.get("TRIVIUM_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    found = [Path(own)] if own else [Path(base) / "trivium"] if base else []
    with suppress(RuntimeError):  # nobody's home
        found.append(Path.home() / ".cache" / "trivium")
    return found


def _processor() -> tuple[str, ...]:
    """What `-march=native` depends on."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(errors="replace").splitlines() if information.exists() else []
    kinds = {line.partition(":")[0].strip(): line for line in lines}
    return platform.machine(), *(kinds[kind] for kind in ("model name", "flags", "Features") if kind in kinds)


def pointer(tensor: Tensor | None) -> int | None:
    """Where its numbers begin, for a kernel."""
    return None if tensor is None else tensor.data_ptr()
