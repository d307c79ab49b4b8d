"""From messages to token ids, and to the mask that says which of them are trained.

The template renders the whole conversation to one string, the tokenizer encodes that string in one go, and the mask
comes from character positions in it. So the ids of training are the ids of serving, whatever the mask is. Where the
assistant's parts lie is known from the template's own `{% generation %}` marks, or, without them, from rendering the
conversation up to each answer and up to its end (which must be prefixes of the whole). A template that writes an
answer differently once others follow (as those that take reasoning out of the past) is refused with both texts.

Messages are data: `<|eos|>` in what a user wrote never becomes the token. The places in messages that spell a special
token are wrapped in guards, long random words, before the template runs. What still looks like a special token in
the rendered text and has no guard was written by the template. (The template renders with guards only when there is
something to guard, which is almost never; and roles, which templates build markers from, come from a fixed list.)
Added tokens that are not special (`<think>` in some vocabularies) are ordinary tokens, in messages too.
"""

from __future__ import annotations

import math
import re
import secrets
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import jinja2

from trivium.errors import TokenizerError
from trivium.tokenizers import sandbox

if TYPE_CHECKING:
    from trivium.tokenizers.tokenizer import Tokenizer

Message = Mapping[str, Any]
"""`role` and `content`, as in the OpenAI format; `tool_calls`, `reasoning_content` and more if the template reads it.
On a message of the assistant, `train: false` leaves it out of the loss, and `weight` says how much its tokens count."""

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
"""The roles there are. A free choice would let data spell the markers that templates build from roles."""

