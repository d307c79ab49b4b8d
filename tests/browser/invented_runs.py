"""Run folders as training leaves them, with invented numbers."""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from trivium.artifacts.record import parent_of
from trivium.artifacts.writer import write_artifact

COMMAND = "trivium train recipes/clm.yaml train.lr=3e-3"
PROMPTS = ("def dedent(text):\n", "Return a list of", "The module provides")
GROWING = (
    "\x00\x1f q ~~ the the,,\x7f )( 0x",
    " the the of of return the the list of the the of",
    " a list of the file object and the file is the same as the file object.",
    " the names of all the entries in the directory. If the path is not given, the current directory is used.",
    " the names of the entries in the directory given by path, in arbitrary order, and without the special\n"
    "entries '.' and '..'. The path may be a bytes object, and then the names are bytes, too.",
)


def write_lines(path: Path, lines: list[dict[str, Any]], *, torn: str = "") -> None:
    """A file of JSON lines, perhaps with a last line that was cut."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)


def loss_at(step: int, total: int, start: float = 9.0, end: float = 2.9) -> float:
    """A loss as one would see it: fast at first, then ever slower."""
    slow, fast = math.exp(-6.0 * step / total), math.exp(-60.0 * step / total)
    return end + (start - end) * (0.82 * slow + 0.18 * fast)


def invented_run(
    folder: Path,
    *,
    state: str = "finished",
    steps: int = 800,
    total: int = 800,
    seed: int = 0,
    start: float = 9.03,
    reason: str = "",
    name: str | None = None,
    spikes: bool = False,
    lineage: bool = True,
) -> Path:
    """A run folder of `steps` out of `total` updates."""
    folder.mkdir(parents=True)
    generator = random.Random(seed)
    name = name or folder.name
    metrics, timings = [], []
    for step in range(1, steps + 1):
        loss = loss_at(step, total, start) + generator.gauss(0, 0.09)
        lr = 3e-3 * min(1.0, step / 16) * (0.1 + 0.9 * (1 + math.cos(math.pi * step / total)) / 2)
        norm = 0.35 + 2.2 * math.exp(-step / 30) + abs(generator.gauss(0, 0.07))
        if spikes and step % 211 == 0:
            loss, norm = loss + 40, norm * 300
        metrics.append(
            {"kind": "train", "step": step, "loss": loss, "lr": lr, "grad_norm": norm, "tokens": step * 3940,
             "skipped": 0, "player": "policy", "nll": loss, "samples": f"{step:012x}"}
        )  # fmt: skip
        slow = 2.6 if step == 1 else 1.25 if step % 80 == 0 else 1.0
        seconds = 0.31 * slow * (1 + abs(generator.gauss(0, 0.05)))
        memory = 640 * 2**20 + min(step, 40) * 3 * 2**20 + generator.randrange(6 << 20)
        timings.append({"step": step, "seconds": seconds, "tokens_per_second": 3940 / seconds, "memory_bytes": memory})
        if step % (total // 10) == 0:
            held_out = loss_at(step, total, start) + 0.14 + generator.gauss(0, 0.01)
            metrics.append(
                {"kind": "validation", "step": step, "loss": held_out, "nll": held_out,
                 "bits_per_byte": held_out / math.log(2) / 3.31}
            )  # fmt: skip
    write_lines(folder / "metrics.jsonl", metrics)
    write_lines(folder / "timings.jsonl", timings)
    _write_settings(folder, name, total, seed)
    _write_samples(folder, steps, total)
    status = {"state": state, "step": steps, "reason": reason, "command": COMMAND}
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "data.json").write_text(json.dumps({"train": invented_split(11_240), "validation": invented_split(620)}))
    forecast = {"parameters": 10_489_088, "steps": total, "tokens": total * 3950, "flops": 1.9e14,
                "seconds": total * 0.30, "peak_memory_bytes": 797 << 20, "checkpoint_bytes": 125_870_000,
                "disk_bytes": 419_000_000, "basis": "measured updates"}  # fmt: skip
    fact = {} if state != "finished" else {
        "parameters": 10_489_088, "steps": steps, "tokens": steps * 3940, "seconds": sum(t["seconds"] for t in timings),
        "peak_memory_bytes": 768 << 20, "checkpoint_bytes": 126_011_400, "disk_bytes": 294_100_000,
    }  # fmt: skip
    (folder / "forecast.json").write_text(json.dumps({"forecast": forecast, "fact": fact}))
    write_evaluation(folder, "validation", invented_evaluation(["negative", "neutral", "positive"], ["Not bad."]))
    if lineage:
        _write_artifacts(folder)
    checkpoint = folder / "checkpoints" / f"step-{steps:08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "MANIFEST.json").write_text("{}")
    return folder


def invented_evaluation(labels: Sequence[str], mistakes: Sequence[str]) -> dict[str, Any]:
    """What `trivium eval` says of a model that is right three times out of four."""
    figure = {"value": 0.75, "low": 0.7, "high": 0.8}
    number = len(labels)
    confusion = [
        [90 if row == column else 30 // max(1, number - 1) for column in range(number)] for row in range(number)
    ]
    bins = [
        {"low": at / 4, "high": (at + 1) / 4, "count": 20, "confidence": at / 4 + 0.1, "accuracy": at / 4 + 0.15}
        for at in range(4)
    ]
    return {
        "kind": "single_label",
        "rows": 120 * number,
        "labels": list(labels),
        "support": dict.fromkeys(labels, 120),
        "metrics": {name: figure for name in ("accuracy", "macro_f1", "macro_auroc", "log_loss")},
        "per_label": {label: {name: figure for name in ("precision", "recall", "f1", "auroc")} for label in labels},
        "confusion": confusion,
        "thresholds": {"used": dict.fromkeys(labels, 0.4), "macro_f1_at_half": 0.7, "macro_f1_crossed": 0.72},
        "calibration": {
            "temperature": 1.4,
            "fitted_on": "other data",
            "ece_before": 0.12,
            "ece_after": 0.03,
            "bins_before": bins,
            "bins_after": bins,
        },
        "mistakes": [{"text": text, "true": text, "said": text, "probability": 0.9} for text in mistakes],
    }


def write_evaluation(folder: Path, name: str, content: dict[str, Any]) -> None:
    """The results in a run."""
    place = folder / "eval" / name
    place.mkdir(parents=True)
    (place / "metrics.json").write_text(json.dumps(content))


def invented_split(documents: int) -> dict[str, Any]:
    """What a data set says about itself."""
    names = ("8-15", "16-31", "32-63", "64-127", "128-255", "256-511", "512-1023")
    shares = dict(zip(names, (0.04, 0.11, 0.21, 0.25, 0.19, 0.13, 0.07), strict=True))
    return {
        "kind": "documents",
        "samples": int(documents * 1.32),
        "tokens": documents * 281,
        "trained_tokens": documents * 281,
        "length_histogram": {name: int(share * documents) for name, share in shares.items()},
        "documents": documents,
        "bytes": documents * 281 * 3.31 // 1,
        "cut_documents": documents // 11,
        "input": documents + 91,
        "kept": documents,
        "dropped": {"empty text": 12, "near duplicate": 79},
        "formats": {"pydocs": 1},
        "skipped": {},
        "quarantined": {},
        "packing_efficiency": 0.9621,
        "first_row": {
            "id": "textwrap.dedent",
            "sequences": [
                {
                    "text": "<|bos|>Remove any common leading whitespace from every line in `text`.<|eos|>",
                    "trained_text": "Remove any common leading whitespace from every line in `text`.<|eos|>",
                    "tokens": 19,
                }
            ],
        },
    }


def age(folder: Path, seconds: float) -> None:
    """Makes all files of a run look as if they had last been written `seconds` ago."""
    for path in folder.iterdir():
        os.utime(path, (time.time() - seconds,) * 2)


def _write_settings(folder: Path, name: str, total: int, seed: int) -> None:
    config = {
        "name": name, "runs": "runs", "seed": seed, "method": {"name": "clm"},
        "model": {"path": None, "preset": "llama-10m", "config": {}, "dtype": "float32"},
        "tokenizer": "runs/quickstart/tokenizer", "transforms": [],
        "data": {"train": [{"path": "runs/quickstart/documents/train", "weight": 1.0, "format": "auto"}],
                 "validation": [{"path": "runs/quickstart/documents/held-out", "weight": 1.0, "format": "auto"}],
                 "sequence_length": 512, "packing": "best_fit", "truncation": "error"},
        "train": {"steps": total, "batch_size": 8, "lr": 3e-3, "schedule": "cosine", "clip": 1.0,
                  "optimizer": {"name": "adamw", "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1},
                  "sample_prompts": list(PROMPTS)},
        "schema_version": 1, "trivium_version": "0.1.0",
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    differences = {
        "method": ["clm", None],
        "model.preset": ["llama-10m", None],
        "tokenizer": ["runs/quickstart/tokenizer", None],
        "data.train": [config["data"]["train"], None],  # type: ignore[index]
        "train.steps": [total, None],
        "train.lr": [3e-3, 3e-4],
        "train.sample_prompts": [list(PROMPTS), []],
    }
    (folder / "differences.json").write_text(json.dumps(differences))
    environment = {
        "python": "3.11.9", "platform": "Linux-6.1.0-x86_64-with-glibc2.36",
        "cpu": {"model": "Intel(R) Xeon(R) CPU @ 2.70GHz", "flags": "d2c0", "cores": 2, "usable_cores": 2},
        "memory_bytes": 25_000_000_000,
        "torch": {"version": "2.13.0+cpu", "threads": 2, "capability": "AVX512", "cuda": None, "gpus": []},
        "packages": {"trivium": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6", "tokenizers": "0.23.3"},
        "code": {"version": "0.1.0", "commit": "e0f766c"}, "world_size": 1, "variables": {"OMP_NUM_THREADS": "2"},
        "command": ["trivium", "train", "recipes/clm.yaml", "train.lr=3e-3"],
    }  # fmt: skip
    (folder / "environment.json").write_text(json.dumps(environment))


def _write_samples(folder: Path, steps: int, total: int) -> None:
    (folder / "samples").mkdir()
    for number, step in enumerate(range(0, steps + 1, max(1, total // 10))):
        text = GROWING[min(len(GROWING) - 1, number * len(GROWING) // 11)]
        samples = [{"prompt": prompt, "completion": text} for prompt in PROMPTS]
        (folder / "samples" / f"step-{step:08d}.json").write_text(json.dumps({"step": step, "samples": samples}))


def _write_artifacts(folder: Path) -> None:
    """A model with a tokenizer and documents behind it."""
    below = folder.parent
    documents, tokenizer = below / "documents", below / "tokenizer"
    for target, kind, parents in (
        (documents, "dataset", []),
        (tokenizer, "tokenizer", [(documents, "trained on")]),
        (folder / "final", "model", [(documents, "training data"), (tokenizer, "tokenizer")]),
    ):
        if target.exists():
            continue
        with write_artifact(
            target, kind=kind, parents=[parent_of(path, role) for path, role in parents], seed=0
        ) as place:
            (place / "content.txt").write_text(kind)


XSS = (
    "<script>document.title='executed'</script>",
    "<img src=x onerror=\"document.title='executed'\">",
    "<svg onload=document.title='executed'>",
    "\"><script>document.title='executed'</script>",
    "'><img src=x onerror=document.title='executed'>",
    "</style><script>document.title='executed'</script>",
    "</title><script>document.title='executed'</script>",
    "</textarea><svg/onload=document.title='executed'>",
    "<iframe srcdoc=\"<script>parent.document.title='executed'</script>\"></iframe>",
    "<iframe src=\"javascript:parent.document.title='executed'\"></iframe>",
    "<a href=\"javascript:document.title='executed'\" id=click>click</a>",
    "<body onload=document.title='executed'>",
    "<details open ontoggle=document.title='executed'>",
    "<input autofocus onfocus=document.title='executed'>",
    "<video><source onerror=document.title='executed'></video>",
    "<math><mtext><script>document.title='executed'</script></mtext></math>",
    "<object data=\"javascript:document.title='executed'\"></object>",
    "<embed src=\"javascript:document.title='executed'\">",
    "<meta http-equiv=refresh content=\"0;url=javascript:document.title='executed'\">",
    '<base href="https://example.invalid/">',
    '<link rel=stylesheet href="https://example.invalid/x.css">',
    '<form action="https://example.invalid/"><button autofocus>x</button></form>',
    "{{ 7*7 }}{% for x in [1] %}executed{% endfor %}",
    "{{ ''.__class__.__mro__ }}",
    '" onmouseover="document.title=\'executed\'" style="position:fixed;inset:0" x="',
    "' autofocus onfocus='document.title=`executed`' x='",
    "<!--><script>document.title='executed'</script>-->",
    "<![CDATA[<script>document.title='executed'</script>]]>",
    "<noscript><p title=\"</noscript><img src=x onerror=document.title='executed'>\">",
    "<style>@import 'https://example.invalid/x.css'; body{background:url(https://example.invalid/x.png)}</style>",
    "\u202e<script>document.title='executed'</script>\ud800\x00",
    "&lt;script&gt;document.title='executed'&lt;/script&gt;",
)
"""Texts that would do something if any of them were taken for HTML, an attribute, CSS or a template."""


def hostile_run(folder: Path) -> Path:
    """A run in which every text that anyone could have chosen is one of the payloads."""
    invented_run(folder, steps=40, total=400)
    everything = " ".join(XSS)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["name"] = everything.replace("\ud800\x00", "")
    config["method"] = {"name": XSS[0], XSS[1]: XSS[2]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    split = invented_split(300)
    split["dropped"] = dict.fromkeys(XSS, 3)
    split["length_histogram"] = dict.fromkeys(XSS[:12], 5)
    split["first_row"]["sequences"] = [{"text": payload, "trained_text": payload[1:]} for payload in XSS]
    for name, content in (
        ("differences", {payload: [payload, payload] for payload in XSS}),
        ("environment", {payload: payload for payload in XSS}),
        ("status", {"state": XSS[0], "step": 40, "reason": everything, "command": everything}),
        ("data", {everything: split, "train": split}),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content))
    samples = [{"prompt": payload, "completion": payload} for payload in XSS]
    for step in (0, 40):
        (folder / "samples" / f"step-{step:08d}.json").write_text(json.dumps({"step": step, "samples": samples}))
    write_evaluation(folder, "hostile", invented_evaluation(XSS, XSS))
    write_evaluation(folder, "broken", {"rows": XSS[0], "metrics": [], "confusion": XSS[1]})
    measures = dict.fromkeys(XSS[:6], 0.5)
    lines = [
        {"kind": "train", "step": n, "loss": 1.0 / n, "player": XSS[n % 2], **measures} for n in range(1, 41)
    ]  # fmt: skip
    write_lines(folder / "metrics.jsonl", lines)
    return folder


def invented_sweep() -> dict[str, Any]:
    """What `sweep.json` holds of a search with two goals, trials of every end, and names that try to become code."""
    rng = random.Random(2)
    trials = []
    for number in range(40):
        lr, deep = 10 ** rng.uniform(-5, -1), rng.choice([1, 2, 4])
        values: dict[str, Any] = {"train.lr": lr, "model.config.num_layers": deep, "method.name": rng.choice(XSS[:2])}
        loss = 3 + (math.log10(lr) + 3) ** 2 / 4 + rng.random() / deep
        state = "failed" if lr > 0.05 else "pruned" if loss > 4 else "complete"
        goals = [loss, 1e5 * deep] if state == "complete" else []
        reason = XSS[number % len(XSS)] if state == "failed" else ""
        seen = [[step, loss + 1 / step] for step in range(1, 5)]
        trials.append({"number": number, "state": state, "values": values, "goals": goals, "spread": 0.01, "seen": seen,
                       "measures": {}, "seconds": 60 * rng.random(), "reason": reason})  # fmt: skip
    complete = [row for row in trials if row["goals"]]
    front = [
        a
        for a in complete
        if not any(b["goals"][0] < a["goals"][0] and b["goals"][1] <= a["goals"][1] for b in complete)
    ]
    layers = "model.config.num_layers"
    return {
        "name": "invented", "wanted": 50, "goals": ["validation.loss", "parameters.trained"],
        "maximize": [False, False],
        "settings": {"seeds": 2, "sampler": {"name": "tpe"}}, "seconds": 5e3,
        "trials": trials,
        "best": min(complete, key=lambda row: row["goals"][0]), "front": [row["number"] for row in front],
        "space": {"train.lr": {"low": 1e-5, "high": 1e-1, "log": True}, layers: {"choices": [1, 2, 4]},
                  "method.name": {"choices": XSS[:2]}},
        "own": {"train.lr": 1e-3, "model.config.num_layers": 2, "method.name": "clm"},
        "runs": {str(row["number"]): [f"{row['number']:04d}-seed{seed}" for seed in (0, 1)] for row in trials},
        "importance": {"how": "fANOVA (Hutter et al. 2014)", "shares": {"train.lr": 0.9, layers: 0.1}},
    }  # fmt: skip
