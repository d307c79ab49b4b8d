"""Steps of decoding as CUDA graphs: on a GPU one launch in place of hundreds.

A step launches some twenty small kernels for each layer, and for few rows the processor takes longer to launch them
than the GPU to run them. So a step (`trivium.models.static_step`) is captured once for each number of rows and each
width of the cache, and replayed from then on. The cache of a generation moves into the memory of the captured steps
when it takes its first one, and lives there until it is gone.

Each capture is compared with the plain forward pass when it is first replayed. Where they differ, or a capture fails,
the plain one goes on alone. `TRIVIUM_CUDA_GRAPHS=0` leaves all of it out.

Shapes: R rows, D width.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cached_property, partial
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from trivium.models.cache import KVCache
from trivium.models.static_step import Memory, static_step, unsuited

if TYPE_CHECKING:
    from trivium.models.transformer import Transformer

Run = Callable[[], Tensor]
_MOST_ROWS = 64
"""With more of them the kernels take longer than their launches."""
_MOST_BYTES = 2 << 30
"""Of keys and values, which stay allocated between generations; the steps of longer caches are plain."""
_WIDTH = 256
"""Of a cache the places up to a multiple of it are looked at, so that few widths are captured."""
_WARMUP = 3
"""Runs before a capture, in which libraries set themselves up."""
_LIMITS = {torch.float32: 5e-3}
"""Largest relative distance of results that differ by rounding only, in float32 by that of TF32."""
_LIMIT_HALF = 5e-2


def rounded_width(tokens: int) -> int:
    """At least as many: a multiple of 256, and for long caches of an eighth to a quarter of them."""
    step = max(_WIDTH, 1 << max(0, tokens.bit_length() - 3))
    return -(-tokens // step) * step


def rounded_rows(rows: int) -> int:
    """At least as many, a power of two, so that a batch whose rows end one by one is not captured each time."""
    return 1 << (rows - 1).bit_length()


class Capture:
    """Captures functions on one GPU; what it returns runs one again, and gives its result until the next of them runs.

    All of them share their memory, since never two run at once.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @cached_property
    def _shared(self) -> tuple[Any, Any]:
        return torch.cuda.graph_pool_handle(), torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def __call__(self, run: Run) -> Run:
        """Warms up and captures on a side stream, as torch's documentation asks for."""
        with torch.cuda.device(self.device):
            (pool, side), graph, current = self._shared, torch.cuda.CUDAGraph(), torch.cuda.current_stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(_WARMUP):
                    run()
            current.wait_stream(side)
            # The outer context leads back to the current stream where a failed capture does not. What other threads
            # do meanwhile is no part of the capture and does not spoil it.
            with (
                torch.cuda.stream(current),
                torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"),
            ):
                made = run()

        def replay() -> Tensor:
            with torch.cuda.device(self.device):
                graph.replay()
            return made

        return replay


