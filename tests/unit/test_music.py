"""ABC notation: read from files, parsed strictly, judged, played, drawn; and the commands around it."""

from __future__ import annotations

import io
import json
import struct
import wave
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from trivium.artifacts.manifest import verify
from trivium.cli.main import run
from trivium.data.intake import Intake
from trivium.data.reading import read_documents
from trivium.errors import DataError
from trivium.evaluation.music import KnownTunes, describe, judge, sounding, summary
from trivium.evaluation.music_files import RATE, TICKS, midi, wav
from trivium.evaluation.music_notation import parse_tune
from trivium.evaluation.music_score import musicxml
from trivium.recipe import Source

NOTTINGHAM = Path(__file__).parents[3] / "shared" / "data" / "nottingham_abc"

WALTZ = """X:1
T:The Test Bench
M:3/4
L:1/4
K:G
D|:"G"GAB|c2A|"D7"F>GA|1 G2D:|2 G3|]
"""
JIG = "X:2\nT:Two Cores\nM:6/8\nK:D\n|:dAF DFA|d^cd e=cA|(3def g f2d|A3-A3:|\n"


def tune(body: str, *, metre: str = "4/4", unit: str = "1/4", key: str = "C"):
    return parse_tune(f"X:1\nT:t\nM:{metre}\nL:{unit}\nK:{key}\n{body}\n")


def pitches(body: str, **header: str) -> list[int]:
    return [pitch.midi for bar in tune(body, **header).bars for note in bar.notes for pitch in note.pitches]


def lengths(body: str, **header: str) -> list[Fraction]:
    return [note.length * 4 for bar in tune(body, **header).bars for note in bar.notes]


# Files


def read(path: Path, intake: Intake | None = None):
    return list(read_documents(Source(path=str(path)), intake or Intake()))


def test_each_tune_of_a_file_is_a_document(tmp_path) -> None:
    text = "% A collection\nNotes about it.\n\n" + WALTZ.replace("M:3/4", "M:3/4 % slow") + "\nAn aside.\n\n" + JIG
    (tmp_path / "tunes.abc").write_text(text)
    intake = Intake()
    first, second = read(tmp_path, intake)
    assert (first.id, second.id) == ("tunes.abc:1", "tunes.abc:2")
    assert first.text == WALTZ
    assert first.meta == {"title": "The Test Bench", "key": "G", "metre": "3/4", "group": "tunes.abc:1"}
    assert second.source.endswith("tunes.abc:13")
    assert intake.skipped == {"lines outside of tunes": 2}


def test_a_number_used_twice_gives_two_ids(tmp_path) -> None:
    (tmp_path / "tunes.abc").write_text(WALTZ + "\n" + WALTZ)
    assert [document.id for document in read(tmp_path)] == ["tunes.abc:1", "tunes.abc:1#2"]


@pytest.mark.parametrize(
    ("text", "problem"), [("X:1\nT:a\nK:G\n", "no music"), ("X:1\nT:a\nGAB|\n", "no key"), ("X:1\n", "no key")]
)
def test_a_malformed_tune_is_named_or_set_aside(tmp_path, text, problem) -> None:
    (tmp_path / "tunes.abc").write_text(JIG + "\n" + text)
    with pytest.raises(DataError, match=problem) as caught:
        read(tmp_path)
    assert caught.value.where.endswith("tunes.abc:7")
    intake = Intake("quarantine")
    assert len(read(tmp_path, intake)) == 1
    assert sum(intake.quarantined.values()) == 1


