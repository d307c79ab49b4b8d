"""Rewards: functions of the row a prompt came from and the completion; higher is better.

A reward is one of the names below or `package.module:function` with the same signature.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, cast

from trivium.errors import ConfigError

Reward = Callable[[Mapping[str, Any], str], float]


def exact_match(row: Mapping[str, Any], completion: str) -> float:
    """1 if the completion is the row's `answer`, up to white space at both ends."""
    return float(completion.strip() == str(row["answer"]).strip())


def contains_answer(row: Mapping[str, Any], completion: str) -> float:
    """1 if the row's `answer` occurs in the completion."""
    return float(str(row["answer"]).strip() in completion)


def brevity(row: Mapping[str, Any], completion: str) -> float:
    """Shorter is better: 1 for nothing, falling towards 0; a check that training reaches the sampler."""
    return 1.0 / (1.0 + len(completion))


BUILT_IN: dict[str, Reward] = {
    "exact_match": exact_match,
    "contains_answer": contains_answer,
    "brevity": brevity,
}


def reward_function(name: str) -> Reward:
    """The reward of this name; raises ConfigError for an unknown one."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    module, _, attribute = name.partition(":")
    try:
        return cast(Reward, getattr(importlib.import_module(module), attribute))
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"there is no reward of this name ({error})",
            where="method.reward",
            value=name,
            fix=f"use one of {', '.join(BUILT_IN)}, or `package.module:function`",
        ) from None
