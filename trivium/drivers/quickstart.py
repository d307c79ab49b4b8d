"""The main job: from the documentation in this Python installation to a tuned model and one report, offline.

    <runs>/quickstart/
      documents/   cleaned, deduplicated, split by module      tokenizer/   byte-level BPE
      pretrain/    a run of `clm`                               questions/   dialogues from the same documentation
      tune/        a run of `sft`                               evaluation/  held-out modules, before and after
      final/       the tuned model folder                       report.html

Every step leaves an artifact and is skipped when that is there and whole; training continues from its checkpoints. So
the same call starts, continues and finishes the job, whenever it was stopped.
"""

from __future__ import annotations

import bz2
import json
import lzma
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium.artifacts.manifest import MANIFEST, RECORD, verify
from trivium.artifacts.record import parent_of
from trivium.artifacts.writer import write_artifact
from trivium.core.progress import say
from trivium.data.documents import Document
from trivium.data.intake import Intake
from trivium.data.questions import question_rows
from trivium.data.reading import read_documents
from trivium.drivers.run_folder import set_aside
from trivium.errors import ArtifactDamaged
from trivium.recipe import Source

if TYPE_CHECKING:
    from trivium.inference.model import LanguageModel


_QUICK = {"validation_batches": 8, "compile": "off"}
"""A small model trains for minutes: whole validations and compiling would take a good part of them."""


@dataclass(frozen=True)
class Scale:
    """How much of everything; the default takes some minutes on two cores, tests use a tiny one.

    sources:   documents to start from.
    shape:     changes to the preset's shape.
    """

    sources: tuple[str, ...] = ("pydocs",)
    vocab_size: int = 4096
    preset: str = "llama-1m"
    shape: dict[str, Any] = field(default_factory=dict)
    sequence_length: int = 256
    pretrain: dict[str, Any] = field(
        default_factory=lambda: {"tokens": 3_000_000, "batch_size": 8, "lr": 4e-3, **_QUICK}
    )
    tune: dict[str, Any] = field(default_factory=lambda: {"tokens": 800_000, "batch_size": 8, "lr": 4e-4, **_QUICK})
    samples: int = 6


@dataclass(frozen=True)
class QuickstartRun:
    """What is left: the tuned model folder and the report."""

    final: Path
    report: Path


PROMPTS = ("textwrap.dedent(text)\n", "The module json ", "Return the ")


def quickstart(*, runs: str | Path = "runs", fresh: bool = False, scale: Scale | None = None) -> QuickstartRun:
    """Runs the whole job or what is left of it; raises Interrupted when stopped, with everything saved."""
    job = Quickstart(Path(runs) / "quickstart", scale or Scale())
    if fresh and job.folder.exists():
        say(f"Starting over; the earlier run lies in {set_aside(job.folder)}")
    return job.run()


