"""A first look as a page, as a short text for the terminal, and as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

from trivium.data.look.gather import Entry, Findings, Tried
from trivium.data.look.measures import Lengths, short
from trivium.data.look.pipelines import FlowStep
from trivium.report.pipeline import Bar, Bars
from trivium.report.plot import Plot, histogram
from trivium.report.render import render
from trivium.report.story import Figure

_SHAPES = {
    "text": "documents",
    "messages": "conversations (messages)",
    "sharegpt": "conversations (ShareGPT)",
    "alpaca": "instructions (Alpaca)",
    "prompt_completion": "prompts with a completion",
    "preferences": "preference pairs",
    "ranked": "ranked lists of answers",
    "ratings": "lists of rated answers",
    "ultrafeedback": "rated answers (UltraFeedback)",
    "openassistant": "ranked replies (OpenAssistant)",
    "argilla": "ranked answers (Argilla)",
    "comparison": "comparisons of two answers",
    "kto": "judged answers (KTO)",
    "questions": "questions about a context",
    "tags": "tagged words",
    "translation": "translations",
    "pairs": "pairs of source and target",
    "labels": "texts with a label",
    "prompts": "prompts",
    "not readable": "of no known shape",
}
_MANY = 12
_SHOWN = 800
"""Characters of a sample on the page."""


def as_page(found: Findings) -> bytes:
    """The page: one file, no script, nothing loaded."""
    sections = [section for section in _sections(found) if section["blocks"]]
    values = {
        "title": _title(found),
        "lead": _lead(found),
        "figures": _figures(found),
        "sections": sections,
        "contents": [("top", "Overview"), *((section["id"], section["title"]) for section in sections)],
    }
    return render("look.html", values)


def as_text(found: Findings) -> str:
    """A few lines for the terminal."""
    rows = [(figure.label, figure.value, figure.note) for figure in _figures(found)]
    width = max(len(label) for label, _, _ in rows)
    lines = [_title(found), _lead(found), ""]
    lines += [f"{label:<{width}}  {value}{f'  ({note})' if note else ''}" for label, value, note in rows]
    if found.odd:
        lines += ["", "odd:", *(f"  {times:>8,}  {what}" for what, times in found.odd.most_common(8))]
    if found.problems:
        lines += ["", "cannot be read:", *(f"  {times:>8,}  {what}" for what, times in found.problems.most_common(8))]
    for tried in found.tried:
        left = sum(tried.reasons.values())
        lines += ["", f"{tried.name} alone would leave out {left:,} of {tried.seen:,}{_changed(tried)}:"]
        lines += [f"  {times:>8,}  {reason}" for reason, times in tried.reasons.most_common(8)]
    for step in found.flow.steps if found.flow else ():
        lines.append(f"{step.name}: {step.entered:,} in, {step.kept:,} kept")
    return "\n".join(lines)


def as_dict(found: Findings) -> dict[str, Any]:
    """Plain JSON values."""
    return {
        "sources": found.sources,
        "entries": found.entries,
        "shapes": dict(found.shapes),
        "problems": dict(found.problems),
        "characters": found.characters.as_dict(),
        "words": found.words.as_dict(),
        "lines": found.lines.as_dict(),
        "tokens": found.tokens.as_dict() if found.tokens else None,
        "languages": dict(found.languages.most_common()) if found.languages else {},
        "repeated_share": found.repeated.share,
        "near_duplicate_share": found.near_share,
        "near_duplicates_among": found.near_among,
        "frequent_lines": found.frequent_lines.most(20, least=2),
        "odd": dict(found.odd),
        "labels": dict(found.labels.most(50)),
        "facts": {name: count for name, count in found.facts.items() if count},
        "from": {name: dict(counts.most(20)) for name, counts in found.from_where.items()},
        "samples": [{"id": one.id, "where": one.where, "text": one.text} for one in found.samples],
        "tried": [
            {"step": one.name, "seen": one.seen, "changed": one.changed, "left_out": dict(one.reasons)}
            for one in found.tried
        ],
        "pipeline": [
            {"step": step.name, "in": step.entered, "kept": step.kept, "left": _left(step)} for step in found.flow.steps
        ]
        if found.flow
        else None,
    }


def _left(step: FlowStep) -> dict[str, int]:
    return {f"{outcome}: {reason}": count for (outcome, reason), count in step.left.items()}


# The beginning


def _title(found: Findings) -> str:
    names = [PurePath(name).name or name for name in found.sources]
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _lead(found: Findings) -> str:
    if not found.entries:
        return "Nothing here can be read."
    shapes = found.shapes.most_common()
    first = _SHAPES.get(shapes[0][0], shapes[0][0])
    if len(shapes) == 1:
        what = f"{found.entries:,} {first}"
    else:
        others = ", ".join(f"{count:,} {_SHAPES.get(name, name)}" for name, count in shapes[1:4])
        what = f"{shapes[0][1]:,} {first}, and {others}"
    words, median = found.words.total, found.words.quantile(0.5)
    return f"{what}: {words:,} words in all, half of them with at most {median:,} each."


def _figures(found: Findings) -> list[Figure]:
    entries = found.entries or 1
    figures = [
        Figure("Entries", f"{found.entries:,}", _percent_note(sum(found.problems.values()), "could not be read")),
        Figure("Characters", short(found.characters.total), f"{found.characters.total:,}"),
        Figure("Words", short(found.words.total), f"{found.words.total / entries:,.0f} each on average"),
    ]
    if found.tokens and found.tokens.number:
        mean = found.tokens.total / found.tokens.number
        estimated = "" if found.tokens.number == found.entries else "about "
        figures.append(Figure("Tokens", f"{estimated}{short(mean * found.entries)}", f"{mean:,.0f} each on average"))
    if found.languages:
        total = sum(found.languages.values())
        code, count = found.languages.most_common(1)[0]
        more = len(found.languages) - 1
        figures.append(
            Figure("Main language", code, f"{count / total:.1%}, {more} other{'s' if more != 1 else ''} seen")
        )
    looked = "" if found.repeated.share_looked_at == 1 else f"in a sample of {found.repeated.share_looked_at:.0%}"
    figures.append(Figure("Exact repetitions", f"{found.repeated.share:.2%}", looked))
    if found.near_share is not None:
        figures.append(Figure("Near duplicates", f"{found.near_share:.2%}", f"among {found.near_among:,} drawn"))
    odd = sum(found.odd.values())
    figures.append(Figure("Odd", f"{odd:,}", "signs of something unusual, below" if odd else "nothing unusual"))
    return figures


def _percent_note(count: int, what: str) -> str:
    return f"{count:,} more {what}" if count else ""


# Sections


def _sections(found: Findings) -> Iterable[dict[str, Any]]:
    yield _section("pipeline", "What the pipeline did", _flow_blocks(found))
    yield _section("samples", "Samples", [{"kind": "samples", "samples": list(map(_sample, found.samples))}])
    yield _section("lengths", "Lengths", _length_blocks(found))
    yield _section("content", "Content", _content_blocks(found))
    yield _section("repeated", "Repetition", _repetition_blocks(found))
    yield _section("odd", "Odd entries", _odd_blocks(found))
    yield _section("tried", "What filters would do", [block for one in found.tried for block in _tried_blocks(one)])
    yield _section("origin", "Where it comes from", _origin_blocks(found))


def _section(name: str, title: str, blocks: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    return {"id": name, "title": title, "blocks": [block for block in blocks if block is not None]}


def _sample(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.id,
        "where": entry.where,
        "what": _SHAPES.get(entry.shape, entry.shape),
        "text": _beginning(entry.text),
    }


def _beginning(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN].rstrip()} \u2026"


def _length_blocks(found: Findings) -> list[dict[str, Any] | None]:
    measured: list[tuple[str, str, Lengths | None]] = [
        ("Characters", "characters", found.characters),
        ("Words", "words", found.words),
        ("Tokens", "tokens", found.tokens),
        ("Lines", "lines", found.lines),
    ]
    plots = [
        plot
        for title, unit, lengths in measured
        if lengths is not None and (plot := histogram(title, lengths.bars(), x_label=unit, unit="entries"))
    ]
    rows = [
        (title, *(f"{facts[name]:,.0f}" for name in ("shortest", "p5", "p25", "p50", "p75", "p95", "longest", "mean")))
        for title, _, lengths in measured
        if lengths is not None and (facts := lengths.as_dict())["number"]
    ]
    head = ("", "shortest", "5 %", "25 %", "median", "75 %", "95 %", "longest", "mean")
    return [_plots(plots), _table("", head, rows)]


def _content_blocks(found: Findings) -> list[dict[str, Any] | None]:
    blocks: list[dict[str, Any] | None] = []
    if len(found.shapes) > 1:
        named = [(_SHAPES.get(name, name), count) for name, count in found.shapes.most_common(_MANY)]
        blocks.append(_bars("What the entries are", named))
    if found.languages:
        note = "" if sum(found.languages.values()) == found.entries else "of a sample of the entries"
        blocks.append(_bars("Languages", found.languages.most_common(_MANY), unit=note))
    labels = found.labels.most(_MANY)
    blocks.append(_bars("Labels", labels, unit=f"the {_MANY} most frequent" if len(labels) == _MANY else ""))
    if len(found.turns) > 1:
        turns = [
            (f"{number} answer{'s' if number != 1 else ''}", count) for number, count in sorted(found.turns.items())
        ]
        blocks.append(_bars("Answers in a conversation", turns[:_MANY]))
    facts = [(name, f"{count:,}", f"{count / found.entries:.1%}") for name, count in found.facts.items() if count]
    blocks.append(_table("", ("what", "count", "for each entry"), facts))
    return blocks


def _repetition_blocks(found: Findings) -> list[dict[str, Any] | None]:
    often = [(name, f"{times:,}") for name, times in found.repeated.most(_MANY)]
    lines = [(line, f"{times:,}") for line, times in found.frequent_lines.most(20, least=3)]
    rough = (
        "Counts are lower bounds: there are too many different lines to count each."
        if found.frequent_lines.rough
        else ""
    )
    pairs = [
        {"left": one, "left_text": text, "right": other, "right_text": more}
        for one, text, other, more in found.near_pairs
    ]
    return [
        _table("Texts that occur more than once", ("first of them", "times"), often),
        {"kind": "pairs", "title": "Alike, but not the same", "pairs": pairs} if pairs else None,
        _table("Lines in several entries", ("line", "entries"), lines, note=rough),
    ]


def _odd_blocks(found: Findings) -> list[dict[str, Any] | None]:
    rows = [
        (what, f"{times:,}", f"{times / found.entries:.2%}", "; ".join(name for name, _ in found.odd_examples[what]))
        for what, times in found.odd.most_common()
    ]
    problems = [(what, f"{times:,}") for what, times in found.problems.most_common(_MANY)]
    examples = [
        {
            "reason": what,
            "count": f"{times:,}",
            "examples": [(name, "", text) for name, text in found.odd_examples[what] if text],
        }
        for what, times in found.odd.most_common(6)
    ]
    return [
        _table("", ("what", "entries", "share", "for example"), rows),
        {"kind": "reasons", "title": "", "reasons": [one for one in examples if one["examples"]]} if rows else None,
        _table("Rows that could not be read", ("problem", "rows"), problems),
        {"kind": "messages", "messages": found.problem_examples} if found.problem_examples else None,
        _table("Passed over in reading", ("why", "how many"), [(w, f"{n:,}") for w, n in found.skipped.most_common()]),
    ]


def _tried_blocks(tried: Tried) -> list[dict[str, Any] | None]:
    left = sum(tried.reasons.values())
    share = left / tried.seen if tried.seen else 0
    reasons = [
        {"reason": reason, "count": f"{times:,}", "examples": tried.examples.get(reason, [])}
        for reason, times in tried.reasons.most_common()
    ]
    title = f"{tried.name} leaves out {left:,} of {tried.seen:,} ({share:.1%}){_changed(tried)}"
    bars = _bars(title, tried.reasons.most_common(_MANY), note="" if reasons else "Everything passes.")
    return [
        bars or {"kind": "title", "title": title},
        {"kind": "reasons", "title": "", "reasons": reasons} if reasons else None,
    ]


def _changed(tried: Tried) -> str:
    return f" and changes {tried.changed:,}" if tried.changed else ""


def _flow_blocks(found: Findings) -> list[dict[str, Any] | None]:
    if found.flow is None:
        return []
    steps = found.flow.steps
    rows = [
        (step.name, f"{step.entered:,}", f"{step.kept:,}", f"{_share_left(step):.1%}", _mostly(step)) for step in steps
    ]
    reasons = [
        {
            "reason": f"{step.name}: {reason}",
            "count": f"{count:,}",
            "examples": [(name, evidence, "") for name, evidence in step.examples.get(reason, [])],
        }
        for step in steps
        for reason, count in _by_count(step)
    ]
    return [
        _bars("Documents after each step", [(step.name, step.kept) for step in steps]),
        _table("", ("step", "in", "kept", "left out", "mostly because"), rows),
        {"kind": "reasons", "title": "Examples of what was left out", "reasons": reasons} if reasons else None,
    ]


def _share_left(step: FlowStep) -> float:
    return sum(step.left.values()) / step.entered if step.entered else 0.0


def _mostly(step: FlowStep) -> str:
    return "; ".join(f"{reason} {count:,}" for reason, count in _by_count(step)[:3])


def _by_count(step: FlowStep) -> list[tuple[str, int]]:
    left = [(reason, count) for (_, reason), count in step.left.items()]
    return sorted(left, key=lambda one: (-one[1], one[0]))


def _origin_blocks(found: Findings) -> list[dict[str, Any] | None]:
    blocks = []
    for name, counts in found.from_where.items():
        most = counts.most(_MANY)
        total = sum(counts.counts.values())
        if most and not (name == "group" and most[0][1] == 1):
            rows = [(value, f"{times:,}", f"{times / total:.1%}") for value, times in most]
            blocks.append(_table(name.capitalize(), (name, "entries", "share"), rows))
    return blocks


def _plots(plots: Sequence[Plot]) -> dict[str, Any] | None:
    return {"kind": "plots", "plots": plots} if plots else None


def _bars(title: str, counts: Sequence[tuple[str, int]], *, unit: str = "", note: str = "") -> dict[str, Any] | None:
    if not counts:
        return None
    bars = Bars(title, [Bar(name, count) for name, count in counts], unit=unit, note=note, digits=0)
    return {"kind": "bars", "title": bars.title, "unit": bars.unit, "drawn": bars.drawn, "note": bars.note}


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, note: str = "") -> dict[str, Any] | None:
    return {"kind": "table", "title": title, "head": head, "rows": rows, "note": note} if rows else None
