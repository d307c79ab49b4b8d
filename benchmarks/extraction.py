"""Main text of web pages: ours beside trafilatura's modes and resiliparse, on the article extraction benchmark.

    python benchmarks/extraction.py ../shared/data/article_extraction [--peer-python PATH]

181 pages with texts marked by hand (https://github.com/scrapinghub/article-extraction-benchmark). The measure is
theirs: words (`\\w+`), shingles of four with their counts; precision and recall of each page, averaged; F1 of the two
averages. Pages per second of processor time, one thread, each library in its own process.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import statistics
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

WORKLOAD = {
    "peers": ["trafilatura", "resiliparse==2.0.1"],
    "environment": "texts",
    "data": ["article_extraction"],
    "arguments": ["{data}/article_extraction"],
}

WORD = re.compile(r"\w+")


def pages_of(archive: tarfile.TarFile) -> dict[str, bytes]:
    """The pages by name."""
    files = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
    return {Path(name).name.partition(".")[0]: gzip.decompress(file.read()) for name, file in files.items() if file}


def shingles(text: str) -> Counter[tuple[str, ...]]:
    words = WORD.findall(text or "")
    return Counter(tuple(words[at : at + 4]) for at in range(max(1, len(words) - 3)) if words)


def score(truth: Mapping[str, Mapping[str, str]], found: Mapping[str, str]) -> dict[str, float]:
    """Precision, recall and F1 over all pages."""
    precisions, recalls = [], []
    for name, page in truth.items():
        true, ours = shingles(page["articleBody"]), shingles(found[name])
        hit = (true & ours).total()
        if ours:
            precisions.append(hit / ours.total())
        if true:
            recalls.append(hit / true.total())
    precision, recall = statistics.mean(precisions), statistics.mean(recalls)
    return {"f1": 2 * precision * recall / (precision + recall), "precision": precision, "recall": recall}


def ours() -> Callable[[str], str]:
    from trivium.data.extraction import NoText, extract

    def run(html: str) -> str:
        try:
            return extract(html.encode()).text
        except NoText:
            return ""

    return run


def trafilatura(**options: Any) -> Callable[[], Callable[[str], str]]:
    def load() -> Callable[[str], str]:
        from trafilatura import extract

        return lambda html: extract(html, include_comments=False, **options) or ""

    return load


def resiliparse(**options: Any) -> Callable[[], Callable[[str], str]]:
    def load() -> Callable[[str], str]:
        from resiliparse.extract.html2text import extract_plain_text

        return lambda html: extract_plain_text(html, main_content=True, **options)

    return load


def rs_trafilatura() -> Callable[[str], str]:
    import rs_trafilatura

    return lambda html: rs_trafilatura.extract(html).main_content or ""


LIBRARIES: dict[str, Callable[[], Callable[[str], str]]] = {
    "ours": ours,
    "trafilatura": trafilatura(),
    "trafilatura, precision": trafilatura(favor_precision=True),
    "trafilatura, recall": trafilatura(favor_recall=True),
    "trafilatura, fast": trafilatura(fast=True),
    "resiliparse": resiliparse(),
    "resiliparse, without comments": resiliparse(comments=False, alt_texts=False, list_bullets=False),
    "rs-trafilatura": rs_trafilatura,
}


def measure(name: str, folder: Path) -> dict[str, float]:
    run = LIBRARIES[name]()
    with tarfile.open(folder / "html.tar") as archive:
        pages = {page: raw.decode("utf-8") for page, raw in pages_of(archive).items()}
    run(next(iter(pages.values())))
    began = time.process_time()
    found = {page: run(html) for page, html in pages.items()}
    seconds = time.process_time() - began
    truth = json.loads((folder / "ground-truth.json").read_text(encoding="utf-8"))
    return {**score(truth, found), "pages_per_second": len(pages) / seconds}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--peer-python", default=sys.executable, help="Python with the other libraries.")
    arguments.add_argument("--only", help="One library, measured in this process; prints JSON.")
    given = arguments.parse_args()
    if given.only:
        print(json.dumps(measure(given.only, given.folder)))
        return
    runs: dict[str, list[dict[str, float]]] = {}
    for name in LIBRARIES:
        python = sys.executable if name == "ours" else given.peer_python
        command = [python, __file__, str(given.folder), "--only", name]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            print(f"{name:<32} not measured: {result.stderr.strip().splitlines()[-1]}")
            continue
        figures = json.loads(result.stdout)
        runs[name] = [figures]
        print(f"{name:<32} " + "  ".join(f"{key} {value:.4f}" for key, value in figures.items()), flush=True)
    from record import save

    save(__file__, runs, better={"f1": "more", "pages_per_second": "more"}, peer_python=given.peer_python)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
