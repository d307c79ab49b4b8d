"""Decoding by captured steps: the step itself on the CPU, and the bookkeeping around captures with a stand-in for them.

What only a GPU can show is at the end, and skipped without one.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from trivium.data.batch import Layout
from trivium.inference.beams import beam_ids
from trivium.inference.engine import Decoding, Sample, decode, generate_ids
from trivium.inference.request import Beams, Sampling, random_stream
from trivium.models import graphs, static_step
from trivium.models.build import build_model, preset
from trivium.models.cache import KVCache
from trivium.models.graphs import Capture, GraphedSteps, decoding_words, plain_reason, rounded_rows, rounded_width
from trivium.models.static_step import Memory
from trivium.models.transform import apply_transforms
from trivium.models.transformer import Transformer
from trivium.transforms.lora import LoRA

GREEDY = Sampling(temperature=0)
PROMPTS = [[1, 2, 3], [9, 8, 7, 6, 5, 4, 3, 2], [17], [40, 41, 42, 43, 44], [11, 3], [5, 5, 5], [30, 2, 60, 9], [8, 1]]
LENGTHS = [3, 8, 1]
KINDS: dict[str, dict[str, Any]] = {
    "llama-1m": {},
    "qwen2-1m": {},
    "qwen3-1m": {},
    "olmo2-1m": {},
    "mistral-7b": {"sliding_window": 5},
    "gemma2-1m": {"sliding_window": 5, "attention_softcap": 2.0},
    "gemma3-1m": {"sliding_window": 5, "layer_types": ["sliding", "full", "sliding"]},
    "gpt2-1m": {"num_kv_heads": 4},
    "pythia-1m": {"num_kv_heads": 4},
    "falcon-1m": {"num_kv_heads": 1},
    "smollm3-1m": {"layers_without_rotary": (1,)},
}


def tiny(kind: str = "llama-1m", *, seed: int = 1, **changes: Any) -> Transformer:
    shape = {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_layers": 3,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
        "max_positions": 600,
        "init_std": 0.2,
    }
    return build_model(preset(kind, {**shape, **KINDS.get(kind, {}), **changes}), seed=seed).eval()


class FakeCapture:
    """In place of a captured graph: runs the function again, and writes its result where it wrote the last one."""

    def __init__(self, device: torch.device | None = None, *, off: float = 0.0, error: Exception | None = None) -> None:
        self.off, self.error, self.made, self.runs = off, error, 0, 0

    def __call__(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.made += 1
        if self.error is not None:
            raise self.error
        with torch.no_grad():
            made = run()

        def replay() -> Tensor:
            self.runs += 1
            made.copy_(run())
            return made.add_(self.off)

        return replay


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generation takes a CPU for a GPU."""
    monkeypatch.setattr(graphs, "plain_reason", static_step.unsuited)
    monkeypatch.setattr(graphs, "Capture", FakeCapture)


def greedy(model: Transformer, **more: Any) -> list[list[int]]:
    settings: dict[str, Any] = {"max_new_tokens": 12, "sampling": GREEDY, "eos_ids": (), **more}
    return [done.ids for done in generate_ids(model, PROMPTS, **settings)]


def kept(model: Transformer) -> GraphedSteps:
    return graphs._KEPT[model]


@contextmanager
def stepping(model: Transformer, steps: GraphedSteps) -> Iterator[None]:
    model.stepper = steps
    try:
        with torch.no_grad():
            yield
    finally:
        model.stepper = None


def begun(model: Transformer, *, room: int = 60) -> KVCache:
    """A cache with rows of several lengths in it."""
    cache = KVCache(model.config, rows=len(LENGTHS), max_length=room)
    with torch.no_grad():
        model(torch.arange(sum(LENGTHS)) % 90, Layout(tuple(LENGTHS)), cache=cache)
    return cache


def step(model: Transformer, cache: KVCache, ids: list[int]) -> Tensor:
    with torch.no_grad():
        made: Tensor = model(torch.tensor(ids), Layout((1,) * len(ids)), cache=cache)
    return made


# The step


