"""The environments of the peers: benchmarks/.envs/<name>, at the versions of constraints.txt, without the product."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ENVIRONMENTS = Path(__file__).parent / ".envs"
DATA = Path(os.environ.get("TRIVIUM_DATA", ROOT.parent / "shared" / "data"))


def declared(script: Path) -> dict[str, Any]:
    """The literal `WORKLOAD` of a script; its keys are described in `record.py`."""
    for node in ast.parse(script.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["WORKLOAD"]:
            found: dict[str, Any] = ast.literal_eval(node.value)
            return found
    return {}


def workloads() -> dict[str, Path]:
    """The scripts that declare how they are started, by name."""
    found = sorted(Path(__file__).parent.rglob("*.py"))
    return {
        named(path): path
        for path in found
        if ".envs" not in path.parts and "\nWORKLOAD" in path.read_text(encoding="utf-8")
    }


def named(script: Path) -> str:
    """Name of the workload of a script: its own, or that of its folder."""
    return script.parent.name if script.stem == "__main__" else script.stem


def interpreter(workload: dict[str, Any]) -> str:
    """Python of the environment of a workload, with its packages; what is missing is installed."""
    name = workload.get("environment", "peers")
    folder = ENVIRONMENTS / name
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"making the environment {folder} ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    wanted = [*workload["peers"], *([f"-e {ROOT}"] if workload.get("together") else [])]
    stamp = folder / "installed.txt"
    installed = stamp.read_text(encoding="utf-8").splitlines() if stamp.exists() else []
    missing = [package for package in wanted if package not in installed]
    if missing:
        print(f"installing {', '.join(missing)} into {folder} ...", flush=True)
        constraints = folder / "constraints.txt"
        constraints.write_text(_constraints(workload.get("unpinned", ())), encoding="utf-8")
        # All that was asked for before is named again, so that pip keeps it consistent.
        packages = [word for package in [*installed, *missing] for word in package.split(" ", 1)]
        pip = [str(python), "-m", "pip", "install", "-qq", "--prefer-binary", "--disable-pip-version-check"]
        subprocess.run([*pip, "-c", str(constraints), *packages], check=True)
        stamp.write_text("\n".join([*installed, *missing]) + "\n", encoding="utf-8")
    return str(python)


def _constraints(unpinned: Any) -> str:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if re.split("[=<>]", line)[0] not in unpinned) + "\n"
