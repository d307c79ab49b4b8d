"""Labels from a model that is only prompted: it writes the label, or the likelihoods of the labels are compared.

Likelihoods are sums of log-probabilities of the words that stand for a label. Calibrated, those after texts without
content are taken off first, so that what the prompt alone prefers does not count (Zhao et al. 2021, arXiv 2102.09690).
No weight of the model changes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from trivium import losses
from trivium.data.batch import make_batch
from trivium.errors import DataError
from trivium.evaluation.intervals import Floats
from trivium.inference.engine import evaluating
from trivium.inference.model import LanguageModel

_TOKENS_AT_ONCE = 1 << 13


@dataclass(frozen=True)
class Prompting:
    """How the task is put.

    template: holds `{text}`. answers: label -> its words. examples: (text, label) shown before the question.
    """

    template: str
    answers: Mapping[str, str]
    separator: str = "\n\n"
    examples: Sequence[tuple[str, str]] = ()

    def prompt(self, text: str) -> str:
        """The examples and the question."""
        shown = [self.template.replace("{text}", one) + self.answers[label] for one, label in self.examples]
        return self.separator.join([*shown, self.template.replace("{text}", text)])


def draw_examples(
    rows: Sequence[tuple[str, str]], labels: Sequence[str], count: int, seed: int
) -> list[tuple[str, str]]:
    """`count` rows, as many of each label as possible, in an order drawn by the seed."""
    chance = random.Random(f"examples:{seed}")
    pools = {label: [row for row in rows if row[1] == label] for label in labels}
    for pool in pools.values():
        chance.shuffle(pool)
    order = [label for label in labels if pools[label]]
    chosen: list[tuple[str, str]] = []
    while len(chosen) < count and any(pools.values()):
        chosen += [pools[label].pop() for label in order if pools[label]][: count - len(chosen)]
    chance.shuffle(chosen)
    return chosen


def that_fits(model: LanguageModel, prompting: Prompting, texts: Sequence[str]) -> Prompting:
    """The same with as many of the examples as leave room for the longest text and its answer."""
    longest = max(texts, key=lambda text: len(model.tokenizer.encode(text)))
    answer = max(prompting.answers.values(), key=lambda words: len(model.tokenizer.encode(words)))
    examples = list(prompting.examples)
    while (
        examples and len(model.tokenizer.encode_prompt(prompting.prompt(longest) + answer)) + 1 > model.context_length
    ):
        examples.pop()
        prompting = replace(prompting, examples=examples)
    return prompting


def likelihoods(
    model: LanguageModel, prompting: Prompting, texts: Sequence[str], *, empty: Sequence[str] | None = None
) -> Floats:
    """[texts, labels] log-probabilities of the labels; `empty`: texts without content to calibrate by."""
    scores = _scores(model, prompting, texts)
    if empty:
        without = _scores(model, prompting, empty)
        prior = np.exp(without - np.logaddexp.reduce(without, axis=1, keepdims=True)).mean(0)
        scores = scores - np.log(np.maximum(prior, 1e-30))
    normal: Floats = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    return normal


def _scores(model: LanguageModel, prompting: Prompting, texts: Sequence[str]) -> Floats:
    """[texts, labels] sums over the tokens of each label's words."""
    labels = list(prompting.answers)
    pairs: list[tuple[list[int], list[bool]]] = []
    for text in texts:
        start = prompting.prompt(text)
        ids = model.tokenizer.encode_prompt(start)
        for label in labels:
            whole = model.tokenizer.encode_prompt(start + prompting.answers[label])
            shared = next((n for n, (a, b) in enumerate(zip(ids, whole, strict=False)) if a != b), len(ids))
            shared = min(shared, len(whole) - 1)
            pairs.append((whole, [False] * shared + [True] * (len(whole) - shared)))
    longest = max(len(ids) for ids, _ in pairs)
    if longest > model.context_length:
        raise DataError(
            "a prompt is longer than the model's context",
            where="prompt",
            value=f"{longest} tokens, {model.context_length} fit",
            fix="fewer examples (prompt.shots), or shorter texts",
        )
    totals = np.zeros(len(pairs))
    group: list[int] = []
    for number in sorted(range(len(pairs)), key=lambda at: len(pairs[at][0])):
        group.append(number)
        if sum(len(pairs[at][0]) for at in group) > _TOKENS_AT_ONCE:
            totals[group] = _sums(model, [pairs[at] for at in group])
            group = []
    if group:
        totals[group] = _sums(model, [pairs[at] for at in group])
    return totals.reshape(len(texts), len(labels))


@torch.no_grad()
def _sums(model: LanguageModel, pairs: Sequence[tuple[list[int], list[bool]]]) -> Floats:
    batch = make_batch([ids for ids, _ in pairs], [flags for _, flags in pairs]).to(model.device)
    with evaluating(model.module):
        logprobs = model.module(
            batch.input_ids,
            batch.layout,
            then=lambda hidden, head: losses.token_logprobs(hidden, head, batch.targets),
        )
    found: Floats = batch.layout.sum(logprobs).double().cpu().numpy()
    return found


def written(model: LanguageModel, prompting: Prompting, texts: Sequence[str]) -> list[str | None]:
    """The label that the model writes for each text; None where it writes something else."""
    room = 1 + max(len(model.tokenizer.encode_prompt(answer)) for answer in prompting.answers.values())
    answers = model.generate(
        [prompting.prompt(text) for text in texts], temperature=0, max_new_tokens=room, max_rows=32
    )
    names = sorted(prompting.answers, key=lambda label: -len(prompting.answers[label]))
    found: list[str | None] = []
    for answer in answers:
        said = answer.strip().casefold()
        found.append(
            next((name for name in names if said.startswith(prompting.answers[name].strip().casefold())), None)
        )
    return found
