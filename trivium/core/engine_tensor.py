"""Tensor parallelism: each rank holds a part of every matrix of the blocks, and all ranks compute the same tokens.

Query, key, value, gate and up projections are divided by columns, output and down projections by rows, so that a rank
has whole heads and a part of the width inside the MLP, and adds its share to the hidden states (Shoeybi et al. 2019,
arXiv:1909.08053). torch's DTensor does it: two all-reduces of the hidden states in each block forwards, two backwards.
Norms, embeddings and head are whole on every rank, as are the hidden states between blocks.

Parameters are of two kinds, DTensors and plain tensors, which no kernel takes together: optimiser groups, norms and
averages go through them kind by kind (`by_layout`).

Not for adapters, methods that generate text, fp16, offloading or compiled blocks, and not together with data
parallelism.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from trivium.core.distributed import Processes
from trivium.core.engine import Engine, Player, _Sums
from trivium.core.method import RoleModel, Update
from trivium.core.tensor_shapes import refuse_undividable
from trivium.core.terms import Counts
from trivium.errors import ConfigError

if TYPE_CHECKING:
    from trivium.models.layers import Block
    from trivium.models.transformer import Transformer

COLUMNS = ("query", "key", "value", "gate", "up")
ROWS = ("output", "down")
HEAD_NORMS = ("query_norm", "key_norm")


class TensorEngine(Engine):
    """An engine whose models are divided among the ranks; all ranks read the same data."""

    @cached_property
    def mesh(self) -> DeviceMesh:
        """All ranks in a row."""
        return init_device_mesh(self.device.type, (self.processes.world,), mesh_dim_names=("tensor",))

    @property
    def data_parallel(self) -> Processes:
        """One copy of the model, so nothing is dealt out: counts, seeds and batches are those of one process."""
        return Processes()

    def place(self, role: RoleModel) -> None:
        """Divides a role, trainable or frozen, before it moves to the device."""
        refuse_undividable(role.module.config, self.processes.world)
        refuse_changed(role.module)
        divide(role.module, self.mesh)
        super().place(role)

    def forward_backward(self, update: Update, counts: Counts, player: Player, sums: _Sums, step: int) -> None:
        """Accumulates the gradient of the whole update."""
        super().forward_backward(update, counts, player, sums, step)
        self.complete_gradients(player)

    def forward_backward_jointly(self, update: Update, counts: Counts, player: Player, sums: _Sums, step: int) -> None:
        """The same for a loss that compares all texts of the update."""
        super().forward_backward_jointly(update, counts, player, sums, step)
        self.complete_gradients(player)

    def complete_gradients(self, player: Player) -> None:
        """Makes the gradients of what every rank holds whole, and the same number on all ranks.

        A norm of single heads saw those of this rank only: sums. All else is computed alike everywhere, but another
        processor may round in another way, and copies of a weight must not drift apart: means.
        """
        for name, parameter in player.named.items():
            gradient, share = parameter.grad, 1.0 if name.split(".")[-2] in HEAD_NORMS else 1 / self.processes.world
            if isinstance(gradient, DTensor) and gradient.placements == (Replicate(),):
                parameter.grad = self.laid_out(self.summed(gradient.to_local()) * share, Replicate())
            elif gradient is not None and not isinstance(gradient, DTensor):
                parameter.grad = self.summed(gradient) * share

    def summed(self, own: Tensor) -> Tensor:
        """The sum of the tensors of all ranks."""
        total: Tensor = self.laid_out(own, Partial()).full_tensor()
        return total

    def laid_out(self, own: Tensor, placement: Placement) -> DTensor:
        """A DTensor of what this rank has."""
        return DTensor.from_local(own, self.mesh, [placement], run_check=False)

    def agreed(self, finite: bool) -> bool:
        """Whether it is so on every rank: either all step or none."""
        return not self.processes.any(not finite, self.device)


def refuse_changed(model: Transformer) -> None:
    """ConfigError for a model whose layers are others than its configuration says, also if its folder made them so."""
    changed = [transform for transform in model.transforms if transform.adapter or transform.changes_base]
    if changed:
        name = type(changed[0]).__name__
        raise ConfigError(
            f"tensor parallelism trains the model's own weights, it does not divide those of {name}",
            where="engine.name",
            value="tensor",
            fix="set engine.name=fsdp2 (or ddp, or single), or merge adapters first: trivium export --merge",
        )


def divide(model: Transformer, mesh: DeviceMesh) -> None:
    """Makes DTensors of the matrices of all blocks; what a rank computes between two of them is its own part."""
    for block in model.all_blocks:
        for branch in branches(block):
            columns = {name: ColwiseParallel() for name in COLUMNS if hasattr(branch, name)}
            rows = {name: RowwiseParallel() for name in ROWS if hasattr(branch, name)}
            parallelize_module(branch, mesh, {**columns, **rows})
            enter(branch, mesh)
    model.key_heads = model.config.num_kv_heads // mesh.size()


def branches(block: Block) -> list[nn.Module]:
    """The modules of a block that are divided, each between a division by columns and one by rows."""
    experts = [] if block.moe is None else list(block.moe.experts)
    return [part for part in (block.attention, block.cross, block.mlp, *experts) if part is not None]


def enter(branch: nn.Module, mesh: DeviceMesh) -> None:
    """Shares the input of a branch among its layers, and gives each rank noise of its own inside of it."""
    added: Callable[..., Tensor] = branch.forward

    def forward(hidden: Tensor, plan: Any = None, wanted: Tensor | None = None) -> Tensor:
        """[T, D] -> [T, D]; see the branch."""
        given = [each for each in (plan, wanted) if each is not None]
        if wanted is None:  # one DTensor for all layers that read it: its gradient is summed over ranks once
            hidden = DTensor.from_local(hidden, mesh, [Replicate()], run_check=False)
        if not (branch.training and branch.dropout):
            return added(hidden, *given)
        # Outside of branches every rank must drop the same numbers, and inside other heads should drop others. The
        # seed comes from the shared stream, which a block that is computed again has put back.
        seed = int(torch.randint(1 << 62, ()))
        with torch.random.fork_rng(_devices(mesh)):
            torch.manual_seed(seed + mesh.get_local_rank())
            return added(hidden, *given)

    branch.forward = forward


def _devices(mesh: DeviceMesh) -> list[int]:
    """The accelerator whose random state is kept beside the CPU's."""
    return [torch.cuda.current_device()] if mesh.device_type == "cuda" else []
