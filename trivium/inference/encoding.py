"""What an encoder says about texts: the tokens that fill gaps, and one vector for a whole text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trivium.data.batch import Layout, Source
from trivium.data.sides import source_ids, text_frame
from trivium.errors import ModelError, TriviumError
from trivium.inference.engine import context_length, evaluating
from trivium.inference.request import check_number
from trivium.models.heads import pool
from trivium.models.sentences import Sentences
from trivium.tokenizers.special import mask_id

if TYPE_CHECKING:
    from trivium.inference.model import LanguageModel

POOLINGS = ("first", "last", "mean", "max")
_TOKENS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Filling:
    """A token for a gap. text: as it stands in a text. probability: that the model gives it. id: its number."""

    text: str
    probability: float
    id: int


def fill(model: LanguageModel, text: str, *, top: int = 5) -> list[list[Filling]]:
    """For each mask token in `text` the `top` likeliest tokens, likeliest first."""
    config = model.module.config
    if config.head != "masked":
        raise ModelError(
            "this model cannot fill gaps: it was not trained on masked text",
            value=f"{config.kind} with a head of the kind {config.head}",
            fix="use a model pretrained with the method mlm",
        )
    check_number("top", top, at_least=1, at_most=config.vocab_size, whole=True, fix="use a whole number from 1 up")
    mask = mask_id(model.tokenizer)
    ids = source_ids(model.tokenizer, text, parse_special=True)
    gaps = [place for place, token in enumerate(ids) if token == mask]
    if not gaps:
        raise TriviumError(
            "the text has no gap", where="text", value=text, fix=f"write {model.tokenizer.token(mask)} where one is"
        )

    def then(hidden: Tensor, head: nn.Module) -> Tensor:
        logits: Tensor = head(hidden[torch.tensor(gaps, device=hidden.device)])
        return logits

    with torch.no_grad(), evaluating(model.module):
        scores = model.module(torch.tensor(ids, device=model.device), Layout((len(ids),)), then=then)
    best = scores.float().softmax(-1)[:, : model.tokenizer.vocab_size].topk(min(top, model.tokenizer.vocab_size))
    return [
        [Filling(model.tokenizer.decode([token]), chance, token) for chance, token in zip(chances, tokens, strict=True)]
        for chances, tokens in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def embed(
    model: LanguageModel,
    texts: Sequence[str],
    *,
    prompt: str | None = None,
    dimensions: int | None = None,
    pooling: str | None = None,
    normalize: bool | None = None,
    truncate: bool = False,
    adapters: Sequence[str] = (),
) -> Tensor:
    """[N, D] float32: one vector for each text, from the last hidden states (of an encoder-decoder the encoder's).

    Arguments as in `LanguageModel.embed`; what is None is as the model's folder says.
    """
    sentences = model.sentences or Sentences()
    if pooling is not None:
        if pooling not in POOLINGS:
            fix = f"use one of {', '.join(POOLINGS)}"
            raise TriviumError("unknown pooling", where="pooling", value=pooling, fix=fix)
        sentences = replace(sentences, pooling=pooling)
    before = _prompt(sentences, prompt)
    names = adapters or [""] * len(texts)
    rows = [
        _row(model, sentences, before + text, number, truncate, name)
        for number, (text, name) in enumerate(zip(texts, names, strict=True))
    ]
    size = sentences.size(model.module.config.hidden_size)
    if dimensions is not None:
        check_number("dimensions", dimensions, at_least=1, at_most=size, whole=True, fix=f"the vectors have {size}")
    vectors = torch.zeros(len(rows), dimensions or size)
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    while order:
        group = [order.pop()]
        total = len(rows[group[0]])
        while order and total + len(rows[order[-1]]) <= _TOKENS_AT_ONCE:
            group.append(order.pop())
            total += len(rows[group[-1]])
        own = model.shelf.chosen([names[number] for number in group])
        pooled = _pooled(model, [rows[number] for number in group], sentences.pooling, own)
        with torch.no_grad():
            made = sentences.vectors(pooled, dimensions=dimensions, normalize=False)
        vectors[group] = made.float().cpu()
    wanted = sentences.normalize if normalize is None else normalize
    return nn.functional.normalize(vectors, dim=-1) if wanted else vectors


def _prompt(sentences: Sentences, name: str | None) -> str:
    """The text put in front of each text."""
    name = sentences.prompt if name is None else name
    if name is None:
        return ""
    if name not in sentences.prompts:
        known = ", ".join(sentences.prompts) or "none"
        raise TriviumError(
            "the model has no such prompt", where="prompt", value=name, fix=f"it has {known}; others go into the text"
        )
    return sentences.prompts[name]


def _row(model: LanguageModel, sentences: Sentences, text: str, number: int, truncate: bool, adapter: str) -> list[int]:
    """The tokens of a text in their frame."""
    ids = source_ids(model.tokenizer, text.lower() if sentences.lowercase else text)
    context = context_length(model.module, adapter=adapter)
    limit = min(context, sentences.max_length or context)
    if len(ids) > limit:
        if not truncate:
            raise TriviumError(
                "the text is too long for the model",
                where=f"text {number}",
                value=f"{len(ids)} tokens, {limit} fit",
                fix="shorten it, or cut it with truncate=True",
            )
        frame = text_frame(model.tokenizer)
        ids = [*ids[: limit - len(frame.after)], *frame.after]
    return ids


def _pooled(
    model: LanguageModel, rows: Sequence[Sequence[int]], pooling: str, adapters: Sequence[str] | None
) -> Tensor:
    ids = torch.tensor([token for row in rows for token in row], device=model.device)
    layout = Layout(tuple(map(len, rows)))
    with torch.no_grad(), evaluating(model.module):
        if model.module.config.kind == "encoder_decoder":
            return pool(model.module.encode(Source(ids, layout), adapters), layout, pooling)
        result: Tensor = model.module(
            ids, layout, then=lambda hidden, _: pool(hidden, layout, pooling), adapters=adapters
        )
        return result
