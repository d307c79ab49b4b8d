"""ABC notation as notes and bars: a strict parser of what a tune of one voice needs.

Understood are: header and inline fields, notes with accidentals, octaves and lengths, rests, chords, broken rhythm,
tuplets, ties, slurs, grace notes, ornaments, chord symbols, bar lines, repeats and numbered endings. Voices (`V:`,
`&`), macros and stylesheets are not. Anything else is an error with its line and column.

Standard: https://abcnotation.com/wiki/abc:standard:v2.1
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction

from trivium.errors import DataError

STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
"""Semitones of the natural notes above C."""

_FIFTHS = {"F": -1, "C": 0, "G": 1, "D": 2, "A": 3, "E": 4, "B": 5}
_MODES = {
    "": 0,
    "maj": 0,
    "ion": 0,
    "m": -3,
    "min": -3,
    "aeo": -3,
    "mix": -1,
    "dor": -2,
    "phr": -4,
    "lyd": 1,
    "loc": -5,
}
_ORDER_OF_SHARPS = "FCGDAEB"
_ACCIDENTALS = {"^^": 2, "^": 1, "=": 0, "_": -1, "__": -2}

_LENGTH = r"(?P<times>\d+)?(?P<over>/+(?P<by>\d+)?)?"
_PITCH = r"(?P<accidental>\^\^?|__?|=)?(?P<letter>[A-Ga-g])(?P<octave>[,']*)"
_NOTE = re.compile(_PITCH + _LENGTH)
_REST = re.compile(r"[zx]" + _LENGTH)
_LONG_REST = re.compile(r"Z(\d*)")
_CHORD_END = re.compile(r"\]" + _LENGTH)
_BAR = re.compile(r"(?P<before>:*)(?P<line>\[\||\|\]|\|\|?)(?P<after>:*)|(?P<both>::)")
_ENDING = re.compile(r"\[?(\d+(?:[,-]\d+)*)")
_INLINE = re.compile(r"\[([A-Za-z]):([^\]]*)\]")
_FIELD = re.compile(r"([A-Za-z]):\s*(.*?)\s*$")
_TUPLET = re.compile(r"\((\d)(?::(\d*))?(?::(\d*))?")
_DECORATION = re.compile(r"![^!\s]+!|\+[^+\s]+\+|[.~HLMOPSTuv]")
_KEY = re.compile(r"(?P<tonic>[A-G])(?P<sign>[#b]?)\s*(?P<mode>[A-Za-z]*)(?P<rest>.*)$")
_METRE = re.compile(r"\(?(\d+(?:\+\d+)*)\)?/(\d+)$")
_TUPLET_TIME = {2: 3, 3: 2, 4: 3, 6: 2, 8: 3}


@dataclass(frozen=True)
class Pitch:
    """A note on the staff: step C to B, alteration in semitones, octave (4 begins at middle C)."""

    step: str
    alter: int
    octave: int

    @property
    def midi(self) -> int:
        """Number of the key; middle C is 60."""
        return 12 * (self.octave + 1) + STEPS[self.step] + self.alter


@dataclass(frozen=True)
class Note:
    """A note, chord or rest (no pitches).

    length:  in whole notes.
    tuplet:  sounding length divided by written length (2/3 in a triplet).
    joined:  written without space after the note before, as beams are.
    symbol:  chord symbol above it.
    """

    pitches: tuple[Pitch, ...]
    length: Fraction
    tuplet: Fraction = Fraction(1)
    tied: bool = False
    joined: bool = False
    symbol: str = ""


@dataclass
class Bar:
    """What stands between two bar lines.

    metre:    length of a whole bar in whole notes; None without metre.
    opens, closes: whether a section begins or ends here (double bar, repeat, ending, `P:`, end of the tune).
    double:   a double bar line stands behind it.
    repeats_from, repeats_to: a repeat begins before it, ends after it.
    endings:  numbers of the ending that begins here.
    """

    metre: Fraction | None
    beats: tuple[int, int] | None
    fifths: int
    notes: list[Note] = field(default_factory=list)
    opens: bool = False
    closes: bool = False
    double: bool = False
    repeats_from: bool = False
    repeats_to: bool = False
    endings: tuple[int, ...] = ()

    @property
    def length(self) -> Fraction:
        """Of all notes together."""
        return sum((note.length for note in self.notes), Fraction(0))


@dataclass(frozen=True)
class Tune:
    """A parsed tune: first value of each header field, bars as written, and quarter notes a minute."""

    fields: dict[str, str]
    bars: list[Bar]
    tempo: Fraction

    @property
    def title(self) -> str:
        return self.fields.get("T", "")

    def played(self) -> list[Bar]:
        """The bars in the order in which they sound: repeats and numbered endings written out."""
        order: list[Bar] = []
        start, turn, at = 0, 1, 0
        while at < len(self.bars):
            bar = self.bars[at]
            if bar.repeats_from and at != start:
                start, turn = at, 1
            if bar.endings and turn not in bar.endings:
                at = self._after_ending(at)
                continue
            order.append(bar)
            if bar.repeats_to and turn < self._turns(start, at):
                at, turn = start, turn + 1
                continue
            if bar.repeats_to or bar.closes:
                start, turn = (at + 1, 1) if not self._ending_follows(at) else (start, turn)
            at += 1
        return order

    def _ending_follows(self, at: int) -> bool:
        return at + 1 < len(self.bars) and bool(self.bars[at + 1].endings)

    def _after_ending(self, at: int) -> int:
        while at < len(self.bars) and not self.bars[at].closes:
            at += 1
        return at + 1

    def _turns(self, start: int, at: int) -> int:
        """How often the section up to `at` is played: twice, or as often as its endings say."""
        numbers = [number for bar in self.bars[start : at + 1] for number in bar.endings]
        following = self.bars[at + 1].endings if at + 1 < len(self.bars) else ()
        return max([*numbers, *following, 2])


def parse_tune(text: str) -> Tune:
    """The tune that `text` holds; DataError names the line and column of the first thing that is wrong."""
    return _Parser().parse(text)


class _Parser:
    """Reads a tune from top to bottom."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.bars: list[Bar] = []
        self.metre: tuple[int, int] | None = (4, 4)
        self.free = False
        self.unit: Fraction | None = None
        self.fifths = 0
        self.tempo = Fraction(120)
        self.number = 0
        self.in_music = False
        self.repeat_from = False
        self.endings: tuple[int, ...] = ()
        self.section = True
        self.altered: dict[tuple[str, int], int] = {}
        self.tuplet: tuple[Fraction, int] = (Fraction(1), 0)
        self.broken: Fraction | None = None
        self.joined = False
        self.symbol = ""
        self.bar: Bar | None = None

    def parse(self, text: str) -> Tune:
        lines = text.strip("\n").split("\n")
        for self.number, line in enumerate(lines, 1):
            bare = re.sub(r"(?<!\\)%.*", "", line).rstrip()
            match = _FIELD.match(bare)
            if not bare:
                continue
            if match:
                self._field(match[1], match[2], header=not self.in_music)
            elif not self.in_music:
                raise self._error("the header holds a line that is no field", 0, bare, "write music below K: only")
            else:
                self._music(bare.removesuffix("\\"))
        if not self.in_music:
            raise self._error("the tune has no key", 0, lines[-1], "end the header with a line such as K:G")
        self._close(section=True)
        if not any(note.pitches for bar in self.bars for note in bar.notes):
            raise self._error("the tune has no notes", 0, lines[-1], "write the music below K:")
        return Tune(self.fields, self.bars, self.tempo)

    # Fields

    def _field(self, letter: str, value: str, *, header: bool) -> None:
        if header and not self.fields and letter != "X":
            raise self._error("a tune begins with its number", 0, f"{letter}:{value}", "write X:1 first")
        if letter == "X" and (not value.isdigit() or not header or "X" in self.fields):
            raise self._error("X: stands once, at the beginning, with a number", 0, value, "write X:1 first")
        if letter == "V":
            raise self._error("tunes of several voices are not understood", 0, value, "leave one voice")
        self.fields.setdefault(letter, value)
        if letter == "M":
            self.metre = self._read_metre(value)
        elif letter == "L":
            self.unit = self._read_fraction(value)
        elif letter == "K":
            self._read_key(value)
            self.in_music = True
            if "T" not in self.fields:
                raise self._error("the tune has no title", 0, f"K:{value}", "write T: and a title below X:")
        elif letter == "Q":
            self._read_tempo(value)
        if not header and letter in "PMK":
            self._close(section=True)

    def _read_metre(self, value: str) -> tuple[int, int] | None:
        value = {"C": "4/4", "C|": "2/2"}.get(value, value)
        if value in ("none", ""):
            return None
        match = _METRE.match(value)
        if not match or int(match[2]) not in (1, 2, 4, 8, 16, 32) or not sum(map(int, match[1].split("+"))):
            raise self._error("the metre cannot be read", 0, f"M:{value}", "write a fraction such as M:6/8")
        return sum(map(int, match[1].split("+"))), int(match[2])

    def _read_fraction(self, value: str) -> Fraction:
        match = re.match(r"(\d{1,3})/(\d{1,3})$", value)
        if not match or not int(match[1]) or not int(match[2]):
            raise self._error("the length of a note cannot be read", 0, value, "write a fraction such as L:1/8")
        return Fraction(int(match[1]), int(match[2]))

    def _read_key(self, value: str) -> None:
        if value in ("", "none", "HP", "Hp"):
            self.fifths = 2 if value == "Hp" else 0
            return
        match = _KEY.match(value)
        if match and (mode := match["mode"] if match["mode"] == "m" else match["mode"].lower()[:3]) in _MODES:
            sign = {"#": 7, "b": -7, "": 0}[match["sign"]]
            self.fifths = _FIFTHS[match["tonic"]] + sign + _MODES[mode]
            if abs(self.fifths) <= 7:
                return
        raise self._error("the key cannot be read", 0, f"K:{value}", "write a key such as K:G, K:Bb or K:Ador")

    def _read_tempo(self, value: str) -> None:
        match = re.match(r'(?:"[^"]*"\s*)?(?:(\d+)/(\d+)\s*=\s*)?(\d{1,3})?(?:\s*"[^"]*")?$', value)
        if not match or match[2] == "0" or match[3] == "0":
            raise self._error("the tempo cannot be read", 0, f"Q:{value}", "write a tempo such as Q:1/4=120")
        if match[3]:
            beat = Fraction(int(match[1]), int(match[2])) if match[1] else Fraction(1, 4)
            self.tempo = int(match[3]) * beat * 4

    # Music

    def _music(self, line: str) -> None:
        at = 0
        while at < len(line):
            end = self._item(line, at)
            if end is None:
                raise self._error("this is no music", at, line[at : at + 20], "see the standard of ABC notation")
            at = end
        self.joined = False

    def _item(self, line: str, at: int) -> int | None:
        """Read what stands at `at`; returns where it ends, None if it is nothing known."""
        character = line[at]
        if character in " \t`()-<>y":
            tuplet = _TUPLET.match(line, at)
            return self._open_tuplet(tuplet) if tuplet else self._mark(line, at)
        if character == '"':
            return self._symbol(line, at)
        if character == "{":
            return self._grace(line, at)
        if match := _INLINE.match(line, at):
            self._field(match[1], match[2].strip(), header=False)
            return match.end()
        if match := _BAR.match(line, at):
            return self._bar_line(match, line)
        if character == "[" and (match := _ENDING.match(line, at)):
            self._close(section=True)
            self.endings = _numbers(match[1])
            return match.end()
        if character == "[":
            return self._chord(line, at)
        if (match := _NOTE.match(line, at)) or (match := _REST.match(line, at)):
            self._add((self._pitch(match, at),) if "letter" in match.re.groupindex else (), self._length(match, at), at)
            return match.end()
        if match := _LONG_REST.match(line, at):
            return self._bars_of_rest(int(match[1] or 1), match.end(), at)
        decoration = _DECORATION.match(line, at)
        return decoration.end() if decoration else None

    def _mark(self, line: str, at: int) -> int | None:
        """Space, slurs, ties and broken rhythm."""
        character = line[at]
        if character in " \t":
            self.joined = False
        elif character == "-":
            if not self._last():
                return None
            self._change(tied=True)
        elif character in "<>":
            run = re.compile(r"<+|>+").match(line, at)
            assert run is not None
            last = self._last()
            if not last or len(run[0]) > 3 or self.broken is not None:
                return None
            short = Fraction(1, 2 ** len(run[0]))
            self._change(length=last.length * (2 - short if character == ">" else short))
            self.broken = short if character == ">" else 2 - short
            return run.end()
        return at + 1

    def _symbol(self, line: str, at: int) -> int | None:
        end = line.find('"', at + 1)
        if end < 0:
            return None
        text = line[at + 1 : end]
        self.symbol = text if text[:1] not in ("^", "_", "<", ">", "@") else self.symbol
        return end + 1

    def _grace(self, line: str, at: int) -> int | None:
        match = re.compile(r"\{/?((?:" + re.sub(r"\?P<\w+>", "?:", _PITCH + _LENGTH) + r"|[\[\] ])+)\}").match(line, at)
        return match.end() if match else None

    def _open_tuplet(self, match: re.Match[str]) -> int:
        notes = int(match[1])
        compound = self.metre is not None and self.metre[0] % 3 == 0 and self.metre[0] > 3
        time = int(match[2] or 0) or _TUPLET_TIME.get(notes, 3 if compound else 2)
        if notes < 2:
            raise self._error("a tuplet has at least two notes", match.start(), match[0], "write (3 for a triplet")
        self.tuplet = Fraction(time, notes), int(match[3] or 0) or notes
        return match.end()

    def _bar_line(self, match: re.Match[str], line: str) -> int:
        before, after = bool(match["before"] or match["both"]), bool(match["after"] or match["both"])
        at = match.end()
        ending = _ENDING.match(line, at) if line[at : at + 1].isdigit() else None
        section = before or after or match["line"] != "|" or ending is not None
        self._close(section=section, repeat=before)
        if self.bars:
            self.bars[-1].double |= match["line"] not in ("|", None)
        self.repeat_from = self.repeat_from or after
        if ending:
            self.endings = _numbers(ending[1])
            at = ending.end()
        return at

    def _chord(self, line: str, at: int) -> int | None:
        start, pitches, lengths = at, [], []
        at += 1
        while at < len(line) and (match := _NOTE.match(line, at)):
            pitches.append(self._pitch(match, at))
            lengths.append(self._length(match, at))
            at = match.end() + (line[match.end() : match.end() + 1] == "-")
        end = _CHORD_END.match(line, at)
        if not pitches or not end:
            return None
        self._add(tuple(pitches), lengths[0] * self._length(end, start) / self._default_unit(), start)
        return end.end()

    def _bars_of_rest(self, count: int, end: int, at: int) -> int:
        if self.metre is None or not 0 < count < 1000:
            raise self._error("bars of rest need a metre and a number", at, "Z", "write z with a length")
        for number in range(count):
            self._add((), Fraction(*self.metre), at)
            if number + 1 < count:
                self._close()
        return end

    # Notes

    def _default_unit(self) -> Fraction:
        if self.unit is None:
            small = self.metre is not None and Fraction(*self.metre) < Fraction(3, 4)
            self.unit = Fraction(1, 16) if small else Fraction(1, 8)
        return self.unit

    def _length(self, match: re.Match[str], at: int) -> Fraction:
        times, over, by = int(match["times"] or 1), match["over"], int(match["by"] or 0)
        divisor = 1 if not over else by or 2 ** len(over.rstrip("0123456789"))
        if not times or (match["by"] and not by) or times > 256 or divisor > 256:
            raise self._error("a note has no such length", at, match[0], "write lengths such as A2, A/2 or A3/2")
        return times * self._default_unit() / divisor

    def _pitch(self, match: re.Match[str], at: int) -> Pitch:
        letter, marks = match["letter"], match["octave"]
        octave = (5 if letter.islower() else 4) + marks.count("'") - marks.count(",")
        step = letter.upper()
        if not 0 <= octave <= 9:
            raise self._error("the note is out of range", at, match[0], "use fewer octave marks")
        if match["accidental"]:
            self.altered[step, octave] = _ACCIDENTALS[match["accidental"]]
        return Pitch(step, self.altered.get((step, octave), key_alteration(step, self.fifths)), octave)

    def _add(self, pitches: tuple[Pitch, ...], length: Fraction, at: int) -> None:
        ratio, left = self.tuplet
        if left:
            self.tuplet = ratio, left - 1
        else:
            ratio = Fraction(1)
        if self.broken is not None:
            length, self.broken = length * self.broken, None
        if self.bar is None:
            beats = self.metre
            self.bar = Bar(None if beats is None else Fraction(*beats), beats, self.fifths)
            self.bar.opens, self.section = self.section, False
            self.bar.repeats_from, self.repeat_from = self.repeat_from, False
            self.bar.endings, self.endings = self.endings, ()
        note = Note(pitches, length * ratio, tuplet=ratio, joined=self.joined, symbol=self.symbol)
        self.bar.notes.append(note)
        self.joined, self.symbol = True, ""

    def _last(self) -> Note | None:
        return self.bar.notes[-1] if self.bar else None

    def _change(self, **values: object) -> None:
        assert self.bar is not None
        self.bar.notes[-1] = replace(self.bar.notes[-1], **values)  # type: ignore[arg-type]

    def _close(self, *, section: bool = False, repeat: bool = False) -> None:
        """End the bar, if there is one; a line break or second line between bars only marks a section."""
        if self.broken is not None:
            raise self._error("broken rhythm stands between two notes", 0, "> or <", "write a note behind it")
        self.altered.clear()
        if self.bar is not None:
            self.bars.append(self.bar)
            self.bar = None
        if self.bars:
            self.bars[-1].closes |= section
            self.bars[-1].repeats_to |= repeat
        self.section |= section
        self.joined = False

    def _error(self, problem: str, at: int, value: str, fix: str) -> DataError:
        return DataError(problem, where=f"line {self.number}, column {at + 1}", value=value, fix=fix)


def key_alteration(step: str, fifths: int) -> int:
    """What a key does to a step: `fifths` sharps, or flats if negative."""
    place = _ORDER_OF_SHARPS.index(step)
    return (place < fifths) - (6 - place < -fifths)


def _numbers(text: str) -> tuple[int, ...]:
    """`1,3` and `1-3` as numbers; at most nine."""

    def each() -> Iterator[int]:
        for part in text.split(","):
            first, _, last = part.partition("-")
            yield from range(int(first), min(int(last or first), int(first) + 9) + 1)

    return tuple(each())[:9]
