"""Rows from one shape to another, and from one kind of file to another; nothing is lost unless that is asked for.

What a target shape cannot say (a tie in a pair, who speaks in a plain text) is an error that names the row; `lossy`
leaves it out instead and counts it. Fields that no shape needs travel along. A ranked list becomes every pair of a
better and a worse answer, and pairs of the same prompt that follow each other become the list again, ties included.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from trivium.data.instructions import Completion
from trivium.data.intake import Intake, OnError, Row
from trivium.data.messages import Conversation
from trivium.data.reading import read_documents, read_rows
from trivium.data.shapes import (
    Item,
    Judged,
    Labelled,
    Plain,
    Ranked,
    Rewritten,
    Said,
    read_item,
    texts_of,
)
from trivium.data.writing import file_kind, write_rows
from trivium.errors import DataError
from trivium.recipe import Source

Values = dict[str, Any]

_SHAREGPT_SENDERS = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}


class Lost(Exception):
    """What the target shape cannot say, in a few words; with `instead`, the rows that are left without it."""

    def __init__(self, what: str, instead: Callable[[], list[Values]] | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.instead = instead


@dataclass
class Converted:
    """The account: rows read and written, what they were, what was left out, and what could not be read."""

    output: Path
    read: int = 0
    written: int = 0
    shapes: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> Values:
        """JSON values."""
        return {
            "output": str(self.output),
            "read": self.read,
            "written": self.written,
            "shapes": dict(self.shapes),
            "lost": dict(self.lost),
            "quarantined": dict(self.quarantined),
        }


def convert(
    sources: Iterable[Source],
    output: Path,
    *,
    to: str | None = None,
    lossy: bool = False,
    on_error: OnError = "error",
) -> Converted:
    """Write the rows of the sources into one file, whose name says its kind; `to` is None to keep the rows as they are.

    Raises DataError, naming the row, where a row cannot be read or the target cannot say what it says.
    """
    if to is not None and to not in TARGETS:
        from trivium.data.messages import use_one_of

        raise DataError("there is no such shape to convert to", value=to, fix=use_one_of(to, TARGETS))
    file_kind(output)
    account = Converted(output)
    intake = Intake(on_error)
    rows = (
        _converted(_items(sources, intake, account), to, lossy, intake, account)
        if to
        else _as_they_are(sources, intake, account)
    )
    write_rows(output, _counted(rows, account))
    account.quarantined = intake.quarantined
    return account


# Rows in, rows out


def _as_they_are(sources: Iterable[Source], intake: Intake, account: Converted) -> Iterator[Values]:
    for source in sources:
        for row in read_rows(source, intake):
            account.read += 1
            yield row.values


def _items(sources: Iterable[Source], intake: Intake, account: Converted) -> Iterator[tuple[Row, str, Item, Values]]:
    for source in sources:
        shape = source.format if source.format in ("messages", "sharegpt", "alpaca", "prompt_completion") else "auto"
        for row in _rows(source, intake):
            account.read += 1
            try:
                name, item, rest = read_item(row, shape)
            except DataError as error:
                intake.reject(error)
                continue
            account.shapes[name] += 1
            yield row, name, item, rest


def _rows(source: Source, intake: Intake) -> Iterator[Row]:
    """The rows of a file; documents of other files as rows with a text."""
    path = Path(source.path)
    if path.is_file() and any(path.name.endswith(ending) for ending in _TEXT_FILES):
        for document in read_documents(source, intake):
            yield Row({"id": document.id, "text": document.text}, document.source, document.id)
        return
    yield from read_rows(source, intake)


_TEXT_FILES = (".txt", ".md", ".rst", ".txt.gz", ".md.gz", ".txt.zst")


def _converted(
    items: Iterator[tuple[Row, str, Item, Values]], to: str, lossy: bool, intake: Intake, account: Converted
) -> Iterator[Values]:
    groups: Iterable[list[tuple[Row, str, Item, Values]]] = ([one] for one in items)
    if to == "ranked":
        groups = (list(group) for _, group in groupby(items, key=_list_key))
    for group in groups:
        row, _, item, rest = group[0]
        try:
            if len(group) > 1:
                item, rest = _joined(group)
            made = _tried(item, row, to, lossy, account)
            _check_collision(made, rest, row, to)
        except DataError as error:
            intake.reject(error)
            continue
        yield from ({**one, **rest} for one in made)


def _tried(item: Item, row: Row, to: str, lossy: bool, account: Converted) -> list[Values]:
    attempt: Callable[[], list[Values]] = partial(TARGETS[to], item, row)
    while True:
        try:
            return attempt()
        except Lost as lost:
            found = lost
        if not lossy or found.instead is None:
            break
        account.lost[found.what] += 1
        attempt = found.instead
    fix = "--lossy leaves it out" if found.instead is not None else f"choose another shape than {to}"
    raise DataError(f"{to} cannot say {found.what}", where=row.where, value=next(texts_of(item), ""), fix=fix)


def _check_collision(made: list[Values], rest: Values, row: Row, to: str) -> None:
    both = sorted(set(rest).intersection(*made[:1])) if made else []
    if both:
        raise DataError(
            f"the row has a field {both[0]!r} already, which {to} needs", where=row.where, value=rest[both[0]],
            fix="rename or remove that field",
        )  # fmt: skip


def _counted(rows: Iterator[Values], account: Converted) -> Iterator[Values]:
    for row in rows:
        account.written += 1
        yield row


# What each target says


def _conversation(item: Item, row: Row) -> Conversation:
    """The item as a conversation; what is lost on the way is raised as `Lost` by the caller's target."""
    if isinstance(item, Conversation):
        return item
    if isinstance(item, Completion):
        return Conversation(_as_messages(item.prompt, "user") + _as_messages(item.completion, "assistant"))
    if isinstance(item, Rewritten):
        return Conversation(_as_messages(item.source, "user") + _as_messages(item.target, "assistant"))
    raise Lost("what these rows say")


