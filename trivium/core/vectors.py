"""What the methods share that train one vector for a text: where it comes from, and the folder that is left of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trivium.core.method import Method
from trivium.data.batch import IGNORE, Batch, Layout
from trivium.errors import ConfigError
from trivium.lazy import torch
from trivium.models.sentences import Sentences, card, read_sentences, write_sentences
from trivium.models.transform import Transform, adapters_of, merge_all

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from trivium.core.method import Context
    from trivium.models.config import ModelConfig
    from trivium.recipe import Recipe
    from trivium.tokenizers.tokenizer import Tokenizer

LONGEST = 8192
"""Longest text, in tokens, that a folder says it takes, whatever the positions of the model allow."""


class VectorMethod(Method):
    """A method whose policy ends in a head for vectors; its config has `pooling` and `dropout`."""

    start: Sentences | None = None
    """What the folder that training starts from says about vectors."""

    def check(self, recipe: Recipe, tokenizer: Tokenizer, model: ModelConfig) -> None:
        """Refuses models without one run of hidden states, prompts, and a pooling that has seen nothing."""
        super().check(recipe, tokenizer, model)
        if recipe.train.sample_prompts:
            raise ConfigError(
                "a model that gives vectors continues no prompts", where="train.sample_prompts", fix="delete this line"
            )
        if model.kind == "encoder_decoder":
            raise ConfigError(
                "vectors of texts come from encoders and decoders, not from encoder-decoders",
                where="model",
                value=model.family,
                fix="choose an encoder (bert, roberta) or a decoder (llama, gpt2)",
            )
        self.start = read_sentences(recipe.model.path) if recipe.model.path else None
        self.pooling = self.config.pooling
        if self.pooling == "auto":
            usual = "last" if model.kind == "decoder" else "mean"
            self.pooling = usual if self.start is None else self.start.pooling
        if model.kind == "decoder" and self.pooling == "first":
            raise ConfigError(
                "the first token of a decoder has seen nothing of the text",
                where="method.pooling",
                value=self.pooling,
                fix="set method.pooling=last (or mean, or max)",
            )

    def bind(self, context: Context) -> None:
        """Sets the dropout of training, which is no part of the model."""
        super().bind(context)
        for transform in adapters_of(self.policy.module):
            if type(transform).merge is Transform.merge or context.recipe.engine.name == "fsdp2":
                raise ConfigError(
                    "a folder of vectors is one model, so adapters must be merged in the end, which cannot be done",
                    where=transform.where,
                    value=transform.name,
                    fix="use lora with engine.name=single or ddp, or train without adapters",
                )
        if self.config.dropout is not None:
            set_dropout(self.policy.module, self.config.dropout)

    def kept(self, config: ModelConfig, weights: Mapping[str, Tensor]) -> tuple[ModelConfig, dict[str, Tensor]]:
        """Shape and weights of what is left of the policy; here the body."""
        from trivium.models.folder import with_head

        body = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
        return with_head(config, {"head": "none"}), body

    def layout(self, weights: Mapping[str, Tensor]) -> Sentences:
        """How the hidden states of the body become vectors."""
        prompts = {} if self.start is None else dict(self.start.prompts)
        return Sentences(pooling=self.pooling, prompts=prompts)

    def finish(self, folder: Path, weights: Mapping[str, Tensor]) -> bool:
        """The body as a model folder, with the layout of sentence-transformers around it; adapters are merged."""
        from trivium.data.framing import framed_files
        from trivium.models.folder import save_model
        from trivium.tokenizers.files import write_files

        recipe, module = self.context.recipe, self.policy.module
        if adapters_of(module):
            merged = copy.deepcopy(module)
            merge_all(merged)
            weights = merged.state_dict()
        config, kept = self.kept(module.config, weights)
        save_model(folder, config, kept)
        write_files(folder, framed_files(self.context.tokenizer))
        sentences = self.layout(weights)
        length = min(config.max_positions, LONGEST)
        size = sentences.size(config.hidden_size)
        text = card(
            sentences,
            name=recipe.name,
            base=recipe.model.path or recipe.model.preset,
            size=size,
            max_length=length,
            method=str(recipe.method.get("name")),
        )
        write_sentences(folder, sentences, width=config.hidden_size, max_length=length, card=text)
        return True


def dense_layer(start: Sentences | None, activation: str, size: int | None) -> tuple[str, int | None]:
    """(activation, width) of the layer behind the pooling: as set, else as the folder has it, else none."""
    layers = start.dense if start else ()
    if len(layers) > 1 and activation != "none":
        raise ConfigError(
            "the folder has several dense layers behind the pooling, one can be trained",
            where="method.dense",
            value=len(layers),
            fix="set method.dense=none, which leaves them out",
        )
    if activation == "auto":
        activation = layers[0].activation if layers else "none"
    if activation == "none":
        return "none", None
    return activation, size or (layers[0].weight.shape[0] if layers else None)


def refuse_no_dropout(model: ModelConfig, rate: float | None) -> None:
    """A text read twice must not be read the same."""
    own = max(model.dropout, model.embedding_dropout, model.attention_dropout)
    if not (own if rate is None else rate):
        raise ConfigError(
            "each text is compared with itself under other dropout, and there is no dropout",
            where="method.dropout",
            value=rate,
            fix="set method.dropout=0.1",
        )


def set_dropout(module: Any, rate: float) -> None:
    """The dropout of every layer, on activations, embeddings and attention weights."""
    from trivium.models.layers import Attention

    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = rate
        elif isinstance(part, Attention):
            part.dropout = rate


def twice(batch: Batch, number: int) -> Batch:
    """The first `number` sequences of a batch one after the other, and then again; at least one sequence.

    Of a batch without samples its filler stays, so that every rank runs the model.
    """
    lengths = batch.layout.lengths[: max(number, 1)]
    tokens = sum(lengths)
    fields = {name: batch.fields[name][:tokens].repeat(2) for name in ("token_types",) if name in batch.fields}
    ids = batch.input_ids[:tokens].repeat(2)
    return replace(
        batch, input_ids=ids, targets=torch.full_like(ids, IGNORE), layout=Layout((*lengths, *lengths)), fields=fields
    )


def fingerprints(batch: Batch) -> Tensor:
    """[S] int64: equal for equal texts, different (but for chance in 2^64) for others."""
    device = batch.input_ids.device
    powers = torch.full((max(batch.layout.lengths),), 6364136223846793005, dtype=torch.int64, device=device).cumprod(0)
    terms = (batch.input_ids + 1) * powers[batch.layout.positions(device)]
    return batch.layout.sum(terms)


def places(batch: Batch) -> list[int]:
    """For each sequence that belongs to a sample its place in the row: 0 the anchor, 1 the positive, then negatives."""
    counts, found = batch.fields["texts"].tolist(), list[int]()
    for _ in batch.sample_ids:
        found += range(int(counts[len(found)]))
    return found
