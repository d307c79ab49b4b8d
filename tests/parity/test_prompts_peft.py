"""Virtual tokens as PEFT has them: the same folder gives the same logits here and there, in both directions."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor

from trivium.data.batch import Layout, Source
from trivium.models.adapter_folder import base_of, save_adapters
from trivium.models.folder import load_model
from trivium.models.transform import Transform, apply_transforms
from trivium.models.transformer import Transformer
from trivium.registry import component

VOCABULARY, COUNT = 64, 5
SIZES = {"vocab_size": VOCABULARY, "num_labels": 3, "initializer_range": 0.3, "pad_token_id": 0}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"num_key_value_heads": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40},
    "bert": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    "t5": {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 3, "num_heads": 4, "decoder_start_token_id": 0},
}
CLASSES = {
    ("CAUSAL_LM", "llama"): "LlamaForCausalLM",
    ("CAUSAL_LM", "gpt2"): "GPT2LMHeadModel",
    ("SEQ_CLS", "llama"): "LlamaForSequenceClassification",
    ("SEQ_CLS", "gpt2"): "GPT2ForSequenceClassification",
    ("SEQ_CLS", "bert"): "BertForSequenceClassification",
    ("TOKEN_CLS", "bert"): "BertForTokenClassification",
    ("SEQ_2_SEQ_LM", "t5"): "T5ForConditionalGeneration",
}
KINDS = {
    "prompt_tuning": (peft.PromptTuningConfig, {}),
    "p_tuning": (peft.PromptEncoderConfig, {"encoder_hidden_size": 24}),
    "prefix_tuning": (peft.PrefixTuningConfig, {}),
}
CASES = [(task, family, kind) for task, family in CLASSES for kind in KINDS]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def base_folder(folder: Path, task: str, family: str) -> tuple[Path, Any]:
    """A random model of transformers, in a folder."""
    shape = {**SIZES, **SHAPES[family]}
    shape |= {"initializer_factor": 1.0} if family == "t5" else {}
    config = transformers.AutoConfig.for_model(family, **shape)
    model = getattr(transformers, CLASSES[task, family])(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    path = folder / "base"
    model.save_pretrained(path)
    return path, model


def their_logits(model: Any, task: str, rows: list[list[int]], answers: list[list[int]]) -> list[Tensor]:
    """Logits of each row by itself, without those of virtual tokens."""
    found = []
    for row, answer in zip(rows, answers, strict=True):
        ids = torch.tensor([row])
        extra = {"decoder_input_ids": torch.tensor([answer])} if task == "SEQ_2_SEQ_LM" else {}
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **extra).logits[0]
        found.append(logits if task == "SEQ_CLS" else logits[-len(answer if extra else row) :])
    return found


def our_logits(model: Transformer, task: str, rows: list[list[int]], answers: list[list[int]]) -> list[Tensor]:
    """The same in one ragged batch."""
    first = answers if task == "SEQ_2_SEQ_LM" else rows
    layout, source = Layout(tuple(map(len, first))), None
    if first is answers:
        source = Source(torch.tensor([*chain(*rows)]), Layout(tuple(map(len, rows))))
    with torch.no_grad():
        logits = model.eval()(torch.tensor([*chain(*first)]), layout, source=source)
    return list(logits) if task == "SEQ_CLS" else [logits[start:end] for start, end in layout.spans()]


def rows_of(seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    stream = torch.Generator().manual_seed(seed)

    def draw(count: int) -> list[int]:
        return list(torch.randint(3, VOCABULARY, (count,), generator=stream).tolist())

    return [draw(7), draw(3), draw(11), draw(7)], [[0, *draw(4)], [0], [0, *draw(2)], [0, *draw(6)]]


def assert_alike(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


def their_adapter(base: Any, task: str, kind: str, **settings: Any) -> Any:
    cls, more = KINDS[kind]
    model = peft.get_peft_model(base, cls(task_type=task, num_virtual_tokens=COUNT, **more, **settings)).eval()
    for name, parameter in model.named_parameters():
        if "prompt_encoder" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize(("task", "family", "kind"), CASES)
def test_a_folder_of_peft_gives_the_same_logits_here(task: str, family: str, kind: str, tmp_path: Path) -> None:
    path, base = base_folder(tmp_path, task, family)
    theirs = their_adapter(base, task, kind)
    theirs.save_pretrained(tmp_path / "adapter")
    rows, answers = rows_of()
    model = load_model(tmp_path / "adapter", base=path)
    plain = our_logits(load_model(path), task, rows, answers)
    ours = our_logits(model, task, rows, answers)
    assert_alike(ours, their_logits(theirs, task, rows, answers))
    assert max((a - b).abs().max() for a, b in zip(ours, plain, strict=True)) > 1e-2


@pytest.mark.parametrize(("task", "family", "kind"), CASES)
def test_a_folder_of_ours_gives_the_same_logits_in_peft(task: str, family: str, kind: str, tmp_path: Path) -> None:
    path, base = base_folder(tmp_path, task, family)
    model = load_model(path)
    model.base = base_of(path)
    cls = component("transforms", kind)
    settings = {"tokens": COUNT, **({"hidden_size": 24} if kind == "p_tuning" else {})}
    transform: Transform = cls(cls.Config(**settings))
    apply_transforms(model, [transform], seed=1)
    with torch.no_grad():
        for name in transform.added:
            model.get_parameter(name).normal_(std=0.5)
    (tmp_path / "ours").mkdir()
    save_adapters(tmp_path / "ours", model, dict(model.state_dict()))
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    rows, answers = rows_of(1)
    expected = their_logits(theirs, task, rows, answers)
    assert_alike(our_logits(model, task, rows, answers), expected)
    assert_alike(our_logits(load_model(tmp_path / "ours"), task, rows, answers), expected)
