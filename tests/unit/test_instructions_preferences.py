"""Preference rows: two sequences, chosen first, and only the answers are trained."""

from __future__ import annotations

import pytest

from trivium.data.intake import Intake, Row
from trivium.data.preferences import encode_row
from trivium.errors import DataError
from trivium.tokenizers.tokenizer import Tokenizer
from trivium.tokenizers.train import train_bpe


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["What does it do? It adds two numbers together. " * 30], vocab_size=320)


def encode(tokenizer, values):
    row = Row(values, "pairs.jsonl:7", "pairs.jsonl:7")
    return encode_row(row, tokenizer=tokenizer, shape="auto", intake=Intake())


def shown(tokenizer, sample) -> list[tuple[str, str]]:
    """(whole text, trained text) of each sequence."""
    texts = []
    for sequence in sample.sequences:
        kept = [token for token, flag in zip(sequence.ids, sequence.trained, strict=True) if flag]
        texts.append((tokenizer.decode(sequence.ids, skip_special=False), tokenizer.decode(kept, skip_special=False)))
    return texts


U = {"role": "user", "content": "a"}
GOOD, POOR = {"role": "assistant", "content": "b"}, {"role": "assistant", "content": "c"}
CHAT = [("<|bos|><|user|>a<|assistant|>b<|eos|>", "b<|eos|>"), ("<|bos|><|user|>a<|assistant|>c<|eos|>", "c<|eos|>")]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [U], "chosen": [GOOD], "rejected": [POOR]},
        {"prompt": [U], "chosen": "b", "rejected": "c"},
        {"prompt": "a", "chosen": [U, GOOD], "rejected": [U, POOR]},
        {"prompt": "a", "chosen": [GOOD], "rejected": [POOR]},
        {"chosen": [U, GOOD], "rejected": [U, POOR]},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
    ],
)
def test_conversations(tokenizer, row):
    assert shown(tokenizer, encode(tokenizer, row)) == CHAT


def test_text_stays_text(tokenizer):
    sample = encode(tokenizer, {"prompt": "a: ", "chosen": "b", "rejected": "c", "margin": "1.5"})
    assert shown(tokenizer, sample) == [("<|bos|>a: b<|eos|>", "b<|eos|>"), ("<|bos|>a: c<|eos|>", "c<|eos|>")]
    assert sample.fields == {"margin": 1.5}


def test_earlier_answers_are_part_of_the_prompt(tokenizer):
    before = [U, GOOD, {"role": "user", "content": "d"}]
    sample = encode(tokenizer, {"chosen": [*before, GOOD], "rejected": [*before, POOR]})
    assert [part for _, part in shown(tokenizer, sample)] == ["b<|eos|>", "c<|eos|>"]


def test_one_conversation_may_go_on_where_the_other_ends(tokenizer):
    longer = [U, GOOD, {"role": "user", "content": "d"}, POOR]
    sample = encode(tokenizer, {"chosen": longer, "rejected": [U, GOOD]})
    assert [part for _, part in shown(tokenizer, sample)] == ["b<|eos|>c<|eos|>", "b<|eos|>"]


BAD = {
    "unpaired": ({"prompt": "a", "completion": "b", "label": True}, "none of the known shapes"),
    "the same answer twice": ({"prompt": "a", "chosen": "b", "rejected": "b"}, "are the same"),
    "empty answer": ({"prompt": "a", "chosen": "b", "rejected": " "}, "'rejected' is empty"),
    "answer is a number": ({"prompt": "a", "chosen": 1, "rejected": "c"}, "must be a list"),
    "no common question": (
        {"chosen": [U, GOOD], "rejected": [{"role": "user", "content": "z"}, POOR]},
        "same question",
    ),
    "text without prompt": ({"chosen": "b", "rejected": "c"}, "without a prompt"),
    "answer by the user": ({"prompt": [U], "chosen": [{"role": "tool", "content": "b"}], "rejected": [POOR]}, "learn"),
    "margin is text": ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "wide"}, "no number"),
    "margin is true": ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": True}, "no number"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named(tokenizer, name):
    values, problem = BAD[name]
    with pytest.raises(DataError) as caught:
        encode(tokenizer, values)
    message = str(caught.value)
    assert problem in message
    assert "pairs.jsonl:7" in message
    assert len(message.splitlines()) <= 5
