"""Hugging Face data sets: a folder that `datasets` wrote or that was downloaded, or the id of one (`format: dataset`).

A folder of `save_to_disk` (Arrow) or a copy of a repository with a card (README.md with `configs` or `dataset_info`, or
files named after splits) is known by itself. One split is read: `train`, or the only one there is; others are named
after a `#`: `folder#test`, `owner/name#config/test`. The other splits are counted, never mixed in. An id needs the
package `datasets`, which downloads it or takes it from its cache; no code of a data set is ever run.
"""

from __future__ import annotations

import fnmatch
import importlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from trivium.data.plain import packed
from trivium.errors import DataError

EXTENSIONS = ()

_FILES = (".parquet", ".arrow", *packed(".jsonl", ".json", ".csv", ".tsv", ".txt"))
_DESCRIPTIONS = ("dataset_infos.json", "dataset_info.json", "state.json", "dataset_dict.json")
_SPLIT = re.compile(
    r"(?:^|[/_.-])(train|training|validation|valid|dev|val|test|testing|eval)(?=[/_.\d-]|$)", re.IGNORECASE
)
_SAME = {"training": "train", "testing": "test", "eval": "test"}
_SAME |= dict.fromkeys(("valid", "dev", "val"), "validation")
_CARD = re.compile(r"\A---\s*\n(.*?)\n---", re.DOTALL)


def owns(folder: Path) -> bool:
    """Whether a folder is a data set of this kind."""
    if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
        return True
    card = _card(folder)
    return bool(card.get("configs") or card.get("dataset_info")) and bool(_data_files(folder))


def files(folder: Path, chosen: str | None) -> tuple[list[Path], Counter[str]]:
    """The files of one split, in order, and how many there are of the others."""
    splits = _saved(folder) or _configured(folder, chosen) or _named(folder)
    wanted = (chosen or "").rpartition("/")[2] or _default(splits, folder)
    if wanted not in splits:
        raise DataError(
            "the data set has no such split",
            where=folder,
            value=wanted,
            fix=f"use one of {', '.join(sorted(splits))}, for example {folder.name}#{min(splits)}",
        )
    others = Counter({f"files of the split {name}": len(paths) for name, paths in splits.items() if name != wanted})
    return sorted(splits[wanted]), others


def fetched(name: str, chosen: str | None) -> list[Path]:
    """The Arrow files of a data set that is named by its id, downloaded or from the cache."""
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(
            "reading a data set by its id needs the package datasets",
            where=name,
            fix="pip install datasets, or download the data set and name its folder",
        ) from error
    config, _, split = (chosen or "train").rpartition("/")
    try:
        found = datasets.load_dataset(name, config or None, split=split or "train")
    except Exception as error:  # whatever it is, it is about this data set: no network, no such name, no such split
        raise DataError(
            "the data set cannot be loaded",
            where=name,
            value=f"{type(error).__name__}: {error}",
            fix="check its name and the network; or download it elsewhere, and name the folder",
        ) from error
    return [Path(entry["filename"]) for entry in found.cache_files]


def _saved(folder: Path) -> dict[str, list[Path]]:
    """The splits of what `save_to_disk` wrote."""
    if (folder / "dataset_dict.json").is_file():
        names = _json(folder / "dataset_dict.json").get("splits", [])
        return {str(name): sorted((folder / str(name)).glob("*.arrow")) for name in names if _plain(str(name))}
    if (folder / "state.json").is_file():
        state = _json(folder / "state.json")
        listed = [folder / str(entry.get("filename")) for entry in state.get("_data_files", [])]
        inside = [path for path in listed if path.parent == folder and path.is_file()]
        return {str(state.get("_split") or "train"): inside}
    return {}


def _configured(folder: Path, chosen: str | None) -> dict[str, list[Path]]:
    """The splits that the card names: of the chosen configuration, else the default or first one."""
    listed = _card(folder).get("configs") or []
    configs = [entry for entry in listed if isinstance(entry, dict) and entry.get("data_files")]
    if not configs:
        return {}
    name = (chosen or "").rpartition("/")[0]
    if name:
        config = next((entry for entry in configs if entry.get("config_name") == name), None)
    else:
        marked = (entry for entry in configs if entry.get("default") or entry.get("config_name") == "default")
        config = next(marked, configs[0])
    if config is None:
        known = ", ".join(str(entry.get("config_name")) for entry in configs)
        raise DataError("the data set has no such configuration", where=folder, value=name, fix=f"use one of {known}")
    given = config["data_files"]
    given = [{"split": "train", "path": given}] if isinstance(given, str) else given
    splits: dict[str, list[Path]] = {}
    for entry in given:
        patterns = entry if isinstance(entry, str) else entry.get("path") or []
        split = "train" if isinstance(entry, str) else str(entry.get("split") or "train")
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            found = splits.setdefault(split, [])
            found += [path for path in _data_files(folder) if _matches(path, folder, str(pattern))]
    return {name: sorted(set(paths)) for name, paths in splits.items() if paths}


def _named(folder: Path) -> dict[str, list[Path]]:
    """The splits as the names of files and folders say them; `train` where they say nothing."""
    splits: dict[str, list[Path]] = {}
    for path in _data_files(folder):
        found = _SPLIT.search(path.relative_to(folder).as_posix())
        name = found[1].lower() if found else "train"
        splits.setdefault(_SAME.get(name, name), []).append(path)
    return splits


def _default(splits: dict[str, list[Path]], folder: Path) -> str:
    if "train" in splits or len(splits) == 1:
        return "train" if "train" in splits else next(iter(splits))
    raise DataError(
        "the data set has several splits and none is called train",
        where=folder,
        value=", ".join(sorted(splits)) or "no data files",
        fix=f"name the split: {folder.name}#{min(splits, default='test')}",
    )


def _data_files(folder: Path) -> list[Path]:
    found = (path for path in sorted(folder.rglob("*")) if path.name.lower().endswith(_FILES) and path.is_file())
    hidden = (path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    return [path for path in hidden if path.name not in _DESCRIPTIONS]


def _matches(path: Path, folder: Path, pattern: str) -> bool:
    name = path.relative_to(folder).as_posix()
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, pattern.replace("**/", ""))


def _plain(name: str) -> bool:
    return "/" not in name and "\\" not in name and name not in ("", ".", "..")


def _card(folder: Path) -> dict[str, Any]:
    path = folder / "README.md"
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", errors="replace") as stream:
        found = _CARD.match(stream.read(1 << 20))
    try:
        card = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError:
        return {}
    return card if isinstance(card, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            "the description of the data set cannot be read", where=path, value=str(error), fix="repair it"
        ) from error
    return value if isinstance(value, dict) else {}
