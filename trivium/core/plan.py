"""What a run will need - memory, disk, work, time - before it starts, and how right that was afterwards.

Everything here is arithmetic on the shape of the model and the recipe; no torch is needed. Two figures are measured
rather than derived: the constants of the memory model (see `Memory plan` below, measured with our allocator and
torch 2.13 on a CPU, `tests/unit/test_plan_measured.py` measures again), and the time of an update, which the caller
takes from a few real ones.

Memory plan of one process, in bytes (T tokens in a micro-batch, L blocks, D width, Q and K width of all query and
key/value heads, I width inside the MLP, V vocabulary, b bytes of a master weight, P parameters, P' trainable ones):

    runtime      interpreter and libraries before the model is built + 33 MiB that torch takes at its first update
    weights      b P, frozen roles included, of a quantised base what its codes and scales take; + 2 P for the copies
                 that autocast keeps in half precision
    gradients    b P' at the end of a backward pass; kept between micro-batches
    optimiser    2 b P' (Adam's two moments); each optimiser says how much in `state_bytes`; + b P' with `train.ema`;
                 on a GPU nothing with `train.offload`
    activations  T * (L * block + 2 b D + block), the last for the gradients of the block at work; b is 4 at least on a
                 CPU, where torch's norms of fewer bytes keep more; blocks below the first trained parameter keep
                 nothing, the last one what its trained tokens need if they are few.
                 block counts the tensors each operation keeps for its backward pass:
                   fp32              b (2 D + 2 Q + 2 K + M)   (inputs of two norms; q, k, v, attention; MLP);
                                     4 D instead of 2 D where the results of the norms are kept too: on a GPU, in a
                                     model of half precision, by tensor parallelism
                   MLP               M = I, gated 2 I; I more where what its last layer reads is kept, in half precision
                                     or for an adapter; of a mixture the experts of one token, and the routing
                   half precision    under autocast the residual stream stays in b bytes, inputs of matrices take 2
                   encoder-decoder   a token is a source or a target, half of them each unless counted; sources pass the
                                     encoder, and the decoder keeps their keys and values
                 with activation checkpointing T * (L * b D + 2 b D + 2 block): the inputs, and the block computed
                 again; of attention or the MLP alone, their part of the block less, and 4 times that part again
    loss         the largest chunk of logits (three times without our kernels), and the gradient of the head
    embedding    its gradient, before it is added to that of the head it is tied to; nothing where one is formed for
                 both (on a CPU)

    peak = runtime + weights + optimiser + max(activations + loss [+ 2 gradients], gradients + embedding)

Several processes (R of them, each with its share of the rows):

    ddp          the gradients stay allocated between updates: + gradients during the forward pass
    fsdp2        weights, gradients and optimiser / R; + two gathered blocks and what stands around the blocks, with
                 their gradients
    tensor       embedding and head whole, the rest / R; in blocks Q, K and I / R; all rows pass through it
    pipeline     the largest stage: L / R blocks with embedding and head; all rows pass through it, several
                 micro-batches at a time (R with 1f1b, all of them with gpipe)

Our allocator of large tensors holds hardly more than is in use on a CPU, so their factor is 1; where it cannot be
compiled the C library leaves holes, and 1.4 is taken; CUDA's caching allocator is taken at 1.1. Compiled blocks keep
fewer activations: the plan is then an upper bound. Calibrated by measurement is one process on a CPU; CUDA, several
processes, experts and encoder-decoders follow from the formulas.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium.core.progress import memory_bytes, readable_bytes
from trivium.core.tensor_shapes import local_shape
from trivium.errors import ConfigError
from trivium.registry import component
from trivium.threads import usable_cores

if TYPE_CHECKING:
    from trivium.models.config import ModelConfig
    from trivium.recipe import Recipe

MIB = 1 << 20
IMPORTED = 230 * MIB
"""Resident memory of a process that has imported torch and nothing else."""
FIRST_UPDATE = 33 * MIB
"""What torch takes beyond tensors until the first optimiser step is done."""
CPU_FACTOR, TORN_FACTOR, CUDA_FACTOR = 1.0, 1.4, 1.1
RECOMPUTED_BLOCKS, RECOMPUTED_PARTS = 2.0, 4.0
FEW_TRAINED, LEFT_OUT = 0.75, 0.8
"""Share of trained tokens below which the last block is run for them alone, and what of it that spares."""
LOGITS_CHUNKS = {"cpu": (256, 1 << 21), "cuda": (1024, 1 << 27)}
"""Least tokens in a chunk of logits, and the logits it is filled up to: `losses.tokens.CHUNKS`, without torch."""
CHECKPOINT_BYTES_PER_SECOND = 2.5e8
"""Writing, hashing and flushing on an ordinary SSD."""
MARGIN = 0.95
"""Share of the memory that a run may plan to use."""

_MASTER_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Machine:
    """What there is to compute with.

    memory_bytes:    what this process may use in all, on the device that trains.
    process_bytes:   what it uses already (resident memory). Describe the machine before the model is built: what
                     the run itself holds would be counted twice.
    disk_free_bytes: on the file system of the runs.
    whole_blocks:    large tensors on a CPU have an allocator that leaves no holes (`trivium.models.allocator`).
    """

    device: str
    cores: int
    memory_bytes: int
    process_bytes: int
    disk_free_bytes: int
    whole_blocks: bool = True


def describe_machine(folder: Path = Path(), *, device: str = "cpu") -> Machine:
    """The machine as it is now; a CUDA device is looked at only if torch has been imported."""
    cores = usable_cores()
    there = next(place for place in (folder.resolve(), *folder.resolve().parents) if place.exists())
    process = memory_bytes().current
    memory = _free_memory() + process
    torch = sys.modules.get("torch")
    if device.startswith("cuda") and torch is not None:
        memory, process = int(torch.cuda.mem_get_info(device)[0]), 0
    native = sys.modules.get("trivium.models.native")
    whole = native is None or native.allocator() is not None
    return Machine(device, cores, memory, process, shutil.disk_usage(there).free, whole)


def _free_memory() -> int:
    """Bytes that can still be allocated without swapping, inside the limit of a container."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return free
    return free if limit == "max" else min(free, max(0, int(limit) - int(used)))