@pytest.mark.parametrize("kind", KINDS)
def test_the_static_step_gives_the_logits_of_the_cached_pass(kind: str) -> None:
    model = tiny(kind)
    assert static_step.unsuited(model) == ""
    theirs, ours = begun(model), begun(model)
    memory = Memory(model, ours.keys[0], rows=4, width=64)
    memory.take(ours)
    for number in range(9):  # beyond the windows
        ids = [(31 * number + row) % 97 for row in range(3)]
        expected = step(model, theirs, ids)
        lengths = list(ours.lengths)
        memory.read(torch.tensor(ids), lengths)
        with torch.no_grad():
            hidden = static_step.static_step(model, memory, rows=4, width=32)
        memory.count(lengths)
        ours.advance([1] * 3)
        torch.testing.assert_close(model.head(hidden[:3]), expected, rtol=1e-5, atol=1e-5)
    for mine, other in zip((*ours.keys, *ours.values), (*theirs.keys, *theirs.values), strict=True):
        for row, length in enumerate(theirs.lengths):
            torch.testing.assert_close(mine[row, :, :length], other[row, :, :length], rtol=1e-5, atol=1e-5)


def test_the_static_step_in_half_precision() -> None:
    model = tiny().to(torch.bfloat16)
    cache = KVCache(model.config, rows=1, max_length=16, dtype=torch.bfloat16)
    with torch.no_grad():
        model(torch.arange(5)[None], cache=cache)
    other = copy.deepcopy(cache)
    memory = Memory(model, cache.keys[0], rows=1, width=16)
    memory.take(cache)
    memory.read(torch.tensor([7]), [5])
    with torch.no_grad():
        hidden = static_step.static_step(model, memory, rows=1, width=16)
    torch.testing.assert_close(model.head(hidden), step(model, other, [7]), rtol=0.05, atol=0.05)


