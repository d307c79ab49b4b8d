"""Many ways to make a base do a task, under one budget, on one frozen test part: `trivium compare` and `tv.compare`.

Each run is a process of its own that the same command continues, so that memory and time are its own and a comparison
that was killed goes on where it was. Everything is measured afterwards, one model at a time. The folder:

    settings.yaml    data/     the comparison, and the rows of its three parts
    runs/            one run for each contender, base, seed and learning rate that was tried
    results/         what was measured of each, with every prediction
    comparison.json  report.html
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium.artifacts.record import parent_of
from trivium.artifacts.writer import make_folder, write_artifact, write_file
from trivium.comparison import Comparison, Contender, resolve_comparison
from trivium.data.sealing import beside
from trivium.drivers.compare_data import read_parts
from trivium.drivers.compare_summary import Result, recommend, rows_of
from trivium.errors import ConfigError, TriviumError
from trivium.marked_yaml import dump_yaml

if TYPE_CHECKING:
    from trivium.inference.model import LanguageModel
    from trivium.models.config import ModelConfig

TIMED = 30
"""Texts whose answers are timed one by one."""


@dataclass(frozen=True)
class Compared:
    """A finished comparison: its folder, and what `comparison.json` holds."""

    folder: Path
    summary: dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One contender on one base with one seed."""

    name: str
    contender: Contender
    base: str
    seed: int

    @property
    def slug(self) -> str:
        """Unique in the comparison, and the name of a file."""
        place = hashlib.sha256(self.base.encode()).hexdigest()[:6]
        return f"{self.name}-{place}-s{self.seed}"


def compare(comparison: Any, overrides: Sequence[str] = ()) -> Compared:
    """Runs a comparison, or continues one; a finished one is returned at once.

    comparison: a YAML file, or the same tree in Python. overrides: changes such as `seeds=[0]`.
    """
    settings = resolve_comparison(comparison, overrides)
    work = Work(settings)
    work.begin()
    work.train()
    results = [work.measured(entry) for entry in work.entries]
    summary = work.summary(results)
    work.finish(summary)
    return Compared(work.folder, summary)


