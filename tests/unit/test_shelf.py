"""Many adapters on one base: mixed in a batch each row is as if its adapter were alone; swapped, stored, tested."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import trivium as tv
from trivium.cli.main import run
from trivium.errors import ModelError, TriviumError
from trivium.inference.model import LanguageModel, load
from trivium.inference.readout import Example, read_prompt
from trivium.inference.shelf_folder import ShelfFolder
from trivium.models.adapter_folder import base_of, save_adapters
from trivium.models.build import build_model, preset
from trivium.models.folder import load_model, save_model
from trivium.models.transform import apply_transforms
from trivium.registry import component
from trivium.tokenizers.tokenizer import Tokenizer
from trivium.tokenizers.train import train_bpe

SMALL: dict[str, Any] = {"hidden_size": 32, "num_heads": 2, "head_dim": 16, "intermediate_size": 48, "num_layers": 2}
TEXTS = ["the cat sat", "a dog ran over the mat", "cat", "the mat and the dog and the cat", "sat on a mat", "dog"]
ENTRIES: dict[str, list[dict[str, Any]]] = {
    "short": [{"name": "prompt_tuning", "tokens": 2, "init": "random"}],
    "long": [{"name": "p_tuning", "tokens": 7}],
    "prefix": [{"name": "prefix_tuning", "tokens": 3}],
    "low": [{"name": "lora", "rank": 2}],
    "lower": [{"name": "lora", "rank": 3, "target": ["attention.query", "attention.value"]}],
    "both": [{"name": "lora", "rank": 2}, {"name": "prompt_tuning", "tokens": 3, "init": "random"}],
    "ia3": [{"name": "ia3"}],
    "dora": [{"name": "lora", "rank": 2, "dora": True}],
    "bottleneck": [{"name": "bottleneck"}],
}
BASES = {"llama": "llama-1m", "gpt2": "gpt2-1m", "bert": "bert-1m", "t5": "t5-1m"}
SOFT = ("short", "long", "prefix", "low", "lower", "both")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["the cat sat on a mat and a dog ran over it " * 30], vocab_size=300)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A base of each kind, with an adapter of each sort beside it: <base>/ and <base>-<entry>/."""
    place = tmp_path_factory.mktemp("shelf")
    for family, name in BASES.items():
        more = {"num_decoder_layers": 2, "start_id": 0} if family == "t5" else {}
        config = preset(name, {**SMALL, **more, "vocab_size": 300, "init_std": 0.2})
        model = build_model(config, seed=1)
        base = place / family
        base.mkdir()
        save_model(base, config, model.state_dict())
        tokenizer.save(base)
        for entry, transforms in ENTRIES.items():
            if family in ("t5", "gpt2") and entry not in SOFT:
                continue
            write_adapter(place / f"{family}-{entry}", base, transforms)
            tokenizer.save(place / f"{family}-{entry}")
    return place


def write_adapter(folder: Path, base: Path, transforms: list[dict[str, Any]], seed: int = 0, **head: Any) -> Path:
    """A folder of adapters with random values."""
    model = load_model(base, head=head or None)
    model.base = base_of(base)
    made = []
    for settings in transforms:
        cls = component("transforms", settings["name"])
        made.append(cls(cls.Config(**{name: value for name, value in settings.items() if name != "name"})))
    apply_transforms(model, made, seed=seed)
    draw = torch.Generator().manual_seed(seed + len(folder.name))
    with torch.no_grad():
        for transform in made:
            for name in transform.added:
                parameter = model.get_parameter(name)
                parameter.add_(torch.empty(parameter.shape).normal_(0, 0.3, generator=draw))
    folder.mkdir()
    save_adapters(folder, model, dict(model.state_dict()))
    return folder


def shelved(folders: Path, family: str, names: tuple[str, ...]) -> LanguageModel:
    model = load(folders / family)
    for name in names:
        model.shelf.add(name, folders / f"{family}-{name}")
    return model


