"""Tokenised documents on the disk: memory-mapped, hashed, and written so that a killed pass goes on where it was.

An artifact of kind "tokens":

    shard-00000.bin     token ids, little endian, 16 bits each if the vocabulary allows it, else 32
    shard-00000.index   for each document: tokens (32 bits), bytes of its text (32), end of its id (64)
    shard-00000.ids     the ids of the documents in UTF-8, one after the other
    tokens.json         data type, fingerprint of the tokenizer, and the account of what was read

Shards end after a fixed amount of text, so killed and uninterrupted passes leave the same files.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trivium.artifacts.manifest import verify
from trivium.artifacts.record import Parent, parent_of
from trivium.artifacts.writer import remove_artifact, write_artifact, write_file
from trivium.data.documents import Document
from trivium.data.intake import Intake, OnError
from trivium.data.reading import fingerprint, read_documents, source_parent
from trivium.data.table import narrowest
from trivium.data.tokenise import SHARD_BYTES, TokenShard, tokenise
from trivium.data.workbench import Workbench, code_fingerprint, workbench
from trivium.errors import ArtifactError, DataError
from trivium.recipe import Source

if TYPE_CHECKING:
    from trivium.tokenizers.tokenizer import Tokenizer

_FACTS = "tokens.json"
_INDEX = np.dtype([("tokens", "<u4"), ("bytes", "<u4"), ("id_end", "<u8")])


@dataclass(frozen=True)
class TokenisedSource:
    """The shards of one source, and its account: formats, skipped files, dropped and quarantined documents."""

    shards: Sequence[TokenShard]
    account: dict[str, Any]


def tokenise_in_memory(source: Source, tokenizer: Tokenizer, *, on_error: OnError) -> TokenisedSource:
    """Read and tokenise a source."""
    intake, dropped = Intake(on_error), Counter[str]()
    shards = list(tokenise(_not_empty(read_documents(source, intake), dropped), tokenizer))
    return TokenisedSource(shards, {**intake.summary(), "dropped": dict(dropped)})


def tokenise_on_disk(
    source: Source,
    tokenizer: Tokenizer,
    *,
    on_error: OnError,
    cache: Path,
    shard_bytes: int = SHARD_BYTES,
) -> TokenisedSource:
    """The same with the shards in `cache`, under a name made of what they depend on; made only if they are not there.

    Shards that are damaged are made again, and the files are the same for any number of threads.
    """
    content = fingerprint(source)
    depends = [code_fingerprint(), content, tokenizer.fingerprint(), on_error, shard_bytes]
    key = hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:32]
    target = cache / f"tokens-{key}"
    with workbench(target, key=key) as bench:
        if target.exists() and not is_whole(target):
            remove_artifact(target)
        if not target.exists():
            facts = _tokenise_parts(source, tokenizer, on_error, bench, shard_bytes)
            parents = [source_parent(source, "documents"), tokenizer_parent(tokenizer)]
            with write_artifact(target, kind="tokens", parents=parents, config=source.model_dump()) as folder:
                for number, part in enumerate(bench.parts):
                    for name, path in part.files.items():
                        (folder / f"shard-{number:05d}.{name}").hardlink_to(path)
                write_file(folder / _FACTS, json.dumps(facts, indent=1))
    return open_tokens(target, tokenizer)


def tokenizer_parent(tokenizer: Tokenizer) -> Parent:
    """The tokenizer as a parent in the lineage of what it encoded."""
    folder = Path(tokenizer.where)
    if folder.is_dir():
        return parent_of(folder, "tokenizer")
    return Parent(tokenizer.where, tokenizer.fingerprint(), "tokenizer")


def is_tokens(path: Path) -> bool:
    """Whether a folder holds token shards."""
    try:
        return (path / _FACTS).is_file()
    except OSError:  # no path at all; reading it says so
        return False


def open_tokens(folder: Path, tokenizer: Tokenizer) -> TokenisedSource:
    """Memory-mapped shards, after verifying every byte. DataError if another tokenizer made them."""
    verify(folder)
    facts = json.loads((folder / _FACTS).read_bytes())
    if facts["tokenizer"] != tokenizer.fingerprint():
        raise DataError(
            "the shards were made with another tokenizer",
            where=folder,
            value=f"tokenizer {facts['tokenizer'][:16]}, this one is {tokenizer.fingerprint()[:16]}",
            fix="name the documents themselves as the source, or the tokenizer that made the shards",
        )
    shards = [_open_shard(folder, number, facts["dtype"]) for number in range(facts["shards"])]
    return TokenisedSource(shards, facts["account"])


def _tokenise_parts(
    source: Source,
    tokenizer: Tokenizer,
    on_error: OnError,
    bench: Workbench,
    shard_bytes: int,
) -> dict[str, Any]:
    """Finish the parts of the workbench; returns what `tokens.json` says."""
    intake, dropped = Intake(on_error), Counter[str]()
    documents = _not_empty(read_documents(source, intake), dropped)
    for _ in islice(documents, sum(part.facts["documents"] for part in bench.parts)):
        pass  # read again, for the account of what was dropped, but not tokenised again
    with closing(tokenise(documents, tokenizer, shard_bytes=shard_bytes)) as found:
        for shard in found:
            bench.commit(_files(shard), {"documents": len(shard.lengths)})
    return {
        "dtype": narrowest(tokenizer.vocab_size).str,
        "tokenizer": tokenizer.fingerprint(),
        "shards": len(bench.parts),
        "account": {**intake.summary(), "dropped": dict(dropped)},
    }


def _not_empty(documents: Iterator[Document], dropped: Counter[str]) -> Iterator[Document]:
    for document in documents:
        if document.text.strip():
            yield document
        else:
            dropped["empty text"] += 1


def _files(shard: TokenShard) -> dict[str, bytes]:
    names = [name.encode() for name in shard.ids]
    index = np.zeros(len(names), dtype=_INDEX)
    index["tokens"], index["bytes"] = shard.lengths, shard.sizes
    index["id_end"] = np.cumsum([len(name) for name in names])
    return {"bin": shard.tokens.tobytes(), "index": index.tobytes(), "ids": b"".join(names)}


def _open_shard(folder: Path, number: int, dtype: str) -> TokenShard:
    name = folder / f"shard-{number:05d}"
    index = np.fromfile(name.with_suffix(".index"), dtype=_INDEX)
    return TokenShard(
        tokens=_mapped(name.with_suffix(".bin"), dtype),
        lengths=index["tokens"].astype(np.int64),
        sizes=index["bytes"].astype(np.int64),
        ids=_Names(_mapped(name.with_suffix(".ids"), "u1"), index["id_end"].astype(np.int64)),
    )


def _mapped(path: Path, dtype: str) -> NDArray[Any]:
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray) if path.stat().st_size else np.zeros(0, dtype)


class _Names(Sequence[str]):
    """Strings in one memory-mapped run of bytes."""

    def __init__(self, text: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self._text = text
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: Any) -> Any:
        start = int(self._ends[number - 1]) if number else 0
        return self._text[start : int(self._ends[number])].tobytes().decode()


def is_whole(target: Path) -> bool:
    """Whether an artifact is there and undamaged."""
    try:
        verify(target)
    except ArtifactError:
        return False
    return True
