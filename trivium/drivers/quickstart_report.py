"""The report of the quickstart: each step as it stands, with its figures, runs and samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trivium.report.pipeline import Bar, Bars, Comparison, Link, Stage, Table, write_pipeline_report
from trivium.report.story import Figure

if TYPE_CHECKING:
    from trivium.drivers.quickstart import Quickstart

State = Literal["done", "running", "waiting", "failed"]

STEPS: dict[str, tuple[str, str, str]] = {
    "prepare_documents": (
        "Documents",
        "Docstrings, help texts and manuals of the Python installation were collected, cleaned and split by module.",
        "Copies are removed because a model learns repeated text by heart. Whole modules are held back because only "
        "unseen text tells what was learnt.",
    ),
    "train_tokenizer": (
        "Tokenizer",
        "Byte-level BPE was trained on the training documents.",
        "A vocabulary that fits the text makes sequences shorter, and bytes mean that no text is unknown.",
    ),
    "pretrain": (
        "Pretraining",
        "A model with random weights learnt to predict the next token.",
        "Loss on held-out modules shows what carries over to text the model has not seen.",
    ),
    "draw_questions": (
        "Questions",
        "The documentation was turned into dialogues: what a function does, how it is called, where it lives.",
        "Tuning needs examples of the behaviour that is wanted, not more text.",
    ),
    "tune": (
        "Tuning",
        "The pretrained model continued on the dialogues.",
        "Only answer tokens count in the loss, so it learns to answer and to stop.",
    ),
    "evaluate": (
        "Evaluation",
        "Held-out modules before and after tuning, against general compressors.",
        "A model that predicts text well can compress it: bits per byte make it comparable with xz.",
    ),
    "finish": (
        "Final model",
        "The tuned model as a Hugging Face model folder.",
        "Other tools load it as it is, with its tokenizer and chat template.",
    ),
}


def write_quickstart_report(job: Quickstart) -> Path:
    """report.html of the job, finished or not."""
    names = list(STEPS)
    stages = [_stage(job, name, _state(job, names, name)) for name in names]
    evaluation = _json(job.folder / "evaluation" / "evaluation.json")
    return write_pipeline_report(
        stages, job.folder / "report.html", figures=_headline(evaluation), lead=_lead(evaluation)
    )


def _state(job: Quickstart, names: list[str], name: str) -> State:
    if name in job.done:
        return "done"
    return "failed" if names.index(name) == len(job.done) else "waiting"


def _stage(job: Quickstart, name: str, state: State) -> Stage:
    title, what, why = STEPS[name]
    folder = job.folder
    parts: dict[str, Any] = {}
    if name == "prepare_documents":
        parts = _documents(_json(folder / "documents" / "report.json"))
    elif name == "train_tokenizer":
        parts = _tokenizer(
            _json(folder / "tokenizer" / "tokenizer.json"), _json(folder / "evaluation" / "evaluation.json")
        )
    elif name == "draw_questions":
        parts = _questions(folder / "questions")
    elif name in ("pretrain", "tune") and (folder / name).is_dir():
        parts = {"run": folder / name}
    elif name == "evaluate":
        parts = _evaluation(_json(folder / "evaluation" / "evaluation.json"))
    elif name == "finish" and state == "done":
        parts = {"links": [Link("final/", "final/")]}
    return Stage(title, what, why, state=state, **parts)


def _documents(report: dict[str, Any]) -> dict[str, Any]:
    if not report:
        return {}
    dropped = {**report["dropped"], **report["merged"]}
    rows = [[reason.replace("_", " "), f"{count:,}"] for reason, count in sorted(dropped.items(), key=lambda x: -x[1])]
    return {
        "figures": [
            Figure("Documents read", f"{report['input']:,}"),
            Figure("To train on", f"{report['kept'].get('train', 0):,}"),
            Figure("Held out", f"{report['kept'].get('validation', 0):,}", "whole modules"),
        ],
        "tables": [Table("Why documents were left out", ["reason", "documents"], rows)] if rows else [],
    }


def _tokenizer(definition: dict[str, Any], evaluation: dict[str, Any]) -> dict[str, Any]:
    if not definition:
        return {}
    size = len({*definition["model"]["vocab"], *(token["content"] for token in definition["added_tokens"])})
    figures = [Figure("Tokens", f"{size:,}")]
    if evaluation:
        held_out = evaluation["pretrain"]
        figures.append(Figure("Bytes a token", f"{held_out['bytes'] / held_out['tokens']:.2f}", "on held-out modules"))
    return {"figures": figures}


def _questions(folder: Path) -> dict[str, Any]:
    counts = {split: _lines(folder / f"{split}.jsonl") for split in ("train", "validation")}
    if not any(counts.values()):
        return {}
    return {
        "figures": [
            Figure("Dialogues to train on", f"{counts['train']:,}"),
            Figure("Held out", f"{counts['validation']:,}", "about the held-out modules"),
        ]
    }


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _evaluation(figures: dict[str, Any]) -> dict[str, Any]:
    if not figures:
        return {}
    pretrain, tune = figures["pretrain"], figures["tune"]
    bars = [Bar(name, value) for name, value in figures["compressors"].items()]
    bars += [
        Bar("pretrained model", pretrain["bits_per_byte"], own=True),
        Bar("tuned model", tune["bits_per_byte"], own=True),
    ]
    rows = [
        (before["prompt"], [before["completion"], after["completion"], expected])
        for before, after, expected in zip(pretrain["samples"], tune["samples"], figures["expected"], strict=True)
    ]
    return {
        "bars": [
            Bars(
                "Held-out documentation",
                sorted(bars, key=lambda bar: -bar.value),
                "bits per byte",
                f"{pretrain['bytes']:,} bytes of modules that training never saw; less is better. The compressors read "
                "the whole text in one piece, the model starts anew in each row.",
                digits=3,
            )
        ],
        "tables": [
            Table(
                "Held-out answers",
                ["", "before tuning", "after tuning"],
                [
                    ["nats per answer token", *(f"{side['answers']['loss']:.3f}" for side in (pretrain, tune))],
                    ["bits per byte", *(f"{side['answers']['bits_per_byte']:.3f}" for side in (pretrain, tune))],
                ],
            )
        ],
        "comparisons": [
            Comparison(
                ["before tuning", "after tuning", "documentation says"], rows, "Questions about held-out modules"
            )
        ],
    }


def _headline(figures: dict[str, Any]) -> Sequence[Figure]:
    if not figures:
        return ()
    ours, best = figures["pretrain"]["bits_per_byte"], figures["compressors"]["xz -9e"]
    return (
        Figure("Pretrained model", f"{ours:.3f}", "bits per byte, held out"),
        Figure("xz -9e", f"{best:.3f}", "bits per byte, same text"),
        Figure("Answers before tuning", f"{figures['pretrain']['answers']['loss']:.2f}", "nats per token, held out"),
        Figure("Answers after tuning", f"{figures['tune']['answers']['loss']:.2f}", "nats per token, held out"),
    )


def _lead(figures: dict[str, Any]) -> str:
    if not figures:
        return "The job is not finished; run the same command again and it goes on where it stopped."
    return (
        "A language model was made from nothing but the documentation on this machine: text, tokenizer, pretraining, "
        "tuning and evaluation, without a download."
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
