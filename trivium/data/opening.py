"""From sources to a data set: what `open_dataset` does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium.data.collecting import Collector, read_samples
from trivium.data.cutting import documents_dataset
from trivium.data.dataset import Dataset, Kind, Part
from trivium.data.intake import Intake
from trivium.data.shards import TokenisedSource, is_tokens, open_tokens, tokenise_in_memory, tokenise_on_disk
from trivium.data.tokenise import TokenShard
from trivium.errors import DataError
from trivium.recipe import DataSection, Source

if TYPE_CHECKING:
    from trivium.tokenizers.tokenizer import Tokenizer


def open_documents(
    sources: Sequence[Source], *, kind: Kind, tokenizer: Tokenizer, settings: DataSection, cache: Path | None
) -> Dataset:
    """Documents, cut into sequences that fit a row."""
    del kind
    shards: list[TokenShard] = []
    ends: list[int] = []
    accounts: list[Mapping[str, Any]] = []
    for source in sources:
        found = _tokenised(source, tokenizer, settings, cache)
        shards.extend(found.shards)
        ends.append(len(shards))
        accounts.append(found.account)
    dataset = documents_dataset(
        shards,
        tokenizer=tokenizer,
        sequence_length=settings.sequence_length,
        parts=_joined(sources, ends),
        account=_account(accounts, kept=sum(len(shard.lengths) for shard in shards)),
    )
    return _not_nothing(dataset, sources)


def _tokenised(source: Source, tokenizer: Tokenizer, settings: DataSection, cache: Path | None) -> TokenisedSource:
    if is_tokens(Path(source.path)):
        return open_tokens(Path(source.path), tokenizer)
    if cache is None:
        return tokenise_in_memory(source, tokenizer, on_error=settings.on_error)
    return tokenise_on_disk(source, tokenizer, on_error=settings.on_error, cache=cache)


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
        **_account([{**intake.summary(), "dropped": collector.dropped}], kept=len(collector)),
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


def _account(accounts: Sequence[Mapping[str, Any]], *, kept: int) -> dict[str, Any]:
    """input = kept + dropped + quarantined, exactly."""
    merged = {
        name: dict(sum((Counter(account[name]) for account in accounts), Counter[str]()))
        for name in ("dropped", "quarantined", "formats", "skipped_files")
    }
    total = kept + sum(merged["dropped"].values()) + sum(merged["quarantined"].values())
    return {"input": total, "kept": kept, **merged}


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
