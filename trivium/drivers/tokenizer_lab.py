"""`trivium tokenizer lab`: candidates compared by what small models of equal compute make of them.

    <folder>/
      lab.json             what was asked for, and everything that was measured
      lab.html             the same as a page
      train.jsonl, held-out.jsonl   the documents, split by the hash of their group
      tokenizers/<name>/   each candidate, trained on train.jsonl only
      runs/<name>-seed0/   ordinary run folders

Each model has the same body; the head grows with the vocabulary. Every run gets the same compute: 6 N D operations, N
the parameters that a token is multiplied with (head included), D tokens. A candidate with a large vocabulary therefore
sees fewer tokens, and each of them stands for more text. The measure is bits for each byte of the held-out text as it
was written, so it does not depend on how the text is cut. Runs of several seeds give an interval for the mean and, seed
by seed, for the difference to the best. Candidates that lose text (unknown words, letter case) would be judged by an
easier text: they are measured, marked, and not recommended.

Finished runs are not repeated, so the same command continues whatever stopped it.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trivium.artifacts.record import parent_of
from trivium.artifacts.writer import JsonLines, make_folder, write_artifact, write_file
from trivium.core.plan import matrix_parameters
from trivium.core.progress import readable_count, say
from trivium.data.intake import Intake
from trivium.data.reading import read_documents
from trivium.data.sealing import beside
from trivium.drivers.run_folder import RunFolder, set_aside
from trivium.errors import ConfigError, DataError
from trivium.recipe import Source
from trivium.tokenizers.kinds import OPTIONS, Kind, check_options, train_kind
from trivium.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from trivium.config import ResolvedRecipe
    from trivium.models.config import ModelConfig

QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093),
)
"""Student's t for 95 %, by degrees of freedom from 1."""
MOST_EPOCHS = 4.0
"""Beyond this, repeated text counts less than new text."""
LEAST_UPDATES = 200
TRAIN, HELD_OUT = "train.jsonl", "held-out.jsonl"


@dataclass(frozen=True)
class Candidate:
    """A kind of vocabulary and its size."""

    kind: Kind
    vocab_size: int | None

    @property
    def name(self) -> str:
        """`bpe-4096`; also the name of its folder."""
        return self.kind if self.vocab_size is None else f"{self.kind}-{self.vocab_size}"


@dataclass(frozen=True)
class Settings:
    """What a laboratory is asked for.

    flops:           operations of each run.
    preset, changes: the body of the models.
    seeds:           runs of each candidate.
    megabytes:       most text that is read of all sources together.
    """

    sources: Sequence[str]
    candidates: Sequence[str]
    flops: float = 2e13
    preset: str = "llama-1m"
    changes: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 3
    megabytes: float = 50.0
    held_out: float = 0.05
    sequence_length: int = 256
    batch_size: int = 16
    lr: float = 2e-3


def parse_candidates(names: Sequence[str]) -> list[Candidate]:
    """`bpe:4096`, `unigram:4096`, `char`, ...; also several in one string, with commas."""
    found = []
    for name in ",".join(names).split(","):
        kind, _, size = name.strip().partition(":")
        check_options(kind, {"vocab_size": size} if size else {})
        if size and not (size.isascii() and size.isdigit() and 0 < int(size) < 1 << 24):
            raise ConfigError("a size of a vocabulary is a number of tokens", value=name, fix="such as bpe:4096")
        found.append(Candidate(cast("Kind", kind), int(size) if size else None))
    if len({candidate.name for candidate in found}) < max(2, len(found)):
        raise ConfigError(
            "there must be two different candidates at least", value=", ".join(names), fix="bpe:4096,char"
        )
    return found


