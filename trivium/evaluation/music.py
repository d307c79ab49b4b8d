"""Judging tunes in ABC notation: do they parse, do their bars fill the metre, are they copied from the training data?

A bar is complete if its notes fill the metre. The first and last bar of a section may be shorter (an upbeat, and what
it takes from the end); they are counted apart and judged only if they are too long. Bars without metre are not judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from trivium.errors import DataError
from trivium.evaluation.music_notation import Bar, Tune, parse_tune

PHRASE = 4
"""Bars that are compared with the training data at once."""

Phrase = tuple[tuple[tuple[tuple[int, ...], Fraction], ...], ...]


@dataclass(frozen=True)
class Judged:
    """One tune.

    error:    what is wrong, None if it parses.
    complete, upbeats, wrong: its bars, see above.
    phrases, copied: runs of four bars, and those whose melody stands in a training tune too.
    known:    the whole melody is that of a training tune.
    """

    text: str
    tune: Tune | None
    error: str | None = None
    complete: int = 0
    upbeats: int = 0
    wrong: int = 0
    phrases: int = 0
    copied: int = 0
    known: bool = False

    @property
    def whole(self) -> bool:
        """Parses, and no bar is wrong."""
        return self.tune is not None and not self.wrong


@dataclass
class KnownTunes:
    """The melodies of the training data, as runs of four bars and as whole tunes."""

    phrases: set[int] = field(default_factory=set)
    melodies: set[int] = field(default_factory=set)
    tunes: int = 0

    @classmethod
    def of(cls, texts: Iterable[str]) -> KnownTunes:
        """Of all texts that parse."""
        known = cls()
        for text in texts:
            try:
                bars = parse_tune(text).bars
            except DataError:
                continue
            known.tunes += 1
            known.phrases.update(map(hash, _phrases(bars)))
            known.melodies.add(hash(_melody(bars)))
        return known


def judge(text: str, *, known: KnownTunes | None = None) -> Judged:
    """Parse one tune, count its bars, and compare its melody with `known`."""
    try:
        tune = parse_tune(text)
    except DataError as error:
        return Judged(text, None, error=f"{error.where}: {error.problem}")
    kinds = Counter(map(_kind, tune.bars))
    phrases = list(map(hash, _phrases(tune.bars)))
    return Judged(
        text,
        tune,
        complete=kinds["complete"],
        upbeats=kinds["upbeat"],
        wrong=kinds["wrong"],
        phrases=len(phrases),
        copied=sum(phrase in known.phrases for phrase in phrases) if known else 0,
        known=known is not None and hash(_melody(tune.bars)) in known.melodies,
    )


def summary(judged: Sequence[Judged], *, known: KnownTunes | None = None) -> dict[str, Any]:
    """Shares over all tunes; None where nothing could be measured."""
    parsed = [tune for tune in judged if tune.tune is not None]
    complete, wrong = sum(tune.complete for tune in parsed), sum(tune.wrong for tune in parsed)
    problems = Counter(tune.error.partition(": ")[2] for tune in judged if tune.error)
    return {
        "tunes": len(judged),
        "parse": _share(len(parsed), len(judged)),
        "whole": _share(sum(tune.whole for tune in judged), len(judged)),
        "complete_bars": _share(complete, complete + wrong),
        "bars": {"complete": complete, "upbeat": sum(tune.upbeats for tune in parsed), "wrong": wrong},
        "distinct": _share(len({tune.text for tune in judged}), len(judged)),
        "copied_tunes": _share(sum(tune.known for tune in parsed), len(parsed)) if known else None,
        "copied_phrases": _share(sum(t.copied for t in parsed), sum(t.phrases for t in parsed)) if known else None,
        "problems": dict(problems.most_common()),
    }


def describe(report: dict[str, Any]) -> str:
    """The summary for people, one line a measure."""
    bars = report["bars"]
    judged = bars["complete"] + bars["wrong"]
    lines = [
        f"{report['tunes']} tunes",
        f"{_percent(report['parse'])} parse",
        f"{_percent(report['whole'])} parse and have no wrong bar",
        f"{_percent(report['complete_bars'])} of {judged} bars fill the metre ({bars['upbeat']} upbeats apart)",
        f"{_percent(report['distinct'])} are different from each other",
    ]
    if report["copied_phrases"] is not None:
        lines.append(f"{_percent(report['copied_tunes'])} are training tunes, note for note")
        lines.append(f"{_percent(report['copied_phrases'])} of all runs of {PHRASE} bars stand in a training tune")
    return "\n".join([*lines, *(f"  {count} x {problem}" for problem, count in report["problems"].items())])


def sounding(tune: Tune) -> list[tuple[Fraction, Fraction, int]]:
    """(start, length, key number) of each note as it is played, times in whole notes; ties are one note."""
    notes: list[tuple[Fraction, Fraction, int]] = []
    held: dict[int, int] = {}
    now = Fraction(0)
    for note in (note for bar in tune.played() for note in bar.notes):
        tied: dict[int, int] = {}
        for key in dict.fromkeys(pitch.midi for pitch in note.pitches):
            at = held.get(key, len(notes))
            if key in held:
                start, length, _ = notes[at]
                notes[at] = start, length + note.length, key
            else:
                notes.append((now, note.length, key))
            tied[key] = at
        held = tied if note.tied else {}
        now += note.length
    return notes


def _kind(bar: Bar) -> str:
    if bar.metre is None:
        return "free"
    if bar.length == bar.metre:
        return "complete"
    return "upbeat" if bar.length < bar.metre and (bar.opens or bar.closes) else "wrong"


def _melody(bars: Sequence[Bar]) -> Phrase:
    """Pitches and lengths alone: chord symbols, slurs and ornaments do not make another tune."""
    return tuple(
        tuple((tuple(sorted(pitch.midi for pitch in note.pitches)), note.length) for note in bar.notes) for bar in bars
    )


def _phrases(bars: Sequence[Bar]) -> Iterator[Phrase]:
    melody = _melody(bars)
    for start in range(len(melody) - PHRASE + 1):
        yield melody[start : start + PHRASE]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.1f} %"