@dataclass(frozen=True)
class Held:
    """What the policy holds, where that is not all of it as trained parameters in full.

    trainable:     parameters that train, None for all.
    virtual:       tokens of soft prompts and prefixes, in each row, beside `data.sequence_length`.
    weight_bytes:  of all parameters and buffers, None for those of the shape; less with a quantised base.
    depth:         share of the blocks that stand at or above the first parameter that trains: the others keep nothing.
    inner:         adapters read what stands inside of MLPs.
    """

    trainable: int | None = None
    virtual: float = 0
    weight_bytes: int | None = None
    depth: float = 1.0
    inner: bool = False


@dataclass(frozen=True)
class Kept:
    """What operations keep for their backward pass.

    each:  bytes of a number, outside of autocast.
    half:  autocast computes in half precision.
    inner: MLPs keep what their last layer reads.
    norms: the results of norms are kept too.
    """

    each: int
    half: bool = False
    inner: bool = False
    norms: bool = False


@dataclass(frozen=True)
class MemoryPlan:
    """The parts of the peak, in bytes of one process; see the file docstring.

    activations_per_row: of one row of `data.sequence_length` tokens.
    checkpointed_per_row: the same with activation checkpointing.
    gathered: weights that `fsdp2` puts together for the blocks at work, with their gradients.
    buckets:  gradients that `ddp` keeps between updates.
    """

    runtime: int
    weights: int
    gradients: int
    optimizer: int
    activations_per_row: int
    checkpointed_per_row: int
    loss: int
    embedding: int
    micro_rows: int
    rows: int
    checkpointing: bool
    factor: float
    gathered: int = 0
    buckets: int = 0

    @property
    def activations(self) -> int:
        """What one micro-batch keeps for its backward pass."""
        return self.micro_rows * (self.checkpointed_per_row if self.checkpointing else self.activations_per_row)

    @property
    def peak(self) -> int:
        """The largest sum at any moment of an update."""
        kept = 2 * self.gradients if self.micro_rows < self.rows else self.buckets
        forward = self.factor * self.activations + self.loss + kept
        backward = self.gradients + self.embedding
        return round(self.runtime + self.weights + self.optimizer + self.gathered + max(forward, backward))

    def rows_that_fit(self, memory: float, *, checkpointing: bool) -> int:
        """The largest micro-batch, in rows, whose peak is at most `memory`; 0 if not even one row fits."""
        low, high = 0, self.rows
        while low < high:
            middle = (low + high + 1) // 2
            fits = replace(self, micro_rows=middle, checkpointing=checkpointing).peak <= memory
            low, high = (middle, high) if fits else (low, middle - 1)
        return low


