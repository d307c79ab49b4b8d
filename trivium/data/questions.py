"""Questions and answers drawn from Python documentation, as dialogues for supervised tuning.

Each documented function or class gives up to three: what it does (the first paragraph of its text), how it is called
(its signature), and where it lives (its module). Wording and choice are functions of the document's id, so the same
documentation always gives the same dialogues.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from trivium.data.documents import Document

_PURPOSE = ("What does {id} do?", "What is {id} for?", "Explain {id} in a sentence or two.")
_CALL = ("How do I call {id}?", "What is the signature of {id}?")
_PLACE = ("Which module is {name} in?", "Where do I find {name}?")
_LONGEST = 400
"""Characters of the longest answer that is used; longer first paragraphs are rarely answers."""
_SHORTEST = 15


def question_rows(documents: Iterable[Document]) -> Iterator[dict[str, Any]]:
    """Dialogues in the `messages` format, with the id and the group of the document they come from."""
    for document in documents:
        name, module = str(document.meta.get("name", "")), str(document.meta.get("module", ""))
        summary = " ".join(str(document.meta.get("summary", "")).split())
        if not name or not module:
            continue
        pairs = []
        if _SHORTEST <= len(summary) <= _LONGEST and summary[0].isupper():
            pairs.append((_pick(_PURPOSE, document.id), summary if summary.endswith(".") else f"{summary}."))
        signature = str(document.meta.get("signature", ""))
        if signature and len(signature) <= _LONGEST // 2:
            pairs.append((_pick(_CALL, document.id), f"`{signature}`"))
            pairs.append((_pick(_PLACE, document.id), f"{name} is in the module {module}."))
        for question, answer in pairs:
            yield {
                "messages": [
                    {"role": "user", "content": question.format(id=f"{module}.{name}", name=name)},
                    {"role": "assistant", "content": answer},
                ],
                "document": document.id,
            }


def _pick(wordings: tuple[str, ...], key: str) -> str:
    return wordings[hashlib.sha256(key.encode()).digest()[0] % len(wordings)]
