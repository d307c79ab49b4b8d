"""Passwords and access tokens are taken out of everything before it is stored."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

REDACTED = "<redacted>"

_WORDS = {"password", "passwd", "passphrase", "secret", "secrets", "credential", "credentials", "authorization"}
_KEYS = {"api", "access", "private", "secret", "signing", "encryption", "license"}
_TEXT_TOKENS = re.compile(
    "bos|eos|pad|unk|sep|cls|mask|end|start|stop|special|prefix|suffix|additional|image|audio"
    "|assistant|user|system|first|last|next|new|per"
)
_SHAPES = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bxox[a-z]-[A-Za-z0-9-]{10,}|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+"
    r"|(?<=[Bb]earer )[\w.~+/=-]{8,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
)
_SETTING = re.compile(r"^(?:--?)?([\w.\-]+)=(.+)$", re.DOTALL)


@functools.cache
def is_secret_name(name: str) -> bool:
    """Whether a setting of this name holds a secret: `hub_token`, `api-key`, `DB_PASSWORD`; not `eos_token`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    parts = [part for part in re.split(r"[^a-z0-9]+", words) if part]
    if not parts:
        return False
    before = parts[-2] if len(parts) > 1 else ""
    return (
        not _WORDS.isdisjoint(parts)
        or parts[-1] in {"apikey", "auth", "bearer"}
        or (parts[-1] in {"key", "keys"} and before in _KEYS)
        or (parts[-1] == "token" and not _TEXT_TOKENS.fullmatch(before))
    )


def redact(value: Any, *, secret: bool = False) -> Any:
    """A copy of nested settings in which the values of secret names, and whatever looks like a secret, are replaced.

    With `secret` every text in `value` is replaced.
    """
    if isinstance(value, Mapping):
        return {key: redact(item, secret=secret or is_secret_name(str(key))) for key, item in value.items()}
    if isinstance(value, str):
        return REDACTED if value and secret else redact_text(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [redact(item, secret=secret) for item in value]
    return value


def redact_text(text: str) -> str:
    """`text` without anything that has the shape of an access token or equals a secret environment variable."""
    for name, secret in os.environ.items():
        if len(secret) >= 8 and is_secret_name(name):
            text = text.replace(secret, REDACTED)
    return _SHAPES.sub(REDACTED, text)


def redact_command(arguments: Sequence[str]) -> list[str]:
    """A command line without secrets, both as `--hub-token VALUE` and as `hub.token=VALUE`."""
    kept: list[str] = []
    for argument in arguments:
        setting = _SETTING.match(argument)
        if kept and kept[-1].startswith("-") and "=" not in kept[-1] and is_secret_name(kept[-1]):
            kept.append(REDACTED)
        elif setting and is_secret_name(setting[1]):
            kept.append(argument[: setting.start(2)] + REDACTED)
        else:
            kept.append(redact_text(argument))
    return kept
