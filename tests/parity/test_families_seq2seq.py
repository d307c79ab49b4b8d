"""T5, mT5 and BART: hidden states, logits and heads of transformers, for folders written by either side."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trivium.data.batch import Layout, Source
from trivium.errors import ModelError
from trivium.models.build import build_model, family, preset
from trivium.models.cache import KVCache
from trivium.models.folder import load_model, read_config, save_model
from trivium.models.huggingface import write_config
from trivium.models.transformer import Transformer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
"""Relative too: T5 does not scale its scores, so with weights this large rounding grows with the values."""
T5: dict[str, Any] = {
    "vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "decoder_start_token_id": 0,
    "dropout_rate": 0.0,
}  # fmt: skip
BART: dict[str, Any] = {
    "vocab_size": 61, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40,
    "dropout": 0.0,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5", T5),
    "t5 v1.1": ("T5", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "t5 gated silu": ("T5", {**T5, "feed_forward_proj": "gated-silu"}),
    "t5 deep decoder": ("T5", {**T5, "num_decoder_layers": 3, "d_kv": 6}),
    "mt5": ("MT5", T5),
    "bart": ("Bart", BART),
    "bart scaled": ("Bart", {**BART, "scale_embedding": True, "activation_function": "relu", "decoder_layers": 1}),
}
UNTIED = ("t5 v1.1", "mt5")
HEADS = {
    "language": "ForConditionalGeneration",
    "sequence": "ForSequenceClassification",
    "span": "ForQuestionAnswering",
    "none": "Model",
}
EOS = {"T5": 1, "MT5": 1, "Bart": 2}


def reference(case: str, head: str = "language", attention: str = "sdpa") -> Any:
    """Their model with weights large enough that a mistake shows."""
    name, settings = CASES[case]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings, attn_implementation=attention)
    if head == "sequence":
        config.num_labels = 3
    if head == "span":
        config.num_labels = 2
    model = getattr(transformers, name + HEADS[head])(config).eval()
    if case in UNTIED and head == "language":
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0 if parameter.dim() > 1 else 1.0, 0.25)
    return model


def ids_of(rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(3, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


def flat(ids: Tensor) -> Source:
    return Source(ids.reshape(-1), Layout((ids.shape[1],) * ids.shape[0]))


def layers_of(model: Transformer) -> tuple[list[Tensor], list[Tensor]]:
    """Lists that the blocks of encoder and decoder fill with what they return."""
    assert model.encoder is not None
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for stack, states in zip((model.encoder, model), found, strict=True):
        for block in stack.blocks:
            block.register_forward_hook(lambda _m, _i, out, states=states: states.append(out))
    return found


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_their_folder_here_and_ours_there(tmp_path: Path, case: str, attention: str) -> None:
    theirs = reference(case, attention=attention)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs").eval()
    assert ours.config.tie_embeddings == (case not in UNTIED)
    assert read_config(tmp_path / "theirs") == ours.config
    assert ours.config.parameters() == sum(parameter.numel() for parameter in ours.parameters())
    (tmp_path / "ours").mkdir()
    save_model(tmp_path / "ours", ours.config, ours.state_dict())
    again = type(theirs).from_pretrained(tmp_path / "ours").eval()
    encoder, decoder = layers_of(ours)
    for length, answer in ((5, 3), (12, 20), (30, 30)):  # within, around and beyond the largest distance
        source, ids = ids_of(2, length), ids_of(2, answer, seed=2)
        expected = theirs(input_ids=source, decoder_input_ids=ids, output_hidden_states=True)
        assert expected.logits.abs().max() > 0.5
        encoder.clear(), decoder.clear()
        logits = ours(ids.reshape(-1), Layout((answer, answer)), source=flat(source))
        torch.testing.assert_close(logits.view(expected.logits.shape), expected.logits, **TOLERANCE)
        torch.testing.assert_close(again(input_ids=source, decoder_input_ids=ids).logits, expected.logits, **TOLERANCE)
        for states, others in (
            (encoder, expected.encoder_hidden_states),
            (decoder, expected.decoder_hidden_states),
        ):
            # The last of theirs is T5's after the final norm; the first is the embedding.
            last = len(states) if CASES[case][0] == "Bart" else len(states) - 1
            for mine, other in zip(states[:last], others[1 : last + 1], strict=True):
                torch.testing.assert_close(mine, other.flatten(0, 1), **TOLERANCE)
    assert read_config(tmp_path / "ours") == ours.config


@pytest.mark.parametrize("case", ["t5", "t5 v1.1", "bart"])
@torch.no_grad()
def test_packed_padded_and_cached_rows_equal_theirs(tmp_path: Path, case: str) -> None:
    theirs = reference(case)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path).eval()
    lengths, answers = (9, 3, 14), (4, 11, 7)
    sources = [ids_of(1, length, seed=length)[0] for length in lengths]
    rows = [ids_of(1, length, seed=20 + length)[0] for length in answers]
    alone = torch.cat(
        [theirs(input_ids=s[None], decoder_input_ids=row[None]).logits[0] for s, row in zip(sources, rows, strict=True)]
    )
    source = Source(torch.cat(sources), Layout(lengths))
    packed = ours(torch.cat(rows), Layout(answers), source=source)
    torch.testing.assert_close(packed, alone, **TOLERANCE)

    def padded(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
        ids = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(part) for part in parts], batch_first=True)
        return ids, mask

    (source_ids, source_mask), (ids, mask) = padded(sources), padded(rows)
    filled = theirs(
        input_ids=source_ids, attention_mask=source_mask, decoder_input_ids=ids, decoder_attention_mask=mask
    ).logits
    torch.testing.assert_close(packed, filled[mask.bool()], **TOLERANCE)

    cache = KVCache(ours.config, rows=3, max_length=12)
    begun = Layout(tuple(length - 2 for length in answers))
    first = ours(torch.cat([row[:-2] for row in rows]), begun, cache=cache, source=source)
    ends = [end for _, end in Layout(answers).spans()]
    kept = torch.cat([alone[start : end - 2] for start, end in Layout(answers).spans()])
    torch.testing.assert_close(first, kept, **TOLERANCE)
    for back in (2, 1):
        step = ours(torch.stack([row[-back] for row in rows]), Layout((1, 1, 1)), cache=cache)
        torch.testing.assert_close(step, torch.stack([alone[end - back] for end in ends]), **TOLERANCE)
    cache.select([2, 0])
    cache.truncate(0, 3), cache.truncate(1, 3)
    step = ours(torch.stack([rows[2][3], rows[0][3]]), Layout((1, 1)), cache=cache)
    torch.testing.assert_close(step, torch.stack([alone[4 + 11 + 3], alone[3]]), **TOLERANCE)


@pytest.mark.parametrize("case", ["t5", "t5 v1.1", "bart"])
def test_gradients_equal_theirs(tmp_path: Path, case: str) -> None:
    from trivium.losses import token_loss

    theirs = reference(case)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs").eval()
    source, ids = ids_of(2, 12), ids_of(2, 8, seed=2)
    theirs(input_ids=source, decoder_input_ids=ids[:, :-1], labels=ids[:, 1:].contiguous()).loss.backward()
    targets = ids[:, 1:].reshape(-1)
    loss = ours(
        ids[:, :-1].reshape(-1), Layout((7, 7)), source=flat(source), then=lambda h, head: token_loss(h, head, targets)
    )
    (loss / len(targets)).backward()
    (tmp_path / "ours").mkdir()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    save_model(tmp_path / "ours", ours.config, gradients)  # their names, by our own table
    again = type(theirs).from_pretrained(tmp_path / "ours")
    for (name, one), two in zip(again.named_parameters(), theirs.parameters(), strict=True):
        assert two.grad is not None
        largest = float(two.grad.abs().max())
        torch.testing.assert_close(one.data, two.grad, rtol=1e-3, atol=1e-4 * largest + 1e-7, msg=name)


@pytest.mark.parametrize("head", ["sequence", "span", "none"])
@pytest.mark.parametrize("case", ["t5", "mt5", "bart"])
@torch.no_grad()
def test_other_heads_both_ways(tmp_path: Path, case: str, head: str) -> None:
    theirs = reference(case, head)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs").eval()
    assert ours.config.head == head
    source = ids_of(2, 12)
    source[:, -1] = EOS[CASES[case][0]]
    # What their classifiers give the decoder: the source, one place later.
    start = torch.full((2, 1), ours.config.start_id)
    ids = torch.cat([start, source[:, :-1]], dim=1)
    found = ours(ids.reshape(-1), Layout((12, 12)), source=flat(source))
    (tmp_path / "ours").mkdir()
    save_model(tmp_path / "ours", ours.config, ours.state_dict())
    again = type(theirs).from_pretrained(tmp_path / "ours").eval()
    for model in (theirs, again):
        output = model(input_ids=source) if head != "none" else model(input_ids=source, decoder_input_ids=ids)
        if head == "span":
            expected = torch.stack([output.start_logits, output.end_logits], dim=-1).flatten(0, 1)
        else:
            expected = output.logits if head == "sequence" else output.last_hidden_state.flatten(0, 1)
        torch.testing.assert_close(found.view(expected.shape), expected, **TOLERANCE)
    assert read_config(tmp_path / "ours") == ours.config


@torch.no_grad()
def test_a_classifier_on_a_pretrained_body(tmp_path: Path) -> None:
    theirs = reference("bart")
    theirs.save_pretrained(tmp_path)
    head = {"head": "sequence", "labels": ("no", "yes"), "pooling": "last", "head_dense": "tanh", "head_bias": True}
    ours = load_model(tmp_path, head=head, seed=3)
    assert ours.config.labels == ("no", "yes")
    torch.testing.assert_close(ours.embed.weight, theirs.model.shared.weight)


def test_a_bias_that_is_not_zero_is_refused(tmp_path: Path) -> None:
    theirs = reference("bart")
    theirs.final_logits_bias.fill_(0.5)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="final_logits_bias"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("case", "changes", "word"),
    [
        ("t5", {"feed_forward_proj": "gated-tanh"}, "feed_forward_proj"),
        ("bart", {"decoder_ffn_dim": 47}, "decoder_ffn_dim"),
        ("bart", {"encoder_layerdrop": 0.1}, "encoder_layerdrop"),
        ("bart", {"tie_word_embeddings": False}, "tie_word_embeddings"),
    ],
)
def test_settings_that_are_not_supported(tmp_path: Path, case: str, changes: dict[str, Any], word: str) -> None:
    name, settings = CASES[case]
    raw = {**getattr(transformers, f"{name}Config")(**settings).to_dict(), **changes}
    (tmp_path / "config.json").write_text(json.dumps({**raw, "architectures": [f"{name}ForConditionalGeneration"]}))
    with pytest.raises(ModelError, match=word):
        read_config(tmp_path)


PUBLISHED = {
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "t5-v1_1-small": 76_961_152,
    "t5-v1_1-base": 247_577_856,
    "t5-v1_1-large": 783_150_080,
    "t5-v1_1-xl": 2_849_757_184,
    "t5-v1_1-xxl": 11_135_332_352,
    "flan-t5-base": 247_577_856,
    "mt5-small": 300_176_768,
    "mt5-base": 582_401_280,
    "bart-base": 139_420_416,
    "bart-large": 406_291_456,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(tmp_path: Path, name: str) -> None:
    config = preset(name)
    assert config.parameters() == PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(write_config(family(config.family), config)))
    with torch.device("meta"):
        theirs = transformers.AutoModelForSeq2SeqLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path))
    # Their T5 classes always begin with a tied head; a head in the file unties it.
    own_head = 0 if config.tie_embeddings else config.vocab_size * config.hidden_size
    assert theirs.num_parameters() + own_head == config.parameters()


@pytest.mark.parametrize("name", ["t5-1m", "t5-30m", "bart-1m"])
def test_a_new_model_opens_there(tmp_path: Path, name: str) -> None:
    small = {"vocab_size": 64, "hidden_size": 32, "num_heads": 2, "head_dim": 16, "intermediate_size": 32}
    config = preset(name, {**small, "num_layers": 1, "num_decoder_layers": 2})
    assert config.head_scale == (32**-0.5 if name == "t5-1m" else 1.0)
    ours = build_model(config, seed=0).eval()
    save_model(tmp_path, config, ours.state_dict())
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    assert theirs.generation_config.decoder_start_token_id == config.start_id
    source, ids = ids_of(2, 7), ids_of(2, 5)
    with torch.no_grad():
        expected = theirs(input_ids=source, decoder_input_ids=ids).logits
        torch.testing.assert_close(
            ours(ids.reshape(-1), Layout((5, 5)), source=flat(source)).view(expected.shape), expected, **TOLERANCE
        )
