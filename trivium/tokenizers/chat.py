"""From messages to token ids, and to the mask that says which of them are trained.

The template renders the whole conversation to one string, the tokenizer encodes that string in one go, and the mask
comes from character positions in it. So the ids of training are the ids of serving, whatever the mask is. Where the
assistant's parts lie is known from the template's own `{% generation %}` marks, or, without them, from rendering the
conversation up to each answer and up to its end (which must be prefixes of the whole).

Messages are data: `<|eos|>` in what a user wrote never becomes the token. The places in messages that spell a special
token are wrapped in guards, long random words, before the template runs. What still looks like a special token in
the rendered text and has no guard was written by the template. (The template renders with guards only when there is
something to guard, which is almost never; and roles, which templates build markers from, come from a fixed list.)
Added tokens that are not special (`<think>` in some vocabularies) are ordinary tokens, in messages too.
"""

from __future__ import annotations

import re
import secrets
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jinja2

from trivium.errors import TokenizerError
from trivium.tokenizers import sandbox

if TYPE_CHECKING:
    from trivium.tokenizers.tokenizer import Tokenizer

Message = Mapping[str, Any]
"""`role` and `content`, as in the OpenAI format; `tool_calls`, `reasoning_content` and more if the template reads it.
On a message of the assistant, `train: false` leaves it out of the loss."""

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
"""The roles there are. A free choice would let data spell the markers that templates build from roles."""

_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class EncodedChat:
    """A conversation as the model is trained on it.

    ids:      n token ids.
    trained:  n flags: the token is a target of the loss.
    warnings: what makes the result differ from what one would expect; each sentence is the same for all
              conversations it concerns.
    """

    ids: list[int]
    trained: list[bool]
    warnings: tuple[str, ...] = ()


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
    tokenizer: Tokenizer, messages: Sequence[Message], *, tools: Sequence[Message] | None = None
) -> EncodedChat:
    """Ids of a whole conversation and which of them are trained; see the module's docstring."""
    _check(messages)
    template = tokenizer.chat_template_for(tools)
    rendered = template.render(messages, tools=tools, marks=template.marked)
    find = _marked_spans if template.marked else _prefix_spans
    spans = find(template, messages, rendered, tools)
    ids, offsets = _ids_and_offsets(tokenizer, rendered)
    characters = bytearray(len(rendered.text))
    for start, end in spans:
        characters[start:end] = b"\1" * (end - start)
    trained = [characters.find(1, start, end) >= 0 for start, end in offsets]
    ends = {place for place, token in enumerate(ids) if token in template.special_ids}
    if not template.marked:
        _leave_out_space_after_end(rendered.text, offsets, trained, ends)
    return _with_end(tokenizer, messages, EncodedChat(ids, trained), ends)


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


def _trained_messages(messages: Sequence[Message]) -> Iterator[tuple[int, bool]]:
    """(index, trained) of each message of the assistant."""
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            yield index, message.get("train") is not False


def _marked_spans(
    template: ChatTemplate, messages: Sequence[Message], rendered: Rendered, tools: Sequence[Message] | None
) -> list[tuple[int, int]]:
    """The template's own marks, one for each message of the assistant."""
    answers = list(_trained_messages(messages))
    if all(wanted for _, wanted in answers):
        return rendered.spans
    if len(answers) != len(rendered.spans):
        raise TokenizerError(
            f"the template marks {len(rendered.spans)} parts for {len(answers)} messages of the assistant, "
            "so it is not certain which part is the one with train: false",
            where=template.where,
            fix="leave out train: false, or use a template with one generation block for each message",
        )
    return [span for span, (_, wanted) in zip(rendered.spans, answers, strict=True) if wanted]


def _prefix_spans(
    template: ChatTemplate, messages: Sequence[Message], rendered: Rendered, tools: Sequence[Message] | None
) -> list[tuple[int, int]]:
    """From the end of the generation prompt before each answer to the end of the conversation up to it."""
    spans = []
    for index, wanted in _trained_messages(messages):
        if not wanted:
            continue
        if index == 0:
            raise TokenizerError(
                "the conversation begins with the assistant, so there is nothing it answers to",
                where="message 1",
                value=messages[0].get("content"),
                fix="begin with a user message, or set train: false on the first message",
            )
        before = template.render(messages[:index], tools=tools, generation_prompt=True).text
        after = template.render(messages[: index + 1], tools=tools).text
        if not (rendered.text.startswith(before) and after.startswith(before)):
            problem = "the template's generation prompt is not how it begins this message"
        elif (end := template.end_of(after, rendered.text, len(before))) is None:
            problem = "the chat template writes this message differently once others follow"
        else:
            spans.append((len(before), end))
            continue
        raise TokenizerError(
            f"{problem}, so training would not match serving",
            where=f"{template.where}, message {index + 1}",
            value=messages[index].get("content"),
            fix="mark the assistant's parts in the template with {% generation %}, or set train: false on all "
            "answers but the last",
        )
    return spans


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


def _with_end(tokenizer: Tokenizer, messages: Sequence[Message], chat: EncodedChat, ends: set[int]) -> EncodedChat:
    """See to it that the last answer ends with a trained end token, or say why it does not."""
    last = messages[-1]
    if last["role"] != "assistant" or last.get("train") is False:
        return chat
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
    kept = {key: value for key, value in message.items() if value is not None and key != "train"}
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
