"""The processes of a run: started by torchrun, or just this one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from trivium.errors import ConfigError
from trivium.lazy import is_sharded

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others before it gives up with an error."""


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    rank, world: number of this process and of all; local_rank numbers those of one machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def sum(self, values: Mapping[str, float], device: torch.device) -> dict[str, float]:
        """Sum of each value over all ranks in float64; every rank gives the same keys."""
        if self.world == 1:
            return dict(values)
        names = sorted(values)
        vector = torch.tensor([values[name] for name in names], dtype=torch.float64, device=device)
        dist.all_reduce(vector)
        return dict(zip(names, vector.tolist(), strict=True))

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The tensors [n, ...] of all ranks in order, without gradients; only n may differ between ranks."""
        tensor = tensor.detach()
        if self.world == 1:
            return [tensor]
        sizes = [torch.zeros(1, dtype=torch.int64, device=tensor.device) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor([len(tensor)], device=tensor.device))
        counts = [int(size) for size in sizes]
        padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        found = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(found, padded)
        return [each[:count] for each, count in zip(found, counts, strict=True)]

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set on at least one rank."""
        return self.sum({"flag": float(flag)}, device)["flag"] > 0

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.world > 1:
            dist.barrier()

    def from_main(self, value: Any) -> Any:
        """The main process's value on every rank (plain Python values only)."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def start_processes(engine: str, device: torch.device) -> Processes:
    """Joins the process group that torchrun describes in the environment.

    Raises ConfigError when a distributed engine is asked for outside torchrun, or `single` inside it.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if engine == "single":
        if world > 1:
            raise ConfigError(
                "engine.name is single, but torchrun started several processes",
                where="engine.name",
                value=engine,
                fix="set engine.name=ddp or engine.name=fsdp2",
            )
        return Processes()
    if "RANK" not in os.environ:
        raise ConfigError(
            f"the engine {engine} needs the processes that torchrun starts",
            where="engine.name",
            value=engine,
            fix="run `torchrun --nproc-per-node=2 -m trivium train ...`, or set engine.name=single",
        )
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    return Processes(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))


def whole_tensors(named: Mapping[str, Any]) -> dict[str, Any]:
    """Sharded tensors gathered, and everything on the CPU; a collective call where tensors are sharded."""

    def whole(value: Any) -> Any:
        if is_sharded(value):
            value = value.full_tensor()
        return value.detach().cpu() if isinstance(value, torch.Tensor) else value

    return {name: whole(value) for name, value in named.items()}


def shard_like(whole: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
    """A whole tensor laid out like `pattern`: sharded if that is, on its device."""
    if is_sharded(pattern) and whole.shape == pattern.shape:
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(whole.to(pattern.device), pattern.device_mesh, pattern.placements)
    return whole.to(pattern.device)


def by_layout(named: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """Names of tensors that one kernel can take together: whole ones, and those sharded in this or that way."""
    found: dict[Any, list[str]] = {}
    for name, tensor in named.items():
        found.setdefault(getattr(tensor, "placements", None), []).append(name)
    return list(found.values())


def resolve_device(name: str, local_rank: int) -> torch.device:
    """`auto` is CUDA, then Apple's GPU, then the CPU; `cuda` under torchrun is the local rank's device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            "engine.device asks for CUDA, which torch does not find here",
            where="engine.device",
            value=name,
            fix="set engine.device=auto, or install a CUDA build of torch (`trivium doctor` says more)",
        )
    device = torch.device(name if ":" in name or name != "cuda" else f"cuda:{local_rank}")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device
