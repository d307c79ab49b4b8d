from __future__ import annotations

import contextlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trivium.core.plan import (
    LOGITS_CHUNKS,
    Held,
    Kept,
    Machine,
    activation_bytes,
    checkpoint_size,
    describe_machine,
    flops_per_token,
    forecast,
    matrix_parameters,
    measure,
    plan_memory,
    refuse_if_impossible,
    score,
)
from trivium.data.batch import Layout
from trivium.errors import ConfigError
from trivium.losses.tokens import CHUNKS, token_loss
from trivium.models.build import build_model, preset
from trivium.models.config import ModelConfig
from trivium.recipe import Recipe

GIB = 1 << 30
LAPTOP = Machine("cpu", cores=2, memory_bytes=8 * GIB, process_bytes=230 << 20, disk_free_bytes=100 * GIB)


def recipe(**train: Any) -> Recipe:
    data = {
        "train": "data",
        "sequence_length": train.pop("sequence_length", 512),
        "packing": train.pop("packing", "none"),
    }
    return Recipe.model_validate(
        {
            "name": "run",
            "method": "clm",
            "model": {"preset": "llama-10m", "dtype": train.pop("dtype", "float32")},
            "data": data,
            "train": {"steps": 100, **train},
        }
    )


def test_flops_are_six_per_parameter_and_token_and_attention() -> None:
    config = preset("llama-10m")
    matrices = config.parameters() - config.vocab_size * config.hidden_size
    assert flops_per_token(config, sequence_tokens=0) == pytest.approx(6 * matrices, rel=0.01)
    attention = flops_per_token(config, sequence_tokens=512) - flops_per_token(config, sequence_tokens=0)
    assert attention == 3 * config.num_layers * 4 * 256 * 256


def test_flops_of_a_window_stop_growing() -> None:
    config = preset("llama-10m").model_copy(update={"sliding_window": 64})
    assert flops_per_token(config, sequence_tokens=512) == flops_per_token(config, sequence_tokens=4096)


def test_training_few_parameters_saves_a_third_and_a_reference_adds_a_third() -> None:
    config = preset("llama-10m")
    full = flops_per_token(config, sequence_tokens=256)
    assert flops_per_token(config, sequence_tokens=256, trainable=0) / full == pytest.approx(2 / 3, abs=0.04)
    assert flops_per_token(config, sequence_tokens=256, frozen_roles=1) / full == pytest.approx(4 / 3, abs=0.01)


@pytest.mark.parametrize("name", ["llama-1m", "gpt2-1m", "grouped"])
@pytest.mark.parametrize("lengths", [(65, 65), (30, 52, 48)], ids=["one length", "packed"])
@pytest.mark.parametrize("numbers", ["float32", "float64", "autocast"])
def test_activations_are_what_autograd_keeps(name: str, lengths: tuple[int, ...], numbers: str) -> None:
    """Every tensor that autograd saves is counted once, by its storage."""
    config = preset("llama-1m", {"num_kv_heads": 2}) if name == "grouped" else preset(name)
    half = numbers == "autocast"
    if half and config.norm == "layernorm":
        pytest.skip("LayerNorm gives float32 to autocast, not modelled")
    if numbers == "float64" and len(set(lengths)) > 1:
        pytest.skip("torch's attention, which takes float64, fills lengths up")
    dtype = torch.float32 if half else getattr(torch, numbers)
    model, tokens = build_model(config, seed=0, dtype=dtype), sum(lengths)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() > 1 and tensor.untyped_storage().data_ptr() not in own and not _is_weight(tensor, config):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.randint(0, config.vocab_size, (tokens,))
    precision = torch.autocast("cpu", dtype=torch.bfloat16) if half else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), precision:
        model(ids, Layout(lengths), then=lambda hidden, head: token_loss(hidden, head, ids))
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    keeps = Kept(dtype.itemsize, half=half, inner=half, norms=half)
    block, ends = activation_bytes(config, keeps)
    assert tokens * (config.num_layers * block + ends) == pytest.approx(measured, rel=0.1)


def _is_weight(tensor: torch.Tensor, config: ModelConfig) -> bool:
    """Copies of weights in half precision, and the gradient of the head."""
    widths = {config.hidden_size, config.intermediate_size, config.vocab_size, config.num_kv_heads * config.head_dim}
    return tensor.dim() == 2 and set(tensor.shape) <= widths


def test_smaller_micro_batches_need_less_memory_and_as_much_work() -> None:
    config = preset("llama-10m")
    whole, quarter = (
        forecast(config, recipe(batch_size=16, micro_batch_size=micro), steps=100, machine=LAPTOP) for micro in (16, 4)
    )
    assert quarter.memory.peak < 0.6 * whole.memory.peak
    assert (quarter.flops, quarter.tokens) == (whole.flops, whole.tokens)