_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class EncodedChat:
    """A conversation as the model is trained on it.

    ids:      n token ids.
    trained:  n flags: the token is a target of the loss.
    weights:  n numbers: how much each counts, 0 where it is not trained; None: all that are trained count 1.
    warnings: what makes the result differ from what one would expect; each sentence is the same for all
              conversations it concerns.
    """

    ids: list[int]
    trained: list[bool]
    warnings: tuple[str, ...] = ()
    weights: list[float] | None = None


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    text:   without marks and guards: what `apply_chat_template(tokenize=False)` returns.
    spans:  [start, end) of the template's generation marks in `text`.
    pieces: `text` cut into plain strings and ids of special tokens; None if nothing had to be guarded, so that
            all special tokens in `text` are meant.
    """

    text: str
    spans: list[tuple[int, int]]
    pieces: list[str | int] | None


class ChatTemplate:
    """A compiled chat template, with the special tokens it may write."""

    def __init__(self, source: str, *, roles: Mapping[str, str], special: Mapping[str, int], where: str) -> None:
        self.source = source
        self.where = where
        self._roles = dict(roles)
        self._special = dict(special)
        secret = secrets.token_hex(16)
        self._word = f"zq{secret}w"
        self._marks = (f"zq{secret}mo", f"zq{secret}mc")
        self._guards = (f"zq{secret}go", f"zq{secret}gc")
        longest = "|".join(map(re.escape, sorted(special, key=len, reverse=True))) or "(?!)"
        self._written = re.compile(longest)
        opened, closed = self._guards
        self._cuts = re.compile(
            f"{self._marks[0]}|{self._marks[1]}|{opened}(?P<data>{longest}){closed}|{opened}|{closed}|(?P<token>{longest})"
        )
        try:
            self._template = sandbox.compile_template(source)
        except jinja2.TemplateSyntaxError as error:
            raise TokenizerError(
                f"the chat template is not valid: {error.message}",
                where=f"{where}:{error.lineno}",
                value=_line(source, error.lineno),
                fix="correct that line of the template",
            ) from None
        except jinja2.TemplateError as error:
            raise self._forbidden(error, None) from None
        self.special_ids = frozenset(special.values())
        self.marked = "generation" in {name for name in re.findall(r"{%[-+]?\s*(\w+)", source)}
        self.shows_tools = re.search(r"\btools\b", source) is not None

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, tools: bool = False) -> ChatTemplate:
        """The template of a tokenizer's folder; for conversations with tools the one called "tool_use", if any."""
        templates = tokenizer.files.templates
        source = templates.get("tool_use") if tools and "tool_use" in templates else templates.get("default")
        if source is None:
            raise TokenizerError(
                "the tokenizer has no chat template, so it cannot encode messages",
                where=tokenizer.where,
                fix="put a chat_template.jinja into the folder (trivium.tokenizers.templates.PLAIN fits any tokenizer)",
            )
        return cls(
            source,
            roles=tokenizer.role_tokens,
            special=tokenizer.special_tokens,
            where=f"{tokenizer.where}: chat_template",
        )

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] | None = None,
        generation_prompt: bool = False,
        marks: bool = False,
    ) -> Rendered:
        """The conversation as text; TokenizerError if the template refuses it or breaks its limits."""
        data = [self._plain(message, f"message {number}") for number, message in enumerate(messages, 1)]
        listed = None if tools is None else self._plain(list(tools), "tools")
        guarded = [self._guarded(_for_template(message)) for message in data]
        guarded_tools = self._guarded(listed)
        variables = {
            **self._roles,
            "messages": guarded,
            "tools": guarded_tools,
            "documents": None,
            "add_generation_prompt": generation_prompt,
        }
        text = self._run(variables, marks=self._marks if marks else None)
        if not marks and self._guards[0] not in text:
            return Rendered(text, [], None)
        return self._cut(text)

    def end_of(self, part: str, whole: str, start: int) -> int | None:
        """Where the last message of the conversation `part` ends in the longer conversation `whole`.

        `part` is the beginning of `whole`, but for special tokens that close a conversation (Phi 3 does that).
        start: where the message begins in both. None if the two differ in more than that.
        """
        if whole.startswith(part):
            return len(part)
        differing = (place for place, pair in enumerate(zip(part, whole, strict=False)) if pair[0] != pair[1])
        common = next(differing, min(len(part), len(whole)))
        ends = [match.end() for match in self._written.finditer(part, start) if match.end() <= common]
        return ends[-1] if ends and not self._written.sub("", part[ends[-1] :]).strip() else None

    def says_nothing(self, text: str) -> bool:
        """Whether there is nothing in `text` but special tokens."""
        return not self._written.sub("", text).strip()

    def begin_of_content(
        self, messages: Sequence[Message], index: int, *, tools: Sequence[Message] | None, text: str
    ) -> int | None:
        """Where the content of message `index` begins in `text`, the conversation up to it; None if it is not there."""
        other = {**messages[index], "content": self._word}
        probe = self.render([*messages[:index], other], tools=tools).text
        before, found, after = probe.partition(self._word)
        inside = text[len(before) : len(text) - len(after)]
        same = text.startswith(before) and text.endswith(after)
        return len(before) if found and same and not self.says_nothing(inside) else None

    def _run(self, variables: Mapping[str, Any], *, marks: tuple[str, str] | None) -> str:
        try:
            return sandbox.render(self._template, variables, marks=marks)
        except sandbox.Refused as error:
            raise TokenizerError(
                f"the chat template refuses these messages: {error}",
                where=self.where,
                fix="change the messages (their roles, order or content) to what the template accepts",
            ) from None
        except jinja2.exceptions.SecurityError as error:
            raise self._forbidden(error, _failed_line(error)) from None
        except Exception as error:  # a template can fail in any way a program can
            line = _failed_line(error)
            raise TokenizerError(
                f"the chat template fails on these messages: {error or type(error).__name__}",
                where=self.where if line is None else f"{self.where}:{line}",
                value="" if line is None else _line(self.source, line),
                fix="give the messages the fields that the template reads, or correct the template",
            ) from None

    def _forbidden(self, error: Exception, line: int | None) -> TokenizerError:
        return TokenizerError(
            f"the chat template does what templates may not: {error}",
            where=self.where if line is None else f"{self.where}:{line}",
            value=self.source[:200] if line is None else _line(self.source, line),
            fix="do not trust this folder, or replace its chat template",
        )

    def _plain(self, value: Any, where: str, depth: int = 0) -> Any:
        """Only what JSON knows reaches the template: no objects with methods of their own."""
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, str):
            return str(value)
        if depth < 60 and isinstance(value, Mapping):
            return {str(key): self._plain(item, where, depth + 1) for key, item in value.items()}
        if depth < 60 and isinstance(value, (list, tuple)):
            return [self._plain(item, where, depth + 1) for item in value]
        raise TokenizerError(
            "a message can only hold text, numbers, lists and mappings (at most 60 deep)",
            where=where,
            value=value,
            fix="convert it to plain JSON values",
        )

    def _guarded(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._written.sub(rf"{self._guards[0]}\g<0>{self._guards[1]}", value)
        if isinstance(value, dict):
            return {key: self._guarded(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._guarded(item) for item in value]
        return value

    def _cut(self, marked: str) -> Rendered:
        """Take the marks and guards out of the text."""
        pieces: list[str | int] = []
        spans, starts = [], []
        shown: list[str] = []
        size = at = 0
        for match in self._cuts.finditer(marked):
            plain = marked[at : match.start()] + (match["data"] or "")
            at = match.end()
            pieces.append(plain)
            shown.append(plain)
            size += len(plain)
            if match["token"]:
                pieces.append(self._special[match["token"]])
                shown.append(match["token"])
                size += len(match["token"])
            elif match[0] == self._marks[0]:
                starts.append(size)
            elif match[0] == self._marks[1]:
                spans.append((starts.pop(), size))
        rest = marked[at:]
        text = "".join([*shown, rest])
        guarded = self._guards[0] in marked or self._guards[1] in marked
        return Rendered(text, spans, [*pieces, rest] if guarded else None)


def encode_generation_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], *, tools: Sequence[Message] | None = None
) -> list[int]:
    """Ids of a conversation with the template's opening of the assistant's next turn."""
    _check(messages)
    rendered = tokenizer.chat_template_for(tools).render(messages, tools=tools, generation_prompt=True)
    return _ids_and_offsets(tokenizer, rendered)[0]


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Message] | None = None,
    train_on: str | Sequence[str] = "all",
    prompt_weight: float = 0.0,
) -> EncodedChat:
    """Ids of a whole conversation and which of them are trained; see the module's docstring.

    train_on:      `all` answers, `last` (what the assistant says after the last message of the user), or the roles
                   whose messages are trained. `train: true` and `train: false` of a message go first.
    prompt_weight: weight of the tokens that are not trained otherwise, but of those with `train: false`.
    """
    _check(messages)
    template = tokenizer.chat_template_for(tools)
    if tools and not template.shows_tools:
        raise TokenizerError(
            "the chat template does not show tools to the model",
            where=template.where,
            fix='remove "tools" from the conversation, or use a template that writes them',
        )
    rendered = template.render(messages, tools=tools, marks=template.marked)
    chosen = list(_chosen(messages, train_on))
    spans = _spans(template, messages, rendered, tools, chosen, left_out=prompt_weight > 0)
    ids, offsets = _ids_and_offsets(tokenizer, rendered)
    values = sorted({weight for _, _, weight in spans})
    characters = bytearray(len(rendered.text))  # 0, or 1 + the place of the weight in `values`
    for start, end, weight in spans:
        characters[start:end] = bytes([1 + values.index(weight)]) * (end - start)
    codes = [max(characters[start:end], default=0) for start, end in offsets]
    said = [code > 0 for code in codes]
    ends = {place for place, token in enumerate(ids) if token in template.special_ids}
    if not template.marked:
        _leave_out_space_after_end(rendered.text, offsets, said, ends)
    trained = [flag and values[code - 1] > 0 for flag, code in zip(said, codes, strict=True)]
    last = chosen[-1][1] if chosen and chosen[-1][0] == len(messages) - 1 else 0.0
    answered = last if messages[-1]["role"] == "assistant" else 0.0
    chat = _with_end(tokenizer, EncodedChat(ids, trained), ends) if answered else EncodedChat(ids, trained)
    if not prompt_weight and set(values) <= {0.0, 1.0}:
        return chat
    whole = [values[code - 1] if flag else prompt_weight for flag, code in zip(said, codes, strict=True)]
    whole += [answered] * (len(chat.ids) - len(whole))
    return EncodedChat(chat.ids, [weight > 0 for weight in whole], chat.warnings, whole)


