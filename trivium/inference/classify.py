"""What a model with a head says about texts: labels, numbers, tags of words, or the place of an answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from trivium.data.batch import IGNORE, Batch, Layout
from trivium.data.framing import Framed, Framing, framing_of, shares
from trivium.data.spans import Window, cut_context
from trivium.data.tagging import cut_words
from trivium.errors import ModelError, TriviumError
from trivium.inference.engine import context_length, evaluating
from trivium.losses.labels import full_precision, with_segments
from trivium.models.heads import pooled_tokens

if TYPE_CHECKING:
    from trivium.inference.model import LanguageModel
    from trivium.models.transformer import Transformer

Floats = NDArray[np.float64]
Texts = str | tuple[str, str]
"""A text, or two that belong together."""

TOKENS_AT_ONCE = 1 << 14
LONGEST_ANSWER = 30
"""Tokens of the longest answer."""


@dataclass(frozen=True)
class Classified:
    """What a model says about one text.

    labels: the one label, or all that apply; none for numbers.
    scores: the probability of each label, or the number itself, by name.
    """

    labels: tuple[str, ...]
    scores: Mapping[str, float]

    @property
    def label(self) -> str | None:
        """The first label; None if none applies."""
        return self.labels[0] if self.labels else None


@dataclass(frozen=True)
class Answer:
    """An answer with its place in the context.

    text:  empty if the context does not say.  start, end: its characters, both 0 without an answer.
    score: log-odds of this answer against none, as sums of the two scores.
    """

    text: str
    start: int
    end: int
    score: float


def need_head(
    model: LanguageModel, kind: Literal["sequence", "token", "span"], verb: str, *, adapter: str = ""
) -> None:
    """ModelError if the model, under an entry of its shelf, ends in something else."""
    head = model.shelf.shape(adapter).head
    if head != kind:
        methods = {"sequence": "classification", "token": "token_classification", "span": "question_answering"}
        raise ModelError(
            f"this model cannot {verb}: it has no head for that",
            value=f"head: {head}",
            fix=f"train one first: trivium train recipes/{methods[kind]}.yaml",
        )


def head_scores(
    module: Transformer, sequences: Sequence[tuple[Sequence[int], int]], adapters: Sequence[str] = ()
) -> list[Floats]:
    """The scores of each sequence, [labels], or of its tokens, [tokens, labels].

    sequences: ids with special tokens, and where the second segment begins.
    adapters: for each the entry of the shelf whose head says it, empty for the model's own; one pass for all of them.
    """
    if any(adapters):
        return _mixed_scores(module, sequences, adapters)
    found: list[Floats] = [np.zeros(0)] * len(sequences)
    whole = module.config.head == "sequence"
    for numbers in _groups([len(ids) for ids, _ in sequences]):
        batch = _batch([sequences[number] for number in numbers])
        batch = with_segments(batch.to(next(module.parameters()).device), module.config.token_types)
        more = {"token_types": batch.fields["token_types"]} if "token_types" in batch.fields else {}
        read = pooled_tokens(batch.layout, module.config.pooling, batch.input_ids.device) if whole else None
        with torch.no_grad(), evaluating(module):
            scores = module(
                batch.input_ids,
                batch.layout,
                then=lambda hidden, head, layout=batch.layout: head(hidden, layout),
                wanted=read,
                **more,
            )
        values = full_precision(scores).double().cpu().numpy()
        for row, (number, (start, end)) in enumerate(zip(numbers, batch.layout.spans(), strict=True)):
            found[number] = values[row] if whole else values[start:end]
    return found


def _mixed_scores(
    module: Transformer, sequences: Sequence[tuple[Sequence[int], int]], adapters: Sequence[str]
) -> list[Floats]:
    """The body runs once for all; each head then looks at its own sequences."""
    found: list[Floats] = [np.zeros(0)] * len(sequences)
    for numbers in _groups([len(ids) for ids, _ in sequences]):
        batch = _batch([sequences[number] for number in numbers])
        batch = with_segments(batch.to(next(module.parameters()).device), module.config.token_types)
        more = {"token_types": batch.fields["token_types"]} if "token_types" in batch.fields else {}
        names = [adapters[number] for number in numbers]
        with torch.no_grad(), evaluating(module):
            hidden = module(batch.input_ids, batch.layout, then=lambda hidden, _: hidden, adapters=names, **more)
            for name in dict.fromkeys(names):
                rows = [row for row, own in enumerate(names) if own == name]
                spans = list(batch.layout.spans())
                part = torch.cat([hidden[slice(*spans[row])] for row in rows])
                head = (module.mixer.entry(name).head if name else None) or module.head
                scores = head(part, Layout(tuple(batch.layout.lengths[row] for row in rows)))
                for row, values in zip(rows, full_precision(scores).double().cpu().numpy(), strict=True):
                    found[numbers[row]] = values
    return found


def _batch(sequences: Sequence[tuple[Sequence[int], int]]) -> Batch:
    ids = torch.tensor([token for tokens, _ in sequences for token in tokens], dtype=torch.int64)
    second = torch.tensor([place for _, place in sequences], dtype=torch.int64)
    layout = Layout(tuple(len(tokens) for tokens, _ in sequences))
    return Batch(ids, torch.full_like(ids, IGNORE), layout, {"second": second})


def _groups(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of the sequences that are computed together, equally long ones side by side."""
    group: list[int] = []
    total = 0
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and total + lengths[number] > TOKENS_AT_ONCE:
            yield group
            group, total = [], 0
        group.append(number)
        total += lengths[number]
    if group:
        yield group


