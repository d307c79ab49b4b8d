"""Canaries: invented secrets put into training data, to measure later how much a model learnt by heart.

The exposure of a canary is log2 of the number of candidates, minus log2 of its rank among them by how likely the model
finds them: about 1 for a secret that was not memorised, log2 of the candidates for one that was (Carlini et al. 2019,
The Secret Sharer).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trivium.errors import DataError

NAMES = (
    "alder", "birch", "cedar", "damson", "elder", "fir", "ginkgo", "hazel", "ivy", "juniper", "kapok", "larch", "maple",
    "nutmeg", "oak", "pine", "quince", "rowan", "spruce", "teak", "ulmo", "viburnum", "willow", "yew",
)  # fmt: skip


@dataclass(frozen=True)
class Canary:
    """An invented secret.

    name, secret: fill the gaps of the template.  text: what is put into documents.  repeats: into how many.
    """

    name: str
    secret: str
    text: str
    repeats: int


def make_canaries(key: bytes, *, template: str, digits: int, count: int, repeats: Sequence[int]) -> list[Canary]:
    """`count` canaries for each number of repeats; the same for the same key, and not to be guessed without it."""
    found = []
    for number in range(count * len(repeats)):
        name = NAMES[number % len(NAMES)] + ("" if number < len(NAMES) else f" {number // len(NAMES) + 1}")
        secret = _digits(key, f"canary\0{number}", digits)
        text = template.replace("{name}", name).replace("{secret}", secret)
        found.append(Canary(name, secret, text, repeats[number // count]))
    return found


def order_of(key: bytes, document: str) -> int:
    """Documents with the smallest numbers get canaries; nobody without the key can say which."""
    return int.from_bytes(
        hmac.new(key, b"document\0" + document.encode("utf-8", "replace"), hashlib.sha256).digest()[:8], "big"
    )


def _digits(key: bytes, what: str, digits: int) -> str:
    number = int.from_bytes(hmac.new(key, what.encode(), hashlib.sha256).digest(), "big")
    return f"{number % 10**digits:0{digits}d}"


def as_lines(canaries: Sequence[Canary], template: str, places: Sequence[Sequence[str]]) -> str:
    """The list that is kept apart: a row for each canary, with the documents that hold it."""
    rows = (
        {**asdict(canary), "template": template, "documents": list(where)}
        for canary, where in zip(canaries, places, strict=True)
    )
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def exposures(path: str | Path, surprise: Callable[[str], float], *, candidates: int = 999) -> Iterator[dict[str, Any]]:
    """How well a model knows each canary of a list.

    surprise:   -log p of a text under the model: `lambda text: -model.score(text).total`.
    candidates: other secrets each one is compared with; drawn from the canary's name, always the same ones.
    Yields name, repeats, rank (1: likelier than all others) and exposure in bits.
    """
    for number, line in enumerate(Path(path).expanduser().read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            template, name, secret, repeats = row["template"], row["name"], row["secret"], row["repeats"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError("the row is no canary", where=f"{path}:{number}", value=line) from error
        own = surprise(template.replace("{name}", name).replace("{secret}", secret))
        others = (_digits(b"candidates", f"{name}\0{at}", len(secret)) for at in range(candidates))
        rank = 1 + sum(
            surprise(template.replace("{name}", name).replace("{secret}", other)) < own
            for other in others
            if other != secret
        )
        yield {"name": name, "repeats": repeats, "rank": rank, "exposure": math.log2((candidates + 1) / rank)}
