"""What a model that answers texts with texts is worth: its answers beside the wanted ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trivium.data.intake import Intake
from trivium.data.pairs import pair_of
from trivium.data.reading import read_rows
from trivium.errors import DataError
from trivium.evaluation.labelled import MISTAKES, Evaluation
from trivium.evaluation.translation import generation_scores
from trivium.inference.request import Beams

if TYPE_CHECKING:
    from trivium.inference.model import LanguageModel
    from trivium.inference.remote import RemoteModel
    from trivium.recipe import DataSection, Source

RESAMPLES = 300
"""Of the rows: BLEU and chrF take seconds for a thousand."""


def evaluate_pairs(
    model: LanguageModel | RemoteModel,
    sources: Sequence[Source],
    settings: DataSection,
    *,
    seed: int = 0,
    rows: int | None = None,
) -> Evaluation:
    """Answers the source of each pair, and compares with its target; greedily, unless the model's folder says how.

    rows: measure so many, drawn by the seed; default: all.
    """
    intake = Intake(settings.on_error)
    pairs = [
        pair_of(row, intake=intake, pairs=settings.pairs) for source in sources for row in read_rows(source, intake)
    ]
    if not pairs:
        raise DataError("no pair is left to measure", value=dict(intake.quarantined), fix="check the data")
    total = len(pairs)
    if rows is not None and rows < total:
        pairs = [pairs[number] for number in sorted(random.Random(seed).sample(range(total), rows))]
    asked, wanted = zip(*pairs, strict=True)
    # Chance would measure the luck of the draw; a folder that asks for it, or for beams, is taken at its word.
    defaults = getattr(model, "defaults", None)
    greedy = defaults is not None and defaults.chance is None and defaults.beams == Beams()
    answers = model.answers(list(asked), temperature=0.0) if greedy else model.answers(list(asked))
    written = [answer.text for answer in answers]
    scores = generation_scores(asked, wanted, written, resamples=RESAMPLES, seed=seed)
    predictions = [
        {"source": source, "true": target, "predicted": answer}
        for source, target, answer in zip(asked, wanted, written, strict=True)
    ]
    summary = {
        "kind": "pairs",
        "rows": len(pairs),
        "data": {"input": total + sum(intake.quarantined.values()), "kept": total, **intake.summary()},
        "metrics": {name: figure.as_dict() for name, figure in scores.figures.items()},
        "per_label": {},
        "signatures": dict(scores.signatures),
        "samples": predictions[:MISTAKES],
    }
    return Evaluation(summary, predictions)