class GraphedSteps:
    """Runs the steps of one model, see `Transformer.stepper`.

    off: why they are plain, once something went wrong. captures, replays: how many there were.
    """

    def __init__(self, model: Transformer, capture: Callable[[Run], Run]) -> None:
        self._model, self._capture, self.made_of = ref(model), capture, _state(model)
        self.off, self.captures, self.replays = "", 0, 0
        self._memory: Memory | None = None
        self._tenant: Callable[[], KVCache | None] = lambda: None
        self._steps: dict[tuple[int, int], Run] = {}
        self._lock = Lock()

    def __call__(self, ids: Tensor, cache: KVCache, plain: Run) -> Tensor:
        """[R, D] final hidden states after one more token [R] of each row, which the cache then holds.

        plain: does the same.
        """
        if not self._suits(ids, cache) or not self._lock.acquire(blocking=False):
            return plain()
        try:
            before = self.captures
            made = self._tried(ids, cache)
            if made is None:
                return plain()
            if self.captures > before:
                return self._checked(made, plain())
        finally:
            self._lock.release()
        cache.advance([1] * cache.rows)
        return made

    def _suits(self, ids: Tensor, cache: KVCache) -> bool:
        model = self._model()
        if self.off or model is None or not 0 < cache.rows == len(ids) <= _MOST_ROWS:
            return False
        learned = model.position_embed is not None
        room = min(cache.max_length, model.config.max_positions) if learned else cache.max_length
        differs = torch.is_grad_enabled() or model.training or torch.is_autocast_enabled(ids.device.type)
        return max(cache.lengths) < room and not differs

    def _tried(self, ids: Tensor, cache: KVCache) -> Tensor | None:
        """A step by replay; None where there is none. Generation does not end with what goes wrong in here."""
        try:
            return self._replayed(ids, cache)
        except Exception as error:
            self._give_up(f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")
            return None

    def _checked(self, made: Tensor, expected: Tensor) -> Tensor:
        """`expected`, which was computed after what was `made`, so the cache holds what belongs to it."""
        off = float((made - expected).float().norm() / expected.float().norm())
        if not off <= _LIMITS.get(expected.dtype, _LIMIT_HALF):
            self._give_up(f"a replay differs from the plain blocks by {off:.1e}")
        return expected

    def _replayed(self, ids: Tensor, cache: KVCache) -> Tensor | None:
        """None where another generation is in the memory, or it would be too large."""
        model, lengths = self._model(), list(cache.lengths)
        memory = None if model is None else self._home(model, cache)
        if model is None or memory is None:
            return None
        memory.read(ids, lengths)
        rows, width = shape = rounded_rows(cache.rows), rounded_width(max(lengths) + 1)
        if shape not in self._steps:
            with torch.inference_mode(False), torch.no_grad():
                self._steps[shape] = self._capture(partial(static_step, model, memory, rows=rows, width=width))
            self.captures += 1
        made = self._steps[shape]()[: cache.rows].clone()  # the next replay writes over it
        self.replays += 1
        memory.count(lengths)
        return made

    def _home(self, model: Transformer, cache: KVCache) -> Memory | None:
        """The memory, with the cache in it."""
        memory, like = self._memory, cache.keys[0]
        if memory is not None and memory.holds(cache):
            return memory
        if memory is not None and memory.holds(self._tenant()):
            return None
        if memory is None or not memory.fits(cache):
            sizes = [(rounded_rows(cache.rows), rounded_width(cache.max_length))]
            if memory is not None:  # with room for what was in it too, rather than one after the other
                sizes.insert(0, (max(sizes[0][0], memory.keys[0].shape[0]), max(sizes[0][1], memory.keys[0].shape[2])))
            place = 2 * len(model.blocks) * like.shape[1] * like.shape[3] * like.element_size()
            size = next(((rows, width) for rows, width in sizes if place * rows * width <= _MOST_BYTES), None)
            if size is None:
                return None
            self._steps.clear()
            self._memory = None  # frees it before there is another
            with torch.inference_mode(False):  # what is made in that mode could not be written outside of it
                memory = self._memory = Memory(model, like, rows=size[0], width=size[1])
        memory.take(cache)
        self._tenant = ref(cache)
        return memory

    def _give_up(self, why: str) -> None:
        self.off, self._memory = why, None
        self._steps.clear()
        warnings.warn(f"decoding goes on without CUDA graphs: {why}", stacklevel=3)


_KEPT: WeakKeyDictionary[Transformer, GraphedSteps] = WeakKeyDictionary()


def graphed(model: Transformer, *, keep: bool) -> GraphedSteps | None:
    """What runs the steps of `model`; None where they stay plain. keep: for the next time."""
    if plain_reason(model):
        return None
    found = _KEPT.get(model)
    if found is None or found.made_of != _state(model):
        found = GraphedSteps(model, Capture(model.embed.weight.device))
    if keep:
        _KEPT[model] = found
    return found


def decoding_words(model: Transformer) -> str:
    """How steps of `model` are run, and were, in one line."""
    kept, why = _KEPT.get(model), plain_reason(model)
    if why or (kept is not None and kept.off):
        return f"without CUDA graphs: {why or (kept and kept.off)}"
    return "CUDA graphs" if kept is None else f"CUDA graphs, {kept.captures} captured for {kept.replays} steps"


def plain_reason(model: Transformer) -> str:
    """Why steps of `model` are not captured; empty if they are."""
    if model.embed.weight.device.type != "cuda":
        return "the model is not on a GPU"
    if os.environ.get("TRIVIUM_CUDA_GRAPHS", "1") == "0":
        return "TRIVIUM_CUDA_GRAPHS is 0"
    if torch.version.hip is not None:
        return "not tried on AMD GPUs"
    return "autocast is on" if torch.is_autocast_enabled("cuda") else unsuited(model)


def _state(model: Transformer) -> list[tuple[Any, ...]]:
    """Changes when a weight is replaced. One that is only written stays where replays read it."""
    return [(weight.data_ptr(), weight.shape, weight.dtype) for weight in model.parameters()]
