"""Whole runs of supervised tuning: dialogues as prompts, a system message, what is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import trivium as tv
from trivium.errors import TriviumError
from trivium.tokenizers.templates import PLAIN
from trivium.tokenizers.train import train_bpe

TURNS = [
    {"role": "user", "content": "What does it do?"},
    {"role": "assistant", "content": "It adds."},
    {"role": "user", "content": "And then?"},
]


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    tokenizer = train_bpe(["What does it do? It adds two numbers together. " * 30], vocab_size=320)
    (tmp_path / "tokenizer").mkdir()
    tokenizer.save(tmp_path / "tokenizer")
    rows = [{"messages": [*TURNS, {"role": "assistant", "content": f"It says {number}."}]} for number in range(8)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "name": "run",
        "runs": str(tmp_path / "runs"),
        "method": "sft",
        "model": {"preset": "llama-1m", "config": {"vocab_size": 320, "num_layers": 1}},
        "tokenizer": str(tmp_path / "tokenizer"),
        "data": {
            "train": str(tmp_path / "data.jsonl"),
            "validation": str(tmp_path / "data.jsonl"),
            "sequence_length": 64,
        },
        "train": {"steps": 2, "batch_size": 2, "sample_prompts": ["What?", TURNS], "sample_tokens": 3},
    }


def changed(recipe: dict[str, Any], section: str, **settings: Any) -> dict[str, Any]:
    return {**recipe, section: {**recipe[section], **settings}}


def test_dialogues_are_continued_and_shown(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from trivium.inference import engine

    asked: list[list[int]] = []
    generate = engine.generate_ids

    def seen(model: Any, ids: list[list[int]], **named: Any) -> Any:
        asked[:] = ids
        return generate(model, ids, **named)

    monkeypatch.setattr(engine, "generate_ids", seen)
    run = tv.train(changed(recipe, "data", chat={"system": "Be brief."}))
    tokenizer = tv.load(run.final).tokenizer
    texts = [tokenizer.decode(ids, skip_special=False) for ids in asked]
    assert texts[0] == "<|bos|><|system|>Be brief.<|user|>What?<|assistant|>"
    assert texts[1].endswith("<|assistant|>It adds.<|eos|><|user|>And then?<|assistant|>")
    samples = json.loads((run.folder / "samples" / "step-00000002.json").read_text())["samples"]
    shown = "user: What does it do?\nassistant: It adds.\nuser: And then?"
    assert [sample["prompt"] for sample in samples] == ["What?", shown]
    assert "assistant: It adds." in (run.folder / "report.html").read_text()


def test_accuracy_and_entropy_are_reported(recipe: dict[str, Any]) -> None:
    run = tv.train(changed(recipe, "data", chat={"prompt_loss_weight": 0.5}))
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"train", "validation"}
    for line in lines:
        assert {"objective", "nll", "accuracy", "entropy"} <= line.keys()
        assert line["loss"] == pytest.approx(line["objective"]) and line["loss"] != pytest.approx(line["nll"])
        assert 0 <= line["accuracy"] <= 1 and line["entropy"] > 0
    # Bits per byte count each trained token once, whatever its weight.
    assert "bits_per_byte" in lines[-1]


def test_prompts_that_are_no_dialogue_are_refused_before_the_run(recipe: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TriviumError, match="role of a message"):
        tv.train(changed(recipe, "train", sample_prompts=[[{"role": "end", "content": "a"}]]))
    bare = tmp_path / "bare"
    bare.mkdir()
    train_bpe(["What? " * 30], vocab_size=320).with_chat_template(PLAIN).save(bare)
    for file in bare.glob("chat_template*"):
        file.unlink()
    config = bare / "tokenizer_config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "chat_template"}))
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    plain = changed({**recipe, "tokenizer": str(bare)}, "data", train=str(rows), validation=[])
    with pytest.raises(TriviumError, match="no chat template"):
        tv.train(plain)
    assert not (tmp_path / "runs" / "run" / "checkpoints").exists()


def test_rows_of_an_update_are_of_similar_length(recipe: dict[str, Any], tmp_path: Path) -> None:
    from trivium.config import resolve
    from trivium.drivers.session import open_session

    rows = [{"prompt": "a", "completion": "It adds. " * (1 + number % 6)} for number in range(60)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spread = {}
    for grouped in (True, False):
        settings = changed(recipe, "data", packing="none", group_by_length=grouped, validation=[])
        session = open_session(resolve(changed(settings, "train", batch_size=5)))
        lengths = [session.loader.update(step)[0].layout.lengths for step in range(24)]
        session.close()
        spread[grouped] = sum(max(each) - min(each) for each in lengths)
    assert spread[True] * 3 < spread[False]
    for wrong in ({"packing": "best_fit"}, {"packing": "none", "shuffle": False}):
        with pytest.raises(TriviumError, match="group_by_length has no effect"):
            resolve(changed(recipe, "data", group_by_length=True, **wrong))
