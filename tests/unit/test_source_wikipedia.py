"""A dump becomes articles: marks are gone, words stay, ids stay, and parts give what the whole gives."""

from __future__ import annotations

import bz2
import gzip
import os
import time
from pathlib import Path

import pytest

from trivium.data.intake import InputFile, Intake
from trivium.data.markup.wikitext import plain_text
from trivium.data.reading import read_documents
from trivium.data.sources import wikipedia
from trivium.recipe import Source

pytest.importorskip("lxml")

DUMP = Path(os.environ.get("TRIVIUM_SHARED_DATA", "../shared/data")) / "wiki_xml_dump"

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="de">
  <siteinfo><sitename>Wikipedia</sitename><dbname>dewiki</dbname><base>https://de.wikipedia.org/wiki/Hauptseite</base>
    <namespaces><namespace key="0" case="first-letter" /><namespace key="6">Datei</namespace>
      <namespace key="14">Kategorie</namespace></namespaces></siteinfo>
"""


def page(number: int, text: str, title: str = "Das Blatt", ns: int = 0, more: str = "") -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return f"""  <page>
    <title>{title} {number}</title><ns>{ns}</ns><id>{number}</id>{more}
    <revision><id>{number}00</id><timestamp>2024-01-0{number % 9 + 1}T00:00:00Z</timestamp><model>wikitext</model>
      <text xml:space="preserve">{text}</text></revision>
  </page>
