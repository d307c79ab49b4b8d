"""The shelf of a model: soft prompts and adapters in memory, put there and taken away at any time, chosen row by row.

    model = load("base")
    model.shelf.add("summary", "runs/summary/final")
    model.shelf.add("mood", "runs/mood/final")
    model.generate(["a text", "another text"], adapter=["summary", "mood"])

The base stays as it is: an entry adds its own few kilobytes beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trivium.errors import ModelError, TriviumError
from trivium.inference.decisions import Decisions, read_decisions
from trivium.inference.shelf_folder import ShelfFolder
from trivium.models.adapter_folder import base_of, put_beside, stored_adapters
from trivium.models.mixing import Entry

if TYPE_CHECKING:
    from trivium.inference.model import LanguageModel
    from trivium.models.config import ModelConfig
    from trivium.models.transformer import Transformer

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Described:
    """An entry in numbers.

    kinds: PEFT's names of its adapters. bytes: what it takes in memory. virtual_tokens: before each sequence.
    labels: of a head of its own.
    """

    name: str
    kinds: tuple[str, ...]
    bytes: int
    virtual_tokens: int
    labels: tuple[str, ...]


class Shelf:
    """The entries of one model by name."""

    def __init__(self, module: Transformer, folder: Path | None) -> None:
        """`folder` is that of the model, None for one that was never stored."""
        self._module, self._folder = module, folder
        self._described: dict[str, Described] = {}
        self.decisions: dict[str, Decisions] = {}
        """How the scores of an entry's own head become labels."""

    def __len__(self) -> int:
        return len(self._described)

    def __contains__(self, name: object) -> bool:
        return name in self._described

    def entries(self) -> list[Described]:
        """All entries, in the order in which they came."""
        return list(self._described.values())

    def add(self, name: str, folder: str | Path) -> None:
        """Reads a folder of adapters (ours or PEFT's); an entry of the same name is replaced.

        ModelError if it belongs to another base, changes it, or cannot act on a part of a batch; then all is as before.
        """
        check_name(name)
        module, path = self._module, Path(folder)
        if module.base is None:
            if self._folder is None:
                raise ModelError(
                    "a model that has no folder has no adapters", value=name, fix="load it from its folder"
                )
            module.base = base_of(self._folder)
        transforms, shape, head = put_beside(module, path, f"shelf{next(module.mixer.numbers)}")
        size = sum(module.get_parameter(each).nbytes for transform in transforms for each in transform.added)
        entry = Entry(name, tuple(transforms), shape, head=head)
        try:
            decisions = read_decisions(path, shape.labels)
            before = module.mixer.entries.get(name)
            module.mixer.add(module, entry)
        except Exception:
            for transform in transforms:
                transform.remove(module)
            raise
        for transform in () if before is None else before.transforms:
            transform.remove(module)
        size += 0 if head is None else sum(parameter.nbytes for parameter in head.parameters())
        labels = () if head is None else shape.labels
        kinds = tuple(each.kind for each in stored_adapters(path))
        self._described[name] = Described(name, kinds, size, entry.virtual_tokens()[0], labels)
        self.decisions[name] = decisions

    def remove(self, name: str) -> None:
        """Takes an entry away; the next batch may go without it."""
        self._module.mixer.remove(self._module, name)
        del self._described[name], self.decisions[name]

    def shape(self, name: str) -> ModelConfig:
        """The shape of the model under an entry, with its head; of the model itself where `name` is empty."""
        return self._module.mixer.entry(name).config if name else self._module.config

    def names(self, adapter: str | Sequence[str | None] | None, count: int) -> list[str]:
        """The entry of each of `count` rows, empty for none; TriviumError if there is no such entry."""
        if adapter is None or isinstance(adapter, str):
            adapter = [adapter] * count
        if len(adapter) != count:
            raise TriviumError(
                "each row needs its adapter", where="adapter", value=f"{count} rows, {len(adapter)} adapters"
            )
        for name in dict.fromkeys(name for name in adapter if name):
            self._module.mixer.entry(name)
        return [name or "" for name in adapter]

    def chosen(self, names: Sequence[str]) -> Sequence[str] | None:
        """What the model is told about the rows: None where all are under none."""
        return names if any(names) else None


def check_name(name: str) -> None:
    """Refuses names that could not be those of a folder."""
    if not _NAME.fullmatch(name):
        raise TriviumError(
            "an entry cannot have this name", where="name", value=name, fix="use letters, digits, - and _ (at most 64)"
        )


def open_shelf(folder: Path, load: Callable[[Path], LanguageModel], *, base: str | Path | None = None) -> LanguageModel:
    """The base of a stored shelf (`base`: where it has moved to) with all entries on it, in their current versions."""
    stored = ShelfFolder(folder, base=base)
    model = load(stored.base)
    for name in stored.entries():
        model.shelf.add(name, stored.adapter(name))
    return model
