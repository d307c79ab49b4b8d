"""Students: which layers they take, what their weights are, and that they are models like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from trivium.cli.main import run
from trivium.data.batch import Layout, Source
from trivium.errors import ModelError
from trivium.models.build import build_model, preset
from trivium.models.config import ModelConfig
from trivium.models.folder import load_model, save_model
from trivium.models.student import choose_layers, make_student, student_config
from trivium.models.transformer import Transformer
from trivium.tokenizers.train import train_bpe

TINY: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 32, "num_layers": 6, "num_heads": 4, "intermediate_size": 48, "max_positions": 40,
    "bos_id": 1, "eos_id": 2, "pad_id": 0, "init_std": 0.3,
}  # fmt: skip


def teacher_of(name: str, **changes: Any) -> Transformer:
    """With biases and norms that differ from each other, so that a mix-up shows."""
    model = build_model(preset(name, {**TINY, **changes}), seed=1).eval()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            if parameter.dim() == 1:
                generator = torch.Generator().manual_seed(number)
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def student_of(teacher: Transformer, changes: dict[str, Any], **options: Any) -> Transformer:
    return make_student(teacher, student_config(teacher.config, changes), **options).eval()


IDS = torch.arange(3, 23)


def assert_same(student: Transformer, teacher: Transformer) -> None:
    """Up to rounding: sums over fewer columns are added in another order, and which one depends on the processor."""
    torch.testing.assert_close(student(IDS, Layout((20,))), teacher(IDS, Layout((20,))), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("teacher", "student", "choice", "expected"),
    [
        (12, 6, "spread", (0, 2, 4, 7, 9, 11)),
        (12, 6, "alternate", (0, 2, 4, 6, 8, 10)),
        (12, 4, "alternate", (0, 3, 6, 9)),
        (12, 3, "first", (0, 1, 2)),
        (12, 3, "last", (9, 10, 11)),
        (12, 1, "spread", (0,)),
        (5, 5, "spread", (0, 1, 2, 3, 4)),
        (7, 3, "alternate", (0, 2, 4)),
        (4, 3, [3, 0, 0], (3, 0, 0)),
    ],
)
def test_choices_of_layers(teacher: int, student: int, choice: Any, expected: tuple[int, ...]) -> None:
    assert choose_layers(teacher, student, choice) == expected


@pytest.mark.parametrize("choice", ["spread", "middle", [0, 1], [0, 1, 6], [0, 1, -1]])
def test_impossible_layers_are_refused(choice: Any) -> None:
    with pytest.raises(ModelError, match="layers"):
        choose_layers(2 if choice == "spread" else 6, 3, choice)


@pytest.mark.parametrize("name", ["bert-1m", "llama-1m", "gpt2-1m", "distilbert-1m", "roberta-1m"])
@torch.no_grad()
def test_a_student_with_all_layers_is_the_teacher(name: str) -> None:
    teacher = teacher_of(name)
    student = student_of(teacher, {})
    assert_same(student, teacher)
    for one, two in zip(student.parameters(), teacher.parameters(), strict=True):
        assert one.data_ptr() != two.data_ptr()


@torch.no_grad()
def test_dropped_layers_leave_the_others_as_they_were() -> None:
    teacher = teacher_of("llama-1m")
    student = student_of(teacher, {"num_layers": 3}, layers="last")
    for block in list(teacher.blocks)[:3]:  # a block that adds nothing is not there
        block.attention.output.weight.zero_()
        block.mlp.down.weight.zero_()
    assert_same(student, teacher)


@torch.no_grad()
def test_a_narrower_student_has_the_first_part_of_every_weight() -> None:
    """The same as a teacher whose other heads and neurons say nothing."""
    teacher = teacher_of("llama-1m", num_kv_heads=2)
    narrow = {"num_heads": 2, "head_dim": 8, "intermediate_size": 20}
    student = student_of(teacher, narrow)
    assert student.config.num_kv_heads == 1
    for block in teacher.blocks:
        block.attention.output.weight[:, 16:] = 0
        block.mlp.down.weight[:, 20:] = 0
    assert_same(student, teacher)


@torch.no_grad()
def test_the_coordinates_of_a_head_stay_together() -> None:
    teacher = teacher_of("bert-1m")
    student = student_of(teacher, {"hidden_size": 16, "num_layers": 2, "intermediate_size": 24})
    assert (student.config.head_dim, student.config.num_heads) == (4, 4)
    theirs, ours = teacher.blocks[5].attention, student.blocks[1].attention
    rows = [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27]
    assert torch.equal(ours.key.weight, theirs.key.weight[rows, :16])
    assert torch.equal(ours.key.bias, theirs.key.bias[rows])
    assert torch.equal(ours.output.weight, theirs.output.weight[:16, rows])
    assert torch.equal(ours.output.bias, theirs.output.bias[:16])
    assert torch.equal(student.embed.weight, teacher.embed.weight[:, :16])
    assert torch.equal(student.blocks[1].mlp.up.weight, teacher.blocks[5].mlp.up.weight[:24, :16])


@pytest.mark.parametrize("name", ["bert-1m", "roberta-1m"])
@torch.no_grad()
def test_distilbert_from_another_family_gives_the_same_numbers(name: str) -> None:
    teacher = teacher_of(name, norm_eps=1e-12)
    changes = {"family": "distilbert", "token_types": 0, "position_offset": 0, "bos_id": None, "eos_id": None}
    student = student_of(teacher, changes)
    assert_same(student, teacher)


@torch.no_grad()
def test_encoder_and_decoder_lose_layers_apart() -> None:
    pytest.importorskip("trivium.models.families.t5")
    shape = {"num_layers": 4, "num_decoder_layers": 4, "num_heads": 4, "head_dim": 8, "hidden_size": 32}
    teacher = teacher_of("t5-30m", **shape)
    student = student_of(teacher, {"num_layers": 2, "num_decoder_layers": 1}, decoder_layers="last")
    source = Source(IDS, Layout((20,)))
    assert student.encoder is not None and teacher.encoder is not None
    assert torch.equal(student.encoder.blocks[1].mlp.down.weight, teacher.encoder.blocks[3].mlp.down.weight)
    assert torch.equal(student.blocks[0].cross.key.weight, teacher.blocks[3].cross.key.weight)
    assert torch.isfinite(student(IDS[:5], Layout((5,)), source=source)).all()


def test_a_fresh_student_has_random_weights() -> None:
    teacher = teacher_of("bert-1m")
    config = student_config(teacher.config, {"num_layers": 2, "hidden_size": 64, "intermediate_size": 96})
    assert config.head_dim == 16
    one, two = (make_student(teacher, config, fresh=True, seed=seed) for seed in (0, 1))
    assert torch.equal(one.embed.weight, build_model(config, seed=0).embed.weight)
    assert not torch.equal(one.embed.weight, two.embed.weight)


@pytest.mark.parametrize(
    ("name", "changes", "fragment"),
    [
        ("bert-1m", {"hidden_size": 64}, "hidden_size"),
        ("bert-1m", {"vocab_size": 200}, "tokenizer"),
        ("bert-1m", {"num_layers": 9}, "6 layers"),
        ("bert-1m", {"hiden_size": 16}, "did you mean 'hidden_size'"),
        ("bert-1m", {"family": "distilbert"}, "token_types must be 0"),
        ("llama-1m", {"hidden_size": 16}, "rotary"),
        ("llama-1m", {"positions": "none"}, "positions"),
    ],
)
def test_what_a_student_cannot_be_is_said(name: str, changes: dict[str, Any], fragment: str) -> None:
    with pytest.raises(ModelError) as caught:
        student_of(teacher_of(name), changes)
    assert fragment in str(caught.value) and len(str(caught.value).splitlines()) <= 5


def teacher_folder(folder: Path, config: ModelConfig) -> Path:
    from trivium.artifacts.writer import write_artifact

    tokenizer = train_bpe(["the list of the line is a number, and a line is a list"] * 20, vocab_size=300)
    with write_artifact(folder, kind="model") as temporary:
        save_model(temporary, config, build_model(config, seed=1).state_dict())
        tokenizer.save(temporary)
    return folder


def test_the_verb_writes_a_model_that_knows_its_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = teacher_folder(tmp_path / "teacher", preset("bert-1m", TINY))
    target = tmp_path / "student"
    assert run(["compress", "student", str(teacher), str(target), "hidden_size=16", "--layers", "0,5", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    student = load_model(target)
    assert said["parameters"] == student.config.parameters() < said["teacher_parameters"]
    assert (student.config.num_layers, student.config.hidden_size) == (2, 16)
    assert (target / "tokenizer.json").read_bytes() == (teacher / "tokenizer.json").read_bytes()
    record = json.loads((target / "trivium.json").read_text())
    assert [parent["role"] for parent in record["parents"]] == ["teacher"]
    assert run(["compress", "student", str(teacher), str(target), "num_layers=2"]) == 2
    assert run(["compress", "student", str(teacher), str(target), "num_layers=2", "--replace"]) == 0
    assert load_model(target).config.hidden_size == 32
    assert run(["compress", "student", str(teacher), str(tmp_path / "x"), "--layers", "every"]) == 2
    assert "spread" in capsys.readouterr().err


@pytest.mark.slow
def test_a_student_learns_from_its_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import trivium as tv

    monkeypatch.chdir(tmp_path)
    teacher = teacher_folder(tmp_path / "teacher", preset("llama-1m", TINY))
    Path("text.txt").write_text("the list of the line is a number, and a line is a list. " * 300)
    assert run(["compress", "student", str(teacher), "student", "num_layers=2"]) == 0
    trained = tv.train(
        {
            "name": "distilled",
            "method": {"name": "distill", "teacher": str(teacher), "alpha": 1.0},
            "model": {"path": "student"},
            "data": {"train": "text.txt", "sequence_length": 32},
            "train": {"steps": 60, "batch_size": 4, "lr": 3e-3, "compile": "off"},
        }
    )
    lines = [json.loads(line) for line in (trained.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