def _check(messages: Sequence[Message]) -> None:
    if isinstance(messages, (str, Mapping)) or not messages:
        raise TokenizerError(
            "a conversation is a list of at least one message",
            value=messages,
            fix='write [{"role": "user", "content": "..."}]',
        )
    for number, message in enumerate(messages, 1):
        where = f"message {number}"
        if not isinstance(message, Mapping):
            raise TokenizerError("a message is a mapping with role and content", where=where, value=message)
        role, train = message.get("role"), message.get("train")
        if role not in ROLES:
            raise TokenizerError(
                "the role of a message is not known", where=where, value=role, fix=f"use one of {', '.join(ROLES)}"
            )
        if train is not None and (not isinstance(train, bool) or (train and role != "assistant")):
            raise TokenizerError(
                '"train" is true or false, and true only for the assistant',
                where=where,
                value=train,
                fix="leave it out: what the assistant says is trained, and nothing else",
            )
        weight = message.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
            raise TokenizerError(
                "the weight of a message is a number from 0 on",
                where=where,
                value=weight,
                fix="leave it out, or write 0 for an answer that is not trained, 0.5 for one that counts half",
            )


def _ids_and_offsets(tokenizer: Tokenizer, rendered: Rendered) -> tuple[list[int], list[tuple[int, int]]]:
    if rendered.pieces is None:
        ids, offsets = tokenizer.offsets(rendered.text)
    else:
        ids, offsets = tokenizer.guarded_offsets(rendered.pieces)
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_id:
        raise TokenizerError(
            "the chat template writes BOS twice",
            where=tokenizer.where,
            value=tokenizer.bos_token,
            fix="remove one {{ bos_token }} from the template",
        )
    return ids, offsets


