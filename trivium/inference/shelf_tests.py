"""The tests of a shelf, run: all entries side by side in the same batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trivium.inference.shelf_folder import Case

if TYPE_CHECKING:
    from trivium.inference.model import LanguageModel


@dataclass(frozen=True)
class Outcome:
    """A case of an entry, what came out, and whether that is as expected."""

    entry: str
    case: Case
    got: str
    passed: bool


def run_cases(model: LanguageModel, cases: Mapping[str, Sequence[Case]]) -> list[Outcome]:
    """Every case of every entry of the model's shelf, greedy, in the order given."""
    rows = [(name, case) for name, own in cases.items() for case in own]
    labelled = {name for name in cases if model.shelf.shape(name).head == "sequence"}
    got: dict[int, str] = {}
    for length in sorted({case.max_new_tokens for name, case in rows if name not in labelled}):
        numbers = [
            number for number, (name, case) in enumerate(rows) if name not in labelled and case.max_new_tokens == length
        ]
        answers = model.generate(
            [rows[number][1].input for number in numbers],
            adapter=[rows[number][0] for number in numbers],
            max_new_tokens=length,
            temperature=0,
        )
        got |= zip(numbers, answers, strict=True)
    numbers = [number for number, (name, _) in enumerate(rows) if name in labelled]
    if numbers:
        found = model.classify(
            [rows[number][1].input for number in numbers], adapter=[rows[number][0] for number in numbers]
        )
        got |= zip(numbers, (each.label or "" for each in found), strict=True)
    return [
        Outcome(name, case, got[number], fits(case, got[number], label=name in labelled))
        for number, (name, case) in enumerate(rows)
    ]


def fits(case: Case, got: str, *, label: bool = False) -> bool:
    """Whether an answer is what the case expects; a label always exactly."""
    text, expected = got.strip(), case.expected.strip()
    if label or case.match == "exact":
        return text == expected
    return expected in text if case.match == "contains" else text.startswith(expected)