@dataclass(frozen=True)
class Forecast:
    """What a run will need.

    flops:   of the model, forward and backward (activation checkpointing computes a third more).
    seconds: to the end from its start, None if neither the time of an update nor FLOP/s are known.
    basis:   where `seconds` comes from.
    """

    parameters: int
    trainable_parameters: int
    steps: int
    tokens: int
    flops: float
    memory: MemoryPlan
    checkpoint_bytes: int
    disk_bytes: int
    seconds: float | None
    basis: str

    def as_dict(self) -> dict[str, Any]:
        """JSON values; `forecast.json` holds them under `forecast`."""
        plain = asdict(self)
        plain["memory"]["activations"] = self.memory.activations
        plain["peak_memory_bytes"] = self.memory.peak
        return plain


def forecast(
    config: ModelConfig,
    recipe: Recipe,
    *,
    steps: int,
    machine: Machine,
    fill: float = 1.0,
    trained_share: float = 1.0,
    held: Held | None = None,
    frozen_roles: float = 0,
    frozen_copies: float | None = None,
    source_share: float = 0.5,
    ranks: int = 1,
    sequence_tokens: float | None = None,
    validation_tokens: int = 0,
    seconds_per_update: float | None = None,
    flops_per_second: float | None = None,
) -> Forecast:
    """Needs of a run of `steps` updates.

    fill:               share of the rows that holds tokens (`Loader.packing_efficiency`).
    trained_share:      share of those tokens that is trained, which is what a run counts (answers, not questions).
    held:               what transforms make of the policy.
    frozen_roles:       further models that only run forward (a reference, a teacher), in multiples of this one.
    frozen_copies:      the same without those that share the policy's weights.
    source_share:       of the tokens of an encoder-decoder.
    ranks:              processes; see the file docstring for what each engine shares among them.
    sequence_tokens:    mean length of the sequences inside the rows, for the cost of attention; default: a whole row.
    validation_tokens:  tokens in one validation.
    seconds_per_update: measured, after the first few updates (compilation, first touch of memory).
    flops_per_second:   assumed instead, where nothing was measured.
    """
    parameters = config.parameters()
    held = held or Held()
    trained = parameters if held.trainable is None else held.trainable
    copies = frozen_roles if frozen_copies is None else frozen_copies
    per_update = recipe.train.batch_size * recipe.data.sequence_length * fill
    length = recipe.data.sequence_length if sequence_tokens is None else sequence_tokens
    per_token = flops_per_token(config, sequence_tokens=length, trainable=trained, frozen_roles=frozen_roles)
    shares = {"fill": fill, "trained_share": trained_share, "source_share": source_share}
    memory = plan_memory(config, recipe, machine=machine, held=held, frozen_copies=copies, ranks=ranks, **shares)
    size = checkpoint_size(config, recipe, trainable=trained)
    # One more than is kept: the next is written before the oldest goes.
    kept = min(recipe.train.keep_checkpoints + 1, _times(steps, recipe.train.checkpoint_every))
    disk = kept * size + _MASTER_BYTES[recipe.model.dtype] * parameters
    basis = "no measurement" if seconds_per_update is None else "measured updates"
    if seconds_per_update is None and flops_per_second is not None:
        again = 4 / 3 if memory.checkpointing else 1.0
        seconds_per_update = again * per_token * per_update / flops_per_second / ranks
        basis = f"{flops_per_second / 1e9:.0f} GFLOP/s assumed"
    return Forecast(
        parameters=parameters,
        trainable_parameters=trained,
        steps=steps,
        tokens=round(steps * per_update * trained_share),
        flops=per_token * (per_update + recipe.train.batch_size * held.virtual) * steps,
        memory=memory,
        checkpoint_bytes=size,
        disk_bytes=disk,
        seconds=_seconds(recipe, steps, seconds_per_update, per_update, validation_tokens, size),
        basis=basis,
    )


