"""From a document to everything it went into: a real chain from pages to a tuned model."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trivium.artifacts.lineage_documents import render_takedown, render_trace, trace_document
from trivium.artifacts.record import parent_of
from trivium.artifacts.writer import write_artifact
from trivium.cli.main import app
from trivium.data.pipeline import run_pipeline
from trivium.errors import DataError
from trivium.tokenizers.train import train_bpe

WORDS = [f"word{n}" for n in range(40)]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Pages -> corpus -> tokenizer -> tokens -> a model of two updates -> its evaluation; another corpus beside it."""
    from trivium.drivers.single import train

    folder = tmp_path_factory.mktemp("world")
    draw = random.Random(0)
    rows = [{"id": f"page {n}", "text": " ".join(draw.choices(WORDS, k=60))} for n in range(40)]
    rows += [{"id": "copy", "text": rows[3]["text"]}, {"id": "blank", "text": " "}]
    for name, some in (("pages", rows), ("others", rows[30:35])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    steps = ["clean", "exact", {"name": "split", "validation": 0.2}]
    corpus = run_pipeline(
        {"output": str(folder / "corpora/web"), "sources": [str(folder / "pages.jsonl")], "steps": steps, "workers": 1}
    ).folder
    run_pipeline({"output": str(folder / "corpora/other"), "sources": [str(folder / "others.jsonl")], "workers": 1})
    train_file = corpus / "documents.train.jsonl"
    with write_artifact(folder / "tokenizer", kind="tokenizer", parents=[parent_of(train_file, "documents")]) as place:
        train_bpe([" ".join(WORDS)], vocab_size=320).save(place)
    train(
        {
            "name": "small",
            "runs": str(folder / "runs"),
            "method": "clm",
            "model": {"preset": "gpt2-1m", "config": {"vocab_size": 320, "num_layers": 1, "hidden_size": 32}},
            "tokenizer": str(folder / "tokenizer"),
            "data": {
                "train": str(train_file),
                "validation": str(corpus / "documents.validation.jsonl"),
                "sequence_length": 64,
            },
            "train": {"steps": 2, "batch_size": 2, "compile": "off", "threads": 1},
        }
    )
    return folder


def ids(world: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (world / f"corpora/web/documents.{split}.jsonl").read_text().splitlines()]


def touched(world: Path, document: str) -> dict[str, tuple[str, str]]:
    trace = trace_document(document, [world])
    return {Path(seen.path).relative_to(world).as_posix(): (seen.kind, seen.knowledge) for seen in trace.touched}


def test_what_a_training_document_went_into(world):
    document = ids(world, "train")[0]
    found = touched(world, document["id"])
    assert found["corpora/web"] == ("documents", "holds it")
    assert found["tokenizer"] == ("tokenizer", "was made from what holds it")
    assert found["runs/small/final"] == ("model", "may have seen it"), "two updates are no pass over the corpus"
    tokens = {value for name, value in found.items() if ".cache" in name}
    assert tokens == {("tokens", "holds it"), ("tokens", "was made from what holds it")}, (
        "and held-out ones, by the tokenizer"
    )
    assert "corpora/other" not in found
    assert touched(world, document["meta"]["sha256"]) == found
    text = render_trace(trace_document(document["id"], [world]))
    assert "passes over it" in text
    order = list(found)
    assert order.index("corpora/web") < order.index("tokenizer") < order.index("runs/small/final")


def test_a_held_out_document_was_only_measured_on(world):
    found = touched(world, ids(world, "validation")[0]["id"])
    assert found["runs/small/final"] == ("model", "was measured on it")
    assert "tokenizer" not in found


def test_the_same_text_elsewhere_and_copies(world):
    other = json.loads((world / "corpora/other/documents.train.jsonl").read_text().splitlines()[0])
    assert {"corpora/web", "corpora/other"} <= set(touched(world, other["id"]))
    trace = trace_document("copy", [world])
    assert any("merged" in line for line in trace.left_out)
    assert trace.touched[0].kind == "documents", "the text is there under the id of its twin"
    blank = trace_document("blank", [world])
    assert blank.touched == []
    assert "dropped: empty text" in blank.left_out[0]
    with pytest.raises(DataError, match="no corpus here knows"):
        trace_document("nobody", [world])


def test_a_whole_pass_is_certain(world):
    path = world / "runs/small/data.json"
    before = path.read_text()
    data = json.loads(before)
    for source in data["train"]["sources"]:
        source["epochs"] = 1.5
    path.write_text(json.dumps(data))
    assert touched(world, ids(world, "train")[0]["id"])["runs/small/final"][1] == "has seen it"
    path.write_text(before)


def test_takedown_and_the_command(world):
    document = ids(world, "train")[0]
    text = render_takedown(trace_document(document["id"], [world]))
    lines = text.splitlines()
    assert "pages.jsonl:" in lines[1]
    assert "make again: documents" in lines[2]
    assert any("trivium train" in line and "small/config.yaml" in line for line in lines)
    run = CliRunner().invoke(app, ["lineage", str(world), "--document", document["id"], "--takedown"])
    assert run.output.strip() == text
    run = CliRunner().invoke(app, ["lineage", str(world), "--document", document["id"], "--json"])
    assert json.loads(run.output)["touched"]
    run = CliRunner().invoke(app, ["lineage", str(world / "runs/small/final")])
    assert "corpora/web" in run.output
    assert CliRunner().invoke(app, ["lineage", str(world), "--takedown"]).exit_code != 0
