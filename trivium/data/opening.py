"""From sources to a data set: what `open_dataset` does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium.data.collecting import Collector, read_samples
from trivium.data.cutting import documents_dataset
from trivium.data.dataset import Dataset, Kind, Part
from trivium.data.documents import Document
from trivium.data.intake import Intake
from trivium.data.reading import read_documents
from trivium.data.tokenise import TokenShard, tokenise
from trivium.errors import DataError
from trivium.recipe import DataSection, Source

if TYPE_CHECKING:
    from trivium.tokenizers.tokenizer import Tokenizer


def open_documents(
    sources: Sequence[Source], *, kind: Kind, tokenizer: Tokenizer, settings: DataSection, cache: Path | None
) -> Dataset:
    """Documents, cut into sequences that fit a row."""
    del kind
    intake = Intake(settings.on_error)
    dropped: Counter[str] = Counter()
    shards: list[TokenShard] = []
    ends: list[int] = []
    for source in sources:
        shards.extend(tokenise(_not_empty(read_documents(source, intake), dropped), tokenizer))
        ends.append(len(shards))
    dataset = documents_dataset(
        shards,
        tokenizer=tokenizer,
        sequence_length=settings.sequence_length,
        parts=_joined(sources, ends),
        account=_account(intake, dropped, kept=sum(len(shard.lengths) for shard in shards)),
    )
    return _not_nothing(dataset, sources)


def open_samples(
    sources: Sequence[Source], *, kind: Kind, tokenizer: Tokenizer, settings: DataSection, cache: Path | None
) -> Dataset:
    """Instructions, preferences or prompts; each fits a row and has something to learn."""
    del cache
    intake = Intake(settings.on_error)
    collector = Collector(kind, tokenizer=tokenizer, settings=settings)
    ends: list[int] = []
    for source in sources:
        collector.add(read_samples(source, intake, kind=kind, tokenizer=tokenizer))
        ends.append(len(collector))
    _refuse_untrained(collector, settings, sources)
    account = {
        **_account(intake, collector.dropped, kept=len(collector)),
        "truncated_samples": collector.truncated_samples,
        "truncated_tokens": collector.truncated_tokens,
    }
    parts = [Part(name, weight, first, last) for name, weight, first, last in _joined(sources, ends)]
    return _not_nothing(collector.dataset(parts, account=account), sources)


def _joined(sources: Sequence[Source], ends: Sequence[int]) -> list[tuple[str, float, int, int]]:
    """(name, weight, first, last) of each source of a mixture, or of all sources as one where none has a weight."""
    if not any("weight" in source.model_fields_set for source in sources):
        return [(", ".join(source.path for source in sources), 1.0, 0, ends[-1])]
    starts = [0, *ends[:-1]]
    return [(source.path, source.weight, start, end) for source, start, end in zip(sources, starts, ends, strict=True)]


def _account(intake: Intake, dropped: Mapping[str, int], *, kept: int) -> dict[str, Any]:
    """input = kept + dropped + quarantined, exactly."""
    total = kept + sum(dropped.values()) + sum(intake.quarantined.values())
    return {"input": total, "kept": kept, "dropped": dict(dropped), **intake.summary()}


def _not_empty(documents: Iterator[Document], dropped: Counter[str]) -> Iterator[Document]:
    for document in documents:
        if document.text.strip():
            yield document
        else:
            dropped["empty text"] += 1


def _refuse_untrained(collector: Collector, settings: DataSection, sources: Sequence[Source]) -> None:
    untrained = sum(count for reason, count in collector.dropped.items() if reason.startswith("no trained token"))
    total = untrained + len(collector)
    if untrained > settings.max_untrained * total:
        raise DataError(
            f"{untrained} of {total} samples have no trained token ({untrained / total:.1%})",
            where=", ".join(source.path for source in sources),
            value=", ".join(f"{reason}: {count}" for reason, count in collector.dropped.items()),
            fix="raise data.sequence_length if truncation removes the answers; check that the rows have answers; "
            f"or accept them with data.max_untrained (now {settings.max_untrained})",
        )


def _not_nothing(dataset: Dataset, sources: Sequence[Source]) -> Dataset:
    for part in dataset.parts:
        if part.first == part.last:
            left_out = {**dataset.account["dropped"], **dataset.account["quarantined"]}
            raise DataError(
                "nothing is left to train on",
                where=part.name,
                value=", ".join(f"{reason}: {count}" for reason, count in left_out.items()) or "no rows",
                fix="check the source",
            )
    return dataset