def _simplified(item: Item, row: Row, target: Callable[[Item, Row], list[Values]]) -> Item:
    """Judged and ranked answers down to one good answer, which loses the rest."""
    if isinstance(item, Judged):
        good = _example(item.prompt, item.completion)
        raise Lost("whether an answer is good", (lambda: target(good, row)) if item.good else list)
    if isinstance(item, Ranked):
        best = _example(item.prompt, item.responses[item.tiers[0][0]])
        raise Lost("which answer is better", lambda: target(best, row))
    return item


def _example(prompt: Said, answer: Said) -> Item:
    if isinstance(prompt, str) and isinstance(answer, str):
        return Completion(prompt, answer)
    return Conversation([*_as_messages(prompt, "user"), *_as_messages(answer, "assistant")])


def _as_messages(said: Said, role: str) -> list[Values]:
    return [{"role": role, "content": said}] if isinstance(said, str) else said


def _to_messages(item: Item, row: Row) -> list[Values]:
    found = _conversation(_simplified(item, row, _to_messages), row)
    return [{"messages": found.messages, **({"tools": found.tools} if found.tools else {})}]


def _to_sharegpt(item: Item, row: Row) -> list[Values]:
    found = _conversation(_simplified(item, row, _to_sharegpt), row)
    messages = [one for message in found.messages for one in _sharegpt(message)]
    return [{"conversations": messages, **({"tools": found.tools} if found.tools else {})}]


def _sharegpt(message: Values) -> list[Values]:
    rest = {key: value for key, value in message.items() if key not in ("role", "content", "tool_calls")}
    calls = message.get("tool_calls")
    if not calls:
        sender = _SHAREGPT_SENDERS.get(message["role"])
        if sender is None:
            raise Lost(f"the role {message['role']}")
        return [{"from": sender, "value": message["content"], **rest}]
    if len(calls) > 1 or message["content"] or calls[0].keys() - {"type", "function"}:
        raise Lost("several tool calls in one message, their ids, or text beside them")
    return [{"from": "function_call", "value": json.dumps(calls[0]["function"], ensure_ascii=False), **rest}]


