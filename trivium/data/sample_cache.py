"""Encoded instructions and preferences on the disk, for the next start and for the other ranks.

An artifact of kind "samples": `tokens.bin`, `trained.bin`, `lengths.bin`, `owners.bin`, where tokens count differently
`weights.bin`, and one `field-<name>.bin` for each number (little endian), and `samples.json` with the ids, the account
and the data type of the tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trivium.artifacts.writer import remove_artifact, write_artifact, write_file
from trivium.data.collecting import Collected, collect
from trivium.data.dataset import Kind
from trivium.data.reading import fingerprint, source_parent
from trivium.data.shards import is_whole, tokenizer_parent
from trivium.data.workbench import code_fingerprint
from trivium.recipe import DataSection, Source

if TYPE_CHECKING:
    from trivium.tokenizers.tokenizer import Tokenizer

_FACTS = "samples.json"


def collect_on_disk(
    sources: Sequence[Source], *, kind: Kind, tokenizer: Tokenizer, settings: DataSection, cache: Path
) -> Collected:
    """The same as `collect`, from `cache` if it was done before with the same rows, tokenizer and settings."""
    depends = {
        "code": code_fingerprint(),
        "kind": kind,
        "sources": [fingerprint(source) for source in sources],
        "tokenizer": tokenizer.fingerprint(),
        "settings": settings.model_dump(
            include={"sequence_length", "truncation", "on_error", "max_untrained", "pairs", "chat", "similar"}
        ),
    }
    target = cache / f"samples-{hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:32]}"
    if target.exists() and not is_whole(target):
        remove_artifact(target)
    if not target.exists():
        collected = collect(sources, kind=kind, tokenizer=tokenizer, settings=settings)
        parents = [*(source_parent(source, "rows") for source in sources), tokenizer_parent(tokenizer)]
        with write_artifact(target, kind="samples", parents=parents, config=depends) as folder:
            _save(folder, collected)
    return _load(target)


def _save(folder: Path, found: Collected) -> None:
    arrays: dict[str, NDArray[Any]] = {
        "tokens": found.tokens,
        "trained": found.trained,
        "lengths": found.lengths.astype("<i8"),
        "owners": found.owners.astype("<i8"),
        **({} if found.weights is None else {"weights": found.weights.astype("<f4")}),
        **{f"field-{name}": values.astype("<f4") for name, values in found.fields.items()},
    }
    for name, values in arrays.items():
        write_file(folder / f"{name}.bin", values.tobytes())
    facts = {
        "dtype": found.tokens.dtype.str,
        "weighted": found.weights is not None,
        "fields": list(found.fields),
        "ends": list(found.ends),
        "account": found.account,
        "ids": list(found.ids),
    }
    write_file(folder / _FACTS, json.dumps(facts))


def _load(folder: Path) -> Collected:
    facts = json.loads((folder / _FACTS).read_bytes())

    def read(name: str, dtype: str) -> NDArray[Any]:
        return np.fromfile(folder / f"{name}.bin", dtype=dtype)

    return Collected(
        tokens=read("tokens", facts["dtype"]),
        trained=read("trained", "?"),
        lengths=read("lengths", "<i8"),
        owners=read("owners", "<i8"),
        ids=facts["ids"],
        fields={name: read(f"field-{name}", "<f4") for name in facts["fields"]},
        rows=None,
        ends=facts["ends"],
        account=facts["account"],
        weights=read("weights", "<f4") if facts["weighted"] else None,
    )
