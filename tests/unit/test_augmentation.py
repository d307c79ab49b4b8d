"""Augmentation: what is changed and what never, whose child a text is, and that each setting has an effect."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import trivium as tv
from trivium import registry
from trivium.artifacts.lineage import read_lineage, render_text
from trivium.data.augment.inflection import analyses, begins_with_vowel, inflect
from trivium.data.augment.noise import neighbours
from trivium.data.augment.rows import augment_rows
from trivium.data.augment.similarity import chrf, common_words
from trivium.data.augment.step import Augmenter
from trivium.data.augment.thesaurus import SMALL, open_thesaurus, write_small
from trivium.data.augment.wordnet import USUAL_FOLDERS
from trivium.data.augment.words import protected_terms, words_of
from trivium.data.augment.writing import units_of
from trivium.data.dataset import open_dataset
from trivium.data.documents import Document
from trivium.errors import ConfigError, DataError
from trivium.models.build import build_model, preset
from trivium.models.folder import save_model
from trivium.recipe import DataSection
from trivium.tokenizers.special import expanded
from trivium.tokenizers.train import train_bpe

TEXT = "The movie quickly shows a big house. It was an awful film, and the actors seldom smiled at the kids."
WORDNET = any((Path(folder) / "index.noun").is_file() for folder in USUAL_FOLDERS)


def step(name: str, *, seed: int = 0, **settings: Any) -> Augmenter:
    cls = registry.component("data/steps", name)
    made: Augmenter = cls(cls.Config(**settings), seed=seed)
    return made


def document(text: str = TEXT, name: str = "d1", **meta: Any) -> Document:
    return Document(name, text, "file:1", "CC0", meta)


def children(made: Augmenter, *documents: Document) -> list[Document]:
    found = []
    for given, result in zip(documents, made.apply_all(documents), strict=True):
        if isinstance(result, Document):
            assert result is given
        else:
            assert result[0] is given, "the parent stays, as it is"
            found += result[1:]
    return found


def texts(made: Augmenter, *documents: Document) -> list[str]:
    return [child.text for child in children(made, *(documents or (document(),)))]


# Families


@pytest.mark.parametrize("name", ["synonyms", "noise", "eda"])
def test_a_child_keeps_everything_and_says_whose_it_is(name: str) -> None:
    parent = document(label="good", title="T", split="train")
    (first, *rest) = children(step(name, children=3), parent)
    assert first.meta["parent"] == "d1" and first.meta["group"] == "d1" and first.meta["label"] == "good"
    assert first.meta["augmentation"]["step"] == name
    assert (first.source, first.licence, first.meta["title"]) == (parent.source, "CC0", "T")
    assert len({child.id for child in (first, *rest)}) == 1 + len(rest) and first.id.startswith(f"d1~{name}-")
    (grouped,) = children(step(name, children=1), document(group="book"))
    assert grouped.group == "book"


@pytest.mark.parametrize("name", ["synonyms", "noise", "eda"])
def test_a_child_is_a_function_of_settings_seed_and_document(name: str) -> None:
    documents = [document(TEXT, f"d{number}") for number in range(6)]
    alone = [text for each in documents for text in texts(step(name, children=2), each)]
    assert texts(step(name, children=2), *documents) == alone, "how documents are grouped does not matter"
    assert texts(step(name, children=2, **{}), *documents[::-1]) != alone
    assert texts(step(name, children=2, seed=1), *documents) != alone
    assert len(set(alone)) > 3, "another document, another child"


def test_held_out_documents_and_children_are_left_alone() -> None:
    for meta in ({"split": "validation"}, {"augmentation": {"step": "eda"}, "parent": "x"}):
        assert not texts(step("noise"), document(**meta))
    assert texts(step("noise", splits=["validation"]), document(split="validation"))
    assert texts(step("noise", originals_only=False), document(augmentation={"step": "eda"}))
    assert texts(step("noise"), document(split="train"))


def test_the_same_text_twice_is_one_child() -> None:
    made = step("synonyms", children=30, share=0.01)
    found = texts(made, document("A big house."))
    assert len(found) == len(set(found)) < 30
    assert made.account["alike"] == 30 - len(found) and made.account["children"] == len(found)
    assert not texts(step("synonyms"), document("12 + 3 = 15"))


def test_no_split_divides_a_family() -> None:
    splitter = registry.component("data/steps", "split")
    parents = [document(f"{TEXT} {number}", f"d{number}") for number in range(60)]
    everything = [*parents, *children(step("noise", children=2), *parents)]
    made = splitter(splitter.Config(validation=0.3), seed=0)
    sketch = made.sketch(everything)
    splits = {}
    folder = Path("/nonexistent")
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        files = {}
        for name, data in sketch.items():
            (Path(place) / name).write_bytes(data)
            files[name] = Path(place) / name
        folder = Path(place) / "out"
        folder.mkdir()
        (decision,) = made.decide([files], folder)
        for given, result in zip(everything, made.apply_all(everything, decision), strict=True):
            if isinstance(result, Document):
                splits.setdefault(given.meta.get("parent", given.id), set()).add(result.meta["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert len({split for found in splits.values() for split in found}) == 2


# Similarity


def test_chrf_is_that_of_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu.metrics.chrf")
    metric = sacrebleu.CHRF()
    for one, other in (
        ("the cat sat", "the cat sits"),
        ("Ein Haus.", "Ein kleines Haus"),
        ("abc", "xyz"),
        ("a b", "a"),
    ):
        assert 100 * chrf(other, one) == pytest.approx(metric.sentence_score(one, [other]).score, abs=0.5)


def test_words_in_common() -> None:
    assert common_words("a b c", "a b c") == 1
    assert common_words("a b", "c d") == 0
    assert common_words("A b c", "a b d") == pytest.approx(3 / 9)


@pytest.mark.parametrize("measure", ["chrf", "words"])
def test_the_filter_keeps_what_is_near_enough_and_not_too_near(measure: str) -> None:
    wide = children(step("noise", children=6, rate=0.1, similarity={"measure": measure}), document())
    values = sorted(child.meta["augmentation"]["similarity"] for child in wide)
    middle = values[3]
    made = step("noise", children=6, rate=0.1, similarity={"measure": measure, "least": middle})
    assert len(texts(made)) == sum(value >= middle for value in values)
    assert made.account["too little similar"] == sum(value < middle for value in values)
    near = step("noise", children=6, rate=0.1, similarity={"measure": measure, "most": middle})
    assert len(texts(near)) == sum(value <= middle for value in values)


# Synonyms


def test_words_keep_their_form_and_their_capitals() -> None:
    listed = open_thesaurus("small")
    forms = {"s": ("houses", "carries", "boxes"), "ed": ("stopped", "carried", "liked"), "ing": ("running", "liking")}
    for form, words in forms.items():
        for word in words:
            assert form in {found for _, found in analyses(word)}
    assert (
        inflect("visit", "ed") == "visited" and inflect("die", "ing") == "dying" and inflect("see", "ing") == "seeing"
    )
    assert [begins_with_vowel(word) for word in ("epic", "hour", "unit", "one", "uninteresting")] == [1, 1, 0, 0, 1]
    made = step("synonyms", share=1.0)
    assert texts(made, document("The films were shown. MOVIES! Film is an art.")) in (
        ["The movies were shown. FILMS! Movie is an art."],
    )
    assert listed.inflected("hold", "v", "ed") is None, "held is not regular, and may be two forms"


def test_an_article_follows_its_word() -> None:
    for text, wanted in (("She saw an error.", "She saw a mistake."), ("A mistake!", "An error!")):
        found = set(texts(step("synonyms", share=1.0, children=20), document(text)))
        assert wanted in found, found


def test_names_addresses_and_protected_terms_stay(tmp_path: Path) -> None:
    text = "See the film at https://film.org/movie or ask @movie about Film Four, movie9 and the big movie house."
    for child in texts(step("synonyms", share=1.0, children=9), document(text)):
        assert "https://film.org/movie" in child and "@movie" in child and "Film Four" in child and "movie9" in child
    terms = tmp_path / "terms.txt"
    terms.write_text("movie   house\nBIG\n")
    for child in texts(step("synonyms", share=1.0, children=9, protected=[str(terms)]), document(text)):
        assert "big movie house" in child
    assert [word.text for word in words_of("a big Movie house", protected_terms(["movie house"]))] == ["a", "big"]
    with pytest.raises(DataError, match="protected terms"):
        step("synonyms", protected=["missing.txt"])


def test_the_share_says_how_many(tmp_path: Path) -> None:
    counts = [
        children(step("synonyms", share=share), document())[0].meta["augmentation"]["replaced"]
        for share in (0.01, 0.2, 1)
    ]
    assert counts[0] == 1 < counts[1] < counts[2]


def test_doubtful_words_stay() -> None:
    bold = texts(step("synonyms", share=1.0, certainty=0.0), document("They film it. The watch stopped."))
    careful = texts(step("synonyms", share=1.0, certainty=0.99), document("They film it. The watch stopped."))
    assert bold and bold != careful


def test_a_list_of_ones_own(tmp_path: Path) -> None:
    rows = tmp_path / "list.jsonl"
    rows.write_text('{"word": "gadget", "synonyms": ["widget"]}\n{"word": "zap", "synonyms": ["blast"], "part": "v"}\n')
    text = document("Two gadgets zapped it, and a Gadget.", language="de")
    assert texts(step("synonyms", thesaurus=str(rows), share=1.0), text) == ["Two widgets blasted it, and a Gadget."]
    assert not texts(step("synonyms", thesaurus=str(rows), share=1.0, inflect=False), text)
    table = tmp_path / "list.csv"
    table.write_text("word,synonyms\nHaus,Gebäude; Bau\nalt,betagt\n")
    found = step("synonyms", thesaurus=str(table), inflect=False, share=1.0, children=9)
    assert set(texts(found, document("ein alt haus"))) == {"ein betagt Gebäude", "ein betagt Bau"}
    for bad in ('{"word": "x"}', '{"word": "x", "synonyms": [1]}', '{"word": "x", "synonyms": ["y"], "part": "z"}'):
        rows.with_name("bad.jsonl").write_text(bad + "\n")
        open_thesaurus.cache_clear()
        with pytest.raises(DataError, match="no word with its synonyms"):
            step("synonyms", thesaurus=str(rows.with_name("bad.jsonl")))
    with pytest.raises(DataError, match="no such thesaurus"):
        step("synonyms", thesaurus="nowhere.jsonl")


def test_the_built_in_list_is_for_english() -> None:
    assert not texts(step("synonyms"), document(language="de"))
    assert texts(step("synonyms"), document(language="en"))


@pytest.mark.skipif(not WORDNET, reason="WordNet is not installed (apt install wordnet-base)")
class TestWordNet:
    def test_only_words_of_the_same_most_frequent_meaning(self) -> None:
        found = open_thesaurus("wordnet")
        assert found.synonyms("movie", "n") == ("film",)
        first, more = found.synonyms("house", "n"), open_thesaurus("wordnet", senses=4).synonyms("house", "n")
        assert set(first) < set(more)
        assert found.synonyms("zzzz", "n") == () and found.readings("zzzz") == []

    def test_readings_know_irregular_words(self) -> None:
        found = open_thesaurus("wordnet")
        assert ("child", "n", "s") in {(r.base, r.part, r.form) for r in found.readings("children")}
        assert ("stop", "v", "ed") in {(r.base, r.part, r.form) for r in found.readings("stopped")}
        assert found.inflected("stop", "v", "ing") == "stopping" and found.inflected("wolf", "n", "s") == "wolves"
        assert found.inflected("go", "v", "ed") is None

    def test_settings_have_an_effect(self) -> None:
        found = [
            texts(step("synonyms", thesaurus="wordnet", share=1.0, children=20, **more))
            for more in ({}, {"senses": 3}, {"usual": 0.95})
        ]
        assert len({tuple(each) for each in found}) == 3

    def test_the_list_in_the_package_is_made_from_it(self, tmp_path: Path) -> None:
        assert write_small(open_thesaurus("wordnet"), tmp_path / "small.jsonl") > 2000
        assert (tmp_path / "small.jsonl").read_bytes() == SMALL.read_bytes()


def test_without_wordnet_the_error_says_what_to_install(tmp_path: Path) -> None:
    open_thesaurus.cache_clear()
    with pytest.raises(DataError, match="wordnet-base"):
        step("synonyms", thesaurus=str(tmp_path))


# Noise and EDA


def test_each_kind_of_slip() -> None:
    near = neighbours("qwerty")
    assert set("qwerty") <= set(near) and "w" in near["q"] and "p" not in near["q"]
    text = document("mailing clever words together")
    for kind in ("keyboard", "ocr", "swap", "delete", "repeat"):
        for child in texts(step("noise", kinds={kind: 1}, rate=0.01, children=12), text):
            if kind == "keyboard":
                (pair,) = [(a, b) for a, b in zip(text.text, child, strict=True) if a != b]
                assert pair[1] in near[pair[0]]
            assert len(child) - len(text.text) in {"delete": {-1}, "repeat": {1}, "ocr": {-1, 0, 1}}.get(kind, {0})
            if kind == "swap":
                assert Counter(child) == Counter(text.text)


def test_settings_of_noise() -> None:
    variants = [{}, {"rate": 0.2}, {"kinds": {"swap": 1}}, {"kinds": {"keyboard": 1}}]
    variants += [{"kinds": {"keyboard": 1}, "layout": "azerty"}, {"protected": ["quickly shows a big house"]}]
    found = [tuple(texts(step("noise", children=4, **more))) for more in variants]
    assert len(set(found)) == len(variants)
    assert all("quickly shows a big house" in text for text in found[-1])
    slips = [children(step("noise", rate=rate), document())[0].meta["augmentation"]["slips"] for rate in (0.001, 0.3)]
    assert slips == [1, round(0.3 * sum(map(str.isalpha, TEXT)))]
    with pytest.raises(ValueError, match="weight above 0"):
        step("noise", kinds={"swap": 0})


def test_the_operations_of_eda() -> None:
    words = Counter(re.findall(r"\w+", TEXT))
    found = {}
    for name in ("synonyms", "insertions", "swaps", "deletions"):
        off = dict.fromkeys({"synonyms", "insertions", "swaps", "deletions"} - {name}, 0)
        found[name] = texts(step("eda", **off, children=3))
        counts = [Counter(re.findall(r"\w+", text)) for text in found[name]]
        if name == "swaps":
            assert all(count == words for count in counts)
        if name == "deletions":
            assert all(count < words for count in counts)
        if name == "insertions":
            assert all(count > words for count in counts)
        if name == "synonyms":
            assert all(count.total() == words.total() for count in counts)
        assert {child.meta["augmentation"]["operation"] for child in children(step("eda", **off), document())} == {name}
    assert len({tuple(each) for each in found.values()}) == 4
    operations = [child.meta["augmentation"]["operation"] for child in children(step("eda", children=4), document())]
    assert sorted(operations) == ["deletions", "insertions", "swaps", "synonyms"]


def test_settings_of_eda(tmp_path: Path) -> None:
    rows = tmp_path / "list.jsonl"
    rows.write_text('{"word": "house", "synonyms": ["shed"]}\n')
    variants = [{}, {"synonyms": 0.5}, {"insertions": 0.5}, {"swaps": 0.5}, {"deletions": 0.5}]
    variants += [{"thesaurus": str(rows)}, {"protected": ["house"]}, {"certainty": 0.999}, {"children": 8}]
    found = [tuple(texts(step("eda", **more))) for more in variants]
    assert len(set(found)) == len(variants)
    assert texts(step("eda", children=4), document("word")) == [], (
        "nothing can be changed in one word that has no synonym"
    )


# Models that write


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An encoder-decoder of random weights: it writes nonsense, but always the same."""
    folder = tmp_path_factory.mktemp("models") / "t5"
    folder.mkdir()
    tokenizer = train_bpe([TEXT * 5], vocab_size=420, special=expanded(["sentinels"]))
    more = {
        "num_layers": 1,
        "hidden_size": 32,
        "num_heads": 2,
        "head_dim": 16,
        "intermediate_size": 32,
        "start_id": tokenizer.eos_id,
    }
    config = preset("t5-1m", {"vocab_size": tokenizer.vocab_size, "eos_id": tokenizer.eos_id, **more})
    model = build_model(config, seed=3)
    save_model(folder, config, model.state_dict())
    tokenizer.save(folder)
    return str(folder)