class Work:
    """A comparison on the disk."""

    def __init__(self, settings: Comparison) -> None:
        self.settings = settings
        self.folder = Path(settings.runs) / settings.name
        self.contenders = settings.resolved()
        self.skipped: dict[str, str] = {}
        self.labels: list[str] = []
        self.sealed = [str(folder) for folder in beside(Path(settings.runs))]
        self.bases = {base: _shape(base) for base in settings.base}
        self.entries = list(self._entries())
        self._models: dict[str, LanguageModel] = {}

    def _entries(self) -> Iterator[Entry]:
        for base, shape in self.bases.items():
            for name, contender in self.contenders.items():
                if contender.prompt is not None and shape.kind == "encoder":
                    self.skipped[f"{name} on {base}"] = "an encoder writes no text"
                    continue
                once = contender.prompt is not None and not contender.examples
                for seed in self.settings.seeds[:1] if once else self.settings.seeds:
                    yield Entry(name, contender, base, seed)

    # Data

    def begin(self) -> None:
        """Refuses what cannot work, before any of it; writes the parts of the data."""
        stored = self.folder / "settings.yaml"
        text = dump_yaml(self.settings.model_dump(mode="json", exclude={"jobs"}))  # which changes no result
        make_folder(self.folder)
        if stored.exists() and stored.read_text(encoding="utf-8") != text:
            raise ConfigError(
                f"{self.folder} holds another comparison", where=stored, fix="choose another name, or delete the folder"
            )
        self.labels = self._write_data()
        for entry in self.entries:
            if entry.seed == self.settings.seeds[0] and entry.contender.prompt is None:
                self._refuse(entry)
        write_file(stored, text)

    def part(self, name: str) -> Path:
        """The file of a part of the data."""
        return self.folder / "data" / f"{name}.jsonl"

    def rows(self, name: str) -> list[tuple[str, str]]:
        """(text, label) of a part."""
        lines = self.part(name).read_text(encoding="utf-8").splitlines()
        return [(row["text"], row["label"]) for row in map(json.loads, lines)]

    def _write_data(self) -> list[str]:
        """The three parts as rows of `text` and `label`, and the labels; written once, then only read."""
        if not (self.folder / "data" / "labels.json").is_file():
            parts, labels = read_parts(self.settings)
            make_folder(self.folder / "data")
            for name, rows in parts.items():
                lines = "".join(json.dumps({"text": t, "label": n}, ensure_ascii=False) + "\n" for t, n in rows)
                write_file(self.part(name), lines)
            write_file(self.folder / "data" / "labels.json", json.dumps(labels, ensure_ascii=False))
        found: list[str] = json.loads((self.folder / "data" / "labels.json").read_text(encoding="utf-8"))
        return found

    # Training

    def recipe(self, entry: Entry, lr: float, *, model: str | None = None) -> dict[str, Any]:
        """The recipe of one run."""
        contender, budget, data = entry.contender, self.settings.budget, self.settings.data
        length: dict[str, Any] = {"epochs": budget.epochs} if budget.epochs else {"steps": budget.steps}
        if contender.pretrain:
            length = {name: value * (1 - contender.pretrain) for name, value in length.items()}
            length = {name: max(1, round(value)) if name == "steps" else value for name, value in length.items()}
        return {
            "name": f"{entry.slug}-lr{lr:g}",
            "runs": str(self.folder / "runs"),
            "seed": entry.seed,
            "method": {"name": "classification", **(contender.method or {})},
            "model": {"path": model or entry.base},
            "transforms": contender.transforms or [],
            "data": {
                "train": str(self.part("train")),
                "validation": str(self.part("validation")),
                "sequence_length": data.sequence_length,
                "truncation": "right",
                "sealed": self.sealed,
                "labels": {"text": "text", "label": "label", "problem": "single_label"},
            },
            "train": {"batch_size": budget.batch_size, **length, "lr": lr, **self._usual(), **(contender.train or {})},
        }

    def _usual(self) -> dict[str, Any]:
        threads = max(1, (os.cpu_count() or 1) // self.settings.jobs)
        # Only the validation at the end is used, and runs are short.
        return {"validate_every": 1 << 30, "checkpoint_every": 200, "log_every": 10, "threads": threads}

    def _more_text(self, entry: Entry) -> dict[str, Any]:
        """The recipe that goes on pretraining a base on the texts of the training part."""
        recipe, share = self.recipe(entry, 5e-4), entry.contender.pretrain or 0.0
        budget = self.settings.budget
        length: dict[str, Any] = {"epochs": (budget.epochs or 0) * share}
        if budget.steps:
            length = {"steps": max(1, round(budget.steps * share))}
        other = ("epochs", "steps", "validate_every")  # the text has no validation part
        kept = {name: value for name, value in recipe["train"].items() if name not in other}
        return {
            **recipe,
            "name": f"{entry.slug}-text",
            "method": "mlm" if self.bases[entry.base].kind == "encoder" else "clm",
            "transforms": [],
            "data": {
                "train": str(self.part("train")),
                "sequence_length": self.settings.data.sequence_length,
                "sealed": self.sealed,
            },
            "train": {**kept, **length},
        }

    def _refuse(self, entry: Entry) -> None:
        """Raises what a run of this contender would be refused for."""
        from trivium.combinations import refuse_wrong_combinations
        from trivium.config import resolve
        from trivium.drivers.roles import what_is_held
        from trivium.tokenizers.tokenizer import Tokenizer

        try:
            resolved = resolve(self.recipe(entry, (entry.contender.lrs or [1e-3])[0]))
            refuse_wrong_combinations(resolved)
            what_is_held(resolved, self.bases[entry.base], Tokenizer.load(entry.base))
            if entry.contender.pretrain:
                refuse_wrong_combinations(resolve(self._more_text(entry)))
        except TriviumError as error:
            raise ConfigError(
                f"the contender {entry.name} cannot run: {error.problem}",
                where=f"contenders.{entry.name}",
                fix=error.fix or "change it, or leave it out",
            ) from None

    def train(self) -> None:
        """All runs: with the first seed each learning rate, with the others the one that was best."""
        trained = [entry for entry in self.entries if entry.contender.prompt is None]
        first, later = self.settings.seeds[0], self.settings.seeds[1:]
        texts = [self._more_text(entry) for entry in trained if entry.contender.pretrain]
        with ThreadPoolExecutor(self.settings.jobs) as pool:
            list(pool.map(self._process, texts))
            jobs = [(e, lr) for e in trained if e.seed == first for lr in e.contender.lrs or [1e-3]]
            list(pool.map(lambda job: self.run(*job), jobs))
            list(pool.map(lambda e: self.run(e, self.chosen(e)), [e for e in trained if e.seed in later]))

    def run(self, entry: Entry, lr: float) -> Path:
        """One run in a process of its own; at once if it is finished."""
        more = self._more_text(entry) if entry.contender.pretrain else None
        model = None if more is None else str(Path(more["runs"]) / more["name"] / "final")
        return self._process(self.recipe(entry, lr, model=model))

    def _process(self, recipe: Mapping[str, Any]) -> Path:
        place = Path(str(recipe["runs"])) / str(recipe["name"])
        cost = place.with_name(f"{recipe['name']}.cost.json")
        if cost.is_file():
            return place
        make_folder(place.parent)
        file = place.with_name(f"{recipe['name']}.yaml")
        write_file(file, dump_yaml(dict(recipe)))
        began = time.perf_counter()
        command = [sys.executable, "-P", "-m", "trivium", "train", str(file)]  # -P: not what lies in this folder
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=_environment())
        assert process.stderr is not None
        with process.stderr as stream:
            said = stream.read().decode(errors="replace")
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise TriviumError(
                f"the run {recipe['name']} failed",
                where=file,
                value=_said(said) or f"exit code {process.returncode}",
                fix=f"look at it with: trivium train {file}; then run the same comparison again",
            )
        figures = {"seconds": time.perf_counter() - began, "peak_memory_bytes": usage.ru_maxrss * 1024}
        write_file(cost, json.dumps(figures))
        print(f"{recipe['name']}: {figures['seconds']:.0f} s", file=sys.stderr)
        return place

    def folder_of(self, entry: Entry, lr: float) -> Path:
        """The folder of a run."""
        return self.folder / "runs" / f"{entry.slug}-lr{lr:g}"

    def chosen(self, entry: Entry) -> float:
        """The learning rate that was best on the validation part, with the first seed."""
        first = Entry(entry.name, entry.contender, entry.base, self.settings.seeds[0])
        return max(entry.contender.lrs or [1e-3], key=lambda lr: self.validation(first, lr))

    def validation(self, entry: Entry, lr: float) -> float:
        """Share of right answers on the validation part."""
        metrics = self.folder_of(entry, lr) / "eval" / "validation" / "metrics.json"
        return float(json.loads(metrics.read_text(encoding="utf-8"))["metrics"]["accuracy"]["value"])

    # Measuring

    def measured(self, entry: Entry) -> Result:
        """Everything about one entry; measured once."""
        file = self.folder / "results" / f"{entry.slug}.json"
        if not file.is_file():
            make_folder(file.parent)
            result = self._prompted(entry) if entry.contender.prompt else self._trained(entry)
            write_file(file, json.dumps(result))
            print(f"{entry.slug}: {result['accuracy']:.3f} of the test rows right", file=sys.stderr)
        found: Result = json.loads(file.read_text(encoding="utf-8"))
        return found

    def base_model(self, base: str) -> LanguageModel:
        """A base as it is."""
        from trivium.inference.model import load

        if base not in self._models:
            self._models[base] = load(base, device="cpu")
        return self._models[base]

    def _prompted(self, entry: Entry) -> Result:
        """A contender whose model is only asked."""
        from trivium.evaluation.prompted import Prompting, draw_examples, likelihoods, that_fits, written

        own, model, contender = self.settings.prompt, self.base_model(entry.base), entry.contender
        answers = {label: own.answers.get(label, f" {label}") for label in self.labels}
        shown = draw_examples(self.rows("train"), self.labels, own.shots, entry.seed) if contender.examples else []
        prompting = Prompting(own.template, answers, own.separator, shown)
        texts = [_cut(model, text, self.settings.data.sequence_length) for text, _ in self.rows("test")]
        prompting = that_fits(model, prompting, texts)

        def answer(some: Sequence[str]) -> list[str | None]:
            if contender.prompt == "generate":
                return written(model, prompting, some)
            empty = own.empty if contender.calibrate else None
            return [self.labels[at] for at in likelihoods(model, prompting, some, empty=empty).argmax(1)]

        predicted = answer(texts)
        return {
            **self._judged(entry, predicted),
            **_timed(answer, texts),
            "trained_parameters": 0,
            "stored_bytes": len(prompting.prompt("").encode()),
            "peak_memory_bytes": None,
            "seconds": 0.0,
            "lr": None,
            "shots": len(prompting.examples),
            "forgetting": 0.0 if self.settings.probe else None,
            "probe_bits_per_byte": self.probe_of(entry.base),
        }

    def _trained(self, entry: Entry) -> Result:
        """A contender that was trained."""
        from trivium.inference.model import load

        lr = self.chosen(entry)
        run = self.folder_of(entry, lr)
        model = load(run / "final", device="cpu")
        texts = [text for text, _ in self.rows("test")]

        def answer(some: Sequence[str]) -> list[str | None]:
            return [one.label for one in model.classify(list(some), truncate=True)]

        plan = json.loads((run / "forecast.json").read_text(encoding="utf-8"))["forecast"]
        cost = json.loads(run.with_name(f"{run.name}.cost.json").read_text(encoding="utf-8"))
        before, after = self.probe_of(entry.base), self.probe(run / "final", entry.base)
        extra = run.with_name(f"{entry.slug}-text.cost.json")
        text_seconds = json.loads(extra.read_text())["seconds"] if extra.is_file() else 0.0
        return {
            **self._judged(entry, answer(texts)),
            **_timed(answer, texts),
            "trained_parameters": plan["trainable_parameters"] if not extra.is_file() else plan["parameters"],
            "stored_bytes": sum(path.stat().st_size for path in (run / "final").rglob("*.safetensors")),
            "peak_memory_bytes": cost["peak_memory_bytes"],
            "seconds": cost["seconds"] + text_seconds,
            "lr": lr,
            "forgetting": None if after is None or before is None else after - before,
            "probe_bits_per_byte": after,
        }

    def _judged(self, entry: Entry, predicted: Sequence[str | None]) -> Result:
        """The predictions on the test part, and what they are worth."""
        truth = [label for _, label in self.rows("test")]
        right = [int(guess == label) for guess, label in zip(predicted, truth, strict=True)]
        return {
            "contender": entry.name,
            "base": entry.base,
            "seed": entry.seed,
            "accuracy": sum(right) / len(right),
            "macro_f1": statistics.mean(_f1(truth, predicted, label) for label in self.labels),
            "without_answer": sum(guess is None for guess in predicted),
            "predicted": list(predicted),
        }

    def probe_of(self, base: str) -> float | None:
        """Bits per byte of a base on the probe; measured once."""
        if not self.settings.probe:
            return None
        file = self.folder / "results" / f"probe-{hashlib.sha256(base.encode()).hexdigest()[:6]}.json"
        if not file.is_file():
            make_folder(file.parent)
            write_file(file, json.dumps(self.probe(Path(base), base)))
        value: float = json.loads(file.read_text(encoding="utf-8"))
        return value

    def probe(self, folder: Path, base: str) -> float | None:
        """Bits per byte on the probe of the model in `folder`, under the language head of the base.

        A head for labels that was trained is left out: the question is what became of the body.
        """
        from trivium.drivers.forgetting import bits_per_byte, with_language_head

        if not self.settings.probe:
            return None
        model = with_language_head(folder, Path(base))
        return bits_per_byte(
            model,
            self.base_model(base).tokenizer,
            self.settings.probe,
            rows=self.settings.probe_rows,
            length=min(512, model.config.max_positions),
        )

    def summary(self, results: Sequence[Result]) -> dict[str, Any]:
        """The rows and the recommendation of each base, and how they came about."""
        settings, parts = self.settings, {name: self.rows(name) for name in ("train", "validation", "test")}
        truth = [label for _, label in parts["test"]]
        bases = []
        for base in settings.base:
            own = [result for result in results if result["base"] == base]
            rows = rows_of(own, list(self.contenders), truth, settings)
            bases.append({"base": base, "rows": rows, "recommendation": recommend(rows, settings)})
        return {
            "name": settings.name,
            "bases": bases,
            "labels": self.labels,
            "parts": {name: len(rows) for name, rows in parts.items()},
            "test_sha256": hashlib.sha256(self.part("test").read_bytes()).hexdigest(),
            "majority": max(truth.count(label) for label in self.labels) / len(truth),
            "seeds": settings.seeds,
            "level": settings.level,
            "budget": settings.budget.model_dump(),
            "probe": bool(settings.probe),
            "probe_before": {base: self.probe_of(base) for base in settings.base},
            "skipped": self.skipped,
            "learning_rates": {name: c.lrs for name, c in self.contenders.items() if c.lrs},
        }

    def finish(self, summary: dict[str, Any]) -> None:
        """`comparison.json` as an artifact with its parents, and the report."""
        from trivium.report.comparison import write_comparison_report

        parents = [parent_of(Path(base), "base") for base in self.settings.base]
        parents += [parent_of(self.part(name), f"{name} data") for name in ("train", "validation", "test")]
        text = json.dumps(summary, ensure_ascii=False, indent=1)
        with write_artifact(self.folder / "comparison", kind="comparison", parents=parents, replace=True) as place:
            write_file(place / "comparison.json", text)
        write_comparison_report(summary, self.folder / "report.html")


