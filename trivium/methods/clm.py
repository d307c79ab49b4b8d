"""Causal language modelling: predict each token from those before it.

    loss = - sum_t log p(x_t | x_<t) / number of tokens

Unit: tokens, over all micro-batches and ranks. Roles: the policy. Documents packed into one row do not see each other.
Not: masked or span-corruption objectives, which are methods of their own.

Bengio et al. 2003; Radford et al. 2018.
"""

from __future__ import annotations

from trivium import losses
from trivium.config import StrictModel
from trivium.core.method import Method
from trivium.core.terms import Term, Terms
from trivium.data.batch import Batch


class CausalLanguageModelling(Method):
    """Next-token prediction on documents."""

    class Config(StrictModel):
        """Causal language modelling has no settings of its own."""

    def loss(self, batch: Batch) -> Terms:
        """Negative log-likelihood of every target."""
        nll = self.policy(batch, lambda hidden, head: losses.token_loss(hidden, head, batch.targets))
        return {"nll": Term(nll, unit="tokens")}
