"""Word vectors on a folder of books: our training against gensim's, on one CPU thread each.

    python benchmarks/word_vectors.py FOLDER --peer-python PATH [--pairs 3] [--epochs 5] [--out FILE]

Both sides get the same words (every twentieth block of 2000 is held out), the same settings (100 numbers, window 5, 5
noise words, subsampling at 1e-3, min_count 5) but the learning rate of CBOW (0.05 here, 0.025 there, each the default),
and take turns in processes of their own; the figure is the ratio of medians. `words_per_second` counts seconds of the
clock, `words_per_cpu_second` those the process was given, which other work on the machine disturbs less. `shuffled` is
gensim on the same words, cut into sentences of 200 in random order: it reads books one after the other, which costs it
quality that our order does not lose.

heldout   loss of a prediction on the held-out words, with fresh noise, by the same code for both
pairs     share of 62 related pairs (king queen, eye eyes, ...) where one is among the ten nearest of the other
agreement correlation of the cosines between the 1000 most frequent words with those of gensim; its own, between two
          seeds, is printed beside it
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from record import peak_memory, save

WORKLOAD = {
    "peers": ["gensim==4.4.0"],
    "environment": "texts",
    "data": ["gutenberg"],
    "arguments": ["{data}/gutenberg", "--pairs", "2", "--epochs", "2"],
}

ROOT = Path(__file__).parent.parent
WINDOW, NEGATIVES, SUBSAMPLE, MIN_COUNT = 5, 5, 1e-3, 5
RELATED = """king queen|man woman|men women|boy girl|boys girls|father mother|brother sister|son daughter
lord lady|he she|his her|him her|himself herself|husband wife|uncle aunt|gentleman lady|eye eyes
hand hands|foot feet|day days|year years|word words|thing things|ship ships|whale whales|tree trees
friend friends|hour hours|go went|come came|see saw|say said|take took|give gave|know knew
think thought|find found|make made|tell told|run ran|sit sat|stand stood|good bad|old young
black white|day night|morning evening|north south|east west|right left|first second|two three
four five|ten twenty|sun moon|earth heaven|land sea|summer winter|red blue|love hate|life death
head face"""


class Clock:
    """Seconds since it was made, of the clock and of this process."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> Clock:
        self.wall, self.cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return self


