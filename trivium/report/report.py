"""`report.html` of one run: finished, still running, stopped, diverged or killed in the middle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from trivium.artifacts.writer import write_file
from trivium.core.plan import score
from trivium.core.progress import readable_bytes, readable_count, readable_seconds
from trivium.errors import TriviumError
from trivium.report.curves import run_plots
from trivium.report.evaluations import evaluations
from trivium.report.plot import histogram
from trivium.report.record import Record, Row, is_number, read_record
from trivium.report.render import percent, render
from trivium.report.story import Figure, key_figures, lead, notices, run_state

PROMPTS, TIMES = 12, 6
"""Prompts, and moments of the training, whose samples are shown."""
ROWS, SPLITS = 40, 4
"""Rows of a table, and parts of the data, that are shown."""


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run folder, whatever state it is in, and return its path.

    ArtifactError if there is no run, or the page cannot be written.
    """
    record = read_record(run_dir)
    target = Path(run_dir) / "report.html"
    write_file(target, _page(record))
    return target


def _page(record: Record) -> bytes:
    samples, left_out = _samples(record)
    lineage, no_lineage = _lineage(record.folder)
    forecast = _forecast(record)
    measured = evaluations(record.folder)
    values: dict[str, Any] = {
        "title": f"{record.name} · Trivium",
        "record": record,
        "state": run_state(record),
        "lead": lead(record),
        "figures": key_figures(record),
        "notices": list(notices(record)),
        "plots": run_plots(record),
        "samples": samples,
        "left_out": left_out,
        "evaluations": measured,
        "splits": [
            _split(name, split) for name, split in list(record.data.items())[:SPLITS] if isinstance(split, dict)
        ],
        "differences": _differences(record),
        "groups": _groups(record),
        "lineage": lineage,
        "no_lineage": no_lineage,
        "forecast": forecast,
        "forecast_words": _forecast_words(record),
        "environment": _first(_environment(record.environment)),
    }
    sections = {
        "top": "Overview",
        "curves": "Curves",
        "samples": "Samples over time" if samples else "",
        "evaluation": "Evaluation" if measured else "",
        "data": "Data" if values["splits"] else "",
        "settings": "Settings" if record.config else "",
        "lineage": "Lineage",
        "forecast": "Forecast and fact" if forecast else "",
        "environment": "Environment",
    }
    values["contents"] = [(key, name) for key, name in sections.items() if name]
    return render("run.html", values)


def _samples(record: Record) -> tuple[list[tuple[str, list[tuple[str, str]]]], str]:
    """For each prompt its completions at some moments: (prompt, [(moment, completion)]); and what is not shown."""
    taken = record.samples
    if len(taken) > TIMES:
        chosen = sorted({round(i * (len(taken) - 1) / (TIMES - 1)) for i in range(TIMES)})
        taken = [taken[place] for place in chosen]
    prompts = list(dict.fromkeys(prompt for _, pairs in record.samples for prompt, _ in pairs))
    shown = []
    for prompt in prompts[:PROMPTS]:
        found = [(step, dict(pairs)) for step, pairs in taken]
        columns = [
            ("before training" if step == 0 else f"update {step:,}", pairs[prompt])
            for step, pairs in found
            if prompt in pairs
        ]
        shown.append((prompt, columns))
    left_out = []
    if len(taken) < len(record.samples):
        left_out.append(f"{len(taken)} of {len(record.samples)} moments are shown")
    if len(prompts) > PROMPTS:
        left_out.append(f"{PROMPTS} of {len(prompts)} prompts are shown")
    return shown, ", ".join(left_out)


def _split(name: str, split: Mapping[str, Any]) -> Row:
    """Figures, account and histogram of the training or the held-out data."""
    labels = {
        "documents": "Documents",
        "samples": "Sequences",
        "tokens": "Tokens",
        "trained_tokens": "Tokens trained on",
        "bytes": "Text",
        "packing_efficiency": "Rows filled",
    }
    figures = []
    for key, label in labels.items():
        value = split.get(key)
        if not is_number(value) or (key == "trained_tokens" and value == split.get("tokens")):
            continue
        words = readable_bytes(value) if key == "bytes" else readable_count(value)
        figures.append(Figure(label, percent(value, 1) if key == "packing_efficiency" else words))
    tokens, size = split.get("tokens"), split.get("bytes")
    if is_number(tokens) and is_number(size) and tokens:
        figures.append(Figure("Bytes per token", f"{size / tokens:.2f}"))
    lengths = split.get("length_histogram")
    lengths = lengths if isinstance(lengths, dict) else {}
    counts = {str(name): int(count) for name, count in lengths.items() if is_number(count)}
    row = split.get("first_row")
    sequences = row.get("sequences") if isinstance(row, dict) else None
    return {
        "title": {"train": "Training data", "validation": "Held-out data"}.get(name, name),
        "figures": figures,
        "account": _first(list(_account(split))),
        "sources": _first(_sources(split)),
        "plot": histogram("Length of the sequences", counts, x_label="tokens", unit="sequences"),
        "first_row": [
            {"text": str(one.get("text", "")), "trained_text": str(one.get("trained_text", ""))}
            for one in (sequences if isinstance(sequences, list) else [])
            if isinstance(one, dict)
        ],
    }