def _said(text: str) -> str:
    """The message of a run that failed, in one line."""
    lines = [line.strip() for line in text.strip().splitlines()]
    first = next((at for at, line in enumerate(lines) if line.startswith(("where:", "error:", "value:", "fix:"))), 1)
    return "; ".join(lines[max(0, first - 1) :])


def _shape(base: str) -> ModelConfig:
    from trivium.models.folder import read_config

    return read_config(base)


def _environment() -> dict[str, str]:
    """Of a run: it imports the package that runs now, wherever it is started."""
    package = str(Path(__file__).parents[2])
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _cut(model: LanguageModel, text: str, tokens: int) -> str:
    ids = model.tokenizer.encode(text)
    return text if len(ids) <= tokens else model.tokenizer.decode(ids[:tokens])


def _f1(truth: Sequence[str], predicted: Sequence[str | None], label: str) -> float:
    both = sum(t == p == label for t, p in zip(truth, predicted, strict=True))
    either = sum(t == label for t in truth) + sum(p == label for p in predicted)
    return 2 * both / either if either else 0.0


def _timed(answer: Any, texts: Sequence[str]) -> dict[str, float]:
    """Milliseconds of one text alone (median), and texts a second side by side."""
    alone = []
    for text in texts[:TIMED]:
        began = time.perf_counter()
        answer([text])
        alone.append(time.perf_counter() - began)
    some = texts[: 8 * TIMED]
    began = time.perf_counter()
    answer(some)
    return {
        "latency_ms": 1000 * statistics.median(alone),
        "texts_per_second": len(some) / (time.perf_counter() - began),
    }
