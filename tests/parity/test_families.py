"""What all families have in common, and what the page about them says."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest

from tests.governance.source import ROOT
from trivium.errors import ModelError
from trivium.models.build import family, family_names, preset
from trivium.models.folder import read_config
from trivium.models.huggingface import write_config

transformers = pytest.importorskip("transformers")

PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
KINDS = ("", "FOR_PRETRAINING_", "FOR_CAUSAL_LM_", "FOR_SEQ_TO_SEQ_CAUSAL_LM_", "FOR_MASKED_LM_",
         "FOR_SEQUENCE_CLASSIFICATION_", "FOR_TOKEN_CLASSIFICATION_", "FOR_QUESTION_ANSWERING_")  # fmt: skip


def classes(name: str) -> set[str]:
    """The classes transformers has for a family."""
    from transformers.models.auto import modeling_auto

    found = {getattr(modeling_auto, f"MODEL_{kind}MAPPING_NAMES").get(name) for kind in KINDS}
    return {one for one in found if one is not None}


@pytest.mark.parametrize("name", family_names())
def test_heads_are_those_of_transformers_or_the_page_names_them(name: str) -> None:
    ours = {each for head in family(name).HEADS.values() for each in (head.architecture, *head.aliases)}
    missing = classes(name) - ours
    assert not [one for one in missing if f"`{one}`" not in PAGE]
    assert all(hasattr(transformers, one) for one in ours)


def test_the_readme_names_every_family() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [name for name in family_names() if f"`{name}`" not in text]


def test_the_page_names_only_what_is_missing() -> None:
    ours = {head.architecture for name in family_names() for head in family(name).HEADS.values()}
    assert not [one for one in ours if f"`{one}`" in PAGE]


@pytest.mark.parametrize("name", family_names())
def test_a_family_begins_with_a_preset_of_about_a_million_parameters(name: str) -> None:
    first = preset(next(iter(family(name).PRESETS)))
    assert first.family == name
    if name != "mt5":  # its vocabulary is what it is
        assert 0.5e6 < first.parameters() < 1.5e6


@pytest.mark.parametrize("name", family_names())
def test_a_preset_takes_any_size(name: str) -> None:
    """What follows from width and depth follows here too."""
    changes = {"num_layers": 3, "hidden_size": 64, "num_heads": 4, "num_kv_heads": None, "head_dim": None}
    config = preset(next(iter(family(name).PRESETS)), changes)
    assert (config.num_layers, config.hidden_size) == (3, 64)


REFUSED = {
    "gemma2": {"use_bidirectional_attention": True},
    "gemma3_text": {"use_bidirectional_attention": True},
    "mixtral": {"router_jitter_noise": 0.1},
    "falcon": {"new_decoder_architecture": True, "parallel_attn": False},
    "llama": {"partial_rotary_factor": 0.5},
    "phi3": {"hidden_act": "relu6"},
    "qwen2": {"use_sliding_window": True, "layer_types": ["chunked_attention"] * 4},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_compute_something_else_is_refused(tmp_path: Path, name: str) -> None:
    raw = write_config(family(name), preset(next(iter(family(name).PRESETS))))
    (tmp_path / "config.json").write_text(json.dumps(raw))
    read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**raw, **REFUSED[name]}))
    with pytest.raises(ModelError) as error:
        read_config(tmp_path)
    assert any(key in str(error.value) for key in REFUSED[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", family_names())
def test_nonsense_in_a_setting_is_read_or_refused(tmp_path: Path, name: str) -> None:
    raw = write_config(family(name), preset(next(iter(family(name).PRESETS))))
    for key in (*raw, "sliding_window_pattern", "rope_local_base_freq", "partial_rotary_factor"):
        for nonsense in (None, "x", -1, 0, [], {}, {"a": 1}, 1e300, 10**12, 2.5):
            (tmp_path / "config.json").write_text(json.dumps({**raw, key: nonsense}))
            with suppress(ModelError):
                read_config(tmp_path)
