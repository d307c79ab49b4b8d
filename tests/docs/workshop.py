"""A folder with everything the pages build upon, in smoke size: a corpus, rows of every kind and three small models."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.warm import warm_call

ROOT = Path(__file__).resolve().parents[2]

SMALL_TOKENIZER = "--vocab-size 400"
SMALL = (
    "train.steps=2 train.epochs=null train.batch_size=2 train.compile=off data.sequence_length=64 data.truncation=drop "
    "data.max_untrained=1"
)
"""Added to every `trivium train` of a page, so that two updates of a small batch stand for the whole run."""
NEW = "model.preset=llama-1m model.config.vocab_size=400 model.config.num_layers=1 model.config.hidden_size=32"


def write_corpus(folder: Path) -> None:
    """Twelve documents and a few rows of each kind."""
    (folder / "corpus").mkdir()
    (folder / "data").mkdir()
    words = [
        "list",
        "dict",
        "tuple",
        "string",
        "number",
        "file",
        "path",
        "line",
        "error",
        "value",
        "key",
        "item",
        "name",
    ]
    for number in range(12):
        turned = words[number:] + words[:number]
        sentences = [f"Return the {one} of a {two}. The {two} must not be empty." for one, two in pairwise(turned)]
        (folder / "corpus" / f"page-{number:02}.md").write_text(
            f"# About {turned[0]}\n\n" + "\n".join(sentences) + "\n"
        )
    rows = {
        "instructions": [{"prompt": f"What is a {word}?", "completion": f"A {word} is a thing."} for word in words],
        "preferences": [{"prompt": f"What is a {w}?", "chosen": "A thing.", "rejected": "No."} for w in words],
        "prompts": [{"prompt": f"What is a {word}?", "answer": "A thing."} for word in words],
    }
    for name, lines in (rows | labelled_rows(words)).items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "data" / f"{name}.jsonl").write_text(text)
    sentences = "".join(f"Ada B-PER\nhas O\na O\n{word} O\n\n" for word in words)
    for name in ("names", "names-held-out"):
        (folder / "data" / f"{name}.conll").write_text(sentences)


def labelled_rows(words: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Rows with labels of every kind, and the same once more as held-out data."""
    rows: dict[str, list[dict[str, Any]]] = {
        "reviews": [{"text": f"A {word} of the film.", "label": ("good", "bad")[len(word) % 2]} for word in words],
        "topics": [{"text": f"A {word}.", "labels": [word[0], word[1]]} for word in words],
        "ratings": [{"text": f"A {word} of the film.", "score": len(word) / 2} for word in words],
        "questions": [
            {
                "context": f"Ada has a {word}.",
                "question": "What does Ada have?",
                "answers": {"text": [word], "answer_start": [10]},
            }
            for word in words
        ],
        "passages": [{"query": f"What is a {word}?", "passage": f"A {word} is a thing of Python."} for word in words],
        "sentences": [{"text": f"Return the {word} of a list."} for word in words],
        "similarity": [
            {"sentence1": f"A {word}.", "sentence2": f"The {words[at // 2]}.", "score": at / 3}
            for at, word in enumerate(words)
        ],
    }
    return rows | {f"{name}-held-out": lines for name, lines in rows.items()}


def smoke(command: str, more: str = "") -> str:
    """The command in smoke size; `more` is for those that read a recipe."""
    if re.match(r"trivium (train|sweep) |torchrun .*-m trivium train ", command):
        # One thread, as everywhere in the tests: a second one waits for a core that another test has.
        threads = "" if "train.threads=" in f"{command} {more}" else "train.threads=1"
        return f"{command} {SMALL} {threads} {more}"
    if command.startswith("trivium data "):
        return f"{command} {more}"
    if command.startswith("trivium tokenizer train ") and "--kind" not in command:
        return f"{command} {SMALL_TOKENIZER}"
    return command


def shell(command: str, folder: Path, *, warm: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a command line with `trivium`, `python` and `torchrun` of this environment.

    warm: `trivium` is forked from a process that has imported torch (tests/warm.py).
    """
    tools = folder / ".tools"
    tools.mkdir(exist_ok=True)
    python = shlex.quote(sys.executable)
    trivium = warm_call("trivium") if warm else f"{python} -m trivium"
    calls = {"trivium": trivium, "python": python, "torchrun": f"{python} -m torch.distributed.run"}
    for name, call in calls.items():
        tool = tools / name
        tool.write_text(f'#!/bin/sh\nexec {call} "$@"\n')
        tool.chmod(0o755)
    # Not inside the test run that runs this, and with the bytecode cache that halves the time to import torch.
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "PYTHON"))}
    environment = {
        **inherited,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder if (folder / "trivium").is_dir() else ROOT),
    }
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )


def build(folder: Path) -> Path:
    """Makes the workshop with the same commands that the pages show, each in a process of its own from the start."""
    folder.mkdir()
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    write_corpus(folder)
    for command, more in (
        ("trivium tokenizer train corpus --output runs/tokenizer", ""),
        ("trivium train recipes/clm.yaml", f"data.train=corpus {NEW}"),
        ("trivium train recipes/sft.yaml", ""),
    ):
        result = shell(smoke(command, more), folder, warm=False)
        assert result.returncode == 0, f"{command}\n{result.stdout}"
    return folder
