"""How hard each sample of a data set is, kept on the disk beside its tokens.

    length           tokens
    rarity           mean of -log p over its tokens, p being each token's share of the training data
    compressibility  bytes of its text packed by zlib over bytes as they are; short texts pack badly
    loss             mean loss of a model, in nats a token
    column           a number that comes with the data

An artifact of kind "scores": `scores.bin` (64-bit floats, little endian, one for each sample) and `scores.json`.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trivium.artifacts.record import parent_of
from trivium.artifacts.writer import remove_artifact, write_artifact, write_file
from trivium.data.batch import Layout
from trivium.data.intake import Intake
from trivium.data.reading import read_documents, read_rows, source_parent
from trivium.data.shards import is_tokens, is_whole, tokenizer_parent
from trivium.data.workbench import code_fingerprint
from trivium.errors import ConfigError, DataError
from trivium.lazy import torch

if TYPE_CHECKING:
    from trivium.data.dataset import Dataset
    from trivium.recipe import CurriculumSettings, Source

Floats = NDArray[np.float64]

_TOKENS_AT_ONCE = 4096
_SCORER = ("scorer", "model", "column")
"""Settings that the scores depend on; when which sample joins is another matter."""


def difficulty(
    dataset: Dataset, sources: Sequence[Source], *, settings: CurriculumSettings, cache: Path | None
) -> Floats:
    """[N] one number for each sample, larger for harder ones; from `cache` if it was computed before.

    The same for every rank, since all of them read what the first has written. ConfigError and DataError for a model or
    column that cannot be used.
    """
    if cache is None:
        return _scores(dataset, sources, settings)
    model = None if settings.model is None else parent_of(_model_folder(settings.model), "reference model")
    depends = {
        "code": code_fingerprint(),
        "data": dataset.fingerprint(),
        "model": None if model is None else model.hash,
        "columns": [source_parent(source, "data").hash for source in sources] if settings.scorer == "column" else [],
        **settings.model_dump(include=set(_SCORER)),
    }
    target = cache / f"scores-{hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:32]}"
    if target.exists() and not is_whole(target):
        remove_artifact(target)
    if not target.exists():
        values = _scores(dataset, sources, settings)
        parents = [*(source_parent(source, "data") for source in sources), tokenizer_parent(dataset.tokenizer)]
        parents += [] if model is None else [model]
        with write_artifact(target, kind="scores", parents=parents, config=depends) as folder:
            write_file(folder / "scores.bin", values.astype("<f8").tobytes())
            write_file(folder / "scores.json", json.dumps({"scorer": settings.scorer, "samples": len(values)}))
    return np.fromfile(target / "scores.bin", dtype="<f8")


def _scores(dataset: Dataset, sources: Sequence[Source], settings: CurriculumSettings) -> Floats:
    if settings.scorer == "length":
        return dataset.lengths.astype(np.float64)
    if settings.scorer == "rarity":
        return _rarity(dataset)
    if settings.scorer == "compressibility":
        return _compressibility(dataset)
    if settings.scorer == "loss":
        return _losses(dataset, _model_folder(str(settings.model)))
    return _column(dataset, sources, str(settings.column))


def _ids(dataset: Dataset, sample: int) -> NDArray[np.int64]:
    """All tokens of a sample, its sequences one after the other."""
    first, last = dataset.owners[sample], dataset.owners[sample + 1]
    return np.concatenate([dataset.table.ids(sequence) for sequence in range(first, last)])


def _rarity(dataset: Dataset) -> Floats:
    counts = np.zeros(dataset.tokenizer.vocab_size, dtype=np.int64)
    for sample in range(len(dataset)):
        counts += np.bincount(_ids(dataset, sample), minlength=len(counts))
    rarity = -np.log(np.maximum(counts, 1) / max(1, counts.sum()))
    return np.array([rarity[_ids(dataset, sample)].mean() for sample in range(len(dataset))])


def _compressibility(dataset: Dataset) -> Floats:
    def ratio(sample: int) -> float:
        text = dataset.tokenizer.decode(_ids(dataset, sample).tolist()).encode()
        return len(zlib.compress(text, 6)) / max(1, len(text))

    return np.array([ratio(sample) for sample in range(len(dataset))])


# The loss of a model


def _model_folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        raise ConfigError(
            "there is no model in this folder", where="data.curriculum.model", value=name, fix="check the path"
        )
    return folder


def _losses(dataset: Dataset, folder: Path) -> Floats:
    """Each sequence is predicted from its own first token on; targets are those the run trains, if it says which."""
    import trivium

    model = trivium.load(str(folder))
    config = model.module.config
    if config.kind != "decoder" or config.head != "language":
        raise ConfigError(
            "difficulty is the loss of a decoder that predicts the next token",
            where="data.curriculum.model",
            value=f"{folder}: {config.kind} with a head of the kind {config.head}",
            fix="name a model trained with clm or sft, or choose another scorer",
        )
    if model.tokenizer.fingerprint() != dataset.tokenizer.fingerprint():
        raise ConfigError(
            "the model that says what is hard has another tokenizer than the run",
            where="data.curriculum.model",
            value=str(folder),
            fix="train a small model with the tokenizer of this run, or choose another scorer",
        )
    if int(dataset.table.length.max()) > config.max_positions:
        raise ConfigError(
            f"the model that says what is hard reads {config.max_positions} tokens, a sample has more",
            where="data.curriculum.model",
            value=f"{int(dataset.table.length.max())} tokens",
            fix=f"lower data.sequence_length to {config.max_positions}",
        )
    order = np.argsort(dataset.table.length, kind="stable").tolist()
    sums, counts = np.zeros(len(order)), np.zeros(len(order))
    while order:
        group = [order.pop()]
        total = int(dataset.table.length[group[0]])
        while order and total + int(dataset.table.length[order[-1]]) <= _TOKENS_AT_ONCE:
            group.append(order.pop())
            total += int(dataset.table.length[group[-1]])
        sums[group], counts[group] = _sequence_losses(dataset, group, model)
    owners = np.repeat(np.arange(len(dataset)), np.diff(dataset.owners))
    total_loss = np.bincount(owners, weights=sums, minlength=len(dataset))
    # Rounded, so that the last digits of another machine do not change which samples a stage holds.
    rounded: Floats = np.round(total_loss / np.maximum(1, np.bincount(owners, weights=counts)), 4)
    return rounded


def _sequence_losses(dataset: Dataset, group: Sequence[int], model: Any) -> tuple[list[float], list[int]]:
    """(sum of losses, number of targets) of each of these sequences."""
    table = dataset.table
    ids = [table.ids(sequence) for sequence in group]
    trained = [
        table.flags(sequence)[1:] if table.next_token else np.ones(len(own) - 1)
        for sequence, own in zip(group, ids, strict=True)
    ]
    inputs = [own[:-1] if len(own) > 1 else own for own in ids]
    layout = Layout(tuple(map(len, inputs)))
    with torch.no_grad():
        logits = model.module.eval()(torch.from_numpy(np.concatenate(inputs)).to(model.device), layout).float().cpu()
    sums, counts, at = [], [], 0
    for own, flags, read in zip(ids, trained, inputs, strict=True):
        here = logits[at : at + len(own) - 1]
        at += len(read)
        losses = torch.nn.functional.cross_entropy(here, torch.from_numpy(own[1:]), reduction="none")
        sums.append(float((losses.double() * torch.from_numpy(flags.astype(np.float64))).sum()))
        counts.append(int(flags.sum()))
    return sums, counts


# A column of the data


def _column(dataset: Dataset, sources: Sequence[Source], column: str) -> Floats:
    found: dict[str, float] = {}
    for source in sources:
        if is_tokens(Path(source.path)):
            raise DataError(
                "token shards have no columns",
                where=source.path,
                fix="name the documents themselves as the source, or choose another scorer",
            )
        for name, values, where in _named(source, documents=dataset.kind == "documents"):
            _note(found, name, values, column, where)
    return np.array([_found(found, dataset.sample_id(sample), column) for sample in range(len(dataset))])


def _named(source: Source, *, documents: bool) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """(name of the sample, columns, place) of each row or document of a source."""
    rows = read_rows(source, Intake("quarantine"))
    try:
        first = next(rows, None)
    except DataError:
        if not documents:
            raise
        first = None  # a source of whole documents, which have fields in `meta` only
    if first is None:
        for document in read_documents(source, Intake("quarantine")):
            yield document.id, document.meta, document.source
        return
    for row in chain([first], rows):
        name, meta = row.values.get("id"), row.values.get("meta")
        has_id = documents and isinstance(name, str | int) and name != ""
        values = {**(meta if isinstance(meta, dict) else {}), **row.values}
        yield str(name) if has_id else row.name, values, row.where


def _note(found: dict[str, float], name: str, values: Mapping[str, Any], column: str, where: str) -> None:
    value = values.get(column)
    try:
        number = float("nan" if value is None or isinstance(value, bool) else value)
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number):
        raise DataError(
            f"the column {column!r} holds no number" if column in values else f"there is no column {column!r}",
            where=where,
            value=value if column in values else f"columns: {', '.join(map(str, values)) or 'none'}",
            fix="give every row a number, larger for harder rows, or choose another data.curriculum.column",
        )
    if found.setdefault(name, number) != number:
        raise DataError(
            "two rows of the same name have different numbers",
            where=where,
            value=f"{name}: {found[name]} and {number}",
            fix="give every row an id of its own",
        )


def _found(found: Mapping[str, float], name: str, column: str) -> float:
    whole = name if name in found else name.rpartition("#")[0]
    if whole not in found:
        raise DataError(
            f"the sample has no {column!r}", where=name, fix="check that the data was not changed meanwhile"
        )
    return found[whole]
