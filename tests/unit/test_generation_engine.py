"""The decode loop on bare models: cached == uncached, ragged == alone, and how samples end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from trivium.errors import ModelError, TriviumError
from trivium.inference.engine import Decoding, Sample, decode, generate_ids
from trivium.inference.request import Sampling, random_stream
from trivium.models.attention import _runs
from trivium.models.build import build_model, preset
from trivium.models.cache import KVCache
from trivium.models.transformer import Transformer

GREEDY = Sampling(temperature=0)
PROMPTS = [[1, 2, 3], [9, 8, 7, 6, 5, 4, 3, 2], [17], [40, 41, 42, 43, 44], [11, 3], [5, 5, 5], [30, 2, 60, 9], [8, 1]]
PRESETS = {"llama": "llama-1m", "tied": "llama-1m", "gpt2": "gpt2-1m", "window": "mistral-7b"}


def tiny(kind: str, **changes: Any) -> Transformer:
    shape = dict(
        vocab_size=97,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4 if kind == "gpt2" else 2,
        head_dim=8,
        intermediate_size=48,
        max_positions=64,
        init_std=0.3,
        tie_embeddings=kind in ("gpt2", "tied"),
        **({"sliding_window": 6} if kind == "window" else {}),
    )
    return build_model(preset(PRESETS[kind], {**shape, **changes}), seed=1)


def without_cache(module: Transformer, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """Greedy ids and log-probabilities by running the whole text again for each token."""
    module.eval()
    ids, logprobs = list(prompt), []
    for _ in range(count):
        with torch.no_grad():
            scores = module(torch.tensor([ids]))[0, -1].float().log_softmax(-1)
        ids.append(int(scores.argmax()))
        logprobs.append(float(scores.max()))
    return ids[len(prompt) :], logprobs


@pytest.mark.parametrize("kind", PRESETS)
def test_cached_is_uncached(kind: str) -> None:
    module = tiny(kind)
    completions = generate_ids(module, PROMPTS, max_new_tokens=16, sampling=GREEDY, eos_ids=())
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        ids, logprobs = without_cache(module, prompt, 16)
        assert completion.ids == ids
        assert completion.logprobs == pytest.approx(logprobs, abs=1e-4)


@pytest.mark.parametrize("kind", PRESETS)
def test_logits_of_cached_decoding_are_those_of_one_pass(kind: str) -> None:
    module = tiny(kind).eval()
    ids = torch.randint(0, 97, (1, 20), generator=torch.Generator().manual_seed(0))
    cache = KVCache(module.config, rows=1, max_length=20)
    with torch.no_grad():
        whole = module(ids)
        steps = [module(ids[:, :8], cache=cache)] + [module(ids[:, at : at + 1], cache=cache) for at in range(8, 20)]
    assert (torch.cat(steps, dim=1) - whole).abs().max() < 1e-4


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), Sampling(temperature=0.7, top_k=20, top_p=0.9, min_p=0.01)])
def test_company_in_the_batch_changes_nothing(sampling: Sampling) -> None:
    module = tiny("llama")
    together = generate_ids(module, PROMPTS, max_new_tokens=20, sampling=sampling, seeds=5)
    assert len({tuple(completion.ids) for completion in together}) == len(PROMPTS)
    for prompt, completion in zip(PROMPTS, together, strict=True):
        alone = generate_ids(module, [prompt], max_new_tokens=20, sampling=sampling, seeds=5)[0]
        assert (alone.ids, alone.finish_reason) == (completion.ids, completion.finish_reason)
        assert completion.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


def test_small_batches_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny("llama")

    def ids(max_rows: int) -> list[list[int]]:
        return [each.ids for each in generate_ids(module, PROMPTS, max_new_tokens=6, seeds=1, max_rows=max_rows)]

    whole = ids(64)
    assert ids(3) == whole
    monkeypatch.setattr("trivium.inference.engine._CACHE_TOKENS", 30)
    assert ids(64) == whole


def test_samples_of_one_prompt_share_its_computation_and_differ_by_seed() -> None:
    module = tiny("llama")
    tokens = []
    module.embed.register_forward_pre_hook(lambda _, arguments: tokens.append(len(arguments[0])))
    several = generate_ids(module, [PROMPTS[1]] * 4 + [PROMPTS[0]], max_new_tokens=5, seeds=[1, 2, 3, 1, 1])
    assert tokens[:2] == [len(PROMPTS[1]) + len(PROMPTS[0]), 5]
    assert several[0] == several[3]
    assert len({tuple(completion.ids) for completion in several[:4]}) == 3
    assert several[1].ids == generate_ids(module, [PROMPTS[1]], max_new_tokens=5, seeds=2)[0].ids


def test_each_row_ends_for_its_own_reason_and_leaves_the_others_alone() -> None:
    module = tiny("llama")
    free = generate_ids(module, PROMPTS, max_new_tokens=12, sampling=GREEDY, eos_ids=())
    end = free[1].ids[4]
    ended = generate_ids(module, PROMPTS, max_new_tokens=12, sampling=GREEDY, eos_ids=[end])
    for before, after in zip(free, ended, strict=True):
        length = before.ids.index(end) + 1 if end in before.ids else 12
        assert after.ids == before.ids[:length]
        assert after.finish_reason == ("eos" if end in before.ids else "length")
        assert len(after.logprobs) == len(after.sampling_logprobs) == length
    assert {completion.finish_reason for completion in ended} == {"eos", "length"}


def test_the_end_tokens_of_the_configuration_are_the_default() -> None:
    free = generate_ids(tiny("llama"), PROMPTS[:1], max_new_tokens=12, sampling=GREEDY)
    module = tiny("llama", eos_id=(96, free[0].ids[3]))
    assert generate_ids(module, PROMPTS[:1], max_new_tokens=12, sampling=GREEDY)[0].finish_reason == "eos"


def test_the_caller_sees_each_token_and_can_end_a_sample() -> None:
    seen: list[tuple[int, int]] = []

    def watch(place: int, sample: Sample) -> bool:
        seen.append((place, sample.completion.ids[-1]))
        return place == 1 and len(sample.completion.ids) == 2

    completions = generate_ids(tiny("llama"), PROMPTS[:3], max_new_tokens=4, eos_ids=(), on_token=watch)
    assert [len(completion.ids) for completion in completions] == [4, 2, 4]
    assert [completion.finish_reason for completion in completions] == ["length", "stop", "length"]
    for place, completion in enumerate(completions):
        assert [token for at, token in seen if at == place] == completion.ids


def test_samples_may_be_ended_at_any_moment_and_the_others_go_on() -> None:
    module = tiny("llama").eval()
    expected = [each.ids for each in generate_ids(module, PROMPTS, max_new_tokens=8, seeds=3, eos_ids=())]
    samples = [Sample(prompt, Sampling(), 8, random_stream(3, prompt)) for prompt in PROMPTS]
    ends = {2: 0, 7: 1, 0: 1, 4: 3, 1: 5, 6: 5}
    decoding, step = Decoding(module, samples), 0
    while True:
        for place, when in ends.items():
            if when == step:
                samples[place].end("cancelled")
        if not decoding.step():
            break
        step += 1
    for place, sample in enumerate(samples):
        assert sample.completion.ids == expected[place][: ends.get(place, 8)]


def test_cancelling_keeps_what_there_is() -> None:
    asked = iter([False, False, True])
    completions = generate_ids(
        tiny("llama"), PROMPTS[:4], max_new_tokens=9, eos_ids=(), max_rows=2, should_stop=lambda: next(asked)
    )
    assert [len(completion.ids) for completion in completions] == [2, 2, 0, 0]
    assert {completion.finish_reason for completion in completions} == {"cancelled"}


def test_a_module_in_training_comes_back_as_it_was() -> None:
    module = tiny("gpt2", dropout=0.5).train()
    module.blocks[0].eval()
    modes = [part.training for part in module.modules()]
    completions = generate_ids(module, PROMPTS, max_new_tokens=5, sampling=GREEDY, eos_ids=())
    assert [part.training for part in module.modules()] == modes
    assert completions == generate_ids(module.eval(), PROMPTS, max_new_tokens=5, sampling=GREEDY, eos_ids=())
    module.train()
    module(torch.tensor([[1, 2, 3]])).sum().backward()
    assert module.embed.weight.grad is not None


def test_logprobs_are_those_of_a_training_forward_pass_whatever_was_sampled() -> None:
    module = tiny("llama").eval()
    sampling = Sampling(temperature=0.6, top_k=30, repetition_penalty=1.2)
    completion = generate_ids(module, [PROMPTS[1]], max_new_tokens=20, sampling=sampling, eos_ids=())[0]
    ids = torch.tensor([PROMPTS[1] + completion.ids])
    scores = module(ids)[0].log_softmax(-1)[len(PROMPTS[1]) - 1 : -1]
    expected = scores.gather(1, torch.tensor(completion.ids)[:, None])[:, 0].tolist()
    assert completion.logprobs == pytest.approx(expected, abs=1e-4)
    assert completion.sampling_logprobs != pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_bfloat16_decodes_close_to_one_pass(kind: str) -> None:
    module = tiny(kind, init_std=0.1).to(torch.bfloat16)
    for completion, prompt in zip(generate_ids(module, PROMPTS, max_new_tokens=10, eos_ids=()), PROMPTS, strict=True):
        scores = module(torch.tensor([prompt + completion.ids]))[0].float().log_softmax(-1)[len(prompt) - 1 : -1]
        expected = scores.gather(1, torch.tensor(completion.ids)[:, None])[:, 0].tolist()
        assert completion.logprobs == pytest.approx(expected, abs=0.1)


def test_under_autocast_the_cache_has_the_type_of_the_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    types = []
    build = KVCache.__init__

    def spy(self: KVCache, *arguments: Any, **settings: Any) -> None:
        types.append(settings["dtype"])
        build(self, *arguments, **settings)

    monkeypatch.setattr(KVCache, "__init__", spy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        generate_ids(tiny("llama"), PROMPTS, max_new_tokens=3)
    generate_ids(tiny("llama"), PROMPTS, max_new_tokens=3)
    assert types == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize(
    ("prompt", "count", "facts"),
    [
        ([], 4, ["prompt 1", "no token"]),
        ([1] * 64, 4, ["prompt 1", "64 tokens", "at most 63"]),
        ([1] * 60, 5, ["prompt 1", "60 prompt tokens", "max_new_tokens 5", "at most 4"]),
        ([1], 0, ["max_new_tokens"]),
        ([1], -3, ["max_new_tokens", "-3"]),
    ],
)
def test_what_does_not_fit_is_refused_with_counts(prompt: list[int], count: int, facts: list[str]) -> None:
    with pytest.raises(TriviumError) as error:
        generate_ids(tiny("llama"), [[1], prompt], max_new_tokens=count)
    assert len(str(error.value).splitlines()) <= 5
    for fact in facts:
        assert fact in str(error.value)


def test_the_whole_context_can_be_used() -> None:
    for kind in ("llama", "gpt2"):
        assert len(generate_ids(tiny(kind), [[1] * 60], max_new_tokens=4, eos_ids=())[0].ids) == 4


def test_damaged_weights_are_said_to_be_damaged() -> None:
    module = tiny("llama")
    nn.init.constant_(module.final_norm.weight, float("nan"))
    for sampling in (GREEDY, Sampling(top_p=0.9, top_k=4)):
        with pytest.raises(ModelError, match="NaN"):
            generate_ids(module, PROMPTS, max_new_tokens=2, sampling=sampling)


def waiting(module: Transformer, lengths: list[int]) -> list[Sample]:
    return [
        Sample(prompt, GREEDY, length, random_stream(0, prompt))
        for prompt, length in zip(PROMPTS, lengths, strict=True)
    ]


@pytest.mark.parametrize("kind", ["llama", "window", "t5"])
def test_those_that_wait_take_the_place_of_those_that_end(kind: str) -> None:
    module = tiny(kind) if kind != "t5" else tiny_seq2seq()
    lengths = [9, 2, 2, 11, 3, 1, 20, 2]
    samples, decoded = [], []
    for rows in (8, 3, 1):
        found = waiting(module, lengths) if kind != "t5" else answering(lengths)
        steps = [len(decoding.live) for decoding in decode(module, found, max_rows=rows)]
        samples.append([(each.completion.ids, each.completion.finish_reason) for each in found])
        decoded.append(steps)
        assert max(steps) == rows
    assert samples[0] == samples[1] == samples[2]
    assert [len(ids) for ids, _ in samples[0]] == lengths
    # Batch after batch it would be 9 + 11 + 20 steps.
    assert len(decoded[1]) < 30
    assert len(decoded[2]) == sum(lengths)


def tiny_seq2seq() -> Transformer:
    shape = {"vocab_size": 97, "hidden_size": 32, "num_layers": 2, "num_decoder_layers": 2, "intermediate_size": 48}
    heads = {"num_heads": 4, "num_kv_heads": 4, "head_dim": 8, "init_std": 0.3}
    return build_model(preset("t5-1m", {**shape, **heads}), seed=1)


def answering(lengths: list[int]) -> list[Sample]:
    return [
        Sample([0], GREEDY, length, random_stream(0, source), source=source)
        for source, length in zip(PROMPTS, lengths, strict=True)
    ]


def test_a_long_one_waits_until_there_is_memory_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny("llama")
    monkeypatch.setattr("trivium.inference.engine._CACHE_TOKENS", 40)
    samples = waiting(module, [4, 4, 4, 30, 4, 4, 4, 4])
    held = [max(each.size for each in step.live) * len(step.live) for step in decode(module, samples)]
    assert max(held) <= 40
    alone = [
        generate_ids(module, [each.prompt], max_new_tokens=each.max_new_tokens, sampling=GREEDY) for each in samples
    ]
    assert [each.completion.ids for each in samples] == [found[0].ids for found in alone]


@pytest.mark.parametrize("kind", ["llama", "window", "gpt2"])
def test_neighbours_of_similar_length_are_computed_together(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny(kind)
    whole = generate_ids(module, PROMPTS, max_new_tokens=8, sampling=GREEDY, eos_ids=())
    monkeypatch.setattr("trivium.models.attention._CALL_BYTES", 200)
    assert len(_runs([3, 8, 1, 5, 2, 3, 4, 2], torch.empty(8, 2, 9, 8))) > 1
    for one, other in zip(
        whole, generate_ids(module, PROMPTS, max_new_tokens=8, sampling=GREEDY, eos_ids=()), strict=True
    ):
        assert one.ids == other.ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_runs_are_the_cheapest_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trivium.models.attention._CALL_BYTES", 10 * 2 * 2 * 8 * 4)
    keys = torch.empty(6, 2, 99, 8)
    assert _runs([5, 5, 5], keys[:3]) == [(0, 3)]
    assert _runs([5, 6, 50, 52, 3], keys[:5]) == [(0, 2), (2, 4), (4, 5)]
    assert _runs([5, 9, 7], keys[:3]) == [(0, 3)]


@pytest.mark.parametrize("kind", PRESETS)
def test_prompts_that_begin_alike_read_their_beginning_once(kind: str) -> None:
    module = tiny(kind)
    system = [(7 * number) % 90 + 3 for number in range(24)]
    prompts = [[*system, *prompt] for prompt in PROMPTS]
    alone = [generate_ids(module, [prompt], max_new_tokens=9, sampling=GREEDY, eos_ids=())[0] for prompt in prompts]
    tokens: list[int] = []
    module.embed.register_forward_pre_hook(lambda _, arguments: tokens.append(len(arguments[0])))
    for rows in (64, 3):
        tokens.clear()
        together = generate_ids(module, prompts, max_new_tokens=9, sampling=GREEDY, eos_ids=(), max_rows=rows)
        for one, other in zip(alone, together, strict=True):
            assert one.ids == other.ids
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert tokens.count(24) == 1
        assert sum(tokens) == 24 + sum(map(len, PROMPTS)) + 8 * len(PROMPTS)


def test_later_prompts_may_share_less_or_nothing() -> None:
    module = tiny("llama")
    system = list(range(3, 33))
    prompts = [[*system, 1], [*system, 2], [*system[:20], 5], [*system[:20], 6, 7], [50, 51], [*system, 9], system[:18]]
    alone = [generate_ids(module, [prompt], max_new_tokens=5, sampling=GREEDY, eos_ids=())[0].ids for prompt in prompts]
    for rows in (1, 2, 3, 64):
        found = generate_ids(module, prompts, max_new_tokens=5, sampling=GREEDY, eos_ids=(), max_rows=rows)
        assert [each.ids for each in found] == alone
