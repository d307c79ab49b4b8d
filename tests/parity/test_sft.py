"""Supervised tuning here and in TRL: the same tokens, the same masks, the same losses from update to update."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import trivium as tv
from trivium.errors import TriviumError
from trivium.tokenizers.tokenizer import Tokenizer
from trivium.tokenizers.train import SPECIAL, train_bpe

transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

from tests.parity.test_tokenizer_transformers import CONVERSATIONS  # noqa: E402

ENDS = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|END_OF_TURN_TOKEN|>"]
TALKS = json.loads(json.dumps(CONVERSATIONS).replace("\\ud83d\\ude00", ":)"))
"""Without emoji: transformers leaves all but the first token of the last character out of a mask."""
TEXTS = ["What does it do? It adds two numbers together, and says so. ", "rain in the city? yes, take a coat. "]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([text * 20 for text in TEXTS], vocab_size=420, special=[e for e in ENDS if e not in SPECIAL])


def marked_templates() -> list[Path]:
    folder = Path(trl.__file__).parent / "chat_templates"
    return sorted(folder.glob("*_training.jinja"))


def load(folder: Path, tokenizer: Tokenizer, template: Path) -> tuple[Tokenizer, Any]:
    """The tokenizer with a template, here and there."""
    ours = tokenizer.with_chat_template(template.read_text(encoding="utf-8"))
    ours.save(folder)
    return ours, transformers.AutoTokenizer.from_pretrained(folder)


def test_ids_and_masks_of_marked_templates(tokenizer: Tokenizer, tmp_path: Path) -> None:
    compared = 0
    for template in marked_templates():
        folder = tmp_path / template.stem
        folder.mkdir()
        ours, theirs = load(folder, tokenizer, template)
        for messages, tools in TALKS:
            try:
                mine = ours.encode_chat(messages, tools=tools)
            except TriviumError:
                continue
            reference = theirs.apply_chat_template(
                messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True
            )
            extra = len(mine.ids) - len(reference["input_ids"])  # the end token, where a template writes none
            assert mine.ids[: len(mine.ids) - extra] == reference["input_ids"], template.name
            assert [int(flag) for flag in mine.trained][: len(mine.ids) - extra] == reference["assistant_masks"]
            assert extra in (0, 1) and mine.ids[len(mine.ids) - extra :] == [ours.eos_id] * extra
            compared += 1
    assert compared > 60 or not marked_templates()


@pytest.mark.parametrize(
    "name", ["cohere2", "gemma3", "llama3", "lfm2_v2", "phi3", "qwen2_5_vl", "qwen3_instruct_2507", "qwen3_vl"]
)
def test_masks_without_marks_are_those_with_marks(tokenizer: Tokenizer, name: str) -> None:
    """A template and its twin with marks: the same answers, but for white space behind the end token."""
    folder = Path(trl.__file__).parent / "chat_templates"
    plain, twin = (folder / f"{name}{kind}.jinja" for kind in ("", "_training"))
    if not plain.is_file() or not twin.is_file():
        pytest.skip("this version of trl does not have it")
    pair = [tokenizer.with_chat_template(one.read_text(encoding="utf-8")) for one in (plain, twin)]
    compared = 0
    for messages, tools in TALKS:
        try:
            mine, marked = (one.encode_chat(messages, tools=tools) for one in pair)
        except TriviumError:  # no system message, no tools: see tests/unit/test_chat.py
            continue
        assert mine.ids == marked.ids
        texts = [tokenizer.decode([token], skip_special=False) for token in mine.ids]
        differing = [
            place for place, flags in enumerate(zip(mine.trained, marked.trained, strict=True)) if flags[0] != flags[1]
        ]
        assert all(texts[place].isspace() and not mine.trained[place] for place in differing)
        assert any(mine.trained)
        compared += 1
    assert compared >= 2


def chats() -> list[dict[str, Any]]:
    answers = ["It adds.", "Yes, take a coat.", "It adds two numbers together, and says so.", "No."]
    return [
        {
            "messages": [
                {"role": "user", "content": f"What {number} " * (1 + number % 5)},
                {"role": "assistant", "content": answers[number % 4]},
                {"role": "user", "content": "rain?"},
                {"role": "assistant", "content": answers[(number // 4) % 4]},
            ]
        }
        for number in range(16)
    ]


@pytest.mark.parametrize(
    ("family", "setting"),
    [
        ("qwen2", "padding_free"),
        pytest.param("llama", "padded", marks=pytest.mark.slow),
        pytest.param("llama", "padding_free", marks=pytest.mark.slow),
        pytest.param("qwen2", "padded", marks=pytest.mark.slow),
    ],
)
def test_losses_are_those_of_trl(tmp_path: Path, family: str, setting: str) -> None:
    """Four updates of AdamW over the same rows, in the order of the file."""
    tokenizer = train_bpe([text * 20 for text in TEXTS], vocab_size=300)
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats()))
    start = tmp_path / "start"
    shape = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    }
    torch.manual_seed(0)
    kind = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}[family]
    model = transformers.AutoModelForCausalLM.from_config(kind(**shape), dtype=torch.float32)
    model.save_pretrained(start)
    tokenizer.save(start)
    run = tv.train(
        {
            "name": "ours",
            "runs": str(tmp_path / "runs"),
            "method": "sft",
            "model": {"path": str(start)},
            "data": {
                "train": str(tmp_path / "data.jsonl"),
                "packing": "none",
                "shuffle": False,
                "sequence_length": 128,
            },
            "train": {
                "steps": 4,
                "batch_size": 4,
                "lr": 1e-2,
                "schedule": "constant",
                "warmup_steps": 0,
                "optimizer": {"name": "adamw", "weight_decay": 0.0, "beta2": 0.95},
                "clip": 1.0,
            },
        }
    )
    ours = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    trainer = trl.SFTTrainer(
        model,
        trl.SFTConfig(
            output_dir=str(tmp_path / "theirs"),
            per_device_train_batch_size=4,
            max_steps=4,
            use_cpu=True,
            bf16=False,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            adam_beta2=0.95,
            max_grad_norm=1.0,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            assistant_only_loss=True,
            train_sampling_strategy="sequential",
            **({"padding_free": True, "max_length": None} if setting == "padding_free" else {"max_length": 128}),
        ),
        train_dataset=datasets.Dataset.from_list(chats()),
        processing_class=transformers.AutoTokenizer.from_pretrained(start),
    )
    trainer.train()
    theirs = [line for line in trainer.state.log_history if "loss" in line]
    assert len(ours) == len(theirs) == 4
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-4, abs=1e-5)
        assert mine["accuracy"] == pytest.approx(other["mean_token_accuracy"], abs=1e-6)
        assert mine["entropy"] == pytest.approx(other["entropy"], rel=1e-4, abs=1e-4)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
