"""How long until something happens: imports, `--help`, a refused recipe, the first use of a model.

    python benchmarks/startup.py [--rounds 7] [--out FILE]

Every case is a fresh process; the cases are run in turn, round after round, so that a slow minute of the machine hits
all of them. Reported: the median over the rounds, and its ratio to `import torch` in the same rounds. The transformers
case is left out where transformers is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import save

WORKLOAD = {}

TYPO = """\
name: typo
method: clm
model: {preset: llama-1m}
data: {train: corpus.txt}
train: {steps: 10, learning_rat: 0.1}
"""

FIRST_USE = """
import torch
from trivium.models.build import build_model, preset
shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2}
model = build_model(preset("llama-1m", shape), seed=0)
model(torch.zeros(1, 4, dtype=torch.int64))
"""

FIRST_USE_TRANSFORMERS = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
LlamaForCausalLM(config)(torch.zeros(1, 4, dtype=torch.int64))
"""

FOLDER = """
import sys
from pathlib import Path
from trivium.models.build import build_model, preset
from trivium.models.folder import save_model
from trivium.tokenizers.train import train_bpe
folder = Path(sys.argv[1])
tokenizer = train_bpe(["return the list of the line"] * 9, vocab_size=280)
tokenizer.save(folder)
config = preset("llama-1m", {"vocab_size": tokenizer.vocab_size})
save_model(folder, config, build_model(config, seed=0).state_dict())
"""

LOAD = """
import sys
import trivium
trivium.load(sys.argv[1]).generate("return", max_new_tokens=1, temperature=0)
"""

LOAD_TRANSFORMERS = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
inputs = tokenizer("return", return_tensors="pt", return_token_type_ids=False)
model.generate(**inputs, max_new_tokens=1, do_sample=False)
"""

TARGETS = {"import trivium": 0.15, "trivium --help": 0.3, "typo in a recipe": 1.0}
"""Seconds."""
RATIO_TARGETS = {"first use of a model": 1.2}
"""Relative to `import torch`."""


def cases(folder: Path) -> dict[str, tuple[list[str], int]]:
    """Name -> (command, expected exit code)."""
    recipe = folder / "typo.yaml"
    recipe.write_text(TYPO, encoding="utf-8")
    model = folder / "model"
    model.mkdir()
    seconds([sys.executable, "-c", FOLDER, str(model)], 0, folder)
    python = [sys.executable, "-c"]
    trivium = [sys.executable, "-m", "trivium"]
    found = {
        "python alone": ([*python, "pass"], 0),
        "import trivium": ([*python, "import trivium"], 0),
        "trivium --help": ([*trivium, "--help"], 0),
        "typo in a recipe": ([*trivium, "train", str(recipe)], 2),
        "import torch": ([*python, "import torch"], 0),
        "first use of a model": ([*python, FIRST_USE], 0),
        "folder to first token": ([*python, LOAD, str(model)], 0),
    }
    if importlib.util.find_spec("transformers"):
        found["first use, transformers' llama"] = ([*python, FIRST_USE_TRANSFORMERS], 0)
        found["folder to first token, transformers"] = ([*python, LOAD_TRANSFORMERS, str(model)], 0)
    return found


def seconds(command: list[str], expected: int, folder: Path) -> float:
    """Wall-clock time of one process; its exit code must be the expected one."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    started = time.perf_counter()
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    elapsed = time.perf_counter() - started
    if result.returncode != expected:
        sys.exit(f"{command[:3]} ended with {result.returncode}, not {expected}:\n{result.stdout}{result.stderr}")
    return elapsed


def measure(rounds: int) -> dict[str, list[float]]:
    """Name -> seconds of each round; a first round that fills the caches is not counted."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        todo = cases(folder)
        taken: dict[str, list[float]] = {case: [] for case in todo}
        for number in range(rounds + 1):
            for case, (command, expected) in todo.items():
                elapsed = seconds(command, expected, folder)
                if number:
                    taken[case].append(elapsed)
    return taken


def report(taken: dict[str, list[float]]) -> list[dict[str, object]]:
    """One row for each case: median seconds, median ratio to `import torch`, target and whether it is met."""
    rows: list[dict[str, object]] = []
    for case, values in taken.items():
        ratios = [mine / torch for mine, torch in zip(values, taken["import torch"], strict=True)]
        row: dict[str, object] = {
            "case": case,
            "seconds": round(statistics.median(values), 3),
            "ratio": round(statistics.median(ratios), 2),
        }
        if case in TARGETS:
            row |= {"target": f"{TARGETS[case]} s", "met": statistics.median(values) <= TARGETS[case]}
        if case in RATIO_TARGETS:
            row |= {"target": f"{RATIO_TARGETS[case]}x", "met": statistics.median(ratios) <= RATIO_TARGETS[case]}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures start-up times.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    taken = measure(arguments.rounds)
    rows = report(taken)
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {arguments.rounds} rounds, medians")
    print(f"{'case':36} {'seconds':>8} {'/ import torch':>15}  target")
    for row in rows:
        target = f"{row['target']}  {'met' if row['met'] else 'MISSED'}" if "target" in row else ""
        print(f"{row['case']:36} {row['seconds']:8.3f} {row['ratio']:15.2f}  {target}")
    save(__file__, result={"cases": rows, "seconds": taken}, settings={"rounds": arguments.rounds}, out=arguments.out)


if __name__ == "__main__":
    main()
