"""Every path that a GPU takes: is it right, how fast is it, and how fast is transformers there?

    python benchmarks/gpu [--only checks training tuning decoding fp8] [--preset llama-1b] [--out FILE]
    python benchmarks/gpu --device cpu --small      a smoke test of the script itself, no figures

Runs alone on a machine with one GPU, Python 3.11 or newer, torch 2.11 or newer, Trivium's dependencies and transformers
(with accelerate; TRL only if it is there). No network and no data: weights and texts are made up.

checks    each path against float32 on the CPU, in the same process: bf16 arithmetic on float32 weights, the kernel for
          rows of several lengths, the fused loss, torch.compile, activation checkpointing, decoding with a cache by
          plain blocks and by CUDA graphs, FP8, and FSDP2 with one process. Each has a limit; the exit code is 1 if
          one is missed. FP8 is left out, with a note, where the GPU has none or torchao is not installed.
training  a whole run of `tv.train` and one of the transformers Trainer, taking turns in processes of their own, both in
          bf16 with float32 weights, eager and compiled: tokens a second, model FLOPs utilisation, peak memory. Ours
          compiled in FP8 besides, as if it were a peer; its utilisation, too, is a share of the peak in bf16.
tuning    the same on texts of mixed lengths: ours packed, theirs padded and grouped by length, and TRL's packing.
decoding  greedy text of random models, batch 1 and 16: tokens a second beside `generate` (dynamic and static cache),
          and how far both are from the floor that reading the weights once a token sets. It says whether ours ran by
          CUDA graphs; with TRIVIUM_CUDA_GRAPHS=0 they are left out.
fp8       one linear layer of several widths, for several numbers of tokens, in bf16 and in FP8: where FP8 pays.

Model FLOPs are those of Kaplan et al. 2020 (6 N a token and attention), without what is computed again. The peak is the
data sheet's dense bf16 for known GPUs, otherwise a measured matrix product; both are printed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

WORKLOAD = {"peers": ["torch", "transformers", "accelerate"], "together": True}

PARTS = ("checks", "training", "tuning", "decoding", "fp8")


def main() -> int:
    """The parts in turn; what fails is said at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--preset", default="llama-1b")
    parser.add_argument("--sequence", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=8, help="rows in an update")
    parser.add_argument("--micro", type=int, default=2, help="rows in a forward pass")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a tiny model, two updates, one pair")
    parser.add_argument("--checkpointing", default="none", choices=["none", "block", "attention", "mlp"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.small:
        arguments.preset, arguments.sequence, arguments.batch, arguments.micro = "llama-1m", 64, 4, 2
        arguments.steps, arguments.pairs = 3, 1

    import torch
    from checks import run_checks
    from record import save
    from speed import Setting, compare_decoding, compare_training, describe_device, time_float8

    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        print("left out: there is no GPU that torch can use; --device cpu --small only tries the script out")
        return 0
    device = describe_device(arguments.device)
    print(device.words, flush=True)
    failed: list[str] = []
    result: dict[str, object] = {"device": device.as_dict()}
    if "checks" in arguments.only:
        checks = run_checks(arguments.device)
        result["checks"] = [check.as_dict() for check in checks]
        failed += [check.name for check in checks if not check.good]
    runs, better = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        setting = Setting(
            folder=Path(scratch),
            device=arguments.device,
            preset=arguments.preset,
            sequence=arguments.sequence,
            batch=arguments.batch,
            micro=arguments.micro,
            steps=arguments.steps,
            pairs=arguments.pairs,
            checkpointing=arguments.checkpointing,
            small=arguments.small,
        )
        for part, compare in (("training", False), ("tuning", True)):
            if part in arguments.only:
                compare_training(setting, device, runs, better, failed, mixed=compare)
        if "fp8" in arguments.only:
            result["fp8"] = time_float8(setting)
        if "decoding" in arguments.only:
            result["decoding"] = compare_decoding(setting, device, runs, better, failed)
    for name, found in runs.items():
        save(
            __file__,
            found,
            better=better[name],
            variant=name,
            result=result,
            settings=vars(arguments),
            out=arguments.out and arguments.out.with_stem(f"{arguments.out.stem}-{name}"),
        )
    if not runs:
        save(__file__, result=result, settings=vars(arguments), out=arguments.out)
    print("all checks passed" if not failed else f"FAILED: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
