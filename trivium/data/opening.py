"""From sources to a data set: what `open_dataset` does."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from trivium.data.collecting import collect
from trivium.data.cutting import documents_dataset
from trivium.data.dataset import Dataset, Kind, Part
from trivium.data.intake import Intake
from trivium.data.labelled import Gathered, LabelledDataset, LabelSet
from trivium.data.mixture import is_mixture, shared_out
from trivium.data.sample_cache import collect_on_disk
from trivium.data.shards import TokenisedSource, is_tokens, open_tokens, tokenise_in_memory, tokenise_on_disk
from trivium.data.tokenise import TokenShard
from trivium.errors import ConfigError, DataError
from trivium.recipe import DataSection, Source

if TYPE_CHECKING:
    from trivium.tokenizers.tokenizer import Tokenizer

AnyDataset = TypeVar("AnyDataset", bound=Dataset)


def open_documents(
    sources: Sequence[Source], *, tokenizer: Tokenizer, settings: DataSection, cache: Path | None, bare: bool = False
) -> Dataset:
    """Documents, cut into sequences that fit a row; `bare` as in `documents_dataset`."""
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
        bare=bare,
        parts=_joined(sources, ends, settings),
        account=_account(accounts, kept=sum(len(shard.lengths) for shard in shards)),
    )
    return _mixed(_not_nothing(dataset), sources, settings)


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
    if cache is None or kind == "prompts":  # prompts are quick to encode, and keep their rows
        found = collect(sources, kind=kind, tokenizer=tokenizer, settings=settings)
    else:
        found = collect_on_disk(sources, kind=kind, tokenizer=tokenizer, settings=settings, cache=cache)
    parts = [Part(*part) for part in _joined(sources, found.ends, settings)]
    return _mixed(_not_nothing(found.dataset(kind, parts=parts, tokenizer=tokenizer)), sources, settings)


def open_labelled(
    sources: Sequence[Source],
    *,
    kind: Kind,
    tokenizer: Tokenizer,
    settings: DataSection,
    like: LabelSet | None = None,
    keep_rows: bool = False,
) -> LabelledDataset:
    """Sequences with labels, tagged words, or questions; `like` and `keep_rows` as in `trivium.data.labels`."""
    file = {"labels": "labels", "tokens": "tagging", "questions": "spans"}[kind]
    intake = Intake(settings.on_error)
    found: Gathered = importlib.import_module(f"trivium.data.{file}").read(
        sources, intake, tokenizer=tokenizer, settings=settings, like=like, keep_rows=keep_rows
    )
    dataset = found.dataset([Part(*part) for part in _joined(sources, found.ends, settings)], intake)
    dataset = _mixed(_not_nothing(dataset), sources, settings)
    return _balanced(dataset, sources, settings) if settings.labels.balanced and like is None else dataset


def _balanced(dataset: LabelledDataset, sources: Sequence[Source], settings: DataSection) -> LabelledDataset:
    """The same samples by their labels, each label a source of its own and all of equal weight."""
    problem = dataset.problem if dataset.kind == "labels" else dataset.kind
    if problem != "single_label" or is_mixture(sources, settings.mixture):
        raise ConfigError(
            "only texts with one label each, and without weights of sources, are drawn by their labels",
            where="data.labels.balanced",
            value=problem if problem != "single_label" else "sources with weights",
            fix="delete this line",
        )
    labels = dataset.fields["label"]
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum([0, *(int((labels == number).sum()) for number in range(len(dataset.labels)))]).tolist()
    former, numbers, table = dataset.name_of, order.tolist(), dataset.table
    return replace(
        dataset,
        table=replace(table, shard=table.shard[order], start=table.start[order], length=table.length[order]),
        parts=[
            Part(name, 1.0, first, last)
            for name, (first, last) in zip(dataset.labels, pairwise(ends), strict=True)
            if first < last
        ],
        name_of=lambda number: former(numbers[number]),
        fields={name: values[order] for name, values in dataset.fields.items()},
        rows=None if dataset.rows is None else [dataset.rows[number] for number in numbers],
    )


def _joined(sources: Sequence[Source], ends: Sequence[int], settings: DataSection) -> list[tuple[str, float, int, int]]:
    """(name, weight, first, last) of each source of a mixture, or of all sources as one."""
    if not is_mixture(sources, settings.mixture):
        return [(", ".join(source.path for source in sources), 1.0, 0, ends[-1])]
    starts = [0, *ends[:-1]]
    return [(source.path, source.weight, start, end) for source, start, end in zip(sources, starts, ends, strict=True)]


def _mixed(dataset: AnyDataset, sources: Sequence[Source], settings: DataSection) -> AnyDataset:
    """The data set with the final weights, budgets and limits of its sources."""
    if not is_mixture(sources, settings.mixture):
        return dataset
    parts = [
        replace(part, tokens=source.tokens, max_epochs=source.max_epochs)
        for part, source in zip(dataset.parts, sources, strict=True)
    ]
    sizes = [int(dataset.lengths[part.first : part.last].sum()) for part in parts]
    return replace(dataset, parts=shared_out(parts, sizes, settings.mixture))


def _account(accounts: Sequence[Mapping[str, Any]], *, kept: int) -> dict[str, Any]:
    """input = kept + dropped + quarantined, exactly."""
    merged = {
        name: dict(sum((Counter(account[name]) for account in accounts), Counter[str]()))
        for name in ("dropped", "quarantined", "formats", "skipped")
    }
    total = kept + sum(merged["dropped"].values()) + sum(merged["quarantined"].values())
    return {"input": total, "kept": kept, **merged}


def _not_nothing(dataset: AnyDataset) -> AnyDataset:
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