SHORT = {"beams": 2, "max_new_tokens": 12}


def test_units_put_together_again_are_the_text() -> None:
    for text in (TEXT, "", "  One. Two!\n\n- three\n  4.  \n", "no end", 'He said "Go." Then left.'):
        units = units_of(text, "sentence")
        assert units.joined(units.units) == text
    assert units_of("One. Two!\nThree", "sentence").units == ("One.", "Two!", "Three")
    assert units_of("One. Two!", "text").units == ("One. Two!",)


def test_paraphrases_come_from_the_model(writer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from trivium.data.augment import writing

    made = step("paraphrase", model=writer, **SHORT)
    assert made.parents() == [Path(writer)]
    asked: list[list[str]] = []

    def answers(self: Any, given: list[str], count: int) -> list[list[writing.Answer]]:
        asked.append(list(given))
        return [[writing.Answer(f"{text[:-1]} indeed {n}.", True) for n in range(count)] for text in given]

    monkeypatch.setattr(writing.Writer, "answers", answers)
    two = step("paraphrase", model=writer, children=2)
    assert texts(two, document("A b. C d."), document("E f.", "d2")) == [
        "A b indeed 0. C d indeed 0.",
        "A b indeed 1. C d indeed 1.",
        "E f indeed 0.",
        "E f indeed 1.",
    ]
    assert asked == [["A b.", "C d.", "E f."]], "the sentences of several documents are written together"
    assert texts(step("paraphrase", model=writer, unit="text"), document("A b. C d.")) == ["A b. C d indeed 0."]


def test_what_a_model_did_not_finish_stays(writer: str) -> None:
    made = step("paraphrase", model=writer, beams=1, max_new_tokens=1)
    assert not texts(made) and made.account["unchanged"] == 1


def answers_of(writer: str, **settings: Any) -> list[list[str]]:
    from trivium.data.augment.writing import Writer

    cls = registry.component("data/steps", "paraphrase")
    config = cls.Config(model=writer, **{**SHORT, **settings})
    made = Writer(writer, config.prefix, config, seed=settings.get("seed", 0), where="model")
    return [[answer.text for answer in group] for group in made.answers(["The movie", "a big house"], config.children)]


def test_settings_of_a_writer_have_an_effect(writer: str) -> None:
    base = answers_of(writer)
    variants = [{"prefix": "paraphrase: "}, {"max_new_tokens": 5}, {"temperature": 2.0}, {"children": 2}]
    for more in variants:
        assert answers_of(writer, **more) != base
    drawn = answers_of(writer, temperature=2.0, children=2)
    assert drawn[0][0] != drawn[0][1]
    assert answers_of(writer, temperature=2.0, children=2, batch=1) == drawn
    assert answers_of(writer, temperature=2.0, children=2, top_p=0.05) != drawn


def test_answers_are_kept_on_the_disk(writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = str(tmp_path / "cache")
    first = answers_of(writer, cache=cache)
    assert len(list(Path(cache).glob("*.jsonl"))) == 1

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing should be written again")

    monkeypatch.setattr("trivium.inference.model.LanguageModel.generate", refuse)
    assert answers_of(writer, cache=cache) == first
    with pytest.raises(AssertionError):
        answers_of(writer, cache=cache, prefix="x")


def test_back_translation_goes_through_each_pivot(writer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from trivium.data.augment import writing

    def answers(self: Any, given: list[str], count: int) -> list[list[writing.Answer]]:
        return [[writing.Answer(f"{self._prefix}{text}{n or ''}", True) for n in range(count)] for text in given]

    monkeypatch.setattr(writing.Writer, "answers", answers)
    there = {"path": writer, "prefix": "de "}
    pivots = [
        {"name": name, "there": there, "back": {"path": writer, "prefix": f"{name} "}} for name in ("german", "french")
    ]
    made = step("backtranslate", pivots=pivots, **SHORT)
    found = children(made, document("A b."))
    assert [child.text for child in found] == ["german de A b.", "french de A b."]
    assert [child.meta["augmentation"]["pivot"] for child in found] == ["german", "french"]
    quality = found[0].meta["augmentation"]["quality"]
    score = tv.load(writer).score("A b.", source="german de A b.")
    assert quality == pytest.approx(score.total / len(score.ids), abs=1e-3)
    assert made.parents() == [Path(writer)]
    strict = step("backtranslate", pivots=pivots, least_quality=-0.001, **SHORT)
    assert not texts(strict, document("A b.")) and strict.account["too little of the original is left"] == 2
    assert len(texts(step("backtranslate", pivots=pivots, children=2), document("A b."))) == 4


def test_embeddings_measure_similarity(writer: str) -> None:
    found = children(step("noise", children=4, rate=0.2, similarity={"measure": writer}), document())
    vectors = tv.load(writer).embed([TEXT, found[0].text])
    assert found[0].meta["augmentation"]["similarity"] == pytest.approx(float(vectors[0] @ vectors[1]), abs=2e-4)
    assert step("noise", similarity={"measure": writer}).parents() == [Path(writer)]


def test_a_decoder_is_no_writer(tmp_path: Path) -> None:
    tokenizer = train_bpe([TEXT], vocab_size=280)
    config = preset("gpt2-1m", {"vocab_size": 280, "num_layers": 1, "hidden_size": 32, "num_heads": 2})
    save_model(tmp_path, config, build_model(config, seed=0).state_dict())
    tokenizer.save(tmp_path)
    with pytest.raises(ConfigError, match="encoder-decoder"):
        texts(step("paraphrase", model=str(tmp_path)))


# Rows


def labelled(path: Path, count: int = 12) -> Path:
    with path.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["label", "text", "stars"])
        for number in range(count):
            table.writerow([("bad", "good")[number % 2], f"The big film number {'x' * number} shows a house.", number])
    return path


def test_rows_keep_their_columns(tmp_path: Path) -> None:
    source = labelled(tmp_path / "rows.csv")
    steps = ["eda", {"name": "noise", "rate": 0.05}]
    done = augment_rows([str(source)], tmp_path / "out", steps=steps)
    rows = [json.loads(line) for line in done.rows.read_text().splitlines()]
    originals = {row["id"]: row for row in rows if "parent" not in row}
    assert len(originals) == done.report["rows"] == 12
    assert len(rows) - 12 == done.report["children"] == sum(done.report["made"].values())
    for row in rows:
        parent = originals[row.get("parent", row["id"])]
        assert (row["label"], row["stars"]) == (parent["label"], parent["stars"])
        assert "parent" not in row or (row["text"] != parent["text"] and row["group"] == parent["id"])
    assert {row["augmentation"]["step"] for row in rows if "parent" in row} == {"eda", "noise"}
    assert "rows.csv" in render_text(read_lineage(done.folder))
    again = augment_rows([str(source)], tmp_path / "again", steps=steps)
    assert again.rows.read_bytes() == done.rows.read_bytes()
    assert (
        augment_rows([str(source)], tmp_path / "other", steps=steps, seed=1).rows.read_bytes() != done.rows.read_bytes()
    )


def test_several_columns_are_augmented_together(tmp_path: Path) -> None:
    source = tmp_path / "pairs.jsonl"
    source.write_text('{"premise": "A big movie house.", "hypothesis": "12 34", "label": "x", "id": 7}\n')
    done = augment_rows([str(source)], tmp_path / "out", steps=["noise"], fields=["hypothesis", "premise"])
    first, child = (json.loads(line) for line in done.rows.read_text().splitlines())
    assert child["hypothesis"] == "12 34" and child["premise"] != first["premise"] and child["parent"] == "7"


def test_rows_that_cannot_be_augmented(tmp_path: Path) -> None:
    source = labelled(tmp_path / "rows.csv")
    with pytest.raises(DataError, match="no field 'body'"):
        augment_rows([str(source)], tmp_path / "out", steps=["eda"], fields=["body"])
    with pytest.raises(ConfigError, match="makes no rows"):
        augment_rows([str(source)], tmp_path / "out", steps=["clean"])
    with pytest.raises(ConfigError, match="did you mean"):
        augment_rows([str(source)], tmp_path / "out", steps=[{"name": "eda", "childen": 3}])
    (tmp_path / "bad.jsonl").write_text('{"text": 5}\n{"text": "a big film"}\n')
    done = augment_rows([str(tmp_path / "bad.jsonl")], tmp_path / "out", steps=["noise"], on_error="quarantine")
    assert done.report["rows"] == 1 and sum(done.report["quarantined"].values()) == 1


def test_augmented_rows_train_a_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from trivium.cli.main import run

    source, out = labelled(tmp_path / "rows.csv"), tmp_path / "out"
    command = ["data", "augment", str(source), "--output", str(out), "--step", "{name: eda, children: 2}", "--json"]
    assert run(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows"] == 12 and report["children"] > 12
    tokenizer = train_bpe([TEXT * 5], vocab_size=300, special=expanded(["mask"]))
    tokenizer.save(tmp_path / "tokenizer")
    config = {"vocab_size": tokenizer.vocab_size, "num_layers": 1, "hidden_size": 32, "num_heads": 2}
    recipe = {
        "name": "run",
        "runs": str(tmp_path / "runs"),
        "method": "classification",
        "model": {"preset": "bert-1m", "config": config},
        "tokenizer": str(tmp_path / "tokenizer"),
        "data": {"train": str(out / "rows.jsonl"), "sequence_length": 128, "truncation": "right"},
        "train": {"steps": 2, "batch_size": 4, "threads": 1, "compile": "off"},
    }
    folder = tv.train(recipe).folder
    data = json.loads((folder / "data.json").read_text())["train"]
    assert data["labels"].keys() == {"bad", "good"} and data["kept"] == 12 + report["children"]
    lineage = render_text(read_lineage(folder / "final"))
    assert "rows.jsonl" in lineage and "rows.csv" in lineage, "and what the rows were made from"


def test_labels_pass_a_pipeline(tmp_path: Path) -> None:
    from trivium.data.pipeline import run_pipeline

    source = labelled(tmp_path / "rows.csv", count=40)
    pipeline = {
        "output": str(tmp_path / "out"),
        "workers": 1,
        "sources": [str(source)],
        "steps": ["clean", {"name": "split", "validation": 0.3}, {"name": "eda", "children": 2}],
    }
    done = run_pipeline(pipeline)
    splits = {}
    for split in ("train", "validation"):
        rows = [json.loads(line) for line in (done.folder / f"documents.{split}.jsonl").read_text().splitlines()]
        splits[split] = rows
        assert all(row["meta"]["label"] in ("bad", "good") for row in rows)
    assert not any("parent" in row["meta"] for row in splits["validation"]), "held-out rows are not augmented"
    assert sum("parent" in row["meta"] for row in splits["train"]) > 20
    tokenizer = train_bpe([TEXT * 5], vocab_size=300)
    section = DataSection(train=str(done.folder / "documents.train.jsonl"), truncation="right", sequence_length=64)
    dataset = open_dataset(section.train, kind="labels", tokenizer=tokenizer, settings=section)
    assert dataset.summary()["labels"].keys() == {"bad", "good"} and len(dataset) == len(splits["train"])
