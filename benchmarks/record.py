"""What every benchmark does with its figures: keep them with the machine and the versions, print a table, draw a plot.

A script measures as it likes and ends with one call:

    from record import save

    runs = {"ours": [{"seconds": 1.9}, {"seconds": 2.0}], "transformers": [{"seconds": 3.1}, {"seconds": 3.3}]}
    save(__file__, runs, better={"seconds": "less"}, out=arguments.out, peer_python=arguments.peer_python)

`runs` has one list for each side, in the order measured; the n-th of one side was measured beside the n-th of every
other one, so the sides must take turns. The first side is ours, the others are peers. `better` names the figures that
are compared, and whether "more" or "less" of each is better; whatever else a measurement holds is kept as well. A ratio
is ours / theirs of the medians; its spread goes from the least to the largest ratio of a pair. Sides whose names begin
with `ours` are settings of ours: peers are compared with the best of them. A benchmark that
compares nothing gives what it found as `result` instead.

The file goes to `out`, by default to runs/benchmarks/<workload>-<date>.json. `python benchmarks --table` and
`--plot FILE.svg` read such files again: those in the folder `results` are published, runs/benchmarks is not.

Beside its docstring a script declares how `python benchmarks <workload>` starts it, as a literal (it is read without
importing the script):

    WORKLOAD = {
        "peers": ["trl", "gensim==4.4.0"],      # packages of the other sides; versions are those of constraints.txt
        "environment": "peers",                 # name of their environment; another one if the packages conflict
        "unpinned": ["xxhash"],                 # constraints that do not hold there
        "apart": {"litgpt": {"peers": [...]}},  # sides with an environment of their own, declared in the same way
        "together": False,                      # True: the script itself needs the peers, so it runs in there
        "data": ["alpaca_1k"],                  # folders of TRIVIUM_DATA without which it is left out
        "arguments": ["--pairs", "3"],          # for a run by name; "{data}" stands for TRIVIUM_DATA
    }

All keys may be left out. Scripts with peers are given `--peer-python`.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from peers import ROOT, declared, named

Runs = Mapping[str, Sequence[Mapping[str, float]]]
Better = Mapping[str, Literal["more", "less"]]

RESULTS = Path(__file__).parent / "results"
"""Published files, one for each workload and variant."""


def save(
    script: str | Path,
    runs: Runs | None = None,
    *,
    better: Better | None = None,
    result: Any = None,
    variant: str = "",
    settings: Mapping[str, Any] | None = None,
    out: Path | None = None,
    peer_python: str | None = None,
    note: str = "",
) -> dict[str, Any]:
    """Writes everything to a file, prints the table, and returns what was written.

    variant: of the workload, such as `lora`, part of its name.  settings: what else tells two files apart.
    note: what a reader of the table must know (`shared with other work`, ...).
    """
    sides = list(runs or {})
    record = {
        "workload": named(Path(script).resolve()) + (f"-{variant}" if variant else ""),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [Path(word).name if Path(word).is_absolute() else word for word in sys.argv],
        "commit": _commit(),
        "machine": machine(),
        "versions": {"ours": versions(), **_their_versions(Path(script), peer_python)},
        "settings": dict(settings or {}),
        "note": note,
        "measurements": [
            {"side": side, "number": number, **found}
            for number in range(max((len(each) for each in (runs or {}).values()), default=0))
            for side in sides
            if number < len((runs or {})[side])
            for found in ((runs or {})[side][number],)
        ],
        "ratios": ratios(runs or {}, better or {}),
        "result": result,
    }
    target = out or ROOT / "runs" / "benchmarks" / f"{record['workload']}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")
    if record["ratios"]:
        print(table([record]), flush=True)
    print(f"every measurement is in {target}", flush=True)
    return record


def ratios(runs: Runs, better: Better) -> list[dict[str, Any]]:
    """A row for each peer and each compared figure that both sides have."""
    if not better:
        return []
    sides = list(runs)
    settings = [side for side in sides if side == sides[0] or side.startswith("ours")]
    first, direction = next(iter(better.items()))
    best = (max if direction == "more" else min)(
        settings, key=lambda side: statistics.median(run[first] for run in runs[side])
    )
    return [
        row for peer in sides if peer not in settings for row in _beside(runs[best], runs[peer], best, peer, better)
    ]


def _beside(
    ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]], side: str, peer: str, better: Better
) -> list[dict[str, Any]]:
    found = []
    for figure, direction in better.items():
        mine, other = ([run[figure] for run in runs if figure in run] for runs in (ours, theirs))
        if not mine or not other:
            continue
        pairs = [a / b for a, b in zip(mine, other, strict=False)]
        found.append(
            {
                "side": side,
                "peer": peer,
                "figure": figure,
                "better": direction,
                "ours": statistics.median(mine),
                "theirs": statistics.median(other),
                "ratio": statistics.median(mine) / statistics.median(other),
                "least": min(pairs),
                "most": max(pairs),
                "pairs": len(pairs),
            }
        )
    return found


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line for each workload, peer and figure."""
    lines = [
        "| workload | peer | figure | ours | theirs | ours / theirs | pairs | date |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for record in records:
        for row in record["ratios"]:
            spread = f"{row['ratio']:.2f} ({row['least']:.2f} to {row['most']:.2f})"
            figure = f"{row['figure'].replace('_', ' ')}, {row['better']} is better"
            lines.append(
                f"| {record['workload']} | {row['peer']} | {figure} | {_short(row, 'ours')} | {_short(row, 'theirs')} "
                f"| {spread} | {row['pairs']} | {record['date'][:10]} |"
            )
    return "\n".join(lines)


def _short(row: Mapping[str, Any], side: str) -> str:
    value = row[side]
    if row["figure"].endswith("memory"):
        return f"{value / 2**20:,.0f} MiB"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def plot(records: Sequence[Mapping[str, Any]]) -> str:
    """An SVG of how many times as good ours is as each peer: a dot for the ratio, a line for its spread, log scale."""
    rows = [(record, row) for record in records for row in record["ratios"]]
    # "Times as good": a figure of which less is better is turned over.
    spans = [
        (row["least"], row["ratio"], row["most"])
        if row["better"] == "more"
        else (1 / row["most"], 1 / row["ratio"], 1 / row["least"])
        for _, row in rows
    ]
    names = [f"{record['workload']}: {row['figure'].replace('_', ' ')}, {row['peer']}" for record, row in rows]
    left, width, height = 24 + 7 * max(map(len, names), default=0), 420, 22
    ends = [value for span in spans for value in span] + [0.9, 2.0]
    low, high = math.log2(min(ends)) - 0.1, math.log2(max(ends)) + 0.1

    def x(value: float) -> float:
        return round(left + width * (math.log2(value) - low) / (high - low), 1)

    bottom = 30 + height * len(rows)
    marks = [2.0**power for power in range(math.ceil(low), math.floor(high) + 1)]
    every = max(1, len(marks) // 6)
    marks = [mark for mark in marks if round(math.log2(mark)) % every == 0]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 70} {bottom + 34}" role="img" '
        'font-family="sans-serif" font-size="12" fill="#777">',
        "<title>How many times as good Trivium is as each peer</title>",
    ]
    for mark in marks:
        bold = ' stroke-width="2"' if mark == 1 else ' stroke-opacity="0.35"'
        parts.append(f'<line x1="{x(mark)}" x2="{x(mark)}" y1="22" y2="{bottom}" stroke="#777"{bold}/>')
        parts.append(f'<text x="{x(mark)}" y="{bottom + 14}" text-anchor="middle">{mark:g}x</text>')
    for number, (name, (least, ratio, most)) in enumerate(zip(names, spans, strict=True)):
        y = 36 + height * number
        color = "#3f51b5" if ratio >= 1 else "#c2410c"
        parts.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{_escape(name)}</text>')
        parts.append(f'<line x1="{x(least)}" x2="{x(most)}" y1="{y}" y2="{y}" stroke="{color}" stroke-width="3"/>')
        parts.append(f'<circle cx="{x(ratio)}" cy="{y}" r="5" fill="{color}"/>')
        parts.append(f'<text x="{max(x(most), x(ratio)) + 9}" y="{y + 4}">{ratio:.2f}</text>')
    parts.append(f'<text x="{x(1)}" y="14" text-anchor="middle">as good as the peer</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def read(folder: Path) -> list[dict[str, Any]]:
    """The records of a folder, the newest of each workload, by name."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    newest = {record["workload"]: record for record in sorted(found, key=lambda record: record["date"])}
    return [newest[name] for name in sorted(newest)]


def machine() -> dict[str, Any]:
    """What it was measured on, and how busy that was."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "load": round(os.getloadavg()[0], 2),
    }


def versions(names: Sequence[str] = ("trivium", "torch", "numpy", "tokenizers")) -> dict[str, str]:
    """Of this interpreter and its packages."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def peak_memory() -> int:
    """Bytes of the largest resident set of this program; `ru_maxrss` would count the program that started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def _their_versions(script: Path, peer_python: str | None) -> dict[str, dict[str, str]]:
    """Of the packages that the script declares, in the environment of the peers."""
    names = [package.partition("==")[0] for package in declared(script).get("peers", ())]
    if not names:
        return {}
    if peer_python is None or peer_python == sys.executable:
        return {"theirs": versions(names)}
    program = (
        "import sys, json; sys.path.insert(0, sys.argv[1]); "
        "import record; print(json.dumps(record.versions(sys.argv[2:])))"
    )
    command = [peer_python, "-c", program, str(Path(__file__).parent), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {"theirs": json.loads(done.stdout)} if done.returncode == 0 else {}


def _commit() -> str:
    """Of the working tree, with `+` if it holds changes; empty outside of git."""
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
