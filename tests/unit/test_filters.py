"""The quality filters: each threshold decides, what is counted is what counting by hand gives, and time is linear."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trivium.data.documents import Document
from trivium.data.filters.repetition import Grams
from trivium.data.filters.words import count_sentences, split_sentences, split_words
from trivium.data.step import Dropped, Step
from trivium.errors import ConfigError
from trivium.registry import component

PROSE = (
    "The harbour lay quiet that morning, and the boats that had come in during the night were tied up to the wall. "
    "A man with a grey coat walked along the water to see whether his brother had returned from the islands. "
    "Nobody had heard of him, they said, but the wind would turn before noon, and then the others would have news. "
    "He thanked them, bought some bread, and sat down on a barrel to wait."
)


def step(name: str, **settings: Any) -> Step:
    cls = component("data/steps", name)
    return cls(cls.Config(**settings), seed=0)


def outcome(name: str, text: str, **settings: Any) -> tuple[str, str]:
    """(reason, evidence), both empty for a document that stays."""
    result = step(name, **settings).apply(Document("1", text, "test"))
    return (result.reason, result.evidence) if isinstance(result, Dropped) else ("", "")


def kept_text(name: str, text: str, **settings: Any) -> str:
    result = step(name, **settings).apply(Document("1", text, "test", meta={"url": "https://a.example/x"}))
    assert isinstance(result, Document), result
    assert result.meta["url"] == "https://a.example/x"
    return result.text


@pytest.mark.parametrize("name", ["gopher_quality", "gopher_repetition", "c4", "fineweb"])
def test_prose_stays(name: str) -> None:
    settings = {"least_sentences": 4} if name == "c4" else {}
    assert outcome(name, PROSE, **settings) == ("", "")


@pytest.mark.parametrize(
    ("text", "setting", "reason", "evidence"),
    [
        ("of the word " * 4, "least_words", "too few words", "12 words, at least 50"),
        ("of the words and " * 25_001, "most_words", "too many words", "100004 words, at most 100000"),
        ("a of be to an " * 20, "least_mean_word_length", "words too short", "1.8 characters on average, at least 3"),
        ("the of " + "abcdefghijklm " * 60, "most_mean_word_length", "words too long", "12.66 char"),
        (PROSE + " # # # # # # # # # # #", "most_symbols_per_word", "too many hash signs", "0.125 for each"),
        (PROSE + " \u2026" * 11, "most_symbols_per_word", "too many ellipses", "0.125 for each word, at most 0.1"),
        ("\n".join(f"- {PROSE}" for _ in range(3)), "most_bullet_lines", "too many bullet lines", "1 of the lines"),
        (f"{PROSE}\n" * 2 + PROSE[:-1] + "...", "most_ellipsis_lines", "too many lines that end", "0.3333 of"),
        (PROSE + " 1234" * 40, "least_alphabetic_words", "too few words with letters", "0.6581 of the words"),
        (PROSE.replace("the", "le").replace("that", "que"), "least_stop_words", "", ""),
        ("kalt war die lange Nacht am Meer " * 8, "least_stop_words", "too few stop words", "0 different ones, at"),
    ],
)
def test_gopher_quality(text: str, setting: str, reason: str, evidence: str) -> None:
    found = outcome("gopher_quality", text)
    assert found[0].startswith(reason) and found[1].startswith(evidence), found
    if reason:
        assert outcome("gopher_quality", text, **{setting: None})[0] != found[0]


def test_other_stop_words() -> None:
    text = "kalt war die lange Nacht am Meer und der Wind kam " * 6
    assert outcome("gopher_quality", text, stop_words=["die", "der"]) == ("", "")


@pytest.mark.parametrize(
    ("text", "reason", "setting"),
    [
        (f"{PROSE}\n\nYes.\n\nYes.\n\nYes.\n\nYes.", "repeated paragraphs", "repeated_paragraphs"),
        (f"{PROSE}\n\n{PROSE}\n\nOne.\n\nTwo.", "characters in repeated paragraphs", "repeated_paragraph_characters"),
        (f"{PROSE}\nYes.\nYes.\nYes.\nYes.", "repeated lines", "repeated_lines"),
        (f"{PROSE}\n{PROSE}\nOne.\nTwo.", "characters in repeated lines", "repeated_line_characters"),
        (PROSE + " good day" * 30, "most frequent 2-gram", "top_ngrams"),
        (f"{PROSE} {PROSE}", "repeated 5-grams", "repeated_ngrams"),
    ],
)
def test_gopher_repetition(text: str, reason: str, setting: str) -> None:
    found = outcome("gopher_repetition", text)
    assert found[0] == reason and ", at most 0." in found[1]
    off: Any = {} if setting.endswith("ngrams") else None
    assert outcome("gopher_repetition", text, **{setting: off})[0] != reason


def by_hand(words: Sequence[str], characters: int, top: Sequence[Any], repeated: Sequence[Any]) -> tuple[Any, Any]:
    """The two measures of the paper, by the plainest code."""
    tops, doubles = [], []
    for n, limit in top:
        grams = Counter(" ".join(words[at : at + n]) for at in range(len(words) - n + 1))
        if grams:
            gram, number = grams.most_common(1)[0]
            tops.append((n, len(gram) * number / characters, limit))
    for n, limit in repeated:
        seen, at, found = set(), 0, 0
        while at < len(words) - n + 1:
            gram = tuple(words[at : at + n])
            if gram in seen:
                found += sum(map(len, gram))
                at += n
            else:
                seen.add(gram)
                at += 1
        doubles.append((n, found / characters, limit))
    return [one for one in tops if one[1] > one[2]], [one for one in doubles if one[1] > one[2]]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["a", "bb", "ccc", "dddd", "e", "ff"]), min_size=1, max_size=60))
def test_ngrams_are_those_counted_by_hand(words: list[str]) -> None:
    text = " ".join(words)
    top, repeated = [(2, 0.2), (3, 0.18), (4, 0.16)], [(5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (10, 0.1)]
    grams = Grams(words, len(text))
    expected = by_hand(words, len(text), top, repeated)
    for found, wanted in zip((grams.top_shares(top), grams.repeated_shares(repeated)), expected, strict=True):
        assert [(n, pytest.approx(share), limit) for n, share, limit in found] == wanted


NUMBERS = ("one", "two", "three", "four", "five")
FIVE = "\n".join(f"Here is the sentence number {number}." for number in NUMBERS)


@pytest.mark.parametrize(
    ("line", "settings"),
    [
        ("No closing mark at all", {"closing_mark": False}),
        ("And so it goes on...", {"closing_mark": False}),
        ("Two words.", {"least_words_per_line": 2}),
        (f"A word that is {'x' * 1001} long.", {"longest_word": None}),
        ("Please enable Javascript to go on.", {"javascript": False}),
        ("Read our Privacy Policy before you go on.", {"policy": False}),
    ],
)
def test_c4_takes_out_lines(line: str, settings: dict[str, Any]) -> None:
    text = f"{line}\n{FIVE}"
    assert kept_text("c4", text) == FIVE
    assert kept_text("c4", text, **settings) == text


@pytest.mark.parametrize(
    ("line", "reason", "setting"),
    [
        ("This is lorem ipsum dolor sit amet.", "lorem ipsum", {"lorem_ipsum": False}),
        ("Write f() { return 1 } here.", "curly bracket", {"curly_brackets": False}),
    ],
)
def test_c4_leaves_out_documents(line: str, reason: str, setting: dict[str, Any]) -> None:
    found = outcome("c4", f"{FIVE}\n{line}")
    assert found[0] == reason and found[1] in line
    assert outcome("c4", f"{FIVE}\n{line}", **setting) == ("", "")


def test_c4_sentences_and_citations() -> None:
    assert outcome("c4", "One is here. Two is here. Dr. A. Smith came.") == (
        "too few sentences",
        "3 in the 1 of 1 lines that stay, at least 5",
    )
    assert kept_text("c4", "Rome[1] is old.[2] It grew[edit] fast. " * 3) == ("Rome is old. It grew fast. " * 3).strip()
    assert kept_text("c4", "It is one. No end here and so on... It was two!", unit="sentence", least_sentences=2) == (
        "It is one. It was two!"
    )


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gopher_repetition", {"top_ngrams": {0: 0.2}}),
        ("gopher_repetition", {"repeated_ngrams": {5: 15}}),
        ("c4", {"unit": "word"}),
    ],
)
def test_limits_that_cannot_be(name: str, settings: Any) -> None:
    with pytest.raises(ValueError):
        step(name, **settings)


def test_c4_bad_words(tmp_path: Path) -> None:
    words = tmp_path / "bad.txt"
    words.write_text("blast\ndarn it\n\u6076\n")
    for text, bad in ((f"{FIVE}\nBlast, I say now.", True), (f"{FIVE}\nA blasted thing came.", False)):
        assert (outcome("c4", text, bad_words=words)[0] == "bad word") is bad
    assert outcome("c4", f"{FIVE}\nThat is \u4e00\u6076\u4e8c all there.", bad_words=words)[0] == "bad word"
    made = step("c4", bad_words=words, keep_bad_words=0.5)
    documents = [Document(str(number), f"{FIVE}\nOh darn it, I say.", "test") for number in range(400)]
    kept = [isinstance(made.apply(document), Document) for document in documents]
    assert 150 < sum(kept) < 250 and kept == [isinstance(made.apply(document), Document) for document in documents]
    assert list(made.parents()) == [words]


LISTED = "\n".join(f"item number {number} of a list that goes on" for number in range(9))
SAME = "The same line once more here and now."
LONG = "\n".join(f"Aninterminablyelongatedwordnumber{number}." for number in range(9))


@pytest.mark.parametrize(
    ("text", "reason", "setting"),
    [
        (f"{PROSE[:-1]}\n{LISTED}", "too few lines that end with punctuation", "least_punctuated_lines"),
        (f"{PROSE}\nItem 1.\nItem 2.\nItem 3.", "too many short lines", "most_short_lines"),
        (f"{PROSE}\n{SAME}\n{PROSE[::-1]}.\n{SAME}", "characters in repeated lines", "repeated_line_characters"),
        (LONG, "too many line breaks", "most_lines_per_word"),
    ],
)
def test_fineweb(text: str, reason: str, setting: str) -> None:
    assert outcome("fineweb", text)[0] == reason
    assert outcome("fineweb", text, **{setting: None}) == ("", "")


def test_texts_without_closing_marks_can_be_kept() -> None:
    poem = "\n".join(f"{line} and so the river goes on and on" for line in NUMBERS)
    assert outcome("fineweb", poem)[0] == "too few lines that end with punctuation"
    assert outcome("fineweb", poem, none_punctuated=True) == ("", "")


def test_words_and_sentences() -> None:
    assert split_words('He said: "don\'t -- it\'s A. Smith\u2026"', "marks") == [
        "He", "said", ":", '"', "don", "'t", "--", "it", "'s", "A.", "Smith", "\u2026", '"'
    ]  # fmt: skip
    assert split_words("a  b\nc", "whitespace") == ["a", "b", "c"]
    assert count_sentences("Mr. J. Smith came. He left! \u201cWhy?\u201d Nobody knows.", 9) == 4
    assert count_sentences("One. Two. Three.", 2) == 2
    assert split_sentences("One is. Two was.\nThree? \u4e16\u754c\u3002\u4e16\u754c\u3002") == [
        "One is.", "Two was.", "Three?", "\u4e16\u754c\u3002", "\u4e16\u754c\u3002"
    ]  # fmt: skip


def test_language() -> None:
    pytest.importorskip("py3langid")
    german = "Der Hafen lag an diesem Morgen still, und die Boote der Nacht waren an der Mauer festgemacht."
    made = step("language", keep=["en"])
    found = made.apply(Document("1", PROSE, "test", meta={"title": "x"}))
    assert isinstance(found, Document) and found.meta["language"] == "en" and found.meta["title"] == "x"
    assert found.meta["language_probability"] > 0.9
    dropped = made.apply(Document("2", german, "test"))
    assert isinstance(dropped, Dropped) and dropped.reason == "another language" and "de (" in dropped.evidence
    assert outcome("language", "12345 67890")[0] == "language not certain"
    assert outcome("language", "12345", least_probability=0) == ("", "")
    stated = Document("3", PROSE, "test", meta={"language": "fr"})
    assert isinstance(step("language", keep=["fr"], trust=True).apply(stated), Document)
    assert isinstance(step("language", keep=["fr"]).apply(stated), Dropped)
    assert outcome("language", german, among=["en", "nl"], keep=["de"])[1].startswith("nl (")
    with pytest.raises(ConfigError, match="xx"):
        step("language", keep=["xx"])


@pytest.mark.parametrize(
    ("text", "settings", "expected"),
    [
        ("It doesn\u00e2\u20ac\u2122t matter, caf\u00c3\u00a9.", {}, "It doesn\u2019t matter, caf\u00e9."),
        ("caf\u00c3\u00a9", {"mojibake": False}, "caf\u00c3\u00a9"),
        ("Tom &amp; Ann", {}, "Tom & Ann"),
        ("Tom &amp; Ann", {"entities": False}, "Tom &amp; Ann"),
        ("\u201cyes\u201d", {}, "\u201cyes\u201d"),
        ("\u201cyes\u201d", {"straight_quotes": True}, '"yes"'),
        ("cafe\u0301 x\u00b2", {}, "caf\u00e9 x\u00b2"),
        ("cafe\u0301 x\u00b2", {"form": "NFKC"}, "caf\u00e9 x2"),
        ("cafe\u0301", {"form": "none"}, "cafe\u0301"),
        ("a\r\nb\x00c  \n", {}, "a\nbc"),
    ],
)
def test_unicode(text: str, settings: dict[str, Any], expected: str) -> None:
    pytest.importorskip("ftfy")
    assert kept_text("unicode", text, **settings) == expected


def test_unreadable_characters() -> None:
    pytest.importorskip("ftfy")
    assert outcome("unicode", "\ufffd\ufffd is bad") == (
        "unreadable characters",
        "0.2222 of the characters, at most 0.01",
    )
    assert outcome("unicode", "\ufffd\ufffd is bad", most_unreadable=None) == ("", "")


def run_boilerplate(parts: Sequence[Sequence[Document]], folder: Path, **settings: Any) -> list[list[Any]]:
    made: Any = step("boilerplate", **settings)
    sketches: list[Mapping[str, Path]] = []
    for number, part in enumerate(parts):
        files = {}
        for name, data in made.sketch(part).items():
            files[name] = folder / f"{number}-{name}"
            files[name].write_bytes(data)
        sketches.append(files)
    decisions = made.decide(sketches, folder)
    return [made.apply_all(part, decision) for part, decision in zip(parts, decisions, strict=True)]


def page(number: int, host: str = "a.example", more: str = "") -> Document:
    text = f"Home of the Gazette since {1900 + number}\nStory {'x' * number} begins here.\n{more}"
    return Document(str(number), text, "pages", meta={"url": f"https://{host}/{number}"})


def test_boilerplate_is_what_a_site_repeats(tmp_path: Path) -> None:
    pages = [page(number) for number in range(12)] + [page(30 + number, "b.example") for number in range(3)]
    whole = run_boilerplate([pages], tmp_path)
    assert [one.text.splitlines()[0][:5] for one in whole[0]] == ["Story"] * 12 + ["Home "] * 3
    (tmp_path / "split").mkdir()
    in_parts = run_boilerplate([pages[:1], pages[1:9], pages[9:]], tmp_path / "split")
    assert [one for part in in_parts for one in part] == whole[0]
    report = (tmp_path / "boilerplate.jsonl").read_text()
    assert report == (tmp_path / "split" / "boilerplate.jsonl").read_text()
    assert report.startswith('{"documents": 12, "line": "Home of the Gazette since ')
    every = run_boilerplate([pages], tmp_path, by="corpus")
    assert all(one.text.startswith("Story") for one in every[0])
    assert run_boilerplate([pages], tmp_path, least_documents=13) == [pages]
    assert run_boilerplate([pages], tmp_path, longest_line=5) == [pages]


def test_boilerplate_by_share_and_phrases(tmp_path: Path) -> None:
    rare = [
        page(number, more=f"Line {'y' * number}\n" + ("Call us today" if number < 10 else "")) for number in range(300)
    ]
    assert run_boilerplate([rare], tmp_path, least_share=0.04)[0][0].text.endswith("Call us today")
    assert not run_boilerplate([rare], tmp_path, least_share=0.03)[0][0].text.endswith("Call us today")
    banner = (
        "We use cookies to improve things.\nSkip to main content\n"
        "Real text about cookies stays here, it is said.\n\u00a9 2024 Us"
    )
    made = run_boilerplate([[Document("1", banner, "s"), Document("2", "Log in\nShare this", "s")]], tmp_path)[0]
    assert made[0].text == "Real text about cookies stays here, it is said."
    assert isinstance(made[1], Dropped) and made[1].reason == "nothing but boilerplate"
    assert run_boilerplate([[Document("1", banner, "s")]], tmp_path, phrases=False)[0][0].text == banner


SIZE = 2_000_000
HOSTILE = {
    "one word": "a" * SIZE,
    "one letter words": "a " * (SIZE // 2),
    "full stops": ". " * (SIZE // 2),
    "empty lines": "\n" * SIZE,
    "marks on a letter": "e" + "\u0301" * SIZE,
    "quotation marks": '."' * (SIZE // 2),
    "open brackets": "[1" * (SIZE // 2),
    "short sentences": "Ab c d. " * (SIZE // 8),
    "said twice": " ".join(random.Random(0).choices([f"w{n}" for n in range(99_999)], k=SIZE // 14)) + " ",
    "broken characters": "\u00c3\u00a9 " * (SIZE // 3),
    "entities": "&amp;" * (SIZE // 5),
}


@pytest.mark.parametrize(
    "name", ["gopher_quality", "gopher_repetition", "c4", "fineweb", "unicode", "language", "clean"]
)
def test_hostile_texts_take_linear_time(name: str) -> None:
    pytest.importorskip("ftfy")
    pytest.importorskip("py3langid")
    made = step(name)
    for kind, text in HOSTILE.items():
        text = text * 2 if kind == "said twice" else text
        start = time.process_time()
        made.apply(Document("1", text, "test"))
        assert time.process_time() - start < 2, kind