def _to_alpaca(item: Item, row: Row) -> list[Values]:
    found = _conversation(_simplified(item, row, _to_alpaca), row)
    messages = found.messages
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    talk = messages[1:] if messages[0]["role"] == "system" else messages
    roles = [message["role"] for message in talk]
    if found.tools or roles != ["user", "assistant"] * (len(roles) // 2):
        raise Lost("tools, or turns that are not question and answer")
    if any(message.keys() - {"role", "content"} for message in talk):
        raise Lost(f"more of a message than its text: {', '.join(sorted(set().union(*talk) - {'role', 'content'}))}")
    contents = [message["content"] for message in talk]
    history = [[question, answer] for question, answer in zip(contents[:-2:2], contents[1:-2:2], strict=True)]
    made: Values = {"instruction": contents[-2], "input": "", "output": contents[-1]}
    return [{**made, **({"system": system} if system else {}), **({"history": history} if history else {})}]


def _to_prompt_completion(item: Item, row: Row) -> list[Values]:
    item = _simplified(item, row, _to_prompt_completion)
    if isinstance(item, Completion):
        return [{"prompt": item.prompt, "completion": item.completion}]
    if isinstance(item, Rewritten):
        return [{"prompt": item.source, "completion": item.target}]
    found = _conversation(item, row)
    cut = next((at for at in range(len(found.messages), 0, -1) if found.messages[at - 1]["role"] != "assistant"), 0)
    made = {"prompt": found.messages[:cut], "completion": found.messages[cut:]}
    if cut == len(found.messages):
        raise Lost("a conversation that does not end with an answer")
    if found.tools:
        raise Lost("tools", lambda: [made])
    if any(message["role"] == "assistant" and message.get("train") is not False for message in found.messages[:cut]):
        raise Lost("that earlier answers are trained too", lambda: [made])
    return [made]


def _to_preferences(item: Item, row: Row) -> list[Values]:
    if not isinstance(item, Ranked):
        raise Lost("what these rows say: there is nothing to prefer")
    pairs = [
        (better, worse)
        for place, tier in enumerate(item.tiers)
        for better in tier
        for below in item.tiers[place + 1 :]
        for worse in below
    ]
    if not pairs:
        raise Lost("that all answers are equally good", list)
    made = []
    for better, worse in pairs:
        one: Values = {"prompt": item.prompt, "chosen": item.responses[better], "rejected": item.responses[worse]}
        if item.ratings is not None:
            one |= {"chosen_rating": item.ratings[better], "rejected_rating": item.ratings[worse]}
        made.append({**one, "list": row.name} if len(item.responses) > 2 else one)
    return made


def _to_ranked(item: Item, row: Row) -> list[Values]:
    if not isinstance(item, Ranked):
        raise Lost("what these rows say: there is nothing to rank")
    made: Values = {"prompt": item.prompt, "responses": item.responses, "ranking": item.tiers}
    return [{**made, **({"ratings": item.ratings} if item.ratings is not None else {})}]


def _to_kto(item: Item, row: Row) -> list[Values]:
    if isinstance(item, Judged):
        return [{"prompt": item.prompt, "completion": item.completion, "label": item.good}]
    if not isinstance(item, Ranked):
        raise Lost("what these rows say: nothing is judged")
    tiers = ((item.tiers[0], True), (item.tiers[-1], False)) if len(item.tiers) > 1 else ()
    made: list[Values] = [
        {"prompt": item.prompt, "completion": item.responses[number], "label": good}
        for tier, good in tiers
        for number in tier
    ]
    raise Lost("which answer is better than which", lambda: made)


def _to_text(item: Item, row: Row) -> list[Values]:
    if isinstance(item, Plain):
        return [{"text": item.text}]
    if isinstance(item, Completion):
        whole = item.prompt + item.completion
        raise Lost("where the prompt ends", lambda: [{"text": whole}])
    if isinstance(item, Ranked | Judged):
        item = _simplified(item, row, lambda one, at: [{"text": "\n\n".join(texts_of(one))}])
    what = {Conversation: "who speaks", Labelled: "the label", Rewritten: "which text is the source"}[type(item)]
    whole = "\n\n".join(texts_of(item))
    raise Lost(what, lambda: [{"text": whole}])


def _to_labels(item: Item, row: Row) -> list[Values]:
    if isinstance(item, Labelled):
        names = ("text",) if len(item.texts) == 1 else ("text_a", "text_b")
        return [{**dict(zip(names, item.texts, strict=True)), "label": item.label}]
    raise Lost("what these rows say: they have no label")


def _to_pairs(item: Item, row: Row) -> list[Values]:
    item = _simplified(item, row, _to_pairs)
    if isinstance(item, Rewritten):
        return [{"source": item.source, "target": item.target}]
    if isinstance(item, Completion):
        return [{"source": item.prompt, "target": item.completion}]
    found = _conversation(item, row)
    talk = [(message["role"], message["content"]) for message in found.messages]
    questions, answers = ([text for role, text in talk if role == wanted] for wanted in ("user", "assistant"))
    if [role for role, _ in talk] == ["user", "assistant"] and not found.tools:
        return [{"source": questions[0], "target": answers[0]}]
    last = [{"source": questions[-1], "target": answers[-1]}]
    raise Lost("more than one question and its answer", lambda: last)


TARGETS: dict[str, Callable[[Item, Row], list[Values]]] = {
    "messages": _to_messages,
    "sharegpt": _to_sharegpt,
    "alpaca": _to_alpaca,
    "prompt_completion": _to_prompt_completion,
    "preferences": _to_preferences,
    "ranked": _to_ranked,
    "kto": _to_kto,
    "text": _to_text,
    "labels": _to_labels,
    "pairs": _to_pairs,
}
"""The shapes that can be written."""


# Pairs back to lists


def _list_key(found: tuple[Row, str, Item, Values]) -> str:
    """Rows of one list: pairs that name the same list, or have the same prompt and the same other fields."""
    row, shape, item, rest = found
    if shape != "preferences" or not isinstance(item, Ranked):
        return f"row {row.name}"
    return f"list {rest['list']}" if "list" in rest else f"prompt {_as_key(item.prompt)} {_as_key(rest)}"


def _as_key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _joined(group: list[tuple[Row, str, Item, Values]]) -> tuple[Item, Values]:
    """One ranked list from its pairs: answers that were never compared are a tie."""
    row = group[0][0]
    keyed: dict[str, Said] = {}
    ratings: dict[str, float] = {}
    below: dict[str, set[str]] = {}
    for _, _, item, _ in group:
        assert isinstance(item, Ranked)
        names = [_as_key(response) for response in item.responses]
        keyed.update(zip(names, item.responses, strict=True))
        if item.ratings is not None:
            ratings.update(zip(names, item.ratings, strict=True))
        below.setdefault(names[0], set()).add(names[1])
        below.setdefault(names[1], set())
    # In a list with ties an answer stands above as many others as there are in the tiers below it.
    by_count: dict[int, list[str]] = {}
    for name in keyed:
        by_count.setdefault(len(below[name]), []).append(name)
    tiers = [by_count[count] for count in sorted(by_count, reverse=True)]
    for place, tier in enumerate(tiers):
        under = {name for lower in tiers[place + 1 :] for name in lower}
        for name in tier:
            if below[name] != under:
                raise DataError(
                    "the pairs of one prompt do not make one order: some are missing, or contradict each other",
                    where=row.where,
                    value=name,
                    fix="leave them as pairs, or add the pairs that are missing",
                )
    numbers = {name: number for number, name in enumerate(keyed)}
    item = group[0][2]
    assert isinstance(item, Ranked)
    made = Ranked(
        item.prompt,
        list(keyed.values()),
        [[numbers[name] for name in tier] for tier in tiers],
        [ratings[name] for name in keyed] if ratings.keys() == keyed.keys() else None,
    )
    return made, {key: value for key, value in group[0][3].items() if key != "list"}


def describe(account: Converted) -> str:
    """The account in a few lines."""
    shapes = ", ".join(f"{count} {name}" for name, count in account.shapes.items())
    lines = [
        f"{account.read} rows read{f' ({shapes})' if shapes else ''}, {account.written} written to {account.output}"
    ]
    lines += [f"left out in {count} rows: {what}" for what, count in account.lost.items()]
    lines += [f"set aside: {count} rows, {problem}" for problem, count in account.quarantined.items()]
    return "\n".join(lines)