@pytest.mark.parametrize(
    "change",
    [
        {"activation_checkpointing": "block"},
        {"sequence_length": 128},
        {"batch_size": 4},
    ],
    ids=str,
)
def test_settings_that_save_memory(change: dict[str, Any]) -> None:
    config = preset("llama-10m")
    plain = plan_memory(config, recipe(batch_size=8), machine=LAPTOP)
    assert plan_memory(config, recipe(**{"batch_size": 8, **change}), machine=LAPTOP).peak < plain.peak


@pytest.mark.parametrize("change", [{"precision": "bf16"}, {"dtype": "bfloat16"}], ids=str)
def test_half_precision_saves_activations_on_a_gpu(change: dict[str, Any]) -> None:
    config, gpu = preset("llama-10m"), replace(LAPTOP, device="cuda", process_bytes=0)
    plain, half = (plan_memory(config, recipe(**{"batch_size": 8, **each}), machine=gpu) for each in ({}, change))
    assert half.activations < 0.85 * plain.activations


def test_parts_of_the_model_that_do_not_train_need_no_gradient_and_no_optimiser() -> None:
    config = preset("llama-10m")
    adapter = plan_memory(config, recipe(), machine=LAPTOP, held=Held(trainable=50_000))
    assert adapter.gradients == 4 * 50_000
    assert adapter.optimizer == 8 * 50_000
    assert plan_memory(config, recipe(), machine=LAPTOP, frozen_copies=1).weights == 2 * adapter.weights


def test_a_quantised_base_and_frozen_blocks_need_less() -> None:
    config = preset("llama-10m")
    adapter = Held(trainable=50_000)
    plain, few, upper = (
        plan_memory(config, recipe(), machine=LAPTOP, held=held)
        for held in (adapter, replace(adapter, weight_bytes=10 << 20, inner=True), replace(adapter, depth=0.25))
    )
    assert few.weights == 10 << 20 < plain.weights == 4 * config.parameters()
    assert few.activations > plain.activations, "adapters keep what stands inside of a gated MLP"
    assert upper.activations < 0.5 * plain.activations


def test_short_rows_need_less() -> None:
    config = preset("llama-10m")
    whole, half = (plan_memory(config, recipe(), machine=LAPTOP, fill=fill) for fill in (1.0, 0.5))
    assert half.activations == pytest.approx(whole.activations / 2, rel=0.01)


def test_what_transforms_make_of_a_model_is_counted() -> None:
    from trivium.config import resolve
    from trivium.drivers.planning import held

    def found(*transforms: dict[str, Any]) -> Held:
        plain = recipe().model_dump(mode="json")
        return held(resolve({**plain, "transforms": list(transforms)}), preset("llama-10m"))

    config, lora = preset("llama-10m"), {"name": "lora", "rank": 4, "target": "all-linear"}
    assert found() == Held()
    plain, few = found(lora), found({"name": "quantize", "to": "nf4"}, lora)
    adapters = 4 * (plain.trainable or 0)
    assert plain.weight_bytes == 4 * config.parameters() + adapters
    assert plain.depth == 1.0 and plain.inner and few.inner
    embeddings = 4 * 2 * config.vocab_size * config.hidden_size
    blocks = 4 * config.parameters() - embeddings
    assert (few.weight_bytes or 0) - adapters - embeddings == pytest.approx(blocks * 4.2 / 32, rel=0.05)
    upper = found({"name": "trainable", "patterns": ["head.*", "blocks.6.*", "blocks.7.*"]})
    assert upper.depth == 2 / config.num_layers and not upper.inner


def test_checkpoints_hold_weights_and_two_moments() -> None:
    config = preset("llama-10m")
    assert checkpoint_size(config, recipe()) == 12 * config.parameters()
    plan = forecast(config, recipe(keep_checkpoints=3), steps=100, machine=LAPTOP)
    assert plan.disk_bytes == (4 * 12 + 4) * config.parameters()
    once = forecast(config, recipe(keep_checkpoints=3, checkpoint_every=100), steps=100, machine=LAPTOP)
    assert once.disk_bytes == (12 + 4) * config.parameters()


def test_facts_are_measured_on_the_folder_of_the_run(tmp_path: Path) -> None:
    for name, size in (("checkpoints/step-00000100", 900), ("checkpoints/step-00000200", 1000), ("final", 400)):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model" / "weights").write_bytes(bytes(size))
    fact = measure(tmp_path, parameters=7, steps=200, tokens=9000, seconds=3.5, keep=2)
    assert (fact["checkpoint_bytes"], fact["disk_bytes"]) == (1000, 3400)
    assert fact["peak_memory_bytes"] > 10 << 20
    assert (fact["steps"], fact["tokens"], fact["seconds"]) == (200, 9000, 3.5)


