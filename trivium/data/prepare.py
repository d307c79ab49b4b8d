"""From sources to clean documents: cleaned, without duplicates, split so that nothing held out is ever trained on.

The pipeline `clean`, `minhash`, `split` (see `trivium.data.pipeline`), ready to use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trivium.data.intake import OnError
from trivium.data.pipeline.plan import resolve_pipeline
from trivium.data.pipeline.run import Progress, run_resolved
from trivium.data.reading import PREPARED_TRAIN
from trivium.recipe import Source

TRAIN = PREPARED_TRAIN
VALIDATION = "documents.validation.jsonl"


@dataclass(frozen=True)
class PreparedDocuments:
    """The folder that was written, its two files (no `validation` if nothing is held out) and the account."""

    folder: Path
    train: Path
    validation: Path | None
    report: Mapping[str, Any]


def prepare_documents(
    sources: Sequence[Source] | Source,
    output: Path,
    *,
    validation_fraction: float = 0.05,
    seed: int = 0,
    least_characters: int = 1,
    on_error: OnError = "error",
    workers: int = 1,
    on_progress: Progress | None = None,
) -> PreparedDocuments:
    """Write the artifact `output` (kind "documents"); what is there already from the same sources is left as it is.

    Of near duplicates one stays. Groups (a module, a book: `Document.group`) are held out as a whole, each with
    probability `validation_fraction` and decided by its name and the seed. Killed and started again, it goes on where
    it was. Of a source path, format and text_field count.

    least_characters: shorter documents are left out.
    on_error: a document that cannot be read stops the run (`error`) or is set aside and counted (`quarantine`).
    workers:  processes; the files do not depend on it.
    Raises DataError, also where nothing is left for one of the two files, and Interrupted after Ctrl-C.
    """
    sources = [sources] if isinstance(sources, Source) else list(sources)
    steps: list[dict[str, Any]] = [{"name": "clean", "least_characters": least_characters}, {"name": "minhash"}]
    if validation_fraction > 0:
        steps.append({"name": "split", "by": "group", "validation": validation_fraction})
    resolved = resolve_pipeline(
        {
            "output": str(output),
            "sources": [source.model_dump(include={"path", "format", "text_field"}) for source in sources],
            "steps": steps,
            "seed": seed,
            "on_error": on_error,
            "workers": workers,
        }
    )
    needed = ("train", "validation") if validation_fraction > 0 else ("train",)
    done = run_resolved(resolved, needed=needed, on_progress=on_progress)
    held_out = done.folder / VALIDATION
    return PreparedDocuments(done.folder, done.folder / TRAIN, held_out if held_out.exists() else None, done.report)
