"""Each step of deduplication finds what it should, keeps what it should, and does not depend on how parts are cut."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest

from tests.unit.corpus_steps import run
from trivium.data.dedup.buckets import components
from trivium.data.dedup.signatures import Signer, similarity
from trivium.data.dedup.words import shingle_hashes, word_hashes, word_places
from trivium.data.documents import Document
from trivium.data.step import Dropped, Merged
from trivium.data.steps.decontaminate import Decontaminate
from trivium.data.steps.exact import Exact
from trivium.data.steps.minhash import MinHash
from trivium.data.steps.paragraphs import Paragraphs
from trivium.data.steps.semantic import Semantic
from trivium.data.steps.substrings import Substrings
from trivium.errors import DataError

WORDS = [f"word{n}" for n in range(5000)]


def text(seed, count=200) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def altered(original: str, changes: int, seed=0) -> str:
    words = original.split()
    for place in random.Random(seed).sample(range(len(words)), changes):
        words[place] = f"new{place}"
    return " ".join(words)


def documents(*texts: str, **metas) -> list[Document]:
    return [
        Document(f"d{number}", each, f"f:{number}", meta={name: values[number] for name, values in metas.items()})
        for number, each in enumerate(texts)
    ]


def report(folder: Path, name="clusters.jsonl"):
    return [json.loads(line) for line in (folder / "report" / name).read_text().splitlines()]


def kept(results) -> list[str]:
    return [each.id for each in results if isinstance(each, Document)]


# Words


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("The quick, brown FOX!", ["The", "quick", "brown", "FOX"]),
        ("Straße İstanbul ﬁne a_b 3.5", ["Straße", "İstanbul", "ﬁne", "a_b", "3", "5"]),
        ("“Don\u2019t” — naïve", ["Don", "t", "naïve"]),
        ("我爱 NLP 很多", ["我", "爱", "NLP", "很", "多"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("", []),
        ("... \n --", []),
    ],
)
def test_words_are_found_in_every_script_and_have_places_in_the_text(given, words):
    assert [given[a:b] for a, b in word_places(given)] == words
    hashes, counts = word_hashes([given, "x", given])
    assert counts.tolist() == [len(words), 1, len(words)]
    assert hashes[: len(words)].tolist() == hashes[len(words) + 1 :].tolist()
    assert len(set(hashes.tolist())) == len({word.casefold() for word in [*words, "x"]})


def test_hashes_do_not_depend_on_the_company(monkeypatch):
    texts = [text(n, n) for n in range(30)] + ["", "我爱 ü", "x" * 300]
    alone = [word_hashes([each])[0].tolist() for each in texts]
    together, counts = word_hashes(texts)
    assert [part.tolist() for part in np.split(together, np.cumsum(counts)[:-1])] == alone
    signer = Signer()
    assert np.array_equal(signer.signatures(texts), np.stack([signer.signature(each) for each in texts]))


def test_shingles_are_those_of_python():
    texts = [text(n, count) for n, count in enumerate((0, 1, 4, 5, 6, 40, 0, 3, 12))]
    hashes, counts = shingle_hashes(*word_hashes(texts), 5)
    names = []
    for each in texts:
        words = each.split()
        names += [tuple(words[at : at + 5]) for at in range(max(1, len(words) - 4) if words else 0)]
    assert counts.sum() == len(names) == len(hashes)
    assert len(set(hashes.tolist())) == len(set(names))


def test_a_long_text_without_spaces_takes_little_memory_and_time():
    assert Signer().signature("a" * 3_000_000 + " b").shape == (112,)


def test_components_are_those_of_a_union():
    draw = np.random.default_rng(0)
    one, other = draw.integers(0, 300, (2, 180))
    found = components(np.arange(300), one, other)
    names = list(range(300))
    for a, b in zip(one.tolist(), other.tolist(), strict=True):
        names = [names[a] if name == names[b] else name for name in names]
    least: dict[int, int] = {}
    for number, name in enumerate(names):
        least.setdefault(name, number)
    assert found.tolist() == [least[name] for name in names]


# Exact


def test_exact(tmp_path):
    given = documents("Hello, World", "hello world", "Hello, World", "other", "HELLO   world!")
    found = run(Exact(Exact.Config()), given, tmp_path)
    assert kept(found) == ["d0", "d1", "d3", "d4"]
    assert found[2] == Merged("d0", "exact duplicate", 1.0)
    found = run(Exact(Exact.Config(compare="normalised")), given, tmp_path)
    assert kept(found) == ["d0", "d3"]
    assert [row["kept"] for row in report(tmp_path)] == ["d0"]
    assert [member["id"] for member in report(tmp_path)[0]["members"]] == ["d1", "d2", "d4"]
    given = documents("***", "\U0001f600", "***")
    assert kept(run(Exact(Exact.Config(compare="normalised")), given, tmp_path)) == ["d0", "d1"]


def test_marks_of_letters_tell_texts_apart_and_their_form_does_not(tmp_path):
    given = documents(
        "\u0915\u093f", "\u0915\u0940", "\u0915", "caf\u00e9", "Cafe\u0301!", "cafe", "a\u2764\ufe0f", "a"
    )
    assert kept(run(Exact(Exact.Config(compare="normalised")), given, tmp_path)) == ["d0", "d1", "d2", "d3", "d5", "d6"]


def test_which_one_stays(tmp_path):
    given = documents("a b", "A b!", "a, b...", "c", score=[0.1, None, 0.9, 1])
    config = {"compare": "normalised"}
    assert kept(run(Exact(Exact.Config(**config)), given, tmp_path)) == ["d0", "d3"]
    assert kept(run(Exact(Exact.Config(**config, keep="longest")), given, tmp_path)) == ["d2", "d3"]
    assert kept(run(Exact(Exact.Config(**config, keep="highest", field="score")), given, tmp_path)) == ["d2", "d3"]
    with pytest.raises(ValueError, match="keep: highest"):
        Exact.Config(keep="highest")
    with pytest.raises(DataError, match="holds no number"):
        Exact(Exact.Config(keep="highest", field="score")).sketch(documents("a", score=["x"]))


def test_held_out_documents_stay_before_training_documents(tmp_path):
    given = documents("same", "same", "same", split=["train", "test", "train"])
    found = run(Exact(Exact.Config()), given, tmp_path)
    assert kept(found) == ["d1"]
    assert found[0] == Merged("d1", "exact duplicate of a held-out document", 1.0)


def test_marking_keeps_all(tmp_path):
    found = run(Exact(Exact.Config(action="mark")), documents("a", "b", "a"), tmp_path)
    assert [each.meta.get("cluster") for each in found] == ["d0", None, "d0"]


def test_nothing_and_empty_parts(tmp_path):
    for step in (Exact(Exact.Config()), MinHash(MinHash.Config()), Paragraphs(Paragraphs.Config())):
        assert run(step, [], tmp_path) == []
        files = {}
        for name, data in step.sketch([]).items():
            files[name] = tmp_path / f"empty.{name}"
            files[name].write_bytes(data)
        assert len(step.decide([files, files], tmp_path)) == 2


# MinHash


def test_near_duplicates_are_merged_and_the_report_says_how_alike_they_are(tmp_path):
    original = text(0)
    given = documents(original, text(1), altered(original, 3), original, text(2), altered(text(2), 40))
    for verify in ("estimate", "exact"):
        found = run(MinHash(MinHash.Config(verify=verify)), given, tmp_path)
        assert kept(found) == ["d0", "d1", "d4", "d5"]
        assert found[3] == Merged("d0", "exact duplicate", 1.0)
        assert found[2].reason == "near duplicate"
        assert report(tmp_path)[0]["size"] == 3
    signer = Signer()
    one, other = (set(signer.shingles(given[number].text).tolist()) for number in (0, 2))
    assert found[2].similarity == round(len(one & other) / len(one | other), 4)


def test_settings_of_minhash_count(tmp_path):
    original = text(0)
    given = documents(original, altered(original, 7))  # about 0.7 alike

    def found(**settings):
        return len(kept(run(MinHash(MinHash.Config(**settings)), given, tmp_path)))

    assert found(bands=40, rows=3, threshold=0.5, verify="exact") == 1
    assert found(bands=40, rows=3, threshold=0.95) == 2
    assert found(bands=40, rows=3, threshold=0.95, verify="none") == 1
    assert found(bands=1, rows=100, threshold=0.5) == 2
    assert found(bands=40, rows=3, threshold=0.85, ngram=1) == 1


def test_the_same_for_any_parts(tmp_path):
    given = []
    for seed in range(60):
        original = text(seed, 120)
        given += [original, altered(original, seed % 5, seed), altered(original, 2, seed + 1)]
    random.Random(0).shuffle(given)
    step = MinHash(MinHash.Config(threshold=0.6))
    results, reports = [], []
    for part in (1, 7, 64, 1000):
        results.append(run(step, documents(*given), tmp_path, part=part))
        reports.append((tmp_path / "report" / "clusters.jsonl").read_bytes())
    assert all(each == results[0] for each in results)
    assert len(set(reports)) == 1
    assert 55 < len(kept(results[0])) < 80


def test_a_large_cluster_and_a_bucket_of_strangers(tmp_path):
    given = documents(*([text(0)] * 500), *(altered(text(0), 1, n) for n in range(500)), *("..." for _ in range(40)))
    found = run(MinHash(MinHash.Config()), given, tmp_path, part=300)
    assert kept(found) == ["d0", "d1000"]
    assert sum(len(row["members"]) for row in report(tmp_path)) == 1038


def test_estimates_are_as_good_as_independent_places():
    signer = Signer()
    errors = []
    for seed in range(60):
        one = text(seed, 300)
        other = altered(one, 1 + seed % 12, seed)
        a, b = (set(signer.shingles(each).tolist()) for each in (one, other))
        errors.append(float(similarity(*signer.signatures([one, other]))) - len(a & b) / len(a | b))
    assert abs(np.mean(errors)) < 0.015
    assert np.std(errors) < 0.05  # sqrt(s (1 - s) / 112) is 0.047 at most


def shared(name: str) -> Path:
    folder = Path(os.environ.get("TRIVIUM_DATA", Path(__file__).parents[3] / "shared" / "data")) / name
    if not folder.is_dir():
        pytest.skip("needs the shared data sets")
    return folder


@pytest.mark.parametrize("size", [100, 1000, 2500])
def test_all_planted_duplicates_of_real_articles_are_found_and_no_others(size, tmp_path):
    folder = shared("minhash_articles")
    file = folder / f"articles_{size}.train"
    content = file.read_bytes() if file.exists() else gzip.decompress(file.with_suffix(".train.gz").read_bytes())
    given = [Document(*line.split(" ", 1), file.name) for line in content.decode().splitlines()]
    truth = {frozenset(line.split()) for line in (folder / f"articles_{size}.truth").read_text().splitlines()}
    found = run(MinHash(MinHash.Config()), given, tmp_path, part=700)
    pairs = {frozenset((each.id, one.into)) for each, one in zip(given, found, strict=True) if isinstance(one, Merged)}
    assert pairs == truth


# Paragraphs

MENU = "Home | About us | Contact | Imprint | Privacy | Terms of use | Jobs"


def test_paragraphs_that_were_there_before_are_cut_out(tmp_path):
    given = documents(
        f"{MENU}\n\n{text(0)}", f"{text(1)}\n\n{MENU.upper()}\n\nshort", f"{MENU}\n\n{MENU}", f"short\n\n{text(2)}"
    )
    found = run(Paragraphs(Paragraphs.Config()), given, tmp_path)
    assert found[0] is given[0]
    assert found[1].text == f"{text(1)}\n\nshort"
    assert found[2] == Dropped("repeated paragraphs", f"99% of the characters, such as: {MENU}")
    assert found[3] is given[3]
    assert report(tmp_path, "paragraphs.jsonl") == [{"occurrences": 4, "document": "d0", "number": 0, "length": 1}]
    assert run(Paragraphs(Paragraphs.Config(copies=4)), given, tmp_path) == given
    assert isinstance(run(Paragraphs(Paragraphs.Config(action="drop")), given, tmp_path)[1], Document)
    lines = run(Paragraphs(Paragraphs.Config(unit="line", least_characters=5)), given, tmp_path)
    assert lines[3].text == text(2)


def test_slices_do_not_change_the_result(tmp_path, monkeypatch):
    from trivium.data.dedup import repeats

    given = documents(*(f"{text(n % 7)}\n\n{text(n)}" for n in range(40)), split=["train"] * 39 + ["test"])
    for step in (Paragraphs(Paragraphs.Config()), Substrings(Substrings.Config())):
        wanted = run(step, given, tmp_path)
        monkeypatch.setattr(repeats, "_BYTES_EACH", 1 << 22)
        assert run(step, given, tmp_path, part=11) == wanted
        monkeypatch.undo()
        assert wanted[39].text == given[39].text  # what is held out stays whole


# Substrings


def test_repeated_passages_are_cut_wherever_they_stand(tmp_path):
    passage = text("passage", 60)
    given = documents(
        f"{text(0)} {passage} {text(1)}",
        f"{text(2, 300)}, {passage.upper()}! {text(3)}",
        passage,
        f"{text(4)} {' '.join(passage.split()[:49])} end",
        f"{text(5)} {passage} {text(6)} {passage}",
    )
    found = run(Substrings(Substrings.Config()), given, tmp_path)
    assert found[0] is given[0]
    assert found[1].text == f"{text(2, 300)}, ! {text(3)}"
    assert found[2].reason == "repeated passages"
    assert found[3] is given[3]
    assert found[4].text == f"{text(5)}  {text(6)}"
    assert report(tmp_path, "substrings.jsonl") == [{"occurrences": 5, "document": "d0", "number": 200, "length": 11}]


def test_exactly_what_a_search_finds_is_cut(tmp_path):
    """Against trying every run of words."""
    draw = random.Random(0)
    stock = [text(f"stock {n}", draw.randint(5, 40)) for n in range(12)]
    given = documents(*(" ".join([text(n, 30), *draw.choices(stock, k=3), text(-n, 9)]) for n in range(1, 30)))
    found = run(Substrings(Substrings.Config(words=10, most_repeated=1)), given, tmp_path, part=4)
    seen: set[tuple[str, ...]] = set()
    for document, result in zip(given, found, strict=True):
        words = document.text.split()
        doomed = set()
        for at in range(len(words) - 9):
            window = tuple(words[at : at + 10])
            if window in seen:
                doomed.update(range(at, at + 10))
            seen.add(window)
        assert result.text.split() == [word for place, word in enumerate(words) if place not in doomed]


# Semantic


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from trivium.artifacts.writer import write_artifact
    from trivium.models.build import build_model, preset
    from trivium.models.folder import save_model
    from trivium.tokenizers.train import train_bpe

    folder = tmp_path_factory.mktemp("models") / "model"
    tokenizer = train_bpe((text(n) for n in range(5)), vocab_size=400)
    config = preset("llama-10m", {"vocab_size": 400, "num_layers": 1, "hidden_size": 32, "intermediate_size": 32,
                                  "num_heads": 2, "num_kv_heads": 2, "head_dim": 16})  # fmt: skip
    with write_artifact(folder, kind="model") as temporary:
        save_model(temporary, config, build_model(config, seed=0).state_dict())
        tokenizer.save(temporary)
    return folder


def test_texts_with_nearly_the_same_vector_are_merged(model, tmp_path):
    given = documents(text(0), text(1), altered(text(0), 1), text(0), "short")
    step = Semantic(Semantic.Config(model=str(model), threshold=0.999))
    found = run(step, given, tmp_path)
    assert isinstance(found[3], Merged)
    assert found[3].into == "d0"
    assert isinstance(found[4], Document)
    assert kept(run(Semantic(Semantic.Config(model=str(model), threshold=0.01)), given, tmp_path)) == ["d0", "d4"]
    many = documents(*(text(n % 20) for n in range(60)))
    alike = kept(run(Semantic(Semantic.Config(model=str(model), threshold=0.9999, groups=4)), many, tmp_path))
    assert alike == [f"d{n}" for n in range(20)]
    assert step.parents() == [model]


# Decontamination


@pytest.fixture
def test_set(tmp_path) -> Path:
    file = tmp_path / "test.jsonl"
    rows = [{"question": text(f"q{n}", 40), "answer": text(f"a{n}", 9), "label": "yes"} for n in range(20)]
    rows.append({"question": "Which of these five words?", "answer": "none"})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_documents_with_text_of_a_test_set_are_dropped_with_evidence(test_set):
    step = Decontaminate(Decontaminate.Config(against=str(test_set)))
    leaked = " ".join(text("q3", 40).split()[5:25])
    given = documents(
        text(0),
        f"{text(1)} {leaked.upper()} {text(2)}",
        f"{text(3)} {text('a7', 9)} {text(4)}",
        f"{text(5)} {' '.join(text('q4', 40).split()[:12])}",
        "which of THESE five words",
        "Which of these five words is it?",
    )
    found = step.apply_all(given)
    assert [type(each) for each in found] == [Document, Dropped, Dropped, Document, Dropped, Document]
    assert found[1].reason == "text of a test set"
    assert found[1].evidence == f"test.jsonl, row test.jsonl:4, 5% of the words: {leaked.upper()}"
    assert [step.apply(each) for each in given] == found
    ten = Decontaminate(Decontaminate.Config(against=[str(test_set)], ngram=10))
    assert isinstance(ten.apply(given[3]), Dropped)
    assert isinstance(
        Decontaminate(Decontaminate.Config(against=str(test_set), least_share=0.3)).apply(given[1]), Document
    )


def test_cutting_keeps_the_pieces(test_set):
    leaked = text("q3", 40)
    before, after = text(0, 100), text(1, 100)
    step = Decontaminate(Decontaminate.Config(against=str(test_set), action="cut", window=20, least_piece=50))
    (given,) = documents(f"{before} {leaked} {after}")
    pieces = step.apply(given)
    assert [piece.id for piece in pieces] == ["d0#0", "d0#1"]
    assert before.startswith(pieces[0].text)
    assert after.endswith(pieces[1].text)
    assert len(pieces[0].text) in range(len(before) - 21, len(before) - 18)
    assert all(piece.meta["parent"] == "d0" for piece in pieces)
    assert isinstance(step.apply(documents(leaked)[0]), Dropped)
    scattered = documents(" ".join(f"{text(n, 30)} {leaked}" for n in range(12)))[0]
    assert step.apply(scattered).reason == "too many pieces around text of a test set"


def test_the_real_test_set_of_a_benchmark_is_not_found_in_other_text(tmp_path):
    folder = shared("minhash_articles")
    lines = gzip.decompress((folder / "articles_1000.train.gz").read_bytes()).decode().splitlines()
    rows = tmp_path / "sentences.jsonl"
    sentences = [sentence for n in range(50) for sentence in re.split(r"(?<=\.) ", text(n))]
    rows.write_text("".join(json.dumps({"text": sentence}) + "\n" for sentence in sentences))
    step = Decontaminate(Decontaminate.Config(against=str(rows)))
    assert all(isinstance(each, Document) for each in step.apply_all(documents(*lines)))
