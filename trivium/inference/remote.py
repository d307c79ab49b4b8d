"""Models behind an OpenAI-style server (`POST /chat/completions`): as a teacher, a judge or a baseline.

Nothing is sent anywhere unless a URL is named. The key comes from TRIVIUM_API_KEY or OPENAI_API_KEY, and is neither
stored nor shown. Every prompt of plain text is the message of a user. Standard library only.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.message import Message
from functools import partial
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urldefrag, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from trivium.errors import TriviumError

KEYS = ("TRIVIUM_API_KEY", "OPENAI_API_KEY")
NAMES = {"max_new_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p", "stop": "stop", "seed": "seed"}
"""Our settings that such a server knows, and its names for them."""
LOCAL = ("localhost", "127.0.0.1", "::1")

_TRIES = 5
_LONGEST_WAIT = 60.0
_LARGEST_ANSWER = 16 << 20
_AGAIN = (408, 409, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class RemoteAnswer:
    """One answer: its text, why it ended ("stop", "length"), and the tokens of the prompt if the server counts them."""

    text: str
    finish_reason: str
    prompt_tokens: int | None
    sample: int


class _NoRedirects(HTTPRedirectHandler):
    """A redirect could carry prompts and the key to another machine."""

    def redirect_request(self, *args: Any) -> None:
        return None


def is_remote(place: object) -> bool:
    """Whether this names a server and not a folder."""
    return str(place).startswith(("http://", "https://"))


class RemoteModel:
    """A model of a server.

    place:   `https://host/v1#name-of-the-model`.
    timeout: seconds for one answer. at_once: requests under way at the same time.
    """

    def __init__(self, place: str, *, timeout: float = 120.0, at_once: int = 4) -> None:
        self.url, self.name = urldefrag(place)
        if not self.name:
            raise TriviumError(
                "the model of the server is not named", where=place, fix="write its name behind a #: URL/v1#name"
            )
        parts = urlsplit(self.url)
        self._key = next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
        if self._key and parts.scheme != "https" and parts.hostname not in LOCAL:
            raise TriviumError(
                "the key would travel unencrypted", where=self.url, fix=f"use https, or unset {' and '.join(KEYS)}"
            )
        self._timeout, self._at_once = timeout, at_once
        self._opener = build_opener(_NoRedirects)

    def answers(
        self, prompts: Sequence[str | Sequence[Mapping[str, Any]]], *, n: int = 1, **options: Any
    ) -> Iterator[RemoteAnswer]:
        """The `n` answers to each prompt (a text or messages), in order. Options: those of `NAMES`."""
        given = {name: value for name, value in options.items() if value is not None}
        for name in given.keys() - NAMES.keys():
            raise TriviumError(
                f"{name} has no effect on the model of a server",
                where=self.url,
                value=given[name],
                fix=f"use {', '.join(NAMES)}",
            )
        ask = partial(self._ask, {NAMES[name]: value for name, value in given.items()})
        with ThreadPoolExecutor(self._at_once) as pool:
            asked = [(prompt, sample) for prompt in prompts for sample in range(n)]
            yield from pool.map(lambda one: ask(*one), asked)

    def _ask(self, options: Mapping[str, Any], prompt: str | Sequence[Mapping[str, Any]], sample: int) -> RemoteAnswer:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if "seed" in options:
            options = {**options, "seed": options["seed"] + sample}
        reply = self._send({"model": self.name, "messages": messages, **options})
        try:
            choice = reply["choices"][0]
            text, reason = choice["message"]["content"] or "", choice.get("finish_reason") or "stop"
            return RemoteAnswer(str(text), str(reason), (reply.get("usage") or {}).get("prompt_tokens"), sample)
        except (KeyError, IndexError, TypeError, AttributeError):
            raise self._error("the server's answer is not that of an OpenAI-style one", reply) from None

    def _send(self, body: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = Request(f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
        for attempt in range(1, _TRIES + 1):
            try:
                with self._opener.open(request, timeout=self._timeout) as reply:
                    return json.loads(reply.read(_LARGEST_ANSWER))
            except HTTPError as error:
                said = error.read(2000).decode("utf-8", "replace")
                if error.code not in _AGAIN or attempt == _TRIES:
                    raise self._error(f"the server refused with status {error.code}", said) from None
                time.sleep(wait(error.headers, attempt))
            except (URLError, TimeoutError, ConnectionError) as error:
                if attempt == _TRIES:
                    raise self._error("the server cannot be reached", getattr(error, "reason", error)) from None
                time.sleep(wait(Message(), attempt))
            except ValueError:
                raise self._error("the server's answer is not JSON", None) from None
        raise AssertionError("the last try returns or raises")

    def _error(self, problem: str, value: object) -> TriviumError:
        shown = None if value is None else " ".join(str(value).split())[:300]
        if shown and self._key:
            shown = shown.replace(self._key, "(the key)")
        return TriviumError(
            problem, where=self.url, value=shown, fix="check the URL, the name and the key of the model"
        )


def wait(headers: Message, attempt: int) -> float:
    """Seconds until the next try: what the server asks for, else longer each time."""
    asked = headers.get("Retry-After", "")
    return min(_LONGEST_WAIT, float(asked) if asked.isdigit() else 0.5 * 2**attempt)
