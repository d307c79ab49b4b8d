"""Generation: tokens per second of greedy answers, beside transformers' `generate` on the same weights.

    python benchmarks/generation.py [WORKLOAD ...] [--pairs 5] [--threads 1 2] [--out FOLDER]

WORKLOADs, by default all of them: `small` (10.5M parameters, batch 1), `small16` (batch 16), `gpt2` (GPT-2's size,
batch 1), `small16-int8` and `gpt2-int8` (our weights in eight bits, theirs in fp32), and `mixed`: 64 requests whose
prompts and answers have 16 to 256 tokens. The weights are random. Each measurement is a process of its own that loads
the model, generates once to warm up, and once more; every side runs with each number of threads and its best one
counts. transformers runs with its dynamic and with its static cache, and `mixed` with batches of 8, 16, 32 and 64
padded prompts. In fp32 the script ends if the ids are not the same.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import record

WORKLOAD = {"peers": ["transformers"], "together": True}

ROOT = Path(__file__).parent.parent
SMALL = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 1024,
    "initializer_range": 0.06,
}
WORKLOADS: dict[str, tuple[str, int, str | None]] = {
    "small": ("small", 1, None),
    "small16": ("small", 16, None),
    "gpt2": ("gpt2", 1, None),
    "small16-int8": ("small", 16, "int8"),
    "gpt2-int8": ("gpt2", 1, "int8"),
    "mixed": ("small", 64, None),
    "mixed-int8": ("small", 64, "int8"),
}
"""Model, requests, and the weights on our side."""
PROMPT, NEW = 64, 128
THEIRS = ("dynamic", "static")
BATCHES = (8, 16, 32, 64)

Requests = list[tuple[list[int], int]]
Answers = list[list[int]]


def make_models(folder: Path) -> None:
    """Both models with random weights, as transformers saves them."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SMALL)).save_pretrained(folder / "small")
    GPT2LMHeadModel(GPT2Config(vocab_size=50304, initializer_range=0.06)).save_pretrained(folder / "gpt2")


def requests_of(workload: str, vocabulary: int) -> Requests:
    """(prompt, tokens to generate) of each request."""
    draw = random.Random(1)
    lengths = [(PROMPT, NEW)] * WORKLOADS[workload][1]
    if workload.startswith("mixed"):
        lengths = [(draw.randint(16, 256), draw.randint(16, 256)) for _ in lengths]
    return [([draw.randrange(3, vocabulary) for _ in range(length)], new) for length, new in lengths]


def ours(folder: Path, workload: str) -> tuple[Requests, Callable[[Requests], Answers]]:
    """What answers requests on our side: the engine under `model.generate`, the evaluation and rollouts."""
    from trivium.inference.engine import Sample, decode
    from trivium.inference.request import Sampling, random_stream
    from trivium.models.folder import load_model

    model, _, weights = WORKLOADS[workload]
    module = load_model(folder / model).eval()
    if weights is not None:
        from trivium.models.quantized import quantize_weights

        quantize_weights(module, weights)

    def run(requests: Requests) -> Answers:
        samples = [Sample(ids, Sampling(temperature=0), new, random_stream(0, ids)) for ids, new in requests]
        for _ in decode(module, samples, max_rows=64):
            pass
        return [sample.completion.ids for sample in samples]

    return requests_of(workload, module.config.vocab_size), run


