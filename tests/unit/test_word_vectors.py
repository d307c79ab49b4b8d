"""Word vectors: vocabulary, sampling, the gradient of a step, determinism, options, files, command line."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from trivium.artifacts.record import read_record
from trivium.artifacts.writer import write_artifact
from trivium.cli.main import run
from trivium.errors import ArtifactDamaged, TokenizerError, TrainingDiverged
from trivium.tokenizers import vectors_train
from trivium.tokenizers.train import train_word
from trivium.tokenizers.vectors import VECTORS, WordVectors
from trivium.tokenizers.vectors_step import STEPS, Step, loss
from trivium.tokenizers.vectors_text import PIECE, UNKNOWN, Corpus, words_of
from trivium.tokenizers.vectors_train import keep_probability, noise_distribution, train_vectors

TOPICS = (
    ["cat", "dog", "mouse", "paw", "tail", "fur"],
    ["king", "queen", "crown", "throne", "palace", "sword"],
    ["bread", "butter", "cheese", "milk", "honey", "apple"],
)
COMMON = ["the", "a", "of", "and"]


def texts(number: int = 60, *, words: int = 120, seed: int = 0) -> list[str]:
    """Each text is about one topic, so the words of a topic are neighbours."""
    chooser = random.Random(seed)
    return [" ".join(chooser.choices([*TOPICS[i % 3] * 2, *COMMON], k=words)) for i in range(number)]


def small(**changes: object) -> WordVectors:
    return train_vectors(texts(), **{"size": 16, "epochs": 3, "subsample": 0.0, **changes})


# Words and vocabulary


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop, Anna's dog!", ["Don't", "stop", ",", "Anna's", "dog", "!"]),
        ("a\u00a0b\tc\n\n3.5", ["a", "b", "c", "3", ".", "5"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("'quoted'", ["'", "quoted", "'"]),
        ("half \ud800 a character", ["half", "a", "character"]),
        ("", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def vocabulary(documents: list[str], **options: object):
    with Corpus() as corpus:
        corpus.read(documents, lowercase=False)
        return corpus.vocabulary(**{"min_count": 1, "max_words": None, "unknown": False, **options})


def test_vocabulary_is_sorted_by_count_then_alphabet() -> None:
    found = vocabulary(["b a a c", "b d d d"])
    assert found.words == ["d", "a", "b", "c"]
    assert found.counts.tolist() == [3, 2, 2, 1]


def test_rare_words_are_left_out_or_unknown() -> None:
    documents = ["a a a a b b b c c d e"]
    assert vocabulary(documents, min_count=2).words == ["a", "b", "c"]
    merged = vocabulary(documents, min_count=3, unknown=True)
    assert dict(zip(merged.words, merged.counts.tolist(), strict=True)) == {"a": 4, UNKNOWN: 4, "b": 3}
    assert [merged.words[number] for number in merged.final] == ["a", "b", UNKNOWN, UNKNOWN, UNKNOWN]
    assert vocabulary(documents, min_count=3).final.tolist() == [0, 1, -1, -1, -1]
    assert vocabulary(documents, max_words=2).words == ["a", "b"]
    assert len(vocabulary(documents, max_words=3, unknown=True).words) == 3


def test_unknown_is_not_there_when_nothing_is_rare() -> None:
    assert UNKNOWN not in vocabulary(["a a b b"], unknown=True).words


def test_blocks_hold_each_word_once_and_keep_texts_apart() -> None:
    documents = [f"w{i} " * 100 for i in range(3 * PIECE // 100)]
    with Corpus() as corpus:
        corpus.read(documents, lowercase=False)
        blocks = list(corpus.blocks(np.random.default_rng(0), pieces=2))
        again = list(corpus.blocks(np.random.default_rng(1), pieces=2))
    numbers = np.concatenate([block[0] for block in blocks])
    assert np.bincount(numbers).tolist() == [100] * len(documents)
    assert blocks[0][2] == 0
    for found, segment, _ in blocks:
        assert all(len(set(found[segment == one])) == 1 for one in np.unique(segment))
    assert any((one[0][:50] != other[0][:50]).any() for one, other in zip(blocks, again, strict=True))


# Sampling


def test_subsampling_law() -> None:
    counts = np.array([500_000, 100_000, 999, 1])
    keep = keep_probability(counts, 1e-3)
    share = counts / counts.sum()
    expected = np.minimum(1, (np.sqrt(share / 1e-3) + 1) * (1e-3 / share))  # the formula of the program
    np.testing.assert_allclose(keep, expected)
    assert keep[0] < keep[1] < keep[2] == 1
    assert (keep_probability(counts, 0) == 1).all()


def test_noise_is_the_counts_to_three_quarters() -> None:
    counts = np.array([16, 1])
    np.testing.assert_allclose(noise_distribution(counts, 0.75), [8 / 9, 1 / 9])
    np.testing.assert_allclose(noise_distribution(counts, 0), [0.5, 0.5])


# One step


def one_step(architecture: str) -> tuple[Step, torch.Tensor, torch.Tensor, torch.Tensor]:
    maker = torch.Generator().manual_seed(1)
    streams, centres, rows, words = 3, 4, 8, 6
    inputs = torch.randn(words, 5, generator=maker, dtype=torch.float64)
    outputs = torch.randn(words, 5, generator=maker, dtype=torch.float64)
    pairs = (torch.rand(streams, centres, rows, generator=maker) < 0.4).double()
    pairs[0, 1] = 0  # a centre without context
    groups = rows if architecture == "skipgram" else 1
    step = Step(
        rows=torch.randint(words, (streams, rows), generator=maker),
        centres=torch.randint(words, (streams, centres), generator=maker),
        pairs=pairs,
        negatives=torch.randint(words, (groups, 7), generator=maker),
    )
    hits = 2 * torch.full((words,), 1 / words, dtype=torch.float64)
    return step, inputs, outputs, hits


@pytest.mark.parametrize("architecture", ["skipgram", "cbow"])
def test_step_is_the_gradient_of_the_loss(architecture: str) -> None:
    step, inputs, outputs, hits = one_step(architecture)
    x, y = inputs.clone().requires_grad_(), outputs.clone().requires_grad_()
    value = loss(architecture, x, y, step, hits, negatives=2)
    gradients = torch.autograd.grad(value, (x, y))
    rate = torch.linspace(0.01, 0.1, 6, dtype=torch.float64)
    STEPS[architecture](inputs, outputs, step, hits, negatives=2, rates=lambda words: rate[words])
    for after, before, gradient in zip((inputs, outputs), (x, y), gradients, strict=True):
        torch.testing.assert_close(after, (before - rate[:, None] * gradient).detach())


@pytest.mark.parametrize("architecture", ["skipgram", "cbow"])
def test_loss_is_that_of_negative_sampling_on_average(architecture: str) -> None:
    """Over all noise words in proportion to their chance: K expected noise words that are not the centre, per pair."""
    step, inputs, outputs, _ = one_step(architecture)
    chance = torch.tensor([0.4, 0.2, 0.1, 0.1, 0.1, 0.1], dtype=torch.float64)
    copies = torch.repeat_interleave(torch.arange(6), (chance * 10).round().long())
    every = Step(step.rows, step.centres, step.pairs, copies.expand(len(step.negatives), -1).contiguous())
    found = loss(architecture, inputs, outputs, every, 2 * chance, negatives=2)
    expected = 0.0
    for stream in range(3):
        for centre in range(4):
            context = inputs[step.rows[stream][step.pairs[stream, centre] > 0]]
            asked = context if architecture == "skipgram" else context.mean(0, keepdim=True)[: len(context)]
            for x in asked:
                o = int(step.centres[stream, centre])
                noise = [chance[n] * torch.log(torch.sigmoid(-x @ outputs[n])) for n in range(6) if n != o]
                expected -= float(torch.log(torch.sigmoid(x @ outputs[o])) + 2 * sum(noise))
    assert float(found) == pytest.approx(expected, rel=1e-9)


# Training


@pytest.mark.parametrize("architecture", ["skipgram", "cbow"])
def test_words_of_a_topic_become_neighbours(architecture: str) -> None:
    found = small(architecture=architecture, epochs=12, lr=0.05)
    for topic in TOPICS:
        for word in topic:
            near = [other for other, _ in found.nearest(word, count=len(topic) - 1)]
            assert len(set(near) & set(topic)) >= 4, (word, near)
    losses = found.facts["losses"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("architecture", ["skipgram", "cbow"])
def test_same_seed_same_vectors(architecture: str) -> None:
    first, second = small(architecture=architecture), small(architecture=architecture)
    assert first.words == second.words
    assert (first.matrix == second.matrix).all()


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"architecture": "cbow"},
        {"window": 2},
        {"negatives": 2},
        {"noise_power": 0.0},
        {"subsample": 1e-3},
        {"epochs": 2},
        {"lr": 0.01},
        {"min_lr": 0.01},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_changes_the_vectors(change: dict[str, object]) -> None:
    assert not (small().matrix == small(**change).matrix).all()


def test_settings_of_the_vocabulary() -> None:
    extra = [*texts(), "Rare the"]
    assert "Rare" not in train_vectors(extra, epochs=1)
    assert "Rare" in train_vectors(extra, epochs=1, min_count=1)
    assert "rare" in train_vectors(extra, epochs=1, min_count=1, lowercase=True)
    assert UNKNOWN in train_vectors(extra, epochs=1, unknown=True)
    assert len(train_vectors(extra, epochs=1, max_words=7)) == 7
    assert train_vectors(extra, epochs=1, size=12).matrix.shape[1] == 12


def test_texts_are_a_stream_and_no_scratch_file_stays(tmp_path: Path) -> None:
    found = train_vectors(iter(texts()), epochs=1, scratch=tmp_path)
    assert found.facts["documents"] == 60
    assert found.facts["words_read"] == 60 * 120
    assert not list(tmp_path.iterdir())


def test_progress_reaches_the_end() -> None:
    seen: list[tuple[int, int | None, float | None]] = []
    small(epochs=2, progress=lambda *state: seen.append(state))
    assert seen[-1][0] == seen[-1][1] == 2 * 60 * 120
    assert [state[0] for state in seen] == sorted(state[0] for state in seen)


def test_one_text_of_two_words_can_be_learnt() -> None:
    assert np.isfinite(train_vectors(["yes no"] * 5, size=4, epochs=50).matrix).all()


@pytest.mark.parametrize("documents", [[], [""], ["one"] * 9, ["a b c d"]])
def test_too_few_words_are_refused(documents: list[str]) -> None:
    with pytest.raises(TokenizerError, match="too few words"):
        train_vectors(documents)


@pytest.mark.parametrize(
    "wrong",
    [
        {"architecture": "glove"},
        {"size": 0},
        {"window": 0},
        {"negatives": 0},
        {"min_count": 0},
        {"epochs": 0},
        {"max_words": 1},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"min_lr": 1.0},
        {"subsample": -1.0},
        {"seed": -1},
    ],
    ids=str,
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(TokenizerError, match="cannot be trained with this"):
        train_vectors(texts(), **wrong)


def test_frequent_words_survive_a_rate_far_too_high() -> None:
    assert np.isfinite(small(lr=1000.0, epochs=1).matrix).all()


def test_vectors_without_bound_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors_train, "LIMIT", 1e9)
    with pytest.raises(TrainingDiverged, match="without bound"):
        small(lr=10.0, epochs=2)


# Looking up


def tiny() -> WordVectors:
    matrix = np.array([[1, 0], [0.9, 0.1], [0, 1], [-1, 0]], dtype=np.float32)
    return WordVectors(["east", "eastish", "north", "west"], matrix)


def test_nearest() -> None:
    found = tiny()
    assert [word for word, _ in found.nearest("east", count=9)] == ["eastish", "north", "west"]
    assert found.nearest("east", count=1)[0][1] == pytest.approx(0.9 / np.hypot(0.9, 0.1))
    assert found.nearest(plus=["east", "north"], minus=["eastish"], count=1)[0][0] == "west"
    assert found.similarity("east", "west") == pytest.approx(-1)
    assert "north" in found and "south" not in found


def test_unknown_word_is_told_with_its_neighbour_in_spelling() -> None:
    with pytest.raises(TokenizerError, match=r"did you mean north\?"):
        tiny().nearest("nort")


# Files


def test_saved_vectors_are_read_back_bit_for_bit(tmp_path: Path) -> None:
    before = small()
    with write_artifact(tmp_path / "v", kind="word vectors") as folder:
        before.save(folder)
    for path in (tmp_path / "v", tmp_path / "v" / VECTORS):
        after = WordVectors.load(path)
        assert after.words == before.words
        assert (after.matrix == before.matrix).all()
    some = WordVectors.load(tmp_path / "v", only={"king", "cat", "nothing"})
    assert set(some.words) == {"king", "cat"}
    assert (some.vector("king") == before.vector("king")).all()


def test_format_is_that_of_word2vec(tmp_path: Path) -> None:
    tiny().save(tmp_path)
    lines = (tmp_path / VECTORS).read_text().splitlines()
    assert lines[:3] == ["4 2", "east 1 0", "eastish 0.899999976 0.100000001"]


@pytest.mark.parametrize("text", ["1 2\nwort 1 2 \n", "wort 1 2\n", "1 2\r\nwort 1.0 2e0\r\n", "1 2\nwort 1 2"])
def test_other_programs_files_are_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.vec").write_bytes(text.encode())
    found = WordVectors.load(tmp_path / "a.vec")
    assert found.words == ["wort"]
    assert found.matrix.tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        (b"", None, "holds no word vectors"),
        (b"0 3\n", None, "holds no word vectors"),
        (b"2 2\na 1 2\nb 1\n", 3, "not a word and 2 numbers"),
        (b"2 2\na 1 2\nb 1 2 3\n", 3, "not a word and 2 numbers"),
        (b"2 2\na 1 2\n\nb 1 2\n", 3, "has no word"),
        (b"2 2\na 1 2\nb 1 x\n", 3, "no number"),
        (b"2 2\na 1 2\nb 1 nan\n", 3, "infinity or not-a-number"),
        (b"2 2\na 1 1e99\nb 1 1\n", 2, "infinity or not-a-number"),
        (b"2 2\na 1 2\na 3 4\n", 3, "has a vector already"),
        (b"3 2\na 1 2\nb 3 4\n", 1, "says 3 words, the file holds 2"),
        (b"1 2\na 1 2\nb 3 4\n", 1, "says 1 words, the file holds 2"),
        (b"1 2\n\xff\xfe 1 2\n", 2, "not UTF-8"),
        (b"a\n", 1, "not a word and some numbers"),
    ],
)
def test_malformed_files_are_told_with_their_line(
    tmp_path: Path, content: bytes, line: int | None, problem: str
) -> None:
    path = tmp_path / "a.vec"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=problem) as caught:
        WordVectors.load(path)
    assert caught.value.where == (str(path) if line is None else f"{path}:{line}")
    assert len(str(caught.value).splitlines()) <= 5


def test_missing_files_and_damaged_folders(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no such file"):
        WordVectors.load(tmp_path / "none.vec")
    with pytest.raises(TokenizerError, match=r"holds no vectors\.vec"):
        WordVectors.load(tmp_path)
    with write_artifact(tmp_path / "v", kind="word vectors") as folder:
        tiny().save(folder)
    with (tmp_path / "v" / VECTORS).open("ab") as stream:
        stream.write(b"south 0 -1\n")
    with pytest.raises(ArtifactDamaged):
        WordVectors.load(tmp_path / "v")


# A tokenizer of words


def test_word_tokenizer(tmp_path: Path) -> None:
    tokenizer = train_word(["The cat didn't see the cat.", "The dog."], vocab_size=8)
    assert tokenizer.vocab_size <= 8
    names = [tokenizer.token(token) for token in tokenizer.encode("The cat saw.")]
    assert names == ["The", "cat", "<|unk|>", "."]
    tokenizer.save(tmp_path)
    assert type(tokenizer).load(tmp_path).encode("The cat saw.") == tokenizer.encode("The cat saw.")
    lower = train_word(["The the THE"], lowercase=True)
    assert len(set(lower.encode("the The"))) == 1
    assert "<|unk|>" not in [lower.token(token) for token in lower.encode("tHe")]


@pytest.mark.parametrize(
    "text", ["Don't stop, it's 3.5 हिन्दी में", "naïve—'x'  a_b\n\n…", "mother's\u2019 你好\uff0c世界"]
)
def test_word_tokenizer_and_vectors_cut_text_alike(text: str) -> None:
    tokenizer = train_word([text], min_count=1)
    assert [tokenizer.token(token) for token in tokenizer.encode(text)] == words_of(text)


def test_word_tokenizer_refuses_no_words() -> None:
    with pytest.raises(TokenizerError, match="no word"):
        train_word(["a b c"])


# Command line


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, text in enumerate(texts()):
        (tmp_path / f"{number:02}.txt").write_text(text)
    output = tmp_path / "runs" / "vectors"
    train = ["tokenizer", "vectors", str(tmp_path), "--output", str(output), "--size", "8", "--epochs", "1"]
    assert run([*train, "--nearest", "king", "--count", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["documents"] == 60
    assert len(result["nearest"]["king"]) == 3
    record = read_record(output)
    assert record is not None
    assert record.kind == "word vectors"
    assert record.config is not None and record.config["architecture"] == "skipgram"
    assert [parent.role for parent in record.parents] == ["documents"]
    assert run(["tokenizer", "vectors", str(output), "--nearest", "king", "--nearest", "cat"]) == 0
    shown = capsys.readouterr().out
    assert "king:" in shown and "cat:" in shown


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["missing.vec"], "nothing to do"),
        (["missing.vec", "--nearest", "a"], "no such file"),
        (["a", "b", "--nearest", "a"], "one file"),
        (["missing", "--output", "o"], "no such file or folder"),
        (["missing", "--output", "o", "--size", "0"], "size"),
    ],
)
def test_command_line_refuses(
    words: list[str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["tokenizer", "vectors", *words]) == 2
    said = capsys.readouterr().err
    assert problem in said
    assert len(said.strip().splitlines()) <= 5
