"""Near duplicates: our MinHash step against rensa and datasketch, one thread each.

    python benchmarks/dedup.py ARTICLES --peer-python PATH [--documents 40000] [--pairs 3]
    python benchmarks/dedup.py ARTICLES --peer-python PATH --quality 100000

ARTICLES is the folder minhash_articles. Documents are made of its sentences, drawn at random, 3 kB each; one in five
has a copy in which up to a fifth of the words differ. All find the same thing: documents whose sets of runs of five
words (lower case, parted by white space or punctuation) are alike, with 112 places in 14 bands of 8.

trivium             the step `minhash`: sketches of 1000 documents each in files, decided, applied
rensa               RMinHashDeduplicator.add_pairs: signatures of the runs, candidates compared with the threshold
rensa-matrix        its fastest way with all runs: signature matrices, documents that share a band, not compared
rensa-words         the same on single words (another question, but the usage its README shows)
rensa-rho-words     the same with its sampled signatures
datasketch          MinHash.update_batch and MinHashLSH, as its documentation shows

Ours and theirs take turns in processes of their own; the figure is the ratio of medians of documents per second.
Making the runs of words is part of the work of all of them. `--quality` counts planted pairs with an exact similarity
of at least the threshold that end in one cluster (recall), and pairs of one cluster that are less alike (precision).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from record import save

WORKLOAD = {
    "peers": ["rensa==0.5.0", "datasketch"],
    "environment": "texts",
    "data": ["minhash_articles"],
    "arguments": ["{data}/minhash_articles", "--pairs", "2"],
}

ROOT = Path(__file__).parent.parent
BANDS, ROWS, WIDTH, THRESHOLD = 14, 8, 5, 0.8
SIDES = ("trivium", "rensa", "rensa-matrix", "rensa-words", "rensa-rho-words", "datasketch")
WORD = re.compile(r"\w+")


def corpus(articles: Path, count: int, characters: int) -> list[tuple[str, str]]:
    """(family, text) of each document."""
    text = gzip.decompress((articles / "articles_2500.train.gz").read_bytes()).decode()
    lines = [line.split(" ", 1)[1] for line in text.splitlines()]
    sentences = [sentence for line in lines for sentence in re.split(r"(?<=[.!?]) ", line) if len(sentence) > 30]
    draw = random.Random(0)
    found: list[tuple[str, str]] = []
    while len(found) < count:
        family, drawn = str(len(found)), []
        while sum(map(len, drawn)) < characters:
            drawn.append(draw.choice(sentences))
        found.append((family, " ".join(drawn)))
        if draw.random() < 0.25:
            words = found[-1][1].split()
            for place in draw.sample(
                range(len(words)), int(len(words) * draw.choice((0, 0.005, 0.01, 0.02, 0.03, 0.2)))
            ):
                words[place] = draw.choice(words)
            found.append((family, " ".join(words)))
    draw.shuffle(found)
    return found[:count]


def shingles(text: str) -> list[str]:
    words = WORD.findall(text.lower())
    return [" ".join(words[at : at + WIDTH]) for at in range(max(1, len(words) - WIDTH + 1))]


def run_trivium(texts: list[str]) -> list[int]:
    from trivium.data.documents import Document
    from trivium.data.step import Merged
    from trivium.data.steps.minhash import MinHash

    documents = [Document(str(number), text, "memory") for number, text in enumerate(texts)]
    with tempfile.TemporaryDirectory() as folder:
        step = MinHash(MinHash.Config(threshold=THRESHOLD))
        parts = [documents[at : at + 1000] for at in range(0, len(documents), 1000)]
        sketches = []
        for number, part in enumerate(parts):
            files = {}
            for name, data in step.sketch(part).items():
                files[name] = Path(folder) / f"{number}.{name}"
                files[name].write_bytes(data)
            sketches.append(files)
        decisions = step.decide(sketches, Path(folder))
        results = [each for part, one in zip(parts, decisions, strict=True) for each in step.apply_all(part, one)]
    return [int(each.into) if isinstance(each, Merged) else number for number, each in enumerate(results)]


def run_rensa(texts: list[str]) -> list[int]:
    import rensa

    index = rensa.RMinHashDeduplicator(THRESHOLD, BANDS * ROWS, True, BANDS)
    kept = index.add_pairs((str(number), shingles(text)) for number, text in enumerate(texts))
    return [number if fresh else -1 for number, fresh in enumerate(kept)]


def run_rensa_matrix(texts: list[str], tokens=shingles, rho: bool = False) -> list[int]:
    import rensa

    index = rensa.RMinHashLSH(THRESHOLD, BANDS * ROWS, BANDS)
    make = rensa.RMinHash.digest_matrix_from_token_sets_rho if rho else rensa.RMinHash.digest_matrix_from_token_sets
    flags: list[bool] = []
    for at in range(0, len(texts), 1000):  # all at once would hold 20 million strings
        matrix = make([tokens(text) for text in texts[at : at + 1000]], BANDS * ROWS, 42)
        flags.extend(index.insert_matrix_and_query_duplicate_flags(matrix, at))
    return [-1 if double else number for number, double in enumerate(flags)]


def run_datasketch(texts: list[str]) -> list[int]:
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
    roots: list[int] = []
    signatures = []

    def root(number: int) -> int:
        while roots[number] != number:
            number = roots[number]
        return number

    for number, text in enumerate(texts):
        signature = MinHash(num_perm=BANDS * ROWS)
        signature.update_batch([shingle.encode() for shingle in shingles(text)])
        roots.append(number)
        for other in index.query(signature):
            if signature.jaccard(signatures[other]) >= THRESHOLD:
                one, two = root(number), root(other)
                roots[max(one, two)] = min(one, two)
        signatures.append(signature)
        index.insert(number, signature)
    return [root(number) for number in range(len(texts))]


def side(name: str, file: Path, out: Path) -> None:
    texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    run = {
        "trivium": run_trivium,
        "rensa": run_rensa,
        "rensa-matrix": run_rensa_matrix,
        "rensa-words": lambda texts: run_rensa_matrix(texts, lambda text: text.lower().split()),
        "rensa-rho-words": lambda texts: run_rensa_matrix(texts, lambda text: text.lower().split(), rho=True),
        "datasketch": run_datasketch,
    }[name]
    run(texts[:100])
    wall, cpu = time.perf_counter(), time.process_time()
    roots = run(texts)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    out.write_text(json.dumps({"wall": wall, "cpu": cpu, "roots": roots, "documents": len(texts)}))


def start(name: str, file: Path, python: str, folder: Path) -> dict:
    out = folder / f"{name}.json"
    program = sys.executable if name == "trivium" else python
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([program, __file__, str(file), "--side", name, "--out", str(out)], env=environment, check=True)
    return json.loads(out.read_text())


def quality(families: list[str], texts: list[str], roots: list[int]) -> dict[str, float]:
    """Recall and precision over pairs."""
    groups, clusters = defaultdict(list), defaultdict(list)
    for number, (family, root) in enumerate(zip(families, roots, strict=True)):
        groups[family].append(number)
        clusters[root].append(number)

    def alike(one: int, other: int) -> float:
        a, b = set(shingles(texts[one])), set(shingles(texts[other]))
        return len(a & b) / len(a | b)

    planted = [(a, b) for members in groups.values() for a in members for b in members if a < b]
    true = {pair for pair in planted if alike(*pair) >= THRESHOLD}
    found = {(a, b) for members in clusters.values() for a in members for b in members if a < b}
    close = sum(alike(*pair) >= THRESHOLD - 0.1 for pair in found)
    return {
        "planted": len(true),
        "found": len(found),
        "recall": len(true & found) / len(true),
        "precision": len(true & found) / max(1, len(found)),
        "precision_0.1_below": close / max(1, len(found)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("articles", type=Path)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--documents", type=int, default=40_000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--quality", type=int, help="count found pairs among so many short documents instead")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--side")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.side:
        side(arguments.side, arguments.articles, arguments.out)
        return
    made = corpus(arguments.articles, arguments.quality or arguments.documents, 600 if arguments.quality else 3000)
    families, texts = [family for family, _ in made], [text for _, text in made]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "documents.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        if arguments.quality:
            for each in ("trivium", "datasketch"):
                found = start(each, file, arguments.peer_python, folder)
                print(
                    each, json.dumps({**quality(families, texts, found["roots"]), "seconds": round(found["wall"], 1)})
                )
            return
        short = folder / "short.jsonl"
        short.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:4000]))
        speeds, removed = defaultdict(list), {}
        for number in range(arguments.pairs):
            for each in arguments.sides.split(","):
                slow = each == "datasketch"
                found = start(each, short if slow else file, arguments.peer_python, folder)
                speeds[each].append((found["documents"] / found["wall"], found["documents"] / found["cpu"]))
                removed[each] = {at for at, root in enumerate(found["roots"]) if root != at}
            print(number, {each: [round(value) for value in values[-1]] for each, values in speeds.items()}, flush=True)
    ours = [statistics.median(each[kind] for each in speeds["trivium"]) for kind in (0, 1)]
    for each, values in speeds.items():
        wall, cpu = (statistics.median(value[kind] for value in values) for kind in (0, 1))
        mine = removed["trivium"] if each != "datasketch" else {at for at in removed["trivium"] if at < 4000}
        print(
            f"{each:16} {wall:8.0f} documents/s {cpu:8.0f} a CPU second; ours / theirs {ours[0] / wall:6.2f}, "
            f"{ours[1] / cpu:6.2f} a CPU second; removed {len(removed[each])}, "
            f"also by us {len(removed[each] & mine)} of our {len(mine)}"
        )
    runs = {
        each: [{"documents_per_second": wall, "documents_per_cpu_second": cpu} for wall, cpu in values]
        for each, values in speeds.items()
    }
    save(
        __file__,
        runs,
        better={"documents_per_second": "more", "documents_per_cpu_second": "more"},
        settings={"documents": arguments.documents},
        peer_python=arguments.peer_python,
    )


if __name__ == "__main__":
    main()
