"""How near written texts are to the texts that were wanted: BLEU, chrF and ROUGE.

BLEU and chrF are those of sacrebleu (Post 2018, arXiv:1804.08771), with the signature that makes figures comparable.
ROUGE (Lin 2004) is computed here: the usual Python package for it is no longer kept up.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trivium.errors import TriviumError


@dataclass(frozen=True)
class Scores:
    """values: figures from 0 to 100 by name. signatures: how BLEU and chrF were computed. samples: number of texts."""

    values: Mapping[str, float]
    signatures: Mapping[str, str]
    samples: int


def generation_scores(sources: Sequence[str], targets: Sequence[str], outputs: Sequence[str]) -> Scores:
    """BLEU, chrF, ROUGE-1, ROUGE-2 and ROUGE-L of `outputs` against `targets`, and how many are a copy of the source.

    sources, targets, outputs: one of each for every sample. Needs sacrebleu (`pip install trivium[evaluation]`).
    """
    if not targets or len({len(sources), len(targets), len(outputs)}) > 1:
        raise TriviumError(
            "each sample needs a source, a target and an output",
            value=f"{len(sources)} sources, {len(targets)} targets, {len(outputs)} outputs",
        )
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        raise TriviumError(
            "BLEU and chrF need the package sacrebleu", fix="pip install 'trivium[evaluation]'"
        ) from None
    values: dict[str, float] = {}
    signatures: dict[str, str] = {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        values[name] = float(metric.corpus_score(list(outputs), [list(targets)]).score)
        signatures[name] = str(metric.get_signature())
    pairs = [(_words(output), _words(target)) for output, target in zip(outputs, targets, strict=True)]
    for size in (1, 2):
        values[f"rouge{size}"] = _mean([rouge_n(output, target, size) for output, target in pairs])
    values["rougeL"] = _mean([rouge_l(output, target) for output, target in pairs])
    copied = [output.strip() == source.strip() for source, output in zip(sources, outputs, strict=True)]
    values["copied"] = _mean([float(each) for each in copied])
    return Scores(values, signatures, len(targets))


def rouge_n(output: Sequence[str], target: Sequence[str], size: int) -> float:
    """F1 of the runs of `size` words that both texts have, counted as often as both have them."""
    found, wanted = (Counter(zip(*(words[at:] for at in range(size)), strict=False)) for words in (output, target))
    return _f1((found & wanted).total(), found.total(), wanted.total())


def rouge_l(output: Sequence[str], target: Sequence[str]) -> float:
    """F1 of the longest common subsequence of words."""
    row = [0] * (len(target) + 1)
    for word in output:
        before = 0
        for place, other in enumerate(target, start=1):
            here = row[place]
            row[place] = before + 1 if word == other else max(here, row[place - 1])
            before = here
    return _f1(row[-1], len(output), len(target))


def _f1(common: int, found: int, wanted: int) -> float:
    return 2 * common / (found + wanted) if common else 0.0


def _words(text: str) -> list[str]:
    """Words in lower case; in all scripts, unlike the usual package, which knows ASCII only."""
    return re.findall(r"\w+", text.lower())


def _mean(values: Sequence[float]) -> float:
    return 100 * sum(values) / len(values)
