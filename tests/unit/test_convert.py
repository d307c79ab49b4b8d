"""Conversion between all shapes and kinds of files: what can be kept is kept, what cannot is an error with its row."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from trivium.cli.data import app
from trivium.data.convert import TARGETS, convert
from trivium.data.intake import Intake, Row
from trivium.data.reading import read_rows
from trivium.data.shapes import read_item, shape_of, texts_of
from trivium.data.validate import validate
from trivium.errors import DataError
from trivium.recipe import Source

DATA = Path(os.environ.get("TRIVIUM_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
USER, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
OTHER = {"role": "assistant", "content": "No."}
TALK = [USER, ANSWER]

EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "messages": [{"messages": TALK}, {"messages": TALK, "tools": [{"type": "function", "function": {"name": "f"}}]}],
    "sharegpt": [{"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}],
    "alpaca": [
        {"instruction": "Why?", "input": "", "output": "So."},
        {"instruction": "And?", "input": "x", "output": "y", "system": "Be kind.", "history": [["Why?", "So."]]},
    ],
    "prompt_completion": [{"prompt": "Why?", "completion": " So."}, {"prompt": [USER], "completion": [ANSWER]}],
    "preferences": [
        {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
        {"chosen": TALK, "rejected": [USER, OTHER]},
        {"chosen": "\n\nHuman: Why?\n\nAssistant: So.", "rejected": "\n\nHuman: Why?\n\nAssistant: No."},
        {"instruction": "Why?", "input": "", "chosen": "So.", "rejected": "No."},
        {
            "conversations": [{"from": "human", "value": "Why?"}],
            "chosen": {"from": "gpt", "value": "So."},
            "rejected": {"from": "gpt", "value": "No."},
        },
    ],
    "ranked": [{"prompt": "Why?", "responses": ["So.", "No.", "Eh."], "ranking": [[1], [0, 2]]}],
    "ratings": [{"instruction": "Why?", "generations": ["So.", "No."], "ratings": [4, 2.5]}],
    "ultrafeedback": [
        {
            "instruction": "Why?",
            "completions": [{"response": "So.", "overall_score": 4}, {"response": "No.", "overall_score": 4}],
        }
    ],
    "openassistant": [{"text": "Why?", "replies": [{"text": "So.", "rank": 0}, {"text": "No.", "rank": 1}]}],
    "argilla": [
        {
            "prompt": "Why?",
            "response-1": "So.",
            "response-2": "No.",
            "ranking": [{"value": "response-2", "rank": 1}, {"value": "response-1", "rank": 2}],
        }
    ],
    "comparison": [
        {"prompt": "Why?", "response 1": "So.", "response 2": "No.", "label": 2},
        {"conversation_a": TALK, "conversation_b": [USER, OTHER], "winner": "model_b"},
    ],
    "kto": [
        {"prompt": "Why?", "completion": "So.", "label": True},
        {"messages": TALK, "label": False},
        {"instruction": "Why?", "input": "", "output": "So.", "kto_tag": "true"},
    ],
    "questions": [{"context": "It is so.", "question": "Why?", "answers": {"text": ["so"], "answer_start": [6]}}],
    "tags": [{"tokens": ["Ada"], "ner_tags": ["PER"]}],
    "translation": [{"translation": {"en": "Why?", "de": "Warum?"}}],
    "pairs": [{"source": "Why?", "target": "Warum?"}, {"document": "Long.", "summary": "Short."}],
    "labels": [{"text": "Fine.", "label": "good"}, {"premise": "A.", "hypothesis": "B.", "label": 1}],
    "prompts": [{"prompt": "Why?", "answer": "So."}],
    "text": [{"text": "It is so."}],
}  # fmt: skip


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [row.values for row in read_rows(Source(path=str(path)), Intake())]


def converted(folder: Path, rows: Sequence[Any], to: str, **settings: Any) -> list[dict[str, Any]]:
    convert([Source(path=str(write(folder / "in.jsonl", rows)))], folder / "out.jsonl", to=to, **settings)
    return read(folder / "out.jsonl") if (folder / "out.jsonl").stat().st_size else []


@pytest.mark.parametrize("shape", EXAMPLES)
def test_shapes_are_recognised(shape: str) -> None:
    for values in EXAMPLES[shape]:
        assert shape_of(Row(values, "here", "here")) == shape


def test_unknown_shape_names_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'prompt'"):
        shape_of(Row({"promt": "x", "completon": "y"}, "here", "here"))


SAME = {
    "messages": "sharegpt", "sharegpt": "messages", "alpaca": "messages", "prompt_completion": "messages",
    "preferences": "ranked", "kto": "kto", "pairs": "pairs", "labels": "labels", "text": "text",
    "ranked": "preferences",
}  # fmt: skip


@pytest.mark.parametrize("shape", SAME)
def test_there_and_back_is_the_same(shape: str, tmp_path: Path) -> None:
    for values in EXAMPLES[shape]:
        there = converted(tmp_path, [{**values, "id": 7, "mine": [1]}], SAME[shape])
        assert all(row["id"] == 7 and row["mine"] == [1] for row in there)
        back = converted(tmp_path, there, shape)
        first, second = (read_item(Row(row, "x", "x"), shape) for row in (values, back[0]))
        assert len(back) == 1
        if shape == "prompt_completion" and isinstance(values["prompt"], str):  # plain text became a conversation
            assert [*texts_of(first[1])] == [*texts_of(second[1])]
        elif shape == "ranked":  # the better answers first
            assert tiers_of(values) == tiers_of(back[0])
        else:
            assert first[1] == second[1]


def tiers_of(row: dict[str, Any]) -> list[set[str]]:
    return [{row["responses"][number] for number in tier} for tier in row["ranking"]]


def test_each_target_from_what_it_can_say(tmp_path: Path) -> None:
    alpaca = EXAMPLES["alpaca"]
    assert converted(tmp_path, alpaca, "messages")[1]["messages"] == [
        {"role": "system", "content": "Be kind."}, *TALK, {"role": "user", "content": "And?\nx"},
        {"role": "assistant", "content": "y"},
    ]  # fmt: skip
    assert converted(tmp_path, [{"messages": TALK}], "prompt_completion") == [
        {"prompt": [USER], "completion": [ANSWER]}
    ]
    assert converted(tmp_path, [{"messages": TALK}], "pairs") == [{"source": "Why?", "target": "So."}]
    assert converted(tmp_path, EXAMPLES["translation"], "prompt_completion") == [
        {"prompt": "Why?", "completion": "Warum?"}
    ]
    assert converted(tmp_path, EXAMPLES["ratings"], "preferences") == [
        {"prompt": "Why?", "chosen": "So.", "rejected": "No.", "chosen_rating": 4.0, "rejected_rating": 2.5}
    ]
    assert converted(tmp_path, EXAMPLES["ultrafeedback"], "ranked")[0]["ranking"] == [[0, 1]]
    assert converted(tmp_path, EXAMPLES["argilla"], "ranked")[0]["responses"] == ["No.", "So."]
    assert converted(tmp_path, EXAMPLES["comparison"], "ranked")[1] == {
        "prompt": [USER], "responses": [[ANSWER], [OTHER]], "ranking": [[1], [0]],
    }  # fmt: skip


CALLED = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CALL = {"role": "assistant", "content": "", "tool_calls": [CALLED]}
RESULT = {"role": "tool", "content": "2"}


def test_tools_survive_sharegpt(tmp_path: Path) -> None:
    row = {"messages": [USER, CALL, RESULT, {**ANSWER, "train": False}, USER, ANSWER]}
    there = converted(tmp_path, [row], "sharegpt")
    assert [message["from"] for message in there[0]["conversations"]][:3] == ["human", "function_call", "observation"]
    assert converted(tmp_path, there, "messages") == [row]


@pytest.mark.parametrize(
    ("values", "to", "what", "instead"),
    [
        ({"prompt": "a", "completion": "b", "label": False}, "messages", "whether an answer is good", []),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "alpaca", "which answer is better",
         [{"instruction": "a", "input": "", "output": "b"}]),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "kto", "which answer is better than which",
         [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "completion": "c", "label": False}]),
        ({"prompt": "a", "responses": ["b", "c"], "ranking": [[0, 1]]}, "preferences", "equally good", []),
        ({"messages": [*TALK, *TALK]}, "prompt_completion", "earlier answers are trained",
         [{"prompt": [*TALK, USER], "completion": [ANSWER]}]),
        ({"messages": [*TALK, *TALK]}, "pairs", "more than one question", [{"source": "Why?", "target": "So."}]),
        ({"messages": [USER, CALL, RESULT, ANSWER]}, "alpaca", "tools, or turns", None),
        ({"messages": TALK}, "text", "who speaks", [{"text": "Why?\n\nSo."}]),
        ({"prompt": "a", "completion": "b"}, "text", "where the prompt ends", [{"text": "ab"}]),
        ({"text": "a", "label": "b"}, "text", "the label", [{"text": "a"}]),
        ({"text": "a"}, "messages", "what these rows say", None),
        ({"messages": TALK}, "labels", "no label", None),
        ({"messages": TALK}, "preferences", "nothing to prefer", None),
    ],
)  # fmt: skip
def test_what_cannot_be_said(tmp_path: Path, values: Any, to: str, what: str, instead: Any) -> None:
    with pytest.raises(DataError, match=what) as error:
        converted(tmp_path, [values], to)
    assert "in.jsonl:1" in str(error.value) and not (tmp_path / "out.jsonl").exists()
    if instead is None:
        with pytest.raises(DataError, match=what):
            converted(tmp_path, [values], to, lossy=True)
    else:
        assert converted(tmp_path, [values], to, lossy=True) == instead


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=6).filter(lambda levels: len(set(levels)) > 1))
def test_ranked_lists_with_ties_survive_pairs(levels: list[int]) -> None:
    import tempfile

    tiers = [[n for n, level in enumerate(levels) if level == wanted] for wanted in sorted(set(levels))]
    row = {"prompt": "Why?", "responses": [f"answer {n}" for n in range(len(levels))], "ranking": tiers, "id": "x"}
    with tempfile.TemporaryDirectory() as folder:
        pairs = converted(Path(folder), [row, {**row, "id": "y"}], "preferences")
        back = converted(Path(folder), pairs, "ranked")

    assert [(one["id"], tiers_of(one)) for one in back] == [("x", tiers_of(row)), ("y", tiers_of(row))]


def test_pairs_that_contradict_each_other(tmp_path: Path) -> None:
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    with pytest.raises(DataError, match="do not make one order"):
        converted(tmp_path, [pair, {**pair, "chosen": "b", "rejected": "a"}], "ranked")
    with pytest.raises(DataError, match="do not make one order"):
        converted(
            tmp_path,
            [pair, {**pair, "chosen": "b", "rejected": "c"}, {**pair, "chosen": "c", "rejected": "d"}],
            "ranked",
        )


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"prompt": "a", "responses": ["b", "c"], "ranking": [[0], [0]]}, "does not name each answer once"),
        ({"prompt": "a", "responses": ["b"], "ranking": [[0]]}, "at least two answers"),
        ({"prompt": "a", "responses": ["b", ""], "ranking": [[0], [1]]}, "is empty"),
        ({"prompt": "a", "generations": ["b", "c"], "ratings": [1]}, "one number for each"),
        ({"prompt": "a", "generations": ["b", "c"], "ratings": [1, "x"]}, "is no number"),
        ({"prompt": "a", "response_a": "b", "response_b": "c", "winner": "nobody"}, "which answer is better"),
        ({"text": "a", "label": ""}, "label is empty"),
        ({"completions": [{"response": "b", "score": 1}, {"response": "c", "score": 2}]}, "has no prompt"),
        (
            {"prompt": "a", "completions": [{"response": "b", "score": 1}, None]},
            "a completion is no object but nothing",
        ),
        ({"prompt": "a", "replies": [{"text": "b", "rank": 0}, "c"]}, "a reply is no object but text"),
        ({"prompt": "a", "b": "b", "ranking": [{"value": "b", "rank": 1}, 2]}, "a rank is no object but a number"),
        ({"context": "c", "question": "q"}, "are not converted"),
        ({"messages": TALK, "prompt": "mine", "x": 1}, "has a field 'prompt' already"),
    ],
)
def test_rows_that_cannot_be_read(tmp_path: Path, values: Any, problem: str) -> None:
    to = "prompt_completion" if "messages" in values else "ranked"
    with pytest.raises(DataError, match=problem) as error:
        converted(tmp_path, [values], to)
    assert len(str(error.value).splitlines()) <= 5
    account = convert([Source(path=str(tmp_path / "in.jsonl"))], tmp_path / "out.jsonl", to=to, on_error="quarantine")
    assert (account.read, account.written, sum(account.quarantined.values())) == (1, 0, 1)


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv", ".parquet"])
def test_kinds_of_files(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("pyarrow")
    rows = [
        {"messages": TALK, "tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": {}}}}]},
        {"messages": [USER, CALL, RESULT, {**ANSWER, "train": False}, USER, ANSWER]},
        {"messages": [{"role": "user", "content": 'a "quoted", \n line\t\u00e9'}, ANSWER]},
    ]
    out = tmp_path / f"out{ending}"
    account = convert([Source(path=str(write(tmp_path / "in.jsonl", rows)))], out, to="messages")
    assert (account.read, account.written, dict(account.shapes)) == (3, 3, {"messages": 3})
    convert([Source(path=str(out))], tmp_path / "back.jsonl", to="messages")
    assert read(tmp_path / "back.jsonl") == rows
    if ending == ".jsonl.gz":
        assert gzip.decompress(out.read_bytes()).count(b"\n") == 3


def test_the_end_of_the_name_says_what_is_written(tmp_path: Path) -> None:
    source = Source(path=str(write(tmp_path / "in.jsonl", [{"a": 1, "b": 2}])))
    convert([source], tmp_path / "was.tsv.csv")
    assert (tmp_path / "was.tsv.csv").read_text() == "a,b\n1,2\n"


def test_kinds_of_files_for_other_shapes(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for shape, to in (("ranked", "ranked"), ("kto", "kto"), ("preferences", "preferences")):
        for ending in (".csv", ".parquet", ".json"):
            source = Source(path=str(write(tmp_path / "in.jsonl", EXAMPLES[shape][:1])))
            convert([source], tmp_path / f"out{ending}", to=to)
            convert([Source(path=str(tmp_path / f"out{ending}"))], tmp_path / "back.jsonl", to=to)
            assert read(tmp_path / "back.jsonl") == EXAMPLES[shape][:1]


def test_unknown_targets_and_files(tmp_path: Path) -> None:
    source = Source(path=str(write(tmp_path / "in.jsonl", EXAMPLES["text"])))
    with pytest.raises(DataError, match="did you mean messages"):
        convert([source], tmp_path / "out.jsonl", to="mesages")
    with pytest.raises(DataError, match="kind of file to write"):
        convert([source], tmp_path / "out.docx")
    (tmp_path / "page.txt").write_text("Just text.\n")
    convert([Source(path=str(tmp_path / "page.txt"))], tmp_path / "out.jsonl", to="text")
    assert read(tmp_path / "out.jsonl")[0]["text"].strip() == "Just text."


def test_validate(tmp_path: Path) -> None:
    rows: list[Any] = [
        *EXAMPLES["messages"][:1], {"messages": []}, {"messages": [{"role": "usr", "content": "x"}]},
        {"prompt": "a", "chosen": "b", "rejected": "b"}, *EXAMPLES["text"], *EXAMPLES["messages"][:1],
    ]  # fmt: skip
    path = write(tmp_path / "in.jsonl", rows)
    with path.open("a") as file:
        file.write("not json\n")
    found = validate(Source(path=str(path)), limit=2)
    assert (found.rows, found.wrong, found.repeated) == (7, 4, 1)
    assert dict(found.shapes) == {"messages": 2, "text": 1}
    assert [where.rpartition("/")[2] for where, _ in found.problems] == ["in.jsonl:2", "in.jsonl:3, messages 1"]
    assert any("several shapes" in note for note in found.notes)
    assert validate(Source(path=str(path)), shape="messages").wrong == 5
    assert validate(Source(path=str(path)), shape="tags").wrong == 7


def test_command_line(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", EXAMPLES["alpaca"])
    runner = CliRunner()
    result = runner.invoke(app, ["convert", str(path), str(tmp_path / "out.parquet"), "--to", "messages", "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout)["written"] == 2
    assert runner.invoke(app, ["validate", str(path)]).exit_code == 0
    path.write_text('{"instruction": "", "output": "x"}\n')
    result = runner.invoke(app, ["validate", str(path), "--json"])
    assert result.exit_code == 2 and json.loads(result.stdout)["files"][0]["wrong"] == 1


@pytest.mark.parametrize(
    ("file", "shape", "to", "lossy"),
    [
        ("alpaca_1k/train.jsonl", "alpaca", "messages", False),
        ("autoj_pairwise/test.jsonl.gz", "comparison", "ranked", False),
        ("autoj_pairwise/test.jsonl.gz", "comparison", "preferences", True),
        ("xquad_en", "questions", "", False),
    ],
)
def test_real_files(tmp_path: Path, file: str, shape: str, to: str, lossy: bool) -> None:
    if not (DATA / file).exists():
        pytest.skip("no shared data")
    source = Source(path=str(DATA / file), format="jsonl")
    found = validate(source) if (DATA / file).is_file() else None
    if found:
        assert found.shapes[shape] + found.wrong == found.rows > 900
    if to:
        account = convert([source], tmp_path / "out.jsonl", to=to, lossy=lossy, on_error="quarantine")
        assert account.read == account.written + sum(account.quarantined.values()) + sum(account.lost.values())


def test_every_target_is_written_by_something() -> None:
    assert set(TARGETS) <= {*EXAMPLES}