def alone(folders: Path, family: str, name: str) -> LanguageModel:
    return load(folders / (f"{family}-{name}" if name else family))


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_a_mixed_batch_says_what_each_adapter_says_alone(folders: Path, family: str) -> None:
    names = tuple(ENTRIES) if family == "llama" else SOFT
    model = shelved(folders, family, names)
    rows = [(text, name) for text in TEXTS[:3] for name in (*names, "")]
    texts, adapters = [text for text, _ in rows], [name for _, name in rows]
    sources = {"source": texts} if family == "t5" else {}
    scores = model.score(texts, adapter=adapters, **sources)
    answers = model.generate(texts, adapter=adapters, details=True, max_new_tokens=5, temperature=0)
    beams = model.generate(texts, adapter=adapters, details=True, max_new_tokens=4, num_beams=2)
    differing = 0
    for name in (*names, ""):
        single, mine = alone(folders, family, name), [row for row, own in enumerate(adapters) if own == name]
        own = [texts[row] for row in mine]
        expected = single.score(own, **({"source": own} if sources else {}))
        answered = single.generate(own, details=True, max_new_tokens=5, temperature=0)
        searched = single.generate(own, details=True, max_new_tokens=4, num_beams=2)
        for row, score, answer, found in zip(mine, expected, answered, searched, strict=True):
            assert scores[row].logprobs == pytest.approx(score.logprobs, abs=1e-4)
            assert answers[row].ids == answer.ids
            assert answers[row].logprobs == pytest.approx(answer.logprobs, abs=1e-4)
            assert beams[row].ids == found.ids
        plain = model.score(own, **({"source": own} if sources else {}))
        differing += any(abs(a.total - b.total) > 1e-2 for a, b in zip(plain, expected, strict=True))
    assert differing == len(names)


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_vectors_of_a_mixed_batch(folders: Path, family: str, pooling: str) -> None:
    names = SOFT if family == "t5" else tuple(ENTRIES)
    model = shelved(folders, family, names)
    adapters: list[str | None] = [*names, None]
    texts = [TEXTS[number % len(TEXTS)] for number in range(len(adapters))]
    found = model.embed(texts, adapter=adapters, pooling=pooling)
    for vector, text, name in zip(found, texts, adapters, strict=True):
        expected = alone(folders, family, name or "").embed(text, pooling=pooling)
        torch.testing.assert_close(vector, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_each_row_has_the_head_of_its_adapter(folders: Path, tmp_path: Path, tokenizer: Tokenizer, family: str) -> None:
    heads = {"mood": ("good", "bad"), "topic": ("a", "b", "c")}
    model = load(folders / family)
    for number, (name, labels) in enumerate(heads.items()):
        transforms = ENTRIES["low" if number else "short"]
        folder = write_adapter(tmp_path / name, folders / family, transforms, number, head="sequence", labels=labels)
        tokenizer.save(folder)
        model.shelf.add(name, folder)
    adapters = ["mood", "topic", "topic", "mood", "topic", "mood"]
    found = model.classify(TEXTS, adapter=adapters)
    for text, name, one in zip(TEXTS, adapters, found, strict=True):
        expected = load(tmp_path / name).classify([text])[0]
        assert one.labels == expected.labels and set(one.scores) == set(heads[name])
        assert one.scores == pytest.approx(expected.scores, abs=1e-4)
    assert [entry.labels for entry in model.shelf.entries()] == list(heads.values())
    with pytest.raises(ModelError, match="no head for that"):
        model.classify(TEXTS)


def test_entries_come_and_go_and_the_base_keeps_every_bit(folders: Path) -> None:
    model = load(folders / "llama")
    before = digest(model)
    names = {name for name, _ in model.module.named_parameters()}
    plain = model.score(TEXTS[1])
    for round_ in range(2):
        for name in ENTRIES:
            model.shelf.add(name, folders / f"llama-{name}")
        rows = [name for name in ENTRIES]
        model.generate([TEXTS[0]] * len(rows), adapter=rows, max_new_tokens=3, seed=1)
        assert model.score(TEXTS[1]).logprobs == plain.logprobs, "without an adapter it is the base, bit for bit"
        for name in list(ENTRIES)[round_:]:
            model.shelf.remove(name)
        if round_:
            model.shelf.remove(next(iter(ENTRIES)))
    assert digest(model) == before and len(model.shelf) == 0
    assert {name for name, _ in model.module.named_parameters()} == names
    assert all(type(part).__name__ != "AdaptedLinear" for part in model.module.modules())
    file = (folders / "llama" / "model.safetensors").read_bytes()
    assert digest(load(folders / "llama")) == before and file


def digest(model: LanguageModel) -> str:
    """A hash of all weights of the base."""
    own = {name: p for name, p in model.module.named_parameters() if not name.startswith("prompts.")}
    parts = (
        name.encode() + p.detach().numpy().tobytes() for name, p in sorted(own.items()) if ".branches." not in name
    )
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_an_entry_takes_a_few_kilobytes_and_can_be_replaced(folders: Path) -> None:
    model = shelved(folders, "llama", ("short", "low"))
    short, low = model.shelf.entries()
    assert (short.kinds, short.virtual_tokens, short.bytes) == (("PROMPT_TUNING",), 2, 2 * 32 * 4)
    assert low.kinds == ("LORA",) and low.virtual_tokens == 0
    before = model.score(TEXTS[0], adapter="short").total
    model.shelf.add("short", folders / "llama-long")
    expected = alone(folders, "llama", "long").score(TEXTS[0]).total
    assert model.score(TEXTS[0], adapter="short").total == pytest.approx(expected, abs=1e-4) != before
    assert len(model.module.prompts) == 1


def test_what_does_not_belong_on_the_shelf_is_refused(folders: Path, tmp_path: Path) -> None:
    model = shelved(folders, "llama", ("short",))
    with pytest.raises(ModelError, match="not the base"):
        model.shelf.add("other", folders / "gpt2-short")
    assert len(model.shelf) == 1
    changed = write_adapter(
        tmp_path / "changed", folders / "llama", [*ENTRIES["low"], {"name": "trainable", "last_layers": 1}]
    )
    with pytest.raises(ModelError, match="changes its base"):
        model.shelf.add("changed", changed)
    assert not [name for name, _ in model.module.named_parameters() if ".branches." in name]
    with pytest.raises(TriviumError, match="no such adapter"):
        model.generate("the", adapter="shrt")
    with pytest.raises(TriviumError, match="each row needs"):
        model.generate(["the", "cat"], adapter=["short"])
    with pytest.raises(TriviumError, match="cannot have this name"):
        model.shelf.add("../short", folders / "llama-short")


# On the disk


@pytest.fixture
def stored(folders: Path, tmp_path: Path) -> Path:
    """A shelf with two entries, one of them in two versions, with tests that hold."""
    shelf = tmp_path / "shelf"
    base = str(folders / "llama")
    model = shelved(folders, "llama", ("short", "low"))
    for name in ("short", "low"):
        answers = model.generate(TEXTS[:2], adapter=name, max_new_tokens=3, temperature=0)
        cases = [
            {"input": text, "expected": answer.strip(), "max_new_tokens": 3}
            for text, answer in zip(TEXTS, answers, strict=False)
            if answer.strip()
        ]
        assert cases
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
        command = ["prompt", "shelf", "add", str(shelf), name, str(folders / f"llama-{name}"), "--base", base]
        assert run([*command, "--tests", str(tmp_path / f"{name}.jsonl")]) == 0
    return shelf


def test_a_stored_shelf_is_a_model(stored: Path, folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from trivium.artifacts.manifest import verify

    verify(stored)
    assert not list(stored.rglob("tokenizer*"))
    model = tv.load(stored)
    expected = alone(folders, "llama", "low").generate(TEXTS[0], max_new_tokens=4, temperature=0)
    assert model.generate(TEXTS[0], adapter="low", max_new_tokens=4, temperature=0) == expected
    capsys.readouterr()
    common = [TEXTS[0], "--max-new-tokens", "4", "--temperature", "0", "--no-stream"]
    assert run(["generate", str(stored), *common, "--adapter", "low"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == expected.rstrip("\n")
    assert run(["generate", str(folders / "llama"), *common, "--adapter", str(folders / "llama-low")]) == 0
    assert capsys.readouterr().out.rstrip("\n") == expected.rstrip("\n")


def test_tests_of_entries_hold_until_a_version_breaks_them(
    stored: Path, folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["prompt", "shelf", "test", str(stored), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["failed"] == 0 and result["passed"] >= 2
    assert run(["prompt", "shelf", "add", str(stored), "short", str(folders / "llama-prefix")]) == 0
    shelf = ShelfFolder(stored)
    assert shelf.entries()["short"] == {"version": 2, "versions": [1, 2]}
    capsys.readouterr()
    assert run(["prompt", "shelf", "test", str(stored), "short"]) != 0
    assert "expected" in capsys.readouterr().out
    assert run(["prompt", "shelf", "choose", str(stored), "short"]) == 0
    assert ShelfFolder(stored).entries()["short"]["version"] == 1
    assert run(["prompt", "shelf", "test", str(stored), "short"]) == 0
    assert run(["prompt", "shelf", "choose", str(stored), "short"]) != 0
    assert run(["prompt", "shelf", "choose", str(stored), "short", "--version", "2"]) == 0
    capsys.readouterr()
    assert run(["prompt", "shelf", "list", str(stored), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["entries"]
    assert [(each["name"], each["version"], each["tests"] > 0) for each in listed] == [
        ("short", 2, True),
        ("low", 1, True),
    ]
    assert run(["prompt", "shelf", "remove", str(stored), "short"]) == 0
    assert list(ShelfFolder(stored).entries()) == ["low"] and not (stored / "short").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "no test case"),
        ('{"input": "a"}', "required"),
        ('{"input": "a", "expected": "b", "mtch": "exact"}', "Extra"),
    ],
)
def test_a_wrong_test_names_its_line(stored: Path, folders: Path, tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "wrong.jsonl"
    file.write_text('{"input": "a", "expected": "b"}\n' + line + "\n")
    with pytest.raises(TriviumError, match=message) as caught:
        ShelfFolder(stored).add("short", folders / "llama-short", tests=file)
    assert f"{file}:2" in str(caught.value)


def test_another_base_is_refused(stored: Path, folders: Path) -> None:
    with pytest.raises(ModelError, match="not the base"):
        ShelfFolder(stored).add("x", folders / "gpt2-short")
    with pytest.raises(ModelError, match="its weights differ"):
        _ = ShelfFolder(stored, base=folders / "gpt2").base


# In words


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("measure", ["cosine", "dot"])
def test_a_prompt_that_is_words_reads_as_these_and_loses_nothing(
    folders: Path, tmp_path: Path, tokenizer: Tokenizer, family: str, measure: Any
) -> None:
    base = folders / family
    model = load_model(base)
    model.base = base_of(base)
    cls = component("transforms", "prompt_tuning")
    transform = cls(cls.Config(init="text", text="the dog and a cat"))
    transform.read(tokenizer)
    apply_transforms(model, [transform], seed=0)
    for number, folder in enumerate((tmp_path / "words", tmp_path / "other")):
        folder.mkdir()
        with torch.no_grad():
            model.get_parameter(transform.added[0]).mul_(1 + number)
        save_adapters(folder, model, dict(model.state_dict()))
    opened = load(base)
    opened.shelf.add("words", tmp_path / "words")
    opened.shelf.add("other", tmp_path / "other")
    examples = [Example(text, "the mat ran") for text in (*TEXTS, "" if family == "llama" else "cat")]
    reading = read_prompt(opened, "words", examples=examples, measure=measure, top=3)
    if measure == "cosine":
        assert reading.text == "the dog and a cat" and all(near[0].value > 0.999 for near in reading.nearest)
        assert reading.worth is not None and reading.worth.words == pytest.approx(reading.worth.soft, abs=1e-5)
        longer = read_prompt(opened, "other", examples=examples).worth
        assert longer is not None and abs(longer.words - longer.soft) > 1e-4, "twice as long, the same words"
        assert longer.words == pytest.approx(reading.worth.words, abs=1e-5)
        assert longer.nothing == pytest.approx(reading.worth.nothing, abs=1e-6)
    else:
        table, vectors = opened.module.embed.weight[:300], model.get_parameter(transform.added[0]) / 2
        best = (vectors @ table.t()).max(dim=1).indices.tolist()
        assert [near[0].id for near in reading.nearest] == best
    assert all(len(near) == 3 for near in reading.nearest)


def test_reading_from_the_command_line(
    stored: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "the cat", "completion": " sat on a mat"}\n{"text": "a dog ran"}\n')
    capsys.readouterr()
    command = ["prompt", "read", str(folders / "llama-short"), "--data", str(data), "--top", "2"]
    assert run([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [len(each) for each in result["nearest"]] == [2, 2]
    worth = result["worth"]
    assert worth["tokens"] > 5 and len({worth["soft"], worth["words"], worth["nothing"]}) == 3
    assert run(command) == 0
    assert "with these words" in capsys.readouterr().out
    assert run(["prompt", "read", str(stored), "--name", "short"]) == 0
    assert "was not measured" in capsys.readouterr().out
    assert run(["prompt", "read", str(stored), "--name", "low"]) != 0
    assert "only a soft prompt by itself" in capsys.readouterr().err
