"""Planted faults: the doctor finds each of them, and says what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trivium.cli.checks import machine, selftest, software
from trivium.cli.checks.findings import Check, Finding, run_check
from trivium.cli.main import run
from trivium.models import native_attention, native_blocks

Plant = Callable[[pytest.MonkeyPatch, Path], Any]


def attribute(where: Any, name: str, value: Any) -> Plant:
    """A fault that replaces something the check looks at."""
    return lambda patch, folder: patch.setattr(where, name, value)


def environment(**values: str) -> Plant:
    def plant(patch: pytest.MonkeyPatch, folder: Path) -> None:
        for name, value in values.items():
            patch.setenv(name, value)

    return plant


def together(*plants: Plant) -> Plant:
    return lambda patch, folder: [plant(patch, folder) for plant in plants]


def usage(free: int) -> Plant:
    return attribute(shutil, "disk_usage", lambda path: SimpleNamespace(total=1 << 40, used=0, free=free))


def failing(error: Exception) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise error

    return call


def versions(**known: str | None) -> Plant:
    original = software.installed_version
    return attribute(software, "installed_version", lambda name: known.get(name, original(name)))


def hiding_file(patch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "tokenizers.py").write_text("")
    patch.chdir(folder)
    patch.syspath_prepend(str(folder))


def broken_compiler(patch: pytest.MonkeyPatch, folder: Path) -> None:
    compiler = folder / "broken-compiler"
    compiler.write_text("#!/bin/sh\necho no headers here >&2\nexit 1\n")
    compiler.chmod(0o755)
    patch.setenv("CXX", str(compiler))


def no_headers(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    patch.setattr(software.sysconfig, "get_path", lambda name: str(folder))


def gpu(name: str, major: int) -> Plant:
    found = SimpleNamespace(name=name, total_memory=16 << 30, major=major, minor=0)
    return together(
        attribute(torch.cuda, "is_available", lambda: True),
        attribute(torch.cuda, "device_count", lambda: 1),
        attribute(torch.cuda, "get_device_properties", lambda number: found),
    )


no_gpu_found = attribute(torch.cuda, "is_available", lambda: False)
driver = attribute(machine, "nvidia_driver", lambda: "470.0")
wrong_gradient = attribute(
    selftest, "gradients", lambda parts, whole=selftest.gradients: [g * (1 + 1e-6 * len(parts)) for g in whole(parts)]
)
losses = iter(range(100, 0, -1))

# name -> (check, fault, level, words in the message, words in the fix)
FAULTS: dict[str, tuple[Check, Plant, str, str, str]] = {
    "old Python": (software.check_python, attribute(sys, "version_info", (3, 9, 1)), "fail", "3.9.1", "3.11"),
    "32-bit Python": (software.check_python, attribute(sys, "maxsize", 2**31 - 1), "fail", "32-bit", "64-bit"),
    "assertions off": (
        software.check_python,
        attribute(sys, "flags", SimpleNamespace(optimize=1)),
        "warn",
        "assertions",
        "PYTHONOPTIMIZE",
    ),
    "package missing": (software.check_packages, versions(jinja2=None), "fail", "jinja2", "pip install jinja2"),
    "packages that conflict": (
        software.check_packages,
        versions(tokenizers=None, typer="0.1", pydantic_core="0.1", **{"pydantic-core": "0.1"}),
        "fail",
        "pydantic needs pydantic-core",
        "pip install 'pydantic-core",
    ),
    "no kernel for decoding": (
        software.check_kernels,
        attribute(native_blocks, "decoder", lambda: None),
        "warn",
        "third of the speed",
        "C compiler",
    ),
    "no kernel for attention": (
        software.check_kernels,
        attribute(native_attention, "kernel", lambda: None),
        "warn",
        "third of the speed",
        "C compiler",
    ),
    "file that hides a package": (software.check_shadowing, hiding_file, "fail", "hides", "rename tokenizers.py"),
    "torch that does not load": (
        software.check_torch,
        attribute(software.importlib, "import_module", failing(OSError("libgomp.so.1: cannot open"))),
        "fail",
        "libgomp",
        "pip install",
    ),
    "old torch": (software.check_torch, attribute(torch, "__version__", "2.3.1+cpu"), "fail", "2.3.1", ">=2.11"),
    "torch for another numpy": (
        software.check_torch,
        attribute(torch, "zeros", lambda n: SimpleNamespace(numpy=failing(RuntimeError("Numpy is not available")))),
        "fail",
        "another numpy",
        "numpy torch",
    ),
    "too many threads": (
        software.check_torch,
        attribute(torch, "get_num_threads", lambda: 999),
        "warn",
        "999 threads",
        "OMP_NUM_THREADS",
    ),
    "too few threads": (
        software.check_torch,
        together(
            environment(OMP_NUM_THREADS="1"),
            attribute(software, "usable_cores", lambda: 16),
            attribute(torch, "get_num_threads", lambda: 1),
        ),
        "warn",
        "1 of 16 cores (OMP_NUM_THREADS=1)",
        "unset OMP_NUM_THREADS",
    ),
    "no fast kernels": (
        software.check_torch,
        together(
            attribute(torch.backends.mkldnn, "is_available", lambda: False),
            attribute(torch.backends.mkl, "is_available", lambda: False),
        ),
        "warn",
        "neither oneDNN nor MKL",
        "pytorch.org",
    ),
    "slow instruction set": (
        software.check_torch,
        environment(ATEN_CPU_CAPABILITY="default"),
        "warn",
        "instruction set",
        "unset ATEN_CPU_CAPABILITY",
    ),
    "no compiler": (
        software.check_compiler,
        together(
            lambda patch, folder: patch.delenv("CXX", raising=False), attribute(shutil, "which", lambda name: None)
        ),
        "warn",
        "no C++ compiler",
        "train.compile=off",
    ),
    "compiler that is not there": (software.check_compiler, environment(CXX="g++-0"), "warn", "g++-0", "g++"),
    "compiler that fails": (software.check_compiler, broken_compiler, "warn", "no headers here", "train.compile=off"),
    "no header files": (software.check_compiler, no_headers, "warn", "header files", "python3-dev"),
    "optional packages missing": (
        software.check_extras,
        attribute(software.importlib.util, "find_spec", lambda name: None),
        "warn",
        "pyarrow",
        "trivium[data]",
    ),
    "text that is not UTF-8": (
        software.check_text,
        attribute(sys, "getfilesystemencoding", lambda: "ascii"),
        "warn",
        "ascii",
        "PYTHONUTF8=1",
    ),
    "disk nearly full": (machine.check_disk, usage(3 << 30), "warn", "3.0 GiB", "--runs"),
    "disk full": (machine.check_disk, usage(1 << 20), "fail", "0.0 GiB", "free some space"),
    "no more files": (
        machine.check_disk,
        together(usage(1 << 40), attribute(os, "statvfs", lambda path: SimpleNamespace(f_files=10**6, f_favail=3))),
        "fail",
        "3 more files",
        "--runs",
    ),
    "network disk": (
        machine.check_disk,
        attribute(machine, "file_system", lambda path: "nfs4"),
        "warn",
        "nfs4",
        "local",
    ),
    "disk that may not be written": (
        machine.check_disk,
        attribute(machine.tempfile, "TemporaryFile", failing(PermissionError(13, "Permission denied"))),
        "fail",
        "Permission denied",
        "--runs",
    ),
    "slow disk": (
        machine.check_disk,
        attribute(machine, "disk_speed", lambda folder: (1 << 20, 0.5)),
        "warn",
        "1 MiB/s, 500 ms for one flush",
        "train.checkpoint_every",
    ),
    "little memory": (
        machine.check_memory,
        attribute(machine, "available_memory", lambda: 2 << 30),
        "warn",
        "2.0",
        "micro",
    ),
    "no memory": (
        machine.check_memory,
        attribute(machine, "available_memory", lambda: 1 << 20),
        "fail",
        "0.0",
        "close",
    ),
    "torch without CUDA": (
        machine.check_gpu,
        together(no_gpu_found, driver, attribute(torch.version, "cuda", None)),
        "warn",
        "for CPUs only",
        "CUDA",
    ),
    "driver too old": (
        machine.check_gpu,
        together(no_gpu_found, driver, attribute(torch.version, "cuda", "13.0")),
        "warn",
        "driver 470.0",
        "update the NVIDIA driver",
    ),
    "GPU hidden": (
        machine.check_gpu,
        together(no_gpu_found, driver, environment(CUDA_VISIBLE_DEVICES="")),
        "warn",
        "hides",
        "unset",
    ),
    "GPU without bfloat16": (machine.check_gpu, gpu("Tesla T4", 7), "warn", "no bfloat16", "fp16"),
    "no shared memory": (
        machine.check_processes,
        attribute(
            machine.multiprocessing, "get_context", lambda kind: SimpleNamespace(Lock=failing(OSError("no /dev/shm")))
        ),
        "fail",
        "no /dev/shm",
        "--shm-size",
    ),
    "little shared memory": (machine.check_processes, usage(1 << 20), "warn", "/dev/shm", "--shm-size"),
    "processes that do not start": (
        machine.check_processes,
        attribute(machine.subprocess, "run", failing(OSError("Resource temporarily unavailable"))),
        "fail",
        "could not be started",
        "ulimit -u",
    ),
    "few open files": (
        machine.check_processes,
        attribute(machine, "open_file_limit", lambda: 256),
        "warn",
        "256 files",
        "ulimit -n",
    ),
    "clock in the past": (machine.check_clock, attribute(time, "time", lambda: 10**8), "fail", "before", "set-ntp"),
    "gradients that depend on the split": (selftest.check_selftest, wrong_gradient, "fail", "split batch", "report"),
    "steps that do not repeat": (
        selftest.check_selftest,
        attribute(selftest, "train", lambda steps: [next(losses), 1.0]),
        "fail",
        "different results",
        "report",
    ),
    "steps that do not learn": (
        selftest.check_selftest,
        attribute(selftest, "train", lambda steps: [4.0, 4.0]),
        "fail",
        "did not lower the loss",
        "report",
    ),
    "check that breaks": (
        machine.check_memory,
        attribute(machine, "available_memory", failing(ZeroDivisionError("oh"))),
        "fail",
        "ZeroDivisionError: oh",
        "pip check",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check, plant, level, message, fix = FAULTS[name]
    plant(monkeypatch, tmp_path)
    findings = run_check(check, tmp_path / "runs")
    monkeypatch.undo()
    found = [finding for finding in findings if message in finding.message]
    assert found, findings
    assert found[0].level == level
    assert fix in (found[0].fix or "")


def test_a_finding_needs_a_fix() -> None:
    Finding("x", "ok", "fine")
    with pytest.raises(AssertionError):
        Finding("x", "warn", "not fine")


@pytest.fixture(scope="module")
def whole() -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "trivium", "doctor", "--json"]
    return subprocess.run(command, capture_output=True, text=True, cwd=root, check=False, timeout=120)


def test_the_whole_examination(whole: subprocess.CompletedProcess[str]) -> None:
    result = json.loads(whole.stdout)
    names = {finding["name"] for finding in result["findings"]}
    assert {"python", "trivium", "packages", "torch", "threads", "kernels", "compiler", "extras", "text"} <= names
    assert {"disk", "memory", "gpu", "processes", "clock", "self-test"} <= names
    failed = [finding for finding in result["findings"] if finding["level"] == "fail"]
    assert whole.returncode == (2 if failed else 0)
    assert all(finding["fix"] for finding in result["findings"] if finding["level"] != "ok")
    assert whole.stderr == ""


def test_a_failure_is_an_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(runs: Path) -> Any:
        yield Finding("thing", "fail", "it is broken", "mend it")

    for module, checks in ((software, (broken,)), (machine, ()), (selftest, ())):
        monkeypatch.setattr(module, "CHECKS", checks)
    assert run(["doctor"]) == 2
    text = capsys.readouterr().out
    assert "it is broken" in text and "fix: mend it" in text and "1 failures" in text


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for check in machine.CHECKS:
        run_check(check, tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []
