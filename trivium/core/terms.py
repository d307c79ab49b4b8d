"""A loss is a sum and the unit it is counted in; the loop divides by the count over the whole update.

Dividing by a count that is known only for the whole update (all micro-batches of all ranks) is what makes the
gradient independent of how the update was split. A method never divides by a batch size itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Term:
    """One summand of the loss.

    sum:         scalar tensor, summed over the micro-batch and still attached to the graph.
    unit:        what it is a sum over ("tokens", "pairs", "sequences"); a key of `Method.weights`.
    coefficient: weight in the total loss. A term with coefficient 0 is only reported.
    """

    sum: Tensor
    unit: str
    coefficient: float = 1.0


Terms = dict[str, Term]
Counts = Mapping[str, float]


def scaled_total(terms: Terms, counts: Counts) -> Tensor:
    """sum over terms of coefficient * sum / count of its unit over the whole update; a scalar.

    A unit of which the update holds nothing (count 0) contributes 0, with its graph kept.
    """
    total: Tensor | None = None
    for name, term in terms.items():
        if term.unit not in counts:
            raise KeyError(f"term {name!r} is counted in {term.unit!r}, which weights() does not report")
        count = counts[term.unit]
        value = term.sum * (term.coefficient / count if count else 0.0)
        total = value if total is None else total + value
    if total is None:
        raise ValueError("loss() returned no terms")
    return total
