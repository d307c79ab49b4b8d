"""The presets named after published encoders have their number of parameters, without allocating any of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from trivium.models.build import family, preset
from trivium.models.huggingface import write_config
from trivium.models.transformer import Transformer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

PUBLISHED = {
    "bert-tiny": 4_416_698,
    "bert-mini": 11_201_594,
    "bert-small": 28_795_194,
    "bert-medium": 41_404_730,
    "tinybert-4l-312d": 14_381_394,
    "tinybert-6l-768d": 66_987_066,
    "bert-base": 109_514_298,
    "bert-base-cased": 108_340_804,
    "bert-large": 335_174_458,
    "distilroberta-base": 82_170_201,
    "roberta-base": 124_697_433,
    "roberta-large": 355_412_057,
    "distilbert-base": 66_985_530,
    "distilbert-base-cased": 65_812_036,
    "electra-small": 13_549_057,
    "electra-base": 109_483_009,
    "electra-large": 335_142_913,
}
"""With the head of their pretraining, a tied weight counted once."""

DEFAULTS = {
    "electra-small": ("ElectraForPreTraining", {}),
    "bert-base": ("BertForMaskedLM", {}),
    "roberta-base": ("RobertaForMaskedLM", {"max_position_embeddings": 514, "type_vocab_size": 1}),
    "distilbert-base": ("DistilBertForMaskedLM", {}),
    "electra-base": (
        "ElectraForPreTraining",
        {"embedding_size": 768, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    ),
}
"""The published config.json, where it differs from the defaults of transformers."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_many_parameters_as_transformers(tmp_path: Path, name: str) -> None:
    config = preset(name)
    raw = write_config(family(config.family), config)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with torch.device("meta"):
        theirs = getattr(transformers, raw["architectures"][0])(transformers.AutoConfig.from_pretrained(tmp_path))
    ours = sum(parameter.numel() for parameter in Transformer(config).parameters())
    assert theirs.num_parameters() == ours == config.parameters() == PUBLISHED[name]


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_published_configuration_is_the_preset(name: str) -> None:
    kind, changes = DEFAULTS[name]
    config = preset(name)
    with torch.device("meta"):
        theirs = getattr(transformers, kind)(getattr(transformers, kind).config_class(**changes))
    assert theirs.num_parameters() == PUBLISHED[name]
    ours = write_config(family(config.family), config)
    for key, value in theirs.config.to_dict().items():
        if key in ours and key not in ("architectures", "bos_token_id", "eos_token_id", "layer_norm_eps"):
            assert ours[key] == value, key


@pytest.mark.parametrize("name", ["bert-1m", "bert-10m", "roberta-10m", "distilbert-5m", "electra-10m"])
def test_small_presets_have_the_size_in_their_name(name: str) -> None:
    assert preset(name).parameters() == pytest.approx(float(name.split("-")[1][:-1]) * 1e6, rel=0.3)
