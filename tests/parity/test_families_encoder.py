"""Encoders give the same numbers as transformers, with every head, for folders written by either side."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trivium.data.batch import Layout
from trivium.errors import ModelError
from trivium.models.build import build_model, preset
from trivium.models.folder import load_model, read_config, save_model

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

TOLERANCE = {"rtol": 0.0, "atol": 1e-4}
SMALL: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 40,
}  # fmt: skip
DISTIL = {
    "vocab_size": 61, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 40,
}  # fmt: skip
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", SMALL),
    "bert with relu": ("Bert", {**SMALL, "hidden_act": "relu"}),
    "bert with one segment": ("Bert", {**SMALL, "type_vocab_size": 1, "hidden_act": "gelu_new"}),
    "roberta": ("Roberta", {**SMALL, "type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "roberta with padding token 5": ("Roberta", {**SMALL, "pad_token_id": 5, "bos_token_id": 3, "eos_token_id": 4}),
    "distilbert": ("DistilBert", DISTIL),
    "distilbert with sinusoids": ("DistilBert", {**DISTIL, "sinusoidal_pos_embds": True}),
    "distilbert, untied": ("DistilBert", {**DISTIL, "tie_word_embeddings": False, "activation": "relu"}),
    "electra": ("Electra", {**SMALL, "embedding_size": 32}),
    "electra, narrow embeddings": ("Electra", {**SMALL, "embedding_size": 20}),
}  # fmt: skip
HEADS = {
    "masked": "ForMaskedLM",
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "span": "ForQuestionAnswering",
    "none": "Model",
}
FAMILIES = ["bert", "roberta", "distilbert", "electra"]
CASES = [
    *((name, head) for name in FAMILIES for head in HEADS),
    *((name, head) for name in SETTINGS if name not in FAMILIES for head in ("masked", "sequence")),
    ("electra", "detector"),
]


def reference(name: str, head: str, attention: str = "sdpa") -> Any:
    """Their model with weights large enough that a mistake shows."""
    kind, settings = SETTINGS[name]
    config = getattr(transformers, f"{kind}Config")(**settings, attn_implementation=attention)
    if head in ("sequence", "token"):
        config.num_labels = 3
    torch.manual_seed(0)
    model = getattr(transformers, kind + {**HEADS, "detector": "ForPreTraining"}[head])(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0 if parameter.dim() > 1 else 0.5, 0.3)
        padding = model.get_input_embeddings().padding_idx
        if padding is not None:
            model.get_input_embeddings().weight[padding] = 0.0
    return model


def ids_of(rows: int, length: int) -> Tensor:
    """Without the numbers below 6, which are padding in one case or another."""
    return torch.randint(6, 61, (rows, length), generator=torch.Generator().manual_seed(rows * 100 + length))


def scores(output: Any) -> Tensor:
    """What their model says, in one tensor, however the class names it."""
    if "start_logits" in output:
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    return output["logits" if "logits" in output else "last_hidden_state"]


def both(folder: Path, name: str, head: str) -> tuple[Any, Any]:
    """Their model and ours, read from what theirs saved."""
    theirs = reference(name, head)
    theirs.save_pretrained(folder / "theirs")
    return theirs, load_model(folder / "theirs").eval()


def layers_of(model: Any) -> list[Tensor]:
    """The list that each layer's output goes into when the model runs."""
    seen: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    entrance = model.embed_projection or model.embed_dropout
    entrance.register_forward_hook(lambda module, inputs, output: seen.insert(0, output))
    return seen


@pytest.mark.parametrize(("name", "head"), CASES, ids=[f"{name}, {head}" for name, head in CASES])
@torch.no_grad()
def test_their_folder_here_and_ours_there(tmp_path: Path, name: str, head: str) -> None:
    theirs, ours = both(tmp_path, name, head)
    assert ours.config.head == head
    (tmp_path / "ours").mkdir()
    save_model(tmp_path / "ours", ours.config, ours.state_dict())
    again, report = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    pooler = {key for key in report["missing_keys"] if "pooler" in key}
    assert set(report["missing_keys"]) == pooler and not report["unexpected_keys"]
    assert not pooler or head == "none"
    assert read_config(tmp_path / "ours") == ours.config
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"] == [type(theirs).__name__]
    seen = layers_of(ours)
    for length in (1, 7, 30):
        seen.clear()
        ids = ids_of(2, length)
        output = theirs(ids, output_hidden_states=True)
        expected = scores(output)
        assert expected.abs().max() > 0.05
        got = ours(ids)
        assert head != "sequence" or got.shape == (2, 3)
        torch.testing.assert_close(got.reshape(expected.shape), expected, **TOLERANCE)
        torch.testing.assert_close(scores(again.eval()(ids)), expected, **TOLERANCE)
        assert len(seen) == len(output.hidden_states) == ours.config.num_layers + 1
        for mine, hidden in zip(seen, output.hidden_states, strict=True):
            torch.testing.assert_close(mine.view(hidden.shape), hidden, **TOLERANCE)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_padded_packed_and_single_rows_are_the_same(tmp_path: Path, name: str, attention: str) -> None:
    for head in ("masked", "sequence", "span"):
        theirs = reference(name, head, attention)
        theirs.save_pretrained(tmp_path / head)
        ours = load_model(tmp_path / head).eval()
        lengths = (9, 3, 14, 3)
        rows = [ids_of(1, length)[0] for length in lengths]
        alone = torch.cat([scores(theirs(row[None])).flatten(0, -2) for row in rows])
        torch.testing.assert_close(ours(torch.cat(rows), Layout(lengths)), alone, **TOLERANCE)
        for row in rows:
            single = ours(row, Layout((len(row),)))
            torch.testing.assert_close(single, scores(theirs(row[None])).flatten(0, -2), **TOLERANCE)
        padded = torch.full((4, 14), ours.config.pad_id, dtype=torch.int64)
        mask = torch.zeros(4, 14, dtype=torch.int64)
        for number, row in enumerate(rows):
            padded[number, : len(row)], mask[number, : len(row)] = row, 1
        filled = scores(theirs(padded, attention_mask=mask))
        filled = filled if head == "sequence" else filled[mask.bool()]
        torch.testing.assert_close(ours(torch.cat(rows), Layout(lengths)), filled, **TOLERANCE)


