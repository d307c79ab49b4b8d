"""Greedy text and filtered distributions are those of transformers, on folders that Trivium has written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from trivium.artifacts.writer import write_artifact
from trivium.inference.model import load
from trivium.inference.request import Sampling
from trivium.inference.sampling import RepetitionPenalty, Scores, build_steps
from trivium.models.build import build_model, preset
from trivium.models.folder import save_model
from trivium.tokenizers.train import train_bpe

transformers = pytest.importorskip("transformers")

PROMPTS = ["def add(a, b):", "The quick", "x", "import os\n", "return a + b  # the sum"]
TEXT = "def add(a, b):\n    return a + b  # the sum\nimport os\nThe quick brown fox jumps over the lazy dog\n"


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = train_bpe([TEXT] * 3, vocab_size=300)
    heads = 2 if request.param == "llama" else 4
    shape = dict(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=heads,
        head_dim=8,
        intermediate_size=64,
        max_positions=96,
        init_std=0.3,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
    )
    config = preset(f"{request.param}-1m", shape)
    target = tmp_path_factory.mktemp("models") / request.param
    with write_artifact(target, kind="model") as path:
        save_model(path, config, build_model(config, seed=3).state_dict())
        tokenizer.save(path)
    return target


def theirs(folder: Path, prompt: str, **settings: Any) -> tuple[list[int], str]:
    """Ids and text that transformers adds to a prompt."""
    module = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    output = module.generate(**inputs, do_sample=False, **settings)[0, inputs["input_ids"].shape[1] :]
    return output.tolist(), tokenizer.decode(output, skip_special_tokens=True)


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_text(folder: Path, penalty: float) -> None:
    model = load(folder)
    answers = model.generate(PROMPTS, max_new_tokens=24, temperature=0, repetition_penalty=penalty, details=True)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert (answer.ids, answer.text) == theirs(folder, prompt, max_new_tokens=24, repetition_penalty=penalty)


def test_greedy_text_ends_at_the_same_end_token(folder: Path) -> None:
    model = load(folder)
    free = model.generate(PROMPTS, max_new_tokens=24, temperature=0, details=True)
    end = free[1].ids[5]
    model.module.config = model.module.config.model_copy(update={"eos_id": (end, model.tokenizer.eos_id)})
    reasons = set()
    for prompt in PROMPTS:
        answer = model.generate(prompt, max_new_tokens=24, temperature=0, details=True)
        expected = theirs(folder, prompt, max_new_tokens=24, eos_token_id=[end, model.tokenizer.eos_id])[0]
        assert answer.ids == expected
        reasons.add(answer.finish_reason)
    assert "eos" in reasons


def test_stop_strings_end_where_transformers_ends(folder: Path) -> None:
    model, tokenizer = load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    free = model.generate(PROMPTS[0], max_new_tokens=24, temperature=0)
    # Whole characters: transformers looks for stop strings in the spelling of the tokens, where broken bytes differ.
    found = re.search("[!-~]{2}", free[2:])
    assert found, free
    stop = found[0]
    answer = model.generate(PROMPTS[0], max_new_tokens=24, temperature=0, stop=stop, details=True)
    expected, text = theirs(folder, PROMPTS[0], max_new_tokens=24, stop_strings=[stop], tokenizer=tokenizer)
    assert answer.finish_reason == "stop"
    assert answer.ids == expected
    assert answer.text == text[: text.index(stop)]


def test_scores_are_the_models_log_probabilities(folder: Path) -> None:
    module = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for prompt, score in zip(PROMPTS, load(folder).score(PROMPTS), strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        logprobs = module(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        assert score.ids == ids[0, 1:].tolist()
        assert score.logprobs == pytest.approx(logprobs.tolist(), abs=1e-4)
        assert "".join(score.tokens) == prompt


SETTINGS = [
    Sampling(),
    Sampling(temperature=0.6),
    Sampling(temperature=1.7),
    Sampling(top_k=1),
    Sampling(top_k=40),
    Sampling(top_p=0.3),
    Sampling(top_p=0.95),
    Sampling(min_p=0.05),
    Sampling(repetition_penalty=1.3),
    Sampling(repetition_penalty=0.8),
    Sampling(temperature=0.8, top_k=50, top_p=0.9),
    Sampling(temperature=1.5, top_k=100, top_p=0.8, min_p=0.02, repetition_penalty=1.1),
    Sampling(temperature=2.5, top_p=0.99, min_p=0.3, repetition_penalty=1.9),
]


def their_scores(sampling: Sampling, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """The processors of transformers in the order in which `generate` puts them."""
    config = transformers.GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p or None,
        repetition_penalty=sampling.repetition_penalty,
    )
    module = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=scores.shape[1], hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
    )
    config, _ = module._prepare_generation_config(config)
    module._prepare_special_tokens(config)
    result: torch.Tensor = module._get_logits_processor(config, ids.shape[1])(ids, scores)
    return result


@pytest.mark.parametrize("together", [False, True])
def test_distributions_after_all_steps(together: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(len(SETTINGS), 1000, generator=generator) * 3
    ids = torch.randint(0, 1000, (len(SETTINGS), 30), generator=generator)
    for row, sampling in enumerate(SETTINGS):
        samplings, part = (SETTINGS, scores) if together else ([sampling], scores[row : row + 1])
        seen = torch.zeros_like(part, dtype=torch.bool).scatter(1, ids if together else ids[row : row + 1], True)
        penalty = torch.tensor([each.repetition_penalty for each in samplings])
        ours = Scores(RepetitionPenalty(penalty, seen)(part))
        for step in build_steps(samplings, device=part.device):
            ours = step(ours)
        expected = their_scores(sampling, ids[row : row + 1], scores[row : row + 1].clone())[0]
        found = ours.values[row if together else 0]
        assert torch.equal(found.isfinite(), expected.isfinite()), sampling
        assert torch.allclose(found.softmax(-1), expected.softmax(-1), atol=1e-6)
