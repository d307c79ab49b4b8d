"""Checks of Python, the packages, torch, the compiler and the environment of the process."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

from trivium.cli.checks.findings import Check, Finding
from trivium.lazy import torch
from trivium.threads import usable_cores

OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 11)
CORE = ("torch", "numpy", "safetensors", "tokenizers", "pydantic", "PyYAML", "typer", "rich", "jinja2")
EXTRAS = {
    "pyarrow": ("data", "parquet files"),
    "zstandard": ("data", ".zst files"),
    "tensorboard": ("tensorboard", "train.tensorboard=true"),
    "sacrebleu": ("evaluation", "BLEU and chrF of generated texts"),
}
_COMPILER_TEST = "#include <Python.h>\n#include <vector>\nint main() { return std::vector<int>(1)[0]; }\n"


def check_python(runs: Path) -> Iterator[Finding]:
    """Version, word size, and assertions switched off."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        yield Finding("python", "fail", f"Python {version} is too old", f"install Python {oldest} or newer")
    elif sys.maxsize < 2**32:
        yield Finding("python", "fail", "this Python is a 32-bit program", "install a 64-bit Python")
    elif sys.flags.optimize:
        fix = "unset PYTHONOPTIMIZE and do not start python with -O"
        yield Finding("python", "warn", f"Python {version} runs without assertions", fix)
    else:
        yield Finding("python", "ok", f"Python {version} at {sys.executable}")


def check_packages(runs: Path) -> Iterator[Finding]:
    """Trivium, what it needs, and versions that do not fit together."""
    from trivium import __version__

    place = Path(__file__).parents[1]
    yield Finding("trivium", "ok", f"trivium {__version__} in {place}")
    missing = [name for name in CORE if installed_version(name) is None]
    if missing:
        fix = f"python -m pip install {' '.join(missing)}"
        yield Finding("packages", "fail", f"not installed: {', '.join(missing)}", fix)
    own = ["trivium"] if installed_version("trivium") else []
    conflicts = package_conflicts([*own, *(name for name in CORE if name not in missing)])
    for wanted, found in conflicts:
        yield Finding(
            "packages", "fail", f"{wanted}, but {found}", f"python -m pip install '{wanted.split(' needs ')[1]}'"
        )
    if not missing and not conflicts:
        yield Finding("packages", "ok", "everything needed is installed, and the versions fit together")


