"""Tagged words and questions: which token carries what, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.unit.labelled import bytelevel, opened, wordpiece, write_rows
from trivium.data.batch import IGNORE
from trivium.data.framing import framing_of
from trivium.data.spans import cut_context
from trivium.data.tagging import cut_words
from trivium.errors import DataError
from trivium.tokenizers.tokenizer import Tokenizer

SENTENCE = {
    "tokens": ["Unbelievably", "Ada", "lives", "in", "New", "York", "."],
    "tags": ["O", "B-PER", "O", "O", "B-LOC", "I-LOC", "O"],
}
CONTEXT = "Ada Lovelace lives in London, where she writes. The first program was hers, in 1843."


@pytest.fixture(scope="module", params=["wordpiece", "bytelevel"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return bytelevel() if request.param == "bytelevel" else wordpiece(tmp_path_factory.mktemp("wordpiece"))


def refused(tmp_path: Path, tokenizer: Tokenizer, row: dict[str, Any], kind: str, **settings: Any) -> str:
    with pytest.raises(DataError) as error:
        opened(write_rows(tmp_path / "rows.jsonl", [row]), tokenizer, kind, **settings)
    assert len(str(error.value).splitlines()) <= 5 and "rows.jsonl:1" in str(error.value)
    return str(error.value)


# Words


def test_first_token_of_each_word_carries_its_tag(tmp_path: Path, tokenizer: Tokenizer) -> None:
    dataset = opened(write_rows(tmp_path / "rows.jsonl", [SENTENCE]), tokenizer, "tokens")
    assert dataset.labels == ("O", "B-LOC", "B-PER", "I-LOC")
    inputs, targets = dataset.table.gather(dataset.owners[:1])
    tagged = [dataset.labels[target] for target in targets if target != IGNORE]
    assert tagged == SENTENCE["tags"] and len(inputs) > len(tagged) + 1
    words = [tokenizer.decode([token]).strip() for token, target in zip(inputs, targets, strict=True) if target > 0]
    wholes = ("ada", "new", "york")
    assert all(word and whole.startswith(word.lower()) for word, whole in zip(words, wholes, strict=True))
    assert dataset.summary()["trained_tokens"] == 7


def test_every_piece_goes_on_as_inside(tmp_path: Path, tokenizer: Tokenizer) -> None:
    row = {"tokens": ["Unbelievably", "good"], "tags": ["B-X", "O"]}
    more = {"tokens": ["a"], "tags": ["I-X"]}
    path = write_rows(tmp_path / "rows.jsonl", [row, more])
    dataset = opened(path, tokenizer, "tokens", labels={"every_piece": True})
    targets = [dataset.labels[target] for target in dataset.table.gather(dataset.owners[:1])[1] if target != IGNORE]
    assert targets[0] == "B-X" and targets[1] == "I-X" and targets[-1] == "O" and targets.count("B-X") == 1


def test_long_sentences_are_cut_between_words(tokenizer: Tokenizer) -> None:
    words = ["unbelievably", "good"] * 20
    framing = framing_of(tokenizer)
    cuts = cut_words(words, tokenizer, framing, 24)
    assert len(cuts) > 1 and all(len(cut.ids) <= 24 for cut in cuts)
    whole = cut_words(words, tokenizer, framing, 1000)[0]
    joined = [(token, word) for cut in cuts for token, word in zip(cut.ids, cut.words, strict=True) if word >= 0]
    assert joined == [pair for pair in zip(whole.ids, whole.words, strict=True) if pair[1] >= 0]
    assert sorted(word for cut in cuts for word in cut.first_tokens()) == list(range(40))


def test_conll_files(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.conll").write_text("-DOCSTART- -X- O\n\nAda NNP B-PER\nlives VBZ O\n\nParis NNP B-LOC\n")
    (tmp_path / "b.conllu").write_text("# text = Go\n1\tGo\tgo\tVERB\n1-2\tx\ty\tz\n2\t!\t!\tPUNCT\n")
    dataset = opened(tmp_path / "a.conll", tokenizer, "tokens", keep_rows=True)
    assert dataset.rows == [
        {"tokens": ["Ada", "lives"], "tags": ["B-PER", "O"]},
        {"tokens": ["Paris"], "tags": ["B-LOC"]},
    ]
    assert dataset.sample_id(1) == "a.conll:6"
    assert opened(tmp_path / "b.conllu", tokenizer, "tokens").labels == ("PUNCT", "VERB")
    (tmp_path / "c.conll").write_text("Ada\n")
    with pytest.raises(DataError, match=r"c\.conll:1"):
        opened(tmp_path / "c.conll", tokenizer, "tokens")


def test_numbers_get_names(tmp_path: Path, tokenizer: Tokenizer) -> None:
    row = {"words": ["Ada", "lives"], "ner_tags": [1, 0]}
    dataset = opened(
        write_rows(tmp_path / "r.jsonl", [row]), tokenizer, "tokens", labels={"names": {"0": "O", "1": "B-PER"}}
    )
    assert dataset.labels == ("O", "B-PER")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "one tag for each word"),
        ({"tokens": ["a", ""], "tags": ["O", "X"]}, "a word is empty"),
        ({"tokens": ["a"], "tags": [None]}, "a tag is empty"),
        ({"tokens": "a b", "tags": ["O", "O"]}, "holds no list"),
        ({"text": "a", "tags": ["O"]}, "no column for the words"),
    ],
)
def test_wrong_sentences(tmp_path: Path, tokenizer: Tokenizer, row: dict[str, Any], said: str) -> None:
    assert said in refused(tmp_path, tokenizer, row, "tokens")


def test_one_tag_only_and_unknown_tags(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="same tag"):
        opened(write_rows(tmp_path / "r.jsonl", [{"tokens": ["a"], "tags": ["O"]}]), tokenizer, "tokens")
    train = opened(write_rows(tmp_path / "train.jsonl", [SENTENCE]), tokenizer, "tokens")
    held = write_rows(tmp_path / "held.jsonl", [{"tokens": ["a"], "tags": ["B-LOK"]}])
    with pytest.raises(DataError, match="did you mean B-LOC"):
        opened(held, tokenizer, "tokens", like=train.label_set)


# Questions


def question(answer: str | None, **more: Any) -> dict[str, Any]:
    answers = (
        {"text": [answer], "answer_start": [CONTEXT.index(answer)]} if answer else {"text": [], "answer_start": []}
    )
    return {"context": CONTEXT, "question": "Where does Ada live?", "answers": answers, **more}


@pytest.mark.parametrize("answer", ["London", "Ada Lovelace", "1843", "writes"])
def test_answer_is_where_its_tokens_are(tmp_path: Path, tokenizer: Tokenizer, answer: str) -> None:
    dataset = opened(write_rows(tmp_path / "r.jsonl", [question(answer)]), tokenizer, "questions", length=128)
    start, end = (int(dataset.fields[name][0]) for name in ("start", "end"))
    ids = list(dataset.sample(0).sequences[0].ids)
    assert tokenizer.decode(ids[start : end + 1]).strip().lower() == answer.lower()


def test_long_contexts_become_windows_that_overlap(tokenizer: Tokenizer) -> None:
    framing = framing_of(tokenizer)
    whole = cut_context("Who?", CONTEXT, tokenizer, framing, length=500, stride=8)[0]
    length = len(whole.ids) - len(whole.offsets) + 20
    windows = cut_context("Who?", CONTEXT, tokenizer, framing, length=length, stride=8)
    assert len(windows) > 1 and all(len(window.ids) <= length for window in windows)
    for before, after in pairwise(windows):
        assert before.offsets[-8:] == after.offsets[:8]
    start = CONTEXT.index("1843")
    found = [window.place(start, start + 4) for window in windows]
    assert any(found) and not all(found), "the answer is in some windows and not in the others"
    assert windows[-1].offsets[-1] == whole.offsets[-1]


def test_windows_without_the_answer_have_none(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write_rows(tmp_path / "r.jsonl", [question("1843"), question(None)])
    framing = framing_of(tokenizer)
    whole = cut_context("Where does Ada live?", CONTEXT, tokenizer, framing, length=500, stride=2)[0]
    dataset = opened(path, tokenizer, "questions", length=len(whole.ids) - 8, labels={"stride": 2})
    empty = [framing.empty_answer(int(length)) for length in dataset.lengths]
    answered = [int(start) != none for start, none in zip(dataset.fields["start"], empty, strict=True)]
    half = len(dataset) // 2
    assert any(answered[:half]) and not any(answered[half:])
    assert dataset.account["windows"] == len(dataset) > 2 and dataset.account["unanswerable"] == 1
    assert dataset.sample_id(1) == "r.jsonl:1#1"


def test_files_of_squad_themselves(tmp_path: Path, tokenizer: Tokenizer) -> None:
    qas = [
        {"id": "q1", "question": "Where?", "answers": [{"text": "London", "answer_start": CONTEXT.index("London")}]},
        {"id": "q2", "question": "Why?", "answers": [], "is_impossible": True},
    ]
    rows = [{"version": "2", "data": [{"title": "Ada", "paragraphs": [{"context": CONTEXT, "qas": qas}]}]}]
    path = write_rows(tmp_path / "squad.jsonl", rows)
    dataset = opened(path, tokenizer, "questions", length=128)
    assert len(dataset) == 2 and dataset.sample_id(0).endswith(":q1")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answers": {"text": ["London"], "answer_start": [3]}}, "does not stand where answer_start says"),
        ({"answers": {"text": ["London"]}}, "number of its first character"),
        ({"question": ""}, "the question is empty"),
        ({"context": None}, "the context is empty"),
    ],
)
def test_wrong_questions(tmp_path: Path, tokenizer: Tokenizer, change: dict[str, Any], said: str) -> None:
    assert said in refused(tmp_path, tokenizer, question("London", **change), "questions")


def test_place_of_the_answer_is_suggested(tmp_path: Path, tokenizer: Tokenizer) -> None:
    row = question("London", answers={"text": ["London"], "answer_start": [0]})
    assert f"it stands at {CONTEXT.index('London')}" in refused(tmp_path, tokenizer, row, "questions")


def test_question_that_leaves_no_room(tmp_path: Path, tokenizer: Tokenizer) -> None:
    row = question("London", question="Where does Ada live? " * 10)
    assert "leaves room for" in refused(tmp_path, tokenizer, row, "questions", length=32)
    assert "data.labels.stride" in refused(tmp_path, tokenizer, question("London"), "questions", length=32)
