"""What a run ran on: recorded with it, and compared when it is continued elsewhere."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from trivium.artifacts.record import code_version
from trivium.artifacts.secrets import redact_command
from trivium.threads import usable_cores

_PACKAGES = (
    "trivium", "torch", "numpy", "safetensors", "tokenizers", "transformers", "pydantic", "typer", "rich", "jinja2",
    "pyarrow", "pyyaml", "tensorboard", "datasketch", "peft", "trl",
)  # fmt: skip
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "WORLD_SIZE")


def environment() -> dict[str, Any]:
    """Versions, processor, threads, ranks and command line, as JSON values and without secrets.

    Torch is described only where it has been imported already.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _processor(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "torch": _torch(),
        "packages": _versions(),
        "code": code_version(),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "command": redact_command(sys.argv),
    }


_ARITHMETIC = ("torch version", "torch kernels", "torch capability", "torch gpus", "cpu flags")
"""What decides how sums are rounded."""


def other_arithmetic(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What a run is continued with, where numbers are rounded otherwise than before: `torch kernels: C, now torch`."""
    found = []
    for name in _ARITHMETIC:
        part, key = name.split()
        old, new = ((each.get(part) or {}).get(key) for each in (before, now))
        if None not in (old, new) and old != new:
            found.append(f"{name}: {old}, now {new}")
    return found


def _processor() -> dict[str, Any]:
    """`flags` is a hash: equal flags choose equal kernels."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(errors="replace").splitlines() if information.exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", fields.get("Features", ""))
    return {
        "model": fields.get("model name", platform.processor() or platform.machine()),
        "flags": hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()[:16],
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
    }


def _torch() -> dict[str, Any] | None:
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_num_threads"):
        return None
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "kernels": None if gpus else _kernels(),
        "cuda": torch.version.cuda,
        "gpus": gpus,
    }


def _kernels() -> str | None:
    """Whose kernels compute on the CPU; None where no model was."""
    parts = [sys.modules.get(f"trivium.models.native_{name}") for name in ("attention", "elementwise")]
    loaded = [part.kernel() is not None for part in parts if part is not None]
    return None if len(loaded) < len(parts) else "C" if all(loaded) else "torch"


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
