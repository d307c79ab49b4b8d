"""A whole pipeline against datatrove doing the same steps: read, Gopher and C4 filters, MinHash, tokenise.

    python benchmarks/pipeline.py FOLDER --peer-python PATH [--documents 8000] [--workers 2] [--pairs 2] [--out FILE]
    python benchmarks/pipeline.py FOLDER --memory [--megabytes 128]

FOLDER holds .txt files (books). The documents are pieces of about 3 kB of the books and of `pydocs`, the documentation
of this Python installation, in an order drawn at random, from the second time on with words changed; every twentieth
one stands there twice with a few words changed. Both sides read the same four .jsonl files and write the
same kind of tokens with the same tokenizer.json; theirs is LocalPipelineExecutor with as many workers and tasks. They
take turns in processes of their own. The figure is the ratio of medians of seconds from the start of the process to the
last file; imports count. Ours cleans too, writes the documents with an account of each step, flushes and hashes what it
writes; theirs does not. Per step: documents a second and process, from each side's own clocks.

--memory: the largest resident set of any process while the input grows 1x, 4x, 16x; with MinHash up to --minhash-to.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from record import peak_memory, save

WORKLOAD = {
    "peers": ["datatrove==0.10.1", "tokenizers", "spacy", "orjson", "nltk", "tldextract"],
    "environment": "datatrove",
    "unpinned": ["xxhash"],
    "data": ["gutenberg"],
    "arguments": ["{data}/gutenberg", "--documents", "6500"],
}

PIECE = 3000
LETTERS = 0.6
"""Least share of words with letters: with 0.8 datatrove, which counts marks too, drops most of these texts."""
STEPS: list[Any] = [
    "clean",
    {"name": "gopher_quality", "words": "marks", "least_alphabetic_words": LETTERS},
    "gopher_repetition",
    "c4",
    "minhash",
]
VOCABULARY = 8192


def pieces(folder: Path) -> list[str]:
    """About 3 kB each, of whole paragraphs, each on a line of its own as web text has them."""
    from trivium.data.intake import Intake
    from trivium.data.reading import read_documents
    from trivium.recipe import Source

    books = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("*.txt"))]
    found: list[str] = []
    for text in [*books, *(document.text for document in read_documents(Source(path="pydocs"), Intake()))]:
        held: list[str] = []
        for paragraph in text.split("\n\n"):
            held.append(" ".join(paragraph.split()))
            if sum(map(len, held)) >= PIECE:
                found.append("\n".join(held))
                held = []
        found.append("\n".join(held))
    return [text for text in found if len(text) > 500]


def varied(texts: list[str], draw: random.Random) -> Iterator[str]:
    """The texts again and again; from the second time on about every twelfth word is another one."""
    order = texts[:]
    draw.shuffle(order)
    yield from order
    while True:
        for text in order:
            words = text.split(" ")
            for at in range(draw.randrange(12), len(words), 12):
                words[at] = f"{words[at - 1]}{draw.randrange(1000)}"
            yield " ".join(words)


def write_documents(texts: list[str], folder: Path, count: int, files: int = 4) -> int:
    """Rows of {"id", "text"}; every twentieth document again with a few words changed. Returns the bytes."""
    folder.mkdir(parents=True)
    draw, size = random.Random(0), 0
    source = varied(texts, draw)
    streams = [(folder / f"{number:02}.jsonl").open("w", encoding="utf-8") for number in range(files)]
    last = ""
    for number in range(count):
        text = (
            next(source) if number % 20 else " ".join(w if draw.random() > 0.003 else "other" for w in last.split(" "))
        )
        last = text if number % 20 else last
        size += streams[number * files // count].write(json.dumps({"id": f"{number}", "text": text or "empty"}) + "\n")
    for stream in streams:
        stream.close()
    return size


def ours(corpus: Path, work: Path, workers: int, steps: list[Any]) -> dict[str, Any]:
    """One run of the product; with the tokenizer, tokens too."""
    from trivium.data.pipeline import run_pipeline
    from trivium.data.shards import tokenise_on_disk
    from trivium.recipe import Source
    from trivium.tokenizers.tokenizer import Tokenizer

    begin = time.perf_counter()
    done = run_pipeline(
        {"output": str(work / "documents"), "sources": [str(corpus)], "steps": steps, "workers": workers}
    )
    middle = time.perf_counter()
    if (work / "tokenizer").is_dir():
        source = Source(path=str(done.folder / "documents.train.jsonl"))
        tokenise_on_disk(source, Tokenizer.load(work / "tokenizer"), on_error="error", cache=work / "tokens")
    entered = {f"{at:02d}-{step['name']}": step["in"] for at, step in enumerate(done.report["steps"])}
    rates = {name[3:]: round(entered[name] / seconds) for name, seconds in done.seconds.items() if seconds}
    return {
        "kept": sum(done.report["kept"].values()),
        "rates": {**rates, "tokenise": round(done.report["kept"]["train"] / (time.perf_counter() - middle) / workers)},
        "pipeline_seconds": middle - begin,
    }


PEER = """
import json, sys
from pathlib import Path
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import C4QualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers import JsonlWriter