def installed_version(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def package_conflicts(names: list[str]) -> list[tuple[str, str]]:
    """(what needs what, what there is instead) over these packages and all that they need."""
    if importlib.util.find_spec("packaging") is None:
        return []
    # Not a dependency of Trivium, but there wherever tokenizers is (through huggingface_hub).
    Requirement = importlib.import_module("packaging.requirements").Requirement
    conflicts, seen, waiting = [], set(), list(names)
    while waiting:
        name = waiting.pop()
        if name.lower() in seen:
            continue
        seen.add(name.lower())
        for line in importlib.metadata.requires(name) or []:
            needed = Requirement(line)
            if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
                continue
            version = installed_version(needed.name)
            if version is None:
                conflicts.append((f"{name} needs {needed.name}{needed.specifier}", "it is not installed"))
            elif not needed.specifier.contains(version, prereleases=True):
                conflicts.append((f"{name} needs {needed.name}{needed.specifier}", f"{version} is installed"))
            else:
                waiting.append(needed.name)
    return conflicts


def check_shadowing(runs: Path) -> Iterator[Finding]:
    """A file of the user's with the name of a package is imported instead of the package."""
    if not {"", str(Path.cwd())} & set(sys.path):
        return
    names = {name.lower() for name in CORE} | {"yaml", "trivium"} | set(sys.stdlib_module_names)
    for file in sorted(Path.cwd().glob("*.py")):
        if file.stem in names:
            message = f"{file} hides the package {file.stem}"
            yield Finding("shadowing", "fail", message, f"rename {file.name}, or work in another folder")


def check_torch(runs: Path) -> Iterator[Finding]:
    """Version, threads and fast kernels."""
    try:
        version = importlib.import_module("torch").__version__
    except (ImportError, OSError) as error:
        words = " ".join(str(error).split())[:200]
        fix = "python -m pip install --force-reinstall torch (see https://pytorch.org for the right build)"
        yield Finding("torch", "fail", f"torch cannot be imported: {words}", fix)
        return
    if tuple(int(part) for part in version.split("+")[0].split(".")[:2]) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        fix = f"python -m pip install --upgrade 'torch>={oldest}'"
        yield Finding("torch", "fail", f"torch {version} is too old", fix)
        return
    try:
        torch.zeros(1).numpy()
    except RuntimeError:
        fix = "python -m pip install --upgrade numpy torch"
        yield Finding("torch", "fail", "this torch was built for another numpy", fix)
        return
    yield Finding("torch", "ok", f"torch {version}")
    yield _threads()
    yield _kernels()


def _threads() -> Finding:
    cores, threads = usable_cores(), torch.get_num_threads()
    asked = os.environ.get("OMP_NUM_THREADS")
    reason = f" (OMP_NUM_THREADS={asked})" if asked else ""
    if threads > cores:
        fix = "unset OMP_NUM_THREADS, or set it to the number of cores"
        return Finding("threads", "warn", f"{threads} threads share {cores} cores{reason}: slow", fix)
    if threads < cores // 2 or (asked and threads < cores):
        fix = "unset OMP_NUM_THREADS, or set train.threads"
        return Finding("threads", "warn", f"torch uses {threads} of {cores} cores{reason}", fix)
    return Finding("threads", "ok", f"{threads} threads on {cores} cores")


def _kernels() -> Finding:
    capability = torch.backends.cpu.get_cpu_capability()
    backends = {"oneDNN": torch.backends.mkldnn, "MKL": torch.backends.mkl}
    libraries = [name for name, backend in backends.items() if backend.is_available()]
    if not libraries:
        fix = "install the torch build from https://pytorch.org for this processor"
        return Finding("kernels", "warn", "this torch has neither oneDNN nor MKL: matrix products are slow", fix)
    if capability == "DEFAULT" or "ATEN_CPU_CAPABILITY" in os.environ:
        fix = "unset ATEN_CPU_CAPABILITY; in a virtual machine, let it see the processor's features"
        return Finding("kernels", "warn", f"torch uses the instruction set {capability} only", fix)
    return Finding("kernels", "ok", f"{capability}, {' and '.join(libraries)}")


def check_compiler(runs: Path) -> Iterator[Finding]:
    """What torch.compile needs; without it training works, only slower."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++")), None)
    install = "xcode-select --install" if sys.platform == "darwin" else "apt install g++ python3-dev (or the like)"
    fix = f"{install}; or set train.compile=off"
    if compiler is None or shutil.which(compiler.split()[0]) is None:
        found = f"CXX={compiler} does not exist" if compiler else "there is no C++ compiler"
        yield Finding("compiler", "warn", f"{found}, so torch.compile cannot be used", fix)
        return
    headers = sysconfig.get_path("include")
    if not (Path(headers) / "Python.h").is_file():
        yield Finding(
            "compiler", "warn", f"Python's header files are missing ({headers}), torch.compile needs them", fix
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [*compiler.split(), "-std=c++17", "-fopenmp", f"-I{headers}", "-x", "c++", "-", "-c"]
        done = subprocess.run(
            [*command, "-o", f"{folder}/test.o"],
            input=_COMPILER_TEST,
            text=True,
            capture_output=True,
            timeout=60,
            check=False,
        )
    if done.returncode:
        words = " ".join((done.stderr or "no message").split())[:160]
        yield Finding("compiler", "warn", f"{compiler} cannot compile a small program: {words}", fix)
    else:
        yield Finding("compiler", "ok", f"{compiler} with Python's headers")


def check_kernels(runs: Path) -> Iterator[Finding]:
    """What trains and writes text on a CPU; without it all works, only slower."""
    from trivium.models import native, native_attention, native_blocks, native_elementwise

    found = {
        "kernels": (native_blocks.decoder(), native_attention.kernel(), native_elementwise.kernel()),
        "allocator": (sys.platform != "linux" or native.allocator(),),
    }
    missing = [name for name, parts in found.items() if not all(parts)]
    if not missing:
        yield Finding("kernels", "ok", "those in C, and the allocator, are compiled and compute what torch does")
    elif os.environ.get("TRIVIUM_NATIVE") == "0":
        yield Finding("kernels", "ok", "torch's operators, as TRIVIUM_NATIVE=0 asks")
    else:
        fix = "install a C compiler with OpenMP and a C++ compiler (apt install g++), or name them in CC and CXX"
        slow = {
            "kernels": "attention takes twice as long, and text is written at a third of the speed",
            "allocator": "training takes up to half as much memory again",
        }
        yield Finding("kernels", "warn", f"not compiled: {'; '.join(f'{name}: {slow[name]}' for name in missing)}", fix)


def check_extras(runs: Path) -> Iterator[Finding]:
    """Packages that only some data or settings need."""
    missing = {name: extra for name, extra in EXTRAS.items() if importlib.util.find_spec(name) is None}
    for name, (extra, purpose) in missing.items():
        yield Finding(
            "extras", "warn", f"{name} is not installed, needed for {purpose}", f"pip install 'trivium[{extra}]'"
        )
    if not missing:
        yield Finding("extras", "ok", f"{', '.join(EXTRAS)} are installed")


def check_text(runs: Path) -> Iterator[Finding]:
    """Text must be UTF-8 on the way in and out."""
    output = getattr(sys.stdout, "encoding", None) or "utf-8"
    files = sys.getfilesystemencoding()
    wrong = [name for name in (output, files) if name.lower().replace("-", "") not in ("utf8", "utf8sig")]
    if wrong:
        fix = "export PYTHONUTF8=1 LC_ALL=C.UTF-8"
        yield Finding("text", "warn", f"text is written as {wrong[0]}: characters will be lost", fix)
    else:
        yield Finding("text", "ok", "UTF-8")


CHECKS: tuple[Check, ...] = (
    check_python,
    check_packages,
    check_shadowing,
    check_torch,
    check_compiler,
    check_kernels,
    check_extras,
    check_text,
)
