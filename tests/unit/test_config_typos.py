"""Two hundred mistyped keys: all refused, and nearly all with the right key named."""

from __future__ import annotations

import copy
import random
import string
from typing import Any

import pytest

from trivium.config import resolve
from trivium.errors import ConfigError
from trivium.problems import fields_below
from trivium.registry import component, names
from trivium.schema import every_setting

BASE: dict[str, Any] = {
    "name": "typo",
    "method": {"name": "clm"},
    "model": {"preset": "llama-1m", "config": {"rope": {}}},
    "tokenizer": "runs/tokenizer",
    "data": {"train": [{"path": "pydocs"}]},
    "train": {"steps": 1, "optimizer": {"name": "adamw"}},
    "engine": {},
}
# Items of lists beside the one in BASE, and models of another shape, are left to tests of their own.
LEFT_OUT = ("data.validation.", "model.config.rope.scaling", "model.config.local_rope.scaling")


def mutations(word: str, chance: random.Random) -> str:
    """The word with one letter deleted, inserted or replaced, or two neighbours swapped."""
    at = chance.randrange(len(word))
    letter = chance.choice(string.ascii_lowercase)
    kind = chance.choice(["delete", "insert", "replace", "swap"])
    if kind == "delete":
        return word[:at] + word[at + 1 :]
    if kind == "insert":
        return word[:at] + letter + word[at:]
    if kind == "replace":
        return word[:at] + letter + word[at + 1 :]
    at = min(at, len(word) - 2) if len(word) > 1 else 0
    return word[:at] + word[at : at + 2][::-1] + word[at + 2 :]


def place(key: str, typo: str) -> dict[str, Any]:
    """The base recipe in which the key is written wrongly (and not rightly as well)."""
    recipe = copy.deepcopy(BASE)
    if key.startswith("method."):
        owner = next(
            n for n in names("methods") if key in dict(fields_below(component("methods", n).Config, "method."))
        )
        recipe["method"] = {"name": owner}
    if key.startswith("transforms.0."):
        owner = next(
            n
            for n in names("transforms")
            if key in dict(fields_below(component("transforms", n).Config, "transforms.0."))
        )
        recipe["transforms"] = [{"name": owner}]
    if key.startswith("train.optimizer."):
        owner = next(
            n for n in names("optim") if key in dict(fields_below(component("optim", n).Config, "train.optimizer."))
        )
        recipe.setdefault("train", {})["optimizer"] = {"name": owner}
    *path, last = key.split(".")
    node: Any = recipe
    for part, below in zip(path, key.split(".")[1:], strict=True):
        node = node[int(part)] if part.isdecimal() else node.setdefault(part, [{}] if below.isdecimal() else {})
    node[typo] = node.pop(last, 1)
    return recipe


def keys() -> list[str]:
    return sorted({key for key, _, _ in every_setting() if not key.startswith(LEFT_OUT)})


def typos(count: int) -> list[tuple[str, str]]:
    chance = random.Random(20240)
    known, found = keys(), []
    every = set(known)
    while len(found) < count:
        key = chance.choice(known)
        above, dot, last = key.rpartition(".")
        typo = mutations(last, chance)
        # Another word, not another key by accident: `name` of a component is part of it too.
        if typo and typo not in {last, "name"} and f"{above}{dot}{typo}" not in every and (key, typo) not in found:
            found.append((key, typo))
    return found


def hint(key: str, typo: str) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(place(key, typo))
    assert len(str(caught.value).splitlines()) <= 5
    assert caught.value.problem.startswith("unknown key"), str(caught.value)
    return caught.value.fix or ""


def test_two_hundred_typos() -> None:
    wrong = []
    for key, typo in typos(200):
        fix = hint(key, typo)
        if key not in fix.replace("?", " ").replace(":", " ").split():
            wrong.append(f"{typo} for {key}: {fix}")
    assert len(wrong) <= 10, "\n".join(wrong)


@pytest.mark.slow
def test_one_typo_of_every_key() -> None:
    chance = random.Random(7)
    for key in keys():
        last = key.rpartition(".")[2]
        hint(key, last + chance.choice("xyz"))
