"""Greedy and beam search find the tokens that transformers finds, on encoder-decoders and decoders."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from trivium.artifacts.writer import write_artifact
from trivium.data.sides import source_ids
from trivium.errors import ModelError, TriviumError
from trivium.inference.beams import beam_ids
from trivium.inference.engine import generate_ids
from trivium.inference.model import LanguageModel, load
from trivium.inference.request import Beams, Sampling
from trivium.models.build import build_model, preset
from trivium.models.folder import load_model, save_model
from trivium.models.transformer import Transformer
from trivium.tokenizers.train import train_bpe

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5ForConditionalGeneration", {
        "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0,
        "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12,
    }),
    "bart": ("BartForConditionalGeneration", {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
        "forced_eos_token_id": None,
    }),
    "gpt2": ("GPT2LMHeadModel", {
        "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 0,
    }),
}  # fmt: skip
COUNT, NEW = 50, 16


@pytest.fixture(scope="module", params=SETTINGS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Transformer]:
    """(their model, the same model here)."""
    head, settings = SETTINGS[request.param]
    torch.manual_seed(1)
    module = getattr(transformers, head)
    theirs = module(module.config_class(vocab_size=61, **settings))
    learn_a_little(theirs)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.eval().save_pretrained(folder)
    return theirs, load_model(folder).eval()


def learn_a_little(model: Any) -> None:
    """Enough that answers take something from the prompt, are sure of nothing, and end at many lengths."""
    draw = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    end = model.config.eos_token_id
    for _ in range(150):
        length, answer = draw.randrange(1, 18), draw.randrange(4, 15)
        source = torch.tensor([[draw.randrange(3, 61) for _ in range(length)] for _ in range(16)])
        target = torch.cat([source.repeat(1, answer)[:, :answer], torch.full((16, 1), end)], dim=1)
        if model.config.is_encoder_decoder:
            loss = model(input_ids=source, labels=target).loss
        else:
            ids = torch.cat([source, target], dim=1)
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def prompts(seed: int = 0) -> list[list[int]]:
    """Prompts of five lengths."""
    draw = random.Random(seed)
    return [[draw.randrange(3, 61) for _ in range(1 + number // 10 * 4)] for number in range(COUNT)]


@torch.no_grad()
def their_ids(theirs: Any, prompts: list[list[int]], *, each: int = 1, **settings: Any) -> list[list[list[int]]]:
    """The new tokens of each answer up to its end; prompts of one length are generated together, without padding."""
    settings = {"max_new_tokens": NEW, "do_sample": False, "num_return_sequences": each, **settings}
    found = []
    for length in dict.fromkeys(map(len, prompts)):
        ids = torch.tensor([prompt for prompt in prompts if len(prompt) == length])
        start = settings.get("decoder_input_ids")
        more = {} if start is None else {"decoder_input_ids": start.expand(len(ids), -1)}
        output = theirs.generate(ids, attention_mask=torch.ones_like(ids), **{**settings, **more})
        begun = (1 if start is None else start.shape[1]) if theirs.config.is_encoder_decoder else length
        end = theirs.config.eos_token_id
        rows = [row[: row.index(end) + 1] if end in row else row for row in output[:, begun:].tolist()]
        found += [rows[at : at + each] for at in range(0, len(rows), each)]
    return found


@pytest.mark.parametrize("extra", [{}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 6}, {"repetition_penalty": 1.3}])
def test_greedy(pair: tuple[Any, Transformer], extra: dict[str, Any]) -> None:
    theirs, ours = pair
    found = generate_ids(ours, prompts(), max_new_tokens=NEW, sampling=Sampling(temperature=0, **extra))
    assert [[completion.ids] for completion in found] == their_ids(theirs, prompts(), **extra)


BEAMS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"length_penalty": 2.0}, {}),
    ({"length_penalty": -1.0}, {}),
    ({"early_stopping": True}, {"no_repeat_ngram_size": 2}),
    ({"early_stopping": "never"}, {"min_new_tokens": 6}),
    ({}, {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3}),
]


@pytest.mark.parametrize(("beams", "extra"), BEAMS)
def test_beam_search(pair: tuple[Any, Transformer], beams: dict[str, Any], extra: dict[str, Any]) -> None:
    theirs, ours = pair
    found = beam_ids(
        ours, prompts(), max_new_tokens=NEW, beams=Beams(num_beams=4, **beams), sampling=Sampling(**extra), count=2
    )
    ids = [[completion.ids for completion in completions] for completions in found]
    assert ids == their_ids(theirs, prompts(), each=2, num_beams=4, **beams, **extra)
    lengths = {len(answer) for answers in ids for answer in answers}
    assert len(lengths) > 2, "nearly every answer has the same length, so this shows little"


def test_forced_tokens_and_prefixes(pair: tuple[Any, Transformer]) -> None:
    theirs, ours = pair
    few = prompts()[:10]
    end = theirs.config.eos_token_id
    forced = Sampling(forced_eos_id=end)
    found = beam_ids(ours, few, max_new_tokens=6, beams=Beams(num_beams=3), sampling=forced)
    expected = their_ids(theirs, few, num_beams=3, max_new_tokens=6, forced_eos_token_id=end)
    assert [[best.ids] for [best] in found] == expected
    if not theirs.config.is_encoder_decoder:
        with pytest.raises(TriviumError, match="prefix"):
            generate_ids(ours, few, max_new_tokens=6, prefix=[7, 8])
        return
    greedy, start = Sampling(temperature=0), torch.tensor([[ours.config.start_id, 7, 8]])
    begun = generate_ids(ours, few, max_new_tokens=6, sampling=Sampling(temperature=0, forced_bos_id=9))
    assert [[each.ids] for each in begun] == their_ids(theirs, few, max_new_tokens=6, forced_bos_token_id=9)
    led = generate_ids(ours, few, max_new_tokens=6, sampling=greedy, prefix=[7, 8])
    assert [[each.ids] for each in led] == their_ids(theirs, few, max_new_tokens=6, decoder_input_ids=start)
    searched = beam_ids(ours, few, max_new_tokens=6, beams=Beams(num_beams=3), prefix=[7, 8])
    expected = their_ids(theirs, few, max_new_tokens=6, num_beams=3, decoder_input_ids=start)
    assert [[best.ids] for [best] in searched] == expected


def test_sampling_does_not_depend_on_company(pair: tuple[Any, Transformer]) -> None:
    _, ours = pair
    together = generate_ids(ours, prompts()[:9], max_new_tokens=NEW, seeds=5)
    alone = [generate_ids(ours, [prompt], max_new_tokens=NEW, seeds=5)[0] for prompt in prompts()[:9]]
    assert [each.ids for each in together] == [each.ids for each in alone]
    twice = generate_ids(ours, prompts()[:1] * 2, max_new_tokens=NEW, seeds=[5, 6])
    assert twice[0].ids == alone[0].ids != twice[1].ids


# Folders, text in and text out


TEXT = "a dog runs on the grass . ein hund rennt auf dem gras . two men talk in the street\n"


@pytest.fixture(scope="module", params=["t5", "bart"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = train_bpe([TEXT] * 3, vocab_size=300)
    shape: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "hidden_size": 32, "num_layers": 2, "num_heads": 4}
    shape |= {"head_dim": 8, "intermediate_size": 48, "max_positions": 64, "init_std": 0.3}
    shape |= {"eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id, "start_id": tokenizer.eos_id}
    config = preset(f"{request.param}-1m", {**shape, "bos_id": tokenizer.bos_id})
    target = tmp_path_factory.mktemp("models") / request.param
    with write_artifact(target, kind="model") as path:
        save_model(path, config, build_model(config, seed=3).state_dict())
        tokenizer.save(path)
    return target


@pytest.fixture
def model(folder: Path) -> LanguageModel:
    return load(folder)


def test_text_to_text(folder: Path, model: LanguageModel) -> None:
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    answers = model.generate(["a dog runs", "two men"], max_new_tokens=12, details=True)
    for text, answer in zip(["a dog runs", "two men"], answers, strict=True):
        source = source_ids(model.tokenizer, text)
        output = theirs.generate(torch.tensor([source]), max_new_tokens=12, do_sample=False)[0, 1:].tolist()
        assert answer.ids == output[: len(answer.ids)]
        assert answer.prompt_tokens == len(source)
    best = model.generate("a dog runs", num_beams=3, n=2, max_new_tokens=12, details=True)
    assert best[0].score >= best[1].score
    assert model.generate("a dog runs", num_beams=3, max_new_tokens=12) == best[0].text
    stream = model.stream("a dog runs", num_beams=3, max_new_tokens=12)
    assert "".join(stream) == best[0].text == stream.result.text
    assert "".join(model.stream("a dog runs", max_new_tokens=12)) == answers[0].text
    begun = model.generate("a dog runs", prefix="ein hund", max_new_tokens=5, details=True)
    assert len(begun.ids) <= 5
    total = model.score("ein hund rennt", source="a dog runs").total
    other = model.score("ein hund rennt", source="two men talk in the street").total
    assert total < 0
    assert total != other


def test_the_log_probabilities_of_an_answer_are_its_score(model: LanguageModel) -> None:
    best = model.generate("a dog runs", num_beams=3, max_new_tokens=12, length_penalty=0.5, details=True)
    assert best.score == pytest.approx(sum(best.logprobs) / len(best.ids) ** 0.5, abs=1e-4)


def test_the_folder_says_how_to_search(folder: Path, tmp_path: Path) -> None:
    for entry in folder.iterdir():
        (tmp_path / entry.name).write_bytes(entry.read_bytes())
    path = tmp_path / "generation_config.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "num_beams": 4, "length_penalty": 2.0, "max_length": 9, "min_length": 6}))
    told, plain = load(tmp_path), load(folder)
    answer = told.generate("a dog runs", details=True)
    again = plain.generate(
        "a dog runs", num_beams=4, length_penalty=2.0, max_new_tokens=8, min_new_tokens=5, details=True
    )
    assert answer.ids == again.ids
    assert answer.score == again.score
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    source = source_ids(told.tokenizer, "a dog runs")
    output = theirs.generate(torch.tensor([source]))[0, 1:].tolist()
    assert answer.ids == output[: len(answer.ids)]
    # Who asks for chance does not want a search.
    assert told.generate("a dog runs", temperature=1.0, seed=1, details=True).score is None
    assert told.generate("a dog runs", num_beams=1, details=True).score is None


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"num_beams": 3, "temperature": 0.7}, "chance"),
        ({"num_beams": 3, "top_k": 5}, "chance"),
        ({"num_beams": 2, "n": 3}, "beams"),
        ({"length_penalty": 2.0}, "num_beams"),
        ({"num_beams": 3, "stop": "."}, "stop"),
        ({"num_beams": 4, "num_beam_groups": 2}, "diversity_penalty"),
        ({"min_new_tokens": 9, "max_new_tokens": 5}, "shortest"),
        ({"n": 2}, "num_beams"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
    ],
)
def test_settings_that_do_not_go_together(model: LanguageModel, options: dict[str, Any], word: str) -> None:
    with pytest.raises(TriviumError, match=word) as error:
        model.generate("a dog", **options)
    assert error.value.fix
    assert len(str(error.value).splitlines()) <= 5


def test_sources_that_cannot_be_read(model: LanguageModel) -> None:
    with pytest.raises(TriviumError, match="conversation"):
        model.generate([{"role": "user", "content": "a dog"}])
    if model.module.config.positions == "learned":
        with pytest.raises(TriviumError, match="too long"):
            model.generate("a dog runs " * 60)
    else:
        assert isinstance(model.generate("a dog runs " * 60, max_new_tokens=3), str)


def test_what_cannot_write_says_so(tmp_path: Path) -> None:
    config = preset("bert-1m", {"vocab_size": 64, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32})
    module = build_model(config, seed=0)
    with pytest.raises(ModelError, match="encoder"):
        generate_ids(module, [[5, 6]], max_new_tokens=3)
    with pytest.raises(ModelError, match="encoder"):
        beam_ids(module, [[5, 6]], max_new_tokens=3, beams=Beams(num_beams=2))