def main():
    corpus, work, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
    config = MinhashConfig()
    quality = GopherQualityFilter(max_non_alpha_words_ratio=float(sys.argv[5]))
    filters = [quality, GopherRepetitionFilter(), C4QualityFilter(filter_no_terminal_punct=True)]
    stages = [
        (4, [JsonlReader(corpus), *filters, JsonlWriter(f"{work}/filtered", compression=None)]),
        (4, [JsonlReader(f"{work}/filtered"), MinhashDedupSignature(f"{work}/signatures", config=config)]),
        (config.num_buckets, [MinhashDedupBuckets(f"{work}/signatures", f"{work}/buckets", config=config)]),
        (1, [MinhashDedupCluster(f"{work}/buckets", f"{work}/removed", config=config)]),
        (4, [JsonlReader(f"{work}/filtered"), MinhashDedupFilter(f"{work}/removed"),
             DocumentTokenizer(f"{work}/tokens", tokenizer_name_or_path=f"{work}/tokenizer/tokenizer.json",
                               eos_token=sys.argv[4], shuffle_documents=False)]),
    ]
    rates, kept = {}, {}
    for number, (tasks, steps) in enumerate(stages):
        logs = f"{work}/logs{number}"
        executor = LocalPipelineExecutor(steps, tasks=tasks, workers=workers, logging_dir=logs, start_method="fork")
        stats = executor.run()
        for stat in stats.stats:
            seen = {key: value.total for key, value in stat.stats.items()}
            count = seen.get("total") or seen.get("documents") or 0
            name = "".join(letter for letter in stat.name if letter.isascii())
            name = name.partition(":")[2].strip() + f" ({number})"
            rates[name] = round(count / stat.time_stats.total) if count else f"{stat.time_stats.total:.1f} s"
            kept[name] = seen.get("forwarded", seen.get("documents"))
    print("RESULT " + json.dumps({"rates": rates, "kept": kept}))

if __name__ == "__main__":
    main()
