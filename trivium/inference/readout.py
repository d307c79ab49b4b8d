"""What a soft prompt would be in words: its nearest tokens, and honestly what those are worth.

A soft prompt is no text. The nearest token of each of its vectors can be read, but the vectors lie between words, and
the model does not do under the words what it does under the vectors. So the loss on data of the user's is given three
times: under the soft prompt, under its nearest tokens in the same places, and under nothing.

Shapes: N virtual tokens, D width, V tokens of the tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from trivium.errors import ModelError, TriviumError

if TYPE_CHECKING:
    from trivium.inference.model import LanguageModel

Measure = Literal["cosine", "dot"]


@dataclass(frozen=True)
class Near:
    """A token near a vector. value: cosine or product of the two."""

    text: str
    id: int
    value: float


@dataclass(frozen=True)
class Worth:
    """Mean loss in nats for each of `tokens` tokens of the data.

    kept: share of the gain over nothing that the words keep; negative if they are worse than nothing, None if the soft
    prompt itself gains nothing.
    """

    soft: float
    words: float
    nothing: float
    tokens: int

    @property
    def kept(self) -> float | None:
        gain = self.nothing - self.soft
        return (self.nothing - self.words) / gain if gain > 0 else None


@dataclass(frozen=True)
class Reading:
    """nearest: for each virtual token its nearest tokens, nearest first. text: the first of each, as a text."""

    nearest: list[list[Near]]
    text: str
    worth: Worth | None


@dataclass(frozen=True)
class Example:
    """A text to score, behind what is given (of an encoder-decoder its source)."""

    given: str
    text: str


def read_prompt(
    model: LanguageModel, name: str, *, examples: Sequence[Example] = (), top: int = 5, measure: Measure = "cosine"
) -> Reading:
    """The soft prompt of the entry `name` of the model's shelf in words; ModelError if it holds something else."""
    vectors = _vectors(model, name)
    nearest = _nearest(model, vectors, top, measure)
    ids = [each[0].id for each in nearest]
    worth = _worth(model, name, ids, examples) if examples else None
    return Reading(nearest, model.tokenizer.decode(ids, skip_special=False), worth)


def _vectors(model: LanguageModel, name: str) -> Tensor:
    """[N, D]."""
    entry = model.module.mixer.entry(name)
    with torch.no_grad():
        found = [transform.prompt(model.module) for transform in entry.transforms]
    if entry.changes or not found or any(vectors is None for vectors in found):
        raise ModelError(
            "only a soft prompt by itself can be read in words",
            where=name,
            fix="train one with prompt_tuning or p_tuning; a prefix or LoRA has no place among the tokens",
        )
    return torch.cat([vectors for vectors in found if vectors is not None])


def _nearest(model: LanguageModel, vectors: Tensor, top: int, measure: Measure) -> list[list[Near]]:
    module, tokenizer = model.module, model.tokenizer
    table = module.embed.weight.detach()[: tokenizer.vocab_size].float() * module.config.embedding_scale
    vectors = vectors.float()
    if measure == "cosine":
        table, vectors = (torch.nn.functional.normalize(each, dim=-1) for each in (table, vectors))
    best = (vectors @ table.t()).topk(min(top, len(table)))
    return [
        [
            Near(tokenizer.decode([token], skip_special=False), token, value)
            for token, value in zip(tokens, values, strict=True)
        ]
        for tokens, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _worth(model: LanguageModel, name: str, words: Sequence[int], examples: Sequence[Example]) -> Worth:
    """The three losses over the same tokens."""
    losses = {"soft": 0.0, "words": 0.0, "nothing": 0.0}
    count = 0
    for example in examples:
        for way in losses:
            logprobs = model.logprobs_after(
                example.given,
                example.text,
                before=words if way == "words" else (),
                adapter=name if way == "soft" else "",
            )
            losses[way] -= sum(logprobs)
        count += len(logprobs)
    soft, words_, nothing = (losses[way] / max(count, 1) for way in ("soft", "words", "nothing"))
    return Worth(soft, words_, nothing, count)


def read_examples(path: Path) -> list[Example]:
    """The rows of a file: a text on each line, or JSON with text, prompt and completion, or source and target."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeError) as error:
        raise TriviumError("the file cannot be read", where=path, value=str(error)) from None
    found = []
    for number, line in enumerate(lines, 1):
        row = _row(line) if path.suffix == ".jsonl" else {"text": line}
        for given, text in (("prompt", "completion"), ("source", "target"), ("", "text")):
            if isinstance(row.get(text), str) and isinstance(row.get(given, ""), str):
                found.append(Example(str(row.get(given, "")), str(row[text])))
                break
        else:
            raise TriviumError(
                "the row has no text",
                where=f"{path}:{number}",
                value=line,
                fix='write {"prompt": ..., "completion": ...}',
            )
    if not found:
        raise TriviumError("the file holds no row", where=path)
    return found


def _row(line: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