def test_time_counts_updates_validations_and_checkpoints() -> None:
    config = preset("llama-1m")
    bare = forecast(config, recipe(batch_size=8), steps=1000, machine=LAPTOP, seconds_per_update=0.1)
    assert bare.seconds == pytest.approx(100, rel=0.02)
    assert bare.seconds > 100
    validated = forecast(
        config, recipe(batch_size=8), steps=1000, machine=LAPTOP, seconds_per_update=0.1, validation_tokens=40_960
    )
    assert validated.seconds == pytest.approx(bare.seconds + 10 * 10 * 0.1 / 3)


def test_time_from_a_stated_speed() -> None:
    config = preset("llama-1m")
    plan = forecast(config, recipe(batch_size=8), steps=10, machine=LAPTOP, flops_per_second=1e9)
    assert plan.seconds == pytest.approx(plan.flops / 1e9, rel=0.1)
    assert forecast(config, recipe(), steps=10, machine=LAPTOP).seconds is None


def test_a_run_that_fits_is_not_refused() -> None:
    refuse_if_impossible(forecast(preset("llama-10m"), recipe(), steps=100, machine=LAPTOP), LAPTOP)


@pytest.mark.parametrize("gib", [0.75, 1.0, 2.0, 3.0])
def test_refusal_for_memory_names_a_setting_that_fits(gib: float) -> None:
    config, machine = preset("llama-10m"), Machine("cpu", 2, int(gib * GIB), 230 << 20, 100 * GIB)
    settings = {"batch_size": 64}
    plan = forecast(config, recipe(**settings), steps=100, machine=machine)
    with pytest.raises(ConfigError, match="of memory") as caught:
        refuse_if_impossible(plan, machine)
    assert len(str(caught.value).splitlines()) <= 5
    proposed = dict(word.split("=") for word in str(caught.value.fix).split() if word.startswith("train."))
    changes = {key.removeprefix("train."): int(v) if v.isdigit() else v for key, v in proposed.items()}
    assert 1 <= changes["micro_batch_size"] < 64
    refuse_if_impossible(forecast(config, recipe(**settings, **changes), steps=100, machine=machine), machine)
    larger = {**changes, "micro_batch_size": changes["micro_batch_size"] + 1}
    with pytest.raises(ConfigError):
        refuse_if_impossible(forecast(config, recipe(**settings, **larger), steps=100, machine=machine), machine)


def test_refusal_of_a_model_that_cannot_fit_at_all() -> None:
    with pytest.raises(ConfigError, match="not even one row fits"):
        refuse_if_impossible(forecast(preset("llama-8b"), recipe(), steps=100, machine=LAPTOP), LAPTOP)


def test_refusal_for_disk() -> None:
    machine = Machine("cpu", 2, 8 * GIB, 0, 1 << 20)
    with pytest.raises(ConfigError, match="of disk"):
        refuse_if_impossible(forecast(preset("llama-10m"), recipe(), steps=100, machine=machine), machine)


def test_this_machine_is_described(tmp_path: Path) -> None:
    machine = describe_machine(tmp_path / "not" / "there")
    assert machine.cores >= 1
    assert 100 << 20 < machine.memory_bytes < 1 << 44
    assert machine.disk_free_bytes > 0
    assert machine.process_bytes > 0


def test_forecast_is_plain_json_and_scored_against_what_happened() -> None:
    plan = forecast(preset("llama-1m"), recipe(), steps=100, machine=LAPTOP, seconds_per_update=0.5)
    plain = json.loads(json.dumps(plan.as_dict()))
    fact = {"seconds": plan.seconds and plan.seconds / 1.1, "peak_memory_bytes": plan.memory.peak * 2, "loss": 3.0}
    rows = {row.name: row for row in score(plain, fact)}
    assert list(rows) == ["seconds", "peak_memory_bytes"]
    assert rows["seconds"].error == pytest.approx(0.1)
    assert rows["peak_memory_bytes"].error == pytest.approx(-0.5)


def test_score_skips_what_is_not_known_and_never_divides_by_zero() -> None:
    assert score({}, {"seconds": 1.0}) == []
    (row,) = score({"seconds": 2.0}, {"seconds": 0})
    assert row.error is None
    assert math.isfinite(row.forecast)


def test_chunks_of_logits_are_those_of_the_loss() -> None:
    assert LOGITS_CHUNKS == CHUNKS


