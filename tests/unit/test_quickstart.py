"""The main job at a size for tests: the same steps, artifacts and report, stopped and continued."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

import pytest

import trivium as tv
from tests.unit.test_run import interrupt_at
from trivium.artifacts.lineage import read_lineage, render_text
from trivium.artifacts.manifest import verify
from trivium.data.documents import Document
from trivium.data.questions import question_rows
from trivium.drivers.quickstart import Scale, compressors, quickstart
from trivium.errors import Interrupted

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def scale(tmp_path_factory: pytest.TempPathFactory) -> Scale:
    """Invented documentation of forty modules."""
    rng = random.Random(5)
    verbs, nouns = ["Return", "Remove", "Count", "Open", "Join"], ["list", "file", "word", "line", "path", "key"]
    path = tmp_path_factory.mktemp("docs") / "documents.jsonl"
    rows = []
    for module in range(40):
        for number in range(6):
            noun, verb = rng.choice(nouns), rng.choice(verbs)
            name, summary = (
                f"{verb.lower()}_{noun}{number}",
                f"{verb} the {noun} {rng.randrange(99)} of module {module}.",
            )
            extra = " ".join(rng.choices(nouns + verbs, k=rng.randrange(5, 60)))
            meta = {
                "module": f"m{module}",
                "name": name,
                "signature": f"{name}(x)",
                "summary": summary,
                "kind": "function",
            }
            text = f"Help on function {name} in module m{module}:\n\n{name}(x)\n    {summary}\n    {extra}\n"
            rows.append({"id": f"m{module}.{name}", "text": text, "meta": {**meta, "group": f"m{module}"}})
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    small = {"steps": 6, "batch_size": 4, "threads": 1, "sample_tokens": 4}
    return Scale(
        sources=(str(path),),
        vocab_size=400,
        preset="llama-1m",
        shape={"num_layers": 1},
        sequence_length=128,
        pretrain={**small, "lr": 1e-3},
        tune={**small, "lr": 1e-3},
        samples=2,
    )


def test_goes_from_text_to_a_tuned_model_and_a_report(scale: Scale, tmp_path: Path) -> None:
    result = quickstart(runs=tmp_path, scale=scale)
    folder = tmp_path / "quickstart"
    assert result.final == folder / "final" and result.report == folder / "report.html"
    for name in ("documents", "tokenizer", "questions", "evaluation", "final", "pretrain/final", "tune/final"):
        verify(folder / name)
    evaluation = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    assert evaluation["pretrain"]["bits_per_byte"] > 0 and evaluation["compressors"]["xz -9e"] > 0
    assert evaluation["pretrain"]["answers"]["loss"] != evaluation["tune"]["answers"]["loss"]
    page = result.report.read_text(encoding="utf-8")
    for expected in (f"{evaluation['pretrain']['bits_per_byte']:.3f}", "xz -9e", "Documents", "after tuning"):
        assert expected in page
    model = tv.load(result.final)
    assert isinstance(model.generate([{"role": "user", "content": "What does m1.x do?"}], max_new_tokens=4), str)
    past = render_text(read_lineage(result.final))
    assert all(word in past for word in ("tuned model", "base", "tokenizer", "documents"))


def test_held_out_modules_are_in_neither_training_set(scale: Scale, tmp_path: Path) -> None:
    quickstart(runs=tmp_path, scale=scale)
    folder = tmp_path / "quickstart"

    def modules(path: Path) -> set[str]:
        return {json.loads(line)["id"].split(".")[0] for line in path.read_text().splitlines()}

    held_out = modules(folder / "documents" / "documents.validation.jsonl")
    assert held_out and not held_out & modules(folder / "documents" / "documents.train.jsonl")
    asked = {
        json.loads(line)["document"].split(".")[0]
        for line in (folder / "questions" / "train.jsonl").read_text().splitlines()
    }
    assert not held_out & asked


def test_can_be_stopped_and_continued_without_doing_anything_twice(
    scale: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3, signal.SIGTERM)
        with pytest.raises(Interrupted):
            quickstart(runs=tmp_path, scale=scale)
    page = tmp_path / "quickstart" / "report.html"
    assert "not finished" in page.read_text(encoding="utf-8")
    capsys.readouterr()
    first = quickstart(runs=tmp_path, scale=scale)
    assert "continuing" in capsys.readouterr().err
    before = (first.final / "model.safetensors").read_bytes()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "quickstart").rglob("*.safetensors")}
    quickstart(runs=tmp_path, scale=scale)
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "quickstart").rglob("*.safetensors")}
    assert (first.final / "model.safetensors").read_bytes() == before
    calm = quickstart(runs=tmp_path / "calm", scale=scale)
    assert (calm.final / "model.safetensors").read_bytes() == before


def test_questions_come_from_the_documentation_and_are_stable() -> None:
    meta = {"module": "textwrap", "name": "dedent", "signature": "dedent(text)", "summary": "Remove common whitespace."}
    document = Document(id="textwrap.dedent", text="...", source="x", licence=None, meta=meta)
    rows = list(question_rows([document]))
    assert [row["messages"][1]["content"] for row in rows] == [
        "Remove common whitespace.",
        "`dedent(text)`",
        "dedent is in the module textwrap.",
    ]
    assert "textwrap.dedent" in rows[0]["messages"][0]["content"] and rows == list(question_rows([document]))


def test_compressors_are_measured_on_the_text() -> None:
    document = Document(id="a", text="abc " * 5000, source="x", licence=None, meta={})
    sizes = compressors(iter([document]))
    assert all(0 < size < 0.2 for size in sizes.values())