def test_other_encodings_and_line_ends(tmp_path) -> None:
    (tmp_path / "a.abc").write_bytes(("\ufeff" + WALTZ.replace("The", "Thé")).replace("\n", "\r\n").encode())
    assert read(tmp_path)[0].meta["title"] == "Thé Test Bench"
    (tmp_path / "a.abc").write_bytes(WALTZ.replace("The", "Thé").encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        read(tmp_path)


# Notation


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("CDEF|GABc|", [60, 62, 64, 65, 67, 69, 71, 72]),
        ("C,c'", [48, 84]),
        ("^C_DE=F", [61, 61, 64, 65]),
        ("^FF|F", [66, 66, 65]),  # an accidental holds until the bar ends
        ("^Ff", [66, 77]),  # and in its own octave only
        ("[CEG]2", [60, 64, 67]),
        ("{g}C", [60]),
        ("!trill!~C.D(EF)", [60, 62, 64, 65]),
    ],
)
def test_pitches(body, expected) -> None:
    assert pitches(body) == expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [("G", 66), ("D", 66), ("F", 65), ("Am", 65), ("Em", 66), ("Ador", 66), ("Dmix", 66), ("Gmin", 65), ("F#m", 66)],
)
def test_keys(key, expected) -> None:
    assert pitches("F", key=key) == [expected]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("A2A/A//A3/2", ["2", "1/2", "1/4", "3/2"]),
        ("A>B A<B", ["3/2", "1/2", "1/2", "3/2"]),
        ("A>>B", ["7/4", "1/4"]),
        ("(3ABc A", ["2/3", "2/3", "2/3", "1"]),
        ("(3:2:2AB c", ["2/3", "2/3", "1"]),
        ("[A2c2]2 z", ["4", "1"]),
        ("AZ2|", ["1", "4", "4"]),
        ("L:1/8\nA4", ["2"]),
        ("[L:1/8]A4", ["2"]),
    ],
)
def test_lengths(body, expected) -> None:
    assert lengths(body) == [Fraction(value) for value in expected]


def test_unit_without_field_follows_the_metre() -> None:
    for metre, unit in (("2/4", 16), ("3/4", 8), ("6/8", 8), ("C|", 8)):
        parsed = parse_tune(f"X:1\nT:t\nM:{metre}\nK:C\nA|\n")
        assert parsed.bars[0].notes[0].length == Fraction(1, unit)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("T:a\nX:1\nK:C\nA|", "line 1, column 1"),
        ("X:1\nT:a\nK:H\nA|", "line 3, column 1"),
        ("X:1\nT:a\nM:4\nK:C\nA|", "line 3, column 1"),
        ("X:1\nT:a\nL:1/0\nK:C\nA|", "line 3, column 1"),
        ("X:1\nK:C\nA|", "line 2, column 1"),
        ("X:1\nT:a\nA|", "line 3, column 1"),
        ("X:1\nT:a\nK:C\nAB|j", "line 4, column 4"),
        ('X:1\nT:a\nK:C\nAB"G|', "line 4, column 3"),
        ("X:1\nT:a\nK:C\n[AB|", "line 4, column 1"),
        ("X:1\nT:a\nK:C\nA/0|", "line 4, column 1"),
        ("X:1\nT:a\nK:C\nA>|", "line 4, column 1"),
        ("X:1\nT:a\nK:C\n|A^|", "line 4, column 3"),
        ("X:1\nT:a\nK:C\nz4|", "line 4, column 1"),
        ("X:1\nT:a\nK:C\nV:2\nA|", "line 4, column 1"),
        ("X:1\nT:a\nQ:fast\nK:C\nA|", "line 3, column 1"),
        ("X:1\nT:a\nK:C\nA,,,,,,|", "line 4, column 1"),
        ("", "line 1, column 1"),
    ],
)
def test_what_is_wrong_is_named_by_line_and_column(text, where) -> None:
    with pytest.raises(DataError) as caught:
        parse_tune(text)
    assert caught.value.where == where
    assert caught.value.fix


def test_nothing_a_model_writes_is_more_than_an_error() -> None:
    random = np.random.default_rng(0)
    letters = list("ABCDEFGabcdefgz0123456789/|:[]()\"-<>^_=,'\n {}!~ LMKPX")
    for _ in range(3000):
        text = "X:1\nT:t\nM:4/4\nK:C\n" + "".join(random.choice(letters, size=40))
        judged = judge(text)
        assert (judged.tune is None) == (judged.error is not None)
        if judged.tune is not None:
            midi(judged.tune)
            ElementTree.fromstring(musicxml(judged.tune))