def laboratory(settings: Settings, folder: Path, *, fresh: bool = False) -> dict[str, Any]:
    """Train the candidates and their models, or what is left of it, and return what `lab.json` holds.

    Raises ConfigError for what cannot be compared, DataError for too little text, Interrupted with everything saved.
    """
    candidates = parse_candidates(settings.candidates)
    if fresh and folder.exists():
        say(f"the earlier laboratory lies in {set_aside(folder)} now")
    make_folder(folder)
    asked = {**asdict(settings), "sources": list(settings.sources), "candidates": [each.name for each in candidates]}
    _refuse_other(folder / "lab.json", asked)
    size = _documents(settings, folder)
    result: dict[str, Any] = {"asked": asked, "held_out_bytes": size, "candidates": []}
    write_file(folder / "lab.json", json.dumps(result, indent=1))
    for number, candidate in enumerate(candidates, start=1):
        say(f"{number}/{len(candidates)} {candidate.name}")
        result["candidates"].append(_measured(candidate, settings, folder, size))
    result |= _judged(result["candidates"])
    write_file(folder / "lab.json", json.dumps(result, indent=1))
    write_page(result, folder / "lab.html")
    return result


def _refuse_other(path: Path, asked: Mapping[str, Any]) -> None:
    if not path.exists():
        return
    then = json.loads(path.read_text(encoding="utf-8"))["asked"]
    now = json.loads(json.dumps(asked))
    for key in sorted(now):
        if then.get(key) != now[key]:
            raise ConfigError(
                f"this laboratory was started with another {key}",
                where=path,
                value=f"{then.get(key)} then, {now[key]} now",
                fix="go back to the old value, choose another --output, or start over with --fresh",
            )


def _documents(settings: Settings, folder: Path) -> int:
    """Writes the two files; returns the bytes of held-out text. Groups (a book, a module) are held out as a whole."""
    if not (folder / TRAIN).exists() or not (folder / HELD_OUT).exists():
        limit, read = settings.megabytes * 1e6, 0
        lines: dict[bool, list[str]] = {True: [], False: []}
        for name in settings.sources:
            for document in read_documents(Source.model_validate({"path": name}), Intake()):
                if read >= limit:
                    break
                read += len(document.text.encode())
                draw = int.from_bytes(hashlib.sha256(document.group.encode()).digest()[:8], "little") / 2**64
                row = {"id": document.id, "text": document.text}
                lines[draw < settings.held_out].append(json.dumps(row))
        if not lines[True] or not lines[False]:
            raise DataError(
                "too few documents to hold some out",
                where=", ".join(settings.sources),
                value=f"{len(lines[True]) + len(lines[False])} documents",
                fix="give more documents, or a larger --held-out",
            )
        for held, name in ((True, HELD_OUT), (False, TRAIN)):
            write_file(folder / name, "".join(f"{line}\n" for line in lines[held]))
    return sum(len(text.encode()) for text in _texts(folder / HELD_OUT))


def _texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def _tokenizer(candidate: Candidate, settings: Settings, folder: Path) -> Tokenizer:
    place = folder / "tokenizers" / candidate.name
    if not place.exists():
        options: dict[str, Any] = {} if candidate.vocab_size is None else {"vocab_size": candidate.vocab_size}
        if "normalise" in OPTIONS[candidate.kind]:
            options["normalise"] = "none"  # so that texts come back as they are
        made = train_kind(candidate.kind, _texts(folder / TRAIN), sequence_length=settings.sequence_length, **options)
        parents = [parent_of(folder / TRAIN, role="documents")]
        with write_artifact(place, kind="tokenizer", parents=parents, config=asdict(candidate)) as target:
            made.save(target)
    return Tokenizer.load(place)


