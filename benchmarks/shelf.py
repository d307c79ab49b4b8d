"""Sixteen rows under eight different adapters: one mixed batch against eight separate ones.

    python benchmarks/shelf.py [--preset llama-10m] [--rounds 7]

The eight are four soft prompts (of 8, 12, 16 and 20 virtual tokens) and four LoRA (rank 4 and 8, all linear layers),
two rows each, of 20 to 80 tokens (`--tokens`). Measured are a forward pass with the log-probabilities of all tokens,
and the greedy generation of 24 tokens. The two ways take turns, and the ratio is that of the medians. The weights are
random: only time is measured, and that both say the same.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from trivium.data.batch import make_batch
from trivium.inference.engine import Sample, decode
from trivium.inference.request import Sampling
from trivium.losses import token_logprobs
from trivium.models.build import build_model, preset
from trivium.models.mixing import Entry
from trivium.models.transform import Transform, add_transform
from trivium.models.transformer import Transformer
from trivium.registry import component

WORKLOAD = {}

NEW = 24


def entries(model: Transformer) -> list[str]:
    """Four soft prompts and four LoRA on the shelf, with random values."""
    made = [("prompt_tuning", {"tokens": tokens, "init": "random"}) for tokens in (8, 12, 16, 20)]
    made += [("lora", {"rank": rank}) for rank in (4, 8, 4, 8)]
    for number, (name, settings) in enumerate(made):
        cls = component("transforms", name)
        transform: Transform = cls(cls.Config(**settings))
        transform.name = f"entry{number}"
        add_transform(model, transform, seed=number)
        model.transforms.remove(transform)
        with torch.no_grad():
            for parameter in transform.added:
                model.get_parameter(parameter).add_(0.02 * torch.randn(model.get_parameter(parameter).shape))
        model.mixer.add(model, Entry(str(number), (transform,), model.config))
    return [str(number) for number in range(len(made))]


def scores(model: Transformer, rows: Sequence[list[int]], adapters: Sequence[str]) -> list[torch.Tensor]:
    """Log-probabilities of the tokens of each row."""
    batch = make_batch(rows)
    with torch.no_grad():
        found = model(
            batch.input_ids,
            batch.layout,
            then=lambda hidden, head: token_logprobs(hidden, head, batch.targets),
            adapters=adapters,
        )
    return [found[start:end] for start, end in batch.layout.spans()]


def answers(model: Transformer, rows: Sequence[list[int]], adapters: Sequence[str]) -> list[list[int]]:
    """Greedy continuations of each row."""
    samples = [
        Sample(row, Sampling(temperature=0), NEW, random.Random(0), adapter=adapter)
        for row, adapter in zip(rows, adapters, strict=True)
    ]
    for _ in decode(model, samples):
        pass
    return [sample.completion.ids for sample in samples]


def separate(run: Callable[..., list], model: Transformer, rows: Sequence[list[int]], adapters: Sequence[str]) -> list:
    """The same, one adapter after the other."""
    found: list = [None] * len(rows)
    for name in dict.fromkeys(adapters):
        mine = [number for number, own in enumerate(adapters) if own == name]
        for number, result in zip(mine, run(model, [rows[n] for n in mine], [name] * len(mine)), strict=True):
            found[number] = result
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="llama-10m")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tokens", type=int, nargs=2, default=(20, 80), help="shortest and longest row")
    parser.add_argument("--processor", action="store_true", help="measure processor time, for machines with other work")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = build_model(preset(options.preset, {}), seed=0).eval()
    names = entries(model)
    draw = random.Random(0)
    adapters = [name for name in names for _ in range(2)]
    draw.shuffle(adapters)
    rows = [
        [draw.randrange(3, model.config.vocab_size) for _ in range(draw.randint(*options.tokens))] for _ in adapters
    ]
    result: dict[str, object] = {
        "preset": options.preset,
        "threads": options.threads,
        "tokens": list(options.tokens),
        "rows": 16,
        "adapters": 8,
    }
    for what, run in (("forward", scores), ("generation", answers)):
        together, apart = run(model, rows, adapters), separate(run, model, rows, adapters)
        if what == "forward":
            result["largest difference"] = max(float((a - b).abs().max()) for a, b in zip(together, apart, strict=True))
        else:
            result["same answers"] = sum(a == b for a, b in zip(together, apart, strict=True))
        times: dict[str, list[float]] = {"mixed": [], "separate": []}
        clock = time.process_time if options.processor else time.perf_counter
        for _ in range(options.rounds):
            for way, call in (("mixed", run), ("separate", lambda *a, run=run: separate(run, *a))):
                begin = clock()
                call(model, rows, adapters)
                times[way].append(clock() - begin)
        medians = {way: statistics.median(values) for way, values in times.items()}
        result[what] = {**{way: round(1000 * value, 1) for way, value in medians.items()}} | {
            "ratio": round(medians["separate"] / medians["mixed"], 2)
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