def _chosen(messages: Sequence[Message], train_on: str | Sequence[str]) -> Iterator[tuple[int, float]]:
    """(index, weight) of each message of the roles that are trained; weight 0: it is left out."""
    roles = ("assistant",) if isinstance(train_on, str) else train_on
    asked = max((index for index, message in enumerate(messages) if message["role"] == "user"), default=0)
    for index, message in enumerate(messages):
        if message["role"] in roles:
            train = message.get("train")
            kept = (train_on != "last" or index > asked) if train is None else train
            yield index, float(message.get("weight", 1.0)) if kept else 0.0


Span = tuple[int, int, float]
"""[start, end) characters of what is trained, and its weight."""


def _spans(
    template: ChatTemplate,
    messages: Sequence[Message],
    rendered: Rendered,
    tools: Sequence[Message] | None,
    chosen: Sequence[tuple[int, float]],
    *,
    left_out: bool,
) -> list[Span]:
    """What is trained, and with `left_out` also where the messages with weight 0 are."""
    answers = [(index, weight) for index, weight in chosen if messages[index]["role"] == "assistant"]
    others = [(index, weight) for index, weight in chosen if messages[index]["role"] != "assistant"]
    spans: list[Span] = []
    if template.marked:
        spans += _marked_spans(template, messages, rendered, tools, answers)
    else:
        for index, weight in answers:
            if weight or left_out:
                spans.append((*_prefix_span(template, messages, rendered, tools, index), weight))
    for index, weight in others:
        if weight or left_out:
            spans.append((*_content_span(template, messages, rendered, tools, index), weight))
    return spans


def _marked_spans(
    template: ChatTemplate,
    messages: Sequence[Message],
    rendered: Rendered,
    tools: Sequence[Message] | None,
    answers: Sequence[tuple[int, float]],
) -> list[Span]:
    """The template's own marks, each with the weight of the message it is in."""
    weights = {weight for _, weight in answers}
    if not answers:
        return []
    if len(weights) == 1:
        (weight,) = weights
        return [(*span, weight) for span in rendered.spans]
    if len(answers) == len(rendered.spans):
        return [(*span, weight) for span, (_, weight) in zip(rendered.spans, answers, strict=True)]
    until = [0]  # how many marks there are up to the end of each answer
    for index, _ in answers:
        marks = template.render(messages[: index + 1], tools=tools, marks=True).spans
        until.append(len(marks) if marks == rendered.spans[: len(marks)] else 0)
    if until[-1] != len(rendered.spans) or any(end <= start for start, end in pairwise(until)):
        raise TokenizerError(
            f"the template marks {len(rendered.spans)} parts for {len(answers)} messages of the assistant, "
            "so it is not certain which part is the one with train: false",
            where=template.where,
            fix="leave out train: false, or use a template with one generation block for each message",
        )
    pieces = zip(pairwise(until), answers, strict=True)
    return [(*span, weight) for (start, end), (_, weight) in pieces for span in rendered.spans[start:end]]


def _prefix_span(
    template: ChatTemplate,
    messages: Sequence[Message],
    rendered: Rendered,
    tools: Sequence[Message] | None,
    index: int,
) -> tuple[int, int]:
    """From the end of the generation prompt before an answer to the end of the conversation up to it."""
    message = messages[index]
    if index == 0:
        raise TokenizerError(
            "the conversation begins with the assistant, so there is nothing it answers to",
            where="message 1",
            value=message.get("content"),
            fix="begin with a user message, or set train: false on the first message",
        )
    before = template.render(messages[:index], tools=tools, generation_prompt=True).text
    after = template.render(messages[: index + 1], tools=tools).text
    if not (rendered.text.startswith(before) and after.startswith(before)):
        other = rendered.text if after.startswith(before) else after
        raise _differs(
            template, index, "the template's generation prompt is not how it begins this message", before, other
        )
    end = template.end_of(after, rendered.text, len(before))
    if end is None:
        problem = "the chat template writes this message differently once others follow"
        raise _differs(template, index, problem, after, rendered.text)
    content = message.get("content")
    said = message.get("tool_calls") or (
        content if isinstance(content, str) and not template.says_nothing(content) else ""
    )
    if said and template.says_nothing(rendered.text[len(before) : end]):
        raise TokenizerError(
            "the chat template leaves out what this message says",
            where=f"{template.where}, message {index + 1}",
            value=said,
            fix="use a template that writes such messages (tool calls, parts of content), or remove the row",
        )
    return len(before), end


