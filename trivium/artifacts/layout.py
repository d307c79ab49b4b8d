"""Places the nodes of a small layered graph (a few hundred nodes), parents above their children.

The method is that of Sugiyama, Tagawa and Toda (1981): layers, an order within each that avoids crossings, positions.
Long edges pass each layer between them through a slot of their own, so no edge crosses a node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

_SWEEPS = 12
Slot = str | tuple[str, str, int]
"""A node, or the place where the edge (parent, child) passes a layer."""


@dataclass(frozen=True)
class Layout:
    """`layers[i]` holds the slots of layer i from left to right, 0 on top; `centre` their horizontal middles."""

    layers: list[list[Slot]]
    centre: dict[Slot, float]
    chains: dict[tuple[str, str], list[Slot]]
    """For each (parent, child) the slots from the parent to the child."""


def lay_out(
    nodes: Sequence[str], edges: Sequence[tuple[str, str]], *, columns: int, width: float, slot_width: float, gap: float
) -> Layout:
    """Layout of the graph with at most `columns` nodes side by side.

    edges: (parent, child), without cycles. Widths of a node and of a passing edge, and the gap between, in pixels.
    """
    layer = _layers(nodes, edges, columns)
    chains = {edge: _chain(edge, layer) for edge in dict.fromkeys(edges)}
    layers: list[list[Slot]] = [[] for _ in range(max(layer.values()) + 1)]
    for node in nodes:
        layers[layer[node]].append(node)
    for (parent, _), chain in chains.items():
        for offset, slot in enumerate(chain[1:-1], start=layer[parent] + 1):
            layers[offset].append(slot)
    above: dict[Slot, list[Slot]] = {slot: [] for row in layers for slot in row}
    below: dict[Slot, list[Slot]] = {slot: [] for row in layers for slot in row}
    for chain in chains.values():
        for upper, lower in pairwise(chain):
            below[upper].append(lower)
            above[lower].append(upper)
    _order(layers, above, below)
    widths = {slot: width if isinstance(slot, str) else slot_width for slot in above}
    return Layout(layers, _positions(layers, above, below, widths, gap), chains)


def _layers(nodes: Sequence[str], edges: Sequence[tuple[str, str]], columns: int) -> dict[str, int]:
    """Each node directly above its highest child, or higher where that layer is full."""
    children: dict[str, set[str]] = {node: set() for node in nodes}
    for parent, child in edges:
        children[parent].add(child)
    height: dict[str, int] = {}
    filled: dict[int, int] = {}
    pending = list(nodes)
    while pending:
        ready = [node for node in pending if children[node] <= height.keys()]
        assert ready, "the graph has a cycle"
        for node in sorted(ready, key=lambda n: max((height[child] for child in children[n]), default=-1)):
            level = max((height[child] + 1 for child in children[node]), default=0)
            while filled.get(level, 0) >= columns:
                level += 1
            height[node] = level
            filled[level] = filled.get(level, 0) + 1
        pending = [node for node in pending if node not in height]
    top = max(height.values())
    return {node: top - level for node, level in height.items()}


def _chain(edge: tuple[str, str], layer: Mapping[str, int]) -> list[Slot]:
    parent, child = edge
    return [parent, *((parent, child, level) for level in range(layer[parent] + 1, layer[child])), child]


def _order(layers: list[list[Slot]], above: Mapping[Slot, list[Slot]], below: Mapping[Slot, list[Slot]]) -> None:
    """Sort each layer by the mean place of its neighbours, down and up in turn; the best order found stays."""
    best, fewest = [list(row) for row in layers], _crossings(layers, below)
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        rows = range(1, len(layers)) if down else range(len(layers) - 2, -1, -1)
        for index in rows:
            place = {slot: position for position, slot in enumerate(layers[index - 1 if down else index + 1])}
            near = above if down else below
            own = {slot: position for position, slot in enumerate(layers[index])}
            layers[index].sort(key=lambda s: fmean([place[n] for n in near[s]] or [own[s]]))
        count = _crossings(layers, below)
        if count < fewest:
            best, fewest = [list(row) for row in layers], count
    layers[:] = best


def _crossings(layers: list[list[Slot]], below: Mapping[Slot, list[Slot]]) -> int:
    total = 0
    for upper, lower in pairwise(layers):
        place = {slot: position for position, slot in enumerate(lower)}
        ends = [place[end] for slot in upper for end in sorted(below[slot], key=place.__getitem__)]
        total += sum(first > second for i, first in enumerate(ends) for second in ends[i + 1 :])
    return total


def _positions(
    layers: list[list[Slot]],
    above: Mapping[Slot, list[Slot]],
    below: Mapping[Slot, list[Slot]],
    widths: Mapping[Slot, float],
    gap: float,
) -> dict[Slot, float]:
    """Each slot as near as possible to the middle of its neighbours, without overlaps, starting at 0."""
    centre: dict[Slot, float] = {slot: 0.0 for row in layers for slot in row}
    for sweep in range(2 * _SWEEPS):
        for row in layers if sweep % 2 else reversed(layers):
            wanted = [fmean([centre[n] for n in above[slot] + below[slot]] or [0.0]) for slot in row]
            for slot, x in zip(row, _apart(wanted, [widths[slot] for slot in row], gap), strict=True):
                centre[slot] = x
    left = min(centre[slot] - widths[slot] / 2 for slot in centre)
    return {slot: x - left for slot, x in centre.items()}


def _apart(wanted: Sequence[float], widths: Sequence[float], gap: float) -> list[float]:
    """Positions nearest (least squares) to the wanted ones that keep the order and the distances."""
    offsets = [0.0]
    for left, right in pairwise(widths):
        offsets.append(offsets[-1] + (left + right) / 2 + gap)
    blocks: list[tuple[float, int]] = []  # mean, count: pool adjacent violators
    for value, offset in zip(wanted, offsets, strict=True):
        mean, count = value - offset, 1
        while blocks and blocks[-1][0] > mean:
            before, number = blocks.pop()
            mean, count = (mean * count + before * number) / (count + number), count + number
        blocks.append((mean, count))
    means = [mean for mean, count in blocks for _ in range(count)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]
