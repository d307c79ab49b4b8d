"""A corpus to token shards: ours beside `datasets.map` with as many processes, on the same tokenizer.json.

    python benchmarks/tokenise.py FOLDER --peer-python PATH [--megabytes 60] [--workers 2] [--pairs 3] [--training]
        [--exact-megabytes 0] [--out FILE]

FOLDER holds .txt files (books); the corpus is made of them, in pieces of 6000 characters, and of the Python files of
the standard library, in an order that is drawn again until it is long enough. Both sides read the same .jsonl and write
token ids with BOS and EOS to the disk: ours the shards of `tokenise_on_disk`, with and without the faster encoder,
theirs `Dataset.map(batched=True, num_proc=...)`, whose output is an Arrow file. They take turns in processes of their
own; the figure is the ratio of medians of megabytes of text a second, from the open tokenizer to the finished files;
on their side only `map` counts, not reading the .jsonl into their own format. The ids must be the same.

--training compares `train_bpe` with a plain call of the `tokenizers` library on the same texts instead.
--exact-megabytes N only compares the ids of the faster encoder with the library's, on so much text.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from record import save

WORKLOAD = {"peers": ["datasets", "tokenizers"], "data": ["gutenberg"], "arguments": ["{data}/gutenberg"]}

VOCABULARY = 8192


def pieces(folder: Path) -> list[str]:
    """Files of the standard library and pieces of books."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found = [
        path.read_text(encoding="utf-8", errors="replace")
        for path in sorted(library.glob("**/*.py"))
        if "site-packages" not in path.parts
    ]
    books = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("*.txt"))]
    found += [book[start : start + 6000] for book in books for start in range(0, len(book), 6000)]
    return [text for text in found if text.strip()]


def write_corpus(texts: list[str], target: Path, megabytes: float) -> int:
    """Rows of {"id", "text"}; returns the bytes of text."""
    draw, size, number = random.Random(0), 0, 0
    with target.open("w", encoding="utf-8") as stream:
        while size < megabytes * 1e6:
            for text in draw.sample(texts, len(texts)):
                stream.write(json.dumps({"id": f"{number}", "text": text}) + "\n")
                number, size = number + 1, size + len(text.encode())
                if size >= megabytes * 1e6:
                    break
    return size


def run_ours(corpus: Path, folder: Path, work: Path, *, fast: bool) -> dict:
    from trivium.data.shards import tokenise_on_disk
    from trivium.recipe import Source
    from trivium.tokenizers.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(folder)
    if not fast:
        tokenizer.__dict__["fast"] = None
    start, used = time.perf_counter(), time.process_time()
    found = tokenise_on_disk(Source(path=str(corpus)), tokenizer, on_error="error", cache=work)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    digest = hashlib.sha256()
    for shard in found.shards:
        digest.update(shard.tokens.astype("<u4").tobytes())
    return {"seconds": seconds, "cpu": used, "ids": digest.hexdigest()}


PEER = """
import hashlib, json, sys, time, os
import numpy as np
import tokenizers
from datasets import load_dataset
corpus, folder, work, workers = sys.argv[1:]
backend = tokenizers.Tokenizer.from_file(folder + "/tokenizer.json")
backend.encode_special_tokens = True
eos = backend.token_to_id("<|eos|>")
def encode(batch):
    return {"ids": [encoding.ids + [eos] for encoding in backend.encode_batch(batch["text"])]}
start = time.perf_counter()
rows = load_dataset("json", data_files=corpus, split="train", cache_dir=work)
opened = time.perf_counter()
found = rows.map(encode, batched=True, num_proc=int(workers), remove_columns=rows.column_names)
seconds = time.perf_counter() - start
digest = hashlib.sha256()
for batch in found.with_format("arrow").iter(1000):
    digest.update(batch["ids"].combine_chunks().flatten().to_numpy().astype("<u4").tobytes())
print(json.dumps({"seconds": seconds, "map": seconds - (opened - start), "ids": digest.hexdigest()}))
"""


