"""Rollouts: several completions for each prompt, scored, as sequences ready for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trivium.core.method import Context
from trivium.data.batch import Batch, make_batch
from trivium.data.samples import Sample
from trivium.inference.engine import generate_ids
from trivium.inference.request import Completion, Sampling
from trivium.rollout.rewards import Reward


@dataclass(frozen=True)
class Rollout:
    """Completions of a group of prompts.

    prompts, completions: N entries each; the completions of one prompt stand next to each other.
    rewards:              [N].
    """

    prompts: list[list[int]]
    completions: list[Completion]
    rewards: Tensor
    sample_ids: list[str]


def collect(
    context: Context,
    samples: Sequence[Sample],
    reward: Reward,
    *,
    group_size: int,
    max_new_tokens: int,
    temperature: float,
) -> Rollout:
    """`group_size` completions for each sample by the policy as it is now; abandoned when the run is asked to stop."""
    prompts = [list(sample.sequences[0].ids) for sample in samples for _ in range(group_size)]
    policy = context.roles["policy"]
    with policy.eager():
        completions = generate_ids(
            policy.module,
            prompts,
            max_new_tokens=max_new_tokens,
            sampling=Sampling(temperature=temperature),
            seeds=[context.seed("rollout", number) for number in range(len(prompts))],
            eos_ids=[context.tokenizer.eos_id],
            should_stop=context.stop_requested,
        )
    context.check_stop()
    rows: list[Any] = [sample.row or {} for sample in samples for _ in range(group_size)]
    texts = [context.tokenizer.decode(completion.ids) for completion in completions]
    rewards = torch.tensor([reward(row, text) for row, text in zip(rows, texts, strict=True)])
    ids = [f"{sample.id}#{number}" for sample in samples for number in range(group_size)]
    return Rollout(prompts, completions, rewards, ids)


def group_advantages(rewards: Tensor, group_size: int, *, scale: bool) -> Tensor:
    """[N] reward minus the mean of its group, divided by the group's standard deviation if `scale`."""
    groups = rewards.view(-1, group_size)
    centred = groups - groups.mean(dim=1, keepdim=True)
    if scale:
        centred = centred / (groups.std(dim=1, keepdim=True, unbiased=False) + 1e-6)
    return centred.view(-1)


def rollout_batches(rollout: Rollout, fields: dict[str, Tensor], size: int) -> list[Batch]:
    """Micro-batches of `size` sequences; only completion tokens are targets; `fields` are [N], one per sequence."""
    batches = []
    for start in range(0, len(rollout.prompts), size):
        part = range(start, min(start + size, len(rollout.prompts)))
        prompts = [rollout.prompts[n] for n in part]
        answers = [rollout.completions[n].ids for n in part]
        batches.append(
            make_batch(
                [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)],
                [[False] * len(p) + [True] * len(a) for p, a in zip(prompts, answers, strict=True)],
                fields={name: values[start : start + size] for name, values in fields.items()},
                sample_ids=[rollout.sample_ids[n] for n in part],
            )
        )
    return batches
