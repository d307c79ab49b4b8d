"""A tune as MusicXML 4.0, which programs for scores open: https://www.w3.org/2021/06/musicxml40/"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from trivium.evaluation.music_notation import STEPS, Bar, Note, Pitch, Tune, key_alteration

Place = tuple[str, int]
"""Step and octave: what an accidental stands for until the end of the bar."""

_TYPES = ["whole", "half", "quarter", "eighth", "16th", "32nd", "64th", "128th"]
_SIGNS = {-2: "flat-flat", -1: "flat", 0: "natural", 1: "sharp", 2: "double-sharp"}
_DOTS = (Fraction(7, 4), Fraction(3, 2), Fraction(1))


def musicxml(tune: Tune) -> str:
    """The score as it is written, repeats and endings as signs; grace notes and ornaments are left out."""
    score = Element("score-partwise", version="4.0")
    _text(SubElement(score, "work"), "work-title", tune.title)
    listed = SubElement(SubElement(score, "part-list"), "score-part", id="P1")
    _text(listed, "part-name", "")
    part = SubElement(score, "part", id="P1")
    divisions = math.lcm(*((note.length * 4).denominator for bar in tune.bars for note in bar.notes), 64)
    staff = _Staff(divisions)
    before: Bar | None = None
    ending = ""
    for number, bar in enumerate(tune.bars, 1):
        measure = SubElement(part, "measure", number=str(number))
        ending = _left(measure, bar) or ending
        _attributes(measure, bar, before, divisions)
        staff.write(measure, bar)
        last = number == len(tune.bars)
        _right(measure, bar, ending, last=last)
        ending = "" if bar.closes else ending
        before = bar
    ElementTree.indent(score)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(score, encoding="unicode") + "\n"


def _attributes(measure: Element, bar: Bar, before: Bar | None, divisions: int) -> None:
    changes = Element("attributes")
    if before is None:
        _text(changes, "divisions", divisions)
    if before is None or before.fifths != bar.fifths:
        _text(SubElement(changes, "key"), "fifths", bar.fifths)
    if bar.beats is not None and (before is None or before.beats != bar.beats):
        time = SubElement(changes, "time")
        _text(time, "beats", bar.beats[0])
        _text(time, "beat-type", bar.beats[1])
    if before is None:
        clef = SubElement(changes, "clef")
        _text(clef, "sign", "G")
        _text(clef, "line", 2)
    if len(changes):
        measure.append(changes)


def _left(measure: Element, bar: Bar) -> str:
    """Repeat sign and ending at the beginning; returns the ending's numbers."""
    ending = ",".join(map(str, bar.endings))
    if not ending and not bar.repeats_from:
        return ""
    line = SubElement(measure, "barline", location="left")
    if ending:
        SubElement(line, "ending", number=ending, type="start").text = ending
    if bar.repeats_from:
        SubElement(line, "repeat", direction="forward")
    return ending


def _right(measure: Element, bar: Bar, ending: str, *, last: bool) -> None:
    if not bar.closes and not last:
        return
    line = SubElement(measure, "barline", location="right")
    heavy = last or bar.repeats_to
    _text(line, "bar-style", "light-heavy" if heavy else "light-light" if bar.double else "regular")
    if ending:
        SubElement(line, "ending", number=ending, type="stop")
    if bar.repeats_to:
        SubElement(line, "repeat", direction="backward")