def theirs(folder: Path, workload: str, cache: str, batch: int) -> tuple[Requests, Callable[[Requests], Answers]]:
    """The same with transformers; `batch` requests in a call, each batch as long as its longest answer."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / WORKLOADS[workload][0]).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0

    def run(requests: Requests) -> Answers:
        answers: Answers = []
        for first in range(0, len(requests), batch):
            part = requests[first : first + batch]
            longest = max(len(ids) for ids, _ in part)
            mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids, _ in part])
            inputs = torch.tensor([[0] * (longest - len(ids)) + ids for ids, _ in part])
            new = max(new for _, new in part)
            how = {"cache_implementation": "static"} if cache == "static" else {}
            made = model.generate(inputs, attention_mask=mask, max_new_tokens=new, do_sample=False, **how)
            answers += [row[longest : longest + count].tolist() for row, (_, count) in zip(made, part, strict=True)]
        return answers

    return requests_of(workload, model.config.vocab_size), run


def measure(arguments: argparse.Namespace) -> None:
    """One side in this process; prints a line of JSON."""
    import torch

    if torch.get_num_threads() != arguments.threads[0]:
        torch.set_num_threads(arguments.threads[0])
    side, _, batch = arguments.side.partition("-")
    if side == "ours":
        requests, run = ours(arguments.folder, arguments.workload)
    else:
        requests, run = theirs(arguments.folder, arguments.workload, side, int(batch))
    run([(ids, min(new, 8)) for ids, new in requests])
    begin = time.perf_counter()
    answers = run(requests)
    seconds = time.perf_counter() - begin
    tokens = sum(new for _, new in requests)
    print("RESULT " + json.dumps({"tokens_per_second": tokens / seconds, "answers": answers}))


def once(side: str, threads: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, arguments.workload, "--side", side, "--folder", str(arguments.folder)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
    }
    done = subprocess.run(
        [*command, "--threads", str(threads)], capture_output=True, text=True, env=environment, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(lines[0][7:])
    print(f"{side:12} {threads} threads: {result['tokens_per_second']:.1f} tokens/s", flush=True)
    return result


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, help="folder of the files, one for each workload")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where the models are made, or were made before")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.workloads if name not in WORKLOADS]
    if unknown:
        parser.error(f"there is no workload {unknown[0]}: choose of {', '.join(WORKLOADS)}")
    if arguments.side:
        arguments.workload = arguments.workloads[0]
        measure(arguments)
        return
    with tempfile.TemporaryDirectory() as name:
        arguments.folder = arguments.folder or Path(name)
        if not (arguments.folder / "gpt2").exists():
            make_models(arguments.folder)
        for workload in arguments.workloads or WORKLOADS:
            arguments.workload = workload
            compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """A first round finds the best setting of each side, which then take turns."""
    mixed = arguments.workload.startswith("mixed")
    batches = BATCHES if mixed else (WORKLOADS[arguments.workload][1],)
    sides = {"ours": ["ours"], "transformers": [f"{cache}-{batch}" for cache in THEIRS for batch in batches]}
    best: dict[str, tuple[str, int]] = {}
    answers: dict[str, Answers] = {}
    for name, ways in sides.items():
        speeds = {}
        for way in ways:
            for threads in arguments.threads:
                found = once(way, threads, arguments)
                speeds[way, threads] = found["tokens_per_second"]
                answers[name] = found["answers"]
        best[name] = max(speeds, key=lambda key: speeds[key])
    same = sum(a == b for a, b in zip(answers["ours"], answers["transformers"], strict=True))
    print(f"same ids: {same} of {len(answers['ours'])}", flush=True)
    if same < len(answers["ours"]) and WORKLOADS[arguments.workload][2] is None:
        sys.exit("the two sides did not generate the same ids")
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for pair in range(arguments.pairs):
        for name in sides if pair % 2 == 0 else reversed(sides):
            found = once(*best[name], arguments)
            runs[name].append({"tokens_per_second": found["tokens_per_second"]})
    record.save(
        __file__,
        runs,
        better={"tokens_per_second": "more"},
        variant=arguments.workload,
        settings={name: f"{way}, {threads} threads" for name, (way, threads) in best.items()},
        out=arguments.out and arguments.out / f"generation-{arguments.workload}.json",
    )
    ratios = [a["tokens_per_second"] / b["tokens_per_second"] for a, b in zip(*runs.values(), strict=True)]
    print(f"median of the ratios: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