def _sources(split: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """For each source of a mixture: its share of the rows, and tokens and passes, walked and planned."""
    found = split.get("sources")
    rows = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    if len(rows) < 2 and not any(is_number(one.get("share")) and one["share"] < 1 for one in rows):
        return []

    def words(one: Row, key: str, show: Callable[[float], str]) -> str:
        value = one.get(key)
        return show(value) if is_number(value) else ""

    return [
        (
            str(one.get("source", "")),
            words(one, "share", lambda value: percent(value, 1)),
            words(one, "tokens", "{:,.0f}".format),
            words(one, "planned_tokens", "{:,.0f}".format),
            words(one, "epochs", "{:.2f}".format),
            words(one, "planned_epochs", "{:.2f}".format),
        )
        for one in rows
    ]


def _account(split: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What was read, kept and left out, and why."""
    labels = {
        "input": "rows or documents read",
        "kept": "kept",
        "dropped": "dropped",
        "quarantined": "set aside as malformed",
        "skipped": "passed over in reading",
        "formats": "recognised as",
        "difficulty": "difficulty of a sample",
        "cut_documents": "documents cut into several sequences",
        "truncated_samples": "samples truncated",
        "truncated_tokens": "tokens cut off by truncation",
    }
    for key, label in labels.items():
        value = split.get(key)
        if is_number(value):
            yield label, f"{value:,}"
        elif isinstance(value, dict):
            yield from ((f"{label}: {reason}", f"{count:,}") for reason, count in value.items() if is_number(count))


def _differences(record: Record) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for key, pair in record.differences.items():
        value, default = pair if isinstance(pair, list) and len(pair) == 2 else (pair, None)
        rows.append((key, _plain(value), "" if default is None else _plain(default)))
    return _first(rows)


def _groups(record: Record) -> list[tuple[str, ...]]:
    """For each part of the model that trains: learning rate, weight decay, and how many parameters."""
    found = record.groups.get("groups")
    rows: list[tuple[str, ...]] = [
        (
            str(row.get("part", "")),
            *(_plain(row.get(name)) for name in ("lr", "lr_factor", "weight_decay")),
            f"{row['parameters']:,}" if is_number(row.get("parameters")) else "",
        )
        for row in (found if isinstance(found, list) else [])
        if isinstance(row, dict)
    ]
    return _first(rows)


def _first(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The first rows of a long table, and how many more there are."""
    if len(rows) <= ROWS:
        return rows
    return [*rows[: ROWS - 1], (f"and {len(rows) - ROWS + 1} more", *[""] * (len(rows[0]) - 1))]


def _plain(value: Any) -> str:
    """A setting as one would write it."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, list):
        return "; ".join(_plain(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _lineage(folder: Path) -> tuple[Markup | None, str]:
    """The graph as HTML, or why there is none."""
    from trivium.artifacts.lineage import read_lineage, render_figure

    try:
        return Markup(render_figure(read_lineage(folder))), ""
    except (TriviumError, OSError) as error:
        reason = error.problem if isinstance(error, TriviumError) else str(error)
        return None, f"The past of this run cannot be shown: {reason}."


def _forecast(record: Record) -> list[Row]:
    words: dict[str, Callable[[float], str]] = {
        "seconds": readable_seconds,
        "parameters": readable_count,
        "flops": readable_count,
    }
    scored = {row.name: row for row in score(record.forecast, {**record.forecast, **record.fact})}
    rows = []
    for name, row in scored.items():
        show = words.get(name, readable_bytes if name.endswith("bytes") else "{:,.0f}".format)
        known = name in record.fact and row.error is not None
        error = row.error or 0.0
        rows.append(
            {
                "label": row.label,
                "forecast": show(row.forecast),
                "fact": show(row.fact) if known else "",
                "error": f"{100 * error:+.1f}\u202f%".replace("-", "\u2212") if known else "",
                "tone": ("good" if abs(error) <= 0.2 else "warn") if known else "",
            }
        )
    return rows


def _forecast_words(record: Record) -> str:
    basis = record.forecast.get("basis")
    known = f" Time is forecast from {basis}." if isinstance(basis, str) and basis else ""
    if not record.fact:
        return f"What the run was expected to need; it is compared with the facts when the run ends.{known}"
    return f"What the run was expected to need, and what it needed.{known}"


def _environment(environment: Mapping[str, Any], prefix: str = "") -> list[tuple[str, ...]]:
    """Nested values as rows; the versions of packages in one row."""
    rows: list[tuple[str, ...]] = []
    for key, value in environment.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if value in (None, "", [], {}) or key in ("command", "flags"):
            continue
        if key == "packages" and isinstance(value, dict):
            rows.append((name, ", ".join(f"{package} {version}" for package, version in value.items())))
        elif isinstance(value, dict):
            rows.extend(_environment(value, f"{name}: "))
        elif key == "memory_bytes" and is_number(value):
            rows.append((name.replace(" bytes", ""), readable_bytes(value)))
        else:
            rows.append((name, _plain(value)))
    return rows