def run_child(arguments: list[str], environment: dict[str, str]) -> dict:
    result = subprocess.run(arguments, env={**os.environ, **environment}, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(result.stderr[-3000:])
    return json.loads(result.stdout.strip().splitlines()[-1])


def compare_speed(args: argparse.Namespace, place: Path) -> dict:
    from trivium.tokenizers.train import train_bpe

    texts = pieces(args.folder)
    size = write_corpus(texts, place / "corpus.jsonl", args.megabytes)
    (place / "tokenizer").mkdir()
    train_bpe(random.Random(1).sample(texts, min(len(texts), 1500)), vocab_size=VOCABULARY).save(place / "tokenizer")
    inputs = [str(place / "corpus.jsonl"), str(place / "tokenizer")]
    threads = {"RAYON_NUM_THREADS": str(args.workers)}
    runs: dict[str, list[dict]] = {"ours": [], "ours, plain": [], "datasets.map": []}
    for pair in range(args.pairs):
        for name in runs:
            work = str(place / f"{name.replace(' ', '')}{pair}")
            if name == "datasets.map":
                # One thread in each process, as datasets recommends: rayon would start as many as there are cores.
                quiet = {
                    "TOKENIZERS_PARALLELISM": "false",
                    "HF_HUB_OFFLINE": "1",
                    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
                }
                found = run_child([args.peer_python, "-c", PEER, *inputs, work, str(args.workers)], quiet)
            else:
                kind = "fast" if name == "ours" else "plain"
                found = run_child([sys.executable, __file__, *inputs, "--child", kind, "--work", work], threads)
            runs[name].append(found)
            print(f"{name:13} {size / found.get('map', found['seconds']) / 1e6:6.2f} MB/s", flush=True)
    assert len({found["ids"] for several in runs.values() for found in several}) == 1, "the ids differ"
    speed = {
        name: size / statistics.median(run.get("map", run["seconds"]) for run in found) / 1e6
        for name, found in runs.items()
    }
    ratios = {name: speed[name] / speed["datasets.map"] for name in ("ours", "ours, plain")}
    return {"bytes": size, "workers": args.workers, "megabytes_per_second": speed, "ratio": ratios, "runs": runs}


def compare_training(args: argparse.Namespace) -> dict:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    from trivium.tokenizers import train

    texts = pieces(args.folder)
    size = sum(len(text.encode()) for text in texts)
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)

    def direct() -> int:
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer, backend.decoder = splitter, decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            min_frequency=2,
            special_tokens=list(train.SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return backend.get_vocab_size()

    runs: dict[str, list[float]] = {"ours": [], "tokenizers": []}
    for _ in range(args.pairs):
        for name, call in (
            ("ours", lambda: train.train_bpe(texts, vocab_size=VOCABULARY, split="gpt2").vocab_size),
            ("tokenizers", direct),
        ):
            start = time.perf_counter()
            assert call() == VOCABULARY
            runs[name].append(time.perf_counter() - start)
            print(f"{name:10} {runs[name][-1]:.2f} s", flush=True)
    return {
        "bytes": size,
        "ratio": statistics.median(runs["ours"]) / statistics.median(runs["tokenizers"]),
        "seconds": runs,
    }


def compare_ids(args: argparse.Namespace) -> dict:
    """Every id of the faster encoder against the library's."""
    from trivium.tokenizers.train import train_bpe

    texts = pieces(args.folder)
    found = {}
    for split in ("gpt4", "gpt2"):
        tokenizer = train_bpe(random.Random(1).sample(texts, min(len(texts), 1500)), vocab_size=VOCABULARY, split=split)
        fast = tokenizer.fast
        assert fast is not None
        draw, size, slow = random.Random(2), 0, 0
        while size < args.exact_megabytes * 1e6:
            several = []
            for _ in range(100):
                # Pieces of pieces, so that the same text is never cut and framed in the same way again.
                text = draw.choice(texts)
                start = draw.randrange(len(text))
                several.append(text[start : start + draw.randrange(1, 20_000)])
            size += sum(len(text.encode()) for text in several)
            for text, ids in zip(several, tokenizer.encode_documents(several), strict=True):
                quick = fast.encode(text)
                slow += quick is None
                assert quick is None or quick.tolist() == ids[1:-1], text
        found[split] = {"bytes": size, "left to the library": slow}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("tokenizer", type=Path, nargs="?")
    parser.add_argument("--peer-python")
    parser.add_argument("--megabytes", type=float, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--training", action="store_true")
    parser.add_argument("--exact-megabytes", type=float, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", choices=["fast", "plain"])
    parser.add_argument("--work", type=Path)
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent.parent))
    if args.child:
        print(json.dumps(run_ours(args.folder, args.tokenizer, args.work, fast=args.child == "fast")))
        return
    if args.training:
        result = compare_training(args)
    elif args.exact_megabytes:
        result = compare_ids(args)
    else:
        with tempfile.TemporaryDirectory() as place:
            result = compare_speed(args, Path(place))
    print(json.dumps({name: value for name, value in result.items() if name != "runs"}, indent=1))
    speeds = {
        side: [{"megabytes_per_second": result["bytes"] / run.get("map", run["seconds"]) / 1e6, **run} for run in each]
        for side, each in result.pop("runs", {}).items()
    }
    save(
        __file__,
        speeds,
        better={"megabytes_per_second": "more"},
        result=result,
        variant="training" if args.training else "exact" if args.exact_megabytes else "",
        out=args.out,
        peer_python=args.peer_python,
    )


if __name__ == "__main__":
    main()
