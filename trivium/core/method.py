"""What a training method is: a class with a `Config` and a few hooks; the loop does the rest.

Hooks, in order of preference (use the first that suffices):

    check(...)      what the method asks of model and tokenizer
    example(...)    inputs and targets of one piece of a document, drawn anew each epoch
    head(data)      what the policy must end in
    roles()         which models take part: trainable, or frozen (reference, teacher)
    prepare(batch)  work without gradients by frozen roles, once for each micro-batch
    weights(batch)  how many of each unit the batch holds, counted from the batch alone
    loss(batch)     sums and their units
    represent(batch), joint(parts)  instead of `loss`: what a loss over all texts of the update compares, and that loss
    updates()       the updates themselves: rollouts, alternating players
    backward(...)   last resort: several passes for one micro-batch (FreeLB, SAM); no pipeline

A method never divides by a batch size, never calls `.backward()` and never touches an optimiser: the engine divides
by the count over the whole update, so the gradient does not depend on micro-batches, packing or ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from trivium.config import StrictModel
from trivium.data.batch import IGNORE
from trivium.errors import ConfigError
from trivium.lazy import torch

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from trivium.core.features import Features
    from trivium.core.state import Progression
    from trivium.core.terms import Terms
    from trivium.data.batch import Batch
    from trivium.data.corruption.example import Example
    from trivium.data.dataset import Dataset
    from trivium.data.samples import Sample
    from trivium.models.config import ModelConfig
    from trivium.models.transformer import Then, Transformer
    from trivium.recipe import Recipe
    from trivium.tokenizers.tokenizer import Tokenizer

DataKind = Literal[
    "documents", "instructions", "preferences", "prompts", "labels", "tokens", "questions", "pairs", "similar"
]


NOUNS = {"decoder": "a decoder", "encoder": "an encoder", "encoder_decoder": "an encoder-decoder"}


@dataclass(frozen=True)
class Role:
    """One model that takes part.

    trainable: gets gradients and belongs to a player; a frozen role is never wrapped for gradients.
    path:      model folder to load; default: the model of the recipe (a frozen role is then a copy of its start).
    config:    changes to the policy's shape for a role that begins with random weights, as fields of `ModelConfig`.
    """

    trainable: bool = True
    path: str | None = None
    config: Mapping[str, Any] | None = None


@dataclass
class Update:
    """One optimiser update, the unit of the loop.

    batches:  this rank's micro-batches; every rank gives the same number.
    player:   whose optimiser steps; a key of `Method.players()`.
    boundary: whether the run may be saved after this update. An update that leaves work of the generator half done
              (the minibatches of one rollout) says False; the last of them says True.
    loss:     the loss of this update if it is not `Method.loss` (alternating players).
    """

    batches: list[Batch]
    player: str = "policy"
    boundary: bool = True
    loss: Callable[[Batch], Terms] | None = None


_MOST_WANTED = 0.75
"""Share of tokens with a target up to which leaving out the others pays for picking them."""


class RoleModel:
    """A role at work: call it with a batch and say what to compute from its hidden states.

    `then(hidden [T, D], head)` runs inside the module's forward, where sharded weights are gathered.
    """

    def __init__(self, name: str, module: Transformer, role: Role) -> None:
        self.name = name
        self.module = module
        self.trainable = role.trainable
        self.compiled = False
        self.lr_factors: dict[str, float] = {}
        """By name of a parameter: a factor of its learning rate, beside those of the recipe."""
        self.forward: Callable[..., Any] = module
        """What a call runs: the module itself, or what the engine put around it."""
        self.features: Features | None = None
        """Pooled hidden states of a frozen body; where they are, only the head runs."""
        self.precision: Callable[[], AbstractContextManager[Any]] = nullcontext
        """The context of a call: autocast where the run is in lower precision."""

    def __call__(
        self,
        batch: Batch,
        then: Then,
        *,
        offset: Tensor | None = None,
        only_targets: bool = False,
        only: Tensor | None = None,
    ) -> Any:
        """`then(hidden, head)` for the batch; `offset` [T, D] is added to the input embeddings.

        only_targets: `then` looks at tokens that have a target only, so that the last block can leave out the others.
        only: [W] tokens, ascending, that `then` looks at, likewise.
        """
        if self.features is not None:
            from trivium.core.features import PooledHead

            return then(self.features.of(batch), PooledHead(self.module.head))
        extra: dict[str, Any] = {}
        if only_targets and not self.compiled:
            only = (batch.targets != IGNORE).nonzero().squeeze(1)
        if only is not None and not self.compiled and len(only) < _MOST_WANTED * batch.tokens:
            extra["wanted"] = only
        if batch.source is not None:
            extra["source"] = batch.source
        if "token_types" in batch.fields:
            extra["token_types"] = batch.fields["token_types"]
        with self.precision():
            return self.forward(batch.input_ids, batch.layout, then=then, offset=offset, **extra)

    def compile(self) -> None:
        """torch.compile for each block: one graph serves them all, so that compiling takes seconds."""
        # The compiler has a setting of its own, which goes with torch's.
        torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled(), warn_only=True)
        for block in self.module.all_blocks:
            block.compile()
        self.compiled = True

    def eager(self) -> AbstractContextManager[Any]:
        """Inside, compiled blocks run as they are written: generation has other shapes at each step."""
        from trivium.models.uncompiled import UNCOMPILED

        return UNCOMPILED if self.compiled else nullcontext()


class Accumulate(Protocol):
    """Adds the gradient of `share` x terms; `last` marks the final pass over this micro-batch."""

    def __call__(self, terms: Terms, *, share: float = 1.0, last: bool = True) -> None: ...


class Feed(Protocol):
    """Training data in the order of the run; its position is part of the saved state."""

    def batches(self) -> list[Batch]:
        """This rank's micro-batches of the next update."""
        ...

    def samples(self) -> list[Sample]:
        """This rank's raw samples of the next update, for methods that make their own batches."""
        ...

    def consumed(self) -> list[str]:
        """Ids of the samples of the latest update, over all ranks."""
        ...

    def measures(self) -> dict[str, float]:
        """Numbers about the samples of the latest update: what a curriculum does."""
        ...