def _measured(candidate: Candidate, settings: Settings, folder: Path, size: int) -> dict[str, Any]:
    from trivium.drivers.single import finished, train
    from trivium.models.build import preset

    tokenizer = _tokenizer(candidate, settings, folder)
    held_out = _texts(folder / HELD_OUT)
    ids = tokenizer.encode_documents(held_out)
    framed = int(tokenizer.adds_bos and tokenizer.bos_id is not None)
    tokens = sum(len(each) - framed for each in ids)
    returned = sum(
        tokenizer.decode(each[framed:-1], skip_special=False) == text for each, text in zip(ids, held_out, strict=True)
    )
    config = preset(settings.preset, {**settings.changes, "vocab_size": tokenizer.vocab_size})
    in_update = settings.batch_size * settings.sequence_length
    steps = max(1, round(settings.flops / 6 / matrix_parameters(config) / in_update))
    runs = []
    for seed in range(settings.seeds):
        resolved = _recipe(candidate, settings, folder, config, steps, seed)
        run = RunFolder(resolved)
        if not finished(run):
            trained_on = f"{readable_count(steps * in_update)} tokens"
            say("", f"seed {seed}: {readable_count(config.parameters())} parameters, {trained_on}")
            train(resolved)
        rows = [row for row in JsonLines(run.path / "metrics.jsonl").read() if row["kind"] == "validation"]
        if not rows:
            raise DataError(
                "a run has no measurement",
                where=run.path / "metrics.jsonl",
                fix="delete that run's folder and run the same command again",
            )
        bits = rows[-1]["loss"] * tokens / math.log(2) / size
        runs.append({"seed": seed, "loss": rows[-1]["loss"], "bits_per_byte": bits})
    train_tokens = sum(len(each) - framed for each in tokenizer.encode_documents(_texts(folder / TRAIN)))
    return {
        "name": candidate.name,
        "kind": candidate.kind,
        "vocab_size": tokenizer.vocab_size,
        "parameters": config.parameters(),
        "updates": steps,
        "tokens": steps * in_update,
        "flops": 6 * matrix_parameters(config) * steps * in_update,
        "passes": steps * in_update / max(1, train_tokens),
        "bytes_per_token": size / tokens,
        "context_bytes": settings.sequence_length * size / tokens,
        "comes_back": returned / len(held_out),
        "runs": runs,
        **interval([run["bits_per_byte"] for run in runs]),
        "folder": str(folder / "tokenizers" / candidate.name),
    }