def flops_per_token(
    config: ModelConfig, *, sequence_tokens: float, trainable: int | None = None, frozen_roles: float = 0
) -> float:
    """Floating-point operations of one update for each token (Kaplan et al. 2020, arXiv:2001.08361, section 2.1).

    A parameter of a matrix costs 2 in the forward pass, 2 for the gradient of its input and, if it is trained, 2 for
    its own gradient: 6 N in full training. Attention adds 4 Q times the tokens that are seen in each block, and twice
    that backward. In an encoder-decoder every token is counted in both stacks, an upper bound.
    """
    matrices = matrix_parameters(config)
    attention = 4 * config.num_heads * config.head_dim * _tokens_seen(config, sequence_tokens)
    trained = matrices if trainable is None else min(matrices, trainable)
    return 4 * matrices + 2 * trained + 3 * attention + frozen_roles * (2 * matrices + attention)


def matrix_parameters(config: ModelConfig) -> int:
    """Parameters that a token is multiplied with: N of 6 N D.

    Left out are tables that are only looked up (untied embeddings, learned positions) and the experts that a token
    does not pass.
    """
    width, stacks = config.hidden_size, 1 if config.num_decoder_layers is None else 2
    found = config.parameters() - config.token_types * config.embedding_width
    if not (config.tie_embeddings and config.head in ("language", "masked")):
        found -= config.vocab_size * config.embedding_width
    if config.positions == "learned":
        found -= stacks * (config.max_positions + config.position_offset) * config.embedding_width
    if config.positions == "relative":
        found -= stacks * config.relative_buckets * config.num_heads
    if config.experts:
        passed = config.model_copy(update={"experts": config.experts_per_token}).parameters()
        idle = config.experts - config.experts_per_token
        routing = (config.num_layers + (config.num_decoder_layers or 0)) * idle * width
        found -= config.parameters() - passed - routing
    return found


def _tokens_seen(config: ModelConfig, length: float) -> float:
    """Tokens that one token attends to, on average in sequences of `length`, summed over all blocks."""
    causal = (length + 1) / 2
    own = causal if config.kind == "decoder" else length
    window = config.sliding_window or math.inf
    seen = sum(min(own, window) if config.slides(layer) else own for layer in range(config.num_layers))
    return seen + (config.num_decoder_layers or 0) * (causal + length)


def plan_memory(
    config: ModelConfig,
    recipe: Recipe,
    *,
    machine: Machine,
    held: Held | None = None,
    frozen_copies: float = 0,
    ranks: int = 1,
    fill: float = 1.0,
    trained_share: float = 1.0,
    source_share: float = 0.5,
) -> MemoryPlan:
    """The parts of the peak of one process; formulas in the file docstring."""
    held = held or Held()
    engine, kind = recipe.engine.name, machine.device.partition(":")[0]
    each = _MASTER_BYTES[recipe.model.dtype]
    half = recipe.train.precision != "fp32"
    share = _share(config, engine, ranks)
    parameters = round(config.parameters() * share)
    trained = parameters if held.trainable is None else round(held.trainable * share)
    row = recipe.data.sequence_length
    rows, micro_rows = _rows(recipe, ranks)
    inside = local_shape(config, ranks) if engine == "tensor" else config
    norms = half or each < 4 or kind != "cpu" or engine == "tensor"
    keeps = Kept(each if kind == "cuda" else max(4, each), half=half, inner=half or held.inner, norms=norms)
    blocks, block, inputs = _blocks(inside, keeps, source_share=source_share)
    blocks, inputs = held.depth * blocks, held.depth * inputs
    if trained_share < FEW_TRAINED and config.kind != "encoder_decoder" and not config.experts:
        blocks -= (1 - trained_share) * LEFT_OUT * block  # the last block, run for trained tokens only
    kept, again = _checkpointed(inside, recipe, keeps, blocks=blocks, block=block, inputs=inputs, depth=held.depth)
    ends = keeps.each * 2 * config.hidden_size
    flying = _flying(recipe, ranks, math.ceil(rows / micro_rows)) if engine == "pipeline" else 1.0
    logits, head = _chunk(config, kind, micro_rows * row), 4 * config.vocab_size * config.embedding_width
    offloaded, copies = recipe.train.offload in ("optimizer", "all"), 2 * parameters if half else 0
    if offloaded and kind != "cuda":  # the state is still there, beside copies of the weights
        offloaded, copies = False, copies + each * trained
    if kind == "cuda" and recipe.train.offload in ("activations", "all"):
        blocks = 2.0 * block  # one at work, one on its way
    chunks = 1 if kind == "cpu" and machine.whole_blocks and not half else 3  # without our kernels logits are copied
    weights = each * parameters
    if held.weight_bytes is not None:
        weights = round(held.weight_bytes * share * each / 4)
    runtime = machine.process_bytes if kind == "cuda" else max(machine.process_bytes, IMPORTED) + FIRST_UPDATE
    plan = MemoryPlan(
        runtime=runtime,
        weights=round(weights + each * frozen_copies * config.parameters()) + copies,
        gradients=each * trained,
        optimizer=0 if offloaded else state_bytes(config, recipe, trained=trained),
        activations_per_row=round((row * fill + held.virtual) * (flying * blocks + block + ends)),
        checkpointed_per_row=round((row * fill + held.virtual) * (flying * kept + again + ends)),
        loss=4 * chunks * logits + (head if logits else 0),
        embedding=0 if kind == "cpu" and config.tie_embeddings else head,
        micro_rows=micro_rows,
        rows=rows,
        checkpointing=recipe.train.activation_checkpointing != "none",
        factor=CUDA_FACTOR if kind == "cuda" else CPU_FACTOR if machine.whole_blocks else TORN_FACTOR,
        gathered=_gathered(config, each=2 if half else each) if engine == "fsdp2" and ranks > 1 else 0,
        buckets=each * trained if engine == "ddp" and ranks > 1 else 0,
    )
    if recipe.train.micro_batch_size == "auto":
        fitting = plan.rows_that_fit(MARGIN * machine.memory_bytes, checkpointing=plan.checkpointing)
        plan = replace(plan, micro_rows=max(1, fitting))
    return plan