def test_a_large_vocabulary_needs_a_least_number_of_rows_of_logits() -> None:
    config = preset("llama-1b")
    plan = plan_memory(config, recipe(batch_size=8), machine=LAPTOP)
    assert plan.loss == 4 * 256 * config.vocab_size + 4 * config.vocab_size * config.hidden_size


def mixture(experts: int, passed: int) -> ModelConfig:
    """As a family would build it; no family is needed for arithmetic."""
    return preset("llama-10m").model_copy(update={"experts": experts, "experts_per_token": passed})


def test_experts_need_memory_all_of_them_and_work_those_of_one_token() -> None:
    dense, few, many = preset("llama-10m"), mixture(2, 2), mixture(16, 2)
    assert many.parameters() > 4 * dense.parameters()
    routing = 6 * dense.num_layers * 14 * dense.hidden_size
    work = [flops_per_token(config, sequence_tokens=256) for config in (few, many)]
    assert work[1] == pytest.approx(work[0] + routing)
    one, two = (plan_memory(config, recipe(), machine=LAPTOP) for config in (few, many))
    assert two.weights == 4 * many.parameters()
    assert two.activations == pytest.approx(one.activations, rel=0.02)


def test_an_encoder_decoder_counts_both_stacks_and_the_attention_between_them() -> None:
    decoder = preset("llama-10m")
    both = decoder.model_copy(update={"kind": "encoder_decoder", "num_decoder_layers": decoder.num_layers})
    assert matrix_parameters(both) > 1.9 * matrix_parameters(decoder.model_copy(update={"vocab_size": 1}))
    assert flops_per_token(both, sequence_tokens=256) > 1.5 * flops_per_token(decoder, sequence_tokens=256)
    plans = [plan_memory(config, recipe(), machine=LAPTOP) for config in (decoder, both)]
    assert plans[1].activations > 1.1 * plans[0].activations
    shares = [plan_memory(both, recipe(), machine=LAPTOP, source_share=share).activations for share in (0.9, 0.5, 0.1)]
    assert shares == sorted(shares), "a target costs more than a source: it looks at both"


def test_an_encoder_sees_its_whole_sequence() -> None:
    decoder = preset("llama-10m")
    encoder = decoder.model_copy(update={"kind": "encoder"})
    seen = [flops_per_token(c, sequence_tokens=512) - flops_per_token(c, sequence_tokens=0) for c in (decoder, encoder)]
    assert seen[1] == pytest.approx(2 * seen[0], rel=0.01)


def test_only_the_sliding_layers_see_a_window() -> None:
    config = preset("llama-10m").model_copy(update={"sliding_window": 64})
    types = ("full",) + ("sliding",) * (config.num_layers - 1)
    mixed = config.model_copy(update={"layer_types": types})
    plain = config.model_copy(update={"sliding_window": None})
    work = [flops_per_token(c, sequence_tokens=4096) for c in (config, mixed, plain)]
    assert work[0] < work[1] < work[2]


def test_matrix_parameters_leave_out_what_is_looked_up() -> None:
    tied, untied, learned = preset("llama-1m"), preset("llama-10m"), preset("gpt2-1m")
    assert matrix_parameters(tied) == tied.parameters()
    assert matrix_parameters(untied) == untied.parameters() - untied.vocab_size * untied.hidden_size
    assert matrix_parameters(learned) == learned.parameters() - learned.max_positions * learned.hidden_size


@pytest.mark.parametrize("engine", ["single", "ddp", "fsdp2", "tensor", "pipeline"])
def test_more_processes_never_need_more_memory_each(engine: str) -> None:
    config, plain = preset("llama-100m"), recipe(batch_size=32, micro_batch_size=2).model_dump()
    plain["engine"]["name"] = engine
    one, eight = (plan_memory(config, Recipe.model_validate(plain), machine=LAPTOP, ranks=n) for n in (2, 8))
    assert eight.peak <= one.peak
    shared = {"fsdp2": 1 / 4, "single": 1, "ddp": 1}.get(engine)
    if shared is not None:
        assert eight.weights == pytest.approx(one.weights * shared, rel=0.01)


def test_fsdp_puts_blocks_together_and_ddp_keeps_its_gradients() -> None:
    config, plain = preset("llama-100m"), recipe(batch_size=32).model_dump()
    plans = {}
    for engine in ("single", "ddp", "fsdp2"):
        plain["engine"]["name"] = engine
        plans[engine] = plan_memory(config, Recipe.model_validate(plain), machine=LAPTOP, ranks=4)
    assert plans["ddp"].buckets == plans["ddp"].gradients and not plans["single"].buckets
    assert 0 < plans["fsdp2"].gathered < plans["single"].weights * 2
    assert plans["fsdp2"].peak < plans["single"].peak < plans["ddp"].peak
