"""Held-out data that cannot leak: whole groups, families and clusters, by name or by date."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator

from trivium.artifacts.writer import write_file
from trivium.config import StrictModel
from trivium.data.dedup.keeping import sketched
from trivium.data.documents import Document
from trivium.data.hashes import hash64
from trivium.data.splits.assign import TRAIN, by_fraction, main_keys, positions, ties, unit_names, units
from trivium.data.step import CorpusStep, Dropped, Result, listed
from trivium.errors import ConfigError, DataError

_NO_DATE = -1


class Split(CorpusStep):
    """Writes the split into meta: split. About 240 bytes of memory a document."""

    class Config(StrictModel):
        """Settings of `split`."""

        by: Annotated[list[str], BeforeValidator(listed)] = Field(default_factory=lambda: ["group"], min_length=1)
        """Fields of meta whose values must not be cut in two: group, author, book, speaker; `date`: by time."""
        validation: float = Field(0.05, ge=0, le=1)
        """Share of the groups held out for validation."""
        test: float = Field(0.0, ge=0, le=1)
        """Share of the groups held out for tests."""
        further: dict[str, float] = Field(default_factory=dict)
        """Shares of further splits, by name."""
        validation_from: str | None = None
        """With `by: date`: documents of this date (ISO 8601) and later are held out for validation."""
        test_from: str | None = None
        """With `by: date`: documents of this date and later are held out for tests."""
        undated: Literal["train", "drop"] = "drop"
        """With `by: date`: what to do with documents without a date."""
        given: Literal["keep", "ignore"] = "keep"
        """Documents that have a split already keep it; what belongs to a held-out one leaves the training data."""

        @model_validator(mode="after")
        def _consistent(self) -> Split.Config:
            _check(self)
            return self

    @property
    def _by_date(self) -> bool:
        return "date" in self.config.by

    def sketch(self, documents: Sequence[Document]) -> Mapping[str, bytes]:
        fields = [field for field in self.config.by if field != "date"]
        named = [[hash64(key) for key in main_keys(document, fields)] for document in documents]
        tied = [[hash64(key) for key in ties(document)] for document in documents]
        given = [document.meta.get("split") if self.config.given == "keep" else None for document in documents]
        dates = [_day(document) if self._by_date else _NO_DATE for document in documents]
        return {
            "names": _bytes([key for keys in named for key in keys], "<u8"),
            "name_counts": _bytes([len(keys) for keys in named], "<i8"),
            "ties": _bytes([key for keys in tied for key in keys], "<u8"),
            "tie_counts": _bytes([len(keys) for keys in tied], "<i8"),
            "children": _bytes(["parent" in document.meta for document in documents], "u1"),
            "dates": _bytes(dates, "<i8"),
            "given": json.dumps(given).encode(),
        }

    def decide(self, sketches: Sequence[Mapping[str, Path]], folder: Path) -> Sequence[Any]:
        names, counts = sketched(sketches, "names", "<u8"), sketched(sketches, "name_counts", "<i8")
        tied, tie_counts = sketched(sketches, "ties", "<u8"), sketched(sketches, "tie_counts", "<i8")
        owners = np.arange(len(counts))
        everything = np.concatenate([names, tied])
        order = np.argsort(np.concatenate([np.repeat(owners, counts), np.repeat(owners, tie_counts)]), kind="stable")
        roots = units(everything[order], counts + tie_counts)
        children = sketched(sketches, "children", "u1").astype(np.bool_)
        if self._by_date:
            chosen = self._dated(roots, sketched(sketches, "dates", "<i8"))
        else:
            shares = {"test": self.config.test, "validation": self.config.validation, **self.config.further}
            places = positions(unit_names(roots, names, counts, children), self.seed)
            chosen = by_fraction(places, {name: share for name, share in shares.items() if share > 0}).astype(object)
        given = np.array([each for sketch in sketches for each in json.loads(sketch["given"].read_bytes())], object)
        chosen = _with_given(roots, chosen, given)
        write_file(folder / "splits.json", json.dumps(_account(roots, chosen), indent=1) + "\n")
        ends = np.cumsum([len(json.loads(sketch["given"].read_bytes())) for sketch in sketches])
        return [part.tolist() for part in np.split(chosen, ends[:-1])] if len(ends) else []

    def _dated(self, roots: NDArray[np.int64], days: NDArray[np.int64]) -> NDArray[Any]:
        """A unit is as late as its latest document, so that nothing later than the training data leaks into it."""
        latest = np.full(len(roots), _NO_DATE, dtype=np.int64)
        np.maximum.at(latest, roots, days)
        latest = latest[roots]
        chosen = np.full(len(roots), TRAIN, dtype=object)
        for name, start in (("validation", self.config.validation_from), ("test", self.config.test_from)):
            if start is not None:
                chosen[latest >= _parsed(start)] = name
        if self.config.undated == "drop":
            chosen[latest == _NO_DATE] = "!no date"
        return chosen

    def apply_all(self, documents: Sequence[Document], decision: Any) -> list[Result]:
        results: list[Result] = []
        for document, split in zip(documents, decision, strict=True):
            if split.startswith("!"):
                results.append(Dropped(split[1:], f"group {document.group}"))
            else:
                results.append(replace(document, meta={**document.meta, "split": split}))
        return results


_HELD_OUT = "!belongs to a held-out document"


def _with_given(roots: NDArray[np.int64], chosen: NDArray[Any], given: NDArray[Any]) -> NDArray[Any]:
    """Splits that documents came with count for their whole unit; training documents of a held-out unit go."""
    held: dict[int, str] = {}
    for number in range(len(given)):
        if given[number] not in (None, TRAIN):
            held.setdefault(int(roots[number]), str(given[number]))
    trained = {int(roots[number]) for number in np.flatnonzero(given == TRAIN).tolist()}
    result = chosen.copy()
    for number in np.flatnonzero(np.isin(roots, [*held, *trained])).tolist():
        unit = int(roots[number])
        if given[number] == TRAIN and unit in held:
            result[number] = _HELD_OUT
        elif given[number] is not None:
            result[number] = given[number]
        else:
            result[number] = held.get(unit, TRAIN)
    return result


def _account(roots: NDArray[np.int64], chosen: NDArray[Any]) -> dict[str, Any]:
    firsts = np.unique(roots)
    return {
        "documents": dict(sorted(Counter(name.lstrip("!") for name in chosen.tolist()).items())),
        "groups": dict(sorted(Counter(name.lstrip("!") for name in chosen[firsts].tolist()).items())),
    }


def _check(config: Split.Config) -> None:
    """ConfigError without a place, which is then that of the step in the pipeline's file."""
    dated = [name for name in ("validation_from", "test_from") if getattr(config, name) is not None]
    if "date" in config.by and not dated:
        raise ConfigError("by: date needs a date", fix="give test_from (or validation_from): 2024-01-01")
    if dated and "date" not in config.by:
        raise ConfigError(f"{dated[0]} counts with by: date", fix="write by: date, or leave it out")
    idle = ["validation", "test", "further"] if dated else ["undated"]
    for name in idle:
        if getattr(config, name) != type(config).model_fields[name].get_default(call_default_factory=True):
            fix = "leave it out: the dates decide" if dated else "write by: date, or leave it out"
            raise ConfigError(f"{name} has no effect {'with' if dated else 'without'} by: date", fix=fix)
    for name in dated:
        _parsed(getattr(config, name))
    if {TRAIN, "validation", "test"}.intersection(config.further) or any(
        not 0 <= share <= 1 for share in config.further.values()
    ):
        raise ConfigError(
            "a further split has a name of its own and a share from 0 to 1", value=config.further,
            fix="validation and test have settings of their own, and train takes the rest",
        )  # fmt: skip
    total = config.validation + config.test + sum(config.further.values())
    if total > 1:
        fix = "lower validation, test or further, so that they are 1 at most together"
        raise ConfigError("more is held out than there is", value=f"{total:g} of all", fix=fix)


def _day(document: Document) -> int:
    value = document.meta.get("date")
    if value is None or value == "":
        return _NO_DATE
    try:
        return _parsed(str(value))
    except ConfigError:
        raise DataError(
            "the date of the document is not in ISO 8601",
            where=document.source,
            value=value,
            fix="write 2024-05-31, or undated: drop and no date",
        ) from None


def _parsed(text: str) -> int:
    """Days since the year 1; a year or a month stands for its first day."""
    parts = text.strip()
    for suffix in ("", "-01", "-01-01"):
        try:
            moment = datetime.datetime.fromisoformat(f"{parts}{suffix}".replace("Z", "+00:00"))
            return moment.toordinal()
        except ValueError:
            continue
    raise ConfigError("not a date", value=text, fix="write it as 2024-05-31")


def _bytes(values: Sequence[Any], dtype: str) -> bytes:
    return np.array(values, dtype=dtype).tobytes()