class _Staff:
    """Writes the notes of one measure after the other; knows which accidentals and ties are in force."""

    def __init__(self, divisions: int) -> None:
        self.divisions = divisions
        self.altered: dict[Place, int] = {}
        self.held: set[Pitch] = set()

    def write(self, measure: Element, bar: Bar) -> None:
        """All notes of a bar."""
        self.altered = {(step, octave): key_alteration(step, bar.fifths) for step in STEPS for octave in range(10)}
        for at, (note, tuplet) in enumerate(zip(bar.notes, _tuplets(bar.notes), strict=True)):
            if note.symbol:
                kind = SubElement(SubElement(measure, "direction", placement="above"), "direction-type")
                _text(kind, "words", note.symbol)
            pieces = list(_pieces(note.length / note.tuplet))
            for number, piece in enumerate(pieces):
                last = number + 1 == len(pieces)
                for member, pitch in enumerate(note.pitches or (None,)):
                    element = SubElement(measure, "note")
                    if member:
                        SubElement(element, "chord")
                    self._note(element, note, pitch, piece, tied=note.tied or not last)
                    _beam(element, bar, at)
                    for mark in tuplet if not member else ():
                        if (mark == "start" and not number) or (mark == "stop" and last):
                            SubElement(_notations(element), "tuplet", type=mark)
                self.held = {*note.pitches} if note.tied or not last else set()

    def _note(self, element: Element, note: Note, pitch: Pitch | None, written: Fraction, *, tied: bool) -> None:
        """Pitch or rest, duration, ties, type, accidental, in the order that the format demands."""
        if pitch is None:
            SubElement(element, "rest")
        else:
            place = SubElement(element, "pitch")
            _text(place, "step", pitch.step)
            _text(place, "alter", pitch.alter)
            _text(place, "octave", pitch.octave)
        _text(element, "duration", round(written * note.tuplet * 4 * self.divisions))
        ties = [*(["stop"] if pitch in self.held else []), *(["start"] if tied and pitch else [])]
        for tie in ties:
            SubElement(element, "tie", type=tie)
        base, dots = _type(written)
        _text(element, "type", base)
        for _ in range(dots):
            SubElement(element, "dot")
        if pitch and self.altered[pitch.step, pitch.octave] != pitch.alter:
            self.altered[pitch.step, pitch.octave] = pitch.alter
            _text(element, "accidental", _SIGNS[pitch.alter])
        if note.tuplet != 1:
            change = SubElement(element, "time-modification")
            _text(change, "actual-notes", note.tuplet.denominator)
            _text(change, "normal-notes", note.tuplet.numerator)
        for tie in ties:
            SubElement(_notations(element), "tied", type=tie)


def _tuplets(notes: list[Note]) -> Iterator[list[str]]:
    """Where the brackets of tuplets begin and end: marks for each note."""
    left = Fraction(0)
    for at, note in enumerate(notes):
        marks = []
        if note.tuplet != 1:
            written = note.length / note.tuplet
            if left <= 0:
                marks.append("start")
                left = written * note.tuplet.denominator
            left -= written
            if left <= 0 or at + 1 == len(notes) or notes[at + 1].tuplet != note.tuplet:
                marks.append("stop")
                left = Fraction(0)
        yield marks


def _beam(element: Element, bar: Bar, at: int) -> None:
    def short(place: int) -> bool:
        note = bar.notes[place]
        return bool(note.pitches) and note.length / note.tuplet < Fraction(1, 4)

    before = at > 0 and bar.notes[at].joined and short(at - 1) and short(at)
    after = at + 1 < len(bar.notes) and bar.notes[at + 1].joined and short(at) and short(at + 1)
    if before or after:
        beam = Element("beam", number="1")
        beam.text = "continue" if before and after else "end" if before else "begin"
        notations = element.find("notations")
        element.insert(len(element) if notations is None else list(element).index(notations), beam)


def _notations(element: Element) -> Element:
    """The last part of a note: beams come before it."""
    found = element.find("notations")
    return SubElement(element, "notations") if found is None else found


def _pieces(length: Fraction) -> Iterator[Fraction]:
    """A length as notes that can be written: powers of two with at most two dots; what is below 1/128 is dropped."""
    while length >= Fraction(1, 128):
        base = Fraction(1)
        while base > length:
            base /= 2
        piece = next(base * factor for factor in _DOTS if base * factor <= length)
        piece = min(piece, Fraction(1))
        yield piece
        length -= piece


def _type(length: Fraction) -> tuple[str, int]:
    for dots, factor in ((0, Fraction(1)), (1, Fraction(3, 2)), (2, Fraction(7, 4))):
        base = length / factor
        if base.numerator == 1 and base.denominator & (base.denominator - 1) == 0 and base.denominator <= 128:
            return _TYPES[base.denominator.bit_length() - 1], dots
    raise AssertionError(f"{length} is no written length")


def _text(parent: Element, name: str, value: object) -> None:
    SubElement(parent, name).text = str(value)