def test_the_step_reads_nothing_but_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture cannot wait for the device."""
    model = tiny("gemma3-1m")
    memory = Memory(model, begun(model).keys[0], rows=4, width=64)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a step waits for the device")

    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "cpu", "numpy", "nonzero"):
        monkeypatch.setattr(Tensor, name, forbidden)
    with torch.no_grad():
        static_step.static_step(model, memory, rows=4, width=64)


@pytest.mark.parametrize("kind", KINDS)
def test_the_step_asks_no_tensor_for_its_numbers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device where tensors have none, and every operation with something from another device is an error."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # which this device does not know
    model = tiny(kind).to("meta")
    heads = model.config.num_kv_heads, 1, model.config.head_dim
    memory = Memory(model, torch.empty(1, *heads, device="meta"), rows=4, width=64)
    with torch.no_grad():
        assert static_step.static_step(model, memory, rows=4, width=64).shape == (4, 32)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: build_model(preset("t5-1m"), seed=0), "encoder_decoder"),
        (lambda: tiny("mixtral-1m"), "experts"),
        (lambda: tiny("falcon-1m", positions="alibi"), "positions are alibi"),
        (lambda: tiny(rope={"scaling": {"type": "dynamic", "factor": 2.0}}), "depend on lengths"),
        (lambda: adapted(), "adapted"),
    ],
)
def test_what_is_left_to_the_plain_blocks(model: Callable[[], Transformer], reason: str) -> None:
    assert reason in static_step.unsuited(model())


def adapted() -> Transformer:
    model = tiny()
    apply_transforms(model, [LoRA(LoRA.Config(rank=2))], seed=0)
    return model


# Generation by replays


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_texts_are_the_same(kind: str, on_gpu: None) -> None:
    model = tiny(kind)
    expected = greedy(copy.deepcopy(model).train())  # a model in training keeps nothing, and has graphs too
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "plain_reason", lambda model: "not here")
        plain = greedy(model)
    assert greedy(model) == plain == expected
    assert kept(model).captures == 1 and kept(model).replays == 11


def test_rows_that_leave_and_join(on_gpu: None) -> None:
    def texts(model: Transformer) -> list[list[int]]:
        ends = range(0, 97, 6)
        samples = [
            Sample(prompt, Sampling(), 30 + 5 * number, random_stream(number, prompt), ends)
            for number, prompt in enumerate([*PROMPTS, *PROMPTS[:3]])
        ]
        for _ in decode(model, samples, max_rows=4):
            pass
        return [sample.completion.ids for sample in samples]

    model = tiny()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "plain_reason", lambda model: "not here")
        expected = texts(model)
    assert len({*map(len, expected)}) > 3
    assert texts(model) == expected
    assert kept(model).captures >= 2 and kept(model).replays > 20


def test_several_samples_guesses_and_beams(on_gpu: None) -> None:
    model = tiny()
    calls: list[Callable[[], Any]] = [
        lambda: [done.ids for done in generate_ids(model, [PROMPTS[0]] * 5, max_new_tokens=9, seeds=range(5))],
        lambda: greedy(model, lookup=3, max_new_tokens=40),
        lambda: [
            [done.ids for done in each]
            for each in beam_ids(model, PROMPTS[:2], max_new_tokens=9, beams=Beams(num_beams=3))
        ],
    ]
    for call in calls:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(graphs, "plain_reason", lambda model: "not here")
            expected = call()
        assert call() == expected
    assert kept(model).replays > 15


def test_texts_beyond_the_first_width(on_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_WIDTH", 16)
    model = tiny()
    expected = generate_ids(copy.deepcopy(model), [[1, 2]], max_new_tokens=40, sampling=GREEDY, eos_ids=())[0].ids
    assert generate_ids(model, [[1, 2]], max_new_tokens=40, sampling=GREEDY, eos_ids=())[0].ids == expected
    assert [shape[1] for shape in kept(model)._steps] == [16, 32, 48]


def test_a_text_that_is_too_long_is_still_an_error(on_gpu: None) -> None:
    model = tiny("gpt2-1m", max_positions=9)
    cache = begun(model, room=20)
    cache.select([0, 1])
    with stepping(model, GraphedSteps(model, FakeCapture())):
        step(model, cache, [1, 2])
        with pytest.raises(Exception, match="longer than the model has positions"):
            step(model, cache, [1, 2])


# Bookkeeping


def test_one_capture_for_each_shape(on_gpu: None) -> None:
    model = tiny()
    capture = FakeCapture()
    steps = GraphedSteps(model, capture)
    with stepping(model, steps):
        cache = begun(model, room=300)
        for _ in range(4):
            step(model, cache, [1, 2, 3])
        assert (capture.made, capture.runs) == (1, 4) and [*steps._steps] == [(4, 256)]
        cache.select([2, 0])
        step(model, cache, [4, 5])
        assert capture.made == 2  # two rows
        cache.select([1, 0])
        step(model, cache, [4, 5])
        step(model, begun(model), [1, 2, 3])
        assert capture.made == 2  # that cache is still in use, so the other one's steps are plain
        del cache
        step(model, begun(model), [1, 2, 3])
        assert (capture.made, steps.captures, steps.replays) == (2, 2, 7)


def test_shapes() -> None:
    assert [rounded_rows(rows) for rows in (1, 2, 3, 5, 64)] == [1, 2, 4, 8, 64]
    assert [rounded_width(tokens) for tokens in (1, 256, 257, 1500, 2049, 5000, 8192)] == [
        *(256, 256, 512, 1536, 2560, 5120),
        8192,
    ]
    assert all(tokens <= rounded_width(tokens) <= max(256, 1.3 * tokens + 256) for tokens in range(1, 70000, 37))


def test_a_cache_that_grows_moves_in_again() -> None:
    model = tiny()
    steps, alone = GraphedSteps(model, FakeCapture()), begun(model)
    cache = begun(model)
    with stepping(model, steps):
        step(model, cache, [1, 2, 3])
        assert steps._memory is not None and steps._memory.holds(cache)
        cache.join(begun(model), room=400)
        assert not steps._memory.holds(cache)
        made = step(model, cache, [4, 5, 6, 7, 8, 9])
        assert steps._memory.holds(cache) and [*steps._steps] == [(8, 256)]
    step(model, alone, [1, 2, 3])
    alone.join(begun(model), room=400)
    torch.testing.assert_close(made, step(model, alone, [4, 5, 6, 7, 8, 9]), rtol=1e-5, atol=1e-5)


def test_what_an_earlier_text_left_does_no_harm() -> None:
    model = tiny()
    steps = GraphedSteps(model, FakeCapture())
    with stepping(model, steps):
        cache = begun(model)
        step(model, cache, [1, 2, 3])
        for stored in (*cache.keys, *cache.values):
            stored.fill_(torch.nan)
        del cache
        made = step(model, begun(model), [1, 2, 3])
    torch.testing.assert_close(made, step(model, begun(model), [1, 2, 3]), rtol=1e-5, atol=1e-5)


def test_a_difference_ends_it_and_the_text_is_the_plain_one(on_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    expected = greedy(copy.deepcopy(model))
    monkeypatch.setattr(graphs, "Capture", lambda device: FakeCapture(off=0.1))
    with pytest.warns(UserWarning, match="without CUDA graphs: a replay differs from the plain blocks by"):
        assert greedy(model) == expected
    assert kept(model).captures == 1 and "differs" in decoding_words(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert greedy(model) == expected  # said once
    assert kept(model).captures == 1


def test_an_exception_ends_it_and_the_text_is_the_plain_one(on_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    expected = greedy(copy.deepcopy(model))
    capture = FakeCapture(error=RuntimeError("operation not permitted when stream is capturing\nand more"))
    monkeypatch.setattr(graphs, "Capture", lambda device: capture)
    with pytest.warns(UserWarning, match="without CUDA graphs: RuntimeError: operation not permitted .* capturing$"):
        assert greedy(model) == expected
    assert capture.made == 1 and kept(model).off


def test_a_replay_that_fails_later(on_gpu: None) -> None:
    model = tiny()
    steps, cache, other = GraphedSteps(model, FakeCapture()), begun(model), begun(model)
    with stepping(model, steps):
        step(model, cache, [1, 2, 3])

        def broken() -> Tensor:
            raise RuntimeError("lost")

        steps._steps[4, 256] = broken
        with pytest.warns(UserWarning, match="lost"):
            made = step(model, cache, [4, 5, 6])
    step(model, other, [1, 2, 3])
    torch.testing.assert_close(made, step(model, other, [4, 5, 6]), rtol=1e-5, atol=1e-5)


def test_other_weights_are_captured_anew_and_written_ones_are_read(on_gpu: None) -> None:
    model, other = tiny(), tiny(seed=5)
    before, first = greedy(model), kept(model)
    assert greedy(model) == before and kept(model) is first and first.captures == 1
    assert first.replays == 22  # the second text moved into the memory that the first one had left
    with torch.no_grad():
        for mine, new in zip(model.parameters(), other.parameters(), strict=True):
            mine.copy_(new)
    assert greedy(model) == greedy(other) != before
    assert kept(model) is first and first.captures == 1
    model.assign(dict(tiny().state_dict()))
    assert greedy(model) == before
    assert kept(model) is not first and kept(model).captures == 1


def test_a_model_in_training_keeps_nothing(on_gpu: None) -> None:
    model = tiny().train()
    greedy(model)
    assert model not in graphs._KEPT and model.stepper is None and model.training


def test_a_model_is_not_kept_alive(on_gpu: None) -> None:
    model = tiny()
    greedy(model)
    steps = kept(model)
    steps._steps.clear()  # the stand-in holds what a graph does not
    del model
    assert steps._model() is None


def test_large_caches_and_many_rows_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    steps = GraphedSteps(model, FakeCapture())
    monkeypatch.setattr(graphs, "_MOST_BYTES", 1000)
    with stepping(model, steps):
        step(model, begun(model), [1, 2, 3])
        monkeypatch.undo()
        monkeypatch.setattr(graphs, "_MOST_ROWS", 2)
        step(model, begun(model), [1, 2, 3])
        assert not steps.replays and not steps.off
        monkeypatch.undo()
        step(model, begun(model), [1, 2, 3])
        assert steps.replays


def test_adapters_offsets_gradients_and_autocast_are_plain() -> None:
    model = tiny()
    steps = GraphedSteps(model, FakeCapture())
    cache, ids, layout = begun(model), torch.tensor([1, 2, 3]), Layout((1, 1, 1))
    with stepping(model, steps):
        model(ids, layout, cache=cache, adapters=["", "", ""])
        model(ids, layout, cache=cache, offset=torch.zeros(3, 32))
        with torch.autocast("cpu", torch.bfloat16):
            model(ids, layout, cache=cache)
        with torch.enable_grad():
            assert model(ids, layout, cache=cache).requires_grad
        assert not steps.replays
        model(ids, layout, cache=cache)
        assert steps.replays


def test_a_step_in_another_thread_is_plain(on_gpu: None) -> None:
    model = tiny()
    steps, cache = GraphedSteps(model, FakeCapture()), begun(model)
    with steps._lock, stepping(model, steps):
        step(model, cache, [1, 2, 3])
    assert not steps.replays
    expected, found = greedy(tiny()), []
    threads = [threading.Thread(target=lambda: found.append(greedy(model))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected, expected]


def test_inside_and_outside_of_inference_mode(on_gpu: None) -> None:
    model = tiny()
    greedy(tiny(seed=2))  # the CPU's kernel of attention, which reads prompts here, is checked outside of that mode
    with torch.inference_mode():
        first = greedy(model)
    assert greedy(model) == first
    with torch.inference_mode():
        assert greedy(model) == first
    assert kept(model).captures == 1 and not kept(model).off


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    assert plain_reason(model) == "the model is not on a GPU"
    assert decoding_words(model) == "without CUDA graphs: the model is not on a GPU"
    embedding = type("Embedding", (), {"weight": type("Weight", (), {"device": torch.device("cuda")})})
    model.__dict__["embed"] = embedding
    del model._modules["embed"]
    monkeypatch.setenv("TRIVIUM_CUDA_GRAPHS", "0")
    assert plain_reason(model) == "TRIVIUM_CUDA_GRAPHS is 0"
    monkeypatch.delenv("TRIVIUM_CUDA_GRAPHS")
    monkeypatch.setattr(graphs, "unsuited", lambda model: "")
    assert plain_reason(model) == ""


def test_one_transfer_for_each_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop asks the device once a step, also with every setting of the sampler."""
    model = tiny()
    sampling = Sampling(temperature=0.7, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.1)
    samples = [Sample(prompt, sampling, 9, random_stream(0, prompt)) for prompt in PROMPTS]
    decoding = Decoding(model, samples)
    decoding.step()
    asked = []
    for name in ("item", "tolist", "__bool__", "__int__", "__float__"):
        real = getattr(Tensor, name)
        monkeypatch.setattr(Tensor, name, lambda self, name=name, real=real: asked.append(name) or real(self))
    decoding.step()
    assert asked == ["tolist"]


