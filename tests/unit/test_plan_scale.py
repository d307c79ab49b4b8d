"""The arithmetic of many GPUs, against values worked out by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trivium.cli.main import run
from trivium.config import resolve
from trivium.core.machines import load_machine
from trivium.core.scale import Links, Work, scaled
from trivium.drivers.planning import plan_scale
from trivium.errors import ConfigError

LINKS = Links(per_node=8, inside=400e9, outside=50e9, latency=0.0)
WORK = Work(
    seconds=1.0,
    rows=16,
    micro_rows=4,
    row_tokens=1000,
    layers=10,
    width=2000,
    parameters=1_000_000_000,
    trainable=1_000_000_000,
    weight_bytes=2,
)


def test_a_ring_inside_a_node() -> None:
    assert LINKS.gather(8e9, 8) == pytest.approx(7e9 / 400e9)  # 7/8 of 8 GB
    assert LINKS.reduce(8e9, 8) == pytest.approx(2 * 0.0175)
    assert LINKS.gather(8e9, 1) == 0


def test_a_ring_over_nodes_is_inside_first_and_then_across_with_a_share() -> None:
    inside, across = 7 / 8 * 8e9 / 400e9, 7 / 8 * (8e9 / 8) / 50e9  # 64 devices are 8 nodes
    assert LINKS.gather(8e9, 64) == pytest.approx(inside + across)
    # Copies that are eight places apart have one device in each node.
    assert LINKS.gather(8e9, 8, apart=8) == pytest.approx(7 / 8 * 8e9 / 50e9)
    assert LINKS.gather(8e9, 125, apart=8) == pytest.approx(124 / 125 * 8e9 / 50e9)


def test_latency_counts_once_for_each_message_of_a_ring() -> None:
    late = Links(per_node=8, inside=400e9, outside=50e9, latency=1e-3)
    assert late.gather(0, 8) == pytest.approx(7e-3)
    assert late.gather(0, 64) == pytest.approx(7e-3 + 7e-3)
    assert late.reduce(0, 8) == pytest.approx(14e-3)
    assert late.send(400e9) == pytest.approx(1.001)
    assert late.send(400e9, apart=8) == pytest.approx(8.001)


def test_ddp_hides_its_all_reduce_behind_the_last_backward_pass() -> None:
    one = scaled(WORK, LINKS, 8, engine="ddp")
    assert one.rows == 128
    assert one.data == pytest.approx(2 * 7 / 8 * 4e9 / 400e9)  # 0.0175 s, and 1/6 s can hide
    assert one.best == 1.0
    assert one.worst == pytest.approx(1.0175)
    assert one.tokens_per_second == pytest.approx((128_000, 128_000 / 1.0175))
    assert one.efficiency == pytest.approx((1.0, 1 / 1.0175))
    slow = scaled(WORK, Links(8, 4e9, 50e9, 0.0), 8, engine="ddp")
    assert slow.data == pytest.approx(1.75)
    assert slow.best == pytest.approx(1 + 1.75 - 1 / 6)


def test_fsdp_gathers_the_weights_twice_in_each_micro_batch() -> None:
    one = scaled(WORK, LINKS, 8, engine="fsdp2")
    assert one.data == pytest.approx(2 * 4 * 7 / 8 * 2e9 / 400e9 + 7 / 8 * 4e9 / 400e9)
    assert one.best == 1.0


def test_the_same_rows_in_all_leave_less_for_each_copy() -> None:
    one = scaled(WORK, LINKS, 8, engine="ddp", rows=16)
    assert (one.rows, one.compute) == (16, pytest.approx(1 / 8))
    assert one.efficiency[1] == pytest.approx(0.125 / (0.125 + 0.0175))


def test_tensor_parallelism_waits_for_four_all_reduces_in_each_block() -> None:
    one = scaled(WORK, LINKS, 8, engine="ddp", tensor=8)
    assert one.compute == pytest.approx(1 / 8)
    size = 2 * 4 * 1000 * 2000  # bytes x rows x tokens x width
    assert one.tensor == pytest.approx(4 * 10 * 4 * 2 * 7 / 8 * size / 400e9)
    assert (one.data, one.copies) == (0, 1)


def test_a_pipeline_has_a_bubble_and_sends_hidden_states() -> None:
    one = scaled(WORK, LINKS, 4, engine="ddp", stages=4)
    assert one.compute == pytest.approx(1 / 4)
    assert one.bubble == pytest.approx(1 / 4 * 3 / 4)  # three of four micro-batches
    assert one.best == pytest.approx(0.25 * 7 / 4)
    assert one.transfers == pytest.approx(2 * 4 * 16e6 / 400e9)
    assert one.worst == pytest.approx(one.best + one.transfers)


def test_one_device_is_what_was_measured() -> None:
    for engine in ("ddp", "fsdp2"):
        one = scaled(WORK, LINKS, 1, engine=engine)
        assert (one.best, one.worst, one.efficiency) == (1.0, 1.0, (1.0, 1.0))


def recipe(**changes: Any) -> Any:
    return resolve(
        {
            "name": "x",
            "method": "clm",
            "model": {"preset": "llama-100m"},
            "data": {"train": "nowhere", "sequence_length": 512},
            "train": {"steps": 100, "batch_size": 16, "precision": "bf16"},
            **changes,
        }
    )


def test_a_measured_time_is_taken_as_it_is_and_a_missing_one_from_the_plan() -> None:
    machine = load_machine("h100-8")
    measured = plan_scale(recipe(), machine, gpus="1,8", seconds=0.5)
    assert measured.work.seconds == 0.5
    assert [one.devices for one in measured.same] == [1, 8]
    planned = plan_scale(recipe(), machine, gpus="8")
    assert 0 < planned.work.seconds < 5
    assert planned.work.weight_bytes == 2


def test_more_copies_than_rows_are_left_out_and_said() -> None:
    plan = plan_scale(recipe(), load_machine("h100-8"), gpus="8,64", seconds=0.5)
    assert [one.devices for one in plan.same] == [8]
    assert any("16 rows" in remark for remark in plan.remarks)


@pytest.mark.parametrize("gpus", ["eight", "", "0", "8,-1", "12"])
def test_numbers_of_devices_that_make_no_sense(gpus: str) -> None:
    with pytest.raises(ConfigError, match="numbers of devices"):
        plan_scale(recipe(), load_machine("h100-8"), gpus=gpus, seconds=1.0, tensor=8)


def test_a_machine_without_links_and_a_pipeline_without_stages_are_refused() -> None:
    with pytest.raises(ConfigError, match="links"):
        plan_scale(recipe(), load_machine("h100"), gpus="8", seconds=1.0)
    with pytest.raises(ConfigError, match="stages"):
        plan_scale(recipe(engine={"name": "pipeline"}), load_machine("h100-8"), gpus="8", seconds=1.0)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "scale", "recipes/clm.yaml", "model.preset=llama-1b", "train.precision=bf16", "--seconds", "2"]
    assert run([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["devices"] for one in found["grown"]] == [8, 64, 1000]
    assert run(command) == 0
    text = capsys.readouterr().out
    assert "1,000" in text and "computed, not measured" in text
