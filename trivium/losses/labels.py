"""What the methods with labels share: weights of classes, sums over the tokens of a sequence, and checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from trivium.errors import ConfigError
from trivium.lazy import torch
from trivium.nearest import nearest

if TYPE_CHECKING:
    from torch import Tensor

    from trivium.data.batch import Batch, Layout
    from trivium.models.config import ModelConfig
    from trivium.recipe import Recipe


def class_weights(
    setting: Literal["none", "balanced"] | Mapping[str, float],
    labels: Sequence[str],
    counts: Mapping[str, int],
    rows: int,
    *,
    problem: str = "single_label",
) -> list[float] | None:
    """The weight of each label, None for equal ones.

    One label: weights have the mean 1 over the training data, so that the learning rate keeps its meaning.
    Several labels: the weight of "applies" against "does not apply"; balanced, both sides weigh the same.
    """
    if setting == "none":
        return None
    if problem == "regression":
        raise ConfigError("numbers have no classes to weigh", where="method.class_weights", fix="delete this line")
    if isinstance(setting, str):
        if problem == "multi_label":
            return [max(rows - counts[name], 1) / max(counts[name], 1) for name in labels]
        given = [sum(counts.values()) / (len(labels) * max(counts[name], 1)) for name in labels]
    else:
        _check_names(setting, labels)
        given = [setting.get(name, 1.0) for name in labels]
        if problem == "multi_label":
            return given
    total = sum(weight * counts[name] for weight, name in zip(given, labels, strict=True))
    return [weight * sum(counts.values()) / total for weight in given]


def _check_names(setting: Mapping[str, float], labels: Sequence[str]) -> None:
    for name, weight in setting.items():
        if name not in labels:
            near = nearest(name, labels)
            raise ConfigError(
                "the training data has no such label",
                where="method.class_weights",
                value=name,
                fix=f"did you mean {near}?" if near else f"known are {', '.join(labels)}",
            )
        if weight <= 0:
            raise ConfigError(
                "the weight of a label must be above 0", where=f"method.class_weights.{name}", value=weight
            )


def full_precision(scores: Tensor) -> Tensor:
    """At least float32: the few scores of a head cost nothing, and their softmax is exact."""
    return scores if scores.dtype == torch.float64 else scores.float()


def log_normaliser(scores: Tensor, layout: Layout) -> Tensor:
    """[T, ...] -> [S, ...]: logarithm of the sum of the exponentials inside each sequence; differentiable."""
    owners = layout.sequence_ids(scores.device)
    shape = (layout.sequences, *scores.shape[1:])
    index = owners.view(-1, *[1] * (scores.dim() - 1)).expand_as(scores)
    highest = scores.detach().new_full(shape, -torch.inf).scatter_reduce(0, index, scores.detach(), "amax")
    summed = scores.new_zeros(shape).index_add(0, owners, (scores - highest[owners]).exp())
    return highest + summed.log()


def with_segments(batch: Batch, token_types: int) -> Batch:
    """The batch with `token_types` [T], from the field `second` [S]; as it is where the model tells no segments apart
    or there is only one."""
    if token_types < 2 or "second" not in batch.fields:
        return batch
    device = batch.input_ids.device
    second = batch.fields["second"].to(torch.int64)[batch.layout.sequence_ids(device)]
    return batch.with_fields(token_types=(batch.layout.positions(device) >= second).to(torch.int64))


def refuse_generation(recipe: Recipe, config: ModelConfig) -> None:
    """A model with a head for labels continues no prompts, and one that reads forward knows nothing at its start."""
    if recipe.train.sample_prompts:
        raise ConfigError(
            "a model with a head for labels continues no prompts",
            where="train.sample_prompts",
            fix="delete this line; `trivium eval` shows what the model says",
        )
    if config.kind == "encoder_decoder":
        raise ConfigError(
            "heads for labels stand on encoders and decoders, not on encoder-decoders",
            where="model",
            value=config.family,
            fix="choose an encoder (bert, roberta) or a decoder (llama, gpt2); or let it write labels: method seq2seq",
        )
    if config.kind == "decoder" and config.head == "sequence" and config.pooling == "first":
        raise ConfigError(
            "the first token of a decoder has seen nothing of the text",
            where="method.pooling",
            value=config.pooling,
            fix="set method.pooling=last (or mean, or max)",
        )