# Repeats


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("C4|D4|", "CD"),
        ("|:C4|D4:|E4|", "CDCDE"),
        ("C4|D4:|E4|", "CDCDE"),
        ("|:C4::D4:|", "CCDD"),
        ("|:C4|1 D4:|2 E4||F4|", "CDCEF"),
        ("|:C4|[1 D4:|[2 E4|]", "CDCE"),
        ("C4||D4|E4:|", "CDEDE"),
        ("|:C4|1,3 D4:|2 E4:|", "CDCECD"),
    ],
)
def test_repeats_are_played(body, expected) -> None:
    played = tune(body).played()
    assert "".join(bar.notes[0].pitches[0].step for bar in played) == expected


def test_ties_sound_as_one_note() -> None:
    assert sounding(tune("C4-|C4|C4|")) == [(0, 2, 60), (2, 1, 60)]


# Judging


def test_bars_are_counted() -> None:
    judged = judge(WALTZ)
    assert (judged.complete, judged.upbeats, judged.wrong) == (5, 1, 0)
    assert judge(WALTZ.replace("c2A", "c2A2")).wrong == 1
    assert judge(WALTZ.replace("c2A", "c2")).wrong == 1
    assert judge(WALTZ.replace("M:3/4", "M:none")).complete == 0
    assert not judge(WALTZ.replace("c2A", "c2A2")).whole


def test_copies_are_found_under_another_title() -> None:
    known = KnownTunes.of([WALTZ, JIG])
    copy = judge(WALTZ.replace("Test Bench", "Other Name").replace('"G"', ""), known=known)
    assert copy.known
    assert copy.copied == copy.phrases == 3
    other = judge(WALTZ.replace("GAB", "GBd"), known=known)
    assert not other.known
    assert other.copied == 1  # the run of four that does not hold the new bar
    assert known.tunes == 2


def test_the_summary_counts_everything() -> None:
    known = KnownTunes.of([WALTZ])
    judged = [judge(text, known=known) for text in (WALTZ, JIG, "X:1\nT:a\nK:C\nj", WALTZ)]
    report = summary(judged, known=known)
    assert (report["tunes"], report["parse"], report["whole"], report["distinct"]) == (4, 0.75, 0.75, 0.75)
    assert report["copied_tunes"] == pytest.approx(2 / 3)
    assert report["problems"] == {"this is no music": 1}
    assert "75.0 % parse" in describe(report)
    assert summary(judged)["copied_phrases"] is None
    assert summary([])["parse"] is None


# Sound and score


def midi_notes(data: bytes) -> list[tuple[int, int, int]]:
    """(tick, status, key) of each note event; a reader of its own, for this file only."""
    header, length, form, tracks, ticks = struct.unpack(">4sIHHH", data[:14])
    assert (header, length, form, tracks, ticks) == (b"MThd", 6, 0, 1, TICKS)
    assert data[14:18] == b"MTrk"
    assert struct.unpack(">I", data[18:22])[0] == len(data) - 22
    at, now, found = 22, 0, []

    def number() -> int:
        nonlocal at
        value = 0
        while True:
            at += 1
            value = value << 7 | data[at - 1] & 0x7F
            if not data[at - 1] & 0x80:
                return value

    while at < len(data):
        now += number()
        status = data[at]
        if status == 0xFF:
            at += 2
            size = number()
            at += size
        else:
            found.append((now, status, data[at + 1]))
            at += 3
    assert data[-3:] == b"\xff\x2f\x00"
    return found


def test_midi_holds_the_melody() -> None:
    notes = midi_notes(midi(tune("CD2E|")))
    assert notes == [
        (0, 0x90, 60),
        (480, 0x80, 60),
        (480, 0x90, 62),
        (1440, 0x80, 62),
        (1440, 0x90, 64),
        (1920, 0x80, 64),
    ]


def test_sound_has_the_pitch_and_the_length() -> None:
    with wave.open(io.BytesIO(wav(parse_tune("X:1\nT:t\nM:4/4\nL:1/4\nQ:1/4=60\nK:C\nA4|\n")))) as file:
        assert file.getframerate() == RATE
        sound = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    assert len(sound) / RATE == pytest.approx(4.5, abs=0.01)
    spectrum = np.abs(np.fft.rfft(sound))
    assert np.argmax(spectrum) * RATE / len(sound) == pytest.approx(440, abs=1)
    with pytest.raises(DataError, match="too long"):
        wav(parse_tune("X:1\nT:t\nM:4/4\nL:1/1\nQ:1/4=1\nK:C\nA200|\n"))


