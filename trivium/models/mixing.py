"""Many adapters on one base, chosen sequence by sequence and mixed in one forward pass.

An *entry* is what one folder of adapters holds: soft prompts, LoRA, IA3, bottlenecks, and the head that was trained
with them. It is installed beside the base and does nothing until a sequence asks for it by name.

Virtual tokens differ from sequence to sequence anyway (`trivium.models.virtual`). The low-rank changes of all entries
in a batch are one product for each layer, in which each token keeps the part of its own entry:

    y + ((x A^T) * mask) B^T        A [R, I], B [O, R] of all of them one after the other, mask [T, R] zero or one

Adapters of other kinds act on their own tokens one after the other (`Rows.index`).

Shapes: T tokens, S sequences, I inputs, O outputs, R the ranks of all entries together.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trivium.data.batch import Layout
from trivium.errors import ModelError
from trivium.models.adapted import AdaptedLinear, Branch, Rows, adapt, branches_of, release
from trivium.models.config import ModelConfig
from trivium.models.lora import LoRABranch

if TYPE_CHECKING:
    from trivium.models.transform import Transform
    from trivium.models.transformer import Transformer

MIXED = "mixed"
"""Name of the branches that hold the low-rank changes of all entries."""


@dataclass(frozen=True)
class Entry:
    """What one folder of adapters adds.

    transforms: that act by virtual tokens, or on tokens of their own.
    changes: layer -> (A [R, I], B [O, R]) of a LoRA, whose branches are taken off again.
    config: the shape of the base with the head of this entry. head: None for the head of the base.
    """

    name: str
    transforms: tuple[Transform, ...]
    config: ModelConfig
    changes: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    head: nn.Module | None = None

    def virtual_tokens(self) -> tuple[int, int]:
        """How many virtual tokens it puts before (each sequence, each source)."""
        pairs = [transform.virtual_tokens(self.config) for transform in self.transforms]
        return sum(own for own, _ in pairs), sum(source for _, source in pairs)

    @property
    def rows(self) -> list[Rows]:
        """Of its transforms that act on tokens of their own."""
        return [transform.rows for transform in self.transforms if transform.rows is not None]


@dataclass
class Lane:
    """Layers at which the same entries have the same ranks. mask: [T, R], None where all tokens keep all."""

    owners: tuple[str, ...]
    mask: Tensor | None = None


class MixedBranch(Branch):
    """The low-rank changes of several entries at one layer."""

    def __init__(self, rows: Rows, *, source: bool) -> None:
        super().__init__(rows)
        self.source = source
        self.down: Tensor | None = None
        self.up: Tensor | None = None
        self.lane: Lane | None = None

    def after(self, x: Tensor, y: Tensor, layer: AdaptedLinear) -> Tensor:
        """[T, O]."""
        if self.lane is None or self.down is None or self.up is None:
            return y
        inner = x @ self.down.to(x.dtype).t()
        if self.lane.mask is not None:
            inner = inner * self.lane.mask
        return torch.addmm(y, inner.to(y.dtype), self.up.to(y.dtype).t())


@dataclass
class Mixer:
    """The entries of one model, and who of them acts in the forward pass at work."""

    entries: dict[str, Entry] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    rows: Rows = field(default_factory=Rows)
    composition: tuple[str, ...] = ()
    lanes: dict[tuple[bool, tuple[str, ...]], Lane] = field(default_factory=dict)

    def entry(self, name: str) -> Entry:
        """The entry called `name`; ModelError naming those there are."""
        if name not in self.entries:
            known = ", ".join(sorted(self.entries)) or "none yet"
            raise ModelError(
                "there is no such adapter on the shelf", where="adapter", value=name, fix=f"it has: {known}"
            )
        return self.entries[name]

    def add(self, model: Transformer, entry: Entry) -> None:
        """Puts an installed entry on the shelf; ModelError if it cannot act on a part of a batch."""
        for transform in entry.transforms:
            for place in branches_of(model, transform.name):
                if ".moe." in place or place.split(".")[0] in ("head", "embed"):
                    raise _unmixable(entry, f"acts on {place}", "train it without this layer (target, exclude)")
        changes = low_rank(model, entry.transforms)
        if changes is not None:
            for transform in entry.transforms:
                release(model, transform.name)
            left = tuple(transform for transform in entry.transforms if transform.rows is None)
            entry = replace(entry, changes=changes, transforms=left)
        if entry.rows and model.config.kind == "encoder_decoder":
            raise _unmixable(entry, "neither LoRA nor virtual tokens, on an encoder-decoder", "use one of these")
        for rows in entry.rows:
            rows.active = False
        self.entries[entry.name] = entry
        self._branch(model)

    def remove(self, model: Transformer, name: str) -> None:
        """Takes an entry off the shelf; with the last one the model is what it was."""
        for transform in self.entry(name).transforms:
            transform.remove(model)
        del self.entries[name]
        self._branch(model)

    def _branch(self, model: Transformer) -> None:
        """One branch at each layer that some entry changes, and none elsewhere."""
        release(model, MIXED)
        self.composition, self.lanes = (), {}
        for place in sorted({place for entry in self.entries.values() for place in entry.changes}):
            source = place.startswith("encoder.") or place.endswith((".cross.key", ".cross.value"))
            adapt(model, place, MIXED, MixedBranch(self.rows, source=source))

    def _compose(self, model: Transformer, names: tuple[str, ...]) -> None:
        """Puts the changes of the entries `names` side by side at each layer."""
        self.composition, self.lanes = names, {}
        for place, mixed in branches_of(model, MIXED).items():
            assert isinstance(mixed, MixedBranch)
            own = {name: self.entries[name].changes[place] for name in names if place in self.entries[name].changes}
            mixed.lane = mixed.down = mixed.up = None
            if own:
                mixed.down = torch.cat([down for down, _ in own.values()])
                mixed.up = torch.cat([up for _, up in own.values()], dim=1)
                owners = tuple(name for name, (down, _) in own.items() for _ in range(len(down)))
                mixed.lane = self.lanes.setdefault((mixed.source, owners), Lane(owners))

    @contextmanager
    def acting(
        self, model: Transformer, adapters: Sequence[str] | None, layout: Layout, source: Layout | None
    ) -> Iterator[None]:
        """Inside, sequence s is under the entry `adapters[s]`, or under none where that is empty.

        layout, source: of the tokens and of the sources, with the virtual ones.
        """
        names = [] if adapters is None else list(dict.fromkeys(name for name in adapters if name))
        entries = [self.entry(name) for name in names]
        low = tuple(entry.name for entry in entries if entry.changes)
        self.rows.active = bool(low)
        if adapters is not None and low:
            self._mask(model, low, adapters, layout, source)
        others = [(rows, entry.name) for entry in entries for rows in entry.rows]
        for rows, name in others:
            rows.active, rows.index = True, _index(adapters or (), name, layout, model.embed.weight.device)
        try:
            yield
        finally:
            self.rows.active = False
            for rows, _ in others:
                rows.active, rows.index = False, None

    def _mask(
        self, model: Transformer, low: tuple[str, ...], adapters: Sequence[str], layout: Layout, source: Layout | None
    ) -> None:
        """The changes of the entries `low`, and which of them each token keeps."""
        if not set(low) <= set(self.composition) or len(self.composition) > 2 * len(low):
            self._compose(model, low)
        device = model.embed.weight.device
        for (of_source, owners), lane in self.lanes.items():
            lane.mask = None
            if len(set(owners)) == 1 and all(adapter == owners[0] for adapter in adapters):
                continue
            lying = source if of_source else layout
            if lying is None:
                continue
            table = torch.tensor([[float(owner == name) for owner in owners] for name in adapters], device=device)
            lane.mask = table if lying.uniform == 1 else table.index_select(0, lying.sequence_ids(device))


def low_rank(model: Transformer, transforms: Sequence[Transform]) -> dict[str, tuple[Tensor, Tensor]] | None:
    """layer -> (A, B) if all that the transforms do to layers is one plain LoRA of linear layers, else None."""
    acting = [transform for transform in transforms if transform.rows is not None]
    if len(acting) != 1:
        return None
    found = {}
    for place, branch in branches_of(model, acting[0].name).items():
        if type(branch) is not LoRABranch or branch.magnitude is not None:
            return None
        down, up = (factor.detach() for factor in branch.factors())
        found[place] = down, up * branch.scale
    return found or None


def _index(adapters: Sequence[str], name: str, layout: Layout, device: torch.device) -> Tensor | None:
    """Numbers of the tokens under the entry `name`; None for all of them."""
    if all(adapter == name for adapter in adapters):
        return None
    spans = [torch.arange(*span) for span, own in zip(layout.spans(), adapters, strict=True) if own == name]
    return torch.cat(spans).to(device)


def _unmixable(entry: Entry, why: str, fix: str) -> ModelError:
    return ModelError("the adapter cannot act on a part of a batch", where=entry.name, value=why, fix=fix)