def _content_span(
    template: ChatTemplate,
    messages: Sequence[Message],
    rendered: Rendered,
    tools: Sequence[Message] | None,
    index: int,
) -> tuple[int, int]:
    """Of a message that no generation prompt opens: its content and what ends it."""
    after = template.render(messages[: index + 1], tools=tools).text
    start = template.begin_of_content(messages, index, tools=tools, text=after)
    end = None if start is None else template.end_of(after, rendered.text, start)
    if start is None or end is None:
        problem = f"it is not certain where the template writes this message of the {messages[index]['role']}"
        raise _differs(template, index, problem, after, rendered.text)
    return start, end


def _differs(template: ChatTemplate, index: int, problem: str, one: str, other: str) -> TokenizerError:
    """The refusal of a message that the template writes in two ways, with both."""
    pairs = zip(one, other, strict=False)
    place = next((place for place, pair in enumerate(pairs) if pair[0] != pair[1]), min(len(one), len(other)))
    shown = [text[max(0, place - 20) : place + 40] for text in (one, other)]
    return TokenizerError(
        f"{problem}, so training would not match serving",
        where=f"{template.where}, message {index + 1}",
        value=f"in serving {shown[0]!r}, in training {shown[1]!r}",
        fix="train each answer by itself (data.chat.train_on: each) or the last ones (last), or mark the assistant's "
        "parts in the template with {% generation %}",
    )


def _leave_out_space_after_end(
    text: str, offsets: Sequence[tuple[int, int]], trained: list[bool], ends: set[int]
) -> None:
    """After the end token the model is not asked any more: a line break there is the template's, not an answer."""
    for place in range(len(trained) - 1, -1, -1):
        last_of_span = trained[place] and (place + 1 == len(trained) or not trained[place + 1])
        if not last_of_span:
            continue
        end = place
        while end not in ends and trained[end] and text[slice(*offsets[end])].isspace():
            end -= 1
        if end in ends and trained[end]:
            trained[end + 1 : place + 1] = [False] * (place - end)


def _with_end(tokenizer: Tokenizer, chat: EncodedChat, ends: set[int]) -> EncodedChat:
    """See to it that the last answer ends with a trained end token, or say why it does not."""
    if True not in chat.trained:
        return EncodedChat(chat.ids, chat.trained, ("the chat template marks nothing of these messages as generated",))
    place = len(chat.trained) - 1 - chat.trained[::-1].index(True)
    while place >= 0 and place not in ends and tokenizer.decode([chat.ids[place]]).isspace():
        place -= 1
    if place in ends and chat.trained[place]:
        return chat
    if any(end > place for end in ends):
        warning = (
            "the template's generation marks leave out the end token, so the model does not learn to stop: "
            "move {% endgeneration %} behind it"
        )
        return EncodedChat(chat.ids, chat.trained, (warning,))
    warning = "the chat template ends answers without a special token: EOS is added after the last answer"
    return EncodedChat([*chat.ids, tokenizer.eos_id], [*chat.trained, True], (warning,))


def _for_template(message: dict[str, Any]) -> dict[str, Any]:
    """The message as transformers shows it to templates: nothing empty, reasoning under all its names."""
    kept = {key: value for key, value in message.items() if value is not None and key not in ("train", "weight")}
    reasoning = next((kept[key] for key in _REASONING if key in kept), None)
    return kept if reasoning is None else {"thinking": reasoning, **kept, "reasoning_content": reasoning}


def _failed_line(error: Exception) -> int | None:
    """The line of the template in which an error was raised."""
    frames = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in frames if frame.f_code.co_filename == "<template>"]
    return lines[-1] if lines else None


def _line(source: str, number: int | None) -> str:
    lines = source.splitlines()
    return lines[number - 1].strip() if number is not None and 0 < number <= len(lines) else ""