"""


def make_tokenizer(texts: list[str], folder: Path) -> None:
    """The tokenizer.json both sides use."""
    from trivium.tokenizers.train import train_bpe

    folder.mkdir(parents=True)
    train_bpe(texts[:1500], vocab_size=VOCABULARY).save(folder)


def timed(command: list[str]) -> tuple[float, float, str]:
    """Seconds, seconds of all its processors, and output of a process."""
    begin, before = time.perf_counter(), processor_seconds()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "true"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"{command[:3]} failed:\n{done.stderr[-3000:]}")
    return seconds, processor_seconds() - before, done.stdout


def processor_seconds() -> float:
    """Of all processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turn."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = pieces(arguments.folder)
        size = write_documents(texts, folder / "corpus", arguments.documents)
        make_tokenizer(texts, folder / "tokenizer")
        end = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())["eos_token"]
        (folder / "peer.py").write_text(PEER)
        found: dict[str, Any] = {"documents": arguments.documents, "bytes": size, "ours": [], "theirs": []}
        for pair in range(arguments.pairs):
            for side in ("ours", "theirs")[:: 1 if pair % 2 == 0 else -1]:
                work = folder / f"{side}{pair}"
                work.mkdir()
                (work / "tokenizer").symlink_to(folder / "tokenizer")
                corpus, workers = str(folder / "corpus"), str(arguments.workers)
                if side == "ours":
                    command = [sys.executable, __file__, corpus, "--ours", str(work), "--workers", workers]
                else:
                    command = [
                        arguments.peer_python,
                        str(folder / "peer.py"),
                        corpus,
                        str(work),
                        workers,
                        end,
                        str(LETTERS),
                    ]
                seconds, processor, output = timed(command)
                result = json.loads(next(line for line in output.splitlines() if line.startswith("RESULT "))[7:])
                found[side].append({"seconds": seconds, "processor_seconds": processor, **result})
                print(side, pair, f"{seconds:.1f} s, {processor:.1f} s of processors,", result, flush=True)
    for clock in ("seconds", "processor_seconds"):
        medians = {side: statistics.median(run[clock] for run in found[side]) for side in ("ours", "theirs")}
        found[f"ratio of {clock}"] = medians["theirs"] / medians["ours"]
        for side, seconds in medians.items():
            print(f"{side}: {seconds:.1f} {clock}, {arguments.documents / seconds:.0f} documents/s")
        print(f"ratio of {clock}: {found[f'ratio of {clock}']:.2f}")
    return found


def memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Largest resident set while the input grows; in each size the processes are new."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = pieces(arguments.folder)
        for times in (1, 4, 16):
            documents = int(arguments.megabytes * 1e6 / PIECE * times)
            corpus = folder / f"corpus{times}"
            size = write_documents(texts, corpus, documents)
            for what, steps in (("clean", ["clean"]), ("minhash", ["clean", "minhash"])):
                if what == "minhash" and times > arguments.minhash_to:
                    continue
                work = folder / f"{what}{times}"
                work.mkdir()
                command = [sys.executable, __file__, str(corpus), "--ours", str(work), "--workers", "2", "--steps"]
                seconds, _, output = timed([*command, json.dumps(steps)])
                line = json.loads(next(line for line in output.splitlines() if line.startswith("RESULT "))[7:])
                found[f"{what} {times}x"] = {"bytes": size, "documents": documents, "seconds": seconds, **line["peak"]}
                print(
                    f"{what} {times}x: {size / 1e6:.0f} MB, {documents} documents, {seconds:.0f} s, {line['peak']}",
                    flush=True,
                )
                shutil.rmtree(work)
            shutil.rmtree(corpus)
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peer-python")
    parser.add_argument("--documents", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--minhash-to", type=int, default=4)
    parser.add_argument("--megabytes", type=float, default=128)
    parser.add_argument("--ours", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", default=json.dumps(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.ours:
        result = ours(arguments.folder, arguments.ours, arguments.workers, json.loads(arguments.steps))
        workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        result["peak"] = {"parent_mib": peak_memory() // 2**20, "worker_mib": workers // 1024}
        print("RESULT " + json.dumps(result))
        return
    found = memory(arguments) if arguments.memory else compare(arguments)
    runs = {side: found.pop(side) for side in ("ours", "theirs") if side in found}
    better = {"seconds": "less", "processor_seconds": "less"}
    variant = "memory" if arguments.memory else ""
    save(
        __file__,
        runs,
        better=better,
        result=found,
        variant=variant,
        out=arguments.out,
        peer_python=arguments.peer_python,
    )


if __name__ == "__main__":
    main()
