"""`tv.load`: text in, text out; scores; defaults of the folder; and what is refused."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import trivium as tv
from trivium.artifacts.writer import write_artifact
from trivium.errors import ModelError, TriviumError
from trivium.inference.defaults import read_defaults
from trivium.inference.model import LanguageModel, load
from trivium.models.build import build_model, preset
from trivium.models.folder import save_model
from trivium.models.transformer import Transformer
from trivium.tokenizers.tokenizer import Tokenizer
from trivium.tokenizers.train import train_bpe

PROMPTS = ["def add(a, b):", "The", "import os\nimport sys", "x = 1", "# note", "return", "a", "b = [1, 2]"]
CHAT = [{"role": "user", "content": "What is 1 + 1?"}]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["def add(a, b):\n    return a + b\nimport os\nThe quick brown fox jumps.\n"] * 3, vocab_size=300)


@pytest.fixture(scope="module")
def module(tokenizer: Tokenizer) -> Transformer:
    shape = dict(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=64,
        max_positions=128,
        init_std=0.3,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
    )
    return build_model(preset("llama-1m", shape), seed=3).eval()


@pytest.fixture
def model(module: Transformer, tokenizer: Tokenizer) -> LanguageModel:
    return LanguageModel(module, tokenizer)


@pytest.fixture
def folder(module: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    with write_artifact(tmp_path / "model", kind="model") as path:
        save_model(path, module.config, module.state_dict())
        tokenizer.save(path)
    return tmp_path / "model"


def test_a_folder_loads_and_generates(folder: Path, model: LanguageModel) -> None:
    loaded = tv.load(folder, device="cpu")
    assert loaded.generate("def", max_new_tokens=8, temperature=0) == model.generate(
        "def", max_new_tokens=8, temperature=0
    )
    assert loaded.module(torch.tensor([[1, 2, 3]])).shape == (1, 3, loaded.tokenizer.vocab_size)
    assert loaded.tokenizer.encode("def") == model.tokenizer.encode("def")
    assert not loaded.module.training
    assert next(load(folder, dtype="bfloat16").module.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_prompt_has_the_same_text_alone_and_in_a_batch(model: LanguageModel, temperature: float) -> None:
    together = model.generate(PROMPTS, max_new_tokens=16, temperature=temperature, seed=4)
    alone = [model.generate(prompt, max_new_tokens=16, temperature=temperature, seed=4) for prompt in PROMPTS]
    assert together == alone
    assert len(set(together)) > 4


def test_seeds_repeat_and_samples_differ(model: LanguageModel) -> None:
    first, second = (model.generate(PROMPTS[:2], n=3, max_new_tokens=12, seed=7) for _ in range(2))
    assert first == second
    assert [len(group) for group in first] == [3, 3]
    assert len(set(first[0])) == 3
    assert model.generate("def", max_new_tokens=12, seed=8) != model.generate("def", max_new_tokens=12, seed=9)
    assert model.generate("def", max_new_tokens=12) != model.generate("def", max_new_tokens=12)


def test_a_new_seed_is_told_and_gives_the_answer_again(model: LanguageModel) -> None:
    answers = model.generate("def", n=2, max_new_tokens=12, details=True)
    again = model.generate("def", n=2, max_new_tokens=12, seed=answers[0].seed)
    assert [answer.text for answer in answers] == again


def test_details_say_everything(model: LanguageModel) -> None:
    answer = model.generate("def add", max_new_tokens=6, temperature=0, details=True)
    assert len(answer.ids) == len(answer.logprobs) == len(answer.sampling_logprobs) == 6
    assert answer.finish_reason == "length"
    assert answer.prompt_tokens == len(model.tokenizer.encode_prompt("def add"))
    assert answer.text == model.tokenizer.decode(answer.ids)


def test_streamed_pieces_are_the_text(model: LanguageModel) -> None:
    for options in ({"temperature": 0}, {"seed": 3}, {"seed": 3, "stop": "e"}):
        stream = model.stream("The quick", max_new_tokens=40, **options)
        pieces = list(stream)
        assert "".join(pieces) == model.generate("The quick", max_new_tokens=40, **options) == stream.result.text
        assert len(pieces) > 1


def test_a_stop_string_ends_the_text_before_it(model: LanguageModel) -> None:
    free = model.generate(PROMPTS, max_new_tokens=40, seed=2)
    stop = [free[0][5:8], free[1][9:11]]
    answers = model.generate(PROMPTS, max_new_tokens=40, seed=2, stop=stop, details=True)
    for text, answer in zip(free, answers, strict=True):
        places = [text.find(string) for string in stop if string in text]
        assert answer.text == text[: min(places, default=len(text))]
        assert (answer.finish_reason == "stop") == bool(places)
        if places:
            assert len(answer.ids) < 40


def test_the_end_token_is_kept_as_an_id_and_not_shown(module: Transformer, tokenizer: Tokenizer) -> None:
    free = LanguageModel(module, tokenizer).generate("def", max_new_tokens=20, temperature=0, details=True)
    end = next(token for place, token in enumerate(free.ids) if place > 3 and token not in free.ids[:place])
    config = module.config
    module.config = config.model_copy(update={"eos_id": end})
    try:
        answer = LanguageModel(module, tokenizer).generate("def", max_new_tokens=20, temperature=0, details=True)
    finally:
        module.config = config
    assert answer.finish_reason == "eos"
    assert answer.ids == free.ids[: free.ids.index(end) + 1]
    assert answer.text == tokenizer.decode(answer.ids[:-1])


def test_messages_go_through_the_chat_template(model: LanguageModel) -> None:
    answer = model.generate(CHAT, max_new_tokens=5, seed=1, details=True)
    assert answer.prompt_tokens == len(model.tokenizer.encode_prompt(CHAT))
    assert model.chat(CHAT, max_new_tokens=5, seed=1) == answer.text
    assert model.generate([CHAT, "def"], max_new_tokens=5, seed=1)[0] == answer.text


def test_a_conversation_ends_at_the_end_of_the_turn_even_if_the_model_names_another_end(
    module: Transformer, tokenizer: Tokenizer
) -> None:
    config = module.config
    module.config = config.model_copy(update={"eos_id": 5})
    try:
        model = LanguageModel(module, tokenizer)
        assert model._eos_ids(chat=False) == {5}
        assert model._eos_ids(chat=True) == {5, *tokenizer.stop_ids}
    finally:
        module.config = config


def test_answers_come_in_order_and_early(model: LanguageModel) -> None:
    answers = model.answers(PROMPTS, max_new_tokens=5, seed=1, max_rows=2)
    assert next(answers).text == model.generate(PROMPTS[0], max_new_tokens=5, seed=1)
    assert [answer.text for answer in answers] == model.generate(PROMPTS[1:], max_new_tokens=5, seed=1)


def test_a_cancelled_answer_keeps_its_text(model: LanguageModel) -> None:
    left = iter(range(4))
    answer = model.generate("def", seed=1, should_stop=lambda: next(left, None) is None, details=True)
    assert answer.finish_reason == "cancelled"
    assert len(answer.ids) == 4
    assert answer.text == model.tokenizer.decode(answer.ids)


def test_the_answer_has_the_room_that_the_context_leaves(model: LanguageModel) -> None:
    prompt = "a b" * 30
    length = len(model.tokenizer.encode_prompt(prompt))
    answer = model.generate(prompt, temperature=0, details=True)
    assert answer.finish_reason == "eos" or len(answer.ids) == 128 - length


def test_scores_are_log_probabilities_of_each_token(model: LanguageModel) -> None:
    scores = model.score(PROMPTS)
    for text, score in zip(PROMPTS, scores, strict=True):
        ids = [model.tokenizer.bos_id, *score.ids]
        with torch.no_grad():
            logits = model.module(torch.tensor([ids]))[0, :-1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(score.ids)[:, None])[:, 0].tolist()
        assert score.logprobs == pytest.approx(expected, abs=1e-4)
        assert score.total == pytest.approx(sum(expected), abs=1e-3)
        assert "".join(score.tokens) == text
    assert model.score(PROMPTS[0]).logprobs == pytest.approx(scores[0].logprobs, abs=1e-4)


def test_a_first_token_with_nothing_before_it_has_no_probability(
    module: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "adds_bos", False)
    long, short = LanguageModel(module, tokenizer).score(["def add", "a"])
    assert long.logprobs[0] is None
    assert all(isinstance(value, float) for value in long.logprobs[1:])
    assert short.logprobs == [None]


def test_defaults_of_the_folder(folder: Path) -> None:
    def say(**values: Any) -> None:
        (folder / "generation_config.json").write_text(json.dumps(values))

    say(do_sample=False, max_new_tokens=4, repetition_penalty=1.5)
    model = load(folder)
    answer = model.generate("def", details=True)
    assert len(answer.ids) == 4
    assert answer.text == model.generate("def", temperature=0, repetition_penalty=1.5)
    assert model.generate("def", max_new_tokens=6, temperature=5, seed=1) != model.generate("def", max_new_tokens=6)
    with pytest.raises(TriviumError, match="greedy"):
        model.generate("def", top_p=0.5)

    say(do_sample=True, temperature=0.6, top_k=20, top_p=0.9, max_length=10)
    model = load(folder)
    same = model.generate("def", temperature=0.6, top_k=20, top_p=0.9, seed=1, details=True)
    assert model.generate("def", seed=1, details=True) == same
    assert same.prompt_tokens + len(same.ids) == 10


def test_settings_of_the_folder_that_are_not_built_are_told(tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"penalty_alpha": 0.6, "typical_p": 1.0, "top_k": None}))
    with pytest.warns(UserWarning, match="penalty_alpha=0.6"):
        read_defaults(tmp_path)
    path.write_text(json.dumps({"num_beams": 1, "pad_token_id": 0, "transformers_version": "5.0.0"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_defaults(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"temperature": -1}', '{"top_p": "high"}', '{"stop_strings": [""]}'])
def test_a_wrong_generation_config_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ModelError, match=r"generation_config\.json") as error:
        read_defaults(tmp_path)
    assert len(str(error.value).splitlines()) <= 5


@pytest.mark.parametrize(
    ("call", "fact"),
    [
        (lambda model: model.generate(""), "empty"),
        (lambda model: model.generate([]), "empty"),
        (lambda model: model.generate(["a", ""]), "prompt 1"),
        (lambda model: model.generate(7), "a text or a list of messages"),
        (lambda model: model.generate([["a", "b"]]), "a text or a list of messages"),
        (lambda model: model.generate("a", temperature=-1), "temperature"),
        (lambda model: model.generate("a", top_p=0), "top_p"),
        (lambda model: model.generate("a", max_new_tokens=-1), "max_new_tokens"),
        (lambda model: model.generate("a", max_new_tokens=500), "at most 126"),
        (lambda model: model.generate("a b" * 200), "128"),
        (lambda model: model.generate("a", seed=-1), "seed"),
        (lambda model: model.generate("a", n=0), "n cannot"),
        (lambda model: model.generate("a", n=2, temperature=0), "the same"),
        (lambda model: model.generate("a", stop=""), "stop"),
        (lambda model: model.generate("a", max_rows=0), "max_rows"),
        (lambda model: model.stream(["a", "b"]), "one prompt"),
        (lambda model: model.score(""), "no text"),
        (lambda model: model.score("a b" * 200), "at most 129"),
    ],
)
def test_bad_requests_are_refused_before_any_work(
    model: LanguageModel, call: Callable[[LanguageModel], object], fact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.module, "forward", None)
    with pytest.raises(TriviumError) as error:
        call(model)
    assert fact in str(error.value)
    assert len(str(error.value).splitlines()) <= 5


def test_an_unknown_option_names_the_one_that_was_meant(model: LanguageModel) -> None:
    with pytest.raises(TypeError, match="did you mean 'temperature'"):
        model.generate("a", tempature=0)  # type: ignore[call-overload]


@pytest.mark.parametrize("settings", [{"dtype": "int3"}, {"device": "cuda:77"}, {"threads": 0}])
def test_where_and_how_to_load_is_checked(folder: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(TriviumError) as error:
        load(folder, **settings)
    assert len(str(error.value).splitlines()) <= 5


def test_a_tokenizer_of_another_model_is_refused(tokenizer: Tokenizer) -> None:
    small = build_model(preset("llama-1m", {"vocab_size": 50, "num_layers": 1}), seed=0)
    with pytest.raises(ModelError, match="more tokens than the model"):
        LanguageModel(small, tokenizer)
