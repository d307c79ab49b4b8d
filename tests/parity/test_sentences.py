"""Embedding folders in both directions: what is trained here in sentence-transformers, and what that wrote here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import trivium as tv
from tests.unit.labelled import bytelevel, wordpiece, write_rows
from trivium.errors import ConfigError, ModelError, TriviumError
from trivium.models.sentences import read_sentences

st = pytest.importorskip("sentence_transformers")

TEXTS = [
    "the good film was a great joy",
    "bad",
    "Ada Lovelace lives in London , where she writes",
    "a story and a point",
]
WORDS = [*TEXTS[0].split(), *TEXTS[2].split(), *TEXTS[3].split()]


def rows(kind: str) -> list[dict[str, Any]]:
    turned = [" ".join(WORDS[number:] + WORDS[:number])[: 12 + 3 * number] for number in range(len(WORDS))]
    if kind == "labels":
        return [{"text": text, "label": "ab"[len(text) % 2]} for text in turned]
    pairs = [{"anchor": text, "positive": text[::-1], "negative": turned[0]} for text in turned[1:]]
    return pairs if kind == "similar" else [{"text": text} for text in turned]


def trained(folder: Path, *, family: str = "bert", kind: str = "similar", data: Any = None, **method: Any) -> Path:
    """A model trained for three updates."""
    tokens = folder / f"tokens-{family}"
    if not tokens.exists():
        if family == "llama":
            tokens.mkdir()
            bytelevel().save(tokens)
        else:
            wordpiece(tokens)
    config = {"hidden_size": 16, "num_heads": 2, "num_layers": 2, "intermediate_size": 32, "max_positions": 128}
    config |= {"num_kv_heads": 1, "head_dim": 8} if family == "llama" else {}
    name = {"labels": "supervised_contrastive"}.get(kind, "embedding")
    run = tv.train(
        {
            "name": f"run-{len(list(folder.glob('runs/*')))}",
            "runs": str(folder / "runs"),
            "method": {"name": name, **method},
            "model": {"preset": f"{family}-1m", "config": {**config, "vocab_size": 400, "init_std": 0.3}},
            "tokenizer": str(tokens),
            "data": {
                "train": str(write_rows(folder / f"{kind}.jsonl", rows(kind))),
                "sequence_length": 128,
                "truncation": "right",
                **(data or {}),
            },
            "train": {"steps": 3, "batch_size": 4, "lr": 1e-3, "compile": "off", "threads": 1},
        }
    )
    assert run.final is not None
    return run.final


def theirs(folder: Path) -> Any:
    return st.SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def as_theirs(folder: Path, texts: list[str], **options: Any) -> torch.Tensor:
    vectors: torch.Tensor = theirs(folder).encode(texts, convert_to_tensor=True, **options)
    return vectors


@pytest.mark.parametrize(
    ("family", "kind", "method"),
    [
        ("bert", "similar", {}),
        ("bert", "similar", {"pooling": "max", "normalize": False, "dense": "tanh", "dense_size": 12}),
        ("bert", "similar", {"pooling": "first", "dense": "gelu", "keep_dense": False, "similarity": "dot"}),
        ("bert", "alone", {"dropout": 0.1}),
        ("bert", "labels", {"projection": 8}),
        ("bert", "labels", {"classifier": "joint", "pooling": "mean"}),
        ("llama", "similar", {"dense": "linear", "matryoshka": [8, 4]}),
        ("llama", "similar", {"pooling": "mean"}),
    ],
)
def test_what_is_trained_here_is_the_same_there(tmp_path: Path, family: str, kind: str, method: dict[str, Any]) -> None:
    final = trained(tmp_path, family=family, kind=kind, **method)
    ours = tv.load(final, device="cpu")
    torch.testing.assert_close(ours.embed(TEXTS), as_theirs(final, TEXTS), atol=1e-5, rtol=1e-4)
    plain = method.get("normalize") is False or method.get("similarity") == "dot"
    assert ((torch.linalg.vector_norm(ours.embed(TEXTS), dim=1) - 1).abs().max() > 1e-3) == plain
    torch.testing.assert_close(ours.embed(TEXTS[0]), ours.embed(TEXTS)[0], atol=1e-6, rtol=1e-5)
    sentences = read_sentences(final)
    assert sentences is not None and len(sentences.dense) == (
        method.get("dense", "") != "" and "keep_dense" not in method
    )
    assert theirs(final).max_seq_length == 128


def test_prompts_and_shorter_vectors_are_the_same_there(tmp_path: Path) -> None:
    data = {"similar": {"query_prefix": "search: ", "passage_prefix": "text: "}}
    final = trained(tmp_path, data=data, matryoshka=[8])
    ours, other = tv.load(final, device="cpu"), theirs(final)
    for name, encode in (("query", other.encode_query), ("document", other.encode_document)):
        expected = encode(TEXTS, convert_to_tensor=True)
        torch.testing.assert_close(ours.embed(TEXTS, prompt=name), expected, atol=1e-5, rtol=1e-4)
    assert (ours.embed(TEXTS, prompt="query") - ours.embed(TEXTS)).abs().max() > 1e-3
    expected = as_theirs(final, TEXTS, truncate_dim=8, normalize_embeddings=True)
    torch.testing.assert_close(ours.embed(TEXTS, dimensions=8), expected, atol=1e-5, rtol=1e-4)
    assert ours.sentences is not None and ours.sentences.dimensions == (8,)
    with pytest.raises(TriviumError, match="no such prompt"):
        ours.embed("a", prompt="passage")


def test_training_goes_on_from_a_folder(tmp_path: Path) -> None:
    """Pooling, dense layer and prefixes are those of the folder, unless something else is asked for."""
    data = {"similar": {"query_prefix": "search: "}}
    first = trained(tmp_path, data=data, pooling="max", dense="tanh", dense_size=8)
    recipe = {
        "name": "more",
        "runs": str(tmp_path / "runs"),
        "method": {"name": "embedding"},
        "model": {"path": str(first)},
        "data": {"train": str(tmp_path / "similar.jsonl"), "sequence_length": 128, "truncation": "right"},
        "train": {"steps": 1, "batch_size": 4, "lr": 1e-12, "compile": "off"},
    }
    run = tv.train(recipe)
    before, after = tv.load(first, device="cpu"), tv.load(run.final, device="cpu")
    torch.testing.assert_close(before.embed(TEXTS), after.embed(TEXTS), atol=1e-5, rtol=1e-4)
    assert after.sentences is not None and after.sentences.prompts == {"query": "search: "}
    head = max((run.folder / "checkpoints").glob("*/model"))
    torch.testing.assert_close(tv.load(head, device="cpu").embed(TEXTS), after.embed(TEXTS), atol=1e-5, rtol=1e-4)


def written_by_them(folder: Path, *parts: Any, **more: Any) -> Path:
    """A folder that sentence-transformers wrote: BERT, pooling and `parts`."""
    from sentence_transformers.sentence_transformer import modules
    from transformers import BertConfig, BertModel

    wordpiece(folder / "body")
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=150, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, initializer_range=0.4,
    )  # fmt: skip
    BertModel(shape).save_pretrained(folder / "body")
    transformer = modules.Transformer(str(folder / "body"), max_seq_length=48)
    st.SentenceTransformer(modules=[transformer, *parts], device="cpu", **more).save(str(folder / "theirs"))
    return folder / "theirs"


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
def test_what_they_wrote_is_the_same_here(tmp_path: Path, pooling: str) -> None:
    from sentence_transformers.sentence_transformer import modules

    torch.manual_seed(1)
    parts = [modules.Pooling(16, pooling), modules.Dense(16, 12), modules.Dense(12, 8, bias=False), modules.Normalize()]
    parts = parts if pooling in ("mean", "cls") else parts[:1]
    prompts = {"query": "film : ", "document": ""}
    folder = written_by_them(
        tmp_path, *parts, prompts=prompts, default_prompt_name="query" if pooling == "max" else None
    )
    ours, other = tv.load(folder, device="cpu"), theirs(folder)
    torch.testing.assert_close(ours.embed(TEXTS), other.encode(TEXTS, convert_to_tensor=True), atol=1e-5, rtol=1e-4)
    expected = other.encode_query(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(ours.embed(TEXTS, prompt="query"), expected, atol=1e-5, rtol=1e-4)
    long = " ".join(TEXTS * 5)
    with pytest.raises(TriviumError, match="too long"):
        ours.embed(long)
    expected = other.encode([long], convert_to_tensor=True)
    torch.testing.assert_close(ours.embed([long], truncate=True), expected, atol=1e-5, rtol=1e-4)


def changed(folder: Path, file: str, **fields: Any) -> Path:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder


def test_older_folders_and_what_is_not_supported(tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer import modules

    folder = written_by_them(tmp_path, modules.Pooling(16, "mean"), modules.Dense(16, 8))
    older = {"pooling_mode": None, "word_embedding_dimension": 16, "pooling_mode_cls_token": True}
    changed(folder, "1_Pooling/config.json", **older)
    found = read_sentences(folder)
    assert found is not None and found.pooling == "first"

    def refused(said: str, file: str, **fields: Any) -> None:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        with pytest.raises(ModelError, match=said):
            read_sentences(changed(copy, file, **fields))

    refused("unsupported pooling", "1_Pooling/config.json", pooling_mode=["mean", "max"])
    refused("unsupported dense layer", "2_Dense/config.json", activation_function="torch.nn.modules.activation.SELU")
    refused("unsupported dense layer", "2_Dense/config.json", use_residual=True)
    refused("unsupported similarity", "config_sentence_transformers.json", similarity_fn_name="manhattan")
    (folder / "modules.json").write_text('[{"type": "a.Transformer", "path": "0_Transformer"}]')
    with pytest.raises(ModelError, match="only folders that hold a transformer"):
        read_sentences(folder)
    (folder / "modules.json").write_text("[1]")
    with pytest.raises(ModelError, match="not named"):
        read_sentences(folder)


def test_lora_is_merged_in_the_end(tmp_path: Path) -> None:
    first = trained(tmp_path)
    recipe = {
        "name": "lora",
        "runs": str(tmp_path / "runs"),
        "method": {"name": "embedding", "dense": "tanh"},
        "model": {"path": str(first)},
        "transforms": [{"name": "lora", "rank": 2}],
        "data": {"train": str(tmp_path / "similar.jsonl"), "sequence_length": 128, "truncation": "right"},
        "train": {"steps": 4, "batch_size": 4, "lr": 0.1, "compile": "off"},
    }
    run = tv.train(recipe)
    ours = tv.load(run.final, device="cpu")
    torch.testing.assert_close(ours.embed(TEXTS), as_theirs(run.final, TEXTS), atol=1e-5, rtol=1e-4)
    assert (ours.embed(TEXTS) - tv.load(first, device="cpu").embed(TEXTS)).abs().max() > 1e-2
    head = max((run.folder / "checkpoints").glob("*/model"))
    torch.testing.assert_close(tv.load(head, device="cpu").embed(TEXTS), ours.embed(TEXTS), atol=1e-4, rtol=1e-3)
    with pytest.raises(ConfigError, match="must be merged"):
        tv.train({**recipe, "name": "bottleneck", "transforms": ["bottleneck"]})