class Quickstart:
    """The steps, each with what happens and why."""

    def __init__(self, folder: Path, scale: Scale) -> None:
        self.folder = folder
        self.scale = scale
        self.done: list[str] = []

    @property
    def documents(self) -> Path:
        """Cleaned documents of the training modules."""
        return self.folder / "documents" / "documents.train.jsonl"

    @property
    def held_out(self) -> Path:
        """Cleaned documents of modules that training never sees."""
        return self.folder / "documents" / "documents.validation.jsonl"

    def run(self) -> QuickstartRun:
        """All steps in order; the report is written after each, so a stopped job has one too."""
        from trivium.drivers.quickstart_report import write_quickstart_report

        steps: list[Callable[[], None]] = [
            self.prepare_documents,
            self.train_tokenizer,
            self.pretrain,
            self.draw_questions,
            self.tune,
            self.evaluate,
            self.finish,
        ]
        for step in steps:
            try:
                step()
                self.done.append(step.__name__)
            finally:
                report = write_quickstart_report(self)
        final = self.folder / "final"
        say("Done", f"model: {final}   report: {report}\ntry it: trivium chat {final}")
        return QuickstartRun(final, report)

    def prepare_documents(self) -> None:
        """Collect, clean, deduplicate, split."""
        from trivium.data.prepare import prepare_documents

        say(
            "1/7 Documents",
            "Collecting the docstrings, help texts and manuals of this Python installation; removing copies, because a "
            "model learns repeated text by heart; holding back whole modules, because only unseen text tells what was "
            "learnt.",
        )
        place = self.folder / "documents"
        if not self.there(place):
            prepare_documents([Source(path=name) for name in self.scale.sources], place, on_error="quarantine")
        report = read_json(place / "report.json")
        kept = report["kept"]
        say("", f"{report['input']} documents: {kept['train']} to train on, {kept['validation']} held out")

    def train_tokenizer(self) -> None:
        """A vocabulary fitted to the text."""
        from trivium.tokenizers.train import train_bpe

        say(
            "2/7 Tokenizer",
            f"Learning {self.scale.vocab_size} pieces of words from the training text, so that common words are one "
            "token.",
        )
        place = self.folder / "tokenizer"
        if self.there(place):
            return
        tokenizer = train_bpe((document.text for document in read(self.documents)), vocab_size=self.scale.vocab_size)
        with self.artifact(place, "tokenizer", {"documents": self.documents.parent}) as folder:
            tokenizer.save(folder)

    def pretrain(self) -> None:
        """Next-token prediction from random weights."""
        from trivium.drivers.single import train

        say(
            "3/7 Pretraining",
            "A model with random weights learns to predict the next token of the documentation. Loss and bits per byte "
            "on the held-out modules show what carries over to text it has not seen.",
        )
        train(self.recipe("pretrain"))

    def draw_questions(self) -> None:
        """Dialogues for tuning."""
        say(
            "4/7 Questions",
            'Turning the same documentation into questions and answers ("What does textwrap.dedent do?"), again with '
            "the held-out modules apart.",
        )
        place = self.folder / "questions"
        if self.there(place):
            return
        with self.artifact(place, "dataset", {"documents": self.documents.parent}) as folder:
            for split, source in (("train", self.documents), ("validation", self.held_out)):
                lines = [json.dumps(row, ensure_ascii=False) for row in question_rows(read(source))]
                (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def tune(self) -> None:
        """Supervised tuning."""
        from trivium.drivers.single import train

        say(
            "5/7 Tuning",
            "The pretrained model continues on dialogues. Only the tokens of the answers count in the loss, so it "
            "learns to answer and to stop, not to ask.",
        )
        train(self.recipe("tune"))

    def evaluate(self) -> None:
        """Held-out modules, before and after tuning."""
        say(
            "6/7 Evaluation",
            "Bits per byte on held-out modules against general compressors, answers on held-out questions before and "
            "after tuning.",
        )
        place = self.folder / "evaluation"
        if self.there(place):
            return
        figures = self.measure()
        parents = {name: self.folder / name / "final" for name in ("pretrain", "tune")}
        with self.artifact(place, "evaluation", {**parents, "documents": self.documents.parent}) as folder:
            (folder / "evaluation.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False), encoding="utf-8")
        best = figures["compressors"]["xz -9e"]
        say("", f"held-out documentation: {figures['pretrain']['bits_per_byte']:.3f} bits per byte, xz -9e {best:.3f}")

    def finish(self) -> None:
        """The tuned model as `final/`."""
        say("7/7 Final model", "The tuned model as a Hugging Face model folder; other tools load it as it is.")
        place = self.folder / "final"
        if self.there(place):
            return
        source = self.folder / "tune" / "final"
        with self.artifact(place, "model", {"tuned model": source}) as folder:
            for path in source.iterdir():
                if path.name not in (MANIFEST, RECORD):
                    shutil.copyfile(path, folder / path.name)

    def recipe(self, name: str) -> dict[str, Any]:
        """The recipe of one of the two training runs."""
        scale, folder = self.scale, self.folder
        common = {"name": name, "runs": str(folder), "seed": 1}
        if name == "pretrain":
            return {
                **common,
                "method": "clm",
                "model": {"preset": scale.preset, "config": {**scale.shape, "vocab_size": self.vocabulary()}},
                "tokenizer": str(folder / "tokenizer"),
                "data": {
                    "train": str(self.documents),
                    "validation": str(self.held_out),
                    "sequence_length": scale.sequence_length,
                },
                "train": {"schedule": "wsd", "decay_fraction": 0.4, "sample_prompts": list(PROMPTS), **scale.pretrain},
            }
        questions = folder / "questions"
        return {
            **common,
            "method": "sft",
            "model": {"path": str(folder / "pretrain" / "final")},
            "data": {
                "train": str(questions / "train.jsonl"),
                "validation": str(questions / "validation.jsonl"),
                "sequence_length": scale.sequence_length,
                "truncation": "drop",
            },
            "train": {"sample_prompts": self.questions_asked(), **scale.tune},
        }

    def vocabulary(self) -> int:
        """Tokens of the tokenizer that was trained; a small text can give fewer than asked for."""
        from trivium.tokenizers.tokenizer import Tokenizer

        return Tokenizer.load(self.folder / "tokenizer").vocab_size

    def held_out_dialogues(self) -> list[dict[str, Any]]:
        """Rows of the validation questions."""
        text = (self.folder / "questions" / "validation.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def questions_asked(self) -> list[str]:
        """A few held-out questions, evenly spread."""
        rows = self.held_out_dialogues()
        chosen = rows[:: max(1, len(rows) // self.scale.samples)][: self.scale.samples]
        return [row["messages"][0]["content"] for row in chosen]

    def measure(self) -> dict[str, Any]:
        """Everything the evaluation holds."""
        import trivium as tv
        from trivium.evaluation.held_out import held_out_loss

        settings = {"sequence_length": self.scale.sequence_length}
        expected = {row["messages"][0]["content"]: row["messages"][1]["content"] for row in self.held_out_dialogues()}
        asked = self.questions_asked()
        figures: dict[str, Any] = {
            "compressors": compressors(read(self.held_out)),
            "expected": [expected[q] for q in asked],
        }
        for name in ("pretrain", "tune"):
            model = tv.load(self.folder / name / "final")
            documents = held_out_loss(model, self.held_out, kind="documents", **settings)
            answers = held_out_loss(
                model, self.folder / "questions" / "validation.jsonl", kind="instructions", **settings
            )
            figures[name] = {
                **documents,
                "answers": answers,
                "samples": [{"prompt": question, "completion": answer(model, question)} for question in asked],
            }
        return figures

    def there(self, place: Path) -> bool:
        """Whether a step's artifact is there and whole; a damaged one is moved aside and made again."""
        if not (place / MANIFEST).is_file():
            return False
        try:
            verify(place)
        except ArtifactDamaged as error:
            say("", f"{error.problem}: it lies in {set_aside(place)} now, and is made again")
            return False
        say("", f"{place} is there already")
        return True

    @contextmanager
    def artifact(self, place: Path, kind: str, parents: dict[str, Path]) -> Iterator[Path]:
        """A folder to fill, with its past."""
        made_from = [parent_of(path, role) for role, path in parents.items()]
        with write_artifact(place, kind=kind, parents=made_from, seed=1) as folder:
            yield folder


def read(path: Path) -> Iterator[Document]:
    """Documents of a prepared file."""
    return read_documents(Source(path=str(path)), Intake())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def compressors(documents: Iterator[Document]) -> dict[str, float]:
    """Bits per byte that general compressors need for the same text, in one piece."""
    text = "\n\n".join(document.text for document in documents).encode()
    sizes = {
        "gzip -9": len(zlib.compress(text, 9)),
        "bzip2 -9": len(bz2.compress(text, 9)),
        "xz -9e": len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)),
    }
    return {name: 8 * size / max(1, len(text)) for name, size in sizes.items()}


def answer(model: LanguageModel, question: str) -> str:
    """The greedy answer to one question."""
    return str(model.generate([{"role": "user", "content": question}], max_new_tokens=64, temperature=0))