def test_the_score_holds_every_note() -> None:
    parsed = parse_tune(JIG)
    score = ElementTree.fromstring(musicxml(parsed))
    assert len(score.findall(".//measure")) == 4
    assert len(score.findall(".//note")) == sum(len(bar.notes) for bar in parsed.bars)
    assert [sign.text for sign in score.findall(".//accidental")] == ["natural"]  # ^c is in the key of D already
    assert [sign.get("direction") for sign in score.findall(".//repeat")] == ["forward", "backward"]
    assert [sign.get("type") for sign in score.findall(".//tuplet")] == ["start", "stop"]
    assert [sign.get("type") for sign in score.findall(".//tied")] == ["start", "stop"]
    divisions = int(score.findtext(".//divisions") or 0)
    for measure in score.findall(".//measure"):
        assert sum(int(value.text or 0) for value in measure.findall("note/duration")) == 3 * divisions


def test_the_picture_is_engraved() -> None:
    pytest.importorskip("verovio")
    from trivium.evaluation.music_files import picture

    svg = picture(musicxml(parse_tune(WALTZ)))
    assert svg.count('class="measure') == 6
    ElementTree.fromstring(svg)


# The commands


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tunes").mkdir()
    random = np.random.default_rng(0)
    bars = ["".join(random.choice(list("ABcdefg"), size=3)) for _ in range(40 * 8)]
    tunes = [
        f"X:{number}\nT:Tune {number}\nM:3/4\nL:1/4\nK:G\n{'|'.join(bars[8 * number : 8 * number + 8])}|]\n"
        for number in range(40)
    ]
    (tmp_path / "tunes" / "a.abc").write_text("\n".join([*tunes, JIG.replace("dAF", "dAFF")]))
    return tmp_path


def test_check_reports(workplace, capsys) -> None:
    assert run(["music", "check", "tunes", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["tunes"] == 41
    assert report["wrong"] == {"a.abc:2#2": "1 bars do not fill the metre"}


def test_render_writes_an_artifact(workplace, capsys) -> None:
    assert run(["music", "render", "tunes/a.abc", "--number", "41", "--output", "one"]) == 0
    names = {path.name for path in (workplace / "one").iterdir()}
    assert {"tune.mid", "tune.wav", "tune.musicxml"} <= names
    verify(workplace / "one")
    assert run(["music", "render", "tunes/a.abc", "--number", "99", "--output", "two"]) == 2
    assert "fewer tunes" in capsys.readouterr().err


def test_prepare_train_sample(workplace, capsys) -> None:
    assert run(["music", "prepare", "tunes", "--output", "prepared", "--held-out", "0.2"]) == 0
    train = "prepared/documents.train.jsonl"
    assert run(["tokenizer", "train", "tunes", "--kind", "char", "--output", "tokenizer"]) == 0
    small = ["model.config.num_layers=1", "model.config.hidden_size=32", "train.steps=3", "train.batch_size=2"]
    small += ["model.config.max_positions=96", "data.sequence_length=96"]
    changes = ["tokenizer=tokenizer", f"data.train={train}", f"data.validation={train}", "train.sample_tokens=2"]
    recipe = str(Path(__file__).parents[2] / "recipes" / "music.yaml")
    assert run(["train", recipe, *small, *changes, "train.compile=off", "train.threads=1"]) == 0
    capsys.readouterr()
    for output in ("new", "again"):
        assert run(["music", "sample", "runs/music", "--output", output, "--count", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[0])
    assert report["tunes"] == 2
    assert {path.name for path in (workplace / "new").iterdir()} >= {"tunes.abc", "samples.jsonl", "report.json"}
    assert (workplace / "new" / "samples.jsonl").read_text() == (workplace / "again" / "samples.jsonl").read_text()


@pytest.mark.skipif(not NOTTINGHAM.is_dir(), reason="the Nottingham tunes are not here")
def test_real_tunes() -> None:
    documents = read(NOTTINGHAM)
    assert len(documents) == 1034
    report = summary([judge(document.text) for document in documents[::8]])
    assert report["parse"] > 0.98  # nine of all are written wrongly
    assert report["complete_bars"] > 0.999
