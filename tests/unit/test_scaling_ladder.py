"""Which runs a ladder consists of: valid models, equal compute on each level, lengths and learning rates by rule."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from trivium.core.ladder import (
    FACTOR,
    GOOD_UPDATES,
    LEAST_UPDATES,
    LEVELS,
    PARTS,
    SIZES,
    Start,
    TooSmall,
    ladder,
    least_flops,
    make_rung,
    nearest_shape,
    shapes,
)
from trivium.core.plan import matrix_parameters
from trivium.models.build import preset

CONFIG = preset("llama-3m", {"vocab_size": 1024})
START = Start(flops=1.4e14, width=192, batch_size=32, lr=1e-3, row_tokens=250.0)


@pytest.mark.parametrize("name", ["llama-3m", "gpt2-10m", "llama-1b", "mistral-7b"])
def test_every_size_is_a_valid_model_with_the_parameters_that_are_said(name: str) -> None:
    config = preset(name)
    sizes = shapes(config)
    assert all(small.parameters < large.parameters for small, large in pairwise(sizes))
    for shape in sizes[:40:3]:
        model = preset(name, shape.changes)
        assert matrix_parameters(model) == shape.parameters
        assert model.num_heads % model.num_kv_heads == 0


def test_sizes_keep_the_proportions_of_the_recipe() -> None:
    config = preset("llama-100m")
    shape = next(shape for shape in shapes(config) if shape.changes["hidden_size"] == 2 * config.hidden_size)
    assert shape.changes["num_layers"] == 2 * config.num_layers
    assert shape.changes["num_heads"] == 2 * config.num_heads
    assert shape.changes["intermediate_size"] == 2 * config.intermediate_size
    same = next(shape for shape in shapes(config) if shape.changes["hidden_size"] == config.hidden_size)
    assert same.parameters == matrix_parameters(config)


@pytest.mark.parametrize("flops", [1e14, 1e16, 1e19])
def test_levels_have_equal_compute_and_the_sum_is_the_budget(flops: float) -> None:
    rungs = ladder(shapes(CONFIG), flops, START)
    assert len(rungs) == LEVELS * SIZES and len({rung.name for rung in rungs}) == len(rungs)
    for level in range(LEVELS):
        own = [rung for rung in rungs if rung.level == level]
        assert all(rung.flops == pytest.approx(flops / PARTS * FACTOR**level, rel=0.01) for rung in own)
        assert all(small.shape.parameters < large.shape.parameters for small, large in pairwise(own))
    assert sum(rung.flops for rung in rungs) + flops / PARTS * FACTOR**LEVELS == pytest.approx(flops, rel=0.01)
    assert all(rung.steps >= LEAST_UPDATES for rung in rungs)


def test_the_learning_rate_falls_with_width_and_grows_with_the_root_of_the_batch() -> None:
    sizes = shapes(CONFIG)
    own = next(shape for shape in sizes if shape.changes["hidden_size"] == 192)
    long = Start(**{**vars(START), "flops": 1e15})
    same = make_rung("same", 0, own, 1e15, long)
    assert (same.batch_size, same.lr) == (START.batch_size, START.lr)
    wide = next(shape for shape in sizes if shape.changes["hidden_size"] == 384)
    larger = make_rung("wide", 0, wide, 1e17, long)
    assert larger.batch_size > START.batch_size
    assert larger.lr == pytest.approx(START.lr / 2 * math.sqrt(larger.batch_size / START.batch_size), rel=0.01)


def test_a_short_run_gets_a_smaller_batch_rather_than_fewer_updates() -> None:
    sizes = shapes(CONFIG)
    for rung in ladder(sizes, 2 * least_flops(sizes, START), START):
        assert rung.batch_size == 1 or rung.steps >= GOOD_UPDATES


def test_a_budget_below_the_smallest_ladder_is_refused_and_the_least_one_suffices() -> None:
    sizes = shapes(CONFIG)
    least = least_flops(sizes, START)
    assert len(ladder(sizes, least, START)) == LEVELS * SIZES
    with pytest.raises(TooSmall, match="too small for a ladder") as caught:
        ladder(sizes, least / 1.1, START)
    assert len(str(caught.value).splitlines()) <= 5


def test_the_nearest_size_is_nearest_by_ratio() -> None:
    sizes = shapes(CONFIG)
    for shape in sizes[:20]:
        assert nearest_shape(sizes, shape.parameters * 1.001) == shape
