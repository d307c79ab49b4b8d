"""BLEU, chrF and ROUGE of written texts."""

from __future__ import annotations

import pytest

from trivium.errors import TriviumError
from trivium.evaluation.translation import generation_scores, rouge_l, rouge_n

pytest.importorskip("sacrebleu")


def test_equal_texts_have_every_score_and_strangers_none() -> None:
    texts = ["the quick brown fox jumps over the dog", "two men talk in the street"]
    same = generation_scores(["a", "b"], texts, texts)
    assert {name: round(value, 6) for name, value in same.values.items()} == {
        "bleu": 100.0, "chrf": 100.0, "rouge1": 100.0, "rouge2": 100.0, "rougeL": 100.0, "exact": 1.0, "copied": 0.0
    }  # fmt: skip
    assert "tok:13a" in same.signatures["bleu"]
    none = generation_scores(texts, texts, ["xyz", ""])
    assert all(value < 1 for value in none.values.values())
    assert generation_scores(texts, ["a", "b"], texts).values["copied"] == 1


def test_intervals_hold_the_value_and_narrow_with_the_rows() -> None:
    wanted = [f"the {word} sleeps in the house" for word in ["cat", "dog", "fox", "cow", "owl", "hen"]] * 10
    written = [text if at % 3 else "no idea at all" for at, text in enumerate(wanted)]
    many = generation_scores(wanted, wanted, written, resamples=200)
    for name, figure in many.figures.items():
        assert figure.low <= figure.value <= figure.high, name
    small = generation_scores(wanted[:12], wanted[:12], written[:12], resamples=200)
    for name in ("bleu", "rougeL", "exact"):
        widths = [figure.high - figure.low for figure in (small.figures[name], many.figures[name])]
        assert widths[0] > widths[1] > 0, name


def test_rouge_counts_what_both_have() -> None:
    output, target = ["the", "cat", "the", "dog"], ["the", "cat", "sat", "on", "the", "mat"]
    assert rouge_n(output, target, 1) == pytest.approx(2 * 3 / (4 + 6))
    assert rouge_n(output, target, 2) == pytest.approx(2 * 1 / (3 + 5))
    assert rouge_l(output, target) == pytest.approx(2 * 3 / (4 + 6))
    assert rouge_l(["b", "a"], ["a", "b"]) == pytest.approx(0.5)
    assert rouge_l([], target) == rouge_n([], [], 1) == 0


def test_umlauts_are_letters() -> None:
    assert generation_scores(["x"], ["schöne Grüße"], ["schöne Grüße"]).values["rouge2"] == pytest.approx(100)


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(TriviumError, match="sample"):
        generation_scores(["a"], ["b", "c"], ["d", "e"])
