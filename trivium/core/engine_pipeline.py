"""Pipeline parallelism: each rank holds a range of blocks, micro-batches flow through the ranks.

torch.distributed.pipelining moves the hidden states and orders forward and backward passes (1F1B or GPipe). The last
rank owns the head; there the method's `loss` runs unchanged, with the policy's call answered from the hidden states
that arrived. Micro-batches must have one shape, so the loader pads them with untrained sequences (`pad_rows`).

Not for methods that declare `backward` or make their own updates from rollouts, and not together with data parallelism.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from trivium.core.engine import Engine, Player, _Sums
from trivium.core.method import Method, RoleModel, Update
from trivium.core.terms import Counts, scaled_total
from trivium.data.batch import Batch
from trivium.errors import ConfigError
from trivium.optim.groups import GroupRow

if TYPE_CHECKING:
    from trivium.models.config import ModelConfig
    from trivium.models.transformer import Transformer

SCHEDULES = {"1f1b": Schedule1F1B, "gpipe": ScheduleGPipe}


class Stage(nn.Module):
    """This rank's part of a transformer: the embedding on the first, norm and head on the last."""

    def __init__(self, model: Transformer, rank: int, world: int) -> None:
        super().__init__()
        count = len(model.blocks)
        if count < world:
            raise ConfigError(
                f"the model has {count} blocks, too few for {world} pipeline stages",
                where="engine.name",
                value="pipeline",
                fix=f"start at most {count} processes",
            )
        self.model = model
        self.first, self.last = rank == 0, rank == world - 1
        self.begin, self.end = count * rank // world, count * (rank + 1) // world
        self.batches: list[Batch] = []
        drop_other_stages(model, self)

    def forward(self, inputs: Tensor, index: Tensor) -> Tensor:
        """[1, T] token ids on the first stage, [1, T, D] hidden states elsewhere -> [1, T, D].

        `index` [1] is the number of the micro-batch; its layout is known to every rank.
        """
        model = self.model
        batch = self.batches[int(index)]
        plan = model.plan(batch.layout, device=inputs.device)
        hidden = inputs[0]
        if self.first:
            hidden = model.embed_inputs(hidden, plan.positions, token_types=batch.fields.get("token_types"))
        hidden = model.run_blocks(hidden, plan, list(model.blocks)[self.begin : self.end])
        if self.last:
            hidden = model.final_norm(hidden)
        return hidden[None]

    def shapes(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What `forward` takes and gives for a micro-batch, without memory."""
        dtype = next(self.parameters()).dtype
        size = (1, batch.layout.tokens, self.model.config.hidden_size)
        hidden = torch.empty(size, dtype=dtype, device="meta", requires_grad=True)
        return batch.input_ids[None].to("meta") if self.first else hidden, hidden


def drop_other_stages(model: Transformer, stage: Stage) -> None:
    """Removes what other ranks hold, keeping the names of what stays."""
    for number in range(len(model.blocks)):
        if not stage.begin <= number < stage.end:
            model.blocks[number] = nn.Identity()
    nothing: Any = nn.Identity()
    if not stage.last:
        model.final_norm = model.head = nothing
    elif not stage.first and model.config.tie_embeddings:
        # The tied weight lives on both ends under the name of the embedding; the head reads it here.
        model.head.weight = model.embed.weight
    if not stage.first:
        if not (stage.last and model.config.tie_embeddings):
            model.embed = nothing
        model.position_embed = model.token_type_embed = model.embed_norm = model.embed_projection = None


class PipelineEngine(Engine):
    """An engine whose policy is spread over the ranks; all ranks read the same data."""

    stage: Stage
    ends: Any = None
    """The process group of the first and the last rank, made when a tied weight needs it."""

    def place(self, role: RoleModel) -> None:
        """Cuts the policy into stages; frozen roles stay whole on the last rank, which alone needs them."""
        refuse_unsupported(self.method)
        if not role.trainable:
            super().place(role)
            return
        refuse_unsupported_model(role.module.config)
        self.stage = Stage(role.module, self.processes.rank, self.processes.world)
        role.module.to(self.device).train()
        role.precision = self.autocast
        self.checkpoint_activations(role.module)

    def count(self, update: Update) -> dict[str, float]:
        """Counts of the update, which is the same on every rank."""
        return self.counted(update)

    def forward_backward(self, update: Update, counts: Counts, player: Player, sums: _Sums, step: int) -> None:
        """One schedule over all micro-batches of the update."""
        policy = self.roles["policy"]
        batches = [batch.to(self.device) for batch in update.batches]
        self.stage.batches = batches
        loss = update.loss or self.method.loss

        def loss_of(hidden: Tensor, index: Tensor) -> Tensor:
            number = int(index)
            policy.forward = arrived(hidden[0], policy.module.head)
            terms = loss(self.prepared(batches[number], step, number))
            sums.add(terms)
            return scaled_total(terms, counts)

        self.flow(batches, loss_of)
        self.share_tied_gradient(policy)
        self.tell_terms(sums)

    def tell_terms(self, sums: _Sums) -> None:
        """The terms exist on the last rank only; the others add nothing, under the same names."""
        box = [(sums.units, sums.coefficients)]
        dist.broadcast_object_list(box, src=self.processes.world - 1)
        if not self.stage.last:
            sums.units, sums.coefficients = box[0]
            sums.values = {name: torch.zeros((), device=self.device) for name in sums.units}

    def flow(self, batches: list[Batch], loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Sends the micro-batches through all stages; `loss` runs on the last one."""
        if len(batches) < self.processes.world:
            rows = max(1, self.recipe.train.batch_size // self.processes.world)
            raise ConfigError(
                f"{len(batches)} micro-batches cannot fill {self.processes.world} pipeline stages",
                where="train.micro_batch_size",
                value=self.recipe.train.micro_batch_size,
                fix=f"set train.micro_batch_size={rows} or less",
            )
        arriving, leaving = self.stage.shapes(batches[0])
        # Told the shapes, torch need not find them by a pass of its own, whose loss and gradients would count as well.
        stage = PipelineStage(
            self.stage,
            self.processes.rank,
            self.processes.world,
            self.device,
            input_args=arriving,
            output_args=leaving,
        )
        schedule = SCHEDULES[self.recipe.engine.pipeline_schedule](
            stage, n_microbatches=len(batches), loss_fn=loss, scale_grads=False
        )
        numbers = torch.arange(len(batches), device=self.device)
        inputs = [torch.stack([batch.input_ids for batch in batches])] if self.stage.first else []
        target = numbers if self.stage.last else None
        with self.autocast():
            schedule.step(*inputs, index=numbers, target=target)

    def share_tied_gradient(self, policy: RoleModel) -> None:
        """The tied embedding is used on the first and the last rank; both get the sum of its gradients."""
        model = policy.module
        if not model.config.tie_embeddings or self.processes.world == 1:
            return
        if self.ends is None:
            self.ends = dist.new_group([0, self.processes.world - 1])
        if self.stage.first or self.stage.last:
            dist.all_reduce(model.embed.weight.grad, group=self.ends)

    def gradient_norm(self, player: Player) -> float:
        """2-norm over all stages; the tied weight counts once."""
        tied = self.roles["policy"].module.config.tie_embeddings and self.stage.last and not self.stage.first
        squares = [
            float(parameter.grad.square().sum())
            for name, parameter in player.named.items()
            if parameter.grad is not None and not (tied and name == "policy.embed.weight")
        ]
        return math.sqrt(self.processes.sum({"squares": sum(squares)}, self.device)["squares"])

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Validation is not run in a pipeline yet; the folder of a checkpoint can be evaluated by one process."""
        return {}

    def weights(self, role: str) -> dict[str, Tensor]:
        """All weights, gathered from the stages."""
        return self.gathered(super().weights(role)) if self.roles[role].trainable else super().weights(role)

    def optimizer_state(self, player: str) -> dict[str, Any]:
        """Optimiser state of all stages."""
        own = super().optimizer_state(player)
        return {**own, "slots": self.gathered(own["slots"])}

    def groups(self) -> list[GroupRow]:
        """What trains in all stages; the tied weight counts once."""
        parts: list[Any] = [None] * self.processes.world
        dist.all_gather_object(parts, super().groups())
        tied = self.roles["policy"].module.config.tie_embeddings
        rows = [row for part in parts[:1] for row in part]
        return rows + [row for part in parts[1:] for row in part if not (tied and row.part == "embeddings")]

    def collected(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """Tensors of all stages by parameter name."""
        return self.gathered(super().collected(named))

    def gathered(self, part: dict[str, Any]) -> dict[str, Any]:
        """The parts of all ranks in one dictionary; what two ranks hold (the tied weight) is equal on both."""
        parts: list[Any] = [None] * self.processes.world
        dist.all_gather_object(parts, part)
        return {name: value for stage in reversed(parts) for name, value in stage.items()}


def arrived(hidden: Tensor, head: nn.Module) -> Callable[..., Any]:
    """A policy call that is answered from hidden states computed already."""

    def forward(
        input_ids: Tensor,
        layout: Any,
        *,
        then: Callable[..., Any],
        offset: Tensor | None = None,
        wanted: Tensor | None = None,
    ) -> Any:
        assert offset is None, "the pipeline has embedded the tokens already"
        return then(hidden, head)

    return forward


def refuse_unsupported_model(config: ModelConfig) -> None:
    """What does not flow through one line of blocks cannot be pipelined."""
    what = (
        "an encoder-decoder" if config.kind == "encoder_decoder" else "a mixture of experts" if config.experts else ""
    )
    if what:
        raise ConfigError(
            f"{what} cannot be cut into the stages of a pipeline",
            where="engine.name",
            value="pipeline",
            fix="set engine.name=fsdp2 or engine.name=ddp",
        )


def refuse_unsupported(method: Method) -> None:
    """Methods whose update is more than one pass through the policy, or moves more than it, cannot be pipelined."""
    several = sum(role.trainable for role in method.roles().values()) > 1
    if several or method.backward is not None or method.data_kind == "prompts":
        raise ConfigError(
            f"{type(method).__name__} needs the whole model on each rank, which a pipeline does not have",
            where="engine.name",
            value="pipeline",
            fix="set engine.name=fsdp2 or engine.name=ddp",
        )
