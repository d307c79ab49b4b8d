"""A tune as a standard MIDI file (format 0), as sound (WAV), and as a score (MusicXML, SVG)."""

from __future__ import annotations

import io
import struct
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trivium.artifacts.writer import write_file
from trivium.errors import DataError, TriviumError
from trivium.evaluation.music import sounding
from trivium.evaluation.music_notation import Tune
from trivium.evaluation.music_score import musicxml

TICKS = 480
"""Ticks in a quarter note."""

RATE = 22050
"""Samples in a second."""

_LONGEST = 600
_HARMONICS = ((1, 1.0), (2, 0.5), (3, 0.25), (4, 0.12))
_VELOCITY = 80


def write_music(folder: Path, name: str, tune: Tune) -> list[str]:
    """Write `name`.mid, .wav, .musicxml and, where verovio is installed, .svg; returns what could not be written."""
    score = musicxml(tune)
    write_file(folder / f"{name}.mid", midi(tune))
    write_file(folder / f"{name}.musicxml", score)
    messages = []
    try:
        write_file(folder / f"{name}.wav", wav(tune))
    except DataError as error:
        messages.append(f"no sound of {name}: {error.problem} ({error.value})")
    try:
        write_file(folder / f"{name}.svg", picture(score))
    except ImportError:
        messages.append("no score picture: it needs verovio, pip install 'trivium[music]'")
    except TriviumError as error:
        messages.append(f"no score picture of {name}: {error.problem}")
    return messages


def midi(tune: Tune) -> bytes:
    """The melody on one track, repeats played; chord symbols are not played."""
    events: list[tuple[int, bytes]] = [
        (0, _meta(3, tune.title.encode("utf-8"))),
        (0, _meta(0x51, round(60_000_000 / tune.tempo).to_bytes(3, "big"))),
    ]
    beats = tune.bars[0].beats
    if beats is not None:
        events.append((0, _meta(0x58, bytes([min(beats[0], 255), beats[1].bit_length() - 1, 24, 8]))))
    notes: list[tuple[int, bytes]] = []
    for start, length, key in sounding(tune):
        key = min(max(key, 0), 127)
        notes.append((round(start * 4 * TICKS), bytes([0x90, key, _VELOCITY])))
        notes.append((round((start + length) * 4 * TICKS), bytes([0x80, key, 0])))
    events += sorted(notes, key=lambda event: (event[0], event[1][0]))  # an old note ends before a new one begins
    track = b"".join(_timed(events)) + b"\x00" + _meta(0x2F, b"")
    return struct.pack(">4sIHHH", b"MThd", 6, 0, 1, TICKS) + struct.pack(">4sI", b"MTrk", len(track)) + track


def wav(tune: Tune) -> bytes:
    """The melody as a plucked tone with four harmonics; mono, 16 bit, 22050 Hz. DataError beyond ten minutes."""
    notes = sounding(tune)
    second = float(tune.tempo / 240)  # whole notes in a second
    seconds = max(float(start + length) for start, length, _ in notes) / second
    if seconds > _LONGEST:
        raise DataError("the tune is too long for sound", value=f"{seconds:.0f} s", fix="shorten it, or raise Q:")
    sound = np.zeros(int((seconds + 0.5) * RATE) + 1)
    for start, length, key in notes:
        tone = _tone(key, float(length) / second)
        begin = int(float(start) / second * RATE)
        sound[begin : begin + len(tone)] += tone[: len(sound) - begin]
    loudest = float(np.abs(sound).max()) or 1.0
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((sound / loudest * 0.9 * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def picture(score: str) -> str:
    """The score (MusicXML) engraved as SVG by verovio; ImportError where it is not installed."""
    import verovio

    verovio.enableLog(verovio.LOG_OFF)
    toolkit = verovio.toolkit()
    toolkit.setOptions(
        {"pageWidth": 2100, "pageHeight": 60000, "adjustPageHeight": True, "svgViewBox": True, "footer": "none"}
    )
    if not toolkit.loadData(score):
        raise TriviumError("verovio refuses the score", fix="open the .musicxml file with another program")
    return str(toolkit.renderToSVG(1))


def _tone(key: int, seconds: float) -> NDArray[np.float64]:
    frequency = 440.0 * 2 ** ((key - 69) / 12)
    time = np.arange(int(seconds * RATE) + 1) / RATE
    body = sum(level * np.sin(2 * np.pi * frequency * number * time) for number, level in _HARMONICS)
    attack, release = np.minimum(time / 0.01, 1), np.minimum((seconds - time).clip(0) / 0.03, 1)
    return np.asarray(body * np.exp(-2 * time) * attack * release)


def _meta(kind: int, data: bytes) -> bytes:
    return bytes([0xFF, kind]) + _variable(len(data)) + data


def _timed(events: list[tuple[int, bytes]]) -> Iterator[bytes]:
    """Each event behind the ticks since the one before."""
    now = 0
    for tick, event in events:
        yield _variable(tick - now) + event
        now = tick


def _variable(number: int) -> bytes:
    """A number in groups of seven bits, the highest bit set in all but the last."""
    groups = [number & 0x7F]
    while number := number >> 7:
        groups.append(number & 0x7F | 0x80)
    return bytes(reversed(groups))