# The capture itself


def test_a_capture_warms_up_on_a_side_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Stream:
        def __init__(self, device: torch.device | None = None) -> None:
            self.name = "current" if device is None else "side"

        def wait_stream(self, other: Stream) -> None:
            told.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self) -> None:
            told.append("replay")

    @contextmanager
    def inside(name: str) -> Iterator[None]:
        told.append(name)
        yield
        told.append(f"end of {name}")

    def graph(captured: Graph, *, pool: object, stream: Stream, capture_error_mode: str) -> Any:
        assert (pool, stream.name, capture_error_mode) == ("pool", "side", "thread_local")
        return inside("capture")

    for name, stand_in in {
        "CUDAGraph": Graph,
        "Stream": Stream,
        "graph": graph,
        "graph_pool_handle": lambda: "pool",
        "current_stream": Stream,
        "stream": lambda stream: inside(stream.name),
        "device": lambda device: nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)

    def run() -> Tensor:
        told.append("run")
        return torch.ones(1)

    replay = Capture(torch.device("cuda:1"))(run)
    assert told[:7] == ["side waits for current", "side", *["run"] * 3, "end of side", "current waits for side"]
    assert told[7:] == ["current", "capture", "run", "end of capture", "end of current"]
    assert replay() is replay() and told[-2:] == ["replay", "replay"]


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@needs_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_captured_texts_on_a_gpu(kind: str) -> None:
    model = tiny(kind)
    expected = greedy(model)
    model = model.to("cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert greedy(model) == expected
        assert greedy(model) == expected
    assert kept(model).captures == 1 and not kept(model).off


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_a_gpu(dtype: torch.dtype) -> None:
    model = tiny().to("cuda", dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        greedy(model)
    assert kept(model).replays == 11 and not kept(model).off