@dataclass
class Context:
    """What a method may use: roles, data, tokenizer, and random numbers that a resumed run draws again."""

    recipe: Recipe
    tokenizer: Tokenizer
    roles: dict[str, RoleModel]
    feed: Feed
    progression: Progression
    device: Any
    rank: int = 0
    world: int = 1
    stop_requested: Callable[[], bool] = field(default=lambda: False)

    def seed(self, purpose: str, index: int = 0) -> int:
        """A 63-bit seed for (run, update, rank, purpose, index)."""
        return derive_seed(self.recipe.seed, self.progression.step, self.rank, purpose, index)

    def check_stop(self) -> None:
        """Called between the steps of long work in `updates()`: leaves it if the run was asked to stop.

        Nothing that a rollout did so far has changed the run, so it is abandoned and repeated after resuming.
        """
        if self.stop_requested():
            raise RolloutAbandoned


class RolloutAbandoned(Exception):
    """The run was asked to stop while `updates()` was preparing an update."""


def derive_seed(*parts: object) -> int:
    """A 63-bit number from (seed, step, purpose, ...): random numbers are derived, never a consumed stream."""
    import hashlib

    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class Method:
    """Base of all methods; see the file docstring for the hooks."""

    class Config(StrictModel):
        """Settings of the method."""

    data_kind: ClassVar[DataKind] = "documents"
    model_kinds: ClassVar[tuple[str, ...]] = ()
    """Kinds of models it can train (`ModelConfig.kind`); empty: all."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.context: Context

    def bind(self, context: Context) -> None:
        """Gives the method its roles and data; called once before the first update."""
        self.context = context

    example: Callable[..., Example] | None = None
    """Optional: `example(ids, random)` makes inputs and targets of one piece of a document; for pairs it is
    `example(source, target, random)`. The loader calls it, in a thread of its own and with random numbers of (seed,
    epoch, sample); it must be a function of its arguments and of what the method was bound to."""

    bare: ClassVar[bool] = False
    """Whether `example` gets pieces without BOS and EOS, or pieces of n + 1 tokens that overlap by one."""

    def margin(self, tokenizer: Tokenizer) -> int:
        """How many tokens longer than its piece an example is at most; pieces are cut shorter by as much."""
        return 0

    def check(self, recipe: Recipe, tokenizer: Tokenizer, model: ModelConfig) -> None:
        """ConfigError or TokenizerError where this model or tokenizer cannot do it; called before data is read."""
        if self.model_kinds and model.kind not in self.model_kinds:
            raise ConfigError(
                f"this method trains {NOUNS[self.model_kinds[0]]}, the model is {NOUNS[model.kind]}",
                where="method.name",
                value=str(recipe.method.get("name")),
                fix="take another model or method: mlm and electra are for encoders, seq2seq and denoise for "
                "encoder-decoders, clm and sft for decoders",
            )
        if model.kind == "encoder" and recipe.train.sample_prompts:
            raise ConfigError(
                "an encoder sees a text from both sides, so it continues no prompts",
                where="train.sample_prompts",
                fix="delete this line",
            )
        dialogues = [prompt for prompt in recipe.train.sample_prompts if not isinstance(prompt, str)]
        if dialogues and model.kind == "encoder_decoder":
            raise ConfigError(
                "the encoder of an encoder-decoder reads text, no dialogue",
                where="train.sample_prompts",
                value=dialogues[0],
                fix="write the prompt as text",
            )
        for dialogue in dialogues:
            tokenizer.encode_prompt(dialogue)  # refuses what is no dialogue, or has no chat template

    def head(self, data: Dataset) -> Mapping[str, Any] | None:
        """What the policy must end in, as fields of `ModelConfig`; None: what it has. `data` is the training data."""
        return None

    @property
    def policy(self) -> RoleModel:
        """The role every method has."""
        return self.context.roles["policy"]

    def roles(self) -> dict[str, Role]:
        """Roles by name; `policy` is the model that the run is about."""
        return {"policy": Role()}

    def players(self) -> dict[str, list[str]]:
        """Optimisers by name, with the trainable roles each of them moves."""
        return {"policy": [name for name, role in self.roles().items() if role.trainable]}

    def prepare(self, batch: Batch) -> Batch:
        """The batch with further fields from frozen roles; runs without gradients."""
        return batch

    def weights(self, batch: Batch) -> Mapping[str, float]:
        """Count of every unit that `loss` uses, from the batch alone; always the same keys."""
        return {"tokens": float(batch.trained_tokens())}

    def loss(self, batch: Batch) -> Terms:
        """Sums over the micro-batch and their units."""
        if self.represent is None:
            raise NotImplementedError
        return self.joint(self.represent(batch))

    represent: Callable[[Batch], dict[str, Tensor]] | None = None
    """Optional: `represent(batch) -> parts`, tensors [n, ...] with the same names in each micro-batch. The engine puts
    those of the whole update together, over all micro-batches and ranks, for `joint`, and sends the gradient back
    through the micro-batches one by one (Gao et al. 2021, arXiv:2101.06983). It is called twice, with the same random
    numbers, calls a role once, and gives no rows for a micro-batch that holds no sample. No pipeline."""

    def joint(self, parts: Mapping[str, Tensor]) -> Terms:
        """Sums over the whole update, from what `represent` gave of all of it; their order means nothing."""
        raise NotImplementedError

    def updates(self) -> Iterator[Update]:
        """Updates without end; must continue correctly from the saved position when started anew."""
        while True:
            yield Update(self.context.feed.batches())

    backward: Callable[[Batch, Accumulate], Terms] | None = None
    """Optional: `backward(batch, accumulate) -> terms` replaces the single backward pass of a micro-batch."""

    def finish(self, folder: Path, weights: Mapping[str, Tensor]) -> bool:
        """Writes the trained policy into `folder`, an artifact in the making, if it shall be kept in another form than
        in checkpoints, and says whether it did; on the main process only."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """What the method itself carries from update to update; tensors, numbers, strings."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""


def frozen_forward(role: RoleModel, batch: Batch, then: Then) -> Any:
    """`role(batch, then)` without gradients."""
    with torch.no_grad():
        return role(batch, then)