"""


def read(path, intake=None):
    return list(read_documents(Source(path=str(path)), intake or Intake()))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("'''Bold''' and ''italic'' [[word]]s, [[Other page|shown]].", "Bold and italic words, shown."),
        ("A<ref name=x>see [[B]] {{cite|a=b}}</ref> b<ref name=x />.", "A b."),
        ("{{Infobox|a={{b|c}}|d=[[e|f]]}}\nText.", "Text."),
        ("{| class=x\n! h\n|-\n| {{a}} || [[b]]\n{|\n| inner\n|}\n|}\nAfter.", "After."),
        ("[[File:a.png|thumb|A [[cat]] of {{x}}]]Text [[category:c]][[Image:b.jpg]]", "Text"),
        ("== One ==\ntext\n=== Two ===\nmore\n== Empty ==\n", "## One\ntext\n### Two\nmore"),
        ("* a\n* b\n** c\n# x\n# y\n; term\n: said", "- a\n- b\n  - c\n1. x\n2. y\nterm\nsaid"),
        ("<nowiki>[[no]] ''link''</nowiki> a &lt;b&gt;", "[[no]] ''link'' a <b>"),
        ("x <math>\\frac{a}{b} < 1</math> y", "x $\\frac{a}{b} < 1$ y"),
        ("10<sup>5</sup> H<sub>2</sub>O x<sup>ab</sup>", "10⁵ H₂O x^{ab}"),
        ("{{convert|5|km|mi}} ({{lang-fr|le mot}}; {{IPA|x}}), {{nowrap|so far}}.", "5 km (le mot; x), so far."),
        ("Born ({{birth|x}}; 1900) in ({{x}}) Rome {{fact}}.", "Born (1900) in Rome."),
        ("[http://a.b/c The site] [https://d.e] [[de:Wort]] [[:Category:Things]]", "The site Category:Things"),
        ("a <!-- hidden {{ [[ --> b", "a b"),
        ("a {{open and [[half", "a {{open and [[half"),
        ("a }} b ]] c |} d", "a }} b ]] c |} d"),
        ("__NOTOC__\n----\nText<br/>line", "Text\nline"),
        ("<pre>\n  kept {{as}} is\n</pre>", "  kept {{as}} is"),
        ("#REDIRECT is not at the begin", "1. REDIRECT is not at the begin"),
    ],
)  # fmt: skip
def test_marks_go_and_words_stay(source, text):
    assert plain_text(source) == text


@pytest.mark.parametrize(
    "piece",
    [
        "{{",
        "[[",
        "{|\n",
        "<ref>",
        "<math>",
        "<!--",
        "[[a|",
        "{{a|b",
        "''",
        "<",
        "[http://",
        "==",
        "* ",
        "(,",
        "\n#",
        "&amp",
        "}}",
        "<sup>",
    ],
)
def test_endless_marks_take_linear_time(piece):
    begin = time.process_time()
    plain_text(piece * (400_000 // len(piece)))
    assert time.process_time() - begin < 4


@pytest.mark.parametrize("pack", [lambda raw: raw, bz2.compress, gzip.compress])
def test_articles_keep_their_ids_and_what_is_left_out_is_counted(tmp_path, pack):
    ending = {bz2.compress: ".bz2", gzip.compress: ".gz"}.get(pack, "")
    path = tmp_path / f"dewiki-pages-articles.xml{ending}"
    text = (
        HEAD
        + page(1, "Ein '''Wort'''. [[Datei:x.jpg|mini]] [[Kategorie:Y]]\n== Teil ==\nMehr.")
        + page(2, "#WEITERLEITUNG [[x]]", more='<redirect title="x" />')
        + page(3, "Vorlage", ns=10)
        + page(4, "{{nur}}")
        + "</mediawiki>"
    )
    path.write_bytes(pack(text.encode()))
    intake = Intake()
    (found,) = read(path, intake)
    assert (found.id, found.text) == ("dewiki:1", "Ein Wort.\n## Teil\nMehr.")
    assert found.licence == "CC-BY-SA-4.0"
    assert found.meta == {
        "title": "Das Blatt 1",
        "date": "2024-01-02T00:00:00Z",
        "page_id": "1",
        "revision_id": "100",
        "url": "https://de.wikipedia.org/wiki/Das_Blatt_1",
        "language": "de",
        "sections": [[2, "Teil"]],
        "group": "dewiki:1",
    }
    assert intake.skipped == {"redirects": 1, "pages of other namespaces": 1, "pages without text": 1}
    assert intake.formats == {"wikipedia": 1}


def test_of_a_page_with_its_history_the_newest_revision_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(wikipedia, "ELEMENT_BYTES", 200_000)  # of one revision, not of the page
    revisions = [
        f"<revision><id>{n}</id><timestamp>20{year:02}-01-01T00:00:00Z</timestamp><model>wikitext</model>"
        f"<text>{f'State {n}. ' * 8000}</text></revision>"
        for n, year in enumerate((10, 12, 19, 15, 11, 13))
    ]
    history = f"<page><title>A</title><ns>0</ns><id>7</id>{''.join(revisions)}</page>"
    path = tmp_path / "dewiki-pages-meta-history.xml"
    path.write_text(HEAD + history + page(8, "Ein Wort.") + "</mediawiki>")
    intake = Intake()
    first, second = read(path, intake)
    assert first.text.startswith("State 2. ") and "State 3" not in first.text
    assert (first.meta["revision_id"], first.meta["date"], first.id) == ("2", "2019-01-01T00:00:00Z", "dewiki:7")
    assert (second.id, second.text) == ("dewiki:8", "Ein Wort.")
    assert intake.skipped == {"older revisions of pages": 5}


@pytest.mark.parametrize("ending", [".xml", ".xml.bz2"])
def test_parts_give_what_the_whole_gives(tmp_path, ending):
    path = tmp_path / f"dump{ending}"
    pages = [page(number, f"Text {number}. " * 50) for number in range(1, 60)]
    if ending == ".xml":
        path.write_text(HEAD + "".join(pages) + "</mediawiki>")
    else:
        groups = ["".join(pages[at : at + 10]) for at in range(0, len(pages), 10)]
        path.write_bytes(b"".join(bz2.compress(part.encode()) for part in [HEAD, *groups, "</mediawiki>"]))
    whole = [(found.id, found.text) for found in read(path)]
    spans = list(wikipedia.spans(InputFile(path, path.name), 1000 if ending == ".xml" else 200))
    parts = [
        (found.id, found.text)
        for span in spans
        for found in wikipedia.documents(InputFile(path, path.name, span), Intake())
    ]
    assert len(spans) > 2
    assert len(whole) == 59
    assert parts == whole


@pytest.mark.skipif(not DUMP.is_dir(), reason="the sample dump is not here")
def test_a_real_dump():
    intake = Intake()
    found = read(DUMP, intake)
    assert len(found) == 106
    assert intake.skipped == {"redirects": 99, "pages of other namespaces": 1}
    first = found[0]
    assert (first.id, first.meta["revision_id"], first.meta["title"]) == ("enwiki:12", "716551092", "Anarchism")
    assert first.text.startswith("Anarchism is a political philosophy that advocates self-governed societies based on")
    outside = [text for document in found for text in document.text.split("$")[::2]]
    assert sum(text.count("[[") + text.count("<ref") + text.count("{|") for text in outside) == 0
    assert sum(len(document.text) for document in found) > 2_900_000