def _rows(recipe: Recipe, ranks: int) -> tuple[int, int]:
    """Rows of one process in (an update, a micro-batch); all of them where the ranks share one copy of the model."""
    rows = max(1, recipe.train.batch_size // (1 if recipe.engine.name in ("pipeline", "tensor") else ranks))
    return rows, min(recipe.train.micro_rows or rows, rows)


def _flying(recipe: Recipe, ranks: int, micros: int) -> float:
    """Micro-batches whose activations a stage of a pipeline holds, for its share of the blocks."""
    return (min(ranks, micros) if recipe.engine.pipeline_schedule == "1f1b" else micros) / ranks


def _chunk(config: ModelConfig, kind: str, tokens: int) -> int:
    """Logits of the largest chunk; 0 without a head over the vocabulary."""
    if config.head not in ("language", "masked"):
        return 0
    least, filled = LOGITS_CHUNKS.get(kind, LOGITS_CHUNKS["cpu"])
    return min(tokens, max(least, filled // config.vocab_size)) * config.vocab_size


def _share(config: ModelConfig, engine: str, ranks: int) -> float:
    """Share of the parameters that one process holds; of a pipeline the largest stage, and always both ends."""
    if engine == "fsdp2":
        return 1 / ranks
    if engine in ("pipeline", "tensor"):
        around = _around(config)
        return (around + (config.parameters() - around) / ranks) / config.parameters()
    return 1.0


def _around(config: ModelConfig) -> int:
    """Parameters that stand around the blocks: embedding and head, about."""
    own_head = config.head in ("language", "masked") and not config.tie_embeddings
    return config.vocab_size * config.embedding_width * (2 if own_head else 1)


def _gathered(config: ModelConfig, *, each: int) -> int:
    """Bytes of the weights that `fsdp2` has put together at a time, and of their gradients (4 bytes)."""
    around = _around(config)
    block = (config.parameters() - around) / (config.num_layers + (config.num_decoder_layers or 0))
    return round(each * (2 * block + around) + 4 * (block + around))


def _blocks(config: ModelConfig, kept: Kept, *, source_share: float) -> tuple[float, float, float]:
    """Bytes that one token leaves: (in all blocks, in the largest block, as inputs of all blocks)."""
    block, _ = activation_bytes(config, kept)
    width, decoder, each = config.hidden_size, config.num_decoder_layers or 0, kept.each
    if not decoder:
        return config.num_layers * block, block, each * width * config.num_layers
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    # Of a target, and of a source in each block of the decoder.
    own, seen = (1 + kept.norms) * width + 2 * queries, 2 * keys
    cross, memory = (each * width + 2 * (width + own), 2 * (width + seen)) if kept.half else (each * own, each * seen)
    target = 1 - source_share
    blocks = source_share * (config.num_layers * block + decoder * memory) + target * decoder * (block + cross)
    passed = source_share * config.num_layers + target * decoder
    return blocks, block + target * cross, each * width * passed


def _checkpointed(
    config: ModelConfig,
    recipe: Recipe,
    keeps: Kept,
    *,
    blocks: float,
    block: float,
    inputs: float,
    depth: float,
) -> tuple[float, float]:
    """Bytes of one token with the activation checkpointing of the recipe: (kept in all blocks, computed again)."""
    what, every = recipe.train.activation_checkpointing, recipe.train.checkpoint_every_block
    layers = config.num_layers + (config.num_decoder_layers or 0)
    share = math.ceil(layers / every) / layers
    if what in ("none", "block"):  # none: what `block` would need, for advice
        return share * inputs + (1 - share) * blocks, RECOMPUTED_BLOCKS * block
    heads, mlp = _branches(config, inner=keeps.inner)
    part = (2 if keeps.half else keeps.each) * (mlp if what == "mlp" else heads)
    return blocks - depth * share * layers * part, block + RECOMPUTED_PARTS * part


def activation_bytes(config: ModelConfig, kept: Kept) -> tuple[int, int]:
    """Bytes that one token leaves for the backward pass: (in each block, around the blocks)."""
    width, each = config.hidden_size, kept.each
    heads, mlp = _branches(config, inner=kept.inner)
    count = 1 if config.parallel == "one_norm" else 4 if config.norm_placement == "both" else 2
    read = 0 if config.norm_placement == "output" else min(count, 2)  # by linear layers, which can make them again
    # In half precision each of q, k, v and of gate, up keeps a converted copy of its input.
    stream = 2 * count - (0 if kept.norms else read)
    converted = each * count * width + 2 * (5 * width + heads + mlp)
    block = converted if kept.half else each * (stream * width + heads + mlp)
    if config.dropout:
        block += 2 * (each * width + width)  # the values scaled, and the mask
    return block, each * 2 * width


def _branches(config: ModelConfig, *, inner: bool) -> tuple[int, int]:
    """Numbers of one token that (attention, the MLP) of a block keep for their backward pass."""
    width = config.hidden_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    mlp = ((2 if config.mlp == "gated" else 1) + inner) * config.intermediate_size
    if config.experts:  # each expert's input and result are gathered for its tokens
        mlp = config.experts_per_token * (mlp + 2 * width) + 2 * config.experts
    return 2 * queries + 2 * keys, mlp


def checkpoint_size(config: ModelConfig, recipe: Recipe, *, trainable: int | None = None) -> int:
    """Bytes of one checkpoint: weights, and the optimiser's state of what trains."""
    trained = config.parameters() if trainable is None else trainable
    return _MASTER_BYTES[recipe.model.dtype] * config.parameters() + state_bytes(config, recipe, trained=trained)


def state_bytes(config: ModelConfig, recipe: Recipe, *, trained: int) -> int:
    """Bytes that the optimiser keeps between updates for so many trained parameters, and a moving average of them."""
    settings = dict(recipe.train.optimizer)
    cls = component("optim", settings.pop("name"), outside=True)
    optimizer = cls(cls.Config.model_validate(settings))
    each = _MASTER_BYTES[recipe.model.dtype]
    hidden = 1 - _around(config) / config.parameters()
    # An optimiser from outside of this package may not say.
    size = optimizer.state_bytes(each, hidden) if hasattr(optimizer, "state_bytes") else 2 * each
    return round(trained * (size + (each if recipe.train.ema is not None else 0)))


def _seconds(
    recipe: Recipe, steps: int, update: float | None, update_tokens: float, validation_tokens: int, checkpoint: int
) -> float | None:
    """Updates, validations (a forward pass costs a third of an update) and checkpoints."""
    if update is None:
        return None
    forward = update * validation_tokens / update_tokens / 3
    validating = _times(steps, recipe.train.validate_every) * forward
    saving = _times(steps, recipe.train.checkpoint_every) * checkpoint / CHECKPOINT_BYTES_PER_SECOND
    return steps * update + validating + saving


def _times(steps: int, every: int | None) -> int:
    """How often something happens that is due every `every` updates (default: a tenth of the run) and at the end."""
    return math.ceil(steps / (every or max(1, steps // 10)))


class NoRoom(ConfigError):
    """A run that the memory cannot hold."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or a CPU."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def refuse_if_impossible(plan: Forecast, machine: Machine) -> None:
    """Raise NoRoom or ConfigError, with a setting that fits, if memory or disk cannot hold the run."""
    memory = plan.memory
    allowed = MARGIN * machine.memory_bytes
    if memory.peak > allowed:
        raise NoRoom(
            f"the run needs about {readable_bytes(memory.peak)} of memory, {readable_bytes(machine.memory_bytes)} "
            f"are free on {machine.device}",
            where="train.micro_batch_size",
            value=memory.micro_rows,
            fix=setting_that_fits(memory, allowed),
        )
    if plan.disk_bytes > machine.disk_free_bytes:
        raise ConfigError(
            f"the checkpoints need about {readable_bytes(plan.disk_bytes)} of disk, "
            f"{readable_bytes(machine.disk_free_bytes)} are free",
            where="runs",
            fix="free some space, or set runs=... to a folder on another disk",
        )


def setting_that_fits(memory: MemoryPlan, allowed: float) -> str:
    """A setting with which the peak is at most `allowed` bytes, in words."""
    for extra, checkpointing in (("", memory.checkpointing), (" train.activation_checkpointing=block", True)):
        rows = memory.rows_that_fit(allowed, checkpointing=checkpointing)
        if rows:
            peak = replace(memory, micro_rows=rows, checkpointing=checkpointing).peak
            return f"train.micro_batch_size={rows}{extra} needs about {readable_bytes(peak)}, and gives the same result"
    fixed = replace(memory, micro_rows=1, activations_per_row=0, checkpointed_per_row=0).peak
    return (
        f"not even one row fits (without any activations: {readable_bytes(fixed)}); choose a smaller model.preset "
        "or data.sequence_length"
    )


@dataclass(frozen=True)
class Score:
    """One figure of a forecast beside what happened; `error` is forecast / fact - 1."""

    name: str
    label: str
    forecast: float
    fact: float
    error: float | None


SCORED = {
    "seconds": "Time",
    "peak_memory_bytes": "Peak memory",
    "disk_bytes": "Disk",
    "checkpoint_bytes": "One checkpoint",
    "parameters": "Parameters",
    "steps": "Updates",
    "tokens": "Tokens trained",
    "flops": "Floating-point operations",
}
"""Figures that are compared, in the order of the report."""


def measure(
    run_dir: Path, *, parameters: int, steps: int, tokens: int, seconds: float, keep: int, device: str = "cpu"
) -> dict[str, float]:
    """What a finished run needed, under the names of the forecast; `forecast.json` holds it under `fact`.

    Disk is what the run took at most: one checkpoint more than is kept, while the next was being written.
    """
    sizes = [folder_bytes(path) for path in (run_dir / "checkpoints").glob("step-*")]
    written = len(sizes) + (len(sizes) >= keep)
    checkpoint = max(sizes, default=0)
    return {
        "parameters": parameters,
        "steps": steps,
        "tokens": tokens,
        "seconds": seconds,
        "peak_memory_bytes": memory_bytes(device).peak,
        "checkpoint_bytes": checkpoint,
        "disk_bytes": written * checkpoint + folder_bytes(run_dir / "final"),
    }


def folder_bytes(folder: Path) -> int:
    """Size of all files in a folder and below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def score(forecast: Mapping[str, Any], fact: Mapping[str, Any]) -> list[Score]:
    """The figures that both sides have; `forecast` is `Forecast.as_dict()`, `fact` has the same keys."""
    found = []
    for name, label in SCORED.items():
        planned, happened = forecast.get(name), fact.get(name)
        if isinstance(planned, int | float) and isinstance(happened, int | float):
            error = planned / happened - 1 if happened else None
            found.append(Score(name, label, planned, happened, error))
    return found
