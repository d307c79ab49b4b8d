"""The three parts of the data of a comparison."""

from __future__ import annotations

import hashlib

from trivium.comparison import Comparison
from trivium.errors import DataError

SHARES = {"test": 0.2, "validation": 0.1}
"""Share of the training rows that stands in for a part that is not given."""


def read_parts(settings: Comparison) -> tuple[dict[str, list[tuple[str, str]]], list[str]]:
    """(rows of each part, labels); a part that is not given is a share of the training rows.

    Which rows go there depends on their text alone, so the same text is never in two parts.
    """
    from trivium.data.opening import open_labelled
    from trivium.recipe import DataSection
    from trivium.tokenizers.tokenizer import Tokenizer

    tokenizer, data = Tokenizer.load(settings.base[0]), settings.data
    parts: dict[str, list[tuple[str, str]]] = {}
    labels = None
    for name in ("train", "validation", "test"):
        sources = getattr(data, name)
        if not sources:
            continue
        section = DataSection.model_validate(
            {"train": [source.model_dump() for source in sources], "labels": data.labels.model_dump(),
             "sequence_length": data.sequence_length, "truncation": "right"}
        )  # fmt: skip
        found = open_labelled(
            section.train, kind="labels", tokenizer=tokenizer, settings=section, like=labels, keep_rows=True
        )
        labels = labels or found.label_set
        if labels.problem != "single_label" or any("text_pair" in row for row in found.rows or ()):
            raise DataError(
                "a comparison needs one text and one label in each row",
                where=", ".join(source.path for source in sources),
                value=labels.problem,
                fix="name the columns: data.labels.text=..., data.labels.label=...",
            )
        numbers = found.fields["label"].astype(int)
        parts[name] = [(row["text"], labels.names[at]) for row, at in zip(found.rows or (), numbers, strict=True)]
    assert labels is not None
    for name, share in SHARES.items():
        if name not in parts:
            drawn = {text: _place(f"{name}:{' '.join(text.casefold().split())}") < share for text, _ in parts["train"]}
            parts[name] = [row for row in parts["train"] if drawn[row[0]]]
            parts["train"] = [row for row in parts["train"] if not drawn[row[0]]]
    seen = {text for text, _ in parts["test"]}
    parts["train"] = [row for row in parts["train"] if row[0] not in seen]
    if any(not rows for rows in parts.values()):
        raise DataError("a part of the data is empty", value={name: len(rows) for name, rows in parts.items()})
    return parts, list(labels.names)


def _place(text: str) -> float:
    """A number from 0 to 1 that depends on the text only."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
