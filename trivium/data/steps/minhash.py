"""Near duplicates by MinHash and locality-sensitive hashing, with the settings of FineWeb."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trivium.data.dedup.buckets import band_keys, equal_rows, near_clusters
from trivium.data.dedup.keeping import Keeping, apply_decision, roster, settle, sketched
from trivium.data.dedup.shelves import Shelf, jaccard
from trivium.data.dedup.signatures import Signer, similarity
from trivium.data.dedup.words import Hashes, Ints, text_hash
from trivium.data.documents import Document
from trivium.data.step import CorpusStep, Result

_ROUNDING = 1e-9


class MinHash(CorpusStep):
    """See `trivium.data.dedup`.

    On the disk a document takes 4 bytes for each place of its signature and 8 for each band (615 with its name and the
    usual settings), with `verify: exact` 8 more for each of its words; in memory about 350 bytes, however long it is.
    """

    class Config(Keeping):
        """Settings of `minhash`; the usual ones are those of FineWeb (Penedo et al. 2024)."""

        ngram: int = Field(5, ge=1, le=100)
        """Words in a shingle."""
        bands: int = Field(14, ge=1, le=1000)
        """Keys of a document; two documents that share one are compared."""
        rows: int = Field(8, ge=1, le=100)
        """Places of the signature in one key."""
        threshold: float = Field(0.7, ge=0, le=1)
        """Least Jaccard similarity of near duplicates."""
        verify: Literal["estimate", "exact", "none"] = "estimate"
        """How candidates are compared: signatures, the shingles themselves, or not at all (as in FineWeb)."""

    def __init__(self, config: Any, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self._signer = Signer(width=config.ngram, places=config.bands * config.rows)

    def sketch(self, documents: Sequence[Document]) -> Mapping[str, bytes]:
        texts = [document.text for document in documents]
        signatures, shingles = self._signer.sketches(texts, sets=self._exactly)
        rows = self.config.rows
        bands = [band_keys(signatures[:, band * rows : (band + 1) * rows]) for band in range(self.config.bands)]
        found = {
            "bands": np.stack(bands).astype("<u8").tobytes(),
            "exact": b"".join(map(text_hash, texts)),
            "signatures": signatures.astype("<u4").tobytes(),
            **roster(documents, keep=self.config.keep, field=self.config.field),
        }
        if self._exactly:
            found["shingles"] = b"".join(each.astype("<u8").tobytes() for each in shingles)
            found["shingle_counts"] = np.array([len(each) for each in shingles], dtype="<i8").tobytes()
        return found

    def decide(self, sketches: Sequence[Mapping[str, Path]], folder: Path) -> Sequence[Any]:
        exact = sketched(sketches, "exact", "<u8", 2)
        signatures = Shelf(sketches, "signatures", "<u4", width=self.config.bands * self.config.rows)
        shingles = Shelf(sketches, "shingles", "<u8", counts="shingle_counts") if self._exactly else None

        def likeness(one: Ints, other: Ints) -> NDArray[np.float64]:
            found = similarity(signatures.rows(one), signatures.rows(other))
            if shingles is not None:  # what is far away in the estimate is so exactly
                for number in np.flatnonzero(found >= self.config.threshold - 0.25).tolist():
                    found[number] = jaccard(shingles[int(one[number])], shingles[int(other[number])])
            # 1 is said of equal texts alone
            equal = (exact[one] == exact[other]).all(axis=1)
            return np.where(equal, 1.0, np.minimum(found, 0.9999))

        least = min(self.config.threshold, 0.9999) - _ROUNDING

        def alike(one: Ints, other: Ints) -> NDArray[np.bool_]:
            if self.config.verify == "none":
                return np.ones(len(one), dtype=np.bool_)
            return np.asarray(likeness(one, other) >= least)

        bands = (_band(sketches, band, self.config.bands) for band in range(self.config.bands))
        roots = near_clusters(equal_rows(exact), bands, alike)
        return settle(roots, sketches, folder, likeness=likeness, action=self.config.action)

    def apply_all(self, documents: Sequence[Document], decision: Any) -> list[Result]:
        return apply_decision(documents, decision)

    @property
    def _exactly(self) -> bool:
        return bool(self.config.verify == "exact")


def _band(sketches: Sequence[Mapping[str, Path]], band: int, bands: int) -> Hashes:
    """[n] the keys of all documents in one band."""
    sizes = [sketch["bands"].stat().st_size // bands for sketch in sketches]
    found = [
        np.fromfile(sketch["bands"], dtype="<u8", count=size // 8, offset=band * size)
        for sketch, size in zip(sketches, sizes, strict=True)
    ]
    return np.concatenate([np.zeros(0, dtype=np.uint64), *found])
