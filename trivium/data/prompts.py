"""Rows that hold a prompt: `{"prompt": text or messages, ...}` or `{"messages": [...]}`.

The other fields of the row (a reference answer, test cases) stay with the sample, for reward functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trivium.data.intake import Intake, Row
from trivium.data.messages import with_system
from trivium.data.samples import Sample, TokenSequence
from trivium.errors import DataError
from trivium.recipe import ChatSettings

if TYPE_CHECKING:
    from trivium.tokenizers.tokenizer import Tokenizer


def encode_row(
    row: Row, *, tokenizer: Tokenizer, shape: str, intake: Intake, chat: ChatSettings | None = None
) -> Sample:
    """The prompt's tokens, none of them trained, as they stand when generation begins."""
    prompt = row.values.get("prompt", row.values.get("messages"))
    if not isinstance(prompt, str | list) or not prompt:
        raise DataError(
            "the row has no prompt",
            where=row.where,
            value=f"fields: {', '.join(map(str, row.values))}",
            fix='write {"prompt": "..."} or {"prompt": [{"role": "user", "content": "..."}]}',
        )
    system = None if chat is None else chat.system
    ids = tokenizer.encode_prompt(prompt if isinstance(prompt, str) else with_system(prompt, system))
    intake.formats["prompt text" if isinstance(prompt, str) else "prompt messages"] += 1
    return Sample(row.name, [TokenSequence(ids, [False] * len(ids))], row=row.values)