# Texts


def classify(
    model: LanguageModel,
    texts: Sequence[Texts],
    *,
    truncate: bool = False,
    length: int | None = None,
    adapters: Sequence[str] = (),
) -> list[Classified]:
    """The labels of each text, with the model folder's temperature and thresholds.

    truncate: cut texts that are too long, which are an error otherwise.  length: tokens that fit; default: the model's.
    """
    names = adapters or [""] * len(texts)
    for name in dict.fromkeys(names or [""]):
        need_head(model, "sequence", "classify", adapter=name)
    framing = framing_of(model.tokenizer)
    rooms = {name: length or context_length(model.module, adapter=name) for name in set(names)}
    sequences = [
        _framed(model, framing, text, rooms[name], truncate, number)
        for number, (text, name) in enumerate(zip(texts, names, strict=True))
    ]
    scores = head_scores(model.module, sequences, names)
    return [decided(model, values, name) for values, name in zip(scores, names, strict=True)]


def decided(model: LanguageModel, scores: Floats, adapter: str = "") -> Classified:
    """Labels and probabilities from the scores [labels] of one text."""
    config, decisions = model.shelf.shape(adapter), model.shelf.decisions.get(adapter, model.decisions)
    if config.problem == "regression":
        return Classified((), dict(zip(config.labels, scores.tolist(), strict=True)))
    values = probabilities(scores[None] / decisions.temperature, config.problem)[0]
    by_name = dict(zip(config.labels, values.tolist(), strict=True))
    if config.problem == "single_label":
        return Classified((config.labels[int(values.argmax())],), by_name)
    chosen = [name for name, value in by_name.items() if value >= decisions.thresholds.get(name, 0.5)]
    return Classified(tuple(sorted(chosen, key=lambda name: -by_name[name])), by_name)


def probabilities(scores: Floats, problem: str) -> Floats:
    """[N, K] scores as probabilities: of one label among all, or of each label by itself."""
    if problem == "multi_label":
        positive = 1 / (1 + np.exp(-np.abs(scores)))
        return np.where(scores >= 0, positive, 1 - positive)
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: Floats = shifted / shifted.sum(axis=1, keepdims=True)
    return shares


