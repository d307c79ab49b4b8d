"""Papers: JATS and PubMed records, LaTeX trees. References go, ids and sections and formulas stay."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from trivium.data.intake import Intake
from trivium.data.markup.latex import plain_text
from trivium.data.reading import read_documents
from trivium.errors import DataError
from trivium.recipe import Source

pytest.importorskip("lxml")

SHARED = Path(os.environ.get("TRIVIUM_SHARED_DATA", "../shared/data"))

ARTICLE = """<?xml version="1.0"?>
<!DOCTYPE article PUBLIC "-//NLM//DTD JATS (Z39.96) v1.0//EN" "JATS-archivearticle1.dtd">
<article xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:mml="http://www.w3.org/1998/Math/MathML" article-type="research-article">
<front><journal-meta><journal-title-group><journal-title>A Journal</journal-title></journal-title-group></journal-meta>
<article-meta><article-id pub-id-type="pmid">11</article-id><article-id pub-id-type="pmc">22</article-id>
<article-id pub-id-type="doi">10.1/x</article-id><title-group><article-title>On <italic>E. coli</italic></article-title></title-group>
<contrib-group><contrib contrib-type="author"><name><surname>Doe</surname><given-names>Jane</given-names></name></contrib></contrib-group>
<pub-date pub-type="epub"><day>2</day><month>8</month><year>2011</year></pub-date>
<permissions><license xlink:href="http://creativecommons.org/licenses/by/4.0/"><license-p>Open.</license-p></license></permissions>
<abstract><title>Abstract:</title><p>Short&#160;one.</p></abstract></article-meta></front>
<body><sec><title>Results</title><p>It grew [<xref ref-type="bibr" rid="b1">1</xref>,<xref ref-type="bibr" rid="b2">2</xref>] to
10<sup>5</sup><sup><xref ref-type="bibr" rid="b3">3</xref></sup>, see <xref ref-type="fig" rid="f1">Figure 1</xref>.
<mml:math><mml:mfrac><mml:mi>a</mml:mi><mml:msup><mml:mi>b</mml:mi><mml:mn>2</mml:mn></mml:msup></mml:mfrac></mml:math>
<inline-formula><alternatives><tex-math>\\documentclass{minimal}\\begin{document}$$x &lt; 1$$\\end{document}</tex-math><mml:math/></alternatives></inline-formula></p>
<fig id="f1"><label>Figure 1</label><caption><title>Growth</title><p>Of it.</p></caption><graphic/></fig>
<table-wrap><label>Table 1</label><caption><p>Counts</p></caption><table><tr><td>9</td></tr></table></table-wrap>
<sec><title>Deeper</title><list><list-item><p>one</p></list-item><list-item><p>two</p></list-item></list></sec></sec></body>
<back><ref-list><ref><mixed-citation>Somebody 1999</mixed-citation></ref></ref-list></back></article>
"""

RECORDS = """<?xml version="1.0"?><PubmedArticleSet>
<PubmedArticle><MedlineCitation><PMID>7</PMID><Article><Journal><JournalIssue><PubDate><Year>2018</Year><Month>May</Month>
</PubDate></JournalIssue><Title>J</Title></Journal><ArticleTitle>A title.</ArticleTitle><ELocationID EIdType="doi">10.1/y</ELocationID>
<Abstract><AbstractText Label="BACKGROUND">One.</AbstractText><AbstractText Label="METHODS">Two.</AbstractText></Abstract>
<AuthorList><Author><LastName>Doe</LastName><ForeName>Jane</ForeName></Author></AuthorList></Article></MedlineCitation></PubmedArticle>
<PubmedArticle><MedlineCitation><PMID>8</PMID><Article><ArticleTitle>None.</ArticleTitle></Article></MedlineCitation></PubmedArticle>
</PubmedArticleSet>"""


def read(path, intake=None, **options):
    return list(read_documents(Source(path=str(path), **options), intake or Intake()))


@pytest.mark.parametrize("name", ["a.nxml", "a.xml", "a"])
def test_an_article(tmp_path, name):
    (tmp_path / name).write_text(ARTICLE)
    (paper,) = read(tmp_path / name)
    assert paper.text.split("\n\n") == [
        "## Abstract",
        "Short one.",
        "## Results",
        "It grew to 10⁵, see Figure 1. $\\frac{a}{b^2}$ $x < 1$",
        "Figure 1. Growth. Of it.",
        "Table 1. Counts.",
        "### Deeper",
        "- one\n- two",
    ]
    assert (paper.id, paper.licence) == ("PMC22", "CC-BY-4.0")
    assert paper.meta == {
        "title": "On E. coli",
        "author": "Jane Doe",
        "date": "2011-08-02",
        "doi": "10.1/x",
        "pmid": "11",
        "pmcid": "PMC22",
        "journal": "A Journal",
        "sections": [[2, "Abstract"], [2, "Results"], [3, "Deeper"]],
        "group": "PMC22",
    }


def test_records_of_pubmed(tmp_path):
    (tmp_path / "a.xml").write_text(RECORDS)
    intake = Intake()
    (record,) = read(tmp_path, intake)
    assert record.id == "PMID:7"
    assert record.text == "## Background\n\nOne.\n\n## Methods\n\nTwo."
    assert (record.meta["date"], record.meta["doi"], record.meta["author"]) == ("2018-05", "10.1/y", "Jane Doe")
    assert intake.skipped == {"records without an abstract": 1}


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("A \\emph{word} and \\textbf{more \\textit{words}}. % gone\nNext~line", "A word and more words. Next line"),
        ("See \\cite{a} and~\\cite[p.~2]{b,c}, or Lemma~\\ref{l:x}.", "See and, or Lemma [l:x]."),
        ("50\\% of \\$5 \\& ``quoted'' a--b --- c\\ldots", "50% of $5 & “quoted” a–b — c…"),  # noqa: RUF001
        ("\\newcommand{\\R}{\\mathbb{R}}\\newcommand{\\x}[2][z]{<#1,#2>} $\\R$ \\x{b} \\x[a]{b}", "$\\mathbb{R}$ <z,b> <a,b>"),
        ("\\def\\abc#1{(#1)}\\abc{x} \\DeclareMathOperator{\\rank}{rk}$\\rank A$", "(x) $\\operatorname{rk} A$"),
        ("caf\\'e na\\\"{\\i}ve \\c{c}a \\v{S}koda \\o re \\ss", "café naïve ça Škoda øre ß"),
        ("\\section{One}\ntext\n\\subsection*{Two $x$}\nmore", "## One\n\ntext\n\n### Two $x$\n\nmore"),
        ("\\begin{itemize}\\item a\\item b\\end{itemize}", "- a\n- b"),
        ("\\begin{enumerate}\n\\item a\n\\item b\n\\end{enumerate}", "1. a\n2. b"),
        ("\\begin{verbatim}\nx % \\kept {\n\\end{verbatim}\\verb|$a$|", "x % \\kept {\n\n$a$"),
        ("x\n\\begin{equation}\\label{e}\na = b % no\n\\end{equation}\ny", "x\n$$a = b$$\ny"),
        ("\\begin{align*}a &= b\\\\ c &= d\\end{align*}", "$$\\begin{aligned} a &= b\\\\ c &= d \\end{aligned}$$"),
        ("\\begin{figure}\\includegraphics{x}\\caption{A \\emph{cat}.}\\end{figure}", "A cat."),
        ("\\begin{tabular}{ll}a & b\\end{tabular}End\\footnote{A note.}", "End (A note.)"),
        ("\\begin{thm}[Main]Yes.\\end{thm}\\begin{proof}No.\\end{proof}", "Theorem (Main). Yes.\n\nProof. No."),
        ("\\newtheorem{qq}{Question}\\begin{qq}Why?\\end{qq}", "Question. Why?"),
        ("\\href{http://x}{shown} \\url{http://y} \\index{gone}\\label{gone}.", "shown http://y."),
        ("{\\bf old} {\\it style} \\unknown{kept} \\mbox{in}", "old style kept in"),
        ("a } b { c \\emph{open", "a b c open"),
    ],
)  # fmt: skip
def test_latex(source, text):
    assert plain_text(source, "x.tex").text == text


@pytest.mark.parametrize(
    "piece",
    [
        "{",
        "}",
        "\\emph{",
        "$",
        "$x$",
        "\\begin{a}",
        "\\item ",
        "%",
        "\\x{",
        "[",
        "\\[",
        "\\'",
        "\\begin{align}",
        "\\newcommand{\\x}",
        "\\verb|",
    ],
)
def test_endless_latex_takes_linear_time(piece):
    begin = time.process_time()
    plain_text(piece * (400_000 // len(piece)), "x.tex")
    assert time.process_time() - begin < 4


def test_macros_without_end_are_refused():
    for source in ("\\def\\a{\\a}\\a", "\\def\\a{\\b\\b}\\def\\b{\\a\\a}\\a", "\\newcommand{\\a}[1]{\\a{#1#1}}\\a{x}"):
        with pytest.raises(DataError, match="expand without end"):
            plain_text(source, "x.tex")
    bomb = "".join(f"\\def\\{chr(97 + n)}{{{f'{chr(92)}{chr(98 + n)}' * 10}}}" for n in range(15)) + "\\def\\p{lol}\\a"
    with pytest.raises(DataError, match="expand without end"):
        plain_text(bomb, "x.tex")


def test_a_tree_is_one_document_and_stays_inside_itself(tmp_path):
    (tmp_path / "secret.tex").write_text("SECRET")
    tree = tmp_path / "tree" / "2101.00001"
    (tree / "parts").mkdir(parents=True)
    (tree / "main.tex").write_text(
        "\\documentclass{article}\\input{macros}\\title{The \\T}\\author{Jane Doe}\\begin{document}\\maketitle\n"
        "\\begin{abstract}Short.\\end{abstract}\\input{parts/one}\\include{parts/two.tex}% \\input{no}\n"
        "\\input{../../secret}\\input{/etc/hostname}\\input{missing}\\bibliography{x}\\end{document} after"
    )
    (tree / "macros.tex").write_text("\\newcommand{\\T}{Title}")
    (tree / "parts" / "one.tex").write_text("\\section{One}Text of one.\\input{parts/deeper}")
    (tree / "parts" / "deeper.tex").write_text(" Deeper.")
    (tree / "parts" / "two.tex").write_text("\\section{Two}Of two.")
    (tree / "parts" / "alone.tex").write_text("Nobody reads me in.")
    intake = Intake()
    alone, main = sorted(read(tmp_path / "tree", intake), key=lambda found: len(found.text))
    assert main.text == "## Abstract\n\nShort.\n\n## One\n\nText of one. Deeper.\n\n## Two\n\nOf two."
    assert (main.id, main.meta["title"], main.meta["author"]) == ("arxiv:2101.00001", "The Title", "Jane Doe")
    assert main.meta["sections"] == [[2, "Abstract"], [2, "One"], [2, "Two"]]
    assert alone.text == "Nobody reads me in."
    assert intake.skipped["part of another LaTeX document"] == 4
    assert intake.skipped["LaTeX files that are read in and are not here"] == 3


def test_files_that_read_each_other_in(tmp_path):
    (tmp_path / "a.tex").write_text("\\documentclass{x}\\begin{document}\\input{b}\\end{document}")
    (tmp_path / "b.tex").write_text("\\input{c}")
    (tmp_path / "c.tex").write_text("\\input{b}")
    with pytest.raises(DataError, match="read each other in without end"):
        read(tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the sample papers are not here")
def test_real_papers():
    papers = {paper.id: paper for paper in read(SHARED / "jats_xml")}
    assert len(papers) == 9
    phage = papers["PMC3166277"]
    assert phage.meta["title"] == "Factors influencing lysis time stochasticity in bacteriophage λ"
    assert (phage.licence, phage.meta["doi"]) == ("CC-BY-2.0", "10.1186/1471-2180-11-174")
    assert "This within-population variation can have far reaching life history consequences." in phage.text
    book = {part.id: part for part in read(SHARED / "latex_hott")}
    assert len(book) == 11
    basics = book["basics.tex"]
    assert basics.meta["sections"][0] == [2, "Homotopy type theory"]
    assert (
        "a space $X$ is a set of points equipped with a topology, and a path between points $x$ and $y$" in basics.text
    )
    assert "index" not in basics.text.split("$")[0]


# ruff: noqa: E501
