"""The same recipe on many GPUs, computed from what one does: measured seconds and the speed of the links.

Nothing here is measured on many GPUs. It is arithmetic on a measured time of one update on one device, and says what
the links alone leave of it; waiting for slow devices and failures come on top. Symbols: R data-parallel copies, T
devices that share each matrix, S stages of a pipeline, N = R T S devices in nodes of g; m micro-batches of one copy,
each of B tokens; L blocks, D width, P parameters, P' trainable, b bytes of a weight in the arithmetic (2 or 4).

    links       ring over n devices of V bytes, each link in both directions at once
                  gather   all-gather or reduce-scatter   (n - 1) / n V / w + (n - 1) l
                  reduce   all-reduce                     two of them
                over nodes: inside first (k of the ring's devices in a node, w the inner link), then across with V / k
                for each device (w its own share of the network); l latency of one message
    compute     measured seconds, times rows of a copy / rows measured, divided by T S
    tensor      4 all-reduces (2 forward, 2 backward) of b B D in each of the L / S blocks and m micro-batches; waited
                for, since the next matrix needs them (Shoeybi et al. 2019, arXiv:1909.08053, section 3)
    pipeline    (compute + tensor) (m + S - 1) / m (Huang et al. 2018, arXiv:1811.06965; the same with 1F1B, Narayanan
                et al. 2021, arXiv:2104.04473, section 2.2), and 2 m transfers of b B D between neighbours
    ddp         one all-reduce of 4 P' / (T S); may hide behind the backward pass of the last micro-batch, 2/3 of it
    fsdp2       2 m gathers of b P / (T S) (forward and backward) and one scatter of 4 P' / (T S); may hide behind all
                compute (Zhao et al. 2023, arXiv:2304.11277)

    best        pipeline + what cannot hide of the data-parallel talk     worst   nothing hides, and transfers wait too

Efficiency is the tokens of one device a second on N, divided by those alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

BACKWARD = 2 / 3
"""Share of an update's compute that is the backward pass."""


@dataclass(frozen=True)
class Links:
    """How devices are connected.

    per_node: devices of one node.  inside, outside: bytes a second of one device in one direction, to its node and to
    other nodes.  latency: seconds of one message.
    """

    per_node: int
    inside: float
    outside: float
    latency: float = 1e-5

    def gather(self, size: float, ranks: int, *, apart: int = 1) -> float:
        """Seconds of an all-gather or a reduce-scatter of `size` bytes over `ranks` devices, `apart` of which is each.

        apart: distance between two of them in the order of devices, 1 for neighbours: T S for copies of a model.
        """
        if ranks <= 1:
            return 0.0
        near = min(ranks, max(1, self.per_node // apart))
        nodes = math.ceil(ranks / near)
        inner = (near - 1) / near * size / self.inside + (near - 1) * self.latency
        outer = (nodes - 1) / nodes * size / near / self.outside + (nodes - 1) * self.latency
        return inner + outer

    def reduce(self, size: float, ranks: int, *, apart: int = 1) -> float:
        """Seconds of an all-reduce."""
        return 2 * self.gather(size, ranks, apart=apart)

    def send(self, size: float, *, apart: int = 1) -> float:
        """Seconds of `size` bytes to a device `apart` places further."""
        return size / (self.inside if apart < self.per_node else self.outside) + self.latency


@dataclass(frozen=True)
class Work:
    """What one update of one device was measured to be.

    seconds: of one update of `rows` rows of `row_tokens` tokens, in micro-batches of `micro_rows` rows.
    weight_bytes: of a weight in the arithmetic.
    """

    seconds: float
    rows: int
    micro_rows: int
    row_tokens: int
    layers: int
    width: int
    parameters: int
    trainable: int
    weight_bytes: int = 4


@dataclass(frozen=True)
class Scaled:
    """One update on `devices` devices: seconds of its parts, best and worst case of the whole."""

    devices: int
    copies: int
    rows: int
    compute: float
    tensor: float
    bubble: float
    transfers: float
    data: float
    best: float
    worst: float
    tokens_per_second: tuple[float, float]
    efficiency: tuple[float, float]

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def scaled(
    work: Work, links: Links, devices: int, *, engine: str, tensor: int = 1, stages: int = 1, rows: int | None = None
) -> Scaled:
    """One update of `rows` rows (default: as many for each copy as were measured) on so many devices.

    engine: `ddp` or `fsdp2`, how the copies stay equal.
    """
    copies = devices // (tensor * stages)
    if copies < 1 or copies * tensor * stages != devices:
        raise ValueError(f"{devices} devices cannot be shared among {tensor} x {stages}")
    total = work.rows * copies if rows is None else rows
    mine = math.ceil(total / copies)
    micro = min(work.micro_rows, mine)
    micros = math.ceil(mine / micro)
    share, passed = 1 / (tensor * stages), work.weight_bytes * micro * work.row_tokens * work.width
    compute = work.seconds * mine / work.rows * share
    waits = 4 * work.layers / stages * micros * links.reduce(passed, tensor) if tensor > 1 else 0.0
    bubble = (compute + waits) * (stages - 1) / micros
    transfers = 2 * micros * links.send(passed, apart=tensor) if stages > 1 else 0.0
    apart = tensor * stages
    if engine == "ddp":
        data = links.reduce(4 * work.trainable * share, copies, apart=apart)
        hides = BACKWARD * compute / micros
    else:
        gathered = links.gather(work.weight_bytes * work.parameters * share, copies, apart=apart)
        data = 2 * micros * gathered + links.gather(4 * work.trainable * share, copies, apart=apart)
        hides = compute
    line = compute + waits + bubble
    best, worst = line + max(0.0, data - hides), line + transfers + data
    speeds = total * work.row_tokens / best, total * work.row_tokens / worst
    alone = work.rows * work.row_tokens / work.seconds * devices
    return Scaled(
        devices=devices,
        copies=copies,
        rows=total,
        compute=compute,
        tensor=waits,
        bubble=bubble,
        transfers=transfers,
        data=data,
        best=best,
        worst=worst,
        tokens_per_second=speeds,
        efficiency=(speeds[0] / alone, speeds[1] / alone),
    )


def table(found: Sequence[Scaled]) -> str:
    """Lines for people."""
    head = f"{'GPUs':>6} {'rows':>7} {'seconds':>16} {'tokens/s':>22} {'efficiency':>12}   talk, bubble, tensor"
    lines = [head]
    for one in found:
        fast, slow = one.tokens_per_second
        parts = ", ".join(f"{value:.3g} s" for value in (one.data + one.transfers, one.bubble, one.tensor))
        lines.append(
            f"{one.devices:>6,} {one.rows:>7,} {one.best:>7.3g} to {one.worst:<5.3g} {slow:>9,.0f} to {fast:<9,.0f} "
            f"{one.efficiency[1]:>4.0%} to {one.efficiency[0]:<4.0%}   {parts}"
        )
    return "\n".join(lines)
