"""Benchmarks by name: sets up the peers, runs a workload, keeps every measurement.

    python benchmarks                      what there is
    python benchmarks NAME [ARGUMENT...]   one workload; arguments are added to its own
    python benchmarks --all                every workload whose data is there
    python benchmarks --table [FOLDER]     the table of the files in a folder (default: those published)
    python benchmarks --plot FILE.svg [FOLDER]

`--peer-python PATH` among the arguments is an environment of your own, and none is set up.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from peers import DATA, ROOT, declared, interpreter, workloads


def start(name: str, arguments: list[str]) -> int:
    """Runs one workload; returns its exit code."""
    script = workloads()[name]
    workload = declared(script)
    absent = [folder for folder in workload.get("data", ()) if not (DATA / folder).exists()]
    if absent:
        print(f"{name}: left out, there is no {', '.join(absent)} in {DATA} (TRIVIUM_DATA names another folder)")
        return 0
    python = sys.executable
    own = [argument.replace("{data}", str(DATA)) for argument in workload.get("arguments", ())]
    if "peers" in workload and "--peer-python" not in arguments:
        theirs = interpreter(workload)
        if workload.get("together"):
            python = theirs
        else:
            own += ["--peer-python", theirs]
            for side, apart in workload.get("apart", {}).items():
                own += ["--python-of", side, interpreter(apart)]
    elif workload.get("together"):
        place = arguments.index("--peer-python")
        python = arguments[place + 1]
        arguments = arguments[:place] + arguments[place + 2 :]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRIVIUM_DATA": str(DATA)}
    print(f"{name}:", flush=True)
    return subprocess.run([python, str(script), *own, *arguments], env=environment).returncode


def main(arguments: list[str]) -> int:
    """The command line."""
    match arguments:
        case [] | ["-h" | "--help"]:
            print(__doc__)
            for name, script in workloads().items():
                first = script.read_text(encoding="utf-8").splitlines()[0]
                print(f"{name:16} {first[3:]}")
            return 0
        case ["--all"]:
            return max(start(name, []) for name in workloads())
        case ["--table" | "--plot" as what, *rest]:
            from record import RESULTS, plot, read, table

            target, folder = (rest[0], rest[1:]) if what == "--plot" else ("", rest)
            records = read(Path(folder[0]) if folder else RESULTS)
            if what == "--plot":
                Path(target).write_text(plot(records), encoding="utf-8")
            else:
                print(table(records))
            return 0
        case [name, *rest] if name in workloads():
            return start(name, rest)
    sys.exit(f"there is no workload {arguments[0]}: choose one of {', '.join(workloads())}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
