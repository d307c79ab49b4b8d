"""Quality filters by name against datatrove's: documents per second, and whether both keep the same documents.

    python benchmarks/filters.py FOLDER... --peer-python PATH [--documents 4000] [--rounds 3] [--out FILE]

The documents are the pieces of every file below the folders (.txt, .jsonl(.gz), .train(.gz), .tar of .html.gz): at
most 4000 characters each, drawn by a fixed seed. Each filter has a process of its own on both sides, one thread, and
both sides take turns; the figure is the ratio of the medians. Time is processor time of the filter alone, after 50
documents to warm up: no reading, no writing. `agreement` is the share of documents that both keep or both drop; with
`--words marks` ours counts punctuation marks as words, as spaCy's tokeniser does for datatrove.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from record import save

WORKLOAD = {
    "peers": ["datatrove==0.10.1", "spacy", "nltk", "tldextract"],
    "environment": "datatrove",
    "unpinned": ["xxhash"],
    "data": ["gutenberg", "minhash_articles", "alpaca_1k"],
    "arguments": ["{data}/gutenberg", "{data}/minhash_articles", "{data}/alpaca_1k", "--documents", "2000"],
}

ROOT = Path(__file__).parent.parent
FILTERS = ("gopher_quality", "gopher_repetition", "c4", "fineweb")
PEER_CLASSES = {
    "gopher_quality": "gopher_quality_filter.GopherQualityFilter",
    "gopher_repetition": "gopher_repetition_filter.GopherRepetitionFilter",
    "c4": "c4_filters.C4QualityFilter",
    "fineweb": "fineweb_quality_filter.FineWebQualityFilter",
}
WARM_UP = 50
PIECE = 4000


def texts(folder: Path) -> Iterator[str]:
    """The texts of all files below a folder, in a fixed order."""
    for path in sorted(folder.rglob("*")):
        opened = gzip.open if path.suffix == ".gz" else open
        kind = path.name.removesuffix(".gz").rpartition(".")[2]
        if kind == "tar":
            yield from pages(path)
        elif kind in ("txt", "train", "tex", "jsonl"):
            with opened(path, "rt", encoding="utf-8", errors="replace") as file:
                yield from file if kind == "train" else rows(file) if kind == "jsonl" else [file.read()]


def rows(file: Any) -> Iterator[str]:
    """The longest text of each row."""
    for line in file:
        yield max((value for value in json.loads(line).values() if isinstance(value, str)), key=len, default="")


def pages(path: Path) -> Iterator[str]:
    """The text of web pages with everything that stands around the article."""
    import lxml.html

    with tarfile.open(path) as archive:
        for member in archive:
            if not member.name.endswith(".html.gz"):
                continue
            raw = gzip.GzipFile(fileobj=io.BytesIO(archive.extractfile(member).read())).read()
            tree = lxml.html.fromstring(raw.decode("utf-8", "replace").encode())
            for element in tree.xpath("//script|//style|//noscript"):
                element.drop_tree()
            lines = (" ".join(line.split()) for line in tree.text_content().split("\n"))
            yield "\n".join(line for line in lines if line)


def pieces(folders: list[Path], documents: int) -> list[str]:
    found = []
    for folder in folders:
        for text in texts(folder):
            found += [piece for at in range(0, len(text), PIECE) if (piece := text[at : at + PIECE].strip())]
    random.Random(0).shuffle(found)
    return found[:documents]


def measure_ours(documents: list[str], name: str, words: str) -> dict[str, Any]:
    from trivium.data.documents import Document
    from trivium.data.step import Dropped
    from trivium.registry import component

    step_class = component("data/steps", name)
    settings = {"words": words} if "words" in step_class.Config.model_fields else {}
    step = step_class(step_class.Config(**settings))
    made = [Document(str(number), text, "benchmark") for number, text in enumerate(documents)]
    for document in made[:WARM_UP]:
        step.apply(document)
    start = time.process_time()
    results = [step.apply(document) for document in made]
    seconds = time.process_time() - start
    reasons = [result.reason if isinstance(result, Dropped) else "" for result in results]
    return {"seconds": seconds, "reasons": reasons, "texts": [getattr(result, "text", "") for result in results]}


def measure_theirs(documents: list[str], name: str) -> dict[str, Any]:
    import importlib

    from datatrove.data import Document

    module, _, cls = PEER_CLASSES[name].partition(".")
    made = getattr(importlib.import_module(f"datatrove.pipeline.filters.{module}"), cls)()
    listed = [Document(text=text, id=str(number)) for number, text in enumerate(documents)]
    for text in documents[:WARM_UP]:
        made.filter(Document(text=f"{text} .", id="warm"))  # another text: theirs remembers the last five
    start = time.process_time()
    results = [made.filter(document) for document in listed]
    seconds = time.process_time() - start
    reasons = ["" if result is True else result[1] for result in results]
    return {"seconds": seconds, "reasons": reasons, "texts": [document.text for document in listed]}


def child(python: str, side: str, name: str, file: Path, words: str) -> dict[str, Any]:
    command = [python, __file__, "--child", side, "--filter", name, "--words", words, str(file)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=_environment())
    if result.returncode:
        raise SystemExit(f"{side} {name} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    pairs = list(zip(ours["reasons"], theirs["reasons"], strict=True))
    kept = [(a, b) for a, b in zip(ours["texts"], theirs["texts"], strict=True) if a and b]
    both = [number for number, (one, other) in enumerate(pairs) if not one and not other]
    same = sum(ours["texts"][number] == theirs["texts"][number] for number in both)
    return {
        "agreement": sum(bool(one) == bool(other) for one, other in pairs) / len(pairs),
        "ours_drop": sum(bool(one) for one, _ in pairs),
        "theirs_drop": sum(bool(other) for _, other in pairs),
        "same_text_where_both_keep": same / max(1, len(both)) if kept else None,
        "differ": Counter(
            f"ours {one or 'keeps'}, theirs {other or 'keeps'}" for one, other in pairs if bool(one) != bool(other)
        ).most_common(8),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--peer-python")
    parser.add_argument("--documents", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--words", default="whitespace", choices=["whitespace", "marks"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=FILTERS)
    parser.add_argument("--child", choices=["ours", "theirs"])
    parser.add_argument("--filter")
    arguments = parser.parse_args()
    if arguments.child:
        documents = json.loads(arguments.folders[0].read_text())
        if arguments.child == "ours":
            print(json.dumps(measure_ours(documents, arguments.filter, arguments.words)))
        else:
            print(json.dumps(measure_theirs(documents, arguments.filter)))
        return
    documents = pieces(arguments.folders, arguments.documents)
    size = sum(map(len, documents)) / len(documents)
    print(f"{len(documents)} documents, {size:,.0f} characters on average")
    report: dict[str, Any] = {"documents": len(documents), "characters": size}
    runs: dict[str, list[dict[str, float]]] = {
        side: [{} for _ in range(arguments.rounds)] for side in ("ours", "datatrove")
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "documents.json"
        file.write_text(json.dumps(documents))
        for name in [arguments.only] if arguments.only else FILTERS:
            seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
            for number in range(arguments.rounds):
                ours = child(sys.executable, "ours", name, file, arguments.words)
                theirs = child(arguments.peer_python, "theirs", name, file, arguments.words)
                seconds["ours"].append(ours["seconds"])
                seconds["theirs"].append(theirs["seconds"])
                for side, one in (("ours", ours), ("datatrove", theirs)):
                    runs[side][number][f"{name}_per_second"] = len(documents) / one["seconds"]
            speed = {side: len(documents) / statistics.median(times) for side, times in seconds.items()}
            found = {**speed, "ratio": speed["ours"] / speed["theirs"], **compare(ours, theirs)}
            report[name] = found
            print(
                f"{name:<18} ours {speed['ours']:>8,.0f}/s  theirs {speed['theirs']:>6,.0f}/s  "
                f"ratio {found['ratio']:5.1f}  agreement {found['agreement']:.2%}  "
                f"dropped {found['ours_drop']}, {found['theirs_drop']}"
            )
            for difference, count in found["differ"]:
                print(f"    {count:>5}  {difference}")
    better = {figure: "more" for figure in runs["ours"][0]}
    variant = "marks" if arguments.words == "marks" else ""
    save(
        __file__,
        runs,
        better=better,
        result=report,
        variant=variant,
        out=arguments.out,
        peer_python=arguments.peer_python,
    )


if __name__ == "__main__":
    main()
