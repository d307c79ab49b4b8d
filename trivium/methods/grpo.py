"""Group relative policy optimisation: several answers to a prompt, each judged against the others of its group.

    loss = - sum_t min(r_t A, clip(r_t, 1 - e, 1 + e') A) / tokens + kl * sum_t k3(policy, reference) / tokens

r_t is the ratio of the token's probability now and when it was sampled, A the reward minus the mean of its group (over
the standard deviation, unless `scale_rewards` is off), k3 the unbiased low-variance estimate of the KL divergence.
Unit: completion tokens over the whole update, so long answers are not favoured. Roles: the policy, and the frozen
reference if `kl` is not 0. One rollout feeds `minibatches` x `epochs` updates; the run is saved between rollouts only.

Shao et al. 2024 (arXiv 2402.03300); token-level sum: Yu et al. 2025 (arXiv 2503.14476).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from trivium import losses
from trivium.config import StrictModel
from trivium.core.method import Method, Role, Update, frozen_forward
from trivium.core.terms import Term, Terms
from trivium.data.batch import IGNORE, Batch
from trivium.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


class GroupRelativePolicyOptimisation(Method):
    """GRPO with a reward function."""

    class Config(StrictModel):
        """Settings of GRPO; `train.batch_size` is the number of prompts in one rollout."""

        reward: str = "exact_match"
        """Name of a reward in trivium/rollout/rewards.py, or `package.module:function`."""
        group_size: int = Field(8, ge=2)
        """Answers to each prompt."""
        max_new_tokens: int = Field(64, ge=1)
        """Longest answer in tokens."""
        temperature: float = Field(1.0, gt=0)
        """Of the sampling."""
        minibatches: int = Field(1, ge=1)
        """Updates that share one pass over a rollout."""
        epochs: int = Field(1, ge=1)
        """Passes over each rollout."""
        clip_low: float = Field(0.2, gt=0, lt=1)
        """How far a ratio may fall below 1 before its gradient stops."""
        clip_high: float = Field(0.2, gt=0)
        """How far a ratio may rise above 1 before its gradient stops."""
        kl: float = Field(0.0, ge=0)
        """Weight of the divergence from the reference; 0 needs no reference in memory."""
        scale_rewards: bool = True
        """Divide by the standard deviation of the group."""

    config: Config
    data_kind = "prompts"
    model_kinds = ("decoder",)

    def roles(self) -> dict[str, Role]:
        """The policy, and its frozen start if the divergence counts."""
        reference = {"reference": Role(trainable=False)} if self.config.kl else {}
        return {"policy": Role(), **reference}

    def updates(self) -> Iterator[Update]:
        """Rollout after rollout; each gives its updates, the last of which is a boundary."""
        from trivium.rollout.collect import collect, group_advantages, rollout_batches
        from trivium.rollout.rewards import reward_function

        config, context = self.config, self.context
        reward = reward_function(config.reward)
        size = context.recipe.train.micro_rows or context.recipe.train.batch_size
        while True:
            rollout = collect(
                context,
                context.feed.samples(),
                reward,
                group_size=config.group_size,
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
            )
            advantages = group_advantages(rollout.rewards, config.group_size, scale=config.scale_rewards)
            batches = rollout_batches(rollout, {"advantage": advantages, "reward": rollout.rewards}, size)
            batches = [self.with_old(batch.to(context.device)) for batch in batches]
            parts = [batches[n :: config.minibatches] for n in range(config.minibatches)] * config.epochs
            parts = [part for part in parts if part]
            for number, part in enumerate(parts):
                yield Update(part, boundary=number == len(parts) - 1)

    def with_old(self, batch: Batch) -> Batch:
        """Adds the policy's log-probabilities [T] before the first update, by the same forward pass as training."""
        return batch.with_fields(old=frozen_forward(self.policy, batch, target_logprobs(batch)))

    def prepare(self, batch: Batch) -> Batch:
        """Adds the reference's log-probabilities, [T]."""
        if "reference" not in self.context.roles:
            return batch
        return batch.with_fields(reference=self.context.roles["reference"](batch, target_logprobs(batch)))

    def weights(self, batch: Batch) -> Mapping[str, float]:
        """Completion tokens and answers."""
        return {"tokens": float(batch.trained_tokens()), "answers": float(batch.layout.sequences)}

    def loss(self, batch: Batch) -> Terms:
        """The clipped policy gradient, the divergence, and the mean reward beside them."""
        config = self.config
        now = self.policy(batch, target_logprobs(batch), only_targets=True)
        ratio = (now - batch.fields["old"]).exp()
        advantage = batch.fields["advantage"][batch.layout.sequence_ids(now.device)]
        clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
        trained = batch.targets != IGNORE
        gain = torch.minimum(ratio * advantage, clipped * advantage)[trained].sum()
        terms = {
            "policy": Term(-gain, unit="tokens"),
            "clipped": Term((ratio != clipped)[trained].to(now.dtype).sum(), unit="tokens", coefficient=0.0),
            "reward": Term(batch.fields["reward"].sum(), unit="answers", coefficient=0.0),
        }
        if "reference" in batch.fields:
            gap = batch.fields["reference"] - now
            terms["kl"] = Term((gap.exp() - gap - 1)[trained].sum(), unit="tokens", coefficient=config.kl)
        return terms


def target_logprobs(batch: Batch) -> Callable[[Tensor, nn.Linear], Tensor]:
    """What a role computes: [T] log-probability of each target."""
    return lambda hidden, head: losses.token_logprobs(hidden, head, batch.targets)
