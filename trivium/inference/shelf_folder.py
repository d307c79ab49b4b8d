"""A shelf on the disk: adapters of one base with their versions and their tests, as one artifact.

    shelf.json              the base, by path and fingerprint, and for each entry its versions and which one counts
    <entry>/<version>/      a folder of adapters, without its tokenizer: the base has it
    <entry>/tests.jsonl     {"input": ..., "expected": ..., "match": "begins", "max_new_tokens": 20}

Every change writes the whole shelf anew and puts it in the place of the old one in one step; entries are small.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from trivium.artifacts.record import parent_of
from trivium.artifacts.writer import make_folder, write_artifact, write_plain
from trivium.config import StrictModel
from trivium.errors import ModelError, TriviumError
from trivium.models.adapter_folder import base_of, find_base, fingerprint, is_adapter, put_beside
from trivium.models.folder import CONFIG, read_config, read_json
from trivium.models.mixing import Entry
from trivium.nearest import nearest

SHELF, TESTS = "shelf.json", "tests.jsonl"
_KEPT = (".json", ".safetensors")
_LEFT = ("tokenizer", "special_tokens", "generation_config", "trivium.json", "MANIFEST.json", "chat_template")


class Case(StrictModel):
    """One test of an entry."""

    input: str = Field(min_length=1)
    """What the model is given."""
    expected: str = Field(min_length=1)
    """What the answer must be like; of an entry with a head of its own, the label."""
    match: Literal["begins", "contains", "exact"] = "begins"
    """How the greedy answer is compared, white space at its ends aside."""
    max_new_tokens: int = Field(20, ge=1)
    """Longest answer."""


def is_shelf(folder: Path) -> bool:
    """Whether the folder is a shelf."""
    return (folder / SHELF).is_file()


class ShelfFolder:
    """A stored shelf; one that is not there yet begins with its first entry."""

    def __init__(self, folder: str | Path, *, base: str | Path | None = None) -> None:
        """`base` is needed for a new shelf, or where the base has moved."""
        self.folder = Path(folder)
        self._given = None if base is None else Path(base)

    @property
    def base(self) -> Path:
        """The folder of the base; ModelError if it is not the one that the entries were trained on."""
        content = self._read()
        found = self._given or (Path(content["base"]) if content else None)
        if found is None:
            raise ModelError("a new shelf needs its base", where=self.folder, fix="name the folder: --base BASE")
        if not (found / CONFIG).is_file():
            raise ModelError(
                "the base of the shelf is not there", where=self.folder, value=str(found), fix="--base BASE"
            )
        if content and fingerprint(found) != content["fingerprint"]:
            raise ModelError(
                "this is not the base of the shelf: its weights differ", where=self.folder, value=str(found)
            )
        return found

    def entries(self) -> dict[str, dict[str, Any]]:
        """name -> {"version": the one that counts, "versions": all that are there}."""
        entries: dict[str, dict[str, Any]] = self._read().get("entries", {})
        return entries

    def adapter(self, name: str, version: int | None = None) -> Path:
        """The folder of a version of an entry; default: the one that counts."""
        entry = self._entry(name)
        chosen = entry["version"] if version is None else version
        if chosen not in entry["versions"]:
            raise TriviumError(
                "there is no such version", where=name, value=chosen, fix=f"there are {entry['versions']}"
            )
        return self.folder / name / str(chosen)

    def tests(self, name: str) -> list[Case]:
        """The test cases of an entry."""
        path = self.folder / name / TESTS
        self._entry(name)
        return read_cases(path) if path.is_file() else []

    def add(self, name: str, adapter: str | Path, *, tests: str | Path | None = None) -> int:
        """Puts a folder of adapters on the shelf, under a new name or as the next version; returns its version.

        tests: a file of cases, in the place of those that the entry has.
        """
        from trivium.inference.shelf import check_name

        check_name(name)
        path = Path(adapter)
        if not is_adapter(path):
            raise ModelError("this is no folder of adapters", where=path, fix="name one that a run or PEFT has written")
        _check_fits(self.base, path)
        cases = None if tests is None else read_cases(Path(tests))
        with self._changed() as (place, entries):
            entry = entries.setdefault(name, {"version": 0, "versions": []})
            version = max(entry["versions"], default=0) + 1
            entry["version"], entry["versions"] = version, [*entry["versions"], version]
            _copy(path, place / name / str(version))
            if cases is not None:
                lines = "".join(case.model_dump_json(exclude_defaults=True) + "\n" for case in cases)
                (place / name / TESTS).unlink(missing_ok=True)
                write_plain(place / name / TESTS, iter([lines.encode()]))
        return int(version)

    def remove(self, name: str) -> None:
        """Takes an entry with all its versions away."""
        self._entry(name)
        with self._changed() as (place, entries):
            del entries[name]
            shutil.rmtree(place / name)

    def choose(self, name: str, version: int | None = None) -> int:
        """Makes another version count; default: the one before. Returns its number."""
        entry = self._entry(name)
        earlier = [number for number in entry["versions"] if number < entry["version"]]
        if version is None and not earlier:
            raise TriviumError("there is no earlier version", where=name, value=entry["version"])
        chosen = max(earlier) if version is None else version
        self.adapter(name, chosen)
        with self._changed() as (_, entries):
            entries[name]["version"] = chosen
        return chosen

    def _read(self) -> dict[str, Any]:
        if is_shelf(self.folder):
            return read_json(self.folder / SHELF)
        if self.folder.exists() and any(self.folder.iterdir()):
            raise ModelError(
                "this folder is no shelf", where=self.folder, fix=f"name one that holds {SHELF}, or a new one"
            )
        return {}

    def _entry(self, name: str) -> dict[str, Any]:
        entries = self.entries()
        if name not in entries:
            near = nearest(name, entries)
            fix = f"did you mean {near}?" if near else f"it has {', '.join(entries) or 'none yet'}"
            raise TriviumError("there is no such entry on the shelf", where=self.folder, value=name, fix=fix)
        return entries[name]

    @contextmanager
    def _changed(self) -> Iterator[tuple[Path, dict[str, dict[str, Any]]]]:
        """A copy of the shelf and its entries, to change; it then takes the place of the old one."""
        make_folder(self.folder.resolve().parent)
        with _alone(self.folder.resolve().parent):
            base, entries = self.base, self.entries()
            parents = [parent_of(base, "base")]
            with write_artifact(self.folder, kind="shelf", parents=parents, replace=True) as place:
                for name in entries:
                    shutil.copytree(self.folder / name, place / name)
                yield place, entries
                content = {"format": 1, "base": str(base), "fingerprint": fingerprint(base), "entries": entries}
                write_plain(place / SHELF, iter([(json.dumps(content, indent=1) + "\n").encode()]))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One change at a time, among all processes."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _check_fits(base: Path, adapter: Path) -> None:
    """ModelError if the adapter cannot stand on a shelf of this base; reads no weights of the base."""
    from trivium.models.transformer import Transformer

    find_base(adapter, base)
    model = Transformer(read_config(base))
    model.base = base_of(base)
    transforms, shape, head = put_beside(model, adapter, "new")
    model.mixer.add(model, Entry("new", tuple(transforms), shape, head=head))


def _copy(source: Path, target: Path) -> None:
    """A folder of adapters, without tokenizer and records."""
    for path in sorted(source.rglob("*")):
        if path.suffix in _KEPT and not path.name.startswith(_LEFT):
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def read_cases(path: Path) -> list[Case]:
    """A file of test cases; TriviumError naming the line that is wrong."""
    cases = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise TriviumError("the file of tests cannot be read", where=path, value=str(error)) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            cases.append(Case.model_validate(json.loads(line)))
        except (ValueError, ValidationError) as error:
            found = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise TriviumError(
                f"this is no test case: {found}",
                where=f"{path}:{number}",
                value=line,
                fix='write {"input": "a text", "expected": "what the answer begins with"}',
            ) from None
    return cases
