"""The memory plan against real updates, each in a process of its own: the peak of resident memory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from trivium.core.plan import Machine, plan_memory
from trivium.models.build import preset
from trivium.recipe import Recipe

UPDATES = """
import json, sys, torch
from trivium.core.progress import memory_bytes
from trivium.data.batch import Layout
from trivium.losses.tokens import token_loss
from trivium.models.allocator import keep_freed_memory
from trivium.models.build import build_model, preset
from trivium.optim.adamw import AdamW

name, rows, length, micros, checkpointing = sys.argv[1], *map(int, sys.argv[2:])
torch.set_num_threads(1)
keep_freed_memory()
before = memory_bytes().current
config = preset(name)
model = build_model(config, seed=0)
model.activation_checkpointing = bool(checkpointing)
optimizer = AdamW(AdamW.Config()).build(model.named_parameters(), lr=1e-4)
for _ in range(4):
    for _ in range(micros):
        ids = torch.randint(0, config.vocab_size, (rows * length,))
        model(ids, Layout((length,) * rows), then=lambda hidden, head: token_loss(hidden, head, ids)).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
print(json.dumps([before, memory_bytes().peak]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows", "length", "micros", "checkpointing"),
    [
        ("llama-3m", 2, 256, 1, 0),
        ("llama-3m", 8, 512, 1, 0),
        ("llama-10m", 2, 512, 1, 0),
        ("llama-10m", 2, 512, 2, 0),
        ("llama-10m", 4, 512, 1, 1),
        ("gpt2-10m", 4, 512, 1, 0),
    ],
)
def test_peak_memory_is_foreseen(name: str, rows: int, length: int, micros: int, checkpointing: int) -> None:
    arguments = [name, *map(str, (rows, length, micros, checkpointing))]
    done = subprocess.run([sys.executable, "-c", UPDATES, *arguments], capture_output=True, text=True, check=True)
    before, peak = json.loads(done.stdout)
    recipe = Recipe.model_validate(
        {
            "name": "run",
            "method": "clm",
            "model": {"preset": name},
            "data": {"train": "data", "sequence_length": length, "packing": "none"},
            "train": {
                "steps": 10,
                "batch_size": rows * micros,
                "micro_batch_size": rows,
                "activation_checkpointing": "block" if checkpointing else "none",
            },
        }
    )
    machine = Machine("cpu", 1, 1 << 40, before, 1 << 40)
    assert plan_memory(preset(name), recipe, machine=machine).peak == pytest.approx(peak, rel=0.2)