@pytest.mark.parametrize("name", ["bert", "electra"])
@torch.no_grad()
def test_segments(tmp_path: Path, name: str) -> None:
    theirs, ours = both(tmp_path, name, "token")
    ids, types = ids_of(2, 8), torch.tensor([[0] * 3 + [1] * 5, [0] * 8])
    expected = theirs(ids, token_type_ids=types).logits
    assert (theirs(ids).logits - expected)[0].abs().max() > 0.02
    got = ours(ids.flatten(), Layout((8, 8)), token_types=types.flatten())
    torch.testing.assert_close(got, expected.flatten(0, 1), **TOLERANCE)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_equal_theirs(tmp_path: Path, name: str) -> None:
    from trivium.losses import token_loss

    theirs, ours = both(tmp_path, name, "masked")
    ids, targets = ids_of(2, 9), ids_of(2, 9).roll(1, 1)
    targets[:, ::3] = -100
    theirs(ids, labels=targets).loss.backward()
    loss = ours(ids.flatten(), Layout((9, 9)), then=lambda h, head: token_loss(h, head, targets.flatten()))
    (loss / (targets != -100).sum()).backward()
    gradients = {key: parameter.grad for key, parameter in ours.named_parameters()}
    save_model(tmp_path, ours.config, gradients)  # their names, by our own table
    again = type(theirs).from_pretrained(tmp_path)
    for (key, one), two in zip(again.named_parameters(), theirs.parameters(), strict=True):
        assert two.grad is not None, key
        torch.testing.assert_close(one.data, two.grad, rtol=1e-3, atol=1e-5, msg=key)


def rewritten(folder: Path, **new: Tensor) -> dict[str, Tensor]:
    """The tensors of a folder after adding some."""
    tensors = {**load_file(folder / "model.safetensors"), **new}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


@torch.no_grad()
def test_the_published_bert_files(tmp_path: Path) -> None:
    """They hold a pooler, the head for next sentences, position numbers, the head twice, and TensorFlow's names."""
    theirs, _ = both(tmp_path, "bert", "masked")
    folder, width = tmp_path / "theirs", 32
    tensors = rewritten(
        folder,
        **{
            "bert.pooler.dense.weight": torch.randn(width, width),
            "bert.pooler.dense.bias": torch.randn(width),
            "cls.seq_relationship.weight": torch.randn(2, width),
            "cls.seq_relationship.bias": torch.randn(2),
            "bert.embeddings.position_ids": torch.arange(40)[None],
            "cls.predictions.decoder.weight": theirs.bert.embeddings.word_embeddings.weight.clone(),
            "cls.predictions.decoder.bias": theirs.cls.predictions.bias.clone(),
        },
    )
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    assert sum(name.endswith(".gamma") for name in old) == 8
    save_file(old, folder / "model.safetensors")
    ids = ids_of(2, 9)
    torch.testing.assert_close(load_model(folder).eval()(ids), theirs(ids).logits, **TOLERANCE)

    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "architectures": ["BertForPreTraining"]}))
    torch.testing.assert_close(load_model(folder).eval()(ids), theirs(ids).logits, **TOLERANCE)

    tuned = load_model(folder, head={"head": "sequence", "labels": ("a", "b"), "head_dense": "tanh", "head_bias": True})
    assert torch.equal(tuned.head.dense.weight, tensors["bert.pooler.dense.weight"])
    assert tuned.head.out.weight.abs().max() > 0


