"""Machines by description: what a run would need elsewhere, before anybody rents it.

A description is a small YAML file, or one of the built-in ones. Its figures are those of the maker: matrix peaks
are dense (without sparsity), in the arithmetic that Trivium uses (`fp32` is not TF32), links count one direction.

Time is not a fact but an assumption. It follows from the model FLOPs utilisation, the share of the matrix peak that
the model's own operations make use of (Chowdhery et al. 2022, arXiv:2204.02311, appendix B), so it comes as a range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError, model_validator

from trivium.config import StrictModel
from trivium.core.plan import Machine, describe_machine, flops_per_token
from trivium.errors import ConfigError

if TYPE_CHECKING:
    from trivium.core.plan import Forecast
    from trivium.models.config import ModelConfig
    from trivium.recipe import Recipe

GIB = 1 << 30
CUDA_CONTEXT = 600 << 20
"""What a process takes on a GPU before its first tensor, about."""
UTILISATION = {"cuda": (0.2, 0.38, 0.55), "cpu": (0.3, 0.55, 0.75)}
"""Model FLOPs utilisation: low, typical, high.

GPUs: published runs lie between 0.21 (GPT-3) and 0.46 (PaLM; both arXiv:2204.02311, table 3), Llama 3 at 0.38 to 0.43
(arXiv:2407.21783, table 4), Megatron-LM at up to 0.52 (arXiv:2104.04473). CPU: measured on one core, llama-1m 0.45,
llama-3m 0.60, llama-10m 0.63; narrower models less.
"""
LAUNCH_SECONDS = (2e-4, 5e-4, 1e-3)
"""Least time of one block for one micro-batch on a GPU: some 75 kernels, each started by the CPU in 3 to 13 us."""
HERE = "here"


class MachineDescription(StrictModel):
    """One machine: its devices, and what they can do."""

    name: str = Field(min_length=1)
    """What to call it."""
    kind: Literal["cuda", "cpu"]
    """GPUs, or the processor with all of its cores as one device."""
    devices: int = Field(1, ge=1, le=1 << 20)
    """Devices that can train together: one process each."""
    cores: int = Field(1, ge=1)
    """Processor cores."""
    memory_gib: float = Field(gt=0)
    """Memory of each device, in GiB."""
    disk_gib: float | None = Field(None, gt=0)
    """Free disk space in GiB, if it is to be checked."""
    peak_tflops: dict[Literal["fp32", "bf16", "fp16", "fp8"], float]
    """Matrix peak of one device in TFLOP/s, by precision, dense."""
    link_gb_per_second: float | None = Field(None, gt=0)
    """Bandwidth between two devices in one direction, in GB/s; needed for more than one device."""
    network_gb_per_second: float | None = Field(None, gt=0)
    """Bandwidth of one device to other machines in one direction, in GB/s; for `trivium plan scale`."""
    latency_us: float = Field(10.0, gt=0)
    """Microseconds of one message between two devices."""
    utilisation: tuple[float, float, float] | None = None
    """Model FLOPs utilisation to assume: low, typical, high."""
    price_per_hour: float | None = Field(None, ge=0)
    """Price of the whole machine for one hour."""
    currency: str = "USD"
    """Of the price."""
    source: str = ""
    """Where the figures come from."""

    @model_validator(mode="after")
    def _sensible(self) -> MachineDescription:
        if not self.peak_tflops or any(not peak > 0 for peak in self.peak_tflops.values()):
            raise ValueError("peak_tflops needs at least one precision, each greater than 0")
        if self.devices > 1 and self.link_gb_per_second is None:
            raise ValueError("several devices need link_gb_per_second")
        low, typical, high = self.shares
        if not 0 < low <= typical <= high <= 1:
            raise ValueError("utilisation needs three shares between 0 and 1: low, typical, high")
        return self

    @property
    def shares(self) -> tuple[float, float, float]:
        """Utilisation as given, or what is usual."""
        return self.utilisation or UTILISATION[self.kind]

    def peak(self, precision: str) -> float:
        """FLOP/s of one device; ConfigError if this machine does not have the precision."""
        for name, tflops in self.peak_tflops.items():
            if name == precision:
                return tflops * 1e12
        raise ConfigError(
            f"{self.name} has no matrix peak for {precision}",
            where="train.precision",
            value=precision,
            fix=f"use one of {', '.join(self.peak_tflops)}, or add it to peak_tflops of the machine",
        )

    def machine(self) -> Machine:
        """One device as the memory plan sees it."""
        taken = CUDA_CONTEXT if self.kind == "cuda" else 0
        disk = math.inf if self.disk_gib is None else self.disk_gib * GIB
        return Machine(self.kind, self.cores, round(self.memory_gib * GIB), taken, disk)  # type: ignore[arg-type]


_HOPPER = {"fp32": 66.9, "bf16": 989.4, "fp16": 989.4, "fp8": 1978.9}
BUILT_IN: dict[str, dict[str, Any]] = {
    "h100-8": {
        "kind": "cuda",
        "devices": 8,
        "memory_gib": 80,
        "peak_tflops": _HOPPER,
        "link_gb_per_second": 450,
        "network_gb_per_second": 50,
        "source": "NVIDIA H100 datasheet, SXM5: dense peaks, 80 GB, NVLink 900 GB/s in both directions together; "
        "DGX H100 datasheet: 400 Gb/s of network for each GPU",
    },
    "h100": {
        "kind": "cuda",
        "memory_gib": 80,
        "peak_tflops": _HOPPER,
        "source": "NVIDIA H100 datasheet, SXM5: dense peaks, 80 GB",
    },
    "a100-80g": {
        "kind": "cuda",
        "memory_gib": 80,
        "peak_tflops": {"fp32": 19.5, "bf16": 312, "fp16": 312},
        "source": "NVIDIA A100 datasheet, 80 GB SXM: dense peaks",
    },
    "a100-80g-8": {
        "kind": "cuda",
        "devices": 8,
        "memory_gib": 80,
        "peak_tflops": {"fp32": 19.5, "bf16": 312, "fp16": 312},
        "link_gb_per_second": 300,
        "network_gb_per_second": 25,
        "source": "NVIDIA A100 datasheet, 80 GB SXM: dense peaks, NVLink 600 GB/s in both directions together; "
        "DGX A100 datasheet: 200 Gb/s of network for each GPU",
    },
    "h200": {
        "kind": "cuda",
        "memory_gib": 141,
        "peak_tflops": _HOPPER,
        "source": "NVIDIA H200 datasheet, SXM: dense peaks, 141 GB",
    },
    "b200": {
        "kind": "cuda",
        "memory_gib": 180,
        "peak_tflops": {"fp32": 75, "bf16": 2250, "fp16": 2250, "fp8": 4500},
        "source": "NVIDIA Blackwell datasheet, HGX B200: half of the peaks with sparsity, 180 GB",
    },
    "laptop": {
        "kind": "cpu",
        "cores": 4,
        "memory_gib": 14,
        "peak_tflops": {"fp32": 0.384},
        "price_per_hour": 0,
        "source": "arithmetic: 4 cores x 3 GHz x 32 FLOP a cycle (AVX2, two units); 16 GiB less 2 for the system",
    },
}
"""Machines by name. Prices differ between providers and change: give one with --price or in a file."""


def load_machine(which: str, *, folder: Path = Path(), recipe: Recipe | None = None) -> MachineDescription:
    """A built-in description, `here`, or the file `which`; ConfigError for anything else.

    folder: of the runs, whose disk counts on this machine.  recipe: whose device and precision are measured on it.
    """
    if which == HERE:
        device = "auto" if recipe is None else recipe.engine.device
        return describe_here(folder, device=device, precision="fp32" if recipe is None else recipe.train.precision)
    if which in BUILT_IN:
        return MachineDescription(name=which, **BUILT_IN[which])
    if Path(which).suffix not in (".yaml", ".yml") and not Path(which).exists():
        from trivium.nearest import nearest

        names = [HERE, *BUILT_IN]
        near = nearest(which, names)
        fix = f"did you mean {near}?" if near else f"choose one of {', '.join(names)}, or name a YAML file"
        raise ConfigError("there is no machine of this name", where="--machine", value=which, fix=fix)
    return read_machine(Path(which))


def read_machine(path: Path) -> MachineDescription:
    """The description in a YAML file; unknown keys and wrong values are refused with their line."""
    from trivium.marked_yaml import read_yaml
    from trivium.problems import fields_below, problems_of, raise_first

    tree = read_yaml(path)
    if not isinstance(tree.value, dict):
        raise ConfigError(
            "a machine consists of 'key: value' lines", where=tree.where, fix="see `trivium plan time --help`"
        )
    try:
        return MachineDescription.model_validate(tree.plain())
    except ValidationError as error:
        known = dict(fields_below(MachineDescription))
        raise_first(problems_of(error, MachineDescription, tree, prefix=(), known=known))
        raise


def describe_here(folder: Path = Path(), *, device: str = "auto", precision: str = "fp32") -> MachineDescription:
    """This machine, its matrix peak measured for a fraction of a second."""
    from trivium.core.float8 import has_float8, refuse_without_float8
    from trivium.core.progress import matrix_peak
    from trivium.lazy import torch

    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    kind: Literal["cuda", "cpu"] = "cuda" if cuda else "cpu"
    found = describe_machine(folder, device=kind)
    dtypes = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    if precision == "fp8":  # beside bf16, in which a part of the work is done
        refuse_without_float8(torch.device(kind))
        dtypes["fp8"] = "float8_e4m3fn" if has_float8(torch.device(kind)) else "float32"
    measured = ("bf16", "fp8") if precision == "fp8" else (precision,)
    return MachineDescription(
        name=HERE,
        kind=kind,
        devices=torch.cuda.device_count() if cuda else 1,
        cores=found.cores,
        memory_gib=found.memory_bytes / GIB,
        disk_gib=found.disk_free_bytes / GIB,
        peak_tflops={name: matrix_peak(kind, dtypes[name]) / 1e12 for name in measured},
        link_gb_per_second=32.0 if cuda else None,
        price_per_hour=0.0,
        source=f"measured now: a plain matrix product with {torch.get_num_threads()} threads",
    )


@dataclass(frozen=True)
class Range:
    """Seconds, best to worst."""

    low: float
    typical: float
    high: float

    def scaled(self, factor: float) -> Range:
        """Each of them times `factor`."""
        return Range(self.low * factor, self.typical * factor, self.high * factor)


def update_seconds(
    config: ModelConfig, recipe: Recipe, plan: Forecast, description: MachineDescription, *, ranks: int
) -> Range:
    """Seconds of one update.

    compute = FLOPs / (R peak utilisation), a third more with activation checkpointing, times the pipeline's bubble
    talk    = bytes that each process sends / bandwidth, hidden behind the compute at best and typically, added at
              worst; under `tensor` never hidden
    floor   = on GPUs, the time in which the CPU can start the kernels
    """
    flops = plan.flops / plan.steps * (4 / 3 if plan.memory.checkpointing else 1.0)
    peak = usable_peak(config, recipe, description) * ranks
    micros = math.ceil(plan.memory.rows / plan.memory.micro_rows)
    bubble = (micros + ranks - 1) / micros if recipe.engine.name == "pipeline" else 1.0
    talk = sent_bytes(config, recipe, plan, ranks=ranks, micros=micros) / ((description.link_gb_per_second or 1) * 1e9)
    blocks = config.num_layers + (config.num_decoder_layers or 0)
    floors = [micros * blocks * each if description.kind == "cuda" else 0.0 for each in LAUNCH_SECONDS]
    best, usual, worst = (bubble * flops / (peak * share) for share in reversed(description.shares))
    if recipe.engine.name == "tensor":
        return Range(*(max(each + talk, floor) for each, floor in zip((best, usual, worst), floors, strict=True)))
    return Range(max(best, talk, floors[0]), max(usual, talk, floors[1]), max(worst + talk, floors[2]))


def usable_peak(config: ModelConfig, recipe: Recipe, description: MachineDescription) -> float:
    """FLOP/s of one device at the precision of the recipe.

    Of FP8 that is less than its own peak: attention, the head and experts stay in bf16, and their time adds up.
    """
    peak = description.peak(recipe.train.precision)
    if recipe.train.precision != "fp8":
        return peak
    half = description.peak_tflops.get("bf16", peak / 2e12) * 1e12
    share = min(
        1.0, 6 * float8_parameters(config) / flops_per_token(config, sequence_tokens=recipe.data.sequence_length)
    )
    return 1 / (share / peak + (1 - share) / half)


def float8_parameters(config: ModelConfig) -> int:
    """Parameters of the matrices that FP8 multiplies by (`trivium.core.float8`): of the blocks, but not of experts."""
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attention = config.hidden_size * (2 * queries + 2 * keys)
    mlp = 0 if config.experts else (3 if config.mlp == "gated" else 2) * config.hidden_size * config.intermediate_size
    decoder = config.num_decoder_layers or 0
    return (config.num_layers + decoder) * (attention + mlp) + decoder * attention


def sent_bytes(config: ModelConfig, recipe: Recipe, plan: Forecast, *, ranks: int, micros: int) -> float:
    """Bytes that one process sends in an update (ring algorithms).

    ddp: 2 (R - 1) / R of the gradients. fsdp2: (R - 1) / R of the weights twice in each micro-batch, and of the
    gradients once. tensor: four all-reduces of the hidden states in each block. pipeline: hidden states forward and
    their gradients backward.
    """
    others = (ranks - 1) / ranks
    half = recipe.train.precision != "fp32"
    tokens = recipe.train.batch_size * recipe.data.sequence_length
    match recipe.engine.name:
        case "ddp":
            return 2 * others * 4 * plan.trainable_parameters
        case "fsdp2":
            return others * (2 * micros * (2 if half else 4) * plan.parameters + 4 * plan.trainable_parameters)
        case "tensor":
            blocks = config.num_layers + (config.num_decoder_layers or 0)
            return 4 * blocks * 2 * others * tokens * config.hidden_size * (2 if half else 4)
        case "pipeline" if ranks > 1:
            return 2 * tokens * config.hidden_size * (2 if half else 4)
    return 0.0
