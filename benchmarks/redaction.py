"""What the step `redact` finds: recall on 500 invented strings in real text, and what it finds in clean text.

    python benchmarks/redaction.py [--examples 5] [--seed 4]

Needs the extra `privacy`, and `gutenberg`, `alpaca_1k` and `article_extraction`; the documentation inside the Python
installation is read as well. Whether something that was found in a clean text is wrong is for people to judge:
every kind is printed with examples.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from peers import DATA, ROOT
from record import save

sys.path.insert(0, str(ROOT))

from tests.unit.personal import planted, prose

WORKLOAD = {"data": ["gutenberg", "alpaca_1k", "article_extraction"]}


def recall(seed: int, count: int = 500) -> tuple[Counter[str], list[str]]:
    """Strings found by kind, and those that were missed."""
    from trivium.data.safety.national import REGISTERS
    from trivium.data.safety.redaction import Finder

    finder, texts = Finder(national_ids=sorted(REGISTERS)), prose()
    found: Counter[str] = Counter()
    missed = []
    for number, (kind, value, before, after) in enumerate(planted(random.Random(seed), count)):
        text = texts[number % len(texts)]
        middle = text.find(" ", len(text) // 2) + 1
        start = middle + len(before)
        whole = f"{text[:middle]}{before}{value}{after} {text[middle:]}"
        if any(one.start <= start and one.end >= start + len(value) for one in finder.find(whole)):
            found[kind] += 1
        else:
            missed.append(f"{kind}: {before}{value}")
    return found, missed


def clean_texts() -> Iterator[tuple[str, list[str]]]:
    """(name, texts) of corpora that hold next to no personal data."""
    from trivium.data.intake import Intake
    from trivium.data.reading import read_documents
    from trivium.recipe import Source

    yield "books", [path.read_text("utf-8", "replace") for path in sorted((DATA / "gutenberg").glob("*.txt"))]
    rows = (DATA / "alpaca_1k" / "train.jsonl").read_text("utf-8").splitlines()
    yield "instructions", ["\n".join(map(str, json.loads(row).values())) for row in rows]
    truth = Path(DATA / "article_extraction" / "ground-truth.json")
    yield "articles", [page["articleBody"] for page in json.loads(truth.read_text("utf-8")).values()]
    yield "pydocs", [document.text for document in read_documents(Source(path="pydocs"), Intake())]


def main() -> None:
    """Prints the recall and what was found in clean texts."""
    from trivium.data.safety.redaction import Finder

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=5)
    parser.add_argument("--seed", type=int, default=4)
    arguments = parser.parse_args()
    found, missed = recall(arguments.seed)
    result: dict[str, object] = {"planted": {"found": found, "missed": missed}}
    print(f"found {found.total()} of {found.total() + len(missed)}; by kind {dict(found)}; missed {missed}", flush=True)
    finder = Finder()
    for name, texts in clean_texts():
        counts: Counter[str] = Counter()
        shown: dict[str, list[str]] = defaultdict(list)
        begin = time.process_time()
        for text in texts:
            for one in finder.find(text):
                counts[one.kind] += 1
                shown[one.kind].append(text[max(0, one.start - 25) : one.end + 10].replace("\n", " "))
        characters, seconds = sum(map(len, texts)), time.process_time() - begin
        print(
            f"{name}: {characters:,} characters, {characters / seconds / 1e6:.1f} MB/s, found {dict(counts)}",
            flush=True,
        )
        result[name] = {"characters": characters, "seconds": seconds, "found": counts}
        for kind, examples in shown.items():
            print(*(f"    {kind}: {example}" for example in examples[: arguments.examples]), sep="\n")
    save(__file__, result=result, settings={"seed": arguments.seed})


if __name__ == "__main__":
    main()