@torch.no_grad()
def test_the_published_roberta_files(tmp_path: Path) -> None:
    theirs, _ = both(tmp_path, "roberta", "masked")
    rewritten(
        tmp_path / "theirs",
        **{
            "roberta.pooler.dense.weight": torch.randn(32, 32),
            "roberta.pooler.dense.bias": torch.randn(32),
            "roberta.embeddings.position_ids": torch.arange(40)[None],
            "lm_head.decoder.weight": theirs.roberta.embeddings.word_embeddings.weight.clone(),
            "lm_head.decoder.bias": theirs.lm_head.bias.clone(),
        },
    )
    ids = ids_of(2, 9)
    torch.testing.assert_close(load_model(tmp_path / "theirs").eval()(ids), theirs(ids).logits, **TOLERANCE)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_bare_body_of_theirs_takes_any_head(tmp_path: Path, name: str) -> None:
    theirs, _ = both(tmp_path, name, "none")
    tuned = load_model(tmp_path / "theirs", head={"head": "token", "labels": ("a", "b"), "head_bias": True}).eval()
    ids = ids_of(2, 9)
    hidden = tuned(ids.flatten(), Layout((9, 9)), then=lambda h, head: h)
    torch.testing.assert_close(hidden.view(2, 9, -1), theirs(ids).last_hidden_state, **TOLERANCE)
    (tmp_path / "tuned").mkdir()
    save_model(tmp_path / "tuned", tuned.config, tuned.state_dict())
    again = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "tuned").eval()
    assert again.config.id2label == {0: "a", 1: "b"}
    torch.testing.assert_close(again(ids).logits, tuned(ids), **TOLERANCE)


@torch.no_grad()
def test_a_head_that_transformers_lacks_is_kept_beside_a_body_it_loads(tmp_path: Path) -> None:
    theirs, _ = both(tmp_path, "bert", "masked")
    mean = {"head": "sequence", "labels": ("a", "b"), "pooling": "mean", "head_dense": "gelu", "problem": "multi_label"}
    tuned = load_model(tmp_path / "theirs", head=mean, seed=3).eval()
    (tmp_path / "tuned").mkdir()
    save_model(tmp_path / "tuned", tuned.config, tuned.state_dict())
    ids = ids_of(2, 9)
    assert read_config(tmp_path / "tuned") == tuned.config
    torch.testing.assert_close(load_model(tmp_path / "tuned").eval()(ids), tuned(ids))
    again = transformers.AutoModel.from_pretrained(tmp_path / "tuned").eval()
    expected = theirs.bert(ids).last_hidden_state
    torch.testing.assert_close(again(ids).last_hidden_state, expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("name", "head", "raw", "expected"),
    [
        ("bert", "sequence", {}, 0.1),
        ("bert", "sequence", {"classifier_dropout": None, "hidden_dropout_prob": 0.3}, 0.3),
        ("bert", "token", {"classifier_dropout": 0.0}, 0.0),
        ("bert", "span", {"classifier_dropout": 0.4}, 0.0),
        ("roberta", "sequence", {"classifier_dropout": 0.4}, 0.4),
        ("distilbert", "sequence", {}, 0.2),
        ("distilbert", "token", {"dropout": 0.3}, 0.3),
        ("distilbert", "span", {"qa_dropout": 0.5}, 0.5),
    ],
)
def test_the_dropout_before_the_labels_is_the_one_transformers_uses(
    tmp_path: Path, name: str, head: str, raw: dict[str, Any], expected: float
) -> None:
    kind, settings = SETTINGS[name]
    config = getattr(transformers, f"{kind}Config")(**{**settings, **raw}, architectures=[kind + HEADS[head]])
    config.save_pretrained(tmp_path)
    assert read_config(tmp_path).head_dropout == expected


@pytest.mark.parametrize("name", ["bert-1m", "roberta-1m", "distilbert-1m", "electra-1m"])
@pytest.mark.parametrize("head", ["sequence", "token", "span"])
def test_any_dropout_before_the_labels_survives_saving(tmp_path: Path, name: str, head: str) -> None:
    labels = () if head == "span" else ("a", "b")
    config = preset(name, {"head": head, "labels": labels, "head_dropout": 0.37, "head_dense": "none"})
    save_model(tmp_path, config, build_model(config, seed=0).state_dict())
    assert read_config(tmp_path) == config


@pytest.mark.parametrize(
    ("name", "raw", "key"),
    [
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("bert", {"hidden_act": "mish"}, "hidden_act"),
        ("bert", {"tie_word_embeddings": False}, "tie_word_embeddings"),
        ("bert", {"architectures": ["BertForNextSentencePrediction"]}, "architectures"),
        ("roberta", {"pad_token_id": None}, "pad_token_id"),
        ("roberta", {"hidden_act": "relu"}, "hidden_act"),
    ],
)
def test_what_would_compute_something_else_is_refused(tmp_path: Path, name: str, raw: dict[str, Any], key: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name, **SETTINGS[name][1], **raw}))
    with pytest.raises(ModelError, match=key):
        read_config(tmp_path)
