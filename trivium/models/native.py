"""Our kernels in C, compiled once on the machine they run on.

The system's C compiler makes them for the processor at hand, in two seconds, and they are kept in the user's cache
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
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("decode.c", "attention.c", "elementwise.c", "vectors.h"))
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they cannot be had. Whoever calls one checks first that it computes right."""
    if os.environ.get("TRIVIUM_NATIVE", "1") == "0" or os.name != "posix":
        return None
    try:
        return ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.SubprocessError):
        return None


@contextmanager
def as_usual() -> Iterator[None]:
    """For the check of a kernel, which may be asked for anywhere: tensors on the CPU, with gradients, not cast."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False), torch.device("cpu"):
        yield


def _compiled() -> Path:
    """The shared library, compiled now if it is not in the cache folder."""
    compiler = shlex.split(os.environ.get("CC", "")) or [shutil.which("cc") or shutil.which("gcc") or "cc"]
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True, timeout=20).stdout
    sources = [source.read_text(encoding="utf-8") for source in _SOURCES]
    key = "\n".join([*sources, version, *compiler, *_FLAGS, *_processor()])
    name = f"kernels-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    files = [str(source) for source in _SOURCES if source.suffix == ".c"]
    for folder in _folders():
        target = folder / name
        if target.exists():
            return target
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryDirectory(dir=folder) as place:
                made = Path(place) / name
                command = [*compiler, *_FLAGS, "-o", str(made), *files, "-lm"]
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


def _processor() -> list[str]:
    """What `-march=native` depends on."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(errors="replace").splitlines() if information.exists() else []
    kinds = {line.partition(":")[0].strip(): line for line in lines}
    return [platform.machine(), *(kinds[kind] for kind in ("model name", "flags", "Features") if kind in kinds)]


def pointer(tensor: Tensor | None) -> int | None:
    """Where its numbers begin, for a kernel."""
    return None if tensor is None else tensor.data_ptr()
