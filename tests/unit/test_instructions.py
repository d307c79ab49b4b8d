"""Instruction rows in every shape: the same conversation gives the same tokens, and what is wrong is named."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest

from trivium.data.batch import IGNORE
from trivium.data.dataset import open_dataset
from trivium.data.instructions import encode_row
from trivium.data.intake import Intake, Row
from trivium.data.loader import Loader
from trivium.errors import DataError
from trivium.recipe import ChatSettings, DataSection, Source
from trivium.tokenizers.tokenizer import Tokenizer
from trivium.tokenizers.train import train_bpe


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["What does it do? It adds two numbers together. " * 30], vocab_size=320)


def encode_all(tokenizer, values, *, shape="auto", intake=None, **chat):
    row = Row(values, "data.jsonl:3", "data.jsonl:3")
    return encode_row(row, tokenizer=tokenizer, shape=shape, intake=intake or Intake(), chat=ChatSettings(**chat))


def encode(tokenizer, values, **settings):
    (sample,) = encode_all(tokenizer, values, **settings)
    return sample


def trained(tokenizer, sample, sequence=0) -> str:
    ids, flags = sample.sequences[sequence].ids, sample.sequences[sequence].trained
    return tokenizer.decode([token for token, flag in zip(ids, flags, strict=True) if flag], skip_special=False)


def text(tokenizer, sample, sequence=0) -> str:
    return tokenizer.decode(sample.sequences[sequence].ids, skip_special=False)


ONE = "<|bos|><|system|>Be brief.<|user|>What?<|assistant|>It adds.<|eos|>"
SAME = {
    "messages": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What?"},
            {"role": "assistant", "content": "It adds."},
        ]
    },
    "parts": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "at?"}]},
            {"role": "assistant", "content": "It adds."},
        ]
    },
    "sharegpt": {
        "system": "Be brief.",
        "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "It adds."}],
    },
    "sharegpt with roles": {
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"role": "user", "content": "What?"},
            {"role": "assistant", "content": "It adds."},
        ]
    },
    "alpaca": {"system": "Be brief.", "instruction": "What?", "input": "", "output": "It adds."},
    "prompt and completion": {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}],
        "completion": [{"role": "assistant", "content": "It adds."}],
    },
    "as text in a table": {
        "messages": json.dumps(
            [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "What?"},
                {"role": "assistant", "content": "It adds."},
            ]
        )
    },
}


@pytest.mark.parametrize("name", SAME)
def test_every_shape_gives_the_same_tokens(tokenizer, name):
    sample = encode(tokenizer, SAME[name])
    assert text(tokenizer, sample) == ONE
    assert trained(tokenizer, sample) == "It adds.<|eos|>"
    assert sample.id == "data.jsonl:3"


def test_alpaca_input_and_history(tokenizer):
    row = {"instruction": "Add", "input": "1 2", "output": "3", "history": [["Hi", "Ho"]]}
    sample = encode(tokenizer, row)
    expected = "<|bos|><|user|>Hi<|assistant|>Ho<|eos|><|user|>Add\n1 2<|assistant|>3<|eos|>"
    assert text(tokenizer, sample) == expected
    assert trained(tokenizer, sample) == "Ho<|eos|>3<|eos|>"


def test_text_with_its_completion_needs_no_template(tokenizer):
    sample = encode(tokenizer, {"prompt": "What? ", "completion": "It adds."})
    assert text(tokenizer, sample) == "<|bos|>What? It adds.<|eos|>"
    assert trained(tokenizer, sample) == "It adds.<|eos|>"
    prompt = tokenizer.encode_prompt("What? ")
    assert sample.sequences[0].ids[: len(prompt)] == prompt


def test_only_the_completion_is_trained_in_lists(tokenizer):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    sample = encode(tokenizer, {"prompt": turns, "completion": [{"role": "assistant", "content": "d"}]})
    assert trained(tokenizer, sample) == "d<|eos|>"


TURNS = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d"},
]


def test_a_conversation_without_system_message_gets_the_one_of_the_recipe(tokenizer):
    sample = encode(tokenizer, {"messages": TURNS}, system="Be brief.")
    assert text(tokenizer, sample).startswith("<|bos|><|system|>Be brief.<|user|>a")
    own = encode(tokenizer, SAME["messages"], system="Be long.")
    assert text(tokenizer, own) == ONE
    intake = Intake()
    plain = encode(tokenizer, {"prompt": "What? ", "completion": "It adds."}, system="Be brief.", intake=intake)
    assert "brief" not in text(tokenizer, plain)
    assert intake.formats["text that no template frames gets no data.chat.system"] == 1


def test_the_last_answers_only(tokenizer):
    assert trained(tokenizer, encode(tokenizer, {"messages": TURNS}, train_on="last")) == "d<|eos|>"
    forced = [TURNS[0], {**TURNS[1], "train": True}, *TURNS[2:]]
    assert trained(tokenizer, encode(tokenizer, {"messages": forced}, train_on="last")) == "b<|eos|>d<|eos|>"


def test_each_answer_as_a_sample_of_its_own(tokenizer):
    first, second = encode_all(tokenizer, {"messages": TURNS}, train_on="each")
    assert (first.id, second.id) == ("data.jsonl:3#0", "data.jsonl:3#1")
    assert text(tokenizer, first) == "<|bos|><|user|>a<|assistant|>b<|eos|>"
    assert trained(tokenizer, first) == "b<|eos|>" and trained(tokenizer, second) == "d<|eos|>"
    assert text(tokenizer, second) == text(tokenizer, encode(tokenizer, {"messages": TURNS}))


def test_roles_that_are_trained(tokenizer):
    sample = encode(tokenizer, {"messages": TURNS}, train_on=["user"])
    assert trained(tokenizer, sample) == "ac"
    left_out = [{**TURNS[0], "train": False}, *TURNS[1:]]
    assert trained(tokenizer, encode(tokenizer, {"messages": left_out}, train_on=["assistant", "user"])) == (
        "b<|eos|>cd<|eos|>"
    )


def test_weights_of_messages_and_prompts(tokenizer):
    turns = [TURNS[0], {**TURNS[1], "weight": 0.5}, *TURNS[2:]]
    (sequence,) = encode(tokenizer, {"messages": turns}).sequences
    assert sequence.weights is not None
    values = dict(zip(sequence.ids, sequence.weights, strict=True))
    assert values[tokenizer.encode("b")[0]] == 0.5 and values[tokenizer.encode("d")[0]] == 1.0
    assert values[tokenizer.encode("a")[0]] == 0.0
    whole = [TURNS[0], {**TURNS[1], "train": False}, *TURNS[2:]]
    (sequence,) = encode(tokenizer, {"messages": whole}, prompt_loss_weight=0.25).sequences
    values = dict(zip(sequence.ids, sequence.weights, strict=True))
    assert [values[tokenizer.encode(letter)[0]] for letter in "abcd"] == [0.25, 0.0, 0.25, 1.0]
    (sequence,) = encode(tokenizer, {"prompt": "a", "completion": "b"}, prompt_loss_weight=0.25).sequences
    assert list(sequence.weights) == [0.25, 0.25, 1.0, 1.0] and all(sequence.trained)
    assert encode(tokenizer, {"messages": TURNS}).sequences[0].weights is None


def test_weights_reach_the_batch_through_cache_and_truncation(tokenizer, tmp_path):
    rows = [{"messages": TURNS}, {"messages": [TURNS[0], {**TURNS[1], "weight": 0.5}]}, {"messages": TURNS}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DataSection(train=str(path), sequence_length=9, truncation="right")
    plain = open_dataset(settings.train, kind="instructions", tokenizer=tokenizer, settings=settings)
    for _ in range(2):  # from the rows, then from the cache
        dataset = open_dataset(
            settings.train, kind="instructions", tokenizer=tokenizer, settings=settings, cache=tmp_path / "cache"
        )
        loader = Loader(dataset, rows=3, micro_rows=3, sequence_length=9, packing="none", seed=0, pad_rows=True)
        (batch,) = loader.update(0)
        weights = batch.fields["weights"]
        assert weights.shape == batch.targets.shape
        assert ((weights > 0) == (batch.targets != IGNORE)).all()
        assert sorted(set(weights.tolist())) == [0.0, 0.5, 1.0]
        assert dataset.fingerprint() == plain.fingerprint()
    other = settings.model_copy(update={"chat": ChatSettings(train_on="last")})
    changed = open_dataset(
        settings.train, kind="instructions", tokenizer=tokenizer, settings=other, cache=tmp_path / "cache"
    )
    assert changed.fingerprint() != plain.fingerprint()


@pytest.mark.parametrize("mark", [{"train": False}, {"weight": 0}])
def test_an_answer_can_be_left_out(tokenizer, mark):
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", **mark},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d", "weight": 1},
    ]
    assert trained(tokenizer, encode(tokenizer, {"messages": messages})) == "d<|eos|>"


CALLED = '<|assistant|><|tool_call|>{"name": "add", "arguments": {"a": 1}}<|eos|><|tool|>2<|assistant|>Two.<|eos|>'
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}


@pytest.mark.parametrize(
    "row",
    [
        {
            "messages": [
                {"role": "user", "content": "?"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
                    ],
                },
                {"role": "tool", "tool_call_id": "1", "content": "2"},
                {"role": "assistant", "content": "Two."},
            ],
            "tools": [TOOL],
        },
        {
            "messages": [
                {"role": "user", "content": "?"},
                {"role": "assistant", "function_call": {"name": "add", "arguments": '{"a": 1}'}},
                {"role": "tool", "content": "2"},
                {"role": "assistant", "content": "Two."},
            ],
            "tools": [TOOL],
        },
        {
            "conversations": [
                {"from": "human", "value": "?"},
                {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
                {"from": "observation", "value": "2"},
                {"from": "gpt", "value": "Two."},
            ],
            "tools": json.dumps([TOOL]),
        },
    ],
)
def test_tools(tokenizer, row):
    sample = encode(tokenizer, row)
    head = f"<|bos|><|system|>You can call these tools:\n{json.dumps(TOOL)}<|user|>?"
    assert text(tokenizer, sample) == head + CALLED
    assert trained(tokenizer, sample) == CALLED.replace("<|assistant|>", "").replace("<|tool|>2", "")


def test_two_questions_in_a_row_are_accepted(tokenizer):
    messages = [
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    assert trained(tokenizer, encode(tokenizer, {"messages": messages})) == "c<|eos|>"


def test_unused_fields_are_counted(tokenizer):
    intake = Intake()
    row = {"instruction": "a", "output": "b", "inptu": "c", "id": 7}
    encode(tokenizer, row, intake=intake)
    encode(tokenizer, row, intake=intake)
    assert intake.formats == {"alpaca": 2, "field 'inptu' is not used": 2}


def test_a_named_shape_is_kept_to(tokenizer):
    both = {**SAME["alpaca"], **SAME["messages"]}
    assert encode(tokenizer, both, shape="alpaca").sequences == encode(tokenizer, SAME["alpaca"]).sequences
    with pytest.raises(DataError, match="which the format sharegpt needs"):
        encode(tokenizer, both, shape="sharegpt")


U, A = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
BAD = {
    "no known fields": ({"text": "a"}, "none of the known shapes"),
    "misspelt field": ({"mesages": [U, A]}, "did you mean messages"),
    "messages is an object": ({"messages": U}, "must be a list"),
    "messages is empty": ({"messages": []}, "must be a list"),
    "message is text": ({"messages": ["hello"]}, "a message is an object, not text"),
    "no role": ({"messages": [{"content": "a"}, A]}, 'give every message a "role"'),
    "misspelt role": ({"messages": [U, {"role": "assistent", "content": "b"}]}, "did you mean assistant"),
    "sharegpt role in messages": ({"messages": [{"role": "human", "content": "a"}, A]}, "role of a message"),
    "role is a number": ({"messages": [{"role": 1, "content": "a"}, A]}, "role of a message"),
    "content is a number": ({"messages": [U, {"role": "assistant", "content": 5}]}, "no text but a number"),
    "content is an object": ({"messages": [{"role": "user", "content": {}}, A]}, "no text but an object"),
    "content is missing": ({"messages": [{"role": "user"}, A]}, "is empty"),
    "content is blank": ({"messages": [U, {"role": "assistant", "content": " \n"}]}, "is empty"),
    "content is an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, A]},
        "something other than text",
    ),
    "assistant first": ({"messages": [A, U, A]}, "begins with the assistant"),
    "assistant after system": ({"messages": [{"role": "system", "content": "x"}, A]}, "begins with the assistant"),
    "no answer": ({"messages": [U, U]}, "nothing to learn"),
    "tool without call": ({"messages": [U, {"role": "tool", "content": "1"}, A]}, "no tool was called"),
    "call without name": ({"messages": [U, {"role": "assistant", "tool_calls": [{}]}]}, "no function with a name"),
    "calls are an object": ({"messages": [U, {"role": "assistant", "tool_calls": {"a": 1}}]}, "are no list"),
    "arguments are not JSON": (
        {"messages": [U, {"role": "assistant", "function_call": {"name": "f", "arguments": "{a:1}"}}]},
        "not valid JSON",
    ),
    "arguments are a list": (
        {"messages": [U, {"role": "assistant", "function_call": {"name": "f", "arguments": "[1]"}}]},
        "are no object",
    ),
    "train is text": ({"messages": [U, {**A, "train": "no"}]}, '"train" is true or false'),
    "train on the user": ({"messages": [{**U, "train": True}, A]}, "only messages of the assistant"),
    "weight is negative": ({"messages": [U, {**A, "weight": -0.5}]}, '"weight" is a number from 0 on'),
    "weight of the user": ({"messages": [{**U, "weight": 0.5}, A]}, "only messages of the assistant"),
    "tools are text": ({"messages": [U, A], "tools": "add"}, "not valid JSON"),
    "tools are numbers": ({"messages": [U, A], "tools": [1]}, "must be a list of objects"),
    "end token spelt out": ({"messages": [U, {"role": "assistant", "content": "b<|eos|>"}]}, "written out"),
    "unknown sender": ({"conversations": [{"from": "humam", "value": "a"}]}, "did you mean human"),
    "no sender": ({"conversations": [{"value": "a"}]}, "sender of a message"),
    "sharegpt value is missing": (
        {"conversations": [{"from": "human"}, {"from": "gpt", "value": "b"}]},
        "message of the user is empty",
    ),
    "sharegpt call is not JSON": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "add(1)"}]},
        "not valid JSON",
    ),
    "alpaca without answer": ({"instruction": "a", "output": ""}, "'output' is empty"),
    "alpaca answer is a list": ({"instruction": "a", "output": ["b"]}, "no text but a list"),
    "alpaca history is no pair": ({"instruction": "a", "output": "b", "history": ["c"]}, "question, answer"),
    "empty prompt": ({"prompt": "", "completion": "b"}, "'prompt' is empty"),
    "mixed prompt and completion": ({"prompt": "a", "completion": [A]}, "both be text"),
    "completion without assistant": ({"prompt": [U], "completion": [U]}, "nothing to learn"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named(tokenizer, name):
    values, problem = BAD[name]
    with pytest.raises(DataError) as caught:
        encode(tokenizer, values)
    message = str(caught.value)
    assert problem in message
    assert "data.jsonl:3" in message
    assert "fix:" in message
    assert len(message.splitlines()) <= 5


ROWS = [{"instruction": f"add {number}", "output": f"{number + 1}"} for number in range(4)]


def write(folder: Path, name: str) -> Path:
    path = folder / name
    if name.endswith("csv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["instruction", "output"])
            writer.writeheader()
            writer.writerows(ROWS)
    elif name.endswith("json"):
        path.write_text(json.dumps(ROWS, indent=1))
    elif name.endswith("parquet"):
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        data = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
        if name.endswith("zst"):
            data = pytest.importorskip("zstandard").compress(data)
        path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.csv", "a.parquet"])
def test_every_kind_of_file(tokenizer, tmp_path, name):
    path = write(tmp_path, name)
    settings = DataSection(train=str(path), sequence_length=64)
    dataset = open_dataset(settings.train, kind="instructions", tokenizer=tokenizer, settings=settings)
    texts = [tokenizer.decode(dataset.sample(place).sequences[0].ids) for place in range(len(dataset))]
    assert texts == [f"add {number}{number + 1}" for number in range(4)]
    assert dataset.summary()["formats"]["alpaca"] == 4


def test_quarantine_counts_every_row(tokenizer, tmp_path):
    path = tmp_path / "mixed.jsonl"
    good = json.dumps({"messages": [U, A]})
    bad = [json.dumps(values) for values, _ in BAD.values()]
    path.write_text("\n".join([good, *bad, good, '{"messages": [}', '{"prompt": "a", "prompt": "b"}', good]) + "\n")
    settings = DataSection(train=str(path), sequence_length=64, on_error="quarantine")
    dataset = open_dataset([Source(path=str(path))], kind="instructions", tokenizer=tokenizer, settings=settings)
    summary = dataset.summary()
    assert summary["kept"] == len(dataset) == 3
    assert sum(summary["quarantined"].values()) == len(BAD) + 2
    assert summary["input"] == summary["kept"] + sum(summary["quarantined"].values())
    strict = DataSection(train=str(path), sequence_length=64)
    with pytest.raises(DataError, match=r"mixed\.jsonl:2"):
        open_dataset([Source(path=str(path))], kind="instructions", tokenizer=tokenizer, settings=strict)