def prepare(books: Path, folder: Path) -> None:
    """Numbers of the words, frequent ones first, by blocks: a part to train on and a part to measure on."""
    from collections import Counter

    from trivium.tokenizers.vectors_text import words_of

    texts = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(books.glob("*.txt"))]
    found = [words_of(text, lowercase=True) for text in texts]
    counts = Counter(w for text in found for n, w in enumerate(text) if n // 2000 % 20 != 19)
    words = sorted((w for w in counts if counts[w] >= MIN_COUNT), key=lambda w: (-counts[w], w))
    number = {w: n for n, w in enumerate(words)}
    train = [[number[w] for n, w in enumerate(t) if n // 2000 % 20 != 19 and w in number] for t in found]
    held = [number[w] for t in found for n, w in enumerate(t) if n // 2000 % 20 == 19 and w in number]
    content = {"words": words, "counts": [counts[w] for w in words], "train": train, "held": held}
    (folder / "words.json").write_text(json.dumps(content), encoding="utf-8")


def ours(content: dict, kind: str, epochs: int, seed: int) -> tuple[np.ndarray, np.ndarray, Clock]:
    """Vectors, context vectors and seconds of training (the vocabulary is not counted on either side)."""
    from trivium.tokenizers.vectors_train import train_vectors

    start: list[Clock] = []

    def clock(done: int, total: int | None, loss: float | None) -> None:
        if total is not None and not start:
            start.append(Clock())

    texts = (" ".join(f"w{n}" for n in text) for text in content["train"])
    found = train_vectors(
        texts,
        architecture=kind,
        window=WINDOW,
        negatives=NEGATIVES,
        subsample=SUBSAMPLE,
        epochs=epochs,
        min_count=1,
        seed=seed,
        threads=1,
        progress=clock,
    )
    seconds = start[0].stop()
    order = [found.index[f"w{n}"] for n in range(len(content["words"]))]
    return found.matrix[order], found.contexts[order], seconds


def theirs(content: dict, kind: str, epochs: int, seed: int, *, shuffled: bool) -> tuple[np.ndarray, np.ndarray, Clock]:
    """The same with gensim."""
    import random

    from gensim.models import Word2Vec

    length = 200 if shuffled else 10000  # 10000 is the longest it takes
    texts = [[str(n) for n in text] for text in content["train"]]
    sentences = [text[at : at + length] for text in texts for at in range(0, len(text), length)]
    if shuffled:
        random.Random(0).shuffle(sentences)
    model = Word2Vec(
        vector_size=100,
        window=WINDOW,
        sg=int(kind == "skipgram"),
        negative=NEGATIVES,
        sample=SUBSAMPLE,
        min_count=1,
        workers=1,
        seed=seed + 1,
    )
    model.build_vocab(sentences)
    clock = Clock()
    model.train(sentences, total_examples=model.corpus_count, epochs=epochs)
    seconds = clock.stop()
    order = [model.wv.key_to_index[str(n)] for n in range(len(content["words"]))]
    return model.wv.vectors[order], model.syn1neg[order], seconds


def heldout(content: dict, inputs: np.ndarray, outputs: np.ndarray, kind: str) -> float:
    """Mean loss of a prediction of negative sampling."""
    random = np.random.default_rng(9)
    counts = np.array(content["counts"], dtype=float)
    noise = np.cumsum(counts**0.75) / (counts**0.75).sum()
    ratio = SUBSAMPLE * counts.sum() / counts
    ids = np.array(content["held"])
    ids = ids[random.random(len(ids)) < (np.sqrt(ratio) + ratio)[ids]]
    centres = np.arange(WINDOW, len(ids) - WINDOW)
    reach = random.integers(1, WINDOW + 1, len(centres))
    places = [at for at in range(-WINDOW, WINDOW + 1) if at]
    if kind == "skipgram":
        asked = [(centres[reach >= abs(at)], at) for at in places]
        x = np.concatenate([inputs[ids[chosen + at]] for chosen, at in asked])
        targets = ids[np.concatenate([chosen for chosen, _ in asked])]
    else:
        x = sum(inputs[ids[centres + at]] * (reach >= abs(at))[:, None] for at in places) / (2 * reach)[:, None]
        targets = ids[centres]
    total = np.logaddexp(0, -(x * outputs[targets]).sum(1))
    for _ in range(NEGATIVES):
        drawn = np.minimum(np.searchsorted(noise, random.random(len(targets))), len(counts) - 1)
        total += np.logaddexp(0, (x * outputs[drawn]).sum(1)) * (drawn != targets)
    return float(total.mean())


def related(content: dict, inputs: np.ndarray) -> float:
    number = {w: n for n, w in enumerate(content["words"])}
    unit = inputs / np.linalg.norm(inputs, axis=1, keepdims=True)
    pairs = [pair.split() for pair in RELATED.replace("\n", "|").split("|")]
    hits = []
    for first, second in pairs:
        if first in number and second in number:
            for a, b in ((first, second), (second, first)):
                scores = unit @ unit[number[a]]
                hits.append((scores > scores[number[b]]).sum() - 1 < 10)  # without the word itself
    return float(np.mean(hits))


def cosines(inputs: np.ndarray) -> np.ndarray:
    unit = inputs[:1000] / np.linalg.norm(inputs[:1000], axis=1, keepdims=True)
    return (unit @ unit.T)[np.triu_indices(len(unit), 1)]


def measure(folder: Path, side: str, kind: str, epochs: int, seed: int) -> None:
    """One training in this process; prints a line of JSON and leaves the cosines."""
    content = json.loads((folder / "words.json").read_text(encoding="utf-8"))
    if side == "ours":
        inputs, outputs, seconds = ours(content, kind, epochs, seed)
    else:
        inputs, outputs, seconds = theirs(content, kind, epochs, seed, shuffled=side == "shuffled")
    np.save(folder / f"{side}-{kind}-{seed}.npy", cosines(inputs))
    words = sum(map(len, content["train"])) * epochs
    result = {
        "words_per_second": words / seconds.wall,
        "words_per_cpu_second": words / seconds.cpu,
        "heldout": heldout(content, inputs, outputs, kind),
        "pairs": related(content, inputs),
        "memory": peak_memory(),
    }
    print("RESULT " + json.dumps(result))


def main() -> None:
    """Takes turns and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("books", type=Path, help="folder of .txt files")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has gensim")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", nargs=3, metavar=("SIDE", "KIND", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        side, kind, seed = arguments.measure
        measure(arguments.books, side, kind, arguments.epochs, int(seed))
        return
    sides = ("ours", "gensim", "shuffled")
    with tempfile.TemporaryDirectory() as name:
        sys.path.insert(0, str(ROOT))
        prepare(arguments.books, Path(name))
        for kind in ("skipgram", "cbow"):
            runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
            for seed in range(max(2, arguments.pairs)):
                for side in sides if seed % 2 == 0 else sides[::-1]:
                    python = sys.executable if side == "ours" else arguments.peer_python
                    command = [python, __file__, name, "--epochs", str(arguments.epochs)]
                    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
                    done = subprocess.run(
                        [*command, "--measure", side, kind, str(seed)], capture_output=True, text=True, env=environment
                    )
                    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
                    if not lines:
                        sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
                    runs[side].append(json.loads(lines[0][7:]))
                    print(kind, side, {key: round(value, 4) for key, value in runs[side][-1].items()}, flush=True)
            found = figures(Path(name), kind, runs)
            print(json.dumps(found, indent=1), flush=True)
            save(
                __file__,
                runs,
                better={"words_per_second": "more", "words_per_cpu_second": "more", "heldout": "less"},
                result=found,
                variant=kind,
                out=arguments.out and arguments.out.with_stem(f"{arguments.out.stem}-{kind}"),
                peer_python=arguments.peer_python,
            )


def figures(folder: Path, kind: str, runs: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Ratios of medians, and medians of what is not a time."""
    median = {
        side: {key: statistics.median(run[key] for run in found) for key in found[0]} for side, found in runs.items()
    }

    def agreement(first: str, second: str) -> float:
        return float(np.corrcoef(np.load(folder / first), np.load(folder / second))[0, 1])

    speeds: dict[str, float] = {}
    for key in ("words_per_second", "words_per_cpu_second"):
        pairs = [a[key] / b[key] for a, b in zip(runs["ours"], runs["gensim"], strict=True)]
        ratio = median["ours"][key] / median["gensim"][key]
        speeds |= {f"{key}_ours": median["ours"][key], f"{key}_ratio": ratio}
        speeds |= {f"{key}_ratio_least": min(pairs), f"{key}_ratio_most": max(pairs)}
    return {
        **speeds,
        **{f"heldout_{side}": median[side]["heldout"] for side in runs},
        **{f"pairs_{side}": median[side]["pairs"] for side in runs},
        "agreement_ours_gensim": agreement(f"ours-{kind}-0.npy", f"gensim-{kind}-0.npy"),
        "agreement_ours_shuffled": agreement(f"ours-{kind}-0.npy", f"shuffled-{kind}-0.npy"),
        "agreement_gensim_gensim": agreement(f"gensim-{kind}-0.npy", f"gensim-{kind}-1.npy"),
        "agreement_gensim_shuffled": agreement(f"gensim-{kind}-0.npy", f"shuffled-{kind}-0.npy"),
    }


if __name__ == "__main__":
    main()
