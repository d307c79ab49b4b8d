"""Books lose their licence and keep their words, chapters and verse; papers keep abstract, sections and formulas."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from trivium.data.intake import Intake
from trivium.data.markup.prose import unwrapped, with_chapters
from trivium.data.reading import read_documents
from trivium.recipe import Source

BOOKS = Path(os.environ.get("TRIVIUM_SHARED_DATA", "../shared/data")) / "gutenberg"

PROSE = (
    "It was a long line of prose that some typist broke in the\nmiddle, as all of them did in those days, and went on."
)
NEW = """\ufeffThe Project Gutenberg eBook of A Small Book
\x20   
This ebook is for the use of anyone anywhere.

Title: A Small Book
        With a Second Line

Author: Jane Doe

Release date: March 5, 2004 [eBook #1234]
                Most recently updated: January 1, 2021

Language: English

Credits: Somebody

*** START OF THE PROJECT GUTENBERG EBOOK A SMALL BOOK ***

Produced by Somebody and the Team
at a place


CHAPTER I

{prose}

CHAPTER II

The end.

*** END OF THE PROJECT GUTENBERG EBOOK A SMALL BOOK ***

Updated editions will replace the previous one.
START: FULL LICENSE
"""
OLD = """The Project Gutenberg Etext of A Small Book, by Jane Doe
Copyright laws are changing all over the world.

*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*


CHAPTER I

{prose}

CHAPTER II

The end.

End of the Project Gutenberg Etext of A Small Book
"""
TEXT = f"## CHAPTER I\n\n{' '.join(PROSE.split())}\n\n## CHAPTER II\n\nThe end."


def read(path, intake=None, **options):
    return list(read_documents(Source(path=str(path), **options), intake or Intake()))


@pytest.mark.parametrize("form", [NEW, OLD], ids=["new", "old"])
def test_the_licence_goes_and_the_header_is_read(tmp_path, form):
    path = tmp_path / "book.txt"
    path.write_text(form.format(prose=PROSE).replace("Release date", "Release Date"))
    intake = Intake()
    (book,) = read(path, intake)
    assert book.text == TEXT
    assert intake.formats == {"book": 1}
    assert book.meta["author"] == "Jane Doe"
    assert book.meta["title"].startswith("A Small Book")
    assert book.meta["sections"] == [[2, "CHAPTER I"], [2, "CHAPTER II"]]
    assert book.licence == "Public-Domain"
    if form is NEW:
        assert (book.id, book.group) == ("gutenberg:1234", "gutenberg:1234")
        assert (book.meta["date"], book.meta["language"]) == ("2004-03-05", "en")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "cp1252", "utf-16", "utf-8-sig"])
def test_the_encoding_is_found(tmp_path, encoding):
    path = tmp_path / "book.txt"
    text = "CHAPTER I\n\nDer Müller ließ über Nacht die Tür offen, là-bas, façon de parler.\n"
    path.write_bytes(text.encode(encoding))
    (book,) = read(path, format="book")
    assert book.text == f"## {text.strip()}"


def test_other_text_files_are_not_taken_for_books(tmp_path):
    (tmp_path / "a.txt").write_text("CHAPTER I\n\nNo book.\n")
    intake = Intake()
    (document,) = read(tmp_path, intake)
    assert document.text == "CHAPTER I\n\nNo book.\n"
    assert intake.formats == {"txt": 1}


def test_verse_keeps_its_lines():
    verse = "Of Man's first disobedience, and the fruit\nOf that forbidden tree whose mortal taste\nBrought death into the World"
    long = "\n".join(
        f"And every line begins with a capital letter, number {number}, as verse does" for number in range(4)
    )
    assert unwrapped(verse) == verse
    assert unwrapped(long) == long
    assert unwrapped(PROSE) == " ".join(PROSE.split())


@pytest.mark.parametrize(
    ("line", "marked"),
    [
        ("CHAPTER I. Down the Rabbit-Hole", "## CHAPTER I. Down the Rabbit-Hole"),
        ("Chapter 12", "## Chapter 12"),
        ("Actus Primus. Scoena Prima.", "## Actus Primus. Scoena Prima."),
        ("BOOK THE FIRST", "## BOOK THE FIRST"),
        ("Preface", "## Preface"),
        ("Chapter I is what he read,", None),
        ("I", None),
        ("Part of the way", None),
    ],
)
def test_chapters(line, marked):
    assert with_chapters(f"\n{line}\n\nText.").strip().split("\n")[0] == (marked or line)


@pytest.mark.parametrize(
    "piece", ["CHAPTER I\n\n", "\n", " ", "I.\n\n", "*** START", "a\n", "chapter " * 9, "IIII" * 9]
)
def test_reading_books_takes_linear_time(tmp_path, piece):
    path = tmp_path / "a.txt"
    path.write_text("Project Gutenberg\n" + piece * (2_000_000 // len(piece)))
    begin = time.process_time()
    read(path, Intake("quarantine"), format="book")
    assert time.process_time() - begin < 5


@pytest.mark.skipif(not BOOKS.is_dir(), reason="the books are not here")
def test_real_books():
    books = {book.id: book for book in read(BOOKS)}
    assert len(books) == 17
    emma, ball = books["austen-emma.txt"], books["chesterton-ball.txt"]
    assert (emma.meta["title"], emma.meta["author"], emma.meta["date"]) == ("Emma", "Jane Austen", "1816")
    assert emma.meta["sections"][:2] == [[2, "VOLUME I"], [3, "CHAPTER I"]]
    assert len(emma.meta["sections"]) == 58
    assert ball.meta["encoding"] == "cp1252"
    assert len([title for _, title in books["melville-moby_dick.txt"].meta["sections"] if "CHAPTER" in title]) >= 130
    assert "whose mortal taste\nBrought death" in books["milton-paradise.txt"].text


# ruff: noqa: E501
