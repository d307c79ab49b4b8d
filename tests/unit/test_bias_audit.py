"""Who lost documents: planted losses are found, chance is not flagged, and the figures are those of the textbooks."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from trivium.cli.main import app
from trivium.data.documents import Document
from trivium.data.safety.audit import Audit, Row, as_text, audit, of_pipeline, read_lists_by_kind, two_corpora
from trivium.data.safety.rates import adjusted, difference, p_value, wilson
from trivium.data.safety.topics import Topics
from trivium.errors import ArtifactError, ConfigError, DataError
from trivium.report.data_audit import audit_page

TOPICS = {
    "sea": "ship sail harbour captain storm anchor wave crew",
    "kitchen": "bread butter oven recipe flour sugar kitchen cook",
    "law": "court judge law trial witness lawyer verdict jury",
}


def corpus(count: int = 900) -> list[dict[str, Any]]:
    """Documents of three topics and two languages; every third mentions Muslims, every fifth disabled people."""
    source, rows = random.Random(5), []
    for number in range(count):
        words = source.choices(list(TOPICS.values())[number % 3].split(), k=30)
        words += ["muslim"] * (source.random() < 1 / 3) + ["wheelchair"] * (source.random() < 0.2)
        words += ["aye", "bairn"] * (source.random() < 0.1) + ["ken"] * (source.random() < 0.1)
        source.shuffle(words)
        meta = {"language": "en" if number % 2 else "de", "theme": list(TOPICS)[number % 3]}
        rows.append({"id": f"d{number}", "text": " ".join(words), "meta": meta})
    return rows


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def compared(tmp_path: Path, keep: Any, **options: Any) -> Audit:
    rows = corpus()
    before = written(tmp_path / "before.jsonl", rows)
    after = written(tmp_path / "after.jsonl", [row for row in rows if keep(row)])
    return audit(two_corpora(before, after), **options)


def row_of(result: Audit, name: str) -> Row:
    return next(row for row in result.rows if row.name == name)


def test_a_group_that_loses_more_is_flagged(tmp_path: Path) -> None:
    source = random.Random(1)
    result = compared(tmp_path, lambda row: source.random() > (0.5 if "muslim" in row["text"] else 0.2))
    found = row_of(result, "Muslims")
    assert found.flag == "more" and found.four_fifths and found.adjusted < 0.001
    assert found.low < 0.5 < found.high and found.difference_low < 0.3 < found.difference_high
    assert found.documents == sum("muslim" in row["text"] for row in corpus())
    assert row_of(result, "disabled people").flag == ""
    flagged = [row.name for row in result.rows if row.flag == "more" and row.kind == "group"]
    assert flagged == ["Muslims"]  # a topic may follow its words
    assert result.documents == 900 and result.lost == sum(row.lost for row in result.rows if row.kind == "language")


def test_chance_is_not_flagged(tmp_path: Path) -> None:
    flags = 0
    for seed in range(5):
        source = random.Random(seed)
        flags += sum(bool(row.flag) for row in compared(tmp_path, lambda row: source.random() > 0.3).rows)  # noqa: B023
    assert flags <= 1


def test_topics_are_clusters_or_a_field(tmp_path: Path) -> None:
    def keep(row: dict[str, Any]) -> bool:
        return row["meta"]["theme"] != "law"

    clusters = compared(tmp_path, keep, topics=3)
    worst = max((row for row in clusters.rows if row.kind == "topic"), key=lambda row: row.difference)
    assert set(worst.name.split()) <= set(TOPICS["law"].split()) and worst.share > 0.95 and worst.flag == "more"
    fields = compared(tmp_path, keep, topic_field="theme")
    assert {row.name: row.share for row in fields.rows if row.kind == "topic"} == {
        "law": 1.0,
        "sea": 0.0,
        "kitchen": 0.0,
    }
    assert not [row for row in compared(tmp_path, keep, topics=0).rows if row.kind == "topic"]


def test_dialects_need_two_markers_and_languages_their_field(tmp_path: Path) -> None:
    result = compared(tmp_path, lambda row: row["meta"]["language"] == "en")
    dialect = row_of(result, "Scots and Scottish English")
    assert dialect.documents == sum("bairn" in row["text"] for row in corpus())
    assert row_of(result, "de").share == 1.0 and row_of(result, "en").flag == "less"


def test_ones_own_lists_replace_the_built_in_ones(tmp_path: Path) -> None:
    lists = tmp_path / "lists.yaml"
    lists.write_text("groups: {sailors: [captain, crew]}\ntopics: {law: [judge], food: [bread]}\n")
    result = compared(tmp_path, lambda row: "judge" not in row["text"], lists=lists)
    assert {row.name for row in result.rows if row.kind == "group"} == {"sailors"}
    assert row_of(result, "law").flag == "more"
    lists.write_text("people: {a: [b]}\n")
    with pytest.raises(ConfigError, match="groups, dialects and topics"):
        read_lists_by_kind(lists)


def test_small_parts_are_named_and_not_compared(tmp_path: Path) -> None:
    result = compared(tmp_path, lambda row: row["id"] != "d0", least=500)
    assert "Muslims" in result.few["group"] and all(row.documents >= 500 for row in result.rows)


def test_a_document_made_from_another_keeps_it(tmp_path: Path) -> None:
    rows = corpus(60)
    before = written(tmp_path / "before.jsonl", rows)
    pieces = [{**row, "id": f"{row['id']}/1", "meta": {"parent": row["id"]}} for row in rows[:50]]
    result = audit(two_corpora(before, written(tmp_path / "after.jsonl", pieces)))
    assert result.lost == 10 and any("no document before has" in note for note in result.notes)


def test_corpora_that_have_nothing_in_common_are_refused(tmp_path: Path) -> None:
    before = written(tmp_path / "before.jsonl", corpus(30))
    after = written(tmp_path / "after.jsonl", [{"id": "other", "text": "x"}])
    with pytest.raises(DataError, match="no document of the corpus before"):
        audit(two_corpora(before, after))
    with pytest.raises(ArtifactError, match="not written by a pipeline"):
        of_pipeline(tmp_path)


def test_text_json_and_page_say_the_same(tmp_path: Path) -> None:
    rows = corpus(300)
    before = written(tmp_path / "before.jsonl", rows)
    after = written(tmp_path / "after.jsonl", [row for row in rows if "muslim" not in row["text"]])
    page = tmp_path / "audit.html"
    run = CliRunner().invoke(app, ["data", "audit", before, after, "--html", str(page), "--json"])
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert any(row["name"] == "Muslims" and row["flag"] == "more" and row["share"] == 1 for row in found["rows"])
    text = CliRunner().invoke(app, ["data", "audit", before, after]).stdout
    assert "Muslims" in text and "MORE" in text and "who wrote it" in text
    content = page.read_text(encoding="utf-8")
    assert "Muslims" in content and "more lost" in content and "<script" not in content
    lists = CliRunner().invoke(app, ["data", "audit", "--show-lists"]).stdout
    assert lists.startswith("# What")


def test_names_of_a_corpus_cannot_break_the_page(tmp_path: Path) -> None:
    rows = [{"id": str(n), "text": "a b", "meta": {"language": "<script>alert(1)</script>"}} for n in range(40)]
    rows += [{"id": f"x{n}", "text": "a b", "meta": {"language": "en"}} for n in range(40)]
    before = written(tmp_path / "before.jsonl", rows)
    result = audit(two_corpora(before, written(tmp_path / "after.jsonl", rows[40:])), topics=0)
    assert b"<script>" not in audit_page(result) and "<script>" in as_text(result)


# Figures


def test_intervals_are_those_of_the_papers() -> None:
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=2e-4)  # Newcombe 1998, table I
    assert wilson(0, 20)[0] == 0 and wilson(0, 0) == (0, 1)
    assert difference(56, 70, 48, 80) == pytest.approx(
        (0.2, 0.0524, 0.3339), abs=1e-4
    )  # Newcombe 1998, II, table II (a)
    assert difference(9, 10, 3, 10) == pytest.approx((0.6, 0.1705, 0.8090), abs=1e-4)


def test_probabilities_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for table in ((3, 10, 9, 12), (0, 8, 30, 200), (1, 5, 1, 900), (4, 4, 0, 4)):
        a, n, b, m = table
        assert p_value(*table) == pytest.approx(stats.fisher_exact([[a, n - a], [b, m - b]])[1], abs=1e-9)
    chi = stats.chi2_contingency([[60, 140], [90, 110]], correction=False)[1]
    assert p_value(60, 200, 90, 200) == pytest.approx(chi, rel=1e-9)
    assert adjusted([0.01, 0.04, 0.03, 0.5]) == pytest.approx(stats.false_discovery_control([0.01, 0.04, 0.03, 0.5]))
    assert p_value(0, 10, 0, 10) == 1 and p_value(5, 5, 0, 0) == 1


def test_topics_do_not_depend_on_the_order() -> None:
    documents = [Document(row["id"], row["text"], "x:1") for row in corpus(300)]
    assert Topics(documents, count=3).names == Topics(documents[::-1], count=3).names
    assert Topics([], count=3).of("anything") == "none"