def _recipe(
    candidate: Candidate, settings: Settings, folder: Path, config: ModelConfig, steps: int, seed: int
) -> ResolvedRecipe:
    from trivium.config import resolve

    plain = {
        "name": f"{candidate.name}-seed{seed}",
        "runs": str(folder / "runs"),
        "seed": seed,
        "method": "clm",
        "model": {"preset": settings.preset, "config": {**settings.changes, "vocab_size": config.vocab_size}},
        "tokenizer": str(folder / "tokenizers" / candidate.name),
        "data": {
            "train": [str(folder / TRAIN)],
            "validation": [str(folder / HELD_OUT)],
            "sequence_length": settings.sequence_length,
            "sealed": [str(one) for one in beside(folder.parent)],
        },
        "train": {
            "steps": steps,
            "batch_size": settings.batch_size,
            "lr": settings.lr,
            "validate_every": steps,
            "checkpoint_every": max(1, math.ceil(steps / 4)),
            "log_every": max(1, steps // 200),
        },
    }
    return resolve(plain)


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and its 95 % interval (Student's t); no interval for one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"mean": mean, "low": None, "high": None}
    wide = QUANTILES[min(len(values) - 2, len(QUANTILES) - 1)] * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - wide, "high": mean + wide}


def _judged(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Who is best, who cannot be told from the best, and what to be careful about."""
    remarks = []
    whole = [row for row in rows if row["comes_back"] == 1.0]
    for row in rows:
        if row["comes_back"] < 1.0:
            remarks.append(
                f"{1 - row['comes_back']:.0%} of the documents do not come back from {row['name']} as they were: its "
                "bits are those of an easier text"
            )
        if row["passes"] > MOST_EPOCHS:
            remarks.append(
                f"{row['name']} read the text {row['passes']:.1f} times: get more text, or use fewer --flops"
            )
    if any(row["updates"] < LEAST_UPDATES for row in rows):
        remarks.append(f"runs of fewer than {LEAST_UPDATES} updates say little about longer ones: raise --flops")
    if not whole:
        return {"recommended": None, "as_good": [], "remarks": remarks}
    best = min(whole, key=lambda row: row["mean"])
    as_good = []
    for row in whole:
        pairs = zip(row["runs"], best["runs"], strict=True)
        difference = interval([run["bits_per_byte"] - other["bits_per_byte"] for run, other in pairs])
        row["difference"] = difference
        if row is not best and (difference["low"] is None or difference["low"] <= 0):
            as_good.append(row["name"])
    if len(best["runs"]) < 2:
        remarks.append("one seed gives no interval: differences may be chance; use --seeds 3 or more")
    return {"recommended": best["name"], "as_good": as_good, "remarks": remarks}


def rows_of(result: Mapping[str, Any]) -> list[list[str]]:
    """Head and rows of the table of results, best first."""
    head = ["candidate", "bits/byte", "95 % interval", "tokens", "bytes/token", "updates", "passes", "comes back"]
    rows = []
    for row in sorted(result["candidates"], key=lambda row: row["mean"]):
        between = "" if row["low"] is None else f"{row['low']:.4f} to {row['high']:.4f}"
        facts = [f"{row['vocab_size']}", f"{row['bytes_per_token']:.2f}", f"{row['updates']}", f"{row['passes']:.2f}"]
        rows.append([row["name"], f"{row['mean']:.4f}", between, *facts, f"{row['comes_back']:.0%}"])
    return [head, *rows]


def verdict(result: Mapping[str, Any]) -> str:
    """The recommendation in a sentence."""
    if result["recommended"] is None:
        return "no candidate gives back every held-out document as it was, so none is recommended"
    if result["as_good"]:
        return f"recommended: {result['recommended']}; not told apart from it: {', '.join(result['as_good'])}"
    return f"recommended: {result['recommended']}"


def write_page(result: Mapping[str, Any], out: Path) -> Path:
    """The page of `lab.json`."""
    from trivium.report.pipeline import Bar, Bars, Link, Stage, Table, write_pipeline_report
    from trivium.report.story import Figure

    head, *rows = rows_of(result)
    in_order = sorted(result["candidates"], key=lambda row: row["mean"])
    bars = [Bar(row["name"], row["mean"], own=row["name"] == result["recommended"]) for row in in_order]
    best = next((row for row in in_order if row["name"] == result["recommended"]), in_order[0])
    seeds = [[row["name"], *(f"{run['bits_per_byte']:.4f}" for run in row["runs"])] for row in in_order]
    names = ["candidate", *(f"seed {run['seed']}" for run in in_order[0]["runs"])]
    stage = Stage(
        title="Candidates",
        what=f"{verdict(result).capitalize()}. {' '.join(f'{remark}.' for remark in result['remarks'])}",
        why="Models with the same body and the same compute were trained on each vocabulary and measured in bits for "
        "each byte of the same held-out text. Intervals are for the mean over seeds.",
        bars=[Bars("Bits for each byte of held-out text", bars, digits=4)],
        tables=[Table("", head, rows), Table("Each run", names, seeds)],
        links=[
            Link(f"{row['name']}-seed{run['seed']}", f"runs/{row['name']}-seed{run['seed']}/report.html")
            for row in in_order
            for run in row["runs"]
        ],
    )
    return write_pipeline_report(
        [stage],
        out,
        title="Which tokenizer suits these texts",
        over="Trivium tokenizer laboratory",
        lead=f"{len(in_order)} candidates on {', '.join(result['asked']['sources'])}, {result['asked']['flops']:.1e} "
        "operations for each run.",
        figures=[
            Figure("Recommended", str(result["recommended"] or "none")),
            Figure("Bits per byte", f"{best['mean']:.4f}", f"{best['bytes_per_token']:.2f} bytes a token"),
            Figure("Runs", f"{sum(len(row['runs']) for row in in_order)}"),
        ],
    )
