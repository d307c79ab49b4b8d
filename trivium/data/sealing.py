"""Sealed test sets: hashes of a test set, without its text, that all training data is checked against.

A sealed set is an artifact of kind "sealed":

    sealed.json    name, licence, date, the hash of each file, how many rows, and what was left out
    hashes.bin     64-bit hashes of its runs of words, in order        rows.bin    the row of each (32 bits)
    names.json     names of the rows (`test.jsonl:17`)

Which sets count for a run: those that `data.sealed` names, and all that lie in the folder `sealed` beside the folder of
runs. The training data of every method is checked, row by row, whatever its kind; a row that shares one run of words
with a sealed set counts as a leak. Held-out data is not checked: it is there to be measured on.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trivium.artifacts.manifest import MANIFEST, content_hash, verify
from trivium.artifacts.writer import write_artifact, write_file, write_plain
from trivium.data.intake import Intake
from trivium.data.reading import fingerprint, source_parent
from trivium.data.splits.overlap import COMMON, NGRAM, SHORTEST, Finder, Index, build_index, excerpt
from trivium.data.splits.passages import passages, rows_or_documents
from trivium.data.workbench import code_fingerprint
from trivium.errors import ArtifactDamaged, ConfigError, DataError
from trivium.recipe import Recipe, Source

if TYPE_CHECKING:
    from trivium.data.dataset import Dataset
    from trivium.tokenizers.tokenizer import Tokenizer

KIND = "sealed"
FACTS = "sealed.json"
BESIDE_RUNS = "sealed"
"""Name of the folder beside the folder of runs whose sealed sets always count."""

_TOGETHER = 64
_EXAMPLES = 1000


@dataclass(frozen=True)
class SealedSet:
    """A sealed set: where it lies, what is known of it, the hash of its content, and its runs of words."""

    folder: Path
    facts: Mapping[str, Any]
    hash: str
    index: Index

    @property
    def name(self) -> str:
        """What it is called."""
        return str(self.facts["name"])


@dataclass(frozen=True)
class Leak:
    """A row of training data that holds text of a sealed set.

    row:     its name (`train.jsonl:17`, or the id of a document).   source: where it was read from.
    sealed:  the sealed set, and `sealed_row` the row of it.   share: of that row's runs of words, how many are here.
    excerpt: what both have, as it stands in the training data.
    """

    row: str
    source: str
    sealed: str
    sealed_row: str
    share: float
    excerpt: str


@dataclass(frozen=True)
class Checked:
    """What a check has found: rows looked at, rows with leaks, and the first thousand leaks."""

    rows: int
    leaking: Sequence[str]
    leaks: Sequence[Leak]

    @property
    def share(self) -> float:
        """Leaking rows among all rows."""
        return len(self.leaking) / max(1, self.rows)


# Sealing


def seal(
    files: Sequence[str | Path],
    output: Path,
    *,
    name: str | None = None,
    licence: str | None = None,
    date: str | None = None,
    ngram: int = NGRAM,
    shortest: int = SHORTEST,
    common: int = COMMON,
) -> SealedSet:
    """Write the artifact `output` from files of rows (any shape) or documents, and return it.

    ngram:    words in a run.  shortest: words of the shortest passage that counts.
    common:   runs in more rows than this are left out.
    date:     when the test set was made (ISO 8601); default: today.
    DataError if a file cannot be read, or if nothing in it is long enough to be recognised.
    """
    sources = [Source(path=str(path)) for path in files]
    rows = (row for source in sources for row in rows_or_documents(source, Intake()))
    index = build_index(rows, ngram=ngram, shortest=shortest, common=common)
    if not len(index.hashes):
        raise DataError(
            "nothing in these files can be recognised again",
            where=", ".join(source.path for source in sources),
            value=f"{len(index.names)} rows, {index.too_short} passages shorter than {shortest} words",
            fix="seal files whose rows hold longer texts, or lower the least number of words",
        )
    settings = {"ngram": ngram, "shortest": shortest, "common": common}
    facts = {
        "name": name or Path(output).name,
        "licence": licence,
        "date": date or datetime.datetime.now(datetime.UTC).date().isoformat(),
        "files": {source.path: content_hash(Path(source.path)) for source in sources},
        "rows": len(index.names),
        "runs": len(index.hashes),
        "rows_without_runs": int((index.totals == 0).sum()),
        "passages_too_short": index.too_short,
        "runs_too_common": index.common,
        "widths": list(index.widths),
        **settings,
    }
    parents = [source_parent(source, "test set") for source in sources]
    with write_artifact(Path(output), kind=KIND, parents=parents, config=settings, replace=True) as folder:
        write_plain(folder / "hashes.bin", iter([index.hashes.astype("<u8").tobytes()]))
        write_plain(folder / "rows.bin", iter([index.rows.astype("<u4").tobytes()]))
        write_file(folder / "names.json", json.dumps(list(index.names), ensure_ascii=False))
        write_file(folder / FACTS, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    return load_sealed(Path(output))


def is_sealed(folder: Path) -> bool:
    """Whether a folder is a sealed set."""
    return (folder / FACTS).is_file() and (folder / MANIFEST).is_file()


def load_sealed(folder: Path) -> SealedSet:
    """A sealed set, after verifying every byte; ArtifactDamaged, or DataError if it is something else."""
    if not is_sealed(folder):
        raise DataError(
            "this is no sealed test set",
            where=folder,
            fix="make one: trivium data seal FILE... --output sealed/NAME",
        )
    verify(folder)
    try:
        facts = json.loads((folder / FACTS).read_bytes())
        names = json.loads((folder / "names.json").read_bytes())
        hashes = np.fromfile(folder / "hashes.bin", dtype="<u8")
        rows = np.fromfile(folder / "rows.bin", dtype="<u4")
        totals = np.bincount(rows, minlength=len(names)).astype(np.int64)
        index = Index(hashes, rows, names, totals, tuple(facts["widths"]), facts["ngram"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactDamaged(
            f"the sealed set cannot be read: {error}", where=folder, fix="seal the files again"
        ) from None
    return SealedSet(folder, facts, content_hash(folder), index)


# Checking


def sealed_folders(recipe: Recipe) -> list[Path]:
    """The sealed sets that count for a recipe: those it names, and those in `sealed/` beside its folder of runs."""
    named = [Path(folder).expanduser().resolve() for folder in recipe.data.sealed]
    return list(dict.fromkeys([*named, *beside(Path(recipe.runs))]))


def seal_of(data: Path, *, runs: Path) -> dict[str, str] | None:
    """Name and hash of the sealed set, beside the folder of runs, that was made of this file; None if there is none."""
    content = content_hash(data)
    for folder in beside(runs):
        sealed = load_sealed(folder)
        if content in sealed.facts["files"].values():
            return {"name": sealed.name, "hash": sealed.hash}
    return None


def beside(runs: Path) -> list[Path]:
    """The sealed sets beside a folder of runs; what has its runs in a folder of its own names them in its recipes."""
    folder = runs.resolve().parent / BESIDE_RUNS
    return sorted(each for each in folder.iterdir() if is_sealed(each)) if folder.is_dir() else []


def check(
    sources: Sequence[Source],
    sets: Sequence[SealedSet],
    *,
    kind: str = "rows",
    tokenizer: Tokenizer | None = None,
    cache: Path | None = None,
) -> Checked:
    """Which rows of the sources hold text of sealed sets.

    kind:  of the rows, as in `open_dataset`; of documents only the text counts.
    cache: folder in which what was found is kept for the next time, under the hashes of sources and sets.
    """
    found = [_check(source, sets, kind=kind, tokenizer=tokenizer, cache=cache) for source in sources]
    return Checked(
        rows=sum(each.rows for each in found),
        leaking=[row for each in found for row in each.leaking],
        leaks=[leak for each in found for leak in each.leaks][:_EXAMPLES],
    )


def _check(
    source: Source, sets: Sequence[SealedSet], *, kind: str, tokenizer: Tokenizer | None, cache: Path | None
) -> Checked:
    depends = [code_fingerprint(), fingerprint(source), kind == "documents", sorted(each.hash for each in sets)]
    key = hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:32]
    kept = None if cache is None else cache / f"sealed-{key}.json"
    if kept is not None and (known := _read_checked(kept)) is not None:
        return known
    finders = [(each, Finder(each.index)) for each in sets]
    rows = passages(source, kind=kind, intake=Intake("quarantine"), tokenizer=tokenizer)
    count = 0
    leaking: list[str] = []
    leaks: list[Leak] = []
    while group := list(islice(rows, _TOGETHER)):
        count += len(group)
        found = list(_leaks(group, source, finders))
        leaking.extend(dict.fromkeys(leak.row for leak in found))
        leaks.extend(found[: _EXAMPLES - len(leaks)])
    result = Checked(count, leaking, leaks)
    if kept is not None:
        write_file(kept, json.dumps(asdict(result), ensure_ascii=False))
    return result


def _leaks(
    group: Sequence[tuple[str, list[str]]], source: Source, finders: Sequence[tuple[SealedSet, Finder]]
) -> Iterator[Leak]:
    """One leak for each row and sealed set: the row of the set that most is found of."""
    owners = [number for number, (_, texts) in enumerate(group) for _ in texts]
    texts = [text for _, passages in group for text in passages]
    found = []
    for sealed, finder in finders:
        for number, hits in groupby(finder.find(texts), key=lambda hit: owners[hit.text]):
            by_row: dict[int, list[Any]] = {}
            for hit in hits:
                by_row.setdefault(hit.row, []).append(hit)
            best, own = max(by_row.items(), key=lambda item: sum(hit.runs for hit in item[1]))
            first = [hit for hit in own if hit.text == own[0].text]
            share = sum(hit.runs for hit in own) / max(1, int(finder.index.totals[best]))
            shown = excerpt(texts[first[0].text], first)
            name = group[number][0]
            found.append((number, Leak(name, source.path, sealed.name, finder.index.names[best], min(1, share), shown)))
    for _, leak in sorted(found, key=lambda item: item[0]):
        yield leak


def _read_checked(path: Path) -> Checked | None:
    try:
        row = json.loads(path.read_bytes())
        return Checked(row["rows"], row["leaking"], [Leak(**leak) for leak in row["leaks"]])
    except (OSError, ValueError, KeyError, TypeError):
        return None


# Training


def guarded(dataset: Dataset, recipe: Recipe, tokenizer: Tokenizer) -> Dataset:
    """The training data of a recipe, once it is known what it shares with sealed sets.

    DataError, with the evidence, if that is more than `data.sealed_limit` and `data.sealed_action` is `error`;
    without these rows if it is `drop`. What was found is part of the data set's account.
    """
    folders = sealed_folders(recipe)
    if not folders:
        return dataset
    sets = [load_sealed(folder) for folder in folders]
    cache = Path(recipe.runs) / ".cache"
    checked = check(recipe.data.train, sets, kind=dataset.kind, tokenizer=tokenizer, cache=cache)
    names = ", ".join(f"{each.name} ({each.hash[:12]})" for each in sets)
    message = f"{len(checked.leaking):,} of {checked.rows:,} training rows hold text of the sealed sets {names}"
    action = recipe.data.sealed_action
    if checked.leaking and action == "error" and checked.share > recipe.data.sealed_limit:
        raise refusal(checked)
    if checked.leaking and action == "drop":
        dataset = without(dataset, checked.leaking)
        message += "; they are left out"
    found = {
        "message": message,
        "sets": {each.name: each.hash for each in sets},
        "rows": checked.rows,
        "rows_with_sealed_text": len(checked.leaking),
        "examples": [asdict(leak) for leak in checked.leaks[:20]],
    }
    return replace(dataset, account={**dataset.account, "sealed": found})


def said_of_sealed(dataset: Dataset) -> list[str]:
    """The message about sealed sets, if any were checked."""
    return [dataset.account["sealed"]["message"]] if "sealed" in dataset.account else []


def refusal(checked: Checked) -> DataError:
    """The error that shows the first leak."""
    leak = checked.leaks[0]
    file = Path(leak.source).name
    place = (
        leak.source + leak.row.removeprefix(file) if leak.row.startswith(f"{file}:") else f"{leak.source}: {leak.row}"
    )
    return DataError(
        f"{len(checked.leaking):,} of {checked.rows:,} training rows hold text of a sealed test set",
        where=f"{place} ({leak.share:.0%} of {leak.sealed_row} of the sealed set {leak.sealed})",
        value=leak.excerpt,
        fix="leave these rows out with data.sealed_action=drop, or clean the data with the step decontaminate",
    )


def without(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The data set without the samples of these rows (and without the pieces of these documents)."""
    unwanted = set(names)
    kept = np.array(
        [
            name not in unwanted and name.rpartition("#")[0] not in unwanted
            for name in map(dataset.sample_id, range(len(dataset)))
        ],
        dtype=np.bool_,
    )
    numbers = np.flatnonzero(kept)
    table = dataset.table
    sequences, owners = dataset.sequences_of(numbers)
    before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(kept)])
    parts = [replace(part, first=int(before[part.first]), last=int(before[part.last])) for part in dataset.parts]
    if any(part.first == part.last for part in parts):
        raise ConfigError(
            "nothing is left to train on without the rows that hold text of sealed sets",
            where="data.train",
            value=f"{len(dataset)} samples",
            fix="train on other data",
        )
    former, wanted = dataset.name_of, numbers.tolist()
    out = int((~kept).sum())
    dropped = {**dataset.account.get("dropped", {}), "text of a sealed set": out}
    difficulty = getattr(dataset, "difficulty", None)
    extra: dict[str, Any] = {} if difficulty is None else {"difficulty": difficulty[numbers]}
    return replace(
        dataset,
        table=replace(
            table, shard=table.shard[sequences], start=table.start[sequences], length=table.length[sequences]
        ),
        owners=np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.bincount(owners, minlength=len(numbers)))]),
        parts=parts,
        name_of=lambda number: former(wanted[number]),
        fields={name: values[numbers] for name, values in dataset.fields.items()},
        rows=None if dataset.rows is None else [dataset.rows[number] for number in wanted],
        account={**dataset.account, "dropped": dropped},
        **extra,
    )