def _framed(
    model: LanguageModel, framing: Framing, text: Texts, length: int, truncate: bool, number: int
) -> tuple[list[int], int]:
    parts = (text,) if isinstance(text, str) else text
    if not parts or not all(isinstance(part, str) and part.strip() for part in parts):
        raise TriviumError("there is no text to classify", where=f"text {number}", fix="give at least one character")
    ids = [model.tokenizer.encode(part) for part in parts]
    room = framing.room(length, pair=len(ids) > 1)
    if sum(map(len, ids)) > room:
        if not truncate:
            raise TriviumError(
                "the text is too long for the model",
                where=f"text {number}",
                value=f"{sum(map(len, ids))} tokens; {room} fit",
                fix="shorten it, or cut it with truncate=True",
            )
        ids = [part[:keep] for part, keep in zip(ids, shares([len(part) for part in ids], room), strict=True)]
    framed: Framed = framing.frame(*ids)
    return framed.ids, framed.second


# Words


def tag(model: LanguageModel, sentences: Sequence[Sequence[str]], *, length: int | None = None) -> list[list[str]]:
    """The tag of each word; words without a token have the tag O, or the first one."""
    need_head(model, "token", "tag words")
    framing, names = framing_of(model.tokenizer), model.module.config.labels
    cuts = [
        (number, cut)
        for number, words in enumerate(sentences)
        for cut in cut_words(words, model.tokenizer, framing, length or model.context_length)
    ]
    found = [["O" if "O" in names else names[0]] * len(words) for words in sentences]
    scores = head_scores(model.module, [(cut.ids, len(cut.ids)) for _, cut in cuts])
    for (number, cut), values in zip(cuts, scores, strict=True):
        for word, place in cut.first_tokens().items():
            found[number][word] = names[int(values[place].argmax())]
    return found


# Questions


def answer(
    model: LanguageModel,
    pairs: Sequence[tuple[str, str]],
    *,
    length: int | None = None,
    stride: int = 128,
    allow_none: bool = True,
) -> list[Answer]:
    """The best answer to each (question, context); long contexts are read in windows that share `stride` tokens.

    allow_none: answer nothing where the model finds that likelier than every answer.
    """
    need_head(model, "span", "answer from a context")
    framing = framing_of(model.tokenizer)
    windows = [
        (number, window)
        for number, (question, context) in enumerate(pairs)
        for window in cut_context(
            question, context, model.tokenizer, framing, length=length or model.context_length, stride=stride
        )
    ]
    scores = head_scores(model.module, [(window.ids, window.second) for _, window in windows])
    best: dict[int, Answer] = {}
    none: dict[int, float] = {}
    for (number, window), values in zip(windows, scores, strict=True):
        empty = framing.empty_answer(len(window.ids))
        # The context says nothing only if no window does, so the least certain of them decides.
        none[number] = min(none.get(number, np.inf), float(values[empty].sum()))
        found = _best_span(window, values, pairs[number][1])
        if found is not None and (number not in best or found.score > best[number].score):
            best[number] = found
    return [_against_none(best.get(number), none[number], allow_none) for number in range(len(pairs))]


def _best_span(window: Window, scores: Floats, context: str) -> Answer | None:
    """The likeliest span of one window; its score is the sum of both ends."""
    number = len(window.offsets)
    if not number:
        return None
    inside = scores[window.context : window.context + number]
    sums = inside[:, None, 0] + inside[None, :, 1]
    first, last = np.indices(sums.shape)
    empty = np.array([start == end for start, end in window.offsets])
    sums = np.where((last >= first) & (last < first + LONGEST_ANSWER) & ~empty[:, None] & ~empty[None], sums, -np.inf)
    begin, end = divmod(int(sums.argmax()), number)
    if not np.isfinite(sums[begin, end]):
        return None
    start, stop = window.offsets[begin][0], window.offsets[end][1]
    return Answer(context[start:stop], start, stop, float(sums[begin, end]))


def _against_none(found: Answer | None, none: float, allow_none: bool) -> Answer:
    if found is None or (allow_none and found.score <= none):
        return Answer("", 0, 0, 0.0 if found is None else found.score - none)
    return Answer(found.text, found.start, found.end, found.score - none)


def as_plain(result: Classified | Answer | Sequence[str]) -> Any:
    """A result as JSON values."""
    if isinstance(result, Classified):
        return {"labels": list(result.labels), "scores": dict(result.scores)}
    if isinstance(result, Answer):
        return {"text": result.text, "start": result.start, "end": result.end, "score": result.score}
    return list(result)
